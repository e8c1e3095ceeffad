//! The connection to Postgres: migrated, with a pool for each role.

use super::AppError;
use crate::config::Config;
use crate::domain::ids::FleetId;
use crate::store::{self, Role, StoreError, fleet};
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;

/// The pools of this daemon's roles.
pub struct Databases {
    /// Acts as the gateway.
    pub gateway: PgPool,
    /// Acts as the host.
    pub host: PgPool,
}

impl Databases {
    /// Connects, and brings the schema to this version's.
    ///
    /// # Errors
    /// When there is no database, or it is of a later version.
    pub async fn open(config: &Config) -> Result<Self, AppError> {
        let options = connect_options(config)?;
        store::migrate(&options).await?;
        let connections = config.database.max_connections;
        Ok(Self {
            gateway: store::connect(&options, Role::Gateway, connections).await?,
            host: store::connect(&options, Role::Host, connections).await?,
        })
    }

    /// Which fleet the database is of.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn fleet(&self) -> Result<FleetId, StoreError> {
        fleet::id(&self.gateway).await
    }

    /// Closes the connections.
    pub async fn close(self) {
        self.gateway.close().await;
        self.host.close().await;
    }
}

fn connect_options(config: &Config) -> Result<PgConnectOptions, AppError> {
    let Some(url) = &config.database.url else {
        return Err(AppError::NoHypervisor("embedded"));
    };
    let options: PgConnectOptions = url.expose().parse().map_err(StoreError::from)?;
    Ok(options.application_name("flyci"))
}
