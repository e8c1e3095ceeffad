//! Everything that could keep this machine from work, looked at before it does: the checks behind `flyci doctor`.
//!
//! A [`Check`] is a name, a verdict, the evidence for it and what mends it. Checks take their inputs through a
//! [`probe::Probe`] (run one of the system's programs, read a file, look at a path), and what they decide from it is
//! pure, so that what the programs of real Macs print is judged in tests on any system. A thing that could not be
//! looked at is `unknown`, never bad. Does not: change anything (the command line does, when it is asked to).

mod boot;
mod disk;
mod fleet;
mod linux;
mod mac;
pub mod probe;
mod tls;

pub use boot::canary;
pub use fleet::{daemon, database, github};

use crate::config::Config;
use chrono::{DateTime, Utc};
use probe::Probe;
use serde::Serialize;
use std::path::PathBuf;

/// How it is with one thing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It could not be looked at.
    Unknown,
    /// Work is done, but something will go wrong, or slowly.
    Warning,
    /// It keeps this machine from work.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Check {
    /// What was looked at, in a few words: stable, for scripts.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen.
    pub evidence: String,
    /// What mends it: a command, or what a person has to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// The commands that `--fix` may run: each can be run twice, and takes nothing away.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<Vec<String>>,
}

impl Check {
    /// A check with this verdict.
    #[must_use]
    pub fn new(name: &'static str, verdict: Verdict, evidence: impl Into<String>) -> Self {
        Self { name, verdict, evidence: evidence.into(), fix: None, commands: Vec::new() }
    }

    /// All is well.
    #[must_use]
    pub fn good(name: &'static str, evidence: impl Into<String>) -> Self {
        Self::new(name, Verdict::Good, evidence)
    }

    /// It could not be looked at.
    #[must_use]
    pub fn unknown(name: &'static str, evidence: impl Into<String>) -> Self {
        Self::new(name, Verdict::Unknown, evidence)
    }

    /// It will go wrong, or slowly.
    #[must_use]
    pub fn warning(name: &'static str, evidence: impl Into<String>) -> Self {
        Self::new(name, Verdict::Warning, evidence)
    }

    /// It keeps this machine from work.
    #[must_use]
    pub fn bad(name: &'static str, evidence: impl Into<String>) -> Self {
        Self::new(name, Verdict::Bad, evidence)
    }

    /// What a person has to do.
    #[must_use]
    pub fn fix(mut self, what: impl Into<String>) -> Self {
        self.fix = Some(what.into());
        self
    }

    /// The commands that mend it; `--fix` may run them.
    #[must_use]
    pub fn mended_by(mut self, commands: &[&[&str]]) -> Self {
        self.commands = commands.iter().map(|words| words.iter().map(|&word| word.to_owned()).collect()).collect();
        self.fix = Some(commands.iter().map(|words| shown(words)).collect::<Vec<_>>().join(" && "));
        self
    }
}

/// A command as a shell reads it.
#[must_use]
pub fn shown(words: &[impl AsRef<str>]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    let quote = |word: &str| {
        if !word.is_empty() && word.chars().all(plain) {
            word.to_owned()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    };
    words.iter().map(|word| quote(word.as_ref())).collect::<Vec<_>>().join(" ")
}

/// The systems that flyci runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum System {
    /// macOS.
    Mac,
    /// Linux.
    Linux,
}

impl System {
    /// The one that this program runs on.
    #[must_use]
    pub const fn here() -> Self {
        if cfg!(target_os = "macos") { Self::Mac } else { Self::Linux }
    }
}

/// How a Mac is to come up after a power cut. Chosen by `flyci service install --mode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BootMode {
    /// By itself: somebody is logged in automatically, and the disk is not encrypted by FileVault.
    Unattended,
    /// When somebody unlocks its disk and logs in.
    Attended,
}

impl BootMode {
    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unattended => "unattended",
            Self::Attended => "attended",
        }
    }

    /// The mode that the word names.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Unattended, Self::Attended].into_iter().find(|mode| mode.as_str() == word)
    }
}

/// Where `flyci service install` leaves the word of the chosen [`BootMode`].
pub const MODE_FILE: &str = "/usr/local/etc/flyci/boot-mode";

/// What the checks are about.
pub struct Subject<'a> {
    /// The system.
    pub system: System,
    /// What is configured.
    pub config: &'a Config,
    /// This program's file.
    pub program: PathBuf,
    /// The time.
    pub now: DateTime<Utc>,
}

/// Looks at this machine: everything that needs neither the daemon, nor the database, nor GitHub.
pub async fn machine(subject: &Subject<'_>, probe: &dyn Probe) -> Vec<Check> {
    let mut checks = match subject.system {
        System::Mac => mac::checks(subject, probe).await,
        System::Linux => linux::checks(subject, probe).await,
    };
    checks.extend(disk::checks(subject, probe));
    checks.extend(tls::checks(subject, probe).await);
    checks
}

/// True when something keeps this machine from work.
#[must_use]
pub fn is_degraded(checks: &[Check]) -> bool {
    checks.iter().any(|check| check.verdict == Verdict::Bad)
}

#[cfg(test)]
mod tests;
