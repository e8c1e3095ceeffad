//! How a command ends: its exit code, and what is said on stderr when it did not go well.

use super::out;
use crate::errors::chain;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

/// Done.
pub const DONE: u8 = 0;
/// Failed; the message says why.
pub const FAILED: u8 = 1;
/// The daemon is not running.
pub const NOT_RUNNING: u8 = 3;
/// The daemon runs, and something is degraded.
pub const DEGRADED: u8 = 4;
/// A wait took too long.
pub const TIMED_OUT: u8 = 5;
/// The configuration is wrong (`EX_CONFIG` of sysexits.h).
pub const CONFIG: u8 = 78;

/// Why a command did not do what was asked. Each says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration is wrong; the text tells all faults.
    #[error("{0}")]
    Config(String),
    /// No daemon listens on the admin socket.
    #[error(
        "the daemon is not running: nothing listens on {}\n  start it:  flyci serve      (or see how its service does: its log says why it ended)\n  if it runs from another configuration file, name that: --config FILE, or $FLYCI_CONFIG",
        .socket.display()
    )]
    NotRunning {
        /// Where it would listen.
        socket: PathBuf,
    },
    /// The admin socket is another user's.
    #[error("the admin socket {} is for the user {owner} (and root) only\n  try:  sudo -u {owner} flyci …", .socket.display())]
    NotPermitted { socket: PathBuf, owner: String },
    /// The daemon answered with a problem.
    #[error("{title}{}", .detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default())]
    Refused { title: String, detail: Option<String> },
    /// The daemon did not answer, or not in its own language.
    #[error("the daemon's answer to {call} did not come: {reason}\n  look at its log; `flyci status` asks again")]
    NoAnswer { call: String, reason: String },
    /// A wait took too long.
    #[error("{0}")]
    TimedOut(String),
    /// What was asked for makes no sense here.
    #[error("{0}")]
    Failed(String),
    /// A part of flyci failed, and says itself what to do.
    #[error("{doing}")]
    Part {
        doing: String,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Nobody reads what we print.
    #[error("the output could not be written")]
    Output(#[from] std::io::Error),
}

impl CliError {
    /// A failed part, with what was being done: `cannot read the image`.
    pub fn part(doing: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Part { doing: doing.into(), source: source.into() }
    }

    /// The exit code, as documented in `--help`.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::Config(_) => CONFIG,
            Self::NotRunning { .. } => NOT_RUNNING,
            Self::TimedOut(_) => TIMED_OUT,
            Self::NotPermitted { .. }
            | Self::Refused { .. }
            | Self::NoAnswer { .. }
            | Self::Failed(_)
            | Self::Part { .. }
            | Self::Output(_) => FAILED,
        }
    }

    /// True when the reader of our output went away, as `head` does: no failure.
    fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

/// Says on stderr what went wrong, if something did, and gives the exit code.
#[must_use]
pub fn report(result: Result<u8, CliError>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) if error.is_closed_pipe() => ExitCode::from(DONE),
        Err(error) => {
            out::complain(&chain(&error).to_string());
            ExitCode::from(error.code())
        }
    }
}
