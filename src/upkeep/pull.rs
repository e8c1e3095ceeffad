//! Deliveries are fetched from GitHub's log of them: `[github] intake = "pull"`. No listener, no domain, no
//! certificate is needed; GitHub delivers in vain, and its log has what it tried to deliver.
//!
//! Definition: every event of a kind that `intake` uses, of the last three days, whose GUID is not among
//! the deliveries that came, goes through the same `intake` as it would by webhook: one request each, the
//! oldest of a page first. The order does not matter to `intake`, nor does what comes twice.
//!
//! Does not: verify signatures (GitHub itself is asked, over TLS), or ask GitHub to deliver anything again.
//! One gateway does it at a time, within its own allowance of the App's hourly requests.

use super::budget::RequestBudget;
use super::log::{self, Bounds, Handler};
use crate::github::{Delivery, DeliveryDetail, GitHub, GitHubError};
use crate::intake::{EVENTS, Intake, IntakeError, Receipt};
use crate::metrics::{DeliveryOutcome, Metrics};
use crate::points::effect;
use crate::store::{StoreError, delivery_log, pass_leases};
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt as _;
use sqlx::PgPool;
use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// Its name among the leases.
const PASS: &str = "pull";
/// How long another gateway waits for this one: some periods. A pass that takes longer may meet another's: each
/// delivery is applied once all the same.
const LEASE: Duration = Duration::from_secs(15);
/// How much of the log one pass reads. An attempt enters it once GitHub has given up waiting for an answer: ten seconds.
const BOUNDS: Bounds = Bounds { pages: 10, overlap: TimeDelta::seconds(60) };
/// Payloads that are fetched at once.
const FETCHES_AT_ONCE: usize = 8;
/// Requests at once, and by the hour. GitHub allows the App 5,000 an hour; an unchanged log costs none.
const MOST_REQUESTS: u32 = 1_500;
const REQUESTS_PER_HOUR: u32 = 3_000;

/// Fetches deliveries.
pub struct Pull {
    pool: PgPool,
    github: GitHub,
    intake: Arc<Intake>,
    metrics: Arc<Metrics>,
    gateway: Uuid,
    budget: Mutex<RequestBudget>,
    fetched: AtomicU32,
}

/// What one pass did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PullReport {
    /// Another gateway does it.
    pub elsewhere: bool,
    /// Pages of the log that were asked for.
    pub pages: u32,
    /// Deliveries that were fetched.
    pub fetched: u32,
    /// There is more than one pass does.
    pub partial: bool,
    /// The allowance is used up, or GitHub holds us back: the rest comes later.
    pub held_back: bool,
}

/// Why a pass could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The database is away.
    #[error("the place in GitHub's log of deliveries could not be read or written")]
    Store(#[from] StoreError),
    /// GitHub did not show its log.
    #[error("GitHub's log of deliveries could not be read")]
    GitHub(#[from] GitHubError),
    /// A delivery could not be stored.
    #[error("a fetched delivery could not be taken")]
    Intake(#[from] IntakeError),
    /// The allowance is used up.
    #[error("the hour's requests for deliveries are used up")]
    OverBudget,
}

impl Pull {
    /// A pull that feeds `intake`.
    #[must_use]
    pub fn new(pool: PgPool, github: GitHub, intake: Arc<Intake>, metrics: Arc<Metrics>, gateway: Uuid) -> Self {
        let budget = Mutex::new(RequestBudget::new(MOST_REQUESTS, REQUESTS_PER_HOUR, Instant::now()));
        Self { pool, github, intake, metrics, gateway, budget, fetched: AtomicU32::new(0) }
    }

    /// One round.
    ///
    /// # Errors
    /// When the database or GitHub does not answer: what was fetched is not fetched again.
    pub async fn pass(&self, now: DateTime<Utc>) -> Result<PullReport, PullError> {
        if !effect!("upkeep.pull_lease", pass_leases::take(&self.pool, PASS, self.gateway, LEASE).await)? {
            return Ok(PullReport { elsewhere: true, ..PullReport::default() });
        }
        let read = log::read(&self.pool, &self.github, self, &BOUNDS, now).await;
        let fetched = self.fetched.swap(0, Ordering::Relaxed);
        match read {
            Ok(read) => {
                // A single page may have been one that did not change, and costs nothing then.
                if fetched > 0 || read.pages > 1 {
                    self.charge(read.pages);
                }
                Ok(PullReport { pages: read.pages, fetched, partial: read.partial, ..PullReport::default() })
            }
            Err(PullError::OverBudget | PullError::GitHub(GitHubError::RateLimited { .. })) => {
                tracing::warn!("the hour's requests to GitHub are used up: deliveries come late until there are more");
                Ok(PullReport { fetched, held_back: true, ..PullReport::default() })
            }
            Err(error) => Err(error),
        }
    }

    async fn fetch(&self, attempt: u64) -> Result<Option<DeliveryDetail>, PullError> {
        if !self.lock().take(1, Instant::now()) {
            return Err(PullError::OverBudget);
        }
        Ok(self.github.delivery(attempt).await?)
    }

    async fn take(&self, guid: Uuid, detail: &DeliveryDetail) -> Result<(), PullError> {
        let outcome = match self.intake.apply(guid, &detail.delivery.event, &detail.payload.to_bytes()).await {
            Ok(Receipt::Applied) => DeliveryOutcome::Applied,
            Ok(Receipt::Repeated) => DeliveryOutcome::Repeated,
            Ok(Receipt::Ignored(_)) => DeliveryOutcome::Ignored,
            Ok(Receipt::NotUnderstood(_)) => DeliveryOutcome::NotUnderstood,
            Err(error @ IntakeError::Store(_)) => return Err(error.into()),
            // One delivery that cannot be taken must not keep the others away.
            Err(error) => {
                tracing::error!(delivery.guid = %guid, error = %crate::errors::chain(&error), "a fetched delivery cannot be taken");
                DeliveryOutcome::Malformed
            }
        };
        self.metrics.delivery(outcome);
        if let Ok(lag) = (Utc::now() - detail.delivery.delivered_at).to_std() {
            self.metrics.pull_lag(lag);
        }
        self.fetched.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn charge(&self, requests: u32) {
        self.lock().charge(requests, Instant::now());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, RequestBudget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handler for Pull {
    type Error = PullError;

    async fn handle(&self, page: Vec<Delivery>) -> Result<(), PullError> {
        let mut seen = HashSet::new();
        let used = page.iter().rev().filter(|one| EVENTS.contains(&one.event.as_str()));
        let attempts: Vec<(Uuid, u64)> = used
            .filter_map(|one| Some((one.guid.parse().ok()?, one.id)))
            .filter(|(guid, _)| seen.insert(*guid))
            .collect();
        let guids: Vec<Uuid> = attempts.iter().map(|(guid, _)| *guid).collect();
        let unknown: HashSet<Uuid> = delivery_log::unknown(&self.pool, &guids).await?.into_iter().collect();
        let wanted = attempts.into_iter().filter(|(guid, _)| unknown.contains(guid));
        let mut details = futures_util::stream::iter(wanted)
            .map(|(guid, attempt)| async move { Ok::<_, PullError>((guid, self.fetch(attempt).await?)) })
            .buffered(FETCHES_AT_ONCE);
        while let Some(fetched) = details.next().await {
            let (guid, detail) = fetched?;
            // GitHub drops what is older than three days.
            if let Some(detail) = detail {
                self.take(guid, &detail).await?;
            }
        }
        Ok(())
    }
}
