//! What is in doubt is settled by asking GitHub, and its word counts: jobs, installations, repositories.
//!
//! A job is *in doubt* when a runner of its class ended without a job that we know of, when its vm is gone
//! and no `completed` came, when a list of GitHub's does not have it as we do (`backfill`), when its
//! repository went away, or when nobody confirmed its state for long. A job that has been in the queue for
//! long is one of a *dead run* when its run is over: GitHub leaves such a job queued for ever. An
//! installation or a repository is in doubt when a delivery says that it changed, or GitHub refused a call
//! about it. What the account did not grant is a trouble that the operator is told of.
//!
//! Does not: find jobs that no delivery told us of (`backfill`).

use crate::api::Trouble;
use crate::domain::ids::{RepositoryId, TenantId, VmId};
use crate::domain::job::{self, JobState, Said, Source};
use crate::domain::reason::JobEnd;
use crate::github::{GitHub, GitHubError, Installation, JobInfo, Scope, missing_permissions};
use crate::place::{self, Place, PlaceError};
use crate::points::effect;
use crate::secrets::{Column, KeyRing, SecretsError, TenantKeys};
use crate::store::jobs::{self, Doubtful, Patience, Times};
use crate::store::repositories::{self, Visibility};
use crate::store::tenants::{self, Standing, Tenant};
use crate::store::{StoreError, runners, vms};
use crate::troubles::Troubles;
use crate::wake::Wakes;
use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use sqlx::PgPool;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Questions of each kind in one pass: GitHub's hourly budget is for serving jobs.
const BATCH: i64 = 20;
/// Questions at once.
const QUESTIONS_AT_ONCE: usize = 4;
/// How long a question waits that GitHub did not answer.
const UNANSWERED_WAIT: Duration = Duration::from_secs(30);

/// Asks GitHub.
pub struct Doubts {
    /// Acts as the gateway.
    pub pool: PgPool,
    /// Opens what is stored of tenants.
    pub ring: Arc<KeyRing>,
    /// GitHub.
    pub github: GitHub,
    /// Where runners are registered: says what an account must grant.
    pub scope: Scope,
    /// When a job is asked about.
    pub patience: Patience,
    /// Wakes who waits for an answer.
    pub wakes: Arc<Wakes>,
    /// Takes what accounts do not grant.
    pub troubles: Arc<Troubles>,
    /// Whether GitHub answers at all.
    pub silence: Silence,
}

/// Questions that GitHub answered none of: it does not accept the App's credential, or is out of reach. Each job's
/// question would be logged anew; so the beginning is, and the end with how many there were.
#[derive(Debug, Default)]
pub struct Silence(AtomicU64);

impl Silence {
    /// Counts a question, if what kept it from an answer is no matter of this question alone.
    fn takes(&self, error: &DoubtError) -> bool {
        let DoubtError::GitHub(refusal) = error else { return false };
        let is_general = matches!(refusal, GitHubError::Unauthorized { .. } | GitHubError::Network { .. });
        if is_general && self.0.fetch_add(1, Ordering::Relaxed) == 0 {
            let error = crate::errors::chain(refusal);
            tracing::warn!(%error, "GitHub answers no questions: what is in doubt stays so, and is asked again");
        }
        is_general
    }

    /// GitHub answered.
    fn ends(&self) {
        let questions = self.0.swap(0, Ordering::Relaxed);
        if questions > 0 {
            tracing::info!(questions, "GitHub answers again; so many questions had no answer");
        }
    }
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
    /// Repositories whose name was written, or that are gone.
    pub repositories: u32,
    /// Questions without an answer: asked again.
    pub unanswered: u32,
}

impl DoubtReport {
    /// True when GitHub answered something.
    const fn has_answers(&self) -> bool {
        self.confirmed + self.moved + self.installations + self.repositories > 0
    }

    /// True when a whole batch of jobs was settled: there may be more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        i64::from(self.confirmed + self.moved) >= BATCH
    }
}

/// Why a question had no answer.
#[derive(Debug, thiserror::Error)]
enum DoubtError {
    #[error("the rows could not be read or written")]
    Store(#[from] StoreError),
    #[error("the stored values cannot be opened")]
    Secrets(#[from] SecretsError),
    #[error("the place cannot be opened")]
    Place(#[from] PlaceError),
    #[error("GitHub did not answer")]
    GitHub(#[from] GitHubError),
    #[error("the repository goes by another name now: the job is asked about by that")]
    Renamed,
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
        self.installations(&mut report).await?;
        self.repositories(&mut report).await?;
        let doubtful = jobs::doubtful(&self.pool, &self.patience, BATCH).await?;
        let answers: Vec<Result<Option<bool>, StoreError>> = futures_util::stream::iter(doubtful)
            .map(|job| async move { self.settle_job(&job).await })
            .buffer_unordered(QUESTIONS_AT_ONCE)
            .collect()
            .await;
        for answer in answers {
            match answer? {
                Some(true) => report.moved += 1,
                Some(false) => report.confirmed += 1,
                None => report.unanswered += 1,
            }
        }
        if report.has_answers() {
            self.silence.ends();
        }
        Ok(report)
    }

    async fn installations(&self, report: &mut DoubtReport) -> Result<(), StoreError> {
        for (id, since) in tenants::doubtful(&self.pool, BATCH).await? {
            let Some(tenant) = tenants::get(&self.pool, id).await? else { continue };
            match self.ask_installation(&tenant, since).await {
                Ok(()) => report.installations += 1,
                Err(error) => {
                    if !self.silence.takes(&error) {
                        tracing::warn!(tenant.id = %tenant.id, error = %crate::errors::chain(&error), "the installation's standing is not known");
                    }
                    report.unanswered += 1;
                }
            }
        }
        Ok(())
    }

    async fn repositories(&self, report: &mut DoubtReport) -> Result<(), StoreError> {
        for (repository, tenant) in repositories::doubtful(&self.pool, BATCH).await? {
            match self.ask_repository(repository, tenant).await {
                Ok(()) => report.repositories += 1,
                Err(error) => {
                    if !self.silence.takes(&error) {
                        tracing::warn!(repository.id = %repository, error = %crate::errors::chain(&error), "it is not known whether the repository is there");
                    }
                    report.unanswered += 1;
                }
            }
        }
        Ok(())
    }

    async fn ask_installation(&self, tenant: &Tenant, since: DateTime<Utc>) -> Result<(), DoubtError> {
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
            effect!("upkeep.account", tenants::set_account(&self.pool, tenant.id, &login).await)?;
        }
        let lacks = answer.as_ref().and_then(|found| lacks(tenant.id, found, self.scope));
        self.troubles.set(&format!("permissions:{}", tenant.id), lacks);
        effect!("upkeep.standing", tenants::set_standing(&self.pool, tenant.id, standing, since).await)?;
        self.wakes.demand.notify_one();
        Ok(())
    }

    /// Writes what a repository is called now, or that it is gone: then its jobs are no demand.
    async fn ask_repository(&self, id: RepositoryId, tenant: TenantId) -> Result<(), DoubtError> {
        let since = repositories::doubted_since(&self.pool, id).await?;
        let place = place::open(&self.pool, &self.ring, tenant, id).await?;
        let Some(found) = self.github.repository(place.installation, place.repository().id).await? else {
            tracing::info!(repository.id = %id, "the installation does not reach the repository any more: its jobs are not served");
            // Both or neither: jobs of a removed repository that nobody doubts would wait for half an hour.
            let mut tx = self.pool.begin().await.map_err(StoreError::from)?;
            repositories::mark_removed(&mut *tx, id).await?;
            jobs::doubt_repository(&mut *tx, id).await?;
            effect!("upkeep.repository_gone", tx.commit().await).map_err(StoreError::from)?;
            return Ok(());
        };
        let name = place.keys.seal_text(Column::RepositoryName, id.0, found.full_name.as_str());
        let visibility = if found.private { Visibility::Private } else { Visibility::Public };
        effect!("upkeep.repository_name", repositories::rewrite(&self.pool, id, &name, visibility).await)?;
        effect!("upkeep.repository_sure", repositories::confirm(&self.pool, id, since).await)?;
        Ok(())
    }

    /// Asks about one job, and says what came of it: moved or not, or no answer.
    async fn settle_job(&self, row: &Doubtful) -> Result<Option<bool>, StoreError> {
        let error = match self.ask_job(row).await {
            Ok(moved) => return Ok(Some(moved)),
            Err(error) => error,
        };
        if !self.silence.takes(&error) {
            tracing::warn!(job.id = %row.id, error = %crate::errors::chain(&error), "the job's state is not known");
        }
        if let DoubtError::GitHub(refusal) = &error
            && effect!("upkeep.ask_suspect", place::suspect(&self.pool, row.tenant, row.repository, refusal).await)?
        {
            self.wakes.doubt.notify_one();
        }
        effect!("upkeep.ask_later", jobs::ask_later(&self.pool, row.id, UNANSWERED_WAIT).await)?;
        Ok(None)
    }

    /// Asks about one job. `true` when it was moved.
    async fn ask_job(&self, row: &Doubtful) -> Result<bool, DoubtError> {
        let place = place::open(&self.pool, &self.ring, row.tenant, row.repository).await?;
        if place.tenant.uninstalled_at.is_some() {
            return self.end(row, JobEnd::RepositoryGone).await;
        }
        if place.is_removed {
            return self.out_of_reach(row).await;
        }
        let github_id = place.keys.open_id(Column::JobGithubId, row.id.0, &row.github_id)?;
        let Some(answer) = self.github.job(place.installation, place.repository(), github_id).await? else {
            return self.unknown(row, &place).await;
        };
        let Some(said) = said(&answer) else {
            return Err(DoubtError::Status);
        };
        match (row.state, said) {
            (JobState::Queued, Said::Queued) if row.overdue => self.end(row, JobEnd::QueueTimeout).await,
            (JobState::Queued, Said::Queued) if row.stale && self.is_run_over(row, &place).await? => {
                self.end(row, JobEnd::RunOver).await
            }
            (JobState::Running, Said::InProgress) if row.abandoned => self.end(row, JobEnd::VmVanished).await,
            _ => self.write(row, said, &answer, &place.keys).await,
        }
    }

    /// GitHub does not know the job. A repository that is out of reach, or that goes by another name, says the same of
    /// all its jobs: it is asked about first.
    async fn unknown(&self, row: &Doubtful, place: &Place) -> Result<bool, DoubtError> {
        self.ask_repository(row.repository, row.tenant).await?;
        let now = place::open(&self.pool, &self.ring, row.tenant, row.repository).await?;
        if now.is_removed {
            return self.out_of_reach(row).await;
        }
        if now.repository() != place.repository() {
            return Err(DoubtError::Renamed);
        }
        self.end(row, JobEnd::UnknownToGithub).await
    }

    /// GitHub answers nothing about it any more. What runs, runs to its end: its runner's exit ends its vm.
    async fn out_of_reach(&self, row: &Doubtful) -> Result<bool, DoubtError> {
        if row.state == JobState::Running && !row.vm_gone {
            effect!("upkeep.out_of_reach", jobs::doubt_again(&self.pool, row.id).await)?;
            return Ok(false);
        }
        self.end(row, JobEnd::RepositoryGone).await
    }

    /// True when GitHub has a job in the queue whose run is over: no runner will ever get it.
    async fn is_run_over(&self, row: &Doubtful, place: &Place) -> Result<bool, DoubtError> {
        let run = place.keys.open_id(Column::JobRunId, row.id.0, &row.run_id)?;
        let run = self.github.run(place.installation, place.repository(), run).await?;
        Ok(run.is_some_and(|run| run.status.as_deref() == Some("completed")))
    }

    async fn write(&self, row: &Doubtful, said: Said, answer: &JobInfo, keys: &TenantKeys) -> Result<bool, DoubtError> {
        let next = job::next(row.state, said, Source::Api);
        let Some(next) = next.filter(|next| *next != row.state) else {
            match row.state {
                // GitHub does not know yet that the vm is gone: asked again until it does.
                JobState::Running if row.vm.is_some() && row.vm_gone => {
                    effect!("upkeep.ask_again", jobs::doubt_again(&self.pool, row.id).await)?;
                }
                state => effect!("upkeep.confirm", jobs::confirm(&self.pool, &[(row.id, state)]).await)?,
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
        let end = match vm.or(row.vm).filter(|_| next == JobState::Done) {
            Some(vm) => vms::end_of(&self.pool, vm).await?,
            None => None,
        };
        let next = job::settle(next, conclusion, end);
        let _ = effect!(
            "upkeep.move_job",
            jobs::advance(&self.pool, row.id, row.state, next, conclusion, times, vm).await
        )?;
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
        let _ = effect!(
            "upkeep.end_job",
            jobs::advance(&self.pool, row.id, row.state, to, None, Times::default(), None).await
        )?;
        self.wake(row, None).await?;
        Ok(true)
    }

    async fn wake(&self, row: &Doubtful, vm: Option<VmId>) -> Result<(), DoubtError> {
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

/// What an account has not granted: its owner accepts newer permissions of the App by GitHub's mail, and can take
/// some away.
fn lacks(tenant: TenantId, installation: &Installation, scope: Scope) -> Option<Trouble> {
    let missing: Vec<&str> =
        missing_permissions(&installation.permissions, scope).iter().map(|one| one.title).collect();
    (!missing.is_empty() && !installation.suspended).then(|| Trouble {
        what: "an account does not grant what the App needs: its jobs are not served".to_owned(),
        evidence: format!("tenant {tenant} lacks {}", missing.join(", ")),
        fix: "its owner accepts the App's permissions (GitHub's mail, or the App's page in the account's settings); flyci tenants shows who it is".to_owned(),
    })
}

/// What GitHub's answer says; `None` for a status that this version does not know.
pub(super) fn said(answer: &JobInfo) -> Option<Said> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::github::{Call, Credential};

    #[test]
    fn a_refused_credential_is_no_matter_of_each_job() {
        let call = || Call { method: "GET", route: "/repos/{owner}/{repo}", status: None, request_id: None };
        let refused = DoubtError::GitHub(GitHubError::Unauthorized { call: call(), cause: Credential::AppKey });
        let unknown = DoubtError::GitHub(GitHubError::NotFound { call: call() });
        let silence = Silence::default();
        assert!(!silence.takes(&unknown) && !silence.takes(&DoubtError::Renamed), "these are told each");
        assert!((0..20).all(|_| silence.takes(&refused)), "this is told once");
        assert_eq!(silence.0.load(Ordering::Relaxed), 20, "and counted");
        silence.ends();
        assert_eq!(silence.0.load(Ordering::Relaxed), 0);
    }
}
