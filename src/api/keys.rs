//! The master keys, erasures and exports.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The master keys, and how far a rotation is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Keys {
    /// Where they are.
    pub source: String,
    /// `none`, `waits_for_gateways`, `rewrapping`, `removable` (by the operator, in the source).
    pub rotation: String,
    /// Gateways that run and do not have the newest key yet.
    pub waits_for: Vec<String>,
    /// Every master key that ever was, the newest first.
    pub keys: Vec<MasterKey>,
}

/// One master key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct MasterKey {
    /// Names it, and tells nothing of it.
    pub id: String,
    /// `current` (wraps what is new), `next`, `old`, `missing` (needed, and no gateway has it) or `destroyed`.
    pub state: String,
    /// When a gateway had it first.
    pub since: DateTime<Utc>,
    /// Since when no gateway has it any more.
    pub destroyed_at: Option<DateTime<Utc>>,
    /// Accounts whose keys it wraps.
    pub tenants: u64,
    /// Whether it wraps the key of the audit trail.
    pub audit: bool,
    /// Erasures that are final only once it is destroyed, and backups of before are gone.
    pub erasures: u64,
    /// The gateways that have it.
    pub gateways: Vec<String>,
}

/// What became of an account that is to be erased.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Erasure {
    /// In a sentence, for people.
    pub message: String,
    /// Its rows and keys are gone. Else its vms are being stopped first, and it goes then.
    pub erased: bool,
    /// Our id of it, as in the audit trail.
    pub id: String,
    /// From when on no backup can bring it back, in a sentence.
    pub finality: String,
}

/// Where an export goes on.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportFrom {
    /// The `next` of the part before; absent: from the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// A part of all that is stored of an account.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Export {
    /// Of which table.
    pub table: String,
    /// Its rows, with what is encrypted opened; look-ups and wrapped keys left out.
    pub rows: Vec<Value>,
    /// Asks for the next part; null at the end.
    pub next: Option<String>,
}
