//! Makes room: removes images that nothing used for long, or for longest when room is short, and what pulls left.

use super::manifest::Digest;
use super::pull::UNFINISHED_PULL;
use super::{Image, ImageError, ImageStore, io_at, tree};
use crate::data_dir::free_space;
use crate::domain::units::Bytes;
use std::collections::HashSet;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// How the file begins whose time says when an image was used last.
const USED: &str = ".used-";

/// What stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keep {
    /// Images used within this time, unless room is short.
    pub younger_than: Duration,
    /// Room that there is to be on the disk.
    pub free: Bytes,
}

/// What was removed.
#[derive(Clone, Default, Debug)]
pub struct Pruned {
    /// The images.
    pub images: Vec<Image>,
    /// Unfinished pulls.
    pub unfinished: usize,
}

impl ImageStore {
    /// Bytes that this user may still write to the images' disk.
    ///
    /// # Errors
    /// The file system does not say.
    pub fn free_space(&self) -> Result<Bytes, ImageError> {
        free_space(&self.directory).map_err(io_at("ask for the free space at", &self.directory))
    }

    fn used_file(&self, digest: &Digest) -> PathBuf {
        self.directory.join(format!("{USED}{}", digest.hex()))
    }

    /// Writes down that these images are used now.
    ///
    /// # Errors
    /// The disk fails.
    pub fn mark_used(&self, digests: &HashSet<Digest>) -> Result<(), ImageError> {
        for digest in digests.iter().filter(|digest| self.directory(digest).is_some()) {
            let path = self.used_file(digest);
            let marked = File::create(&path).and_then(|file| file.set_modified(SystemTime::now()));
            marked.map_err(io_at("write", &path))?;
        }
        Ok(())
    }

    /// When an image was used last: it came then, at least.
    fn last_used(&self, image: &Image) -> SystemTime {
        let time = |path: PathBuf| fs::metadata(path).and_then(|data| data.modified()).ok();
        time(self.used_file(&image.digest)).max(time(image.path.clone())).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Removes what nothing needs: never an image of `in_use`. With `only_tell` it removes nothing, and tells what it
    /// would begin with: what is free afterwards is known only then.
    ///
    /// # Errors
    /// The disk fails.
    pub fn prune(&self, keep: &Keep, in_use: &HashSet<Digest>, only_tell: bool) -> Result<Pruned, ImageError> {
        let now = SystemTime::now();
        let mut pruned = Pruned { unfinished: self.prune_unfinished(keep, now, only_tell)?, ..Pruned::default() };
        let mut unused = self.list()?;
        unused.retain(|image| !in_use.contains(&image.digest));
        unused.sort_by_cached_key(|image| self.last_used(image));
        let mut promised = 0;
        for image in unused {
            let age = now.duration_since(self.last_used(&image)).unwrap_or_default();
            let short = self.free_space()?.0.saturating_add(promised) < keep.free.0;
            if age < keep.younger_than && !short {
                continue;
            }
            if only_tell {
                promised += image.size();
            } else {
                self.remove(&image.digest, in_use)?;
            }
            pruned.images.push(image);
        }
        Ok(pruned)
    }

    /// Forgets when a removed image was used.
    pub(super) fn forget_use(&self, digest: &Digest) {
        let _ = fs::remove_file(self.used_file(digest));
    }

    /// Removes pulls that nobody took up again.
    fn prune_unfinished(&self, keep: &Keep, now: SystemTime, only_tell: bool) -> Result<usize, ImageError> {
        let mut removed = 0;
        for entry in fs::read_dir(&self.directory).map_err(io_at("read the directory", &self.directory))? {
            let path = entry.map_err(io_at("read the directory", &self.directory))?.path();
            let is_pull = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(UNFINISHED_PULL));
            if !is_pull || !is_old(&path, keep.younger_than, now) {
                continue;
            }
            let Ok(lock) = File::open(&path) else { continue };
            if lock.try_lock().is_err() {
                continue;
            }
            removed += 1;
            if !only_tell {
                tree::remove(&path).map_err(io_at("remove", &path))?;
            }
        }
        Ok(removed)
    }
}

fn is_old(path: &std::path::Path, age: Duration, now: SystemTime) -> bool {
    let disk = path.join(super::tart::DISK_FILE);
    let changed = fs::metadata(disk).or_else(|_| fs::metadata(path)).and_then(|data| data.modified());
    changed.is_ok_and(|changed| now.duration_since(changed).unwrap_or_default() >= age)
}
