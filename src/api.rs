//! The JSON of the admin API, as the server writes it and the command line reads it.
//!
//! Stable once shipped. GitHub's ids are strings (they outgrow what JavaScript counts exactly), states
//! and reasons are words of closed lists that grow: a reader accepts words it does not know. Times are
//! RFC 3339 in UTC. Does not: say how the values are found (`web::admin`).
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `GET /api/v1/status` | | [`Status`] |
//! | `GET /api/v1/jobs` [`JobsQuery`] | | [`Page`] of [`Job`] |
//! | `GET /api/v1/jobs/{id}/why` [`WhyQuery`] | | [`Why`] |
//! | `GET /api/v1/vms` [`VmsQuery`] | | [`Page`] of [`Vm`] |
//! | `POST /api/v1/vms/{id}/kill` | [`Kill`] | [`Done`] |
//! | `GET /api/v1/hosts` | | [`Page`] of [`Host`] |
//! | `POST /api/v1/hosts/drain`, `/api/v1/hosts/{name}/drain` | [`Drain`] | [`Done`] |
//! | `POST /api/v1/hosts/resume`, `/api/v1/hosts/{name}/resume` | | [`Done`] |
//! | `GET /api/v1/tenants` | | [`Page`] of [`Tenant`] |
//! | `POST /api/v1/tenants/{account}/approve`, `…/suspend` | | [`Done`] |
//! | `POST /api/v1/tenants/{account}/limit` | [`Limit`] | [`Done`] |
//! | `GET /api/v1/deliveries` [`DeliveriesQuery`] | | [`Page`] of [`Delivery`] |
//! | `GET /api/v1/audit` [`AuditQuery`] | | [`Page`] of [`AuditEntry`] |
//! | `GET /api/v1/audit/verify` | | [`AuditVerdict`] |
//! | `GET /api/v1/usage` [`UsageQuery`] | | [`Page`] of [`Usage`] |
//! | `GET /api/v1/images` | | [`Page`] of [`Image`] |
//! | `GET /api/v1/metrics` | | Prometheus text |
//! | `GET /api/v1/openapi.json` | | the description of all this |
//!
//! Whatever fails is answered with [`Problem`], as `application/problem+json`.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the API begins.
pub const BASE: &str = "/api/v1";
/// The content type of every failure: RFC 9457.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// A failure, as RFC 9457 has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// What kind: always `about:blank`, so the status says it.
    #[serde(rename = "type")]
    pub kind: String,
    /// What is wrong, in a few words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// More of it, and what to do. Never anything of the inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Finds the log line that tells the rest.
    pub request_id: String,
}

/// Some of a list, with what asks for the rest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// The query's `after` that asks for the next page; null at the end.
    pub next: Option<String>,
}

/// What a change did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Done {
    /// In a sentence, for people.
    pub message: String,
    /// How many rows it changed.
    pub changed: u64,
}

/// How everything is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// Which fleet.
    pub fleet_id: String,
    /// The version of the daemon that answers.
    pub version: String,
    /// Since when that daemon runs.
    pub started_at: DateTime<Utc>,
    /// The database's clock when this was read.
    pub now: DateTime<Utc>,
    /// What that daemon does: `gateway`, `host`.
    pub roles: Vec<String>,
    /// How deliveries come: `webhook` or `pull`.
    pub intake: String,
    /// As `/readyz` says it: `ready`, `draining`, `database`, `github`.
    pub readiness: String,
    /// When the last delivery came.
    pub last_delivery_at: Option<DateTime<Utc>>,
    /// The jobs that are not over.
    pub queue: Queue,
    /// The jobs that ended in the last 24 hours.
    pub day: Day,
    /// The machines.
    pub hosts: Vec<Host>,
    /// What is wrong, worst first. Empty: nothing.
    pub problems: Vec<Trouble>,
}

/// The jobs that are not over.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Queue {
    /// Held back by GitHub.
    pub waiting: u64,
    /// Waiting for a vm.
    pub queued: u64,
    /// A vm is being made for them.
    pub claimed: u64,
    /// Running.
    pub running: u64,
    /// Since when the longest-waiting queued job waits.
    pub oldest_queued_at: Option<DateTime<Utc>>,
}

/// The jobs of the last 24 hours.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Day {
    /// Ran to their end.
    pub done: u64,
    /// Ended before they ran.
    pub cancelled: u64,
    /// Given up by us.
    pub unserved: u64,
    /// Lost with their vm.
    pub lost: u64,
    /// Half of those that ran waited no longer from `received_at` to their runner's start, in seconds.
    pub wait_p50_s: Option<f64>,
    /// 99 of 100 waited no longer, in seconds.
    pub wait_p99_s: Option<f64>,
}

/// Something that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Trouble {
    /// What, in a sentence.
    pub what: String,
    /// What shows it.
    pub evidence: String,
    /// What to do next.
    pub fix: String,
}

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

/// Which vms.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmsQuery {
    /// Those that are gone too, newest first. Default: those that live.
    #[serde(default)]
    pub all: bool,
    /// Rows of a page: 1 to 500; 100 if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// The `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// One vm. Newest first in lists.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Vm {
    /// Its id.
    pub id: String,
    /// The host's name.
    pub host: String,
    /// Which slot it holds.
    pub slot: u32,
    /// The profile it is for.
    pub profile: String,
    /// The image's digest.
    pub image: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Its state.
    pub state: String,
    /// Why it ends, or ended.
    pub reason: Option<String>,
    /// Why it is to be destroyed, as long as its host has not begun.
    pub kill_asked: Option<String>,
    /// The repository that it serves: `owner/name`. Null: blank, or erased.
    pub repository: Option<String>,
    /// GitHub's id of the job that it has, or had.
    pub job_id: Option<String>,
    /// The runner's name at GitHub.
    pub runner_name: Option<String>,
    /// The runner's exit status.
    pub runner_status: Option<i32>,
    /// Since when it is being destroyed.
    pub stopping_at: Option<DateTime<Utc>>,
    /// When each step was taken.
    #[serde(flatten)]
    pub times: VmTimes,
}

/// Asks for a vm's end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Kill {
    /// Why: kept in the audit trail. 1 to 200 characters.
    pub reason: String,
}

/// One machine.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// `ready`, `draining`, `drained` (no vm is left) or `silent`.
    pub state: String,
    /// `vz`, `qemu` or `fake`.
    pub hypervisor: String,
    /// The chip.
    pub hardware: String,
    /// Its operating system.
    pub os: String,
    /// Its instruction set.
    pub architecture: String,
    /// Vms at once.
    pub slots: u32,
    /// Vms that hold a slot.
    pub vms: u32,
    /// CPUs of the machine.
    pub cpus: u32,
    /// Memory of the machine in bytes.
    pub memory_bytes: u64,
    /// Memory of its vms in bytes.
    pub memory_used_bytes: u64,
    /// The daemon's version.
    pub version: String,
    /// When it was last heard of.
    pub beat_at: DateTime<Utc>,
    /// How long ago that was, in seconds.
    pub silent_for_s: f64,
    /// Why it drains, in the operator's words.
    pub drain_reason: Option<String>,
    /// Who said so.
    pub drained_by: Option<String>,
    /// Since when.
    pub drained_at: Option<DateTime<Utc>>,
    /// Images whose last boot failed here.
    pub failing_images: Vec<FailingImage>,
}

/// An image that failed on a host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FailingImage {
    /// The host's name.
    pub host: String,
    /// The image's digest.
    pub image: String,
    /// Failures in a row.
    pub failures: u32,
    /// The reason of the last one.
    pub last_failure: Option<String>,
    /// No vm of it is made there before then.
    pub quarantined_until: Option<DateTime<Utc>>,
}

/// Lets hosts take no new work.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// Why: shown in `hosts` and `jobs why`. Up to 200 characters.
    #[serde(default)]
    pub reason: Option<String>,
}

/// One account that installed the App.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Tenant {
    /// Our id.
    pub id: String,
    /// The account's login; null if it cannot be opened.
    pub account: Option<String>,
    /// `organization` or `user`.
    pub account_kind: String,
    /// GitHub's id of the installation.
    pub installation_id: Option<String>,
    /// The operator's decision: `pending`, `approved`, `suspended`.
    pub admission: String,
    /// What GitHub says: `active`, `suspended`, `uninstalled`.
    pub standing: String,
    /// Vms at once, if not the configured limit.
    pub vm_limit: Option<u32>,
    /// Vms it has now.
    pub vms: u32,
    /// Jobs that wait.
    pub queued: u32,
    /// Jobs that run.
    pub running: u32,
    /// When it was first seen.
    pub created_at: DateTime<Utc>,
}

/// Sets how many vms an account may have at once.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// So many; null: the configured limit.
    pub vms: Option<u32>,
}

/// Which deliveries.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeliveriesQuery {
    /// Those alone that were not understood.
    #[serde(default)]
    pub failed: bool,
    /// Rows of a page: 1 to 500; 100 if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// The `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// One delivery. Newest first in lists.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Delivery {
    /// GitHub's name for it.
    pub guid: String,
    /// The event's name.
    pub event: String,
    /// The event's action.
    pub action: Option<String>,
    /// `applied`, `ignored` or `not_understood`.
    pub outcome: String,
    /// Why, if it was not applied.
    pub reason: Option<String>,
    /// When it came.
    pub received_at: DateTime<Utc>,
}

/// Which part of the audit trail.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    /// At or after: a time of RFC 3339, or a length of time before now, like `1d`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Rows of a page: 1 to 500; 100 if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// The `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// One act. Oldest first in lists.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AuditEntry {
    /// Its number in the chain.
    pub seq: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// Who: `operator:UID`, `gateway`, `host:NAME`.
    pub actor: String,
    /// What: a word like `tenant.approve`.
    pub action: String,
    /// To what: an id of ours.
    pub subject: String,
    /// What else there is to say.
    pub detail: Option<String>,
}

/// Whether the audit trail says what it said when it was written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AuditVerdict {
    /// It does.
    pub intact: bool,
    /// How many rows were looked at.
    pub entries: u64,
    /// The number of the first row that was changed, or whose predecessor is missing.
    pub broken_at: Option<i64>,
    /// The last row's hash in hexadecimal digits: note it elsewhere, and a cut tail shows too.
    pub head: Option<String>,
}

/// Which usage. Exactly one of the two, or none: this month.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UsageQuery {
    /// A UTC month, `2026-11`: one row for each account, profile and day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub month: Option<String>,
    /// A UTC day, `2026-11-25`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub day: Option<String>,
}

/// What an account used of a profile on a UTC day: of each job the whole seconds between GitHub's
/// `started_at` and `completed_at` that lie on that day.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// The day, `2026-11-25`.
    pub day: String,
    /// The account's login; null if it cannot be opened.
    pub account: Option<String>,
    /// The profile.
    pub profile: String,
    /// Jobs that ran on that day; one that ran over midnight is counted on each.
    pub jobs: u64,
    /// Seconds.
    pub seconds: u64,
}

/// One image, as far as the tables know it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Image {
    /// The name or digest.
    pub image: String,
    /// Profiles that name it now.
    pub profiles: Vec<String>,
    /// Vms made of it that live.
    pub vms: u32,
    /// When a vm made of it was ready last.
    pub last_ready_at: Option<DateTime<Utc>>,
    /// Hosts where its last boot failed.
    pub failing: Vec<FailingImage>,
}
