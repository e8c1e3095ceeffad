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
    /// Acts as the gateway.
    pub gateway: PgPool,
    /// Acts as the host.
    pub host: PgPool,
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
        store::migrate(&options).await.map_err(|error| unreachable_or(error, config, &options))?;
        let connections = config.database.max_connections;
        Ok(Self {
            gateway: store::connect(&options, Role::Gateway, connections).await?,
            host: store::connect(&options, Role::Host, connections).await?,
            maintenance: Maintenance::new(options),
            private,
        })
    }

    /// Which fleet the database is of.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn fleet(&self) -> Result<FleetId, StoreError> {
        fleet::id(&self.gateway).await
    }

    /// Closes the connections, then stops the private Postgres.
    pub async fn close(self) {
        self.gateway.close().await;
        self.host.close().await;
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
