//! Jobs that we lost are run again, if the operator switched that on: `[limits] rerun_lost_jobs`.
//!
//! Definition: a job that is *lost* because its machine vanished while it ran, in the last day, and that was
//! the first or second attempt of its run: a job that takes its machine down is not run for ever. GitHub is
//! asked for that job alone, at most once: the request is written down before it is made, and only what
//! GitHub certainly did not do is asked for again, such as while the run is still under way.
//!
//! Does not: run a job again that failed, was cancelled, ran out of time or was ended by an operator.

use crate::github::{GitHub, GitHubError};
use crate::place::{self, PlaceError};
use crate::points::effect;
use crate::secrets::{Column, KeyRing, SecretsError};
use crate::store::lost_jobs::{self, LostJob};
use crate::store::{Applied, StoreError};
use sqlx::PgPool;
use std::sync::Arc;
use std::time::Duration;

/// Jobs of one pass.
const BATCH: i64 = 20;
/// Attempts of a run that are run again.
const ATTEMPTS: i32 = 2;
/// How long a job waits that GitHub does not run again yet: its run is under way.
const REFUSED_WAIT: Duration = Duration::from_secs(60);

/// Asks GitHub to run lost jobs again.
pub struct Rerun {
    /// Acts as the gateway.
    pub pool: PgPool,
    /// Opens what is stored of tenants.
    pub ring: Arc<KeyRing>,
    /// GitHub.
    pub github: GitHub,
}

/// What one pass did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RerunReport {
    /// Jobs that GitHub runs again.
    pub asked: u32,
    /// Jobs to be asked for later.
    pub postponed: u32,
    /// Jobs that GitHub may or may not run again: its answer was lost. They are not asked for a second time.
    pub unclear: u32,
}

/// Why a job could not be asked for.
#[derive(Debug, thiserror::Error)]
enum RerunError {
    #[error("the job's row could not be read or written")]
    Store(#[from] StoreError),
    #[error("the job's place cannot be opened")]
    Place(#[from] PlaceError),
    #[error("the job's stored values cannot be opened")]
    Secrets(#[from] SecretsError),
    #[error("GitHub did not run the job again")]
    GitHub(#[from] GitHubError),
}

impl Rerun {
    /// One round.
    ///
    /// # Errors
    /// When the database is away. A job that cannot be asked for is logged, and stops no other.
    pub async fn pass(&self) -> Result<RerunReport, StoreError> {
        let mut report = RerunReport::default();
        for job in lost_jobs::to_rerun(&self.pool, ATTEMPTS, BATCH).await? {
            if effect!("upkeep.rerun_begin", lost_jobs::begin_rerun(&self.pool, job.id).await)? == Applied::Stale {
                continue;
            }
            match self.ask(&job).await {
                Ok(()) => {
                    tracing::info!(job.id = %job.id, "GitHub runs a job again that was lost with its machine");
                    report.asked += 1;
                }
                Err(RerunError::GitHub(error)) if error.may_have_happened() => {
                    tracing::warn!(job.id = %job.id, error = %crate::errors::chain(&error), "it is not known whether GitHub runs the lost job again");
                    report.unclear += 1;
                }
                Err(error) => {
                    tracing::warn!(job.id = %job.id, error = %crate::errors::chain(&error), "GitHub does not run the lost job again yet");
                    effect!("upkeep.rerun_later", lost_jobs::rerun_later(&self.pool, job.id, REFUSED_WAIT).await)?;
                    report.postponed += 1;
                }
            }
        }
        Ok(report)
    }

    async fn ask(&self, job: &LostJob) -> Result<(), RerunError> {
        let place = place::open(&self.pool, &self.ring, job.tenant, job.repository).await?;
        let sealed = lost_jobs::github_id(&self.pool, job.id).await?.ok_or(PlaceError::Missing("job"))?;
        let id = place.keys.open_id(Column::JobGithubId, job.id.0, &sealed)?;
        Ok(effect!("upkeep.rerun_ask", self.github.rerun_job(place.installation, place.repository(), id).await)?)
    }
}
