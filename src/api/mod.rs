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
//! | `POST /api/v1/tenants/{account}/erase` | | [`Erasure`] |
//! | `POST /api/v1/tenants/{account}/export` | [`ExportFrom`] | [`Export`] |
//! | `GET /api/v1/keys` | | [`Keys`] |
//! | `POST /api/v1/keys/rotate` | | [`Done`] |
//! | `GET /api/v1/deliveries` [`DeliveriesQuery`] | | [`Page`] of [`Delivery`] |
//! | `GET /api/v1/audit` [`AuditQuery`] | | [`Page`] of [`AuditEntry`] |
//! | `GET /api/v1/audit/head` | | [`AuditHeads`] |
//! | `GET /api/v1/audit/verify` [`VerifyQuery`] | | [`AuditVerdict`] |
//! | `GET /api/v1/usage` [`UsageQuery`] | | [`Page`] of [`Usage`] |
//! | `GET /api/v1/images` | | [`Page`] of [`Image`] |
//! | `GET /api/v1/images/pins` | | [`Page`] of [`Pin`] |
//! | `POST /api/v1/images/update` | [`UpdateImage`] | [`Done`] |
//! | `POST /api/v1/images/rollback` | [`RollbackImage`] | [`Done`] |
//! | `GET /api/v1/metrics` | | Prometheus text |
//! | `GET /api/v1/openapi.json` | | the description of all this |
//!
//! Whatever fails is answered with [`Problem`], as `application/problem+json`.

mod fleet;
mod images;
mod jobs;
mod keys;
mod ledger;

pub use fleet::{Drain, FailingImage, Host, Image, Invitation, Invite, Kill, Limit, Tenant, Vm, VmsQuery};
pub use images::{Pin, PinUpdate, Pull, RejectedUpdate, RollbackImage, UpdateImage};
pub use jobs::{
    EarlierVm, Job, JobTimes, JobVm, JobsQuery, Reason, Refusals, RefusalsQuery, Refused, VmTimes, Why, WhyQuery,
};
pub use keys::{Erasure, Export, ExportFrom, Keys, MasterKey};
pub use ledger::{
    AuditEntry, AuditHeads, AuditQuery, AuditVerdict, DeliveriesQuery, Delivery, Usage, UsageQuery, VerifyQuery,
};

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
    /// How GitHub's deliveries do, by its own log.
    #[serde(default)]
    pub deliveries: DeliveryHealth,
    /// The jobs that are not over.
    pub queue: Queue,
    /// The jobs that ended in the last 24 hours.
    pub day: Day,
    /// The machines.
    pub hosts: Vec<Host>,
    /// What is wrong, worst first. Empty: nothing.
    pub problems: Vec<Trouble>,
}

/// How GitHub's deliveries do, by its own log.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct DeliveryHealth {
    /// When GitHub last had an answer of 2xx; null: not in the last three days, or they are pulled.
    pub good_at: Option<DateTime<Utc>>,
    /// When its log was read last.
    pub log_read_at: Option<DateTime<Utc>>,
    /// Deliveries that failed and have not come yet: they are asked for again.
    pub missed: u64,
    /// Of those, the ones that were asked for as often as they are.
    pub given_up: u64,
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
