//! The host's part of the daemon: owns this machine's slots and VMs.

use super::database::Databases;
use super::loops::{By, Loops, More, Never};
use super::{AppError, Overrides, Shared, runner};
use crate::config::{self, Config, HypervisorKind};
use crate::dispatch::Dispatcher;
use crate::domain::admission::Capacity;
use crate::domain::ids::{FleetId, HostId};
use crate::domain::profile::Profile;
use crate::domain::units::Bytes;
use crate::hypervisor::Hypervisor;
use crate::hypervisor::fake::{FakeHypervisor, FakeOptions, TimedRunner};
#[cfg(target_os = "linux")]
use crate::hypervisor::qemu;
#[cfg(target_os = "macos")]
use crate::hypervisor::{HypervisorError, vz};
use crate::images::{ImageStore, Images, Keep};
use crate::lifecycle::{Dedication, Drivers, Limits, Machine};
use crate::secrets::sealing::HostKey;
use crate::store::hosts::{self, Introduction};
use crate::store::vms::{self, Fence};
use crate::store::{Applied, StoreError, joins};
use crate::troubles::Troubles;
use crate::upkeep::follow::{Follower, Pauses};
use crate::upkeep::{images, sweep};
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
/// How often a host says what it can boot.
const OFFER_PERIOD: Duration = Duration::from_secs(10);
/// How often a host looks which images it is to have.
const FOLLOW_PERIOD: Duration = Duration::from_secs(10);
/// How often unused images are looked for.
const PRUNE_PERIOD: Duration = Duration::from_secs(3_600);
/// How often a host looks whether it is in another world.
const WORLD_PERIOD: Duration = Duration::from_secs(60);
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
    /// How they come, and which of them stay although nothing uses them.
    pub images_section: config::Images,
    /// Opens the JIT configs that are sealed to it.
    pub key: HostKey,
    /// The chip, as profiles name it.
    pub hardware: String,
    /// What the machine has.
    pub machine: config::Machine,
    /// What it has to give.
    pub capacity: Capacity,
    /// What is on offer.
    pub profiles: Vec<Profile>,
    /// How long things may take.
    pub limits: Limits,
    /// The oldest version of GitHub's runner that guests get, if it is known.
    pub runner_version: Option<String>,
    /// Whom it serves; `None`: everybody.
    pub dedication: Option<Dedication>,
    /// Whether each image is booted once before work.
    pub self_test: bool,
    /// Whether that vm tries what no job may reach.
    pub probe_network: bool,
    /// Where a job's owner asks for help.
    pub support_url: Option<String>,
    /// Wakes loops and drivers.
    pub wakes: Arc<Wakes>,
    /// What it finds wrong.
    pub troubles: Arc<Troubles>,
}

/// Puts a host together.
pub fn build(
    config: &Config,
    databases: &Databases,
    fleet: FleetId,
    shared: Shared<'_>,
    overrides: Overrides,
) -> Result<Host, AppError> {
    let machine = crate::machine::detect();
    let section = &config.host;
    let (hypervisor, images) = match overrides.hypervisor {
        Some(hypervisor) => (hypervisor, Images::Any),
        None => hypervisor(config, shared.troubles)?,
    };
    let runner_version = runner::version(config, &images);
    Ok(Host {
        pool: databases.host().clone(),
        fleet,
        name: section.name.clone(),
        hypervisor_name: section.hypervisor.as_str(),
        hypervisor,
        images,
        images_section: config.images.clone(),
        key: HostKey::open_or_create(&config.host_key_file())?,
        hardware: section.hardware.clone().unwrap_or_else(|| machine.hardware.clone()),
        capacity: capacity(section, machine.cpus, machine.memory),
        machine,
        profiles: config.profiles.clone(),
        limits: Limits {
            boot: config.limits.boot_timeout.0,
            idle: config.limits.idle_timeout.0,
            job: config.limits.job_timeout.0,
            vms_per_tenant: config.limits.jobs_per_installation,
            attempts: i32::try_from(config.limits.attempts).unwrap_or(i32::MAX),
        },
        runner_version,
        dedication: dedication(config, databases)?,
        self_test: section.self_test,
        probe_network: section.probe_network,
        support_url: config.web.public_url.as_ref().map(|url| url.as_str().to_owned()),
        wakes: Arc::clone(shared.wakes),
        troubles: Arc::clone(shared.troubles),
    })
}

/// Whom the configuration names. GitHub's ids are found by a key that gateways alone have.
fn dedication(config: &Config, databases: &Databases) -> Result<Option<Dedication>, AppError> {
    let (mut tenants, mut installations) = (Vec::new(), Vec::new());
    for one in &config.host.dedicated_to {
        match one {
            config::Beneficiary::Installation(id) => installations.push(*id),
            config::Beneficiary::Tenant(id) => tenants.push(*id),
        }
    }
    if tenants.is_empty() && installations.is_empty() {
        return Ok(None);
    }
    let installations = if installations.is_empty() {
        None
    } else {
        let ring = super::open_ring(config)?;
        let lookups = installations.into_iter().map(|id| ring.installation_lookup(id)).collect();
        Some((databases.gateway().clone(), lookups))
    };
    Ok(Some(Dedication::new(tenants, installations)))
}

/// What the machine has to give. VMs that are not there take nothing of it.
fn capacity(section: &config::Host, cpus: u32, memory: Bytes) -> Capacity {
    let (cpus, memory) = match section.hypervisor {
        HypervisorKind::Fake => (u32::MAX, Bytes(u64::MAX)),
        HypervisorKind::Vz | HypervisorKind::Qemu => (cpus, memory),
    };
    section.capacity(cpus, memory, crate::machine::macos())
}

/// The backend that the configuration names, with the images that it makes VMs of.
pub fn hypervisor(config: &Config, troubles: &Arc<Troubles>) -> Result<(Arc<dyn Hypervisor>, Images), AppError> {
    // Only QEMU's backend tells of any.
    #[cfg(not(target_os = "linux"))]
    let _ = troubles;
    match config.host.hypervisor {
        HypervisorKind::Fake => Ok((fake(&config.host.fake), Images::Any)),
        #[cfg(target_os = "linux")]
        HypervisorKind::Qemu => qemu(config, troubles),
        #[cfg(not(target_os = "linux"))]
        HypervisorKind::Qemu => Err(AppError::NoHypervisor(HypervisorKind::Qemu.as_str())),
        #[cfg(target_os = "macos")]
        HypervisorKind::Vz => vz(config),
        #[cfg(not(target_os = "macos"))]
        HypervisorKind::Vz => Err(AppError::NoHypervisor(HypervisorKind::Vz.as_str())),
    }
}

fn fake(section: &config::Fake) -> Arc<dyn Hypervisor> {
    let options = FakeOptions {
        clone: section.clone.0,
        boot: section.boot.0,
        destroy: section.destroy.0,
        events_file: section.events_file.clone(),
    };
    FakeHypervisor::new(options, Arc::new(TimedRunner { job: section.job.map(|span| span.0) }))
}

#[cfg(target_os = "macos")]
fn vz(config: &Config) -> Result<(Arc<dyn Hypervisor>, Images), AppError> {
    let section = &config.host.vz;
    let spawn = match section.spawn {
        config::Spawn::Fork => vz::Spawn::Fork,
        config::Spawn::Launchd => {
            vz::Spawn::Launchd { uid: nix::unistd::getuid().as_raw(), restore_session: section.restore_session }
        }
    };
    let program = std::env::current_exe()
        .map_err(|source| HypervisorError::Io { doing: "finding the program of this process".to_owned(), source })?;
    let options = vz::Options { slots: config.host.slots, ..vz::Options::new(&config.data_dir, program, spawn) };
    let images = ImageStore::open(&config.data_dir)?;
    Ok((Arc::new(vz::Vz::open(options)?), Images::Store(images)))
}

#[cfg(target_os = "linux")]
fn qemu(config: &Config, troubles: &Arc<Troubles>) -> Result<(Arc<dyn Hypervisor>, Images), AppError> {
    let section = &config.host.qemu;
    let options = qemu::Options {
        accelerator: match section.accel {
            config::Accel::Auto => None,
            config::Accel::Kvm => Some(qemu::Accelerator::Kvm),
            config::Accel::Tcg => Some(qemu::Accelerator::Tcg),
        },
        binary: section.binary.clone(),
        allow_host_ports: section.allow_host_ports.clone(),
        runner_directory: runner::directory(config)?,
        troubles: Arc::clone(troubles),
        ..qemu::Options::new(&config.data_dir)
    };
    let images = ImageStore::open(&config.data_dir)?;
    Ok((Arc::new(qemu::Qemu::open(options)?), Images::Store(images)))
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
        let (fence, section) = (self.introduce().await?, self.images_section.clone());
        self.hypervisor.belongs_to(fence.host);
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
            dedication: self.dedication,
            probe_network: self.probe_network,
            support_url: self.support_url,
            wakes: self.wakes,
            troubles: self.troubles,
            shutdown: shutdown.clone(),
        });
        let drivers = Drivers::new(Arc::clone(&machine), tasks);
        let dispatcher = Arc::new(Dispatcher::new(drivers, self.capacity, self.hardware));
        spawn_loops(loops, &dispatcher, shutdown);
        if self.self_test {
            spawn_world(loops, &machine);
        }
        spawn_images(loops, &dispatcher, section);
        Ok(machine)
    }

    /// Makes sure that a gateway vouched for this host by its key.
    ///
    /// # Errors
    /// When it did not, or the database is away.
    pub async fn has_joined(&self) -> Result<(), AppError> {
        let found = joins::identity(&self.pool, &self.name).await?;
        let why = match found {
            None => "",
            Some(row) if row.is_revoked => " (it was revoked)",
            Some(row) if row.mac.is_none() => " (no gateway vouches for it)",
            Some(row) if row.public_key != self.key.public() => " (its key is another than the one that joined)",
            Some(_) => return Ok(()),
        };
        Err(AppError::NotJoined { name: self.name.clone(), why })
    }

    async fn introduce(&self) -> Result<Fence, StoreError> {
        let world = self.self_test.then(crate::machine::world);
        let introduction = Introduction {
            id: HostId::random(),
            name: &self.name,
            public_key: self.key.public(),
            hypervisor: self.hypervisor_name,
            hardware: &self.hardware,
            os: std::env::consts::OS,
            architecture: std::env::consts::ARCH,
            slots: self.capacity.slots,
            cpus: self.machine.cpus,
            memory: self.machine.memory.0,
            version: env!("CARGO_PKG_VERSION"),
            runner_version: self.runner_version.as_deref(),
            world: world.as_deref(),
            is_dedicated: self.dedication.is_some(),
        };
        // Together: the live vms of a host are of its newest session, whoever looks.
        let mut tx = self.pool.begin().await?;
        let (host, session) = hosts::introduce(&mut *tx, &introduction).await?;
        let fence = Fence { host, session };
        vms::adopt(&mut *tx, fence).await?;
        tx.commit().await?;
        Ok(fence)
    }
}

/// The images that profiles name come by themselves, and those that nothing needs go.
fn spawn_images(loops: &Loops, dispatcher: &Dispatcher, section: config::Images) {
    let machine = Arc::clone(dispatcher.drivers().machine());
    let keep = Keep { younger_than: section.keep.0, free: section.keep_free };
    if let (Images::Store(store), true) = (&machine.images, machine.hypervisor.boots_pulled_images()) {
        let follower = Arc::new(Follower {
            pool: machine.pool.clone(),
            host: machine.fence.host,
            name: machine.name.clone(),
            store: store.clone(),
            section,
            macos: dispatcher.macos(),
            profiles: dispatcher.runnable(),
            wakes: Arc::clone(&machine.wakes),
            shutdown: machine.shutdown.clone(),
            pauses: Pauses::default(),
        });
        loops.spawn("follow", FOLLOW_PERIOD, Never, move || {
            let follower = Arc::clone(&follower);
            async move { follower.pass().await.map(|_| More::No) }
        });
    }
    loops.spawn("images", PRUNE_PERIOD, Never, move || {
        let machine = Arc::clone(&machine);
        async move { images::pass(&machine, keep).await.map(|_| More::No) }
    });
}

/// Looks whether what was proven still holds: after a change of the network, and each day, it is proven anew.
fn spawn_world(loops: &Loops, machine: &Arc<Machine>) {
    let machine = Arc::clone(machine);
    loops.spawn("world", WORLD_PERIOD, Never, move || {
        let machine = Arc::clone(&machine);
        async move {
            hosts::renew_world(&machine.pool, machine.fence.host, &crate::machine::world()).await.map(|()| More::No)
        }
    });
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
    let reporter = Arc::clone(dispatcher);
    loops.spawn("offer", OFFER_PERIOD, Never, move || {
        let reporter = Arc::clone(&reporter);
        async move { reporter.report().await.map(|_| More::No) }
    });
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
                tracing::error!(host.id = %machine.fence.host, "another daemon runs as this host, or it was revoked: this one stops; two hosts must not have one name");
                shutdown.cancel();
            }
            Ok::<_, StoreError>(More::No)
        }
    });
}
