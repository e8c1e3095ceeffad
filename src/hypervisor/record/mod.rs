//! The directory of one VM: what is in it, who lives in it, and how both end. Shared by the backends whose VMs are
//! processes.
//!
//! `vm.lock` is the standard input of the VM's process and locked through that open file: the lock
//! is held exactly as long as a process of the VM lives, whoever started it and whatever became of
//! its parents. How the system tells which processes are the VM's, so that a process id that was
//! given to another program is never killed, is in [`system`].

#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod system;
#[cfg(not(target_os = "linux"))]
#[path = "macos.rs"]
mod system;

pub(super) use system::{boot_id, start_time};

use super::Presence;
use super::log::bound_log;
use crate::domain::ids::VmId;
use crate::domain::units::Bytes;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use system::Handle;
use tokio::time::{Instant, sleep};

/// The record's version that this flyci writes.
const VERSION: u32 = 1;

/// Pause between looks at a lock whose holder cannot be waited for.
const LOOK: Duration = Duration::from_millis(20);

/// Pause before a process that could not be watched is watched again.
const WATCH_AGAIN: Duration = Duration::from_secs(1);

/// How long a killed process may take to be gone: the kernel frees its memory first.
const DEATH: Duration = Duration::from_secs(20);

/// The lock's name.
pub(super) const LOCK_FILE: &str = "vm.lock";

/// The name of the socket of a VM's agent.
pub(super) const AGENT_SOCKET: &str = "agent.sock";

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
    /// Bytes of the disk that it shared with its image when it was made, and that no write of its own takes.
    #[serde(default)]
    pub(super) shared: Bytes,
    /// Bytes by which the disk may grow, where that is less than its size.
    #[serde(default)]
    pub(super) promised: Option<Bytes>,
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
    /// When it was started: in clock ticks of that boot (Linux), in seconds since 1970 (macOS).
    pub(super) start_time: Option<u64>,
}

impl Record {
    pub(super) fn new(vm: VmId, image: String, disk_size: Bytes) -> Self {
        Self { version: VERSION, vm, image, disk_size, shared: Bytes(0), promised: None, process: None }
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
        for lock in system::locks_below(&self.path) {
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

    pub(super) fn agent_socket(&self) -> PathBuf {
        self.path.join(AGENT_SOCKET)
    }

    pub(super) fn lock_file(&self) -> PathBuf {
        self.path.join(LOCK_FILE)
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
        Ok(system::lock(&file)?.then_some(file))
    }

    /// Whether a process of this VM lives. Looks at the lock without taking it.
    pub(super) fn is_alive(&self) -> io::Result<bool> {
        let file = match OpenOptions::new().read(true).write(true).open(self.lock_file()) {
            Ok(file) => file,
            // Without a file there may still be a process, if somebody removed its directory.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(!self.handles().is_empty()),
            Err(error) => return Err(error),
        };
        system::is_locked(&file)
    }

    /// What there is of this VM. `log` is the name of what its process says, which is bounded while it lives.
    pub(super) fn presence(&self, log: &str) -> Presence {
        match self.is_alive() {
            Ok(true) => {
                bound_log(&self.path.join(log));
                Presence::Running
            }
            Ok(false) if self.exists() => Presence::Dormant,
            Ok(false) => Presence::Absent,
            Err(error) => {
                tracing::error!(path = %self.path.display(), %error, "cannot look whether a vm lives: it counts as running");
                Presence::Running
            }
        }
    }

    /// Resolves when no process of this VM lives, however often it cannot be watched.
    pub(super) async fn until_ended(&self, vm: VmId) {
        while let Err(error) = self.ended().await {
            tracing::error!(vm.id = %vm, %error, "cannot watch the vm's process; trying again");
            sleep(WATCH_AGAIN).await;
        }
    }

    /// Resolves when no process of this VM lives.
    pub(super) async fn ended(&self) -> io::Result<()> {
        while self.is_alive()? {
            match self.handles().into_iter().next() {
                Some(process) => process.exit().await?,
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
            first.kill()?;
        }
        while self.is_alive()? {
            for process in self.handles() {
                process.kill()?;
            }
            if Instant::now() > deadline {
                let text = format!("a process of the vm in {} lives although it was killed", self.path.display());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Handles of the VM's processes.
    fn handles(&self) -> Vec<Handle> {
        system::processes_under(&self.lock_file())
    }

    /// The process that was started for this VM, if it is still that one.
    fn first_process(&self) -> Option<Handle> {
        let recorded = self.read_record().ok()?.process?;
        let same_boot = recorded.boot_id == boot_id().ok()?;
        same_boot.then(|| Handle::of(recorded.pid?, recorded.start_time?)).flatten()
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

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Takes a VM's lock through a file that is open already; whether it is ours now.
pub(super) fn lock_through(file: &File) -> io::Result<bool> {
    system::lock(file)
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
