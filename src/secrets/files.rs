//! Files that only their owner may read: keys of ours, and keys and secrets given by the operator.
//!
//! Checks are made on the opened file, not on its path, so that it cannot be swapped in between.

use nix::unistd::Uid;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// No key or secret is longer, in bytes: an RSA key of 16,384 bits in PEM has 13 KB.
pub const MAX_PRIVATE_FILE: u64 = 64 * 1024;
/// Owner reads and writes, nobody else anything.
const PRIVATE_MODE: u32 = 0o600;
/// What group and others must not have.
const OTHERS: u32 = 0o077;

/// What to do about a file of somebody else. Root is rarely who the daemon is: giving it the file would break the
/// daemon.
fn whose(ours: u32, path: &Path) -> String {
    if ours == 0 {
        "run this as the user that the daemon runs as".to_owned()
    } else {
        format!("run `chown {ours} {}`", path.display())
    }
}

/// Why a file cannot hold a secret.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    /// There is none.
    #[error("{path} does not exist")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It is a directory, a socket, ….
    #[error("{path} is no regular file")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Group or others have rights on it.
    #[error("{path} can be read or changed by others (mode {mode:04o}): run `chmod 600 {path}`")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to somebody else, who may change it at any time.
    #[error("{path} belongs to user {owner}, and this runs as user {ours}: {}", whose(*ours, path))]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its owner's uid.
        owner: u32,
        /// The process's uid.
        ours: u32,
    },
    /// It is no secret at this size.
    #[error("{path} has {size} bytes, more than the {MAX_PRIVATE_FILE} that any key or secret has")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The file system refused.
    #[error("{path} cannot be {doing}")]
    Io {
        /// The file.
        path: PathBuf,
        /// `opened`, `read`, `written`.
        doing: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// Reads a file that only its owner may read. Wiped from memory when dropped.
///
/// # Errors
/// When it is missing, unreadable, too long, another user's (root's is accepted), or open to others.
pub fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, PrivateFileError> {
    let (file, size) = open_private(path)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1));
    file.take(MAX_PRIVATE_FILE).read_to_end(&mut bytes).map_err(|source| io_error(path, "read", source))?;
    Ok(bytes)
}

/// Checks all that [`read_private`] checks, without reading.
///
/// # Errors
/// As [`read_private`].
pub fn check_private(path: &Path) -> Result<(), PrivateFileError> {
    open_private(path).map(|_| ())
}

fn open_private(path: &Path) -> Result<(File, u64), PrivateFileError> {
    // O_NONBLOCK: a named pipe in the file's place must not hang the start.
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|source| {
            match source.kind() {
                io::ErrorKind::NotFound => PrivateFileError::Missing { path: path.to_owned() },
                _ => io_error(path, "opened", source),
            }
        })?;
    let about = file.metadata().map_err(|source| io_error(path, "read", source))?;
    let ours = Uid::effective().as_raw();
    if !about.is_file() {
        return Err(PrivateFileError::NotAFile { path: path.to_owned() });
    }
    if about.mode() & OTHERS != 0 {
        return Err(PrivateFileError::Exposed { path: path.to_owned(), mode: about.permissions().mode() & 0o7777 });
    }
    if about.uid() != ours && about.uid() != 0 {
        return Err(PrivateFileError::Foreign { path: path.to_owned(), owner: about.uid(), ours });
    }
    if about.size() > MAX_PRIVATE_FILE {
        return Err(PrivateFileError::TooLong { path: path.to_owned(), size: about.size() });
    }
    Ok((file, about.size()))
}

/// Writes a new private file so that after a power cut it is there whole or not at all. Never replaces
/// one: answers `false` when there is one already.
///
/// # Errors
/// When the file system refuses.
pub fn create_private(path: &Path, content: &[u8]) -> Result<bool, PrivateFileError> {
    let draft = path.with_extension(format!("new-{}", std::process::id()));
    let outcome = write_draft(&draft, content)
        .and_then(|()| match std::fs::hard_link(&draft, path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        })
        .map_err(|source| io_error(path, "written", source));
    // Also after a failure: nothing that holds a key stays behind.
    let removed = std::fs::remove_file(&draft);
    let made = outcome?;
    removed.and_then(|()| sync_directory_of(path)).map_err(|source| io_error(path, "written", source))?;
    Ok(made)
}

/// Replaces a private file so that after a power cut there is the old one or the new one, whole. The old
/// content is written over, as far as the file system lets that mean anything.
///
/// # Errors
/// When the file system refuses: the old one is there then.
pub fn replace_private(path: &Path, content: &[u8]) -> Result<(), PrivateFileError> {
    let draft = path.with_extension(format!("new-{}", std::process::id()));
    let written = |source| io_error(path, "written", source);
    let old = OpenOptions::new().write(true).open(path).ok();
    let renamed = write_draft(&draft, content).and_then(|()| std::fs::rename(&draft, path));
    if renamed.is_err() {
        // Nothing that holds a key stays behind; the first error is the one to tell.
        let _ = std::fs::remove_file(&draft);
    }
    renamed.and_then(|()| sync_directory_of(path)).map_err(written)?;
    if let Some(mut old) = old {
        let size = old.metadata().map_err(written)?.len().min(MAX_PRIVATE_FILE);
        let zeros = vec![0; usize::try_from(size).unwrap_or(0)];
        old.write_all(&zeros).and_then(|()| old.sync_all()).map_err(written)?;
    }
    Ok(())
}

fn write_draft(draft: &Path, content: &[u8]) -> io::Result<()> {
    // One of an earlier process with the same id, dead halfway.
    match std::fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(PRIVATE_MODE).open(draft)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Makes a new name in a directory survive a power cut.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

fn io_error(path: &Path, doing: &'static str, source: io::Error) -> PrivateFileError {
    PrivateFileError::Io { path: path.to_owned(), doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of_mode(directory: &Path, mode: u32) -> PathBuf {
        let path = directory.join(format!("secret-{mode:o}"));
        std::fs::write(&path, "s3cret").expect("the directory is writable");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("the file is ours");
        path
    }

    #[test]
    fn a_file_open_to_others_is_refused_with_the_command_that_mends_it() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for mode in [0o644, 0o640, 0o604, 0o660, 0o622] {
            let path = file_of_mode(directory.path(), mode);
            let error = read_private(&path).expect_err("others can read it");
            assert!(matches!(error, PrivateFileError::Exposed { mode: found, .. } if found == mode), "{error}");
            assert!(error.to_string().ends_with(&format!("run `chmod 600 {}`", path.display())), "{error}");
        }
        for mode in [0o600, 0o400] {
            let bytes = read_private(&file_of_mode(directory.path(), mode)).expect("only we can read it");
            assert_eq!(*bytes, b"s3cret");
        }
    }

    #[test]
    fn what_is_no_secret_is_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let missing = directory.path().join("missing");
        assert!(matches!(read_private(&missing), Err(PrivateFileError::Missing { .. })));
        let folder = directory.path().join("folder");
        std::fs::create_dir(&folder).expect("the directory is writable");
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).expect("it is ours");
        assert!(matches!(check_private(&folder), Err(PrivateFileError::NotAFile { .. })));
        let long = directory.path().join("long");
        assert!(create_private(&long, &vec![0; 70_000]).expect("it can be written"));
        assert!(matches!(read_private(&long), Err(PrivateFileError::TooLong { size: 70_000, .. })));
    }

    #[test]
    fn a_new_file_is_private_and_never_replaces_one() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("key");
        assert!(create_private(&path, b"first").expect("it can be written"));
        assert!(!create_private(&path, b"second").expect("one is there"));
        assert_eq!(*read_private(&path).expect("it is private"), b"first");
        let left = std::fs::read_dir(directory.path()).expect("it is a directory").count();
        assert_eq!(left, 1, "no draft stays behind");
    }

    #[test]
    fn a_replaced_file_is_the_new_one_and_the_old_content_is_written_over() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (path, kept) = (directory.path().join("key"), directory.path().join("kept"));
        create_private(&path, b"old").expect("it can be written");
        std::fs::hard_link(&path, &kept).expect("another name of the old file");
        replace_private(&path, b"newer").expect("it can be written");
        assert_eq!(*read_private(&path).expect("it is private"), b"newer");
        assert_eq!(std::fs::read(&kept).expect("it is there"), [0; 3]);
        let left = std::fs::read_dir(directory.path()).expect("it is a directory").count();
        assert_eq!(left, 2, "no draft stays behind");
    }
}
