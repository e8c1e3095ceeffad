//! What the control verbs answer: handles to act on, and views of the state. Plain data, the same over HTTP.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::protocol::Conclusion;
use crate::webhooks::log::DeliveryRecord;
use crate::world::World;
use crate::world::model::{NamedRunner, Runner, Scope, Status};

/// An installation of the App.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    /// GitHub's id.
    pub id: u64,
    /// The account's name when it was installed.
    pub account: String,
    /// The account's id.
    pub account_id: u64,
}

/// A repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repo {
    /// GitHub's id.
    pub id: u64,
    /// `owner/name` when it was made.
    pub full_name: String,
    /// Its installation's id.
    pub installation: u64,
}

/// A job that was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobHandle {
    /// GitHub's id.
    pub id: u64,
    /// Its run's id.
    pub run_id: u64,
}

/// A job as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobView {
    /// GitHub's id.
    pub id: u64,
    /// Its run's id.
    pub run_id: u64,
    /// Its run's attempt.
    pub attempt: u64,
    /// Its name.
    pub name: String,
    /// `owner/name`.
    pub repository: String,
    /// Its repository's id.
    pub repository_id: u64,
    /// `runs-on`.
    pub labels: Vec<String>,
    /// Where it is.
    pub status: Status,
    /// How it ended.
    pub conclusion: Option<Conclusion>,
    /// Who runs it.
    pub runner: Option<NamedRunner>,
    /// Name and end of each step so far.
    pub steps: Vec<(String, Option<Conclusion>)>,
    /// Why it ended, where no runner told.
    pub note: Option<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When a runner took it.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
}

impl JobView {
    /// A job of the world.
    pub fn of(world: &World, id: u64) -> Option<Self> {
        let job = world.jobs.get(&id)?;
        let repository = world.repositories.get(&job.repository)?;
        Some(Self {
            id,
            run_id: job.run,
            attempt: job.attempt,
            name: job.name.clone(),
            repository: world.full_name(repository),
            repository_id: repository.id,
            labels: job.labels.clone(),
            status: job.status,
            conclusion: job.conclusion,
            runner: job.runner.clone(),
            steps: job.steps.iter().map(|s| (s.name.clone(), s.conclusion)).collect(),
            note: job.note.clone(),
            created_at: job.created_at,
            started_at: job.started_at,
            completed_at: job.completed_at,
        })
    }
}

/// A registered runner as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerView {
    /// GitHub's id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// The repository it is registered on; absent: an organisation.
    pub repository: Option<u64>,
    /// As they were given.
    pub labels: Vec<String>,
    /// Its session is alive.
    pub online: bool,
    /// It runs a job, or looks so.
    pub busy: bool,
    /// Its JIT configuration was used.
    pub used: bool,
    /// The job it runs.
    pub job: Option<u64>,
}

impl RunnerView {
    /// A runner of the world.
    pub fn of(runner: &Runner) -> Self {
        Self {
            id: runner.id,
            name: runner.name.clone(),
            repository: match runner.scope {
                Scope::Repository(id) => Some(id),
                Scope::Organization(_) => None,
            },
            labels: runner.labels.clone(),
            online: runner.online(),
            busy: runner.busy(),
            used: runner.used,
            job: runner.job,
        }
    }
}

/// An attempt to deliver a webhook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeliveryView {
    /// The attempt's id.
    pub id: u64,
    /// The same in every attempt.
    pub guid: String,
    /// The event.
    pub event: String,
    /// Its action.
    pub action: Option<String>,
    /// Whom it concerns.
    pub installation: Option<u64>,
    /// GitHub's words for the outcome.
    pub status: String,
    /// The receiver's status, or 502 or 504.
    pub status_code: u16,
    /// Somebody asked for this attempt.
    pub redelivery: bool,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// When it was sent.
    pub at: DateTime<Utc>,
}

impl DeliveryView {
    /// An attempt of the log.
    pub fn of(record: &DeliveryRecord) -> Self {
        Self {
            id: record.id,
            guid: record.delivery.guid.clone(),
            event: record.delivery.event.to_string(),
            action: record.delivery.action.map(Into::into),
            installation: record.delivery.installation,
            status: record.outcome.status.clone(),
            status_code: record.outcome.code,
            redelivery: record.redelivery,
            seconds: record.outcome.seconds,
            at: record.at,
        }
    }
}
