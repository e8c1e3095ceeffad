//! Grows the root's file system to its disk's size: a clone's disk is larger than its image's by
//! the space that the guest is promised.

use super::{Doing, InitError};
use std::fs::File;
use std::os::fd::AsRawFd;

/// The size of the file system's blocks that images are made with, in bytes.
const BLOCK_BYTES: u64 = 4096;

// fs/ext4/ext4.h: EXT4_IOC_RESIZE_FS is _IOW('f', 16, __u64).
nix::ioctl_write_ptr!(resize, b'f', 16, u64);
// linux/fs.h: BLKGETSIZE64 is _IOR(0x12, 114, size_t).
nix::ioctl_read!(disk_bytes, 0x12, 114, u64);

/// Grows the ext4 on this device, which is mounted as the root.
pub(super) fn root(device: &str) -> Result<(), InitError> {
    let disk = File::open(device).doing(|| format!("open {device}"))?;
    let mut bytes = 0;
    // SAFETY: the kernel writes one 64-bit number to the address given, which is `bytes`.
    unsafe { disk_bytes(disk.as_raw_fd(), &raw mut bytes) }.doing(|| format!("ask for the size of {device}"))?;
    let root = File::open("/").doing(|| "open /".into())?;
    let blocks = bytes / BLOCK_BYTES;
    // SAFETY: the kernel reads one 64-bit number from the address given, which is `blocks`.
    let resized = unsafe { resize(root.as_raw_fd(), &raw const blocks) };
    resized.map(drop).doing(|| format!("grow the file system on {device} to {blocks} blocks"))
}
