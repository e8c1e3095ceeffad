//! A home for VMs whose processes are real, and whatever else the stories share. All of it ends with the story.

use flyci::domain::ids::VmId;
use flyci::domain::profile::Display;
use flyci::domain::units::Bytes;
use flyci::hypervisor::clone::How;
use flyci::hypervisor::vz::options::StandIns;
use flyci::hypervisor::vz::stand_in::{EVENT_FILE, Happening};
use flyci::hypervisor::vz::{Options, Spawn, Vz};
use flyci::hypervisor::{Hypervisor, Presence, VmSpec};
use flyci::images::{Architecture, FORMAT, Image, ImageFile, Kind, MANIFEST_FILE, Manifest, Os};
use sha2::{Digest, Sha256};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

/// How long anything here may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long a stop may take in these stories before the process is killed.
pub const STOP: Duration = Duration::from_millis(300);

/// How long a start may take in stories where one hangs.
pub const START: Duration = Duration::from_secs(20);

/// Pause before something is looked at again.
const AGAIN: Duration = Duration::from_millis(20);

/// A machine with room for two VMs.
pub struct Host {
    pub directory: TempDir,
    pub vz: Arc<Vz>,
    pub stand_ins: Arc<StandIns>,
    pub image: PathBuf,
}

impl Host {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// In `/tmp`, for a socket's address must be short.
    pub fn with(change: impl FnOnce(&mut Options)) -> Self {
        Self::on(Path::new("/tmp"), change)
    }

    /// On a volume.
    pub fn on(volume: &Path, change: impl FnOnce(&mut Options)) -> Self {
        let directory = tempfile::Builder::new().prefix("vz-").tempdir_in(volume).expect("a directory");
        let image = image(&directory.path().join("image"));
        runner(&directory.path().join("runner"));
        let stand_ins = Arc::new(StandIns::new(&built("flyci-agent"), &directory.path().join("runner")));
        let mut options = options(directory.path(), &stand_ins);
        change(&mut options);
        let vz = Arc::new(Vz::open(options).expect("a backend"));
        Self { directory, vz, stand_ins, image }
    }

    /// What the backend of a later daemon on this machine is.
    pub fn next_daemon(&self) -> Vz {
        Vz::open(options(self.directory.path(), &self.stand_ins)).expect("a backend")
    }

    pub fn spec(&self, slot: u16) -> VmSpec {
        spec(&self.image, slot)
    }

    pub fn path(&self, vm: VmId) -> PathBuf {
        self.directory.path().join("vms").join(vm.to_string())
    }

    /// A VM whose agent answers.
    pub async fn booted(&self, slot: u16) -> VmSpec {
        let spec = self.spec(slot);
        self.vz.clone_vm(&spec).await.expect("cloned");
        self.vz.boot(&spec).await.expect("booted");
        ready(&self.vz, spec.id).await;
        spec
    }

    /// Lets something happen to a VM that runs.
    pub fn happens(&self, vm: VmId, what: Happening) {
        let event = self.path(vm).join(EVENT_FILE);
        let draft = event.with_added_extension("draft");
        fs::write(&draft, serde_json::to_vec(&what).expect("JSON")).expect("written");
        fs::rename(draft, event).expect("renamed");
    }

    /// Waits until the VM's process has ended, and answers why.
    pub async fn end(&self, vm: VmId) -> String {
        timeout(PATIENCE, self.vz.ended(vm)).await.expect("it ends");
        let mut words = String::new();
        // Who collects the process writes what only the system can tell.
        eventually("it left word", async || {
            words = self.vz.last_words(vm).await.unwrap_or_default();
            !words.contains("its log ends so")
        })
        .await;
        words
    }

    /// The end of a story: the VM goes, and nothing of it is left.
    pub async fn is_gone(&self, vm: VmId) {
        timeout(PATIENCE, self.vz.destroy(vm)).await.expect("in time").expect("destroyed");
        self.vz.destroy(vm).await.expect("again: nothing to do");
        assert_eq!(self.vz.presence(vm).await, Presence::Absent);
        assert!(!self.path(vm).exists());
        assert_eq!(processes_of(&vm.to_string()), Vec::<String>::new());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Their arguments name this new directory: they are ours.
        for pid in pids_of(&self.directory.path().display().to_string()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

pub fn options(data_dir: &Path, stand_ins: &Arc<StandIns>) -> Options {
    let mut options = Options::new(data_dir, env!("CARGO_BIN_EXE_flyci").into(), Spawn::Fork);
    // The file system of these tests may have no clones.
    options.how = How::Copy;
    options.reserve = Bytes(0);
    options.start_deadline = START;
    options.stop_deadline = STOP;
    options.slot_pauses = vec![Duration::ZERO; 2];
    options.stand_ins = Some(Arc::clone(stand_ins));
    options
}

pub fn spec(image: &Path, slot: u16) -> VmSpec {
    VmSpec {
        id: VmId::random(),
        slot,
        image: image.to_owned(),
        cpus: 1,
        memory: Bytes(256 << 20),
        disk_free: Bytes(1 << 20),
        display: Display::default(),
    }
}

/// Waits until a VM's agent answers.
pub async fn ready(vz: &Vz, vm: VmId) {
    timeout(PATIENCE, vz.guest(vm).ready()).await.expect("in time").expect("the agent answers");
}

/// An image of kind `vz`: a bundle as Tart makes them, with a disk that nobody boots.
pub fn image(directory: &Path) -> PathBuf {
    fs::create_dir(directory).expect("a directory");
    let contents: [(&str, &[u8]); 3] =
        [("config.json", CONFIG.as_bytes()), ("disk.img", &[7; 1 << 16]), ("nvram.bin", b"storage")];
    let file = |(name, content): (&str, &[u8])| {
        fs::write(directory.join(name), content).expect("written");
        ImageFile {
            name: name.to_owned(),
            size: content.len() as u64,
            sha256: hex::encode(Sha256::digest(content)),
            pieces: Vec::new(),
        }
    };
    let manifest = Manifest {
        format: FORMAT,
        name: "macos-none".to_owned(),
        os: Os::Macos,
        architecture: Architecture::of_this_machine().expect("a machine with guests"),
        kind: Kind::Vz,
        disk_size: 1 << 16,
        command_line: String::new(),
        agent_version: "0.1.0".to_owned(),
        runner_version: None,
        minimum_macos: None,
        registry: None,
        created: "2026-01-01T00:00:00Z".to_owned(),
        files: contents.map(file).to_vec(),
    };
    fs::write(directory.join(MANIFEST_FILE), serde_json::to_vec(&manifest).expect("JSON")).expect("written");
    Image::read(directory).expect("an image").path
}

/// A program that cargo built beside this test.
pub fn built(name: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_flyci")).with_file_name(name);
    assert!(program.is_file(), "{} is missing: cargo build --workspace --bins makes it", program.display());
    program
}

/// A runner's directory: the small runner that speaks to the simulated GitHub.
fn runner(directory: &Path) {
    fs::create_dir(directory).expect("a directory");
    std::os::unix::fs::symlink(built("fake-runner"), directory.join("fake-runner")).expect("a link");
    let run = directory.join("run.sh");
    fs::write(&run, include_str!("../../../fake-github/runner/run.sh")).expect("written");
    fs::set_permissions(run, Permissions::from_mode(0o755)).expect("its mode");
}

/// The ids of processes whose arguments hold a text, but this one's.
pub fn pids_of(text: &str) -> Vec<i32> {
    commands(text).into_iter().map(|(pid, _)| pid).collect()
}

/// The arguments of processes that hold a text.
pub fn processes_of(text: &str) -> Vec<String> {
    commands(text).into_iter().map(|(_, line)| line).collect()
}

fn commands(text: &str) -> Vec<(i32, String)> {
    let entries = fs::read_dir("/proc").expect("processes").flatten();
    let all = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
    });
    let own = std::process::id().cast_signed();
    all.filter(|(pid, line)| *pid != own && line.contains(text)).collect()
}

/// Waits until something holds.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(AGAIN).await;
    }
}

/// `config.json` of a macOS guest of Tart's, which boots on macOS 14.2 and later.
const CONFIG: &str = r#"{"version": 1, "os": "darwin", "arch": "arm64", "cpuCountMin": 1, "cpuCount": 1, "memorySizeMin": 1,
    "memorySize": 1, "macAddress": "7e:a3:5c:11:22:33", "diskFormat": "raw", "hardwareModel":
    "YnBsaXN0MDDTAQIDBAUJXxAZRGF0YVJlcHJlc2VudGF0aW9uVmVyc2lvbl8QEk1pbmltdW1TdXBwb3J0ZWRPU18QD1BsYXRmb3JtVmVyc2lvbhABowYHCBAOEAIQABACCA8rQFJUWFpcXgAAAAAAAAEBAAAAAAAAAAoAAAAAAAAAAAAAAAAAAABg"}"#;
