//! What the simulated GitHub does by itself as time goes: idle runners are dropped, silent ones go offline, their jobs
//! are lost, cancelled jobs end.

use std::time::Instant;

use super::World;
use super::model::Status;
use crate::protocol::Conclusion;

/// What GitHub writes when a runner vanishes.
pub const LOST: &str = "The self-hosted runner lost communication with the server. Verify the machine is running and \
                        has a healthy network connection.";

impl World {
    /// Does what is due at `now`. Says whether anything changed.
    pub fn tick(&mut self, now: Instant) -> bool {
        let silent = self.mark_silent(now);
        let lost = self.fail_lost_jobs(now);
        let dropped = self.drop_runners(now);
        let cancelled = self.end_cancelled(now);
        silent | lost | dropped | cancelled
    }

    fn mark_silent(&mut self, now: Instant) -> bool {
        let limit = self.switches.silence();
        let mut changed = false;
        for session in self.runners.values_mut().filter_map(|r| r.session.as_mut()) {
            if session.silent_since.is_none() && now.saturating_duration_since(session.heard) > limit {
                session.silent_since = Some(now);
                session.ready = false;
                changed = true;
            }
        }
        changed
    }

    fn fail_lost_jobs(&mut self, now: Instant) -> bool {
        let after = self.switches.lost_after();
        let lost: Vec<(u64, u64)> = self
            .runners
            .values()
            .filter_map(|r| {
                let since = r.session.as_ref()?.silent_since?;
                (now.saturating_duration_since(since) >= after).then_some((r.id, r.job?))
            })
            .collect();
        for (runner, job) in &lost {
            self.end_job(*job, Conclusion::Failure, Some(LOST));
            self.remove_runner(*runner);
        }
        !lost.is_empty()
    }

    fn drop_runners(&mut self, now: Instant) -> bool {
        let idle = self.switches.idle_runner();
        let due: Vec<u64> = self
            .runners
            .values()
            .filter(|r| match r.lingers_until {
                Some(until) => now >= until,
                None => r.job.is_none() && now.saturating_duration_since(r.registered) >= idle,
            })
            .map(|r| r.id)
            .collect();
        for id in &due {
            self.remove_runner(*id);
        }
        !due.is_empty()
    }

    fn end_cancelled(&mut self, now: Instant) -> bool {
        let grace = self.switches.cancel_grace();
        let overdue = |job: &u64| {
            let job = &self.jobs[job];
            job.status == Status::InProgress
                && job.cancel_at.is_some_and(|at| now.saturating_duration_since(at) >= grace)
        };
        let due: Vec<(u64, u64)> =
            self.runners.values().filter_map(|r| r.job.filter(&overdue).map(|job| (job, r.id))).collect();
        for (job, runner) in &due {
            self.end_job(*job, Conclusion::Cancelled, None);
            self.remove_runner(*runner);
        }
        !due.is_empty()
    }
}
