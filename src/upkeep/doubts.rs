//! Jobs and installations whose state is in doubt: GitHub is asked, and its word counts.
//!
//! A job is *in doubt* when a runner of its class ended without a job that we know of, when its vm is gone
//! and no `completed` came, or when it has been queued or running for longer than is likely. An
//! installation is in doubt when a delivery says that it changed, or GitHub refused a call of it.
//!
//! Does not: find jobs that no delivery told us of.

use crate::domain::job::{self, JobState, Said, Source};
use crate::domain::reason::JobEnd;
use crate::github::{GitHub, GitHubError, JobInfo};
use crate::place::{self, PlaceError};
use crate::secrets::{Column, KeyRing, SecretsError, TenantKeys};
use crate::store::jobs::{self, Doubtful, Patience, Times};
use crate::store::tenants::{self, Standing, Tenant};
use crate::store::{StoreError, runners, vms};
use crate::wake::Wakes;
use sqlx::PgPool;
use std::sync::Arc;

/// Questions of each kind in one pass: GitHub's hourly budget is for serving jobs.
const BATCH: i64 = 20;

/// Asks GitHub.
pub struct Doubts {
    /// Acts as the gateway.
    pub pool: PgPool,
    /// Opens what is stored of tenants.
    pub ring: Arc<KeyRing>,
    /// GitHub.
    pub github: GitHub,
    /// When a job is asked about.
    pub patience: Patience,
    /// Wakes who waits for an answer.
    pub wakes: Arc<Wakes>,
}

/// What one pass did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DoubtReport {
    /// Jobs that GitHub says are as we have them.
    pub confirmed: u32,
    /// Jobs that are otherwise, and were moved.
    pub moved: u32,
    /// Installations whose standing was written.
    pub installations: u32,
    /// Questions without an answer: asked again.
    pub unanswered: u32,
}

/// Why a question had no answer.
#[derive(Debug, thiserror::Error)]
enum DoubtError {
    #[error("the rows could not be read or written")]
    Store(#[from] StoreError),
    #[error("the stored values cannot be opened")]
    Secrets(#[from] SecretsError),
    #[error("the job's place cannot be opened")]
    Place(#[from] PlaceError),
    #[error("GitHub did not answer")]
    GitHub(#[from] GitHubError),
    #[error("GitHub says that the job has a status that this version does not know")]
    Status,
}

impl Doubts {
    /// One round.
    ///
    /// # Errors
    /// When the database is away. A question without an answer is logged, and stops no other.
    pub async fn pass(&self) -> Result<DoubtReport, StoreError> {
        let mut report = DoubtReport::default();
        for tenant in tenants::doubtful(&self.pool, BATCH).await? {
            match self.ask_installation(&tenant).await {
                Ok(()) => report.installations += 1,
                Err(error) => {
                    tracing::warn!(tenant.id = %tenant.id, error = %crate::errors::chain(&error), "the installation's standing is not known");
                    report.unanswered += 1;
                }
            }
        }
        for job in jobs::doubtful(&self.pool, &self.patience, BATCH).await? {
            match self.ask_job(&job).await {
                Ok(true) => report.moved += 1,
                Ok(false) => report.confirmed += 1,
                Err(error) => {
                    tracing::warn!(job.id = %job.id, error = %crate::errors::chain(&error), "the job's state is not known");
                    jobs::doubt_again(&self.pool, job.id).await?;
                    report.unanswered += 1;
                }
            }
        }
        Ok(report)
    }

    async fn ask_installation(&self, tenant: &Tenant) -> Result<(), DoubtError> {
        let keys = self.ring.unwrap(tenant.id, &tenant.wrapped_keys)?;
        let installation = place::installation(&keys, tenant)?;
        let answer = self.github.installation(installation).await?;
        let standing = match &answer {
            None => Standing::Uninstalled,
            Some(found) if found.suspended => Standing::Suspended,
            Some(_) => Standing::Active,
        };
        if let Some(found) = &answer {
            let login = keys.seal_text(Column::TenantAccount, tenant.id.0, found.login.as_str());
            tenants::set_account(&self.pool, tenant.id, &login).await?;
        }
        tenants::set_standing(&self.pool, tenant.id, standing).await?;
        self.wakes.demand.notify_one();
        Ok(())
    }

    /// Asks about one job. `true` when it was moved.
    async fn ask_job(&self, row: &Doubtful) -> Result<bool, DoubtError> {
        let place = place::open(&self.pool, &self.ring, row.tenant, row.repository).await?;
        if place.tenant.uninstalled_at.is_some() {
            return self.end(row, JobEnd::RepositoryGone).await;
        }
        let github_id = place.keys.open_id(Column::JobGithubId, row.id.0, &row.github_id)?;
        let Some(answer) = self.github.job(place.installation, place.repository(), github_id).await? else {
            return self.end(row, JobEnd::UnknownToGithub).await;
        };
        let Some(said) = said(&answer) else {
            return Err(DoubtError::Status);
        };
        match (row.state, said) {
            (JobState::Queued, Said::Queued) if row.overdue => self.end(row, JobEnd::QueueTimeout).await,
            (JobState::Running, Said::InProgress) if row.abandoned => self.end(row, JobEnd::VmVanished).await,
            _ => self.write(row, said, &answer, &place.keys).await,
        }
    }

    async fn write(&self, row: &Doubtful, said: Said, answer: &JobInfo, keys: &TenantKeys) -> Result<bool, DoubtError> {
        let next = job::next(row.state, said, Source::Api);
        let Some(next) = next.filter(|next| *next != row.state) else {
            match row.state {
                // GitHub does not know yet that the vm is gone: asked again until it does.
                JobState::Running => jobs::doubt_again(&self.pool, row.id).await?,
                _ => jobs::confirm(&self.pool, row.id).await?,
            }
            self.wakes.demand.notify_one();
            return Ok(false);
        };
        let times = Times {
            created_at: answer.created_at,
            started_at: answer.started_at.filter(|_| matches!(said, Said::InProgress | Said::CompletedByRunner)),
            completed_at: answer.completed_at,
        };
        let runner = match answer.runner_id.filter(|id| *id > 0) {
            Some(id) => {
                let lookup = keys.lookup_id(Column::RunnerGithubId, id);
                runners::find_by_github_id(&self.pool, row.repository, lookup).await?
            }
            None => None,
        };
        let vm = runner.map(|(_, vm, _)| vm);
        let conclusion = answer.conclusion.as_deref().map(job::conclusion);
        let _ = jobs::advance(&self.pool, row.id, row.state, next, conclusion, times, vm).await?;
        self.wake(row, vm).await?;
        Ok(true)
    }

    /// Ends a job by our own word: GitHub does not tell of an end.
    async fn end(&self, row: &Doubtful, end: JobEnd) -> Result<bool, DoubtError> {
        let to = match row.state {
            JobState::Running => JobState::Lost(end),
            _ => JobState::Unserved(end),
        };
        tracing::warn!(job.id = %row.id, state = %to, reason = %end, "the job ends without GitHub's word");
        let _ = jobs::advance(&self.pool, row.id, row.state, to, None, Times::default(), None).await?;
        self.wake(row, None).await?;
        Ok(true)
    }

    async fn wake(&self, row: &Doubtful, vm: Option<crate::domain::ids::VmId>) -> Result<(), DoubtError> {
        self.wakes.demand.notify_one();
        for waiting in vms::jobless_of_class(&self.pool, row.class).await? {
            self.wakes.vm(waiting);
        }
        if let Some(vm) = vm {
            self.wakes.vm(vm);
        }
        Ok(())
    }
}

/// What GitHub's answer says; `None` for a status that this version does not know.
fn said(answer: &JobInfo) -> Option<Said> {
    let has_runner = answer.runner_id.is_some_and(|id| id > 0);
    match answer.status.as_str() {
        "queued" => Some(Said::Queued),
        "waiting" | "pending" | "requested" => Some(Said::Waiting),
        "in_progress" => Some(Said::InProgress),
        "completed" if has_runner => Some(Said::CompletedByRunner),
        "completed" => Some(Said::CompletedUnserved),
        _ => None,
    }
}
