//! Which image each tag stands for, the updates under way, and what hosts fetch.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a tag stands for in the whole fleet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Pin {
    /// The tag: `HOST/REPOSITORY:TAG`.
    pub reference: String,
    /// The image's digest.
    pub digest: String,
    /// The image before: where a rollback goes. Null: there is none.
    pub previous: Option<String>,
    /// Since when.
    pub pinned_at: DateTime<Utc>,
    /// Who said so: an operator, or the host that needed it first.
    pub pinned_by: String,
    /// Profiles that name it.
    pub profiles: Vec<String>,
    /// The update under way.
    pub update: Option<PinUpdate>,
    /// The last update, if it was given up.
    pub rejected: Option<RejectedUpdate>,
}

/// An update under way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PinUpdate {
    /// The image that is tried.
    pub candidate: String,
    /// The host that tries it. Null: it has left the fleet.
    pub canary: Option<String>,
    /// A vm of it was ready there.
    pub booted: bool,
    /// Jobs that succeeded in vms of it there.
    pub passed: u32,
    /// Jobs that ended otherwise.
    pub failed: u32,
    /// Jobs that are to succeed before every host takes it.
    pub wanted: u32,
    /// Since when.
    pub since: DateTime<Utc>,
    /// Who asked.
    pub by: String,
}

/// An update that was given up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RejectedUpdate {
    /// The image that was tried.
    pub candidate: String,
    /// Why it goes no further.
    pub why: String,
    /// When.
    pub at: DateTime<Utc>,
}

/// Lets a tag stand for another image: on one host first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateImage {
    /// The tag.
    pub reference: String,
    /// The image's digest: what the tag stands for in its registry now.
    pub digest: String,
    /// The host that tries it. Null: one that can run it and takes work.
    #[serde(default)]
    pub canary: Option<String>,
    /// Jobs that are to succeed there before every host takes it: 0 to 1000; 3 if not said.
    #[serde(default)]
    pub jobs: Option<u32>,
}

/// Lets a tag stand for the image before again; an update under way is given up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackImage {
    /// The tag.
    pub reference: String,
}

/// What a host fetches, or could not fetch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Pull {
    /// What profiles name.
    pub reference: String,
    /// The image's digest.
    pub image: String,
    /// Bytes of it, as the registry has them. 0: not known yet.
    pub total_bytes: u64,
    /// Bytes that are there.
    pub done_bytes: u64,
    /// The image before goes first, for want of room.
    pub replaces: bool,
    /// Why the last try came to nothing; it is tried again.
    pub trouble: Option<String>,
    /// Since when it goes on without a break.
    pub begun_at: DateTime<Utc>,
    /// When it was heard of.
    pub updated_at: DateTime<Utc>,
}
