//! Whether another image is good enough for the fleet: what one host, the canary, has shown of it.
//!
//! Pure. Does not: pull, boot, or write anything.

/// What the canary has shown of a candidate since the update began.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trial {
    /// The canary is a host of the fleet still.
    pub has_canary: bool,
    /// A vm of it was ready there.
    pub booted: bool,
    /// It failed there so often in a row that it is left alone: the last failure's word.
    pub quarantined: Option<String>,
    /// Jobs that succeeded in vms of it there.
    pub passed: u32,
    /// Jobs that are to succeed before the others take it.
    pub wanted: u32,
}

/// What is to be done with a candidate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing yet.
    Wait,
    /// Every host takes it.
    Promote,
    /// The canary goes back, and no other host takes it. Why.
    Reject(String),
}

impl Trial {
    /// What is to be done now.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if !self.has_canary {
            return Verdict::Reject("its canary has left the fleet".to_owned());
        }
        if let Some(word) = &self.quarantined {
            return Verdict::Reject(format!("its vms do not come up ({word})"));
        }
        if self.booted && self.passed >= self.wanted { Verdict::Promote } else { Verdict::Wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(booted: bool, passed: u32) -> Trial {
        Trial { has_canary: true, booted, quarantined: None, passed, wanted: 3 }
    }

    #[test]
    fn the_fleet_follows_after_a_boot_and_the_jobs_that_were_asked_for() {
        assert_eq!(trial(false, 0).verdict(), Verdict::Wait);
        assert_eq!(trial(true, 2).verdict(), Verdict::Wait);
        assert_eq!(trial(true, 3).verdict(), Verdict::Promote);
        assert_eq!(Trial { wanted: 0, ..trial(false, 0) }.verdict(), Verdict::Wait, "no jobs are asked for, a boot is");
        assert_eq!(Trial { wanted: 0, ..trial(true, 0) }.verdict(), Verdict::Promote);
    }

    #[test]
    fn what_does_not_come_up_goes_no_further() {
        let failed = Trial { quarantined: Some("boot_timeout".into()), ..trial(true, 9) };
        assert!(matches!(failed.verdict(), Verdict::Reject(why) if why.contains("boot_timeout")));
        assert!(matches!(Trial { has_canary: false, ..trial(true, 9) }.verdict(), Verdict::Reject(_)));
    }
}
