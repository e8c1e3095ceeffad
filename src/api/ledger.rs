//! What is kept for the record: deliveries, the audit trail, usage.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// Its number among all entries.
    pub seq: i64,
    /// Whose chain it is in: its writer's.
    pub chain: String,
    /// Its number in that chain.
    pub position: i64,
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
    /// The login of the account that the subject is; null if it is none, or was erased.
    #[serde(default)]
    pub account: Option<String>,
}

/// What the audit trail is compared with.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyQuery {
    /// Heads that were kept elsewhere, with blanks between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<String>,
}

/// The ends of the audit trail's chains: note them elsewhere, and a cut tail shows too.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AuditHeads {
    /// One for each writer: `CHAIN@NUMBER:HASH`.
    pub heads: Vec<String>,
}

/// Whether the audit trail says what it said when it was written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AuditVerdict {
    /// It does.
    pub intact: bool,
    /// How many rows were looked at.
    pub entries: u64,
    /// The number, in its chain, of the first row with which something is wrong.
    pub broken_at: Option<i64>,
    /// That row's chain.
    pub broken_chain: Option<String>,
    /// What is wrong with it.
    pub fault: Option<String>,
    /// The ends of the chains: note them elsewhere, and a cut tail shows too.
    pub heads: Vec<String>,
    /// Kept heads of rows that are beyond the retention: nothing is left to compare them with.
    pub too_old: Vec<String>,
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
