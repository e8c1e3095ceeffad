//! Builds the roles, owns every task, shuts down.
//!
//! | file | builds |
//! |---|---|
//! | `database` | the connection to Postgres, private or given; migrations; the fleet's id |
//! | `gateway` | intake, mint |
//! | `upkeep` | what keeps the gateway's tables and GitHub in agreement, pruning |
//! | `github` | the look at the App |
//! | `hooks` | the look at the addresses that GitHub delivers from |
//! | `host` | hypervisor, drivers, dispatch, sweep, heartbeat |
//! | `joining` | a host's way into the fleet |
//! | `servers` | the listeners |
//! | `loops` | the tasks that call each `pass()` |
//! | `vault` | the master keys, the audit trail, and what looks after both |
//! | `signals` | what SIGTERM, SIGINT and SIGHUP do |

mod database;
mod expiry;
mod gateway;
mod github;
mod hooks;
mod host;
mod joining;
mod loops;
mod runner;
mod servers;
mod signals;
mod upkeep;
mod vault;

pub use github::github_client;
pub use joining::{Joined, join};
pub use upkeep::Upkeep;

use crate::config::{Config, ConfigFaults, HypervisorKind};
use crate::data_dir::{DataDir, DataDirError};
use crate::domain::ids::FleetId;
use crate::github::OptionsError;
use crate::hypervisor::Hypervisor;
use crate::intake::Intake;
use crate::lifecycle::Machine;
use crate::metrics::Metrics;
use crate::secrets::files::PrivateFileError;
use crate::secrets::{KeyId, KeyRing, MasterSource, SecretsError};
use crate::store::StoreError;
use crate::store::embedded::EmbeddedError;
use crate::store::external::ExternalError;
use crate::troubles::Troubles;
use crate::upkeep::keys::KeysError;
use crate::upkeep::trail::TrailError;
use crate::wake::Wakes;
use crate::web::admin::RunnerReleases;
use crate::web::servers::{Lifetime, ServeError};
use crate::web::{Readiness, SecurityTxt};
use database::Databases;
use loops::Loops;
use servers::{Backing, Servers};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vault::Vault;

/// How long the tasks may take to end: what they began in the database and at GitHub they finish.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(20);

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigFaults),
    /// The operator's Postgres is not there.
    #[error("no connection to the database {place} (does Postgres run there, and is `database.url` right?)")]
    NoDatabase {
        place: String,
        #[source]
        source: StoreError,
    },
    /// The database is too new, or refuses.
    #[error("the database cannot be used")]
    Store(#[from] StoreError),
    /// A key cannot be read or made.
    #[error("a key cannot be used")]
    Secrets(#[from] SecretsError),
    /// A file of the configuration cannot be read.
    #[error("{key} cannot be used")]
    File {
        key: &'static str,
        #[source]
        source: PrivateFileError,
    },
    /// A file that is no secret cannot be read.
    #[error("{key} ({path}) cannot be read")]
    Read {
        key: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The client for GitHub cannot be made.
    #[error("GitHub cannot be spoken to")]
    GitHub(#[from] OptionsError),
    /// The database is of another fleet than this machine.
    #[error(
        "this machine belongs to fleet {here} (by {file}), and the database is of fleet {there}: point database.url at the right one, or remove that file if the machine is to change fleets"
    )]
    OtherFleet { here: String, there: FleetId, file: PathBuf },
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The private Postgres does not run.
    #[error(transparent)]
    Postgres(#[from] EmbeddedError),
    /// The operator's Postgres cannot be connected to as configured.
    #[error(transparent)]
    External(#[from] ExternalError),
    /// The master key is not the one that the stored values are sealed with.
    #[error(
        "{place} does not hold master key {missing}, which this database's values are sealed with: bring it back from where it is kept; without it nothing of the stored metadata can be read"
    )]
    OtherMasterKey { place: String, missing: KeyId },
    /// The audit trail's key does not open.
    #[error("the audit trail cannot be written")]
    Trail(#[from] TrailError),
    /// The master keys are not as they should be.
    #[error("the master keys cannot be looked after")]
    Keys(#[from] KeysError),
    /// A listener is not there.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The fleet's file cannot be read or written.
    #[error("{path}, which says which fleet this machine belongs to, cannot be used")]
    FleetFile {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The gateway's file cannot be read or written.
    #[error("{path}, which names this gateway among several, cannot be used")]
    GatewayFile {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The host has not joined the fleet, or it is not the one that did.
    #[error(
        "{name} has not joined this fleet{why}: `flyci host invite {name}` on a gateway, then `flyci host join` here"
    )]
    NotJoined { name: String, why: &'static str },
    /// A host without a fleet to join.
    #[error("a host joins the fleet of a Postgres that it shares with gateways: `database.url` names it")]
    NothingToJoin,
    /// A gateway said no.
    #[error(
        "no gateway lets {name} join as {login}: the token is wrong, ended or used, or another login or name was invited; \
         `flyci host invite` on a gateway makes a new one, and `flyci audit` there shows what came"
    )]
    JoinRefused { name: String, login: String },
    /// No gateway said anything.
    #[error("no gateway answered within {0} s: does one run on this database?")]
    JoinUnanswered(u64),
    /// The row of this process's own host is another's.
    #[error(
        "the database has another host of the name {0}, or it was revoked: give this one its own (`host.name`), or `flyci host invite` it"
    )]
    NotThisHost(String),
    /// Signals cannot be waited for.
    #[error("signals cannot be waited for")]
    Signals(#[source] std::io::Error),
    /// The machine cannot run VMs as configured.
    #[error("VMs cannot be run here")]
    Hypervisor(#[from] crate::hypervisor::HypervisorError),
    /// The images' directory cannot be used.
    #[error(transparent)]
    Images(#[from] crate::images::ImageError),
    /// The runner that guests are to get cannot be had.
    #[error(transparent)]
    Runner(#[from] crate::images::runner::RunnerError),
    /// What the configuration asks for is not built for this platform.
    #[error("host.hypervisor = \"{0}\" does not run on this platform")]
    NoHypervisor(&'static str),
}

impl AppError {
    /// True when the configuration, or a file that it names, is wrong: another try does not help.
    #[must_use]
    pub const fn is_of_configuration(&self) -> bool {
        matches!(
            self,
            Self::Config(_)
                | Self::File { .. }
                | Self::Read { .. }
                | Self::GitHub(_)
                | Self::External(_)
                | Self::NoHypervisor(_)
                | Self::Hypervisor(crate::hypervisor::HypervisorError::Unfit(_))
        )
    }
}

/// A daemon that runs. Dropping it stops nothing: call [`Daemon::stop`].
pub struct Daemon {
    /// The gateway's intake, if it is one.
    pub intake: Option<Arc<Intake>>,
    /// What keeps the gateway's tables and GitHub in agreement.
    pub upkeep: Option<Arc<Upkeep>>,
    /// The host, if it is one.
    pub machine: Option<Arc<Machine>>,
    /// The fleet.
    pub fleet: FleetId,
    /// Wakes loops and drivers.
    pub wakes: Arc<Wakes>,
    readiness: Arc<Readiness>,
    servers: Servers,
    databases: Databases,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    _data_dir: DataDir,
}

/// What a test puts in the place of what the configuration names.
#[derive(Default)]
pub struct Overrides {
    /// The machine that the vms are on.
    pub hypervisor: Option<Arc<dyn Hypervisor>>,
}

impl Daemon {
    /// Starts the roles that the configuration names.
    ///
    /// # Errors
    /// The first thing that keeps the daemon from work, with what to do about it.
    pub async fn start(config: &Config, overrides: Overrides) -> Result<Self, AppError> {
        let data_dir = DataDir::lock(&config.data_dir)?;
        // Before any process is started: it may be in a descriptor that none of them is to inherit.
        let ring = if config.is_gateway() { Some(open_ring(config)?) } else { None };
        let databases = Databases::open(config, &data_dir).await?;
        match Self::start_roles(config, overrides, databases, ring, data_dir).await {
            Ok(daemon) => Ok(daemon),
            Err((error, databases)) => {
                // The private Postgres is stopped with what wanted it.
                databases.close().await;
                Err(error)
            }
        }
    }

    async fn start_roles(
        config: &Config,
        overrides: Overrides,
        databases: Databases,
        ring: Option<Arc<KeyRing>>,
        data_dir: DataDir,
    ) -> Result<Self, (AppError, Databases)> {
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let roles = Roles { config, databases: &databases, tasks: &tasks, shutdown: &shutdown };
        match roles.start(overrides, ring).await {
            Ok(started) => Ok(Self {
                intake: started.intake,
                upkeep: started.upkeep,
                machine: started.machine,
                fleet: started.fleet,
                wakes: started.wakes,
                readiness: started.readiness,
                servers: started.servers,
                databases,
                shutdown,
                tasks,
                _data_dir: data_dir,
            }),
            Err(error) => {
                shutdown.cancel();
                tasks.close();
                tasks.wait().await;
                Err((error, databases))
            }
        }
    }

    /// Where deliveries come in; `None` where they are pulled.
    #[must_use]
    pub const fn public_address(&self) -> Option<SocketAddr> {
        self.servers.public
    }

    /// Where metrics are read.
    #[must_use]
    pub const fn metrics_address(&self) -> Option<SocketAddr> {
        self.servers.metrics
    }

    /// Resolves when something inside wants the daemon to stop.
    pub async fn wants_to_stop(&self) {
        self.shutdown.cancelled().await;
    }

    /// Stops the daemon: no new work, what was begun is finished, running VMs are left as they are.
    pub async fn stop(self) {
        self.readiness.set_draining(true);
        self.shutdown.cancel();
        self.tasks.close();
        self.servers.stopped().await;
        if tokio::time::timeout(SHUTDOWN_DEADLINE, self.tasks.wait()).await.is_err() {
            tracing::warn!("some tasks did not end in time; they are cut off");
        }
        self.databases.close().await;
    }
}

/// Runs the daemon until a signal, or something inside, ends it.
///
/// # Errors
/// What keeps the daemon from starting, with what to do about it.
pub async fn serve(config: Config, overrides: Overrides) -> Result<(), AppError> {
    let mut signals = signals::Signals::listen().map_err(AppError::Signals)?;
    let daemon = Daemon::start(&config, overrides).await?;
    tracing::info!(fleet.id = %daemon.fleet, version = env!("CARGO_PKG_VERSION"), "flyci runs");
    loop {
        tokio::select! {
            () = daemon.wants_to_stop() => break,
            signal = signals.next() => match signal {
                signals::Signal::Reload => daemon.servers.reload(),
                signals::Signal::Stop => break,
            },
        }
    }
    tracing::info!("flyci stops; {}", what_becomes_of_vms(&config));
    tokio::select! {
        () = daemon.stop() => tracing::info!("flyci stopped"),
        () = signals.stop() => tracing::warn!("a second signal: flyci ends at once"),
    }
    Ok(())
}

/// What a stopped daemon leaves, in words.
fn what_becomes_of_vms(config: &Config) -> &'static str {
    match config.host.hypervisor {
        _ if !config.is_host() => "it has no VMs",
        HypervisorKind::Fake => "its pretended VMs end with it",
        HypervisorKind::Qemu | HypervisorKind::Vz => "running VMs are left as they are, and adopted at the next start",
    }
}

/// What the host shares with the rest of the process.
#[derive(Clone, Copy)]
struct Shared<'a> {
    wakes: &'a Arc<Wakes>,
    troubles: &'a Arc<Troubles>,
}

/// What the roles are started with.
struct Roles<'a> {
    config: &'a Config,
    databases: &'a Databases,
    tasks: &'a TaskTracker,
    shutdown: &'a CancellationToken,
}

/// What runs.
struct Started {
    intake: Option<Arc<Intake>>,
    upkeep: Option<Arc<Upkeep>>,
    machine: Option<Arc<Machine>>,
    fleet: FleetId,
    wakes: Arc<Wakes>,
    readiness: Arc<Readiness>,
    servers: Servers,
}

impl Roles<'_> {
    /// Whom to tell of a hole. That it runs out is told in time.
    fn security_txt(&self, loops: &Loops, troubles: &Arc<Troubles>) -> Option<Arc<SecurityTxt>> {
        let web = &self.config.web;
        let text = Arc::new(SecurityTxt::new(web.security_txt.as_ref()?, web.public_url.as_ref()));
        let (watched, troubles) = (Arc::clone(&text), Arc::clone(troubles));
        loops.spawn("expiry", expiry::PERIOD, loops::Never, move || {
            expiry::pass(&watched, &troubles, chrono::Utc::now());
            async { Ok::<_, std::convert::Infallible>(loops::More::No) }
        });
        Some(text)
    }

    async fn start(&self, overrides: Overrides, ring: Option<Arc<KeyRing>>) -> Result<Started, AppError> {
        let fleet = self.databases.fleet().await?;
        belong_to(self.config, fleet)?;
        let wakes = Arc::new(Wakes::default());
        let readiness = Arc::new(Readiness::default());
        let troubles = Arc::new(Troubles::default());
        let metrics = Arc::new(Metrics::new(chrono::Utc::now()));
        let releases = Arc::new(RunnerReleases::default());
        let loops = Loops::new(self.tasks.clone(), self.shutdown.clone(), Arc::clone(&metrics));
        let gateway = self.gateway(fleet, &wakes, &metrics, ring).await?;
        let vault = gateway.as_ref().map(|gateway| gateway.vault.clone());
        let told = gateway::Told { readiness: &readiness, troubles: &troubles, releases: &releases, metrics: &metrics };
        let machine = self.host(fleet, &wakes, &troubles, &loops, overrides).await?;
        if let (Some(vault), Some(machine)) = (&vault, &machine) {
            vault.vouch(self.databases.gateway(), machine).await?;
        }
        let running = gateway.map(|gateway| gateway.start(&loops, &told));
        let security_txt = self.security_txt(&loops, &troubles);
        let backing = Backing {
            config: self.config,
            databases: self.databases,
            gateway: running.as_ref(),
            vault: vault.as_ref(),
            fleet,
            wakes: &wakes,
            readiness: &readiness,
            troubles: &troubles,
            metrics: &metrics,
            releases: &releases,
            security_txt: security_txt.as_ref(),
        };
        let lifetime = Lifetime { tasks: self.tasks.clone(), stop: self.shutdown.clone() };
        let servers = Servers::start(&backing, &lifetime)?;
        let (watched, pool, stop) = (Arc::clone(&readiness), self.databases.any().clone(), self.shutdown.clone());
        self.tasks.spawn(async move { watched.watch_database(pool, stop).await });
        let (intake, upkeep) = running.map(|running| (running.intake, running.upkeep)).unzip();
        Ok(Started { intake, upkeep, machine, fleet, wakes, readiness, servers })
    }

    async fn gateway(
        &self,
        fleet: FleetId,
        wakes: &Arc<Wakes>,
        metrics: &Arc<Metrics>,
        ring: Option<Arc<KeyRing>>,
    ) -> Result<Option<gateway::Gateway>, AppError> {
        let (Some(github), Some(ring)) = (&self.config.github, ring) else { return Ok(None) };
        let id = gateway::own_id(self.config)?;
        let vault = Vault::open(self.config, self.databases, ring, id, wakes).await?;
        gateway::build(self.config, github, self.databases, fleet, metrics, (id, vault)).map(Some)
    }

    async fn host(
        &self,
        fleet: FleetId,
        wakes: &Arc<Wakes>,
        troubles: &Arc<Troubles>,
        loops: &Loops,
        overrides: Overrides,
    ) -> Result<Option<Arc<Machine>>, AppError> {
        if !self.config.is_host() {
            return Ok(None);
        }
        let host = host::build(self.config, self.databases, fleet, Shared { wakes, troubles }, overrides)?;
        if !self.config.is_gateway() {
            host.has_joined().await?;
        }
        Ok(Some(host.start(loops, self.tasks.clone(), self.shutdown.clone()).await?))
    }
}

/// One fleet, one world: a machine whose state is of another fleet than the database does not start, since
/// its sweep would destroy what the other database owns.
fn belong_to(config: &Config, fleet: FleetId) -> Result<(), AppError> {
    let path = config.data_dir.join("fleet");
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim() == fleet.to_string() => Ok(()),
        Ok(text) => Err(AppError::OtherFleet { here: text.trim().to_owned(), there: fleet, file: path }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::write(&path, format!("{fleet}\n")).map_err(|source| AppError::FleetFile { path, source })
        }
        Err(source) => Err(AppError::FleetFile { path, source }),
    }
}

/// The master keys. In our own place one is made when there is none: for the first start.
fn open_ring(config: &Config) -> Result<Arc<KeyRing>, AppError> {
    Ok(Arc::new(match &config.keys.master {
        MasterSource::File(path) => KeyRing::open_or_create(path)?,
        source => KeyRing::load(source.clone())?,
    }))
}

/// The backend that the configuration names.
///
/// # Errors
/// It does not run here, or the machine lacks what it needs.
pub fn hypervisor(config: &Config) -> Result<Arc<dyn Hypervisor>, AppError> {
    host::hypervisor(config, &Arc::default()).map(|(hypervisor, _)| hypervisor)
}
