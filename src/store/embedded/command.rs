//! Runs one of Postgres's programs to its end: bounded in time and in what is kept of its words.

use super::{EmbeddedError, io_error};
use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// What is kept of a program's output, in bytes.
const MAX_OUTPUT: u64 = 64 * 1024;
/// What an error shows of it, in characters from the end.
const SHOWN: usize = 1_000;

/// A command with an environment of its own: what the operator's shell says of Postgres (`PGHOST`,
/// `PGOPTIONS`, …) must not reach it, and its messages must be in English.
pub(super) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C").env("TZ", "UTC").stdin(Stdio::null());
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

/// Runs a program and answers what it wrote to its standard output.
pub(super) async fn run<I, S>(program: &Path, arguments: I, deadline: Duration) -> Result<String, EmbeddedError>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut child = command(program)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| io_error(program, "started", error))?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let whole = async { tokio::join!(read(out), read(err), child.wait()) };
    let Ok((out, err, status)) = tokio::time::timeout(deadline, whole).await else {
        return Err(EmbeddedError::Slow { program: name, deadline });
    };
    let status = status.map_err(|error| io_error(program, "started", error))?;
    if status.success() {
        return Ok(out);
    }
    let output = end_of(if err.trim().is_empty() { &out } else { &err });
    Err(EmbeddedError::Program { program: name, output })
}

async fn read(from: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // What cannot be read is not needed: the exit status decides.
        let _ = from.take(MAX_OUTPUT).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The end of a text: the last words of a program tell why it failed.
pub(super) fn end_of(text: &str) -> String {
    let text = text.trim();
    let start = text.char_indices().rev().nth(SHOWN).map_or(0, |(index, _)| index);
    text[start..].to_owned()
}
