//! Clones, boots and destroys VMs. One trait, one module per backend.
//!
//! A VM is one child process in a session of its own, so that a daemon that stops, crashes or is
//! upgraded leaves running jobs alone and adopts them again. All that belongs to a VM is in its own
//! directory, named after its id: killing the process and removing the directory destroys it.
//! Backends know nothing of GitHub, jobs or the database.

pub mod clone;
pub mod fake;
mod log;
pub(crate) mod process;
#[cfg(target_os = "linux")]
pub mod qemu;
mod record;
mod room;
pub mod vz;

use crate::domain::ids::{HostId, VmId};
use crate::domain::profile::Display;
use crate::domain::units::Bytes;
use crate::guest::Guest;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a VM is made of.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// The vm's row, and the name of its directory.
    pub id: VmId,
    /// Which of the host's slots it holds, from 0: fixes what must be stable per slot (MAC address).
    pub slot: u16,
    /// Directory of the read-only image to clone.
    pub image: PathBuf,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: Bytes,
    /// Free space that the guest finds at least.
    pub disk_free: Bytes,
    /// The guest's display.
    pub display: Display,
}

/// What is true of a VM on this machine, as far as the machine can tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// No directory and no process.
    Absent,
    /// Its directory is there (perhaps in part), and no process.
    Dormant,
    /// Its process lives.
    Running,
}

/// What went wrong with a VM, and whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// The image is missing or broken: the host should stop using it.
    #[error("image at {path} cannot be used: {reason}")]
    Image { path: PathBuf, reason: String },
    /// The machine does not have what the configuration asks for.
    #[error("{0}")]
    Unfit(String),
    /// The machine has no room (disk, memory, the platform's limit of VMs).
    #[error("no room for another vm: {0}")]
    NoRoom(String),
    /// The platform runs fewer VMs than it may, and still starts no other: it counts one that is gone. No image's
    /// fault; [`Hypervisor::lost_slots`] tells how many are lost.
    #[error("a slot of this machine is lost: {0}")]
    SlotLost(String),
    /// The machine has no logged-in session to run VMs in, or its keychain is locked. No image's fault.
    #[error("no session to run a vm in: {0}")]
    NoSession(String),
    /// The VM's process could not be started, or ended at once.
    #[error("the vm's process failed: {0}")]
    Process(String),
    /// The machine did not do what was asked (file system, permissions).
    #[error("{doing} failed")]
    Io {
        doing: String,
        #[source]
        source: std::io::Error,
    },
}

/// A way to run VMs. Every call may be repeated: a step that was done before is done again
/// without harm, since a daemon may have died at any point of it.
#[async_trait::async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// Told once, before anything else: whose machine this is. For what must be stable per host.
    fn belongs_to(&self, _host: HostId) {}

    /// Makes the clone: directory and disk, no process.
    async fn clone_vm(&self, spec: &VmSpec) -> Result<(), HypervisorError>;

    /// Starts the VM's process. Returns once the process is up; the guest is still booting.
    async fn boot(&self, spec: &VmSpec) -> Result<(), HypervisorError>;

    /// What is there of this VM now.
    async fn presence(&self, vm: VmId) -> Presence;

    /// Resolves when the VM has no process (any more), however it ended and whoever started it.
    async fn ended(&self, vm: VmId);

    /// Why the VM's process ended, as far as it left word, for logs.
    async fn last_words(&self, _vm: VmId) -> Option<String> {
        None
    }

    /// Kills the process, waits for its end, removes the directory. Success when there was nothing.
    async fn destroy(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Every VM with a directory or a process on this machine that is of this fleet.
    async fn list(&self) -> Result<Vec<VmId>, HypervisorError>;

    /// How many of this machine's slots the platform keeps although no VM holds them.
    fn lost_slots(&self) -> u32 {
        0
    }

    /// Whether it boots what is pulled from registries: images of kind `vz`.
    fn boots_pulled_images(&self) -> bool {
        false
    }

    /// The way to speak to the agent inside.
    fn guest(&self, vm: VmId) -> Arc<dyn Guest>;
}

/// Removes what an earlier process may have left.
fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A failure of the file system, with what was being done where.
fn io_error(doing: &str, path: &Path, source: std::io::Error) -> HypervisorError {
    HypervisorError::Io { doing: format!("{doing} {}", path.display()), source }
}
