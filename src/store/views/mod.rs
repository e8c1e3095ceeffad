//! What people and Prometheus read: queries over many tables that change nothing.
//!
//! One page of rows, a bounded count, or a total over an index. Names stay sealed; `web::admin` opens
//! them. No loop decides by what is read here.

mod fleet;
mod jobs;
mod ledger;
mod scrape;
mod trouble;

pub use fleet::{ImageRow, TenantRow, VmFilter, VmRow, VmTimes, images, newest_images, tenants, vms};
pub use jobs::{
    Claim, Cursor, DayRow, JobFilter, JobRow, JobVmRow, QueueRow, SealedName, SpentVm, claims, day, find_jobs,
    find_refusals, jobs, place_in_queue, queue, refusals, spent_vms,
};
pub use ledger::{DeliveryFilter, UsageRow, audit_before, deliveries, last_delivery, now, usage};
pub use scrape::{GoneVm, HostRow, gone_vms, hosts, jobs_by_state, vms_by_state};
pub use trouble::{
    DeferredRow, LabelRow, Load, RunnerTroubleRow, StuckRow, TenantLoad, deferred, load, runner_trouble, stuck_vms,
    too_old_images, unknown_labels, unread_deliveries,
};

use super::Result;
use sqlx::PgExecutor;

/// Asks whether the database answers.
pub async fn ping(db: impl PgExecutor<'_>) -> Result<()> {
    sqlx::query!(r#"SELECT 1 AS "one!""#).fetch_one(db).await?;
    Ok(())
}
