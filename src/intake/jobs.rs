//! `workflow_job`: whatever comes first makes the job's row, in the state that it tells.

use super::accounts::Known;
use super::payload::{Envelope, Repository, WorkflowJob};
use super::{Intake, IntakeError, Receipt};
use crate::domain::class::Class;
use crate::domain::ids::{JobId, RepositoryId, RunnerId, VmId};
use crate::domain::job::{self, JobState, Said, Source};
use crate::domain::labels::LabelSet;
use crate::domain::profile::Profile;
use crate::domain::reason::{VmEnd, Waiting};
use crate::domain::runner::RunnerState;
use crate::points::effect;
use crate::secrets::vouch::JobFacts;
use crate::secrets::{Column, Lookup};
use crate::store::audit::Act;
use crate::store::deliveries::{self, Outcome};
use crate::store::jobs::{self as job_rows, NewJob, Origin, Times};
use crate::store::repositories::{self, Told, Visibility};
use crate::store::{refusals, runners, vms};
use chrono::Utc;
use sqlx::PgConnection;
use uuid::Uuid;

/// Labels that begin so are ours, whether or not a profile serves them.
pub(super) const PREFIX: &str = "flyci";

/// How often a decision is made again when another gateway made the job's row first.
pub(super) const DECISION_TRIES: u32 = 5;

/// A runner of ours that a delivery names.
#[derive(Clone, Copy)]
pub(super) struct OurRunner {
    id: RunnerId,
    vm: VmId,
    state: RunnerState,
}

/// What GitHub says of a job, with the rows of what it names.
pub(super) struct About<'a> {
    pub known: &'a Known,
    pub repository: RepositoryId,
    pub public: bool,
    pub initiator: Option<&'a str>,
    pub job: &'a WorkflowJob,
    pub lookup: Lookup,
    pub said: Said,
    pub runner: Option<OurRunner>,
}

/// What a delivery did, and who must look at the tables once it is committed.
pub(super) struct Effect {
    pub receipt: Receipt,
    /// A class's demand or supply changed.
    demand: bool,
    /// Drivers that must look.
    vms: Vec<VmId>,
    /// A second job named the runner of this vm.
    second_job: Option<VmId>,
}

impl Effect {
    const fn only(receipt: Receipt) -> Self {
        Self { receipt, demand: false, vms: Vec::new(), second_job: None }
    }
}

impl Intake {
    /// Decides on a delivery about a job.
    pub(super) async fn workflow_job(&self, guid: Uuid, envelope: &Envelope) -> Result<Receipt, IntakeError> {
        let refuse = |receipt| self.note(guid, "workflow_job", Some(envelope), receipt);
        let Some(job) = &envelope.workflow_job else {
            return refuse(Receipt::NotUnderstood("no_job")).await;
        };
        let Some(repository) = &envelope.repository else {
            return refuse(Receipt::NotUnderstood("no_repository")).await;
        };
        let Some(installation) = &envelope.installation else {
            return refuse(Receipt::Ignored("no_installation")).await;
        };
        let Some(said) = envelope.action.as_deref().and_then(|action| job.said(action)) else {
            return refuse(Receipt::NotUnderstood("unknown_action")).await;
        };
        for _ in 0..DECISION_TRIES {
            let mut tx = self.pool.begin().await?;
            let Some(effect) = self.decide(&mut tx, envelope, installation.id, repository, job, said).await? else {
                continue;
            };
            let (outcome, reason) = match effect.receipt {
                Receipt::Ignored(reason) => (Outcome::Ignored, Some(reason)),
                Receipt::NotUnderstood(reason) => (Outcome::NotUnderstood, Some(reason)),
                Receipt::Applied | Receipt::Repeated => (Outcome::Applied, None),
            };
            let action = super::known_action(envelope);
            if !deliveries::record(&mut *tx, guid, "workflow_job", action, outcome, reason).await? {
                return Ok(Receipt::Repeated);
            }
            effect!("intake.job", tx.commit().await)?;
            self.after(&effect).await?;
            return Ok(effect.receipt);
        }
        Err(IntakeError::Contended)
    }

    /// One try. `None`: another gateway made the row meanwhile, and the decision must be made on it.
    async fn decide(
        &self,
        tx: &mut PgConnection,
        envelope: &Envelope,
        installation: u64,
        repository: &Repository,
        job: &WorkflowJob,
        said: Said,
    ) -> Result<Option<Effect>, IntakeError> {
        let known = self.find_or_make_tenant(tx, installation, &repository.owner).await?;
        let owner = known.keys.open_id(Column::TenantAccountId, known.tenant.id.0, &known.tenant.account_id)?;
        if owner != repository.owner.id {
            return Ok(Some(Effect::only(Receipt::Ignored("owner_mismatch"))));
        }
        let repository_id = place(tx, &known, repository).await?;
        let told = About {
            known: &known,
            repository: repository_id,
            public: !repository.private,
            initiator: envelope.sender.as_ref().map(|sender| sender.login.as_str()),
            job,
            lookup: known.keys.lookup_id(Column::JobGithubId, job.id),
            said,
            runner: named_runner(tx, &known, repository_id, job).await?,
        };
        match job_rows::find_for_update(tx, known.tenant.id, told.lookup).await? {
            Some(row) => Ok(Some(advance(tx, &told, row, Source::Webhook).await?)),
            None => self.first(tx, &told).await,
        }
    }

    /// Makes a job's row, or a refusal.
    pub(super) async fn first(&self, tx: &mut PgConnection, told: &About<'_>) -> Result<Option<Effect>, IntakeError> {
        let labels: LabelSet = told.job.labels.iter().collect();
        let profile = self.policy.profiles.iter().find(|(profile, guest)| profile.serves(&labels, *guest));
        let profile = profile.map(|(profile, _)| profile);
        let (profile, origin) = match (told.runner, profile) {
            (_, Some(profile)) => (profile.label.clone(), Origin::Matched),
            // It runs on our machine, whatever its labels: it is our business.
            (Some(runner), None) => match vms::get(&mut *tx, runner.vm).await? {
                Some(vm) => (vm.profile, Origin::Foreign),
                None => return Ok(Some(self.refuse(tx, told, &labels, Waiting::LabelUnknown).await?)),
            },
            (None, None) => return Ok(Some(self.refuse(tx, told, &labels, Waiting::LabelUnknown).await?)),
        };
        if told.runner.is_none()
            && let Some(reason) = self.objection(told)
        {
            return Ok(Some(self.refuse(tx, told, &labels, reason).await?));
        }
        let id = JobId::random();
        if !insert(tx, told, id, &labels, &profile, origin).await? {
            return Ok(None);
        }
        if told.said == Said::Queued && self.is_old(told.job) {
            job_rows::doubt(&mut *tx, id).await?;
        }
        let class = Class::new(told.repository, &labels);
        Ok(Some(effect(tx, told, id, class, None, job::first(told.said)).await?))
    }

    /// Why a job with fitting labels is not served.
    fn objection(&self, told: &About<'_>) -> Option<Waiting> {
        if !told.known.tenant.is_served() {
            return Some(Waiting::TenantNotApproved);
        }
        if told.public && !self.policy.public_repositories {
            return Some(Waiting::PublicRepository);
        }
        None
    }

    /// True when a queued job that we never saw is so old that GitHub is asked before it counts.
    fn is_old(&self, job: &WorkflowJob) -> bool {
        job.created_at.is_some_and(|at| Utc::now() - at > self.policy.queue_timeout)
    }

    async fn refuse(
        &self,
        tx: &mut PgConnection,
        told: &About<'_>,
        labels: &LabelSet,
        reason: Waiting,
    ) -> Result<Effect, IntakeError> {
        let ours = labels.iter().find(|label| label.starts_with(PREFIX));
        let nearest = ours.and_then(|label| nearest(label, self.policy.profiles.iter().map(|(profile, _)| profile)));
        refusals::record(&mut *tx, told.known.tenant.id, told.lookup, reason, nearest, ours).await?;
        Ok(Effect::only(Receipt::Ignored(reason.as_str())))
    }

    /// Wakes who must look, and writes down what the operator must know.
    pub(super) async fn after(&self, effect: &Effect) -> Result<(), IntakeError> {
        if effect.demand {
            self.wakes.demand.notify_one();
        }
        for vm in &effect.vms {
            self.wakes.vm(*vm);
        }
        if let Some(vm) = effect.second_job {
            let subject = vm.to_string();
            let act = Act { actor: "gateway", action: "vm.second_job", subject: &subject, detail: None };
            effect!("intake.second_job", self.trail.append(&self.pool, &act).await)?;
        }
        Ok(())
    }
}

/// Our id of the repository; its row is written only if it is new or says something else.
async fn place(tx: &mut PgConnection, known: &Known, told: &Repository) -> Result<RepositoryId, IntakeError> {
    let lookup = known.keys.lookup_id(Column::RepositoryGithubId, told.id);
    let visibility = if told.private { Visibility::Private } else { Visibility::Public };
    if let Some(row) = repositories::find(&mut *tx, known.tenant.id, lookup).await? {
        let name = known.keys.open_text(Column::RepositoryName, row.id.0, &row.name)?;
        if *name == *told.full_name && row.visibility == visibility.as_str() && row.removed_at.is_none() {
            return Ok(row.id);
        }
        let name = known.keys.seal_text(Column::RepositoryName, row.id.0, &told.full_name);
        repositories::rewrite(&mut *tx, row.id, &name, visibility).await?;
        return Ok(row.id);
    }
    let id = RepositoryId::random();
    let row = Told {
        id,
        tenant: known.tenant.id,
        lookup,
        github_id: &known.keys.seal_id(Column::RepositoryGithubId, id.0, told.id),
        name: &known.keys.seal_text(Column::RepositoryName, id.0, &told.full_name),
        visibility,
    };
    Ok(repositories::insert(tx, &row).await?)
}

/// The runner that has the job, if it is ours: by GitHub's id within the repository, and by its name
/// only while we do not know its id, since anybody may call a runner like ours.
pub(super) async fn named_runner(
    tx: &mut PgConnection,
    known: &Known,
    repository: RepositoryId,
    job: &WorkflowJob,
) -> Result<Option<OurRunner>, IntakeError> {
    let Some(github_id) = job.runner() else { return Ok(None) };
    let lookup = known.keys.lookup_id(Column::RunnerGithubId, github_id);
    let mut found = runners::find_by_github_id(&mut *tx, repository, lookup).await?;
    if found.is_none()
        && let Some(name) = job.runner_name.as_deref()
    {
        let lookup = known.keys.lookup(Column::RunnerName, name.as_bytes());
        found = runners::find_by_name(&mut *tx, repository, lookup).await?;
    }
    Ok(found.map(|(id, vm, state)| OurRunner { id, vm, state }))
}

async fn insert(
    tx: &mut PgConnection,
    told: &About<'_>,
    id: JobId,
    labels: &LabelSet,
    profile: &str,
    origin: Origin,
) -> Result<bool, IntakeError> {
    let keys = &told.known.keys;
    // Labels of a job that no profile serves may say anything: they are not kept.
    let kept: Vec<String> = match origin {
        Origin::Matched => labels.iter().map(str::to_owned).collect(),
        Origin::Foreign => Vec::new(),
    };
    let class = Class::new(told.repository, labels);
    let mac = keys.vouch_for_job(&JobFacts {
        id,
        tenant: told.known.tenant.id,
        repository: told.repository,
        lookup: told.lookup.as_bytes(),
        profile,
        labels: &kept,
        class,
        origin: origin.as_str(),
    });
    let initiator = told.initiator.map(|login| keys.seal_text(Column::JobInitiator, id.0, login));
    let row = NewJob {
        id,
        tenant: told.known.tenant.id,
        repository: told.repository,
        lookup: told.lookup,
        github_id: &keys.seal_id(Column::JobGithubId, id.0, told.job.id),
        run_id: &keys.seal_id(Column::JobRunId, id.0, told.job.run_id),
        run_attempt: told.job.run_attempt.unwrap_or(1),
        initiator: initiator.as_ref(),
        profile,
        labels: &kept,
        class,
        origin,
        state: job::first(told.said),
        conclusion: conclusion(told.job),
        times: times(told),
        vm: told.runner.map(|runner| runner.vm),
        mac: &mac,
    };
    Ok(job_rows::insert(tx, &row).await?)
}

/// Moves a known job, unless that is old news.
pub(super) async fn advance(
    tx: &mut PgConnection,
    told: &About<'_>,
    row: job_rows::Known,
    source: Source,
) -> Result<Effect, IntakeError> {
    let Some(next) = job::next(row.state, told.said, source) else {
        return Ok(Effect::only(Receipt::Ignored("old_news")));
    };
    let vm = told.runner.map(|runner| runner.vm);
    let end = match vm.or(row.vm_id).filter(|_| next == JobState::Done) {
        Some(vm) => vms::end_of(&mut *tx, vm).await?,
        None => None,
    };
    let next = job::settle(next, conclusion(told.job), end);
    let _ = job_rows::advance(&mut *tx, row.id, row.state, next, conclusion(told.job), times(told), vm).await?;
    effect(tx, told, row.id, row.class, Some(row.state), next).await
}

/// What follows from a job's change for runners, vms and the queue.
async fn effect(
    tx: &mut PgConnection,
    told: &About<'_>,
    id: JobId,
    class: Class,
    before: Option<JobState>,
    now: JobState,
) -> Result<Effect, IntakeError> {
    let mut effect = Effect::only(Receipt::Applied);
    let changed = before != Some(now);
    effect.demand = changed && now == JobState::Queued;
    if changed && (before == Some(JobState::Queued) || told.runner.is_some()) {
        effect.vms = vms::jobless_of_class(&mut *tx, class).await?;
    }
    let Some(runner) = told.runner else { return Ok(effect) };
    effect.vms.push(runner.vm);
    match now {
        JobState::Running => {
            if job_rows::has_other(&mut *tx, runner.vm, id).await? {
                let _ = vms::ask_kill(&mut *tx, runner.vm, VmEnd::SecondJob).await?;
                effect.second_job = Some(runner.vm);
            }
            move_runner(tx, runner, RunnerState::Busy).await?;
        }
        JobState::Done | JobState::Cancelled | JobState::Lost(_) => {
            move_runner(tx, runner, RunnerState::Ended).await?;
        }
        JobState::Waiting | JobState::Queued | JobState::Unserved(_) | JobState::Unknown => {}
    }
    Ok(effect)
}

async fn move_runner(tx: &mut PgConnection, runner: OurRunner, to: RunnerState) -> Result<(), IntakeError> {
    use RunnerState as R;
    match (runner.state, to) {
        // A late word changes nothing of a runner that ended; what GitHub knows, it was asked for.
        (R::Ended | R::Removed | R::Void | R::Requested | R::Unknown, _) => {}
        (from, to) if from == to => {}
        (R::Minting | R::Minted | R::Delivering | R::Online | R::Busy | R::Removing, to) => {
            // Stale: the gateway or the host moved it meanwhile, and looks at the job's row itself.
            let _ = runners::advance(tx, runner.id, runner.state, to, None).await?;
        }
    }
    Ok(())
}

fn conclusion(job: &WorkflowJob) -> Option<&'static str> {
    job.conclusion.as_deref().map(crate::domain::job::conclusion)
}

fn times(told: &About<'_>) -> Times {
    Times {
        created_at: told.job.created_at,
        started_at: told.job.began_at(told.said),
        completed_at: told.job.completed_at,
    }
}

/// The profile whose label shares the longest beginning with `label`.
fn nearest<'a>(label: &str, profiles: impl Iterator<Item = &'a Profile>) -> Option<&'a str> {
    let shared = |profile: &&Profile| profile.label.chars().zip(label.chars()).take_while(|(a, b)| a == b).count();
    profiles.max_by_key(shared).map(|profile| profile.label.as_str())
}
