//! A disk image out of a directory, without root: ext4, everything owned by root.

use super::{BuildError, io_at};
use crate::hypervisor::process::Tool;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// How long making a file system may take.
const MAKE: Duration = Duration::from_secs(600);

/// A file system's size is a multiple of this, in bytes.
const GRANULE: u64 = 1 << 20;

/// Bytes of metadata that one file costs at most (inode, directory entry, rest of its last block).
const COST_OF_A_FILE: u64 = 8 << 10;

/// Room for what a file system needs for itself, in bytes.
const COST_OF_A_FILE_SYSTEM: u64 = 32 << 20;

/// The features of the file system: no journal, since a clone is used once and never repaired.
const FEATURES: &str = "^has_journal,^resize_inode,meta_bg,metadata_csum,64bit";

/// Name and hash seed of the file system: fixed, so that the same content is the same disk.
const UUID: &str = "6f1c6f57-8a0e-4b4f-9d3b-666c79636930";

/// Times in the file system, in seconds of Unix time: any fixed one (2024-01-01).
const EPOCH: &str = "1704067200";

/// Bytes that a directory's content takes on a disk, rounded up.
///
/// # Errors
/// The directory cannot be read.
pub(crate) fn space_for(directory: &Path) -> Result<u64, BuildError> {
    let mut total = COST_OF_A_FILE_SYSTEM;
    visit(directory, &mut |_, data| {
        total += data.len() + COST_OF_A_FILE;
        Ok(())
    })?;
    Ok((total + total / 10).next_multiple_of(GRANULE))
}

/// Makes a raw disk image of `size` bytes with an ext4 file system that holds the directory.
///
/// # Errors
/// The tools are missing or fail.
pub(crate) async fn make(directory: &Path, size: u64, label: &str, target: &Path) -> Result<(), BuildError> {
    let file = File::create(target).map_err(io_at("make the file", target))?;
    file.set_len(size).map_err(io_at("size the file", target))?;
    let extended = format!("hash_seed={UUID},root_owner=0:0,lazy_itable_init=1,nodiscard");
    Tool::new("mke2fs", MAKE)?
        .env("E2FSPROGS_FAKE_TIME", EPOCH)
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .args([
            "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", label, "-U", UUID, "-O", FEATURES, "-E", &extended,
        ])
        .arg("-d")
        .arg(directory)
        .arg(target)
        .run()
        .await?;
    give_to_root(directory, target).await
}

/// Makes root the owner of everything, and the times the same: who builds an image does not show.
async fn give_to_root(directory: &Path, image: &Path) -> Result<(), BuildError> {
    let mut orders = String::new();
    visit(directory, &mut |path, _| {
        let inside = path.strip_prefix(directory).expect("it was found in there");
        let name = inside.as_os_str().as_bytes();
        // debugfs has no way to quote these.
        let Some(name) = std::str::from_utf8(name).ok().filter(|name| !name.contains(['"', '\n'])) else {
            return Err(BuildError::Runner(format!("{} has a name that cannot be put on a disk", path.display())));
        };
        for field in
            ["uid 0", "gid 0", &format!("mtime @{EPOCH}"), &format!("ctime @{EPOCH}"), &format!("atime @{EPOCH}")]
        {
            orders.push_str(&format!("set_inode_field \"/{name}\" {field}\n"));
        }
        Ok(())
    })?;
    Tool::new("debugfs", MAKE)?
        .env("E2FSPROGS_FAKE_TIME", EPOCH)
        .args(["-w", "-f", "-"])
        .arg(image)
        .input(orders.into_bytes())
        .run()
        .await?;
    Ok(())
}

/// Calls `each` for everything in a directory tree, itself not included, in the order of names.
fn visit(
    directory: &Path,
    each: &mut dyn FnMut(&Path, &fs::Metadata) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let entries = fs::read_dir(directory).map_err(io_at("read the directory", directory))?;
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    let paths = paths.as_mut().map_err(|error| io_at("read the directory", directory)(error.kind().into()))?;
    paths.sort();
    for path in paths {
        let data = fs::symlink_metadata(&path).map_err(io_at("look at", path))?;
        each(path, &data)?;
        if data.is_dir() {
            visit(path, each)?;
        }
    }
    Ok(())
}

/// A number that changes when a directory's content does: names, sizes and times of all in it.
///
/// # Errors
/// The directory cannot be read.
#[cfg(target_os = "linux")]
pub(crate) fn fingerprint(directory: &Path) -> Result<String, BuildError> {
    use sha2::{Digest, Sha256};
    use std::os::unix::fs::MetadataExt;
    let mut hash = Sha256::new();
    visit(directory, &mut |path, data| {
        hash.update(path.as_os_str().as_bytes());
        hash.update(format!("\0{} {} {} {}\0", data.len(), data.mode(), data.mtime(), data.mtime_nsec()));
        Ok(())
    })?;
    Ok(hex::encode(&hash.finalize()[..16]))
}
