//! The states of a job, which follow GitHub alone.
//!
//! ```text
//! waiting ⇄ queued → running → done
//! waiting, queued → cancelled | unserved        running → lost
//! running → queued, and any end of ours → any: only by asking GitHub
//! ```
//!
//! Deliveries come late, twice and out of order, and any of them may be the first that we see: a
//! `completed` before its `queued` makes an ended row, so that nothing boots for a dead job.

use super::reason::{JobEnd, VmEnd};
use std::fmt;

/// The state of a job, with what is true only then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobState {
    /// GitHub holds it back (an approval, a wait timer): no demand.
    Waiting,
    /// It is demand.
    Queued,
    /// A runner has it.
    Running,
    /// It ran, and ended.
    Done,
    /// It ended before any runner had it.
    Cancelled,
    /// We gave up on it while GitHub had it queued.
    Unserved(JobEnd),
    /// It ran with us, and its vm is gone without GitHub telling of an end.
    Lost(JobEnd),
    /// Written by a later version: nothing of this version touches it.
    Unknown,
}

/// What GitHub says of a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Said {
    /// `waiting`
    Waiting,
    /// `queued`
    Queued,
    /// `in_progress`
    InProgress,
    /// `completed`, and a runner had it.
    CompletedByRunner,
    /// `completed`, and no runner ever had it.
    CompletedUnserved,
}

/// How we know what GitHub says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// A delivery: may be late.
    Webhook,
    /// An answer to a question asked just now: the present truth.
    Api,
}

impl JobState {
    /// The stable spelling, as stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Unserved(_) => "unserved",
            Self::Lost(_) => "lost",
            Self::Unknown => "unknown",
        }
    }

    /// The state with this spelling and, where it has one, this reason.
    #[must_use]
    pub fn decode(state: &str, reason: Option<&str>) -> Self {
        let end = || reason.and_then(JobEnd::parse);
        match state {
            "waiting" => Self::Waiting,
            "queued" => Self::Queued,
            "running" => Self::Running,
            "done" => Self::Done,
            "cancelled" => Self::Cancelled,
            "unserved" => end().map_or(Self::Unknown, Self::Unserved),
            "lost" => end().map_or(Self::Unknown, Self::Lost),
            _ => Self::Unknown,
        }
    }

    /// The reason of an end of ours.
    #[must_use]
    pub const fn end(self) -> Option<JobEnd> {
        match self {
            Self::Unserved(end) | Self::Lost(end) => Some(end),
            Self::Waiting | Self::Queued | Self::Running | Self::Done | Self::Cancelled | Self::Unknown => None,
        }
    }

    /// True when nothing more is expected of it.
    #[must_use]
    pub const fn is_ended(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled | Self::Unserved(_) | Self::Lost(_))
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The state of a job that we see for the first time.
#[must_use]
pub const fn first(said: Said) -> JobState {
    match said {
        Said::Waiting => JobState::Waiting,
        Said::Queued => JobState::Queued,
        Said::InProgress => JobState::Running,
        Said::CompletedByRunner => JobState::Done,
        Said::CompletedUnserved => JobState::Cancelled,
    }
}

/// What a job in `state` becomes when GitHub says `said`: `None` when that is old news.
#[must_use]
pub const fn next(state: JobState, said: Said, source: Source) -> Option<JobState> {
    use JobState as S;
    let told = first(said);
    match (state, told, source) {
        // What GitHub answers now is so, except that an ended job stays ended.
        (S::Waiting | S::Queued | S::Running | S::Unserved(_) | S::Lost(_), _, Source::Api)
        // From the queue everything is news: the gate may close and open again.
        | (S::Waiting | S::Queued, _, Source::Webhook)
        // A running job only ends; a late `queued` must not make a second vm for it.
        | (S::Running, S::Done | S::Cancelled, Source::Webhook)
        // An end of ours is reopened by what cannot be old, and never by a late `queued`.
        | (S::Unserved(_) | S::Lost(_), S::Running | S::Done | S::Cancelled, Source::Webhook) => Some(told),
        // `completed` may bring late times to a done job.
        (S::Done, S::Done, Source::Webhook | Source::Api) => Some(S::Done),
        // We took it for cancelled (no runner was named), and a runner had it after all.
        (S::Cancelled, S::Done, Source::Webhook | Source::Api) => Some(S::Done),
        (S::Running | S::Unserved(_) | S::Lost(_), _, Source::Webhook)
        | (S::Done | S::Cancelled | S::Unknown, _, Source::Webhook | Source::Api) => None,
    }
}

/// What becomes of a job that GitHub calls done: one that failed on a machine of ours that died under it
/// is lost by us. GitHub cannot tell the two apart, and calls both a failure.
#[must_use]
pub fn settle(next: JobState, conclusion: Option<&str>, vm: Option<VmEnd>) -> JobState {
    let failed = next == JobState::Done && conclusion == Some("failure");
    if failed && vm.is_some_and(VmEnd::takes_job_along) { JobState::Lost(JobEnd::VmVanished) } else { next }
}

/// GitHub's conclusions.
const CONCLUSIONS: [&str; 9] = [
    "success",
    "failure",
    "cancelled",
    "skipped",
    "timed_out",
    "action_required",
    "neutral",
    "stale",
    "startup_failure",
];

/// GitHub's word for how a job ended. A word that is not known could carry anything, and is kept as `other`.
#[must_use]
pub fn conclusion(told: &str) -> &'static str {
    CONCLUSIONS.into_iter().find(|known| *known == told).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAID: [Said; 5] =
        [Said::Waiting, Said::Queued, Said::InProgress, Said::CompletedByRunner, Said::CompletedUnserved];

    #[test]
    fn a_late_queued_never_wakes_the_dead() {
        for dead in [JobState::Running, JobState::Done, JobState::Cancelled, JobState::Lost(JobEnd::VmVanished)] {
            assert_eq!(next(dead, Said::Queued, Source::Webhook), None, "{dead}");
        }
    }

    #[test]
    fn what_github_contradicts_is_opened_again() {
        let unserved = JobState::Unserved(JobEnd::QueueTimeout);
        assert_eq!(next(unserved, Said::Queued, Source::Api), Some(JobState::Queued));
        assert_eq!(next(unserved, Said::InProgress, Source::Webhook), Some(JobState::Running));
        assert_eq!(next(JobState::Running, Said::Queued, Source::Api), Some(JobState::Queued));
    }

    #[test]
    fn a_failure_is_ours_only_when_the_machine_died_under_the_job() {
        let lost = JobState::Lost(JobEnd::VmVanished);
        assert_eq!(settle(JobState::Done, Some("failure"), Some(VmEnd::Vanished)), lost);
        assert_eq!(settle(JobState::Done, Some("success"), Some(VmEnd::Vanished)), JobState::Done);
        assert_eq!(settle(JobState::Done, Some("failure"), Some(VmEnd::JobDone)), JobState::Done);
        assert_eq!(settle(JobState::Done, Some("failure"), Some(VmEnd::JobTimeout)), JobState::Done);
        assert_eq!(settle(JobState::Done, Some("failure"), None), JobState::Done);
        assert_eq!(settle(JobState::Cancelled, Some("failure"), Some(VmEnd::Vanished)), JobState::Cancelled);
    }

    proptest! {
        /// Deliveries in any order, with any repeats: once `completed` was seen the job is ended,
        /// and stays so.
        #[test]
        fn completed_wins_over_any_order(order in prop::collection::vec(0..SAID.len(), 1..20)) {
            let mut state = None;
            let mut completed = false;
            for index in order {
                let said = SAID[index];
                state = match state {
                    None => Some(first(said)),
                    Some(before) => Some(next(before, said, Source::Webhook).unwrap_or(before)),
                };
                completed |= matches!(said, Said::CompletedByRunner | Said::CompletedUnserved);
                prop_assert_eq!(completed, state.is_some_and(JobState::is_ended));
            }
        }
    }
}
