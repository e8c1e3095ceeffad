//! The host's part of the daemon: owns this machine's slots and VMs.

use super::loops::{By, Loops, More, Never};
use crate::dispatch::Dispatcher;
use crate::domain::admission::Capacity;
use crate::domain::ids::{FleetId, HostId};
use crate::domain::profile::Profile;
use crate::hypervisor::Hypervisor;
use crate::images::Images;
use crate::lifecycle::{Drivers, Limits, Machine};
use crate::secrets::sealing::HostKey;
use crate::store::hosts::{self, Introduction};
use crate::store::vms::{self, Fence};
use crate::store::{Applied, StoreError};
use crate::upkeep::sweep;
use crate::wake::Wakes;
use sqlx::PgPool;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often a host looks for work although nobody woke it.
const DISPATCH_PERIOD: Duration = Duration::from_secs(2);
/// How often machines and rows are compared.
const SWEEP_PERIOD: Duration = Duration::from_secs(60);
/// How often a host says that it lives.
const BEAT_PERIOD: Duration = Duration::from_secs(5);

/// What a host is made of.
pub struct Host {
    /// Acts as the host.
    pub pool: PgPool,
    /// The fleet.
    pub fleet: FleetId,
    /// Its unique name.
    pub name: String,
    /// `vz`, `qemu` or `fake`.
    pub hypervisor_name: &'static str,
    /// Makes and destroys the VMs.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// The templates.
    pub images: Images,
    /// Opens the JIT configs that are sealed to it.
    pub key: HostKey,
    /// The chip, as profiles name it.
    pub hardware: String,
    /// What it has to give.
    pub capacity: Capacity,
    /// What is on offer.
    pub profiles: Vec<Profile>,
    /// How long things may take.
    pub limits: Limits,
    /// Where a job's owner asks for help.
    pub support_url: Option<String>,
    /// Wakes loops and drivers.
    pub wakes: Arc<Wakes>,
}

impl Host {
    /// Begins this host's session and starts its loops and drivers.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn start(
        self,
        loops: &Loops,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> Result<Arc<Machine>, StoreError> {
        let fence = self.introduce().await?;
        vms::adopt(&self.pool, fence).await?;
        let machine = Arc::new(Machine {
            pool: self.pool,
            fence,
            fleet: self.fleet,
            name: self.name,
            hypervisor: self.hypervisor,
            images: self.images,
            key: self.key,
            profiles: self.profiles,
            limits: self.limits,
            support_url: self.support_url,
            wakes: self.wakes,
            shutdown: shutdown.clone(),
        });
        let drivers = Drivers::new(Arc::clone(&machine), tasks);
        let dispatcher = Arc::new(Dispatcher::new(drivers, self.capacity, self.hardware));
        spawn_loops(loops, &dispatcher, shutdown);
        Ok(machine)
    }

    async fn introduce(&self) -> Result<Fence, StoreError> {
        let introduction = Introduction {
            id: HostId::random(),
            name: &self.name,
            public_key: self.key.public(),
            hypervisor: self.hypervisor_name,
            hardware: &self.hardware,
            os: std::env::consts::OS,
            architecture: std::env::consts::ARCH,
            slots: self.capacity.slots,
            cpus: self.capacity.cpus,
            memory: self.capacity.memory.0,
            version: env!("CARGO_PKG_VERSION"),
        };
        let (host, session) = hosts::introduce(&self.pool, &introduction).await?;
        Ok(Fence { host, session })
    }
}

fn spawn_loops(loops: &Loops, dispatcher: &Arc<Dispatcher>, shutdown: CancellationToken) {
    let machine = Arc::clone(dispatcher.drivers().machine());
    let sweeper = Arc::clone(dispatcher);
    // The first sweep gives every live vm its driver, before anything new is planned beside it.
    loops.spawn("sweep", SWEEP_PERIOD, Never, move || {
        let sweeper = Arc::clone(&sweeper);
        async move { sweep::pass(sweeper.drivers()).await.map(|_| More::No) }
    });
    let wake = By(Arc::clone(&machine.wakes), |wakes| &wakes.demand);
    let dispatcher = Arc::clone(dispatcher);
    loops.spawn("dispatch", DISPATCH_PERIOD, wake, move || {
        let dispatcher = Arc::clone(&dispatcher);
        async move {
            let report = dispatcher.pass().await?;
            Ok::<_, StoreError>(if report.contended > 0 { More::Soon } else { More::No })
        }
    });
    loops.spawn("heartbeat", BEAT_PERIOD, Never, move || {
        let (machine, shutdown) = (Arc::clone(&machine), shutdown.clone());
        async move {
            if hosts::beat(&machine.pool, machine.fence.host, machine.fence.session).await? == Applied::Stale {
                tracing::error!(host.id = %machine.fence.host, "another daemon runs as this host: this one stops; two hosts must not have one name");
                shutdown.cancel();
            }
            Ok::<_, StoreError>(More::No)
        }
    });
}
