//! Postgres, private or given: migrated, with a pool for each role.

use super::AppError;
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::domain::ids::FleetId;
use crate::store::embedded::{self, EmbeddedPostgres};
use crate::store::external::{self, External};
use crate::store::{self, Maintenance, Role, StoreError, fleet};
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The pools of this daemon's roles.
pub struct Databases {
    gateway: Option<PgPool>,
    host: Option<PgPool>,
    /// Looks after the tables as their owner.
    pub maintenance: Maintenance,
    private: Option<Private>,
}

/// The private Postgres, kept running.
struct Private {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Databases {
    /// Connects, and brings the schema to this version's.
    ///
    /// # Errors
    /// When there is no database, or it is of a later version.
    pub async fn open(config: &Config, data_dir: &DataDir) -> Result<Self, AppError> {
        let (options, private) = match &config.database.url {
            Some(url) => {
                let section = &config.database;
                let options = external::connect_options(External {
                    url: url.expose(),
                    password_file: section.password_file.as_deref(),
                    ca_file: section.ca_file.as_deref(),
                })?;
                (options, None)
            }
            None => {
                let options = embedded::Options { download: config.database.download };
                let postgres = EmbeddedPostgres::start(data_dir, options).await?;
                (postgres.connect_options(), Some(keep_running(postgres)))
            }
        };
        let options = options.application_name("flyci");
        let connections = config.database.max_connections;
        let refused = |error| unreachable_or(error, config, &options);
        // A host's login may do what hosts do, and no more: the schema is the gateways'.
        if config.is_gateway() {
            store::migrate(&options).await.map_err(refused)?;
        }
        let gateway = match config.is_gateway() {
            true => Some(store::connect(&options, Role::Gateway, connections).await?),
            false => None,
        };
        let host = match config.is_host() {
            true => Some(store::connect(&options, Role::Host, connections).await.map_err(refused)?),
            false => None,
        };
        if let (None, Some(host)) = (&gateway, &host) {
            store::check_schema(host).await?;
        }
        Ok(Self { gateway, host, maintenance: Maintenance::new(options), private })
    }

    /// Acts as the gateway.
    ///
    /// # Panics
    /// When this process is none.
    #[must_use]
    pub fn gateway(&self) -> &PgPool {
        self.gateway.as_ref().expect("a gateway has its pool")
    }

    /// Acts as the host.
    ///
    /// # Panics
    /// When this process is none.
    #[must_use]
    pub fn host(&self) -> &PgPool {
        self.host.as_ref().expect("a host has its pool")
    }

    /// A pool for what every role may see.
    ///
    /// # Panics
    /// When this process has no role.
    #[must_use]
    pub fn any(&self) -> &PgPool {
        self.gateway.as_ref().or(self.host.as_ref()).expect("a daemon has a role")
    }

    /// Which fleet the database is of.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn fleet(&self) -> Result<FleetId, StoreError> {
        fleet::id(self.any()).await
    }

    /// Closes the connections, then stops the private Postgres.
    pub async fn close(self) {
        for pool in [self.gateway, self.host].into_iter().flatten() {
            pool.close().await;
        }
        if let Some(private) = self.private {
            private.stop.cancel();
            if let Err(error) = private.task.await {
                tracing::error!("the private Postgres's task ended by itself: {error}");
            }
        }
    }
}

/// An operator's Postgres that is away is told with its place; the URL is not, since it may hold a password.
fn unreachable_or(error: StoreError, config: &Config, options: &PgConnectOptions) -> AppError {
    if config.database.url.is_none() || !error.is_transient() {
        return error.into();
    }
    let port = options.get_port();
    let place = match options.get_socket() {
        Some(socket) => format!("at the socket {} (port {port})", socket.display()),
        None => format!("at {}:{port}", options.get_host()),
    };
    AppError::NoDatabase { place, source: error }
}

fn keep_running(postgres: EmbeddedPostgres) -> Private {
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let task = tokio::spawn(async move {
        if let Err(error) = postgres.run(stopped).await {
            tracing::error!(error = %crate::errors::chain(&error), "the private Postgres did not stop");
        }
    });
    Private { stop, task }
}
