//! The data directory: for its owner alone, and for one daemon at a time.

use crate::domain::units::Bytes;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The file that is locked; it holds the owner's process id for people to read.
const LOCK_FILE: &str = "flyci.lock";
/// The owner alone.
const PRIVATE_MODE: u32 = 0o700;
/// What group and others must not have.
const OTHERS: u32 = 0o077;
/// More bytes than any process id has.
const MAX_PID_LENGTH: u64 = 32;

/// Bytes that this user may still write to the volume of a path.
///
/// # Errors
/// The file system does not say.
pub fn free_space(path: &Path) -> io::Result<Bytes> {
    let volume = rustix::fs::statvfs(path)?;
    Ok(Bytes(volume.f_bavail.saturating_mul(volume.f_frsize)))
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another daemon has it.
    #[error("{path} is in use by another flyci{}: stop that one first, or give this one a `data_dir` of its own", of_process(.pid.as_deref()))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The other's process id, if it is written there.
        pid: Option<String>,
    },
    /// It belongs to somebody else.
    #[error(
        "{path} belongs to user {owner}, and flyci runs as user {ours}: run flyci as that user, or `chown -R {ours} {path}`"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner's uid.
        owner: u32,
        /// The process's uid.
        ours: u32,
    },
    /// The disk is full.
    #[error(
        "{path} cannot be {doing}, since its volume is full: make room there (`df -h`), or give another `data_dir`"
    )]
    Full {
        /// The directory or file.
        path: PathBuf,
        /// `made`, `locked`.
        doing: &'static str,
    },
    /// The file system refused.
    #[error("{path} cannot be {doing}")]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// `made`, `read`, `closed to others`, `locked`.
        doing: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

fn of_process(pid: Option<&str>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// A data directory that is ours until this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl DataDir {
    /// Makes the directory if there is none, and takes it.
    ///
    /// # Errors
    /// When another daemon has it, when it is another user's, or cannot be made.
    pub fn lock(path: &Path) -> Result<Self, DataDirError> {
        DirBuilder::new()
            .recursive(true)
            .mode(PRIVATE_MODE)
            .create(path)
            .map_err(|error| io_error(path, "made", error))?;
        check_owner(path)?;
        let file_path = path.join(LOCK_FILE);
        // The lock is not handed on: std opens files so that child processes do not get them.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&file_path)
            .map_err(|error| io_error(&file_path, "locked", error))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                write_pid(&mut lock).map_err(|error| io_error(&file_path, "locked", error))?;
                Ok(Self { path: path.to_owned(), _lock: lock })
            }
            Err((file, Errno::EWOULDBLOCK)) => Err(DataDirError::InUse { path: path.to_owned(), pid: read_pid(file) }),
            Err((_, errno)) => Err(io_error(&file_path, "locked", errno.into())),
        }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The directory must be ours; keys and vms in it are nobody else's business.
fn check_owner(path: &Path) -> Result<(), DataDirError> {
    let about = std::fs::metadata(path).map_err(|error| io_error(path, "read", error))?;
    let ours = Uid::effective().as_raw();
    if about.uid() != ours {
        return Err(DataDirError::Foreign { path: path.to_owned(), owner: about.uid(), ours });
    }
    if about.mode() & OTHERS != 0 {
        let mode = format!("{:04o}", about.mode() & 0o7777);
        tracing::warn!(path = %path.display(), mode, "the data directory was open to others: it is for its owner alone now (0700)");
        let closed = std::fs::set_permissions(path, Permissions::from_mode(PRIVATE_MODE));
        closed.map_err(|error| io_error(path, "closed to others", error))?;
    }
    Ok(())
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())
}

fn read_pid(file: File) -> Option<String> {
    let mut text = String::new();
    file.take(MAX_PID_LENGTH).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned()).filter(|pid| !pid.is_empty())
}

fn io_error(path: &Path, doing: &'static str, source: io::Error) -> DataDirError {
    match source.kind() {
        io::ErrorKind::StorageFull => DataDirError::Full { path: path.to_owned(), doing },
        _ => DataDirError::Io { path: path.to_owned(), doing, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_at_a_time() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let path = home.path().join("new/data");
        let first = DataDir::lock(&path).expect("it is made");
        let error = DataDir::lock(&path).expect_err("it is taken");
        let pid = std::process::id();
        assert!(error.to_string().contains(&format!("in use by another flyci (process {pid})")), "{error}");
        drop(first);
        DataDir::lock(&path).expect("it is free again");
    }

    #[test]
    fn it_is_for_its_owner_alone() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let path = home.path().join("data");
        drop(DataDir::lock(&path).expect("it is made"));
        for mode in [PRIVATE_MODE, 0o755] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("it is ours");
            drop(DataDir::lock(&path).expect("it is ours"));
            let mode = std::fs::metadata(&path).expect("it is there").mode() & 0o777;
            assert_eq!(mode, PRIVATE_MODE);
        }
    }
}
