//! One driver per vm, from the clone to its destruction. Host.
//!
//! ```text
//! planned ─▶ cloning ─▶ cloned ─▶ booting ─▶ ready ⇄ bound ─▶ delivering ─▶ serving ─▶ stopping ─▶ gone
//!            bringup.rs                     waiting.rs        delivery.rs   serving.rs  ending.rs
//! ```
//!
//! A driver reads its vm's row, does the one step that the state calls for, writes the next state, and
//! reads again. So a restart, a lost wake and the ordinary case go the same way: a daemon that starts
//! gives each live row a driver, and every step may be done twice.
//!
//! Once a JIT config may have reached a guest, its vm ends before its runner's own exit only by a
//! `completed` of its job, by GitHub letting go of the registration, by the job's deadline, or by an
//! operator's word. A process that is gone ends its vm too: there is nothing left to protect.
//!
//! Does not: choose what a vm serves (`dispatch`), or speak to GitHub (`mint`).

mod bringup;
mod dedication;
mod delivery;
mod ending;
mod isolation;
mod serving;
mod waiting;

pub use dedication::Dedication;

use crate::domain::ids::{FleetId, VmId};
use crate::domain::profile::Profile;
use crate::domain::units::Bytes;
use crate::domain::vm::{VmEvent, VmState};
use crate::guest::GuestError;
use crate::hypervisor::{Hypervisor, HypervisorError, VmSpec};
use crate::images::Images;
use crate::points::effect;
use crate::secrets::SecretsError;
use crate::secrets::sealing::HostKey;
use crate::store::vms::{self, Fence, Vm};
use crate::store::{Applied, StoreError};
use crate::troubles::Troubles;
use crate::wake::{VmWake, Wakes};
use sqlx::PgPool;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a driver waits after an error before it looks again.
const RETRY_WAIT: Duration = Duration::from_secs(1);
/// How often a driver looks although nobody woke it.
const PERIOD: Duration = Duration::from_secs(2);

/// How long things may take. Each is a key of the configuration's `[limits]`.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the start of a vm's process to a guest that is ready.
    pub boot: Duration,
    /// A runner without a job, or a vm without a class.
    pub idle: Duration,
    /// A job, from its start by GitHub's clock, unless its profile says otherwise.
    pub job: Duration,
    /// Vms that a tenant may have at once, unless the operator set another number.
    pub vms_per_tenant: u32,
    /// Failed tries after which a job waits a growing while before the next.
    pub attempts: i32,
}

/// The host that the drivers work on.
pub struct Machine {
    /// Acts as the host.
    pub pool: PgPool,
    /// This host in this session of its daemon.
    pub fence: Fence,
    /// The fleet it belongs to.
    pub fleet: FleetId,
    /// Its name, as jobs see it.
    pub name: String,
    /// Makes and destroys the VMs.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// The templates on this host.
    pub images: Images,
    /// Opens the JIT configs that are sealed to this host.
    pub key: HostKey,
    /// What is on offer.
    pub profiles: Vec<Profile>,
    /// How long things may take.
    pub limits: Limits,
    /// Whom it serves; `None`: everybody.
    pub dedication: Option<Dedication>,
    /// Whether the first vm of an image in a new world tries what no job may reach.
    pub probe_network: bool,
    /// Where a job's owner asks for help, shown in the job's log.
    pub support_url: Option<String>,
    /// Wakes drivers and loops.
    pub wakes: Arc<Wakes>,
    /// What this host finds wrong.
    pub troubles: Arc<Troubles>,
    /// The daemon stops: drivers return, and leave their VMs as they are.
    pub shutdown: CancellationToken,
}

impl Machine {
    /// The profile of a vm, if it is still on offer.
    #[must_use]
    pub fn profile(&self, label: &str) -> Option<&Profile> {
        self.profiles.iter().find(|profile| profile.label == label)
    }

    /// True when vms of its profile are made of another image now: a blank one is of no use any more.
    fn is_outdated(&self, vm: &Vm) -> bool {
        let now = self.profile(&vm.profile).map(|profile| self.images.find(&profile.image));
        now.is_some_and(|found| found.is_none_or(|found| found.digest != vm.image))
    }

    /// What a vm is made of.
    fn spec(&self, vm: &Vm) -> Result<VmSpec, DriverError> {
        let image = self.images.directory(&vm.image).ok_or_else(|| DriverError::ImageGone(vm.image.clone()))?;
        Ok(VmSpec {
            id: vm.id,
            slot: vm.slot,
            image,
            cpus: vm.cpus,
            memory: Bytes(vm.memory),
            disk_free: self.profile(&vm.profile).map_or(Bytes(0), |profile| profile.disk_free),
            display: self.profile(&vm.profile).map(|profile| profile.display).unwrap_or_default(),
        })
    }

    /// Moves a vm by an event from the state it was read in.
    async fn advance(&self, vm: &Vm, event: VmEvent) -> Result<Applied, DriverError> {
        Ok(vms::advance(&self.pool, self.fence, vm.id, vm.state, event).await?)
    }
}

/// Why a step was not done. The driver looks again after a while.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The database is away.
    #[error("the vm's row could not be read or written")]
    Store(#[from] StoreError),
    /// The machine did not do it.
    #[error("the hypervisor did not do what was asked")]
    Hypervisor(#[from] HypervisorError),
    /// The guest did not do it.
    #[error("the guest did not do what was asked")]
    Guest(#[from] GuestError),
    /// The guest reaches too much.
    #[error("the guest is not isolated")]
    NotIsolated(#[from] isolation::BreachError),
    /// A JIT config does not open.
    #[error("the runner's JIT config cannot be opened")]
    Secrets(#[from] SecretsError),
    /// The image was removed.
    #[error("image {0} is not on this host any more")]
    ImageGone(String),
}

impl From<sqlx::Error> for DriverError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// What a driver does after a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// Reads the row again.
    Again,
    /// Nothing: the vm is gone, or not for this version to touch.
    Over,
}

/// The drivers of this host: at most one per vm.
pub struct Drivers {
    machine: Arc<Machine>,
    running: Arc<Mutex<HashSet<VmId>>>,
    tasks: TaskTracker,
}

impl Drivers {
    /// Drivers whose tasks `tasks` owns.
    #[must_use]
    pub fn new(machine: Arc<Machine>, tasks: TaskTracker) -> Self {
        Self { machine, running: Arc::default(), tasks }
    }

    /// The host that they work on.
    #[must_use]
    pub const fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// Gives the vm a driver, unless it has one.
    pub fn ensure(&self, id: VmId) {
        if self.machine.shutdown.is_cancelled() || !lock(&self.running).insert(id) {
            return;
        }
        let seat = Seat { id, running: Arc::clone(&self.running) };
        let machine = Arc::clone(&self.machine);
        self.tasks.spawn(async move {
            let _seat = seat;
            drive(&machine, id).await;
        });
    }

    /// Gives every live vm of this host a driver: at start, and for those whose driver died.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn adopt(&self) -> Result<usize, StoreError> {
        let live = vms::live(&self.machine.pool, self.machine.fence.host).await?;
        for vm in &live {
            self.ensure(vm.id);
        }
        Ok(live.len())
    }
}

/// A driver's place in the list: given back also when the driver panics, so that another can follow.
struct Seat {
    id: VmId,
    running: Arc<Mutex<HashSet<VmId>>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.id);
    }
}

fn lock(running: &Mutex<HashSet<VmId>>) -> std::sync::MutexGuard<'_, HashSet<VmId>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Drives a vm until it is gone or the daemon stops.
async fn drive(machine: &Arc<Machine>, id: VmId) {
    let wake = machine.wakes.subscribe(id);
    while !machine.shutdown.is_cancelled() {
        match step(machine, id, &wake).await {
            Ok(Next::Again) => {}
            Ok(Next::Over) => return,
            Err(error) => {
                tracing::warn!(vm.id = %id, error = %crate::errors::chain(&error), "the vm's step failed; it is tried again");
                tokio::select! {
                    () = wake.wait(RETRY_WAIT) => {}
                    () = machine.shutdown.cancelled() => {}
                }
            }
        }
    }
}

/// Does the one step that the vm's state calls for.
async fn step(machine: &Arc<Machine>, id: VmId, wake: &VmWake) -> Result<Next, DriverError> {
    let Some(vm) = vms::get(&machine.pool, id).await? else { return Ok(Next::Over) };
    match vm.state {
        VmState::Planned | VmState::Cloning | VmState::Cloned | VmState::Booting => {
            bringup::step(machine, &vm, wake).await
        }
        VmState::Ready => waiting::ready(machine, &vm, wake).await,
        VmState::Bound => waiting::bound(machine, &vm, wake).await,
        VmState::Delivering => delivery::step(machine, &vm, wake).await,
        VmState::Serving => serving::step(machine, &vm, wake).await,
        VmState::Unreachable => {
            if effect!("lifecycle.return", machine.advance(&vm, VmEvent::Return).await)? == Applied::Yes {
                tracing::info!(vm.id = %id, "this host was silent; its vm serves on, and is watched again");
                machine.wakes.demand.notify_one();
            }
            Ok(Next::Again)
        }
        VmState::Abandoned => ending::stop(machine, &vm, crate::domain::reason::VmEnd::Abandoned).await,
        VmState::Stopping(_) => ending::destroy(machine, &vm).await,
        VmState::Gone(_) | VmState::Unknown => Ok(Next::Over),
    }
}
