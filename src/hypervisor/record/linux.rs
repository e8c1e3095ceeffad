//! Linux: locks of open files, processes by `/proc`, handles by pidfd.

use nix::fcntl::{FcntlArg, fcntl};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tokio::io::unix::AsyncFd;

/// Takes the lock of an open file, for it and all who inherit it; whether it is ours now.
pub(super) fn lock(file: &File) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file())) {
        Ok(_) => Ok(true),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether another open file holds the lock. Looks without taking it.
pub(super) fn is_locked(file: &File) -> io::Result<bool> {
    let mut held = whole_file();
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut held))?;
    Ok(i32::from(held.l_type) != libc::F_UNLCK)
}

/// A lock on all of a file, which belongs to the open file and so to all who inherit it.
fn whole_file() -> libc::flock {
    libc::flock { l_type: libc::F_WRLCK as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
}

/// A process that stays the same one, which its id does not.
pub(super) struct Handle(OwnedFd);

impl Handle {
    /// The process of this id, if it was started then.
    pub(super) fn of(pid: u32, started: u64) -> Option<Self> {
        let handle = pidfd_open(Pid::from_raw(pid.try_into().ok()?)?, PidfdFlags::NONBLOCK).ok()?;
        (started == start_time(pid)?).then_some(Self(handle))
    }

    /// Resolves when it has ended.
    pub(super) async fn exit(self) -> io::Result<()> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for owners that may lie; this one is the standard library's"
        )]
        let process = AsyncFd::new(self.0)?;
        process.readable().await.map(drop)
    }

    /// Kills it. One that is gone already is no fault.
    pub(super) fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.0, Signal::KILL) {
            Err(error) if error != rustix::io::Errno::SRCH => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// The processes that live under a lock. A handle is taken first and proved then.
pub(super) fn processes_under(lock: &Path) -> Vec<Handle> {
    let prove = |pid: Pid| {
        let handle = pidfd_open(pid, PidfdFlags::NONBLOCK).ok()?;
        (standard_input(pid)? == lock).then_some(Handle(handle))
    };
    standard_inputs().filter(|(_, input)| input == lock).filter_map(|(pid, _)| prove(pid)).collect()
}

/// The locks below a directory that processes live under, also when their directories were removed.
pub(super) fn locks_below(home: &Path) -> Vec<PathBuf> {
    standard_inputs().map(|(_, lock)| lock).filter(|lock| lock.starts_with(home)).collect()
}

/// Every process whose standard input is a file that can be seen, with that file's path.
fn standard_inputs() -> impl Iterator<Item = (Pid, PathBuf)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        Some((pid, standard_input(pid)?))
    })
}

/// The file that is a process's standard input, also when its directory was removed.
fn standard_input(pid: Pid) -> Option<PathBuf> {
    /// What the kernel appends to the path of a file that has no name any more.
    const DELETED: &str = " (deleted)";
    let path = fs::read_link(format!("/proc/{}/fd/0", pid.as_raw_nonzero())).ok()?;
    Some(path.to_str()?.strip_suffix(DELETED).map_or_else(|| path.clone(), PathBuf::from))
}

/// This boot of the machine.
pub(in crate::hypervisor) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// When a process was started, in clock ticks since the machine's boot: proc(5), field 22.
pub(in crate::hypervisor) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}
