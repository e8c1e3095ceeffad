//! The daemon's side: makes clones, starts `flyci vm` for each, and speaks to it.

use super::client::{Client, ControlError};
use super::end::Death;
use super::identity;
use super::image::{clone_size, usable};
use super::options::{Options, Spawn};
use super::protocol::Request;
use super::recipe::{FORMAT, Recipe};
use super::server::CONTROL_SOCKET;
use super::slots::LostSlots;
use super::spawn::{Fork, LOG_FILE, Launchd, SpawnError, Spawner};
use crate::domain::ids::{HostId, VmId};
use crate::domain::units::Bytes;
use crate::errors::chain;
use crate::guest::{AgentGuest, Framing, Guest, GuestOptions};
use crate::hypervisor::clone::{self, CloneError, How};
use crate::hypervisor::log::tail;
use crate::hypervisor::record::{self, Home, Record, VmDirectory};
use crate::hypervisor::{Hypervisor, HypervisorError, Presence, VmSpec, io_error, room};
use crate::images::tart::{DISK_FILE as DISK, NVRAM_FILE as NVRAM};
use crate::images::{Digest, Image};
use base64::Engine;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::time::timeout;

/// Most bytes of a Unix socket's address on macOS, less its end; Linux has four more.
const SOCKET_BYTES: usize = 103;

/// The backend.
pub struct Vz {
    pub(super) options: Options,
    pub(super) home: Home,
    pub(super) spawner: Box<dyn Spawner>,
    lost: Mutex<LostSlots>,
    host: OnceLock<HostId>,
    /// Connections are kept, so all who ask share them.
    guests: Mutex<HashMap<VmId, Arc<AgentGuest>>>,
}

impl Vz {
    /// Opens the VMs' directory, proves that clones can be made there, and removes what an earlier daemon left half
    /// removed.
    ///
    /// # Errors
    /// The data directory cannot be used: its path is too long, or its volume has no clones.
    pub fn open(options: Options) -> Result<Self, HypervisorError> {
        let at = |source| io_error("open the vms' directory in", &options.data_dir, source);
        let home = Home::open(&options.data_dir).map_err(at)?;
        home.sweep_trash().map_err(at)?;
        addressable(&home)?;
        if options.how == How::Share {
            let images = options.data_dir.join("images");
            fs::create_dir_all(&images).map_err(|source| io_error("make the directory", &images, source))?;
            clone::prove(&images, home.path()).map_err(|error| HypervisorError::Unfit(chain(&error).to_string()))?;
        }
        let program = options.program.clone();
        let spawner: Box<dyn Spawner> = match options.spawn {
            Spawn::Fork => Box::new(Fork { program }),
            Spawn::Launchd { uid, restore_session } => Box::new(Launchd { program, uid, restore_session }),
        };
        let boot_id = record::boot_id().map_err(|source| io_error("tell this boot of", Path::new("/"), source))?;
        let lost = Mutex::new(LostSlots::read(&options.data_dir, &boot_id));
        Ok(Self { options, home, spawner, lost, host: OnceLock::new(), guests: Mutex::default() })
    }

    /// Digests of the images that VMs here are clones of: these must not be removed.
    ///
    /// # Errors
    /// The VMs cannot be listed.
    pub fn images_in_use(&self) -> Result<HashSet<Digest>, HypervisorError> {
        let records = self.list_now()?.into_iter().filter_map(|vm| self.home.of(vm).read_record().ok());
        Ok(records.filter_map(|record| record.image.parse().ok()).collect())
    }

    pub(super) fn list_now(&self) -> Result<Vec<VmId>, HypervisorError> {
        self.home.list().map_err(|source| io_error("list the vms in", self.home.path(), source))
    }

    fn guests(&self) -> MutexGuard<'_, HashMap<VmId, Arc<AgentGuest>>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lost(&self) -> MutexGuard<'_, LostSlots> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the machine is made of.
    pub(super) fn recipe(&self, spec: &VmSpec, vm: &VmDirectory) -> Result<Recipe, HypervisorError> {
        let (image, bundle) = usable(&spec.image)?;
        let host = self.host.get().copied().unwrap_or(HostId(uuid::Uuid::nil()));
        let identifier = bundle.hardware_model.is_some().then(|| identity::machine_identifier(rand::random()));
        Ok(Recipe {
            format: FORMAT,
            os: image.manifest.os,
            cpus: spec.cpus.max(bundle.cpu_count_min),
            memory: spec.memory.max(Bytes(bundle.memory_size_min)),
            disk: vm.path().join(DISK),
            nvram: vm.path().join(NVRAM),
            hardware_model: bundle.hardware_model,
            machine_identifier: identifier.map(|bytes| base64::engine::general_purpose::STANDARD.encode(bytes)),
            mac_address: identity::mac_address(host, spec.slot),
            display: (spec.display.width, spec.display.height),
            suspendable: false,
            agent_port: flyci_agent::VSOCK_PORT,
        })
    }

    /// Makes disk and storage, the disk last: with it the clone is whole.
    async fn make(&self, image: &Image, vm: &VmDirectory, disk_size: u64) -> Result<(), HypervisorError> {
        for (name, size) in [(NVRAM, 0), (DISK, disk_size)] {
            let (from, to, how) = (image.path.join(name), vm.path().join(name), self.options.how);
            let made = tokio::task::spawn_blocking(move || clone::enlarged(&from, &to, how, size)).await;
            let made = made.map_err(|panicked| HypervisorError::Process(panicked.to_string()))?;
            made.map_err(|error| cannot_clone(error, image))?;
            if name == NVRAM {
                self.lay_script(vm)?;
            }
        }
        Ok(())
    }

    /// A stand-in finds out from its directory what it is to do.
    fn lay_script(&self, vm: &VmDirectory) -> Result<(), HypervisorError> {
        #[cfg(feature = "demo")]
        if let Some(stand_ins) = &self.options.stand_ins {
            stand_ins.lay(vm.path()).map_err(|source| io_error("write the stand-in's script in", vm.path(), source))?;
        }
        #[cfg(not(feature = "demo"))]
        let _ = vm;
        Ok(())
    }

    /// Turns the machine off, as long as that is quick. What hangs is killed by the caller.
    async fn stop(&self, vm: &VmDirectory) {
        let asked = async {
            let mut client = Client::connect(&vm.path().join(CONTROL_SOCKET)).await?;
            client.ask(&Request::Stop, self.options.stop_deadline).await?;
            Ok::<_, ControlError>(())
        };
        let stopped = async {
            asked.await?;
            Ok::<_, ControlError>(vm.ended().await?)
        };
        match timeout(self.options.stop_deadline, stopped).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(path = %vm.path().display(), error = %chain(&error), "the vm's process is killed");
            }
            Err(_) => {
                tracing::warn!(path = %vm.path().display(), "the vm's process does not stop in time: it is killed")
            }
        }
    }
}

#[async_trait::async_trait]
impl Hypervisor for Vz {
    fn belongs_to(&self, host: HostId) {
        // Told twice, it is the same host.
        let _ = self.host.set(host);
    }

    async fn clone_vm(&self, spec: &VmSpec) -> Result<(), HypervisorError> {
        let vm = self.home.of(spec.id);
        if vm.path().join(DISK).is_file() {
            return Ok(());
        }
        let (image, _) = usable(&spec.image)?;
        room::check(&self.home, DISK, spec.disk_free, self.options.reserve)?;
        let sizes = clone_size(&image, spec.disk_free);
        let (size, shared) = sizes.map_err(|source| io_error("find the disk of the image in", &image.path, source))?;
        let mut record = Record::new(spec.id, image.digest.to_string(), Bytes(size));
        (record.shared, record.promised) = (shared, Some(spec.disk_free));
        vm.create()
            .and_then(|()| vm.write_record(&record))
            .map_err(|source| io_error("make the vm's directory", vm.path(), source))?;
        self.make(&image, &vm, size).await
    }

    async fn boot(&self, spec: &VmSpec) -> Result<(), HypervisorError> {
        let vm = self.home.of(spec.id);
        if !vm.path().join(DISK).is_file() {
            return Err(HypervisorError::Process(format!("the vm has no clone in {}", vm.path().display())));
        }
        self.boot_until_settled(spec, &vm).await?;
        let living = self.living(spec.id) + 1;
        let mut lost = self.lost();
        if lost.started(living, self.options.slots) {
            tracing::info!("a slot of this machine that was lost is back");
            self.keep(&lost);
        }
        Ok(())
    }

    async fn presence(&self, vm: VmId) -> Presence {
        self.home.of(vm).presence(LOG_FILE)
    }

    async fn ended(&self, vm: VmId) {
        self.home.of(vm).until_ended(vm).await;
    }

    async fn last_words(&self, vm: VmId) -> Option<String> {
        let vm = self.home.of(vm);
        if !vm.exists() {
            return None;
        }
        Some(match Death::read(vm.path()) {
            Ok(Some(death)) => death.text,
            Ok(None) => format!("it was killed, or crashed; its log ends so: {}", tail(&vm.path().join(LOG_FILE))),
            Err(error) => format!("what it left cannot be read: {error}"),
        })
    }

    async fn destroy(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.guests().remove(&vm);
        let vm = self.home.of(vm);
        if vm.is_alive().unwrap_or(false) {
            self.stop(&vm).await;
        }
        vm.kill().await.map_err(|source| io_error("kill the vm in", vm.path(), source))?;
        self.spawner.forget(&vm).await.map_err(of_spawn)?;
        let path = vm.path().to_owned();
        let removed = tokio::task::spawn_blocking(move || vm.remove()).await;
        let removed = removed.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
        removed.map_err(|source| io_error("remove", &path, source))
    }

    async fn list(&self) -> Result<Vec<VmId>, HypervisorError> {
        self.list_now()
    }

    fn boots_pulled_images(&self) -> bool {
        true
    }

    fn lost_slots(&self) -> u32 {
        self.lost().count(now())
    }

    fn guest(&self, vm: VmId) -> Arc<dyn Guest> {
        let directory = self.home.of(vm);
        let new = || AgentGuest::new(directory.agent_socket(), Framing::Plain, self.guest_options(directory.path()));
        Arc::<AgentGuest>::clone(self.guests().entry(vm).or_insert_with(|| Arc::new(new())))
    }
}

impl Vz {
    fn guest_options(&self, vm: &Path) -> GuestOptions {
        #[cfg(feature = "demo")]
        if let Some(stand_ins) = &self.options.stand_ins {
            return stand_ins.guest(vm);
        }
        #[cfg(not(feature = "demo"))]
        let _ = vm;
        GuestOptions::default()
    }
}

/// Refuses a directory in which the sockets of VMs would have addresses that are too long.
fn addressable(home: &Home) -> Result<(), HypervisorError> {
    let longest = home.of(VmId(uuid::Uuid::max())).path().join(CONTROL_SOCKET);
    let length = longest.as_os_str().len();
    if length <= SOCKET_BYTES {
        return Ok(());
    }
    Err(HypervisorError::Unfit(format!(
        "the data_dir's path is too long: a vm's socket would be at {} ({length} bytes), and an address has at most \
         {SOCKET_BYTES}; choose a shorter data_dir",
        longest.display()
    )))
}

fn cannot_clone(error: CloneError, image: &Image) -> HypervisorError {
    match error {
        CloneError::Full(path) => HypervisorError::NoRoom(format!("the volume of {} is full", path.display())),
        CloneError::OtherVolume { .. } | CloneError::Unsupported(_) => HypervisorError::Unfit(error.to_string()),
        CloneError::Io { .. } => HypervisorError::Image { path: image.path.clone(), reason: chain(&error).to_string() },
    }
}

pub(super) fn of_spawn(error: SpawnError) -> HypervisorError {
    match error {
        SpawnError::NoSession(text) => HypervisorError::NoSession(text),
        other => HypervisorError::Process(chain(&other).to_string()),
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
