//! Rows beyond their retention go, in bounded batches.

use crate::points::effect;
use crate::store::{StoreError, deliveries, jobs, refusals, vms};
use chrono::{DateTime, Duration, Utc};
use sqlx::PgPool;

/// Rows of a table that one pass may delete: a long delete would hold up the queue.
const BATCH: i64 = 1_000;

/// How long rows are kept: `[retention]`.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Deliveries and refusals.
    pub deliveries: Duration,
    /// Jobs, and the vms and runners that served them.
    pub jobs: Duration,
}

/// What one pass deleted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PruneReport {
    /// Deliveries.
    pub deliveries: u64,
    /// Refusals.
    pub refusals: u64,
    /// Jobs.
    pub jobs: u64,
    /// Vms, with their runners.
    pub vms: u64,
}

impl PruneReport {
    /// True when a batch was full: there may be more.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        let batch = BATCH.unsigned_abs();
        [self.deliveries, self.refusals, self.jobs, self.vms].contains(&batch)
    }
}

/// One round.
///
/// # Errors
/// When the database is away.
pub async fn pass(pool: &PgPool, retention: Retention, now: DateTime<Utc>) -> Result<PruneReport, StoreError> {
    Ok(PruneReport {
        deliveries: effect!(
            "upkeep.prune_deliveries",
            deliveries::prune(pool, now - retention.deliveries, BATCH).await
        )?,
        refusals: effect!("upkeep.prune_refusals", refusals::prune(pool, now - retention.deliveries, BATCH).await)?,
        jobs: effect!("upkeep.prune_jobs", jobs::prune(pool, now - retention.jobs, BATCH).await)?,
        vms: effect!("upkeep.prune_vms", vms::prune(pool, now - retention.jobs, BATCH).await)?,
    })
}
