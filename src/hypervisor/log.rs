//! What a VM's process says, in a file of its directory: bounded, and its end told in errors.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Most that is kept of what a VM's process says, in bytes. Guests can make QEMU complain.
const LOG_LIMIT: u64 = 256 << 10;

/// Most that is told of it in an error, in bytes.
const LOG_TAIL: u64 = 2 << 10;

/// The end of what a VM's process said.
pub(super) fn tail(log: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let start = file.metadata()?.len().saturating_sub(LOG_TAIL);
        file.seek(SeekFrom::Start(start))?;
        let mut text = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut text)?;
        Ok(text)
    };
    read().map_or_else(|error| error.to_string(), |text| String::from_utf8_lossy(&text).trim().replace('\n', "; "))
}

/// Empties a log that has become too long. Its writer appends, so it goes on at the beginning.
pub(super) fn bound_log(log: &Path) {
    if fs::metadata(log).is_ok_and(|data| data.len() > LOG_LIMIT)
        && let Err(error) = OpenOptions::new().write(true).open(log).and_then(|file| file.set_len(0))
    {
        tracing::warn!(path = %log.display(), %error, "a vm's log grows");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_does_not_grow_for_ever_and_its_end_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = directory.path().join("qemu.log");
        fs::write(&log, "one\ntwo\n").expect("written");
        bound_log(&log);
        assert_eq!(tail(&log), "one; two");
        fs::write(&log, "x".repeat(LOG_LIMIT as usize + 1)).expect("written");
        assert_eq!(tail(&log).len() as u64, LOG_TAIL);
        bound_log(&log);
        assert_eq!(fs::metadata(&log).expect("there").len(), 0);
    }
}
