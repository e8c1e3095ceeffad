//! What the switches make of deliveries on their way out: which are dropped, and in which order the rest goes. Chance
//! comes from a seed. No I/O.

use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::world::switches::DeliverySwitches;

/// What happens to one delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is sent this many times.
    Sent(u32),
    /// It is not sent, and shows as failed in the log.
    Failed,
    /// It is not sent, and nothing shows it.
    Vanished,
}

/// Chance, restarted whenever its seed changes.
pub struct Chance {
    seed: u64,
    rng: SmallRng,
}

impl Chance {
    /// Chance from a seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, rng: SmallRng::seed_from_u64(seed) }
    }

    /// Decides one delivery, and counts down what is counted.
    pub fn fate(&mut self, switches: &mut DeliverySwitches) -> Fate {
        if switches.seed != self.seed {
            *self = Self::new(switches.seed);
        }
        let counted = switches.drop_next > 0;
        switches.drop_next = switches.drop_next.saturating_sub(1);
        let dropped = counted || self.rng.random_bool(switches.drop_fraction.clamp(0.0, 1.0));
        match (dropped, switches.drop_without_trace) {
            (false, _) => Fate::Sent(1 + switches.repeat),
            (true, false) => Fate::Failed,
            (true, true) => Fate::Vanished,
        }
    }

    /// Shuffles what was collected.
    pub fn shuffle<T>(&mut self, collected: &mut [T]) {
        collected.shuffle(&mut self.rng);
    }
}
