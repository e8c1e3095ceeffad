//! The file systems of a minimal guest.

use super::{Doing, InitError};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a disk may take to be found by its driver.
const DISK: Duration = Duration::from_secs(10);

/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(10);

/// Where the host's runner disk is mounted.
const RUNNER: &str = "/opt/runner";

/// The file systems that a runner disk may have.
const RUNNER_DISKS: [&str; 5] = ["ext4", "squashfs", "erofs", "iso9660", "vfat"];

/// Where the new root is mounted before it becomes the root.
const NEW_ROOT: &str = "/newroot";

const KERNEL: [(&str, &str, MsFlags); 3] =
    [("proc", "/proc", PLAIN), ("sysfs", "/sys", PLAIN), ("devtmpfs", "/dev", MsFlags::MS_NOSUID)];

/// No devices, set-user-id programs or programs at all.
const PLAIN: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Mounts what the kernel offers: /proc, /sys and /dev.
pub(super) fn kernel_interfaces() -> Result<(), InitError> {
    for (kind, path, flags) in KERNEL {
        fresh(kind, path, flags, None)?;
    }
    Ok(())
}

/// Mounts what is for programs to write to: /run, /tmp, /dev/shm, and terminals.
pub(super) fn scratch() -> Result<(), InitError> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    fresh("devpts", "/dev/pts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, Some("mode=620,ptmxmode=666"))?;
    fresh("tmpfs", "/dev/shm", safe, Some("mode=1777"))?;
    fresh("tmpfs", "/run", safe, Some("mode=755"))?;
    fresh("tmpfs", "/tmp", safe, Some("mode=1777"))
}

/// Mounts a file system without a device. One that is there already is no fault.
fn fresh(kind: &str, path: &str, flags: MsFlags, data: Option<&str>) -> Result<(), InitError> {
    std::fs::create_dir_all(path).doing(|| format!("make {path}"))?;
    match mount(Some(kind), path, Some(kind), flags, data) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(error) => Err(error).doing(|| format!("mount {kind} on {path}")),
    }
}

/// Makes the ext4 file system on this device the root. What was mounted is taken along.
pub(super) fn switch_root(device: &str) -> Result<(), InitError> {
    await_device(device)?;
    std::fs::create_dir_all(NEW_ROOT).doing(|| format!("make {NEW_ROOT}"))?;
    let none = None::<&str>;
    mount(Some(device), NEW_ROOT, Some("ext4"), MsFlags::MS_NOATIME, none)
        .doing(|| format!("mount {device} (ext4) as the root"))?;
    for (_, path, _) in KERNEL {
        let new = format!("{NEW_ROOT}{path}");
        std::fs::create_dir_all(&new).doing(|| format!("make {path} in {device}"))?;
        mount(Some(path), new.as_str(), none, MsFlags::MS_MOVE, none).doing(|| format!("move {path} to {new}"))?;
    }
    std::env::set_current_dir(NEW_ROOT).doing(|| format!("enter {NEW_ROOT}"))?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).doing(|| format!("move {NEW_ROOT} to /"))?;
    nix::unistd::chroot(".").doing(|| "change the root".into())?;
    std::env::set_current_dir("/").doing(|| "enter the new root".into())
}

/// Mounts the host's runner disk, read-only.
pub(super) fn runner_disk(device: &str) -> Result<(), InitError> {
    await_device(device)?;
    std::fs::create_dir_all(RUNNER).doing(|| format!("make {RUNNER}"))?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let mut last = Errno::ENODEV;
    for kind in RUNNER_DISKS {
        match mount(Some(device), RUNNER, Some(kind), flags, None::<&str>) {
            Ok(()) => return Ok(()),
            // Not this kind, or the kernel does not know it.
            Err(error @ (Errno::EINVAL | Errno::ENODEV)) => last = error,
            Err(error) => {
                return Err(error).doing(|| format!("mount {device} ({kind}) on {RUNNER}"));
            }
        }
    }
    Err(last).doing(|| format!("mount {device} on {RUNNER} (tried {})", RUNNER_DISKS.join(", ")))
}

/// Waits until the device's driver has found it.
fn await_device(device: &str) -> Result<(), InitError> {
    let begun = Instant::now();
    while !Path::new(device).exists() {
        if begun.elapsed() > DISK {
            return Err(Errno::ENXIO).doing(|| format!("find {device} within {DISK:?}"));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Has the root written out and left clean, if nothing writes to it any more.
pub(super) fn make_read_only() {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if let Err(error) = mount(None::<&str>, "/", None::<&str>, flags, None::<&str>) {
        eprintln!("flyci-agent: the root stays writable until the end: {error}");
    }
}
