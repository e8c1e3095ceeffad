//! Open jobs at GitHub are compared with the tables: whatever deliveries were lost, both agree again.
//!
//! Definition: of each served repository that ever had a job, GitHub's list of jobs that are queued or under
//! way. A listed job that we do not know is taken in as its delivery would have been. One that we have in
//! another state, or that we have queued or running and the list does not have, is put in doubt, so that
//! `doubts` asks about it alone: a list is older than the rows it is compared with. The others are confirmed.
//!
//! Repositories that had a job lately come first and often (`RHYTHM`), and all of the last month once when
//! the daemon starts. Where nothing is open on our side, an unchanged list costs nothing of GitHub's budget
//! (its `ETag`); otherwise each installation's hourly allowance for this bounds it.
//!
//! Does not: look at repositories that never had a job (`redeliver` finds their deliveries), or learn who
//! started a job. One gateway does it at a time.

use super::budget::RequestBudget;
use super::doubts::said;
use crate::domain::ids::{JobId, TenantId};
use crate::domain::job::{self, JobState};
use crate::github::{GitHub, GitHubError, JobInfo, OpenJobs};
use crate::intake::{Intake, IntakeError, Receipt};
use crate::place::{self, Place, PlaceError};
use crate::points::effect;
use crate::secrets::{Column, KeyRing};
use crate::store::jobs::{self, Open};
use crate::store::repositories::{self, Due, Rhythm};
use crate::store::{StoreError, pass_leases};
use crate::wake::Wakes;
use chrono::{DateTime, Utc};
use sqlx::PgPool;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// Its name among the leases.
const PASS: &str = "backfill";
/// How long another gateway waits for this one: less than two periods.
const LEASE: Duration = Duration::from_secs(100);
/// Repositories of one pass.
const BATCH: i64 = 50;
/// Open jobs of one repository that are compared; of more, the oldest.
const MAX_OPEN: i64 = 2_000;
/// How often a repository is looked at; shorter than the pass's period, so that each pass finds it due.
const RHYTHM: Rhythm = Rhythm {
    hour: Duration::from_secs(50),
    day: Duration::from_secs(5 * 60),
    month: Duration::from_secs(60 * 60),
    older: Duration::from_secs(6 * 60 * 60),
};
/// Requests for this of one installation, at once and by the hour. GitHub allows 5,000 an hour.
const MOST_REQUESTS: u32 = 500;
const REQUESTS_PER_HOUR: u32 = 1_500;

/// Compares open jobs.
pub struct Backfill {
    pool: PgPool,
    ring: Arc<KeyRing>,
    github: GitHub,
    intake: Arc<Intake>,
    gateway: Uuid,
    wakes: Arc<Wakes>,
    since: DateTime<Utc>,
    budgets: Mutex<HashMap<TenantId, RequestBudget>>,
}

/// What one pass did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BackfillReport {
    /// Another gateway does it.
    pub elsewhere: bool,
    /// Repositories whose open jobs were listed.
    pub scanned: u32,
    /// Of those, the ones whose list had not changed.
    pub unchanged: u32,
    /// Jobs that no delivery told us of.
    pub found: u32,
    /// Jobs that are perhaps not as we have them.
    pub doubted: u64,
    /// Repositories whose installation has no requests left for this.
    pub over_budget: u32,
    /// Repositories that could not be listed.
    pub failed: u32,
    /// Requests that were made.
    pub requests: u32,
    /// There are more repositories than one pass looks at.
    pub partial: bool,
}

/// Why a repository could not be compared.
#[derive(Debug, thiserror::Error)]
enum ScanError {
    #[error("the jobs' rows could not be read or written")]
    Store(#[from] StoreError),
    #[error("the repository's place cannot be opened")]
    Place(#[from] PlaceError),
    #[error("GitHub did not list the jobs")]
    GitHub(#[from] GitHubError),
    #[error("a job that GitHub listed could not be taken in")]
    Intake(#[from] IntakeError),
}

impl Backfill {
    /// A comparison that takes in what it finds through `intake`. What was not looked at since `since`, the
    /// daemon's start, is looked at once.
    #[must_use]
    pub fn new(
        pool: PgPool,
        ring: Arc<KeyRing>,
        github: GitHub,
        intake: Arc<Intake>,
        gateway: Uuid,
        wakes: Arc<Wakes>,
        since: DateTime<Utc>,
    ) -> Self {
        Self { pool, ring, github, intake, gateway, wakes, since, budgets: Mutex::default() }
    }

    /// One round.
    ///
    /// # Errors
    /// When the database is away. A repository that cannot be compared is logged, and stops no other.
    pub async fn pass(&self) -> Result<BackfillReport, StoreError> {
        let mut report = BackfillReport::default();
        if !effect!("upkeep.backfill_lease", pass_leases::take(&self.pool, PASS, self.gateway, LEASE).await)? {
            report.elsewhere = true;
            return Ok(report);
        }
        let due = repositories::due_for_scan(&self.pool, &RHYTHM, self.since, BATCH).await?;
        report.partial = i64::try_from(due.len()).is_ok_and(|count| count >= BATCH);
        for repository in &due {
            self.scan_or_log(repository, &mut report).await?;
        }
        if report.found > 0 || report.doubted > 0 {
            tracing::info!(
                found = report.found,
                doubted = report.doubted,
                "deliveries were lost: GitHub's list of open jobs is not ours"
            );
            self.wakes.doubt.notify_one();
        }
        Ok(report)
    }

    async fn scan_or_log(&self, due: &Due, report: &mut BackfillReport) -> Result<(), StoreError> {
        let etag = if self.allows(due.tenant) {
            match self.scan(due, report).await {
                Ok(etag) => etag,
                Err(ScanError::Store(error)) => return Err(error),
                Err(error) => {
                    self.failed(due, &error, report).await?;
                    due.etag.clone()
                }
            }
        } else {
            // Its turn comes again, after the others'.
            report.over_budget += 1;
            due.etag.clone()
        };
        effect!("upkeep.scanned", repositories::scanned(&self.pool, due.id, etag.as_deref()).await)
    }

    async fn failed(&self, due: &Due, error: &ScanError, report: &mut BackfillReport) -> Result<(), StoreError> {
        tracing::warn!(repository.id = %due.id, error = %crate::errors::chain(error), "the repository's open jobs could not be compared");
        report.failed += 1;
        if let ScanError::GitHub(refusal) = error
            && effect!("upkeep.scan_suspect", place::suspect(&self.pool, due.tenant, due.id, refusal).await)?
        {
            self.wakes.doubt.notify_one();
        }
        Ok(())
    }

    /// Compares one repository. Answers the mark of a list in which nothing was open on our side.
    async fn scan(&self, due: &Due, report: &mut BackfillReport) -> Result<Option<String>, ScanError> {
        let place = place::open(&self.pool, &self.ring, due.tenant, due.id).await?;
        // The rows first: what changes while GitHub is asked is not taken for a difference.
        let open = jobs::open_of_repository(&self.pool, due.id, MAX_OPEN).await?;
        let etag = due.etag.as_deref().filter(|_| open.is_empty());
        let listed = self.github.open_jobs(place.installation, place.repository(), etag).await?;
        self.charge(due.tenant, listed.requests);
        report.scanned += 1;
        report.unchanged += u32::from(listed.unchanged);
        report.requests += listed.requests;
        for job in listed.jobs.iter().filter(|job| self.intake.concerns(&job.labels)) {
            if !is_known(job, &open, &place) && self.intake.found(&place, due.id, job).await? == Receipt::Applied {
                report.found += 1;
            }
        }
        let compared = compare(&open, &listed, &place);
        effect!("upkeep.scan_confirm", jobs::confirm(&self.pool, &compared.confirmed).await)?;
        report.doubted += effect!("upkeep.scan_doubt", jobs::doubt_if(&self.pool, &compared.doubtful).await)?;
        Ok(listed.etag)
    }

    fn allows(&self, tenant: TenantId) -> bool {
        let now = Instant::now();
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        // What it takes is known afterwards.
        budgets.entry(tenant).or_insert_with(|| RequestBudget::new(MOST_REQUESTS, REQUESTS_PER_HOUR, now)).take(0, now)
    }

    fn charge(&self, tenant: TenantId, requests: u32) {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(budget) = budgets.get_mut(&tenant) {
            budget.charge(requests, Instant::now());
        }
    }
}

fn is_known(job: &JobInfo, open: &[Open], place: &Place) -> bool {
    let lookup = place.keys.lookup_id(Column::JobGithubId, job.id);
    open.iter().any(|row| row.lookup == lookup.as_bytes())
}

/// What a list says of the rows.
#[derive(Default)]
struct Compared {
    confirmed: Vec<(JobId, JobState)>,
    doubtful: Vec<(JobId, JobState)>,
}

fn compare(open: &[Open], listed: &OpenJobs, place: &Place) -> Compared {
    let states: HashMap<Vec<u8>, Option<JobState>> = listed
        .jobs
        .iter()
        .map(|job| {
            let lookup = place.keys.lookup_id(Column::JobGithubId, job.id);
            (lookup.as_bytes().to_vec(), said(job).map(job::first))
        })
        .collect();
    // A list that was cut off, or not sent, says nothing of what is not in it.
    let is_whole = listed.complete && !listed.unchanged;
    let mut compared = Compared::default();
    for row in open {
        match states.get(&row.lookup) {
            // Its vm is gone: until GitHub knows that, its word is asked for by `doubts`.
            Some(Some(state)) if *state == row.state && !row.vm_ended => compared.confirmed.push((row.id, row.state)),
            Some(_) => compared.doubtful.push((row.id, row.state)),
            // The list has no runs that wait.
            None if is_whole && row.state != JobState::Waiting => compared.doubtful.push((row.id, row.state)),
            None => {}
        }
    }
    compared
}
