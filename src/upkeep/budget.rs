//! Requests that a pass may make by the hour: what GitHub allows is for serving jobs first.

use std::time::Duration;
use tokio::time::Instant;

/// The time that an allowance is of.
const HOUR: Duration = Duration::from_secs(3600);

/// An allowance that refills evenly.
#[derive(Debug)]
pub(super) struct RequestBudget {
    per_hour: u32,
    most: f64,
    left: f64,
    at: Instant,
}

impl RequestBudget {
    /// `most` at once, and `per_hour` more with each hour.
    pub(super) fn new(most: u32, per_hour: u32, now: Instant) -> Self {
        Self { per_hour, most: f64::from(most), left: f64::from(most), at: now }
    }

    /// Takes `requests`, or nothing if there are not so many left.
    pub(super) fn take(&mut self, requests: u32, now: Instant) -> bool {
        self.refill(now);
        let enough = self.left >= f64::from(requests);
        if enough {
            self.left -= f64::from(requests);
        }
        enough
    }

    /// Charges what was used already, even if it was more than was left.
    pub(super) fn charge(&mut self, requests: u32, now: Instant) {
        self.refill(now);
        self.left -= f64::from(requests);
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        self.left = self.most.min(self.left + f64::from(self.per_hour) * passed.div_duration_f64(HOUR));
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_comes_back_with_time_and_never_exceeds_the_most() {
        let start = Instant::now();
        let mut budget = RequestBudget::new(10, 60, start);
        assert!(budget.take(10, start));
        assert!(!budget.take(1, start));
        let later = start + Duration::from_secs(120);
        assert!(budget.take(2, later) && !budget.take(1, later));
        assert!(!budget.take(11, later + HOUR), "no more than the most");
        assert!(budget.take(10, later + HOUR));
    }

    #[test]
    fn a_debt_is_paid_before_anything_is_allowed() {
        let start = Instant::now();
        let mut budget = RequestBudget::new(10, 60, start);
        budget.charge(15, start);
        assert!(!budget.take(1, start + Duration::from_secs(300)));
        assert!(budget.take(1, start + Duration::from_secs(361)));
    }
}
