//! Jobs, and why they wait.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which jobs. All are optional.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobsQuery {
    /// In this state alone; `claimed` is among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Received at or after: a time of RFC 3339, or a length of time before now, like `1h`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Rows of a page: 1 to 500; 100 if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// The `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// One GitHub job. Newest first in lists.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    /// GitHub's id.
    pub id: String,
    /// GitHub's id of the run.
    pub run_id: String,
    /// Which attempt of the run.
    pub run_attempt: u32,
    /// `owner/name`; null once erased.
    pub repository: Option<String>,
    /// Who started it; null once erased.
    pub initiator: Option<String>,
    /// The profile that serves it.
    pub profile: String,
    /// The chip of the host that has, or had, it.
    pub hardware: Option<String>,
    /// `waiting`, `queued`, `claimed`, `running`, `done`, `cancelled`, `unserved`, `lost`, or a later word.
    pub state: String,
    /// GitHub's word of how it ended.
    pub conclusion: Option<String>,
    /// Why it waits, or why it ended without being done: a word of the closed lists.
    pub reason: Option<String>,
    /// When we heard of it.
    pub received_at: DateTime<Utc>,
    /// GitHub's clock.
    pub github: JobTimes,
    /// The vm that has, or had, it.
    pub vm: Option<JobVm>,
}

/// GitHub's times of a job: its clock, whole seconds.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct JobTimes {
    /// When the run made it.
    pub created_at: Option<DateTime<Utc>>,
    /// When its runner began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
}

/// The vm of a job.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JobVm {
    /// Its id.
    pub id: String,
    /// The host's name.
    pub host: String,
    /// The image's digest.
    pub image: String,
    /// The runner's name at GitHub.
    pub runner_name: Option<String>,
    /// When each step was taken.
    #[serde(flatten)]
    pub times: VmTimes,
}

/// When a vm took each step: the database's clock. A warm vm's early times lie before its job's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct VmTimes {
    /// A slot was taken.
    pub planned_at: DateTime<Utc>,
    /// The clone was there.
    pub cloned_at: Option<DateTime<Utc>>,
    /// The process was started.
    pub booted_at: Option<DateTime<Utc>>,
    /// The agent answered.
    pub ready_at: Option<DateTime<Utc>>,
    /// A class took it.
    pub bound_at: Option<DateTime<Utc>>,
    /// GitHub made its runner.
    pub minted_at: Option<DateTime<Utc>>,
    /// The JIT config was about to be sent.
    pub delivering_at: Option<DateTime<Utc>>,
    /// The runner was started.
    pub serving_at: Option<DateTime<Utc>>,
    /// Nothing was left of it.
    pub gone_at: Option<DateTime<Utc>>,
}

/// Helps to find a job by GitHub's id.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WhyQuery {
    /// The account, if it is known (from a pasted URL): looked up among its jobs alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
}

/// Why a job waits, ended so, or was never ours. The path names it by GitHub's id, or by ours.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Why {
    /// GitHub's id of the job that was asked for.
    pub id: String,
    /// The job; null if it was refused: it has no row.
    pub job: Option<Job>,
    /// The refusal, if it was refused.
    pub refusal: Option<Refused>,
    /// The reasons, the deciding one first.
    pub reasons: Vec<Reason>,
    /// Vms that were made for jobs of its kind while it waited, and ended without one: oldest first.
    #[serde(default)]
    pub earlier_vms: Vec<EarlierVm>,
}

/// A vm that ended without a job, though one waited.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EarlierVm {
    /// Its id.
    pub id: String,
    /// The host's name.
    pub host: String,
    /// Why it ended: a word of the closed list.
    pub reason: Option<String>,
    /// When it began to end.
    pub ended_at: DateTime<Utc>,
}

/// Which refusals. All are optional.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RefusalsQuery {
    /// Refused at or after: a time of RFC 3339, or a length of time before now, like `1d`, which it is if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Rows at most: 1 to 500; 100 if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Jobs that were not taken, newest first. Their ids are not kept in clear: `why` finds one by its id.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Refusals {
    /// As many as were asked for.
    pub items: Vec<Refused>,
    /// How many there are.
    pub total: u64,
}

/// One reason, with what shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Reason {
    /// A word of the closed lists: why it waits, or why it or its vm ended.
    pub reason: String,
    /// What shows it, in a sentence.
    pub evidence: String,
    /// What can be done; null if nothing need be.
    pub fix: Option<String>,
}

/// A job that was not taken.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    /// A word of the closed list.
    pub reason: String,
    /// The account whose job it is.
    pub account: Option<String>,
    /// The profile whose label is nearest to the job's.
    pub nearest_profile: Option<String>,
    /// The job's label, if it begins with our prefix.
    pub label: Option<String>,
    /// When.
    pub refused_at: DateTime<Utc>,
}
