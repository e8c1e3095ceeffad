//! Slots that the platform keeps although no VM holds them.
//!
//! A Mac's kernel runs two macOS guests, and sometimes counts one that is gone, until the Mac is booted again. Such a
//! slot is left alone for a growing while, since it may also have been another program's VM, and tried again then.
//! What is lost outlives the daemon, in a file, and does not outlive the boot.

use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// The file in the data directory.
const FILE: &str = "lost-slots.json";

/// How long a lost slot is left alone at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(15 * 60);
const LAST_PAUSE: Duration = Duration::from_secs(4 * 60 * 60);

/// The lost slots of one boot of the machine. Times are seconds since 1970.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct LostSlots {
    boot_id: String,
    lost: u32,
    /// When one of them is tried again.
    again_at: u64,
    /// How long the next pause is.
    pause: u64,
}

impl LostSlots {
    /// None, in this boot.
    pub(super) fn none(boot_id: String) -> Self {
        Self { boot_id, lost: 0, again_at: 0, pause: FIRST_PAUSE.as_secs() }
    }

    /// What the file of a data directory tells of this boot.
    pub(super) fn read(data_dir: &Path, boot_id: &str) -> Self {
        let kept = fs::read(data_dir.join(FILE)).ok().and_then(|text| serde_json::from_slice::<Self>(&text).ok());
        kept.filter(|kept| kept.boot_id == boot_id).unwrap_or_else(|| Self::none(boot_id.to_owned()))
    }

    /// Writes the file, whole or not at all.
    pub(super) fn write(&self, data_dir: &Path) -> io::Result<()> {
        let draft = data_dir.join(format!(".{FILE}"));
        fs::write(&draft, serde_json::to_vec(self)?)?;
        fs::rename(draft, data_dir.join(FILE))
    }

    /// How many are lost, now. Of those whose pause is over one is counted as there: the next vm tries it.
    pub(super) const fn count(&self, now: u64) -> u32 {
        if self.lost > 0 && now >= self.again_at { self.lost - 1 } else { self.lost }
    }

    /// The platform refused a VM beside `living` others, and `slots` are configured.
    pub(super) fn refused(&mut self, living: u32, slots: u32, now: u64) {
        let lost = slots.saturating_sub(living);
        let again = self.lost >= lost;
        self.lost = self.lost.max(lost).min(slots);
        self.pause = if again { (self.pause * 2).min(LAST_PAUSE.as_secs()) } else { FIRST_PAUSE.as_secs() };
        self.again_at = now + self.pause;
    }

    /// The platform started a VM, and `living` live now. Whether that changes anything.
    pub(super) fn started(&mut self, living: u32, slots: u32) -> bool {
        let lost = self.lost.min(slots.saturating_sub(living));
        let found = lost < self.lost;
        if found {
            (self.lost, self.pause, self.again_at) = (lost, FIRST_PAUSE.as_secs(), 0);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: u64 = FIRST_PAUSE.as_secs();

    #[test]
    fn a_refusal_beside_one_vm_costs_one_slot_and_the_other_goes_on() {
        let mut slots = LostSlots::none("boot".into());
        assert_eq!(slots.count(0), 0);
        slots.refused(1, 2, 100);
        assert_eq!(slots.count(100), 1);
    }

    #[test]
    fn a_lost_slot_is_tried_again_after_a_growing_pause() {
        let mut slots = LostSlots::none("boot".into());
        slots.refused(1, 2, 0);
        assert_eq!((slots.count(PAUSE - 1), slots.count(PAUSE)), (1, 0));
        slots.refused(1, 2, PAUSE);
        assert_eq!((slots.count(3 * PAUSE - 1), slots.count(3 * PAUSE)), (1, 0), "twice as long");
        for _ in 0..20 {
            slots.refused(1, 2, 0);
        }
        assert_eq!(slots.count(LAST_PAUSE.as_secs()), 0, "not for ever");
    }

    #[test]
    fn a_vm_in_the_lost_slot_shows_that_it_is_back() {
        let mut slots = LostSlots::none("boot".into());
        slots.refused(1, 2, 0);
        assert!(!slots.started(1, 2), "one vm was always possible");
        assert!(slots.started(2, 2));
        assert_eq!(slots.count(1), 0);
    }

    #[test]
    fn all_slots_may_be_lost_and_are_back_with_the_next_boot() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut slots = LostSlots::read(directory.path(), "boot");
        slots.refused(0, 2, 0);
        assert_eq!(slots.count(0), 2);
        slots.write(directory.path()).expect("written");
        assert_eq!(LostSlots::read(directory.path(), "boot"), slots, "it outlives the daemon");
        assert_eq!(LostSlots::read(directory.path(), "next boot").count(0), 0);
    }
}
