//! What a program prints, within a time and a length. It gets no environment but a PATH, no input, and
//! nobody sees what it says on stderr.

use super::{SourceError, read_within};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;
use zeroize::Zeroizing;

/// The output of a command; the first word is the program.
pub(super) fn output(words: &[String], patience: Duration) -> Result<Zeroizing<Vec<u8>>, SourceError> {
    let (program, arguments) = words.split_first().ok_or(SourceError::Io(std::io::ErrorKind::InvalidInput.into()))?;
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin:/opt/homebrew/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let stdout = child.stdout.take().expect("it is piped");
    let read = read_within(OwnedFd::from(stdout), patience);
    if read.is_err() {
        // It may hang, or go on writing.
        let _ = child.kill();
    }
    let status = child.wait()?;
    let bytes = read?;
    if status.success() { Ok(bytes) } else { Err(SourceError::Command(status)) }
}
