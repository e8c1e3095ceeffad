//! The runner that runs inside real guests: takes one job, runs its steps with `/bin/sh -e`, streams masked output,
//! exits. It keeps the traits of GitHub's runner that flyci relies on: the JIT configuration comes in the environment
//! and is used once, `.setup_info` is printed first, a deprecated version says so, one job per life.

mod client;
mod job;
mod mask;
mod shell;

use std::path::PathBuf;
use std::time::Duration;

use crate::protocol::{Conclusion, Jit, JitError, Session};
use client::{Client, ClientError};
use job::JobError;

/// The version that it says it has.
pub const VERSION: &str = "2.329.0";
/// The real runner's exit status when its version is deprecated, if the caller asks for it by [`ASKS_DEPRECATED`].
const EXIT_DEPRECATED: u8 = 7;
/// Set to `1`, this variable makes a deprecated runner exit with 7; without it, run.sh of the real runner exits with 0.
const ASKS_DEPRECATED: &str = "ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE";
/// The exit status for everything else that went wrong.
const EXIT_FAILED: u8 = 1;

/// Why the runner ends without having done its job.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The configuration.
    #[error("the JIT configuration cannot be used")]
    Jit(#[source] JitError),
    /// The server refused it, in the server's words.
    #[error("{message}")]
    Refused {
        /// What to print.
        message: String,
        /// The runner's version is no longer served.
        deprecated: bool,
    },
    /// The server cannot be reached or answers nonsense.
    #[error("the server cannot be spoken to")]
    Client(#[source] ClientError),
    /// The job could not be run.
    #[error("the job could not be run")]
    Job(#[source] JobError),
}

impl RunnerError {
    /// The process's exit status.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { deprecated: true, .. } if std::env::var_os(ASKS_DEPRECATED).is_some_and(|v| v == "1") => {
                EXIT_DEPRECATED
            }
            Self::Refused { deprecated: true, .. } => 0,
            _ => EXIT_FAILED,
        }
    }
}

impl From<ClientError> for RunnerError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused { message, deprecated } => Self::Refused { message, deprecated },
            error => Self::Client(error),
        }
    }
}

/// Serves one job. `dir` is the runner's directory: `.setup_info` is read there, and jobs work below it.
pub fn serve(jit: &str, dir: PathBuf) -> Result<Conclusion, RunnerError> {
    let jit = Jit::decode(jit).map_err(RunnerError::Jit)?;
    let mut client = Client::new(&jit)?;
    let Session { token, heartbeat_ms } = client.open(VERSION)?;
    client.authorise(token);
    say("√ Connected to GitHub");
    say(&format!("Current runner version: '{VERSION}'"));
    say("Listening for Jobs");
    let message = client.next_job()?;
    say(&format!("Running job: {}", message.name));
    let heartbeat = Duration::from_millis(heartbeat_ms);
    let conclusion = job::run(&client, message, &dir, &jit.work_folder, heartbeat).map_err(RunnerError::Job)?;
    client.complete(conclusion)?;
    say(&format!("Job completed with result: {conclusion:?}"));
    Ok(conclusion)
}

fn say(line: &str) {
    println!("{line}");
}
