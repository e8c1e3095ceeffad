//! The one machine that a `flyci vm` process owns, as its server sees it. The framework's is behind this trait,
//! and so is the stand-in that the tests use where there is no framework.

use super::fault::Fault;
use std::os::fd::OwnedFd;
use std::path::Path;
use tokio::sync::watch;

/// What the machine does now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VmState {
    /// It was not started yet, or it was stopped by us.
    Stopped,
    /// It is being started.
    Starting,
    /// It runs.
    Running,
    /// It stands still, its memory kept.
    Paused,
    /// The guest powered itself off.
    PoweredOff,
    /// It ended by an error.
    Failed(Fault),
}

/// One machine. Calls may come from any task; an implementation takes them to where they must run.
#[async_trait::async_trait]
pub trait Vm: Send + Sync + 'static {
    /// Boots it. Returns once the machine runs; the guest is still booting.
    async fn start(&self) -> Result<(), Fault>;

    /// Turns it off at once, as pulling the plug does.
    async fn stop(&self) -> Result<(), Fault>;

    /// Makes it stand still.
    async fn pause(&self) -> Result<(), Fault>;

    /// Lets it go on.
    async fn resume(&self) -> Result<(), Fault>;

    /// Writes the paused machine's memory to a file.
    async fn save(&self, file: &Path) -> Result<(), Fault>;

    /// Takes the memory of a saved machine; it is paused afterwards.
    async fn restore(&self, file: &Path) -> Result<(), Fault>;

    /// Opens a stream to a port of the guest (vsock).
    async fn connect(&self, port: u32) -> Result<OwnedFd, Fault>;

    /// What it does, now and as it changes.
    fn state(&self) -> watch::Receiver<VmState>;
}
