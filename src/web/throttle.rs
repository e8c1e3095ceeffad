//! Says at most so often what strangers can cause as often as they like.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets one of many through in each period, and counts the others.
pub struct Throttle {
    period: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: Option<Instant>,
    held_back: u64,
}

impl Throttle {
    /// Lets one through in each `period`.
    #[must_use]
    pub fn new(period: Duration) -> Self {
        Self { period, state: Mutex::default() }
    }

    /// `Some` when it is time to say it: how many there were, this one and those held back since the last.
    pub fn count(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.held_back += 1;
        if state.last.is_some_and(|last| now.duration_since(last) < self.period) {
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_and_then_one_in_each_period() {
        let (throttle, begin) = (Throttle::new(Duration::from_secs(60)), Instant::now());
        let at = |seconds| throttle.count(begin + Duration::from_secs(seconds));
        assert_eq!([at(0), at(1), at(59), at(60), at(61)], [Some(1), None, None, Some(3), None]);
    }
}
