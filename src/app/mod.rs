//! Builds the roles, owns every task, shuts down.
//!
//! | file | builds |
//! |---|---|
//! | `database` | the connection to Postgres, private or given; migrations; the fleet's id |
//! | `gateway` | intake, mint, doubts, pruning |
//! | `host` | hypervisor, drivers, dispatch, sweep, heartbeat |
//! | `loops` | the tasks that call each `pass()` |

mod database;
mod gateway;
mod host;
mod loops;

use crate::config::{Config, ConfigFaults};
use crate::domain::ids::FleetId;
use crate::github::{GitHub, OptionsError};
use crate::hypervisor::Hypervisor;
use crate::intake::Intake;
use crate::lifecycle::Machine;
use crate::secrets::files::PrivateFileError;
use crate::secrets::{KeyRing, SecretsError};
use crate::store::StoreError;
use crate::wake::Wakes;
use database::Databases;
use loops::Loops;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long the tasks may take to end: what they began in the database and at GitHub they finish.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(20);

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigFaults),
    /// The database is away, too new, or refuses.
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
    #[error("the data directory {path} cannot be used")]
    DataDir {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// What the configuration asks for is not built for this platform.
    #[error("host.hypervisor = \"{0}\" does not run on this platform")]
    NoHypervisor(&'static str),
}

/// A daemon that runs. Dropping it stops nothing: call [`Daemon::stop`].
pub struct Daemon {
    /// The gateway's intake, if it is one.
    pub intake: Option<Arc<Intake>>,
    /// The host, if it is one.
    pub machine: Option<Arc<Machine>>,
    /// The fleet.
    pub fleet: FleetId,
    /// Wakes loops and drivers.
    pub wakes: Arc<Wakes>,
    databases: Databases,
    shutdown: CancellationToken,
    tasks: TaskTracker,
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
        make_data_dir(config)?;
        let databases = Databases::open(config).await?;
        let fleet = databases.fleet().await?;
        belong_to(config, fleet)?;
        let wakes = Arc::new(Wakes::default());
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let loops = Loops::new(tasks.clone(), shutdown.clone());
        let intake = match &config.github {
            Some(github) if config.is_gateway() => {
                let gateway = gateway::build(config, github, &databases, fleet, Arc::clone(&wakes))?;
                Some(gateway.start(&loops))
            }
            Some(_) | None => None,
        };
        let machine = if config.is_host() {
            let host = host::build(config, &databases, fleet, Arc::clone(&wakes), overrides)?;
            Some(host.start(&loops, tasks.clone(), shutdown.clone()).await?)
        } else {
            None
        };
        Ok(Self { intake, machine, fleet, wakes, databases, shutdown, tasks })
    }

    /// Resolves when something inside wants the daemon to stop.
    pub async fn wants_to_stop(&self) {
        self.shutdown.cancelled().await;
    }

    /// Stops the daemon: no new work, what was begun is finished, running VMs are left as they are.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        if tokio::time::timeout(SHUTDOWN_DEADLINE, self.tasks.wait()).await.is_err() {
            tracing::warn!("some tasks did not end in time; they are cut off");
        }
        self.databases.close().await;
    }
}

/// The data directory, for its owner alone.
fn make_data_dir(config: &Config) -> Result<(), AppError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.data_dir)
        .map_err(|source| AppError::DataDir { path: config.data_dir.clone(), source })
}

/// One fleet, one world: a machine whose state is of another fleet than the database does not start, since
/// its sweep would destroy what the other database owns.
fn belong_to(config: &Config, fleet: FleetId) -> Result<(), AppError> {
    let file = config.data_dir.join("fleet");
    match std::fs::read_to_string(&file) {
        Ok(text) if text.trim() == fleet.to_string() => Ok(()),
        Ok(text) => Err(AppError::OtherFleet { here: text.trim().to_owned(), there: fleet, file }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => std::fs::write(&file, format!("{fleet}\n"))
            .map_err(|source| AppError::DataDir { path: config.data_dir.clone(), source }),
        Err(source) => Err(AppError::DataDir { path: file, source }),
    }
}

fn open_ring(config: &Config) -> Result<Arc<KeyRing>, AppError> {
    Ok(Arc::new(KeyRing::open_or_create(&config.master_key_file())?))
}

fn github_client(config: &Config, section: &crate::config::Github) -> Result<GitHub, AppError> {
    let ca_pem = match &section.ca_file {
        Some(path) => Some(std::fs::read(path).map_err(|source| AppError::Read {
            key: "github.ca_file",
            path: path.clone(),
            source,
        })?),
        None => None,
    };
    let private_key = gateway::read_secret("github.private_key_file", &section.private_key_file)?;
    let previous_private_key = section
        .previous_private_key_file
        .as_deref()
        .map(|path| gateway::read_secret("github.previous_private_key_file", path))
        .transpose()?;
    Ok(GitHub::new(&crate::github::Options {
        api_url: section.api_url.as_str().to_owned(),
        app_id: section.app_id,
        private_key,
        previous_private_key,
        ca_pem,
        proxy_url: section.proxy_url.as_ref().map(|url| url.expose().to_owned().into()),
        user_agent: concat!("flyci/", env!("CARGO_PKG_VERSION")).to_owned(),
        public_repositories: config.tenants.public_repositories,
    })?)
}
