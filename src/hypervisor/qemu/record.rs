//! The directory of one VM: what is in it, who lives in it, and how both end.
//!
//! `vm.lock` is the standard input of the VM's process and locked through that open file: the lock
//! is held exactly as long as a process of the VM lives, whoever started it and whatever became of
//! its parents. The same file tells which processes are the VM's, so that a process id that was
//! given to another program is never killed.

use crate::domain::ids::VmId;
use crate::domain::units::Bytes;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep};

/// The record's version that this flyci writes.
const VERSION: u32 = 1;

/// Pause between looks at a lock whose holder cannot be waited for.
const LOOK: Duration = Duration::from_millis(20);

/// How long a killed process may take to be gone: the kernel frees its memory first.
const DEATH: Duration = Duration::from_secs(20);

/// The disk's name.
const DISK: &str = "disk.qcow2";

/// How a directory begins that is being removed.
const TRASH: &str = ".trash-";

/// What the VM's directory says of it: `vm.json`, for people and for later daemons.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Record {
    pub(super) version: u32,
    pub(super) vm: VmId,
    /// Digest of the image that it is a clone of.
    pub(super) image: String,
    /// The disk's virtual size.
    pub(super) disk_size: Bytes,
    /// Its process, once one was to be started.
    pub(super) process: Option<Process>,
}

/// A VM's process.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Process {
    /// The machine's boot in which it was started.
    pub(super) boot_id: String,
    /// Its id in that boot; none when the daemon died before it could write it.
    pub(super) pid: Option<u32>,
    /// When it was started, in clock ticks of that boot.
    pub(super) start_time: Option<u64>,
}

impl Record {
    pub(super) fn new(vm: VmId, image: String, disk_size: Bytes) -> Self {
        Self { version: VERSION, vm, image, disk_size, process: None }
    }
}

/// All VMs' directories.
#[derive(Clone, Debug)]
pub(super) struct Home {
    path: PathBuf,
}

impl Home {
    /// The directories in `<data_dir>/vms`.
    pub(super) fn open(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join("vms");
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        // Processes are told by the path of their lock, which the kernel shows without links.
        Ok(Self { path: path.canonicalize()? })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn of(&self, vm: VmId) -> VmDirectory {
        VmDirectory { path: self.path.join(vm.to_string()) }
    }

    /// Every VM that has a directory here or a process that was started here.
    pub(super) fn list(&self) -> io::Result<Vec<VmId>> {
        let mut found: Vec<VmId> = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<VmId>().ok()));
        }
        for (_, lock) in standard_inputs() {
            let inside = lock.strip_prefix(&self.path).ok().and_then(|rest| rest.iter().next());
            found.extend(inside.and_then(|name| name.to_str()?.parse::<VmId>().ok()));
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Removes what a daemon that died left half removed.
    pub(super) fn sweep_trash(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(TRASH)) {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// One VM's directory.
#[derive(Clone, Debug)]
pub(super) struct VmDirectory {
    path: PathBuf,
}

impl VmDirectory {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.path.join(DISK)
    }

    /// Where a disk is made before it is whole.
    pub(super) fn unfinished_disk(&self) -> PathBuf {
        self.path.join(format!("{DISK}.unfinished"))
    }

    pub(super) fn control_socket(&self) -> PathBuf {
        self.path.join("qmp.sock")
    }

    pub(super) fn agent_socket(&self) -> PathBuf {
        self.path.join("agent.sock")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("qemu.log")
    }

    fn lock_file(&self) -> PathBuf {
        self.path.join("vm.lock")
    }

    pub(super) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Makes the directory, for its owner alone.
    pub(super) fn create(&self) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        }
    }

    /// Writes the record, whole or not at all.
    pub(super) fn write_record(&self, record: &Record) -> io::Result<()> {
        let (draft, file) = (self.path.join(".vm.json"), self.path.join("vm.json"));
        fs::write(&draft, serde_json::to_vec_pretty(record)?)?;
        fs::rename(draft, file)
    }

    pub(super) fn read_record(&self) -> io::Result<Record> {
        Ok(serde_json::from_slice(&fs::read(self.path.join("vm.json"))?)?)
    }

    /// Takes the lock that a new process is to live under; none when a process holds it.
    pub(super) fn take_lock(&self) -> io::Result<Option<File>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.lock_file())?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
            Ok(_) => Ok(Some(file)),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a process of this VM lives. Looks at the lock without taking it.
    pub(super) fn is_alive(&self) -> io::Result<bool> {
        let file = match OpenOptions::new().read(true).write(true).open(self.lock_file()) {
            Ok(file) => file,
            // Without a file there may still be a process, if somebody removed its directory.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(!self.processes().is_empty()),
            Err(error) => return Err(error),
        };
        let mut held = whole_file();
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut held))?;
        Ok(i32::from(held.l_type) != libc::F_UNLCK)
    }

    /// The processes that live under this VM's lock.
    fn processes(&self) -> Vec<Pid> {
        let lock = self.lock_file();
        standard_inputs().filter(|(_, input)| *input == lock).map(|(pid, _)| pid).collect()
    }

    /// Resolves when no process of this VM lives.
    pub(super) async fn ended(&self) -> io::Result<()> {
        while self.is_alive()? {
            match self.handles().into_iter().next() {
                Some(process) => exit(process).await?,
                None => sleep(LOOK).await,
            }
        }
        Ok(())
    }

    /// Kills the VM's processes and waits until they are gone.
    pub(super) async fn kill(&self) -> io::Result<()> {
        let deadline = Instant::now() + DEATH;
        // The first process keeps its files from being looked at when it guards itself (pasta does).
        if let Some(first) = self.first_process() {
            kill(&first)?;
        }
        while self.is_alive()? {
            for process in self.handles() {
                kill(&process)?;
            }
            if Instant::now() > deadline {
                let text = format!("a process of the vm in {} lives although it was killed", self.path.display());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Handles of the VM's processes. A handle is taken first and proved then: it stays with its
    /// process, an id does not.
    fn handles(&self) -> Vec<OwnedFd> {
        let lock = self.lock_file();
        let prove = |pid: Pid| {
            let handle = pidfd_open(pid, PidfdFlags::NONBLOCK).ok()?;
            (standard_input(pid)? == lock).then_some(handle)
        };
        self.processes().into_iter().filter_map(prove).collect()
    }

    /// The process that was started for this VM, if it is still that one.
    fn first_process(&self) -> Option<OwnedFd> {
        let recorded = self.read_record().ok()?.process?;
        let pid = recorded.pid?;
        let handle = pidfd_open(Pid::from_raw(pid.try_into().ok()?)?, PidfdFlags::NONBLOCK).ok()?;
        let same = recorded.boot_id == boot_id().ok()? && recorded.start_time? == start_time(pid)?;
        same.then_some(handle)
    }

    /// Removes the directory, in one step for whoever looks.
    pub(super) fn remove(&self) -> io::Result<()> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let trash = self.path.with_file_name(format!("{TRASH}{name}"));
        remove_tree(&trash)?;
        match fs::rename(&self.path, &trash) {
            Ok(()) => remove_tree(&trash),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Resolves when a process has ended.
async fn exit(process: OwnedFd) -> io::Result<()> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for owners that may lie; this one is the standard library's"
    )]
    let process = AsyncFd::new(process)?;
    process.readable().await.map(drop)
}

/// Kills a process. One that is gone already is no fault.
fn kill(process: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(process, Signal::KILL) {
        Err(error) if error != rustix::io::Errno::SRCH => Err(error.into()),
        _ => Ok(()),
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A lock on all of a file, which belongs to the open file and so to all who inherit it.
fn whole_file() -> libc::flock {
    libc::flock { l_type: libc::F_WRLCK as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
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
pub(super) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// When a process was started, in clock ticks since the machine's boot: proc(5), field 22.
pub(super) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Bytes that a file takes on its disk.
pub(super) fn allocated(path: &Path) -> u64 {
    const BLOCK: u64 = 512;
    fs::metadata(path).map_or(0, |data| data.blocks() * BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    fn vm() -> (tempfile::TempDir, Home, VmDirectory) {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Home::open(directory.path()).expect("a home");
        let id = VmId::random();
        let vm = home.of(id);
        vm.create().expect("made");
        vm.write_record(&Record::new(id, "sha256:0".into(), Bytes(1))).expect("written");
        (directory, home, vm)
    }

    /// A program that lives under the VM's lock, as the VM's process does.
    fn stand_in(vm: &VmDirectory) -> Child {
        let lock = vm.take_lock().expect("a lock").expect("free");
        let mut command = Command::new("sleep");
        command.arg("600").stdin(Stdio::from(lock)).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("started")
    }

    #[tokio::test]
    async fn a_vm_lives_as_long_as_its_process() {
        let (_directory, _, vm) = vm();
        assert!(!vm.is_alive().expect("looked"));
        let mut child = stand_in(&vm);
        assert!(vm.is_alive().expect("looked"));
        assert!(vm.take_lock().expect("looked").is_none(), "it is not started twice");
        vm.kill().await.expect("killed");
        assert!(!vm.is_alive().expect("looked"));
        vm.ended().await.expect("ended");
        child.wait().expect("collected");
    }

    #[tokio::test]
    async fn the_end_is_seen_by_one_who_did_not_start_it() {
        let (directory, _, vm) = vm();
        let mut child = stand_in(&vm);
        let adopted = Home::open(directory.path()).expect("opened again");
        let adopted = adopted.of(vm.read_record().expect("a record").vm);
        let watch = tokio::spawn(async move { adopted.ended().await });
        child.kill().expect("killed");
        watch.await.expect("no panic").expect("seen");
        child.wait().expect("collected");
    }

    #[tokio::test]
    async fn a_grandchild_keeps_the_vm_alive_and_is_killed_too() {
        let (_directory, _, vm) = vm();
        let lock = vm.take_lock().expect("a lock").expect("free");
        let mut shell = Command::new("sh")
            // A shell gives what it runs in the background another standard input, unless it is told.
            .args(["-c", "exec 3<&0; sleep 600 <&3 3<&- & exit 0"])
            .stdin(Stdio::from(lock))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        shell.wait().expect("the parent ends at once");
        assert!(vm.is_alive().expect("looked"));
        vm.kill().await.expect("killed");
        assert!(!vm.is_alive().expect("looked"));
    }

    #[tokio::test]
    async fn a_process_without_a_directory_is_still_found_and_killed() {
        let (_directory, home, vm) = vm();
        let id = vm.read_record().expect("a record").vm;
        let mut child = stand_in(&vm);
        fs::remove_dir_all(vm.path()).expect("somebody removed it");
        assert_eq!(home.list().expect("listed"), [id]);
        assert!(vm.is_alive().expect("looked"));
        vm.kill().await.expect("killed");
        child.wait().expect("collected");
        assert!(home.list().expect("listed").is_empty());
    }

    #[tokio::test]
    async fn a_stranger_with_the_same_process_id_is_left_alone() {
        let (_directory, _, vm) = vm();
        let mut stranger =
            Command::new("sleep").arg("600").stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("started");
        let mut record = vm.read_record().expect("a record");
        record.process = Some(Process { boot_id: "x".into(), pid: Some(stranger.id()), start_time: Some(0) });
        vm.write_record(&record).expect("written");
        vm.kill().await.expect("nothing to kill");
        assert!(stranger.try_wait().expect("asked").is_none(), "it lives");
        stranger.kill().expect("killed");
        stranger.wait().expect("collected");
    }

    #[test]
    fn a_directory_goes_in_one_step_and_leftovers_are_swept() {
        let (_directory, home, vm) = vm();
        vm.remove().expect("removed");
        vm.remove().expect("again: nothing to do");
        assert!(home.list().expect("listed").is_empty());
        fs::create_dir(home.path().join(format!("{TRASH}x"))).expect("a leftover");
        home.sweep_trash().expect("swept");
        assert_eq!(fs::read_dir(home.path()).expect("there").count(), 0);
    }

    #[test]
    fn this_process_has_a_start_time() {
        assert!(start_time(std::process::id()).is_some());
        assert!(boot_id().expect("a boot").len() > 30);
    }
}
