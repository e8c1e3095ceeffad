//! Clones of raw disks: `clonefile(2)` on macOS, `FICLONE` on Linux (btrfs, xfs).
//!
//! A clone shares its blocks with the image until one of both is written to, so it takes the same time and no room,
//! whatever the disk's size. A file system that cannot do it is told: a full copy of a hundred gigabytes per job would
//! look like a hang, and fill the disk.

use super::remove_if_there;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Errors that mean: this file system cannot. `clonefile(2)`, `ioctl_ficlonerange(2)`.
const CANNOT: [i32; 4] = [libc::EOPNOTSUPP, libc::ENOTTY, libc::EINVAL, libc::ENOSYS];

/// What is written to see whether a file system can clone, in bytes: a block.
const TRIAL_BYTES: usize = 4096;

/// How a disk is made of an image's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum How {
    /// By sharing blocks, or not at all.
    #[default]
    Share,
    /// Byte by byte, holes kept: for small images on file systems that cannot share, as those of tests.
    Copy,
}

/// Why there is no clone.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// Image and VM are on different volumes.
    #[error(
        "{image} and {vm} are on different volumes, and a clone needs one: put both below one data_dir, without mounts in between"
    )]
    OtherVolume { image: PathBuf, vm: PathBuf },
    /// The file system has no clones.
    #[error("the file system of {0} cannot clone files: use APFS on a Mac, btrfs or xfs (with reflink) on Linux")]
    Unsupported(PathBuf),
    /// The volume is full.
    #[error("no space is left on the volume of {0}")]
    Full(PathBuf),
    /// Anything else.
    #[error("{from} could not be cloned to {to}")]
    Io {
        from: PathBuf,
        to: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Makes `to` a writable clone of `from`, whole or not at all: it has its name once it is made.
///
/// # Errors
/// [`CloneError`].
pub fn file(from: &Path, to: &Path, how: How) -> Result<(), CloneError> {
    enlarged(from, to, how, 0)
}

/// As [`file()`], of `at_least` so many bytes: what is beyond the image is a hole. A clone is never smaller than its image.
///
/// # Errors
/// [`CloneError`].
pub fn enlarged(from: &Path, to: &Path, how: How, at_least: u64) -> Result<(), CloneError> {
    let unfinished = to.with_added_extension("unfinished");
    let failed = |source| failure(from, to, source);
    remove_if_there(&unfinished).map_err(failed)?;
    match how {
        How::Share => reflink_copy::reflink(from, &unfinished).map_err(failed)?,
        // The standard library's copy shares or keeps holes where it can.
        How::Copy => fs::copy(from, &unfinished).map(drop).map_err(failed)?,
    }
    // An image is read-only, and a clone has its image's mode.
    fs::set_permissions(&unfinished, Permissions::from_mode(0o600)).map_err(failed)?;
    if fs::metadata(&unfinished).map_err(failed)?.len() < at_least {
        let file = fs::OpenOptions::new().write(true).open(&unfinished).map_err(failed)?;
        file.set_len(at_least).map_err(failed)?;
    }
    fs::rename(&unfinished, to).map_err(failed)
}

/// Proves that files of `images` can be cloned into `vms`: one volume, and a file system that does it.
///
/// # Errors
/// [`CloneError`], with what to do.
pub fn prove(images: &Path, vms: &Path) -> Result<(), CloneError> {
    let device = |path: &Path| fs::metadata(path).map(|data| data.dev()).map_err(|source| failure(path, path, source));
    if device(images)? != device(vms)? {
        return Err(CloneError::OtherVolume { image: images.to_owned(), vm: vms.to_owned() });
    }
    let (from, to) = (images.join(".clone-trial"), vms.join(".clone-trial"));
    let tried = fs::write(&from, [1; TRIAL_BYTES])
        .map_err(|source| failure(&from, &to, source))
        .and_then(|()| file(&from, &to, How::Share));
    for path in [&from, &to] {
        // What was not made is not there; what stays is written over the next time.
        let _ = fs::remove_file(path);
    }
    tried
}

fn failure(from: &Path, to: &Path, source: io::Error) -> CloneError {
    let home = || to.parent().unwrap_or(to).to_owned();
    match source.raw_os_error() {
        Some(libc::EXDEV) => CloneError::OtherVolume { image: from.to_owned(), vm: to.to_owned() },
        Some(libc::ENOSPC | libc::EDQUOT) => CloneError::Full(home()),
        Some(code) if CANNOT.contains(&code) => CloneError::Unsupported(home()),
        _ => CloneError::Io { from: from.to_owned(), to: to.to_owned(), source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What holds on every file system: a clone, or a word that there can be none; never a copy.
    #[test]
    fn a_clone_is_made_or_refused_and_nothing_half_done_is_left() {
        let directory = tempfile::tempdir().expect("a directory");
        let (from, to) = (directory.path().join("image"), directory.path().join("disk"));
        fs::write(&from, [7; TRIAL_BYTES]).expect("written");
        fs::set_permissions(&from, Permissions::from_mode(0o444)).expect("its mode");
        match file(&from, &to, How::Share) {
            Ok(()) => {
                assert_eq!(fs::read(&to).expect("read"), [7; TRIAL_BYTES]);
                assert_eq!(fs::metadata(&to).expect("there").mode() & 0o777, 0o600);
                prove(directory.path(), directory.path()).expect("and it is told so");
            }
            Err(CloneError::Unsupported(_)) => {
                assert!(!to.exists(), "not copied instead");
                assert!(matches!(prove(directory.path(), directory.path()), Err(CloneError::Unsupported(_))));
                assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1, "the image alone");
            }
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_copy_is_made_only_when_it_is_asked_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let (from, to) = (directory.path().join("image"), directory.path().join("disk"));
        fs::write(&from, [7; TRIAL_BYTES]).expect("written");
        fs::write(to.with_added_extension("unfinished"), "of a daemon that died").expect("written");
        file(&from, &to, How::Copy).expect("copied");
        assert_eq!(fs::read(&to).expect("read"), [7; TRIAL_BYTES]);
    }

    #[test]
    fn a_clone_is_enlarged_by_a_hole_and_never_made_smaller() {
        let directory = tempfile::tempdir().expect("a directory");
        let (from, to) = (directory.path().join("image"), directory.path().join("disk"));
        fs::write(&from, [7; TRIAL_BYTES]).expect("written");
        fs::set_permissions(&from, Permissions::from_mode(0o444)).expect("its mode");
        enlarged(&from, &to, How::Copy, 1 << 30).expect("copied");
        let made = fs::metadata(&to).expect("there");
        assert_eq!((made.len(), made.blocks() * 512), (1 << 30, TRIAL_BYTES as u64));
        assert_eq!(fs::metadata(&from).expect("there").len(), TRIAL_BYTES as u64, "the image is as it was");
        enlarged(&from, &to, How::Copy, 1).expect("copied");
        assert_eq!(fs::read(&to).expect("read"), [7; TRIAL_BYTES]);
    }

    #[test]
    fn what_the_system_says_is_told_with_what_to_do() {
        let of = |code| failure(Path::new("/i/a"), Path::new("/v/b"), io::Error::from_raw_os_error(code)).to_string();
        assert!(of(libc::EXDEV).contains("one data_dir"));
        assert!(of(libc::EOPNOTSUPP).contains("APFS"));
        assert!(of(libc::ENOSPC).contains("no space"));
        assert!(of(libc::EACCES).contains("could not be cloned"));
    }
}
