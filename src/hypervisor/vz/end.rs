//! Why a VM's process ended: a small file in the vm's directory, left by the process whatever ended it, but for a kill
//! that lets it do nothing more; who started it then writes what the system said.

use super::fault::{Fault, FaultReason};
use super::server::End;
use crate::hypervisor::remove_if_there;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// The file's name in a vm's directory.
pub const END_FILE: &str = "end.json";

/// Most bytes of the file that are read.
const FILE_BYTES: u64 = 16 << 10;

/// Most characters of its text.
const TEXT_CHARS: usize = 2000;

/// Why a process ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Death {
    /// What ended it, in a word.
    pub cause: Cause,
    /// What a person should know.
    pub text: String,
    /// What the machine complained of, if that was it.
    #[serde(default)]
    pub fault: Option<FaultReason>,
}

/// What ended a process: a closed list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It was asked to stop its machine.
    Stopped,
    /// The guest powered itself off.
    PoweredOff,
    /// The machine failed, or never came up.
    Fault,
    /// A signal told it to end.
    Signal,
    /// It was not started as it must be: no lock, no recipe, no socket.
    Setup,
    /// A fault of the program.
    Panic,
    /// It was killed, or crashed where no code of ours runs.
    Killed,
    /// A cause that this version does not know.
    #[serde(other)]
    Unknown,
}

impl Death {
    /// A death of this cause.
    pub fn new(cause: Cause, text: impl Into<String>) -> Self {
        let text: String = text.into();
        Self { cause, text: text.chars().take(TEXT_CHARS).collect(), fault: None }
    }

    /// The machine's fault in it, if there is one.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        Some(Fault { reason: self.fault?, detail: self.text.clone() })
    }

    /// Leaves it in a vm's directory, whole or not at all. The first word is kept: what follows from it is no news.
    ///
    /// # Errors
    /// The file system's.
    pub fn leave(&self, directory: &Path) -> io::Result<()> {
        let file = directory.join(END_FILE);
        if file.exists() {
            return Ok(());
        }
        let draft = directory.join(format!(".{END_FILE}"));
        fs::write(&draft, serde_json::to_vec(self)?)?;
        fs::rename(draft, file)
    }

    /// What a process left in a vm's directory; none when it lives, never was, or could leave nothing.
    ///
    /// # Errors
    /// The file system's, or it is not what it should be.
    pub fn read(directory: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(directory.join(END_FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut text = Vec::new();
        file.take(FILE_BYTES).read_to_end(&mut text)?;
        Ok(Some(serde_json::from_slice(&text)?))
    }

    /// Forgets what an earlier process left.
    ///
    /// # Errors
    /// The file system's.
    pub fn forget(directory: &Path) -> io::Result<()> {
        remove_if_there(&directory.join(END_FILE))
    }
}

impl From<End> for Death {
    fn from(end: End) -> Self {
        match end {
            End::Stopped => Self::new(Cause::Stopped, "its machine was stopped"),
            End::PoweredOff => Self::new(Cause::PoweredOff, "the guest powered itself off"),
            End::Failed(fault) => Self { fault: Some(fault.reason), ..Self::new(Cause::Fault, fault.detail) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_is_kept_and_read_back() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(Death::read(directory.path()).expect("read"), None);
        let fault = Fault { reason: FaultReason::OutOfSpace, detail: "code 8".into() };
        let first = Death::from(End::Failed(fault.clone()));
        first.leave(directory.path()).expect("left");
        Death::new(Cause::Killed, "x").leave(directory.path()).expect("no news");
        let read = Death::read(directory.path()).expect("read").expect("there");
        assert_eq!((read.fault(), &read), (Some(fault), &first));
        Death::forget(directory.path()).expect("forgotten");
        Death::forget(directory.path()).expect("again");
        assert_eq!(Death::read(directory.path()).expect("read"), None);
    }

    #[test]
    fn a_word_is_bounded_and_a_newer_one_is_read() {
        assert_eq!(Death::new(Cause::Panic, "é".repeat(1 << 16)).text.chars().count(), TEXT_CHARS);
        let newer: Death = serde_json::from_str(r#"{"cause": "eclipse", "text": "dark", "moon": 1}"#).expect("read");
        assert_eq!((newer.cause, newer.fault()), (Cause::Unknown, None));
    }
}
