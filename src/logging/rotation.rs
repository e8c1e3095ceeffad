//! A log file that rotates itself: launchd holds the files that it opens for a service for ever, and nobody can
//! rotate those. Not here: what is written.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The size at which a file is put aside, in bytes.
const MAX_SIZE: u64 = 32 << 20;
/// Files that are kept beside the one that is written.
const KEPT: u32 = 5;
/// The owner alone: logs tell of a fleet.
const MODE: u32 = 0o600;

/// A file that is put aside when it is full: `NAME.1` is the newest of the older ones.
#[derive(Debug)]
pub struct Rotating {
    path: PathBuf,
    file: File,
    size: u64,
    max_size: u64,
}

impl Rotating {
    /// Goes on writing to the file.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with_size(path, MAX_SIZE)
    }

    fn with_size(path: &Path, max_size: u64) -> io::Result<Self> {
        let file = append(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, max_size })
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..KEPT).rev() {
            // A gap in the numbers is no fault.
            let _ = std::fs::rename(self.numbered(number), self.numbered(number + 1));
        }
        std::fs::rename(&self.path, self.numbered(1))?;
        self.file = append(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(MODE).open(path)
}

impl Write for Rotating {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.size > 0 && self.size + line.len() as u64 > self.max_size {
            // A file that cannot be put aside is written on: a log that is too long is better than none.
            let _ = self.rotate();
        }
        let written = self.file.write(line)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_put_aside_and_the_oldest_goes() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("flyci.log");
        let mut log = Rotating::with_size(&path, 10).expect("it opens");
        for number in 0..9 {
            writeln!(log, "line {number:03}").expect("it is written");
        }
        let read = |name: &str| std::fs::read_to_string(home.path().join(name)).expect("it is there");
        assert_eq!((read("flyci.log").as_str(), read("flyci.log.1").as_str()), ("line 008\n", "line 007\n"));
        assert_eq!(read("flyci.log.5"), "line 003\n");
        assert_eq!(std::fs::read_dir(home.path()).expect("it is there").count(), 6, "the file and five older ones");
    }

    #[test]
    fn a_restart_goes_on_in_the_same_file() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("flyci.log");
        for _ in 0..2 {
            writeln!(Rotating::open(&path).expect("it opens"), "once").expect("it is written");
        }
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "once\nonce\n");
    }
}
