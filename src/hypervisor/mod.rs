//! Clones, boots and destroys VMs. One trait, one module per backend.
//!
//! A VM is one child process in a session of its own, so that a daemon that stops, crashes or is
//! upgraded leaves running jobs alone and adopts them again. All that belongs to a VM is in its own
//! directory, named after its id: killing the process and removing the directory destroys it.
//! Backends know nothing of GitHub, jobs or the database.

pub mod fake;
pub(crate) mod process;
#[cfg(target_os = "linux")]
pub mod qemu;
pub mod vz;

use crate::domain::ids::VmId;
use crate::domain::units::Bytes;
use crate::guest::Guest;
use std::path::PathBuf;
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
    /// Makes the clone: directory and disk, no process.
    async fn clone_vm(&self, spec: &VmSpec) -> Result<(), HypervisorError>;

    /// Starts the VM's process. Returns once the process is up; the guest is still booting.
    async fn boot(&self, spec: &VmSpec) -> Result<(), HypervisorError>;

    /// What is there of this VM now.
    async fn presence(&self, vm: VmId) -> Presence;

    /// Resolves when the VM has no process (any more), however it ended and whoever started it.
    async fn ended(&self, vm: VmId);

    /// Kills the process, waits for its end, removes the directory. Success when there was nothing.
    async fn destroy(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Every VM with a directory or a process on this machine that is of this fleet.
    async fn list(&self) -> Result<Vec<VmId>, HypervisorError>;

    /// The way to speak to the agent inside.
    fn guest(&self, vm: VmId) -> Arc<dyn Guest>;
}
