//! Real VMs on Linux: one `qemu-system-…` process per VM, in a session of its own.
//!
//! A clone is an overlay on the image's disk, in `<data_dir>/vms/<vm id>/` ([`record`]), in a volume whose key
//! only the VM's process has ([`luks`]). The guest channel is a virtio-serial port behind a Unix socket there.
//! The process lives in a network namespace of its own ([`network`]), without capabilities and under QEMU's
//! system-call filter; it has the daemon's user id, so files of that user are not protected from a process that escapes.

mod accel;
mod command;
mod control;
mod disk;
mod key_pipe;
mod luks;
mod network;

pub use command::Accelerator;
pub use network::NetworkError;

use super::log::tail;
use super::process::ToolError;
use super::record::{self, Home, Process, Record, VmDirectory};
use super::{Hypervisor, HypervisorError, Presence, VmSpec, io_error, remove_if_there, room};
use crate::domain::ids::VmId;
use crate::domain::units::Bytes;
use crate::errors::chain;
use crate::guest::{AgentGuest, Framing, Guest, GuestOptions};
use crate::images::{Architecture, DISK, Digest, INITRD, Image, ImageError, KERNEL, Kind};
use crate::troubles::Troubles;
use command::{Machine, Uplink};
use key_pipe::KeyPipe;
use network::Isolation;
use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};

/// Free space that the host keeps for itself (its database is on the same disk), unless told else.
pub const DEFAULT_RESERVE: Bytes = Bytes(2_000_000_000);

/// Where the programs around a VM are found.
const SAFE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long a process may take to be up.
const PROCESS_UP: Duration = Duration::from_secs(30);

/// What the VM's process says, in its directory.
const LOG_FILE: &str = "qemu.log";

/// The socket of the control protocol, in the VM's directory.
const CONTROL_SOCKET: &str = "qmp.sock";

/// The pipe for the key of the VM's disk, in the VM's directory.
const KEY_PIPE: &str = "disk.key";

/// The key of VMs that run without the processor's help.
const SOFTWARE: &str = "qemu:software";

/// How guests may use the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Network {
    /// The internet, the allowed ports of the host's loopback, and nothing else.
    #[default]
    Isolated,
    /// Nothing.
    None,
}

/// What the backend is told: `[host.qemu]`, `[runner] directory` and the data directory.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where VMs, images and runner disks are.
    pub data_dir: PathBuf,
    /// How instructions are run; none: KVM if it boots a kernel here, else TCG.
    pub accelerator: Option<Accelerator>,
    /// The program `qemu-system-…`; none: found by the image's architecture.
    pub binary: Option<PathBuf>,
    /// How guests may use the network.
    pub network: Network,
    /// TCP ports of the host's loopback that guests reach as ports of 10.0.2.2.
    pub allow_host_ports: Vec<u16>,
    /// An unpacked runner that is given to guests as a read-only disk.
    pub runner_directory: Option<PathBuf>,
    /// Free space that the host keeps for itself.
    pub reserve: Bytes,
    /// Takes what is wrong with how VMs run here.
    pub troubles: Arc<Troubles>,
}

impl Options {
    /// The defaults, in this data directory.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            accelerator: None,
            binary: None,
            network: Network::default(),
            allow_host_ports: Vec::new(),
            runner_directory: None,
            reserve: DEFAULT_RESERVE,
            troubles: Arc::default(),
        }
    }
}

/// The QEMU backend.
pub struct Qemu {
    options: Options,
    home: Home,
    accelerator: OnceCell<Accelerator>,
    isolation: OnceCell<Isolation>,
    /// A guest's port takes one connection at a time, so all who ask share it.
    guests: Mutex<HashMap<VmId, Arc<AgentGuest>>>,
}

impl Qemu {
    /// Opens the VMs' directory, and removes what an earlier daemon left half removed.
    ///
    /// # Errors
    /// The data directory cannot be used, or KVM is asked for and not there.
    pub fn open(options: Options) -> Result<Self, HypervisorError> {
        if options.accelerator == Some(Accelerator::Kvm) {
            accel::demand_kvm(Path::new(accel::KVM))?;
        }
        let at = |source| io_error("open the vms' directory in", &options.data_dir, source);
        let home = Home::open(&options.data_dir).map_err(at)?;
        home.sweep_trash().map_err(at)?;
        if options.accelerator.is_none() && !accel::is_there(Path::new(accel::KVM)) {
            options.troubles.set(SOFTWARE, Some(accel::in_software(Path::new(accel::KVM))));
        }
        let backend =
            Self { options, home, accelerator: OnceCell::new(), isolation: OnceCell::new(), guests: Mutex::default() };
        backend.sweep_runner_disks();
        Ok(backend)
    }

    /// Digests of the images that VMs here are clones of: these must not be removed.
    ///
    /// # Errors
    /// The VMs cannot be listed.
    pub fn images_in_use(&self) -> Result<HashSet<Digest>, HypervisorError> {
        let vms = self.home.list().map_err(|source| io_error("list the vms in", self.home.path(), source))?;
        let records = vms.into_iter().filter_map(|vm| self.home.of(vm).read_record().ok());
        Ok(records.filter_map(|record| record.image.parse().ok()).collect())
    }

    /// What keeps this machine from running VMs, for `doctor` and `status`; empty when all is well.
    pub async fn problems(&self) -> Vec<String> {
        let mut found = Vec::new();
        let program = Architecture::of_this_machine()
            .ok_or_else(|| ToolError::Missing("qemu-system for this machine's architecture".to_owned()))
            .and_then(|architecture| accel::program(self.options.binary.as_deref(), architecture));
        for fault in [program.err(), super::process::find("qemu-img").err(), super::process::find("setsid").err()] {
            found.extend(fault.map(|fault| fault.to_string()));
        }
        if self.options.network == Network::Isolated
            && let Err(error) = self.isolation().await
        {
            found.push(chain(&error).to_string());
        }
        found
    }

    fn guests(&self) -> MutexGuard<'_, HashMap<VmId, Arc<AgentGuest>>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn isolation(&self) -> Result<&Isolation, NetworkError> {
        self.isolation.get_or_try_init(|| Isolation::prepare(&self.options.allow_host_ports)).await
    }

    async fn accelerator(&self, binary: &Path, image: &Image) -> Accelerator {
        let detect = async || match self.options.accelerator {
            Some(told) => told,
            None => {
                let found = accel::detect(binary, image, &self.options.data_dir).await;
                let trouble = (found == Accelerator::Tcg).then(|| accel::in_software(Path::new(accel::KVM)));
                self.options.troubles.set(SOFTWARE, trouble);
                found
            }
        };
        *self.accelerator.get_or_init(detect).await
    }

    /// Old runner disks go when no VM that might use them lives.
    fn sweep_runner_disks(&self) {
        if self.home.list().is_ok_and(|vms| vms.is_empty())
            && let Err(error) = disk::sweep_runner_disks(&self.options.data_dir, None)
        {
            tracing::warn!(%error, "old runner disks stay");
        }
    }

    /// The words that start the VM's process.
    async fn words(&self, spec: &VmSpec, image: &Image, vm: &VmDirectory) -> Result<Vec<String>, HypervisorError> {
        let binary =
            accel::program(self.options.binary.as_deref(), image.manifest.architecture).map_err(disk::tool_failed)?;
        let runner_disk = match &self.options.runner_directory {
            Some(directory) => Some(disk::runner_disk(directory, &self.options.data_dir).await?),
            None => None,
        };
        let network = |error: NetworkError| HypervisorError::Process(chain(&error).to_string());
        let (mut words, uplink) = match self.options.network {
            Network::None => (Vec::new(), Uplink::Closed),
            Network::Isolated => {
                let isolation = self.isolation().await.map_err(network)?;
                (isolation.entrance().map_err(network)?, Uplink::Open { dns: network::RESOLVER })
            }
        };
        let machine = Machine {
            architecture: image.manifest.architecture,
            accelerator: self.accelerator(&binary, image).await,
            cpus: spec.cpus,
            memory_mib: spec.memory.mebibytes(),
            id: spec.id.0,
            slot: spec.slot,
            kernel: image.path.join(KERNEL),
            initrd: image.path.join(INITRD),
            disk: vm.path().join(disk::VOLUME),
            key: vm.path().join(KEY_PIPE),
            runner_disk,
            command_line: image.manifest.command_line.clone(),
            uplink,
            control: vm.path().join(CONTROL_SOCKET),
            agent: vm.agent_socket(),
        };
        words.push(binary.display().to_string());
        words.extend(machine.arguments());
        Ok(words)
    }
}

#[async_trait::async_trait]
impl Hypervisor for Qemu {
    async fn clone_vm(&self, spec: &VmSpec) -> Result<(), HypervisorError> {
        let vm = self.home.of(spec.id);
        if vm.path().join(DISK).is_file() {
            return Ok(());
        }
        let image = usable(&spec.image)?;
        let size = disk::clone_size(&image, spec.disk_free);
        room::check(&self.home, disk::VOLUME, size, self.options.reserve)?;
        let record = Record::new(spec.id, image.digest.to_string(), size);
        vm.create()
            .and_then(|()| vm.write_record(&record))
            .map_err(|source| io_error("make the vm's directory", vm.path(), source))?;
        disk::clone(&image, &vm, size).await
    }

    async fn boot(&self, spec: &VmSpec) -> Result<(), HypervisorError> {
        let vm = self.home.of(spec.id);
        let image = usable(&spec.image)?;
        if !vm.path().join(DISK).is_file() {
            return Err(HypervisorError::Process(format!("the vm has no clone in {}", vm.path().display())));
        }
        let words = self.words(spec, &image, &vm).await?;
        let at = |source| io_error("start the vm in", vm.path(), source);
        let Some(lock) = vm.take_lock().map_err(at)? else { return Ok(()) };
        let key = disk::encrypt(&vm, disk::clone_size(&image, spec.disk_free)).await?;
        let pipe = KeyPipe::make(vm.path().join(KEY_PIPE)).map_err(at)?;
        let mut child = start(&vm, &words, lock).map_err(at)?;
        let socket = vm.path().join(CONTROL_SOCKET);
        let up = timeout_at(Instant::now() + PROCESS_UP, async {
            tokio::select! {
                status = child.wait() => Err(format!("it ended at once ({})", shown(status))),
                runs = async {
                    pipe.hand_over(&key).await?;
                    control::running(&socket).await
                } => runs.map_err(|error| error.to_string()),
            }
        });
        match up.await.unwrap_or_else(|_| Err(format!("it was not up within {} s", PROCESS_UP.as_secs()))) {
            Ok(()) => {
                tokio::spawn(collect(spec.id, child));
                Ok(())
            }
            Err(reason) => {
                let log = tail(&vm.path().join(LOG_FILE));
                vm.kill().await.map_err(at)?;
                Err(HypervisorError::Process(format!("{reason}: {log}")))
            }
        }
    }

    async fn presence(&self, vm: VmId) -> Presence {
        self.home.of(vm).presence(LOG_FILE)
    }

    async fn ended(&self, vm: VmId) {
        self.home.of(vm).until_ended(vm).await;
    }

    async fn last_words(&self, vm: VmId) -> Option<String> {
        let vm = self.home.of(vm);
        vm.exists().then(|| tail(&vm.path().join(LOG_FILE)))
    }

    async fn destroy(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.guests().remove(&vm);
        let vm = self.home.of(vm);
        vm.kill().await.map_err(|source| io_error("kill the vm in", vm.path(), source))?;
        let path = vm.path().to_owned();
        let removed = tokio::task::spawn_blocking(move || vm.remove()).await;
        let removed = removed.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
        removed.map_err(|source| io_error("remove", &path, source))
    }

    async fn list(&self) -> Result<Vec<VmId>, HypervisorError> {
        self.home.list().map_err(|source| io_error("list the vms in", self.home.path(), source))
    }

    fn guest(&self, vm: VmId) -> Arc<dyn Guest> {
        let new = || AgentGuest::new(self.home.of(vm).agent_socket(), Framing::Resync, GuestOptions::default());
        Arc::<AgentGuest>::clone(self.guests().entry(vm).or_insert_with(|| Arc::new(new())))
    }
}

/// The image in a directory, if this backend boots it on this machine.
fn usable(path: &Path) -> Result<Image, HypervisorError> {
    let unusable = |reason: String| HypervisorError::Image { path: path.to_owned(), reason };
    let image = Image::read(path).map_err(|error| match error {
        ImageError::Broken { reason, .. } => unusable(reason),
        other => unusable(chain(&other).to_string()),
    })?;
    if image.manifest.kind != Kind::QemuDirect {
        return Err(unusable("it is for another hypervisor: QEMU needs one of kind qemu-direct".to_owned()));
    }
    if Some(image.manifest.architecture) != Architecture::of_this_machine() {
        return Err(unusable(format!("it is for {} machines", image.manifest.architecture.name())));
    }
    Ok(image)
}

/// Starts the VM's process in a session of its own, with the lock as its standard input.
fn start(vm: &VmDirectory, words: &[String], lock: File) -> io::Result<Child> {
    for socket in [vm.path().join(CONTROL_SOCKET), vm.agent_socket()] {
        remove_if_there(&socket)?;
    }
    let mut record = vm.read_record()?;
    let boot_id = record::boot_id()?;
    record.process = Some(Process { boot_id: boot_id.clone(), pid: None, start_time: None });
    vm.write_record(&record)?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(vm.path().join(LOG_FILE))?;
    // A process of the daemon's group would get its signals; setsid(1) becomes the program itself.
    let mut command = Command::new("setsid");
    command.env_clear().env("PATH", SAFE_PATH).env("LC_ALL", "C.UTF-8").current_dir(vm.path());
    command.args(words).stdin(Stdio::from(lock)).stdout(Stdio::null()).stderr(Stdio::from(log));
    let child = command.spawn()?;
    let start_time = child.id().and_then(record::start_time);
    record.process = Some(Process { boot_id, pid: child.id(), start_time });
    vm.write_record(&record)?;
    Ok(child)
}

/// Takes the end of a process that this daemon started, so that no zombie stays.
async fn collect(vm: VmId, mut child: Child) {
    let status = shown(child.wait().await);
    tracing::debug!(vm.id = %vm, status, "the vm's process ended");
}

fn shown(status: io::Result<std::process::ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_missing_is_told_before_a_vm_is_tried() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut options = Options::new(directory.path());
        options.binary = Some("/nowhere/qemu".into());
        options.network = Network::None;
        let told = Qemu::open(options).expect("opened").problems().await;
        assert!(told.iter().any(|problem| problem.contains("/nowhere/qemu")), "{told:?}");
    }

    #[tokio::test]
    async fn a_vm_that_never_was_is_destroyed_without_complaint() {
        let directory = tempfile::tempdir().expect("a directory");
        let qemu = Qemu::open(Options::new(directory.path())).expect("opened");
        let vm = VmId::random();
        assert_eq!(qemu.presence(vm).await, Presence::Absent);
        qemu.destroy(vm).await.expect("nothing to do");
        qemu.ended(vm).await;
    }
}
