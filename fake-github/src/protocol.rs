//! What our runners and the simulated GitHub say to each other: the JIT configuration and the messages of a session.
//!
//! The real runner's protocol is private to GitHub; this one keeps its traits that matter (a credential used once, a
//! session, long polls, streamed output) and nothing of its wire form. It does no I/O.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// The environment variable that the real runner reads its JIT configuration from.
pub const JIT_ENV: &str = "ACTIONS_RUNNER_INPUT_JITCONFIG";
/// What the real runner prints when GitHub no longer serves its version; `{}` stands for the version.
pub const DEPRECATED: &str = "is deprecated and cannot receive messages.";
/// Longest JIT configuration that is read, in bytes (GitHub's are about 5 kB).
pub const JIT_LIMIT: usize = 64 * 1024;
/// Longest line of a job's output that is sent as one, in bytes; longer ones are cut into several.
pub const LINE_LIMIT: usize = 16 * 1024;

/// A JIT configuration: good for one session of one runner.
#[derive(Clone, Serialize, Deserialize)]
pub struct Jit {
    /// Base URL of the server.
    pub server: String,
    /// The CA that signed the server's certificate, PEM; absent on plain HTTP.
    pub ca_pem: Option<String>,
    /// The credential that opens the session.
    pub token: String,
    /// The runner's name.
    pub name: String,
    /// Where jobs work, relative to the runner's directory.
    pub work_folder: String,
}

/// Why a text is no JIT configuration.
#[derive(Debug, thiserror::Error)]
pub enum JitError {
    /// Not base64.
    #[error("the JIT configuration is not base64; pass GitHub's encoded_jit_config as it came")]
    Base64(#[source] base64::DecodeError),
    /// Not the JSON that the simulated GitHub makes.
    #[error("the JIT configuration is not one of the simulated GitHub; this runner cannot serve the real one")]
    Json(#[source] serde_json::Error),
}

impl Jit {
    /// As GitHub's API gives it: base64.
    pub fn encode(&self) -> String {
        STANDARD.encode(serde_json::to_vec(self).expect("plain strings serialize"))
    }

    /// Reads what [`Jit::encode`] made.
    pub fn decode(text: &str) -> Result<Self, JitError> {
        let json = STANDARD.decode(text.trim()).map_err(JitError::Base64)?;
        serde_json::from_slice(&json).map_err(JitError::Json)
    }
}

impl fmt::Debug for Jit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jit").field("server", &self.server).field("name", &self.name).finish_non_exhaustive()
    }
}

/// How a job or a step ended, in GitHub's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conclusion {
    /// Every step ended with exit status 0.
    Success,
    /// A step failed, or the runner was lost.
    Failure,
    /// Someone cancelled it.
    Cancelled,
    /// It did not run because an earlier step failed.
    Skipped,
}

/// Opens a session: `POST /_runner/sessions`, authorised by the JIT configuration's token.
#[derive(Debug, Serialize, Deserialize)]
pub struct OpenSession {
    /// The runner program's version, `2.x.y`.
    pub version: String,
    /// The guest's operating system and architecture, as the job list shows them.
    pub os: String,
}

/// The answer to [`OpenSession`].
#[derive(Clone, Serialize, Deserialize)]
pub struct Session {
    /// Authorises every further call.
    pub token: String,
    /// How often the runner must be heard of, in milliseconds.
    pub heartbeat_ms: u64,
}

/// A job for the runner: the answer to `GET /_runner/message`, after up to 20 s; 204 when there is none yet.
#[derive(Clone, Serialize, Deserialize)]
pub struct JobMessage {
    /// GitHub's job id.
    pub job_id: u64,
    /// The job's name.
    pub name: String,
    /// `owner/name` of the repository.
    pub repository: String,
    /// What to run, in order.
    pub steps: Vec<StepMessage>,
    /// Environment of each step; every value is masked in the output.
    pub secrets: BTreeMap<String, String>,
}

/// One step of a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepMessage {
    /// What the job's page shows.
    pub name: String,
    /// Lines for `/bin/sh -e`.
    pub run: String,
}

/// What the runner tells of a step: `POST /_runner/steps`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepReport {
    /// Counted from 1 in the order of [`JobMessage::steps`].
    pub number: usize,
    /// Absent: it has begun.
    pub conclusion: Option<Conclusion>,
}

/// Output of the job, already masked: `POST /_runner/log`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct LogLines {
    /// Lines without their line ends.
    pub lines: Vec<String>,
}

/// The answer to a heartbeat: `POST /_runner/heartbeat`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The job was cancelled: end its step and complete it as cancelled.
    pub cancelled: bool,
}

/// Ends the job: `POST /_runner/complete`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Complete {
    /// How the job ended.
    pub conclusion: Conclusion,
}

/// What a refused call answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// For people, in the real runner's words where it has them.
    pub message: String,
}
