//! Registrations that GitHub is asked to forget: the only proof that a runner will have no (more) job.
//!
//! Definition: a runner whose vm is ending, that ended, or whose host asks whether it can let go.
//! Before one is let go that had no job, GitHub is asked whether it is busy, and at the last moment once
//! more: the DELETE itself is refused (422) for one that got a job meanwhile.
//! Does not: look for registrations that have no row (`upkeep`).

use super::{CALLS_AT_ONCE, MintError, Minter};
use crate::domain::reason::RunnerEnd;
use crate::domain::runner::RunnerState;
use crate::github::Removal;
use crate::place::{self, Place};
use crate::points::effect;
use crate::secrets::Column;
use crate::store::runners::{self, RemovalCause, Runner};
use crate::store::{StoreError, vms};
use futures_util::StreamExt;
use std::time::Duration;

/// Registrations handled in one pass.
const BATCH: i64 = 64;
/// For tens of seconds after its job GitHub may call a runner busy still.
const BUSY_WAIT: Duration = Duration::from_secs(5);
/// How long a removal waits after GitHub did not do it.
const ERROR_WAIT: Duration = Duration::from_secs(10);

/// What one pass did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RemovalReport {
    /// GitHub does not know these any more.
    pub removed: u32,
    /// GitHub says that these have a job.
    pub busy: u32,
    /// GitHub did not answer: to be asked again.
    pub postponed: u32,
}

/// What became of one registration.
enum Outcome {
    Removed,
    Busy,
    Postponed,
}

impl Minter {
    /// One round of removals.
    ///
    /// # Errors
    /// When the database is away. What goes wrong with one runner is logged, and does not stop the others.
    pub async fn removal_pass(&self) -> Result<RemovalReport, StoreError> {
        let wanted = runners::to_remove(&self.pool, BATCH).await?;
        let outcomes: Vec<Result<Outcome, StoreError>> = futures_util::stream::iter(wanted)
            .map(|(runner, cause)| async move { self.remove_or_postpone(&runner, cause).await })
            .buffer_unordered(CALLS_AT_ONCE)
            .collect()
            .await;
        let mut report = RemovalReport::default();
        for outcome in outcomes {
            match outcome? {
                Outcome::Removed => report.removed += 1,
                Outcome::Busy => report.busy += 1,
                Outcome::Postponed => report.postponed += 1,
            }
        }
        Ok(report)
    }

    async fn remove_or_postpone(&self, runner: &Runner, cause: RemovalCause) -> Result<Outcome, StoreError> {
        match self.remove(runner, cause).await {
            Ok(Removal::Gone) => {
                let end = if cause == RemovalCause::VmEnding { RunnerEnd::VmEnded } else { RunnerEnd::Idle };
                let _ = effect!(
                    "mint.removed",
                    runners::advance(&self.pool, runner.id, runner.state, RunnerState::Removed, Some(end)).await
                )?;
                self.wakes.vm(runner.vm);
                Ok(Outcome::Removed)
            }
            Ok(Removal::Busy) => {
                self.keep(runner, cause).await?;
                Ok(Outcome::Busy)
            }
            Err(error) => {
                tracing::warn!(runner.id = %runner.id, error = %crate::errors::chain(&error), "the registration could not be removed");
                if let MintError::GitHub(refusal) = &error
                    && effect!(
                        "mint.suspect_removal",
                        place::suspect(&self.pool, runner.tenant, runner.repository, refusal).await
                    )?
                {
                    self.wakes.doubt.notify_one();
                }
                effect!("mint.postpone", runners::postpone(&self.pool, runner.id, ERROR_WAIT).await)?;
                Ok(Outcome::Postponed)
            }
        }
    }

    /// GitHub gave it a job: a vm that could have been let go serves on.
    async fn keep(&self, runner: &Runner, cause: RemovalCause) -> Result<(), StoreError> {
        effect!("mint.leave_busy", runners::postpone(&self.pool, runner.id, BUSY_WAIT).await)?;
        if cause == RemovalCause::ReleaseAsked {
            effect!("mint.withdraw_release", vms::withdraw_release(&self.pool, runner.vm).await)?;
            if matches!(runner.state, RunnerState::Delivering | RunnerState::Online | RunnerState::Removing) {
                let _ = effect!(
                    "mint.busy",
                    runners::advance(&self.pool, runner.id, runner.state, RunnerState::Busy, None).await
                )?;
            }
            self.wakes.vm(runner.vm);
        }
        Ok(())
    }

    async fn remove(&self, runner: &Runner, cause: RemovalCause) -> Result<Removal, MintError> {
        let place = self.place(runner).await?;
        if place.tenant.uninstalled_at.is_some() || place.is_removed {
            // We may not ask any more; GitHub removes what does not connect.
            return Ok(Removal::Gone);
        }
        let Some(id) = self.github_id(runner, &place).await? else { return Ok(Removal::Gone) };
        if cause == RemovalCause::ReleaseAsked {
            match self.github.runner(place.installation, place.repository(), self.scope, id).await? {
                None => return Ok(Removal::Gone),
                Some(found) if found.busy => return Ok(Removal::Busy),
                Some(_) => {}
            }
        }
        let (scope, repository) = (self.scope, place.repository());
        Ok(effect!("mint.remove", self.github.remove_runner(place.installation, repository, scope, id).await)?)
    }

    /// GitHub's id of a registration: stored, or found by the name whose answer was lost.
    async fn github_id(&self, runner: &Runner, place: &Place) -> Result<Option<u64>, MintError> {
        if let Some(sealed) = &runner.github_id {
            return Ok(Some(place.keys.open_id(Column::RunnerGithubId, runner.id.0, sealed)?));
        }
        let Some(sealed) = &runner.name else { return Ok(None) };
        let name = place.keys.open_text(Column::RunnerName, runner.id.0, sealed)?;
        let found = self.github.find_runner(place.installation, place.repository(), self.scope, &name).await?;
        Ok(found.map(|found| found.id))
    }
}
