//! Deliveries that GitHub tried in vain are asked for again: GitHub itself never tries twice
//! (<https://docs.github.com/webhooks/using-webhooks/handling-failed-webhook-deliveries>).
//!
//! Definition: an event of a kind that `intake` uses, with an attempt of the last three days that was not
//! answered 2xx, whose GUID is not among the deliveries that came. It is asked for after a minute, five,
//! twenty-five, then each hour, eight times in all; it comes through the webhook like any other.
//!
//! Does not: ask for what was answered 2xx, nor find what GitHub never tried to deliver (`backfill`).
//! One gateway does it at a time. Not done where deliveries are pulled.

use super::log::{self, Bounds, Handler};
use crate::github::{Delivery, GitHub, GitHubError};
use crate::intake::EVENTS;
use crate::points::effect;
use crate::store::delivery_log::{self, Missed};
use crate::store::{StoreError, pass_leases};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgPool;
use std::time::Duration;
use uuid::Uuid;

/// Its name among the leases.
const PASS: &str = "redeliver";
/// How long another gateway waits for this one: less than two periods.
const LEASE: Duration = Duration::from_secs(100);
/// How much of the log one pass reads.
const BOUNDS: Bounds = Bounds { pages: 10, overlap: TimeDelta::minutes(10) };
/// Deliveries that one pass asks for.
const BATCH: i64 = 100;

/// Asks for failed deliveries again.
pub struct Redeliver {
    /// Acts as the gateway.
    pub pool: PgPool,
    /// GitHub.
    pub github: GitHub,
    /// This process: holds the lease.
    pub gateway: Uuid,
}

/// What one pass did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RedeliverReport {
    /// Another gateway does it.
    pub elsewhere: bool,
    /// Pages of the log that were read.
    pub pages: u32,
    /// Deliveries that were asked for.
    pub asked: u32,
    /// Deliveries that GitHub has dropped.
    pub dropped: u32,
    /// There is more than one pass does.
    pub partial: bool,
}

/// Why a pass could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RedeliverError {
    /// The database is away.
    #[error("the list of missed deliveries could not be read or written")]
    Store(#[from] StoreError),
    /// GitHub did not show its log.
    #[error("GitHub's log of deliveries could not be read")]
    GitHub(#[from] GitHubError),
}

impl Redeliver {
    /// One round.
    ///
    /// # Errors
    /// When the database or GitHub does not answer. A delivery that could not be asked for is logged, and stops no other.
    pub async fn pass(&self, now: DateTime<Utc>) -> Result<RedeliverReport, RedeliverError> {
        if !effect!("upkeep.redeliver_lease", pass_leases::take(&self.pool, PASS, self.gateway, LEASE).await)? {
            return Ok(RedeliverReport { elsewhere: true, ..RedeliverReport::default() });
        }
        let read = log::read(&self.pool, &self.github, self, &BOUNDS, now).await?;
        effect!("upkeep.redeliver_settle", delivery_log::settle_missed(&self.pool, now - log::KEPT).await)?;
        let mut report = RedeliverReport { pages: read.pages, partial: read.partial, ..RedeliverReport::default() };
        for missed in delivery_log::due_missed(&self.pool, BATCH).await? {
            self.ask(&missed, &mut report).await?;
        }
        if report.asked > 0 {
            tracing::info!(deliveries = report.asked, "GitHub was asked to deliver again what it delivered in vain");
        }
        Ok(report)
    }

    async fn ask(&self, missed: &Missed, report: &mut RedeliverReport) -> Result<(), RedeliverError> {
        effect!("upkeep.redeliver_count", delivery_log::count_asked(&self.pool, missed.guid).await)?;
        match effect!("upkeep.redeliver_ask", self.github.redeliver(missed.attempt.unsigned_abs()).await) {
            Ok(()) => report.asked += 1,
            Err(GitHubError::NotFound { .. }) => {
                effect!("upkeep.redeliver_forget", delivery_log::forget_missed(&self.pool, missed.guid).await)?;
                report.dropped += 1;
            }
            Err(error @ GitHubError::RateLimited { .. }) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(error = %crate::errors::chain(&error), "a delivery could not be asked for again; it is tried later");
            }
        }
        Ok(())
    }
}

impl Handler for Redeliver {
    type Error = RedeliverError;

    async fn handle(&self, page: Vec<Delivery>) -> Result<(), RedeliverError> {
        for failed in page.iter().filter(|one| !one.succeeded() && EVENTS.contains(&one.event.as_str())) {
            if let (Ok(guid), Ok(attempt)) = (failed.guid.parse(), i64::try_from(failed.id)) {
                let missed = Missed { guid, attempt, failed_at: failed.delivered_at };
                effect!("upkeep.redeliver_note", delivery_log::remember_missed(&self.pool, &missed).await)?;
            }
        }
        Ok(())
    }
}
