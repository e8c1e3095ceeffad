//! The things that the simulated GitHub knows: accounts, installations, repositories, runs, jobs, runners. Data only;
//! the rules that change it are in the sibling files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::protocol::{Conclusion, StepMessage};

/// What kind of account installed the App.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccountKind {
    /// An organisation.
    Organization,
    /// A person.
    User,
}

impl AccountKind {
    /// The word in GitHub's JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Organization => "Organization",
            Self::User => "User",
        }
    }
}

/// Who may see a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Visibility {
    /// Members only.
    Private,
    /// Everyone: jobs may be anybody's code.
    Public,
}

/// An account: organisation or user.
#[derive(Clone, Debug)]
pub struct Account {
    /// GitHub's id.
    pub id: u64,
    /// Its name, which may change.
    pub login: String,
    /// What it is.
    pub kind: AccountKind,
}

/// One account's installation of the App.
#[derive(Clone, Debug)]
pub struct Installed {
    /// GitHub's id.
    pub id: u64,
    /// Who installed it.
    pub account: u64,
    /// What was granted.
    pub permissions: BTreeMap<String, String>,
    /// Since when it is suspended.
    pub suspended_at: Option<DateTime<Utc>>,
    /// When it was installed.
    pub created_at: DateTime<Utc>,
    /// An organisation's policy: repository-level runners are refused.
    pub forbids_repository_runners: bool,
}

/// A repository.
#[derive(Clone, Debug)]
pub struct Repository {
    /// GitHub's id.
    pub id: u64,
    /// The account that owns it.
    pub owner: u64,
    /// Without the owner.
    pub name: String,
    /// Who may see it.
    pub visibility: Visibility,
    /// The installation reaches it.
    pub selected: bool,
    /// How many runs it had.
    pub runs: u64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// An organisation's runner group.
#[derive(Clone, Debug)]
pub struct RunnerGroup {
    /// GitHub's id: unique within the account.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Absent: every repository of the organisation.
    pub repositories: Option<BTreeSet<u64>>,
    /// Repositories that are public may use it.
    pub allows_public: bool,
}

/// Where a runner is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// On one repository.
    Repository(u64),
    /// On an organisation, in a group.
    Organization(u64),
}

/// A registered runner.
#[derive(Clone, Debug)]
pub struct Runner {
    /// GitHub's id.
    pub id: u64,
    /// Unique within its scope.
    pub name: String,
    /// Where it is registered.
    pub scope: Scope,
    /// Its group.
    pub group: u64,
    /// As they were given.
    pub labels: Vec<String>,
    /// SHA-256 of the JIT configuration's token.
    pub jit_digest: String,
    /// The JIT configuration was used.
    pub used: bool,
    /// Its session, if it has one.
    pub session: Option<Session>,
    /// The job it runs.
    pub job: Option<u64>,
    /// When it was registered.
    pub registered: Instant,
    /// Until when it looks busy although its job has ended.
    pub lingers_until: Option<Instant>,
    /// As the program told it.
    pub os: String,
    /// As the program told it.
    pub version: Option<String>,
}

/// A runner's session.
#[derive(Clone, Debug)]
pub struct Session {
    /// SHA-256 of the session's token.
    pub digest: String,
    /// When the runner was last heard of.
    pub heard: Instant,
    /// When it was found to be silent.
    pub silent_since: Option<Instant>,
    /// It waits for a job now.
    pub ready: bool,
    /// Wakes its long poll.
    pub wake: Arc<Notify>,
}

/// One attempt of a workflow.
#[derive(Clone, Debug)]
pub struct Run {
    /// GitHub's id: the same in every attempt.
    pub id: u64,
    /// Where it runs.
    pub repository: u64,
    /// Counted from 1 in the repository.
    pub number: u64,
    /// Counted from 1.
    pub attempt: u64,
    /// It failed to start: it is over, and its jobs stay as they are.
    pub dead: bool,
    /// Its jobs of all attempts, oldest first.
    pub jobs: Vec<u64>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// GitHub's word for where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Before an environment's gate.
    Waiting,
    /// Any matching runner may take it.
    Queued,
    /// A runner has it.
    InProgress,
    /// It has ended.
    Completed,
}

impl Status {
    /// The word in GitHub's JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
        }
    }
}

/// The runner that a job names: it stays named after the runner is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedRunner {
    /// GitHub's id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its group's id.
    pub group_id: u64,
    /// Its group's name.
    pub group_name: String,
}

/// A job.
#[derive(Clone, Debug)]
pub struct Job {
    /// GitHub's id.
    pub id: u64,
    /// Its run.
    pub run: u64,
    /// The run's attempt that it belongs to.
    pub attempt: u64,
    /// Its repository.
    pub repository: u64,
    /// What its page shows.
    pub name: String,
    /// `runs-on`.
    pub labels: Vec<String>,
    /// What it does.
    pub script: JobScript,
    /// Where it is.
    pub status: Status,
    /// How it ended.
    pub conclusion: Option<Conclusion>,
    /// Who runs it.
    pub runner: Option<NamedRunner>,
    /// Its steps so far.
    pub steps: Vec<Step>,
    /// What the runner streamed.
    pub log: Vec<String>,
    /// Why it ended, where the runner did not say.
    pub note: Option<String>,
    /// Someone asked for its end.
    pub cancel_at: Option<Instant>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When a runner took it.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
}

/// A step as the API shows it.
#[derive(Clone, Debug)]
pub struct Step {
    /// What the page shows.
    pub name: String,
    /// Counted from 1.
    pub number: usize,
    /// Where it is.
    pub status: Status,
    /// How it ended.
    pub conclusion: Option<Conclusion>,
    /// When it began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
}

/// What a job does: steps for `/bin/sh -e`, and secrets that they find in their environment.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct JobScript {
    /// What the page shows; default: "build".
    #[serde(default)]
    pub name: Option<String>,
    /// In order.
    #[serde(default)]
    pub steps: Vec<StepMessage>,
    /// Environment of each step, masked in its output.
    #[serde(default)]
    pub secrets: BTreeMap<String, String>,
    /// It waits at an environment's gate first.
    #[serde(default)]
    pub gated: bool,
}

impl JobScript {
    /// A job without steps: it succeeds.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a step.
    pub fn step(mut self, run: impl Into<String>) -> Self {
        let run = run.into();
        let name = format!("Run {}", run.lines().next().unwrap_or_default());
        self.steps.push(StepMessage { name, run });
        self
    }

    /// Adds a secret.
    pub fn secret(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.secrets.insert(name.into(), value.into());
        self
    }

    /// Names the job.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Lets it wait at a gate until it is approved.
    pub fn gated(mut self) -> Self {
        self.gated = true;
        self
    }
}

impl fmt::Debug for JobScript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobScript").field("name", &self.name).field("steps", &self.steps.len()).finish_non_exhaustive()
    }
}
