//! Vms, hosts, images, and the tenants that they serve.

use super::VmTimes;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// `ready`, `untested` (its first vm has to boot before it takes work), `draining`, `drained` (no vm is left) or
    /// `silent`.
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
    /// The oldest version of GitHub's runner that its guests get. Null: not known.
    pub runner_version: Option<String>,
    /// When GitHub stops serving that version. Null: it is the newest, or not known.
    pub runner_cut_off_at: Option<DateTime<Utc>>,
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
    /// Images that it fetches, or could not fetch.
    #[serde(default)]
    pub pulls: Vec<super::Pull>,
    /// Profiles that it can boot: hardware, memory and image are there. Null: it has not said yet.
    #[serde(default)]
    pub can_boot: Option<Vec<String>>,
    /// Profiles that its configuration has otherwise than the gateway.
    #[serde(default)]
    pub differs: Vec<String>,
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

/// Lets a machine join.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// The login of Postgres that it has. Null: `flyci_host_` and its name.
    #[serde(default)]
    pub login: Option<String>,
}

/// What a machine needs to join. Shown once: nobody can be told of it again.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Invitation {
    /// The host's name.
    pub name: String,
    /// The login of Postgres that it joins with.
    pub login: String,
    /// What it proves itself by, once.
    pub token: String,
    /// Until when.
    pub until: DateTime<Utc>,
    /// How an administrator of the database makes that login.
    pub sql: Vec<String>,
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
