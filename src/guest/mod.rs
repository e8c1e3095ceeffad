//! The only code that speaks to the agent inside a VM.
//!
//! The runner is started detached, at most once per guest, and leaves its exit status behind, so
//! that a daemon restart never ends a job: any later daemon can ask how the runner does.
//! Nothing that a guest says decides billing, tenancy or the outcome of a job.

mod agent;
mod call;

pub use agent::{AgentGuest, GuestOptions};
pub use call::Framing;

use secrecy::SecretString;
use std::net::SocketAddrV4;

/// What a runner is started with.
pub struct RunnerStart {
    /// Our name of it: names the marker that makes the start happen at most once.
    pub name: String,
    /// Its name at GitHub.
    pub registered_name: String,
    /// GitHub's encoded JIT configuration.
    pub jit_config: SecretString,
    /// Text of `.setup_info`: what GitHub's runner prints in the job's own log.
    pub setup_info: String,
}

/// How the runner in a guest does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunnerProbe {
    /// It was never started here.
    Absent,
    /// It lives.
    Alive,
    /// It ended, and left this exit status.
    Exited(i32),
    /// It was begun, but neither lives nor left a status: this guest must not be used again.
    Lost,
}

/// Why the agent could not be asked, or did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Nothing answers (yet): the guest boots, hangs, or is gone.
    #[error("the guest's agent does not answer: {0}")]
    Unreachable(String),
    /// The agent answered, and refused or failed.
    #[error("the guest's agent failed: {0}")]
    Failed(String),
}

/// How an ended runner ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerEnd {
    /// Its exit status: a hint, never a job's conclusion.
    pub status: i32,
    /// GitHub refused it for its age ("is deprecated and cannot receive messages").
    pub too_old: bool,
}

/// One guest's agent.
#[async_trait::async_trait]
pub trait Guest: Send + Sync {
    /// Resolves when the agent answers and the guest is prepared (clock set, randomness seeded).
    async fn ready(&self) -> Result<(), GuestError>;

    /// Which of these addresses a program in the guest can connect to.
    async fn reached(&self, targets: &[SocketAddrV4]) -> Result<Vec<SocketAddrV4>, GuestError>;

    /// How the runner of this name does. Never starts anything.
    async fn probe(&self, runner: &str) -> Result<RunnerProbe, GuestError>;

    /// Starts the runner, detached. Success means that it was spawned.
    async fn start(&self, start: RunnerStart) -> Result<(), GuestError>;

    /// Resolves when the runner of this name has ended. May be called again after any error.
    async fn wait(&self, runner: &str) -> Result<RunnerEnd, GuestError>;

    /// GitHub says that the runner's job is over. A real runner knows by itself.
    async fn job_is_over(&self, _runner: &str) {}
}

#[cfg(test)]
mod tests;
