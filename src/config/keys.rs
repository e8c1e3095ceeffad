//! `[keys]`: where the master key is, and how often it is rotated.

use super::table::{Reading, Table};
use crate::domain::units::Span;
use crate::secrets::MasterSource;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// A rotation wraps every tenant's keys anew, and the operator's copy of the master key is to be renewed.
const MIN_ROTATE_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// The first three descriptors are standard input, output and error.
const FIRST_DESCRIPTOR: u16 = 3;

/// `[keys]`: the master key.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Keys {
    /// How old it becomes before flyci makes a new one; absent: only when asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotate_every: Option<Span>,
    /// Where it is.
    pub master: MasterSource,
}

impl Keys {
    pub(super) fn read(mut table: Table<'_>, data_dir: &Path, reading: &Reading<'_>) -> Self {
        let mut master = table.table("master");
        let mut sources: Vec<MasterSource> = [
            master.path("file").map(MasterSource::File),
            master.maybe("credential").map(MasterSource::Credential),
            master.maybe("descriptor").map(MasterSource::Descriptor),
            master.maybe("command").map(MasterSource::Command),
            master.maybe("keychain").map(MasterSource::Keychain),
        ]
        .into_iter()
        .flatten()
        .collect();
        master.finish();
        if sources.len() > 1 {
            let problem = "names several places: keep one of file, credential, descriptor, command and keychain";
            reading.fault("keys.master", problem);
        }
        let keys = Self {
            rotate_every: table.maybe("rotate_every"),
            master: sources.pop().unwrap_or_else(|| MasterSource::File(data_dir.join("master.key"))),
        };
        table.finish();
        keys
    }
}

/// Checks what the keys of this section say together.
pub(super) fn check(keys: &Keys, reading: &Reading<'_>) {
    match &keys.master {
        MasterSource::Credential(name) if name.is_empty() || name.contains('/') => {
            reading.fault("keys.master.credential", "write the credential's name as in the service's unit");
        }
        MasterSource::Descriptor(number) if *number < FIRST_DESCRIPTOR => {
            reading.fault("keys.master.descriptor", format!("write {FIRST_DESCRIPTOR} or more: those below are taken"));
        }
        MasterSource::Command(words) if words.first().is_none_or(|program| !program.starts_with('/')) => {
            reading.fault("keys.master.command", "write the program's whole path first, then its arguments");
        }
        MasterSource::Keychain(_) if cfg!(not(target_os = "macos")) => {
            reading.fault("keys.master.keychain", "only macOS has one: name another place");
        }
        MasterSource::File(_)
        | MasterSource::Credential(_)
        | MasterSource::Descriptor(_)
        | MasterSource::Command(_)
        | MasterSource::Keychain(_) => {}
    }
    if keys.rotate_every.is_some_and(|every| every.0 < MIN_ROTATE_EVERY) {
        reading
            .fault("keys.rotate_every", "write a day or more, or leave it out to rotate by `flyci keys rotate` alone");
    }
    if keys.rotate_every.is_some() && !keys.master.is_ours() {
        let problem = "needs the master key in a file: flyci makes a new one there, and cannot elsewhere";
        reading.fault("keys.rotate_every", problem);
    }
}
