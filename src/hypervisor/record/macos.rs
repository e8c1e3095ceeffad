//! macOS: locks by flock(2), processes by their command line.
//!
//! A VM's process is `flyci vm --directory DIR`: that it names the directory is the proof that a process id is still
//! the VM's. There is no handle that stays with a process: its start time is looked at before each signal.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};
use tokio::time::sleep;

/// Pause between looks at a process.
const LOOK: Duration = Duration::from_millis(100);

/// The argument that comes before a VM's directory.
const DIRECTORY: &str = "--directory";

/// To look at a lock is to take it for a moment. Only this daemon looks at the locks of its data directory, so this
/// keeps a look from being seen as a holder.
static LOOKING: Mutex<()> = Mutex::new(());

/// Takes the lock of an open file, for it and all who inherit it; whether it is ours now.
pub(super) fn lock(file: &File) -> io::Result<bool> {
    let _alone = LOOKING.lock().unwrap_or_else(PoisonError::into_inner);
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether another open file holds the lock.
pub(super) fn is_locked(file: &File) -> io::Result<bool> {
    let _alone = LOOKING.lock().unwrap_or_else(PoisonError::into_inner);
    match file.try_lock() {
        Ok(()) => file.unlock().map(|()| false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// A process, by its id and the second in which it was started.
pub(super) struct Handle {
    pid: u32,
    started: u64,
}

impl Handle {
    /// The process of this id, if it was started then.
    pub(super) fn of(pid: u32, started: u64) -> Option<Self> {
        (start_time(pid)? == started).then_some(Self { pid, started })
    }

    fn lives(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Resolves when it has ended.
    pub(super) async fn exit(self) -> io::Result<()> {
        while self.lives() {
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Kills it. One that is gone already is no fault.
    pub(super) fn kill(&self) -> io::Result<()> {
        if !self.lives() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid.cast_signed()), Signal::SIGKILL) {
            Err(error) if error != nix::errno::Errno::ESRCH => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// The processes that live under a lock: those that were told its directory.
pub(super) fn processes_under(lock: &Path) -> Vec<Handle> {
    let directory = lock.parent().unwrap_or(lock);
    let found = told_directories().into_iter();
    found.filter(|(_, told)| told == directory).map(|(handle, _)| handle).collect()
}

/// The locks below a directory that processes live under, also when their directories were removed.
pub(super) fn locks_below(home: &Path) -> Vec<PathBuf> {
    let told = told_directories().into_iter().filter(|(_, told)| told.starts_with(home));
    told.map(|(_, directory)| directory.join(super::LOCK_FILE)).collect()
}

/// Every process that was told a VM's directory, with it.
fn told_directories() -> Vec<(Handle, PathBuf)> {
    let Ok(mut system) = System::new() else { return Vec::new() };
    let wanted = ProcessRefreshKind::nothing().with_cmd(UpdateKind::Always);
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, wanted);
    let told = |process: &sysinfo::Process| {
        let mut words = process.cmd().iter().skip_while(|word| *word != DIRECTORY);
        let directory = words.nth(1).map(PathBuf::from)?;
        Some((Handle { pid: process.pid().as_u32(), started: process.start_time() }, directory))
    };
    system.processes().values().filter_map(told).collect()
}

/// This boot of the machine.
pub(in crate::hypervisor) fn boot_id() -> io::Result<String> {
    let said = Command::new("/usr/sbin/sysctl").args(["-n", "kern.bootsessionuuid"]).output()?;
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

/// When a process was started, in seconds since 1970.
pub(in crate::hypervisor) fn start_time(pid: u32) -> Option<u64> {
    let mut system = System::new().ok()?;
    let pid = sysinfo::Pid::from_u32(pid);
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, ProcessRefreshKind::nothing());
    system.process(pid).map(sysinfo::Process::start_time)
}
