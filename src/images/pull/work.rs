//! The directory of a pull that is not finished: one process at a time, kept when it is interrupted.

use super::PullError;
use super::reuse::Sources;
use crate::images::manifest::Digest;
use crate::images::tart::DISK_FILE;
use crate::images::{Image, ImageError, io_at, seal, sync_directory, tree};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// How the directory of an unfinished pull begins.
pub(in crate::images) const UNFINISHED_PULL: &str = ".pull-";

/// The directory of an unfinished pull. The lock on it ends with the value, or with the process.
pub(super) struct Work {
    path: PathBuf,
    new: bool,
    _lock: File,
}

impl Work {
    /// Takes the directory of an image, or makes it.
    pub fn begin(images: &Path, digest: &Digest) -> Result<Self, PullError> {
        let path = images.join(format!("{UNFINISHED_PULL}{}", digest.hex()));
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(super::full_or(io_at("make the directory", &path)(error)));
            }
            Ok(()) | Err(_) => {}
        }
        let lock = File::open(&path).map_err(io_at("open the directory", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PullError::Busy(digest.clone())),
            Err(TryLockError::Error(error)) => return Err(io_at("lock", &path)(error).into()),
        }
        let new = !path.join(DISK_FILE).exists();
        Ok(Self { path, new, _lock: lock })
    }

    /// True when nothing was left by an earlier try.
    pub const fn is_new(&self) -> bool {
        self.new
    }

    fn disk(&self) -> PathBuf {
        self.path.join(DISK_FILE)
    }

    /// Bytes that an earlier try has on the disk.
    pub fn allocated(&self) -> u64 {
        /// The unit of `st_blocks`.
        const SECTOR: u64 = 512;
        if self.new { 0 } else { fs::metadata(self.disk()).map_or(0, |data| data.blocks() * SECTOR) }
    }

    /// Begins with a clone of the disk that has most in common, where the file system makes one without copying;
    /// answers how much of it is shared.
    pub fn clone_base(&self, sources: &Sources) -> Result<Option<u64>, PullError> {
        let Some((base, shared)) = sources.base() else { return Ok(None) };
        let disk = self.disk();
        if let Err(error) = reflink_copy::reflink(base, &disk) {
            tracing::debug!(%error, "the file system makes no clones: layers are copied one by one");
            let _ = fs::remove_file(&disk);
            return Ok(None);
        }
        fs::set_permissions(&disk, fs::Permissions::from_mode(0o600)).map_err(io_at("open", &disk))?;
        Ok(Some(shared))
    }

    /// The disk, of its full size; and whether something is in it already.
    pub fn open_disk(&self, size: u64) -> Result<(File, bool), PullError> {
        let path = self.disk();
        let used = path.exists();
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = opened.map_err(io_at("open", &path)).map_err(super::full_or)?;
        file.set_len(size).map_err(io_at("size", &path)).map_err(super::full_or)?;
        Ok((file, used))
    }

    /// Writes a small file of the image.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), ImageError> {
        let path = self.path.join(name);
        let _ = fs::remove_file(&path);
        fs::write(&path, content).map_err(io_at("write", &path))?;
        seal(&File::open(&path).map_err(io_at("open", &path))?, &path)
    }

    /// The finished directory becomes the image.
    pub fn publish(self, images: &Path, digest: &Digest) -> Result<Image, ImageError> {
        let home = images.join(digest.hex());
        sync_directory(&self.path)?;
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o755)).map_err(io_at("open", &self.path))?;
        fs::rename(&self.path, &home).map_err(io_at("move the finished image to", &home))?;
        sync_directory(images)?;
        Image::read(&home)
    }

    /// Leaves nothing behind.
    pub fn discard(&self) {
        if let Err(error) = tree::remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "an unfinished pull stays");
        }
    }
}
