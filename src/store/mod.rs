//! All SQL, one file per table; no decisions.
//!
//! Every function works on whatever executor its caller holds, a pool or a transaction. A change of
//! state is an `UPDATE … WHERE state = $from AND <fence>`, answered [`Applied::Yes`] or
//! [`Applied::Stale`]. Lock order everywhere: profile, class, tenant, then rows.

pub mod audit;
pub mod deliveries;
pub mod delivery_log;
pub mod demand;
pub mod embedded;
pub mod erasure;
pub mod export;
pub mod external;
pub mod fleet;
pub mod github_holds;
pub mod hosts;
pub mod image_pins;
pub mod image_pulls;
pub mod jobs;
pub mod joins;
pub mod keys;
pub mod lost_jobs;
pub mod pass_leases;
pub mod profiles;
pub mod refusals;
pub mod repositories;
pub mod rescue;
pub mod runners;
pub mod tenants;
pub mod views;
pub mod vms;
pub mod vouched;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, Executor, PgConnection, PgPool};
use std::time::Duration;

/// How long a loop waits for a connection before it says that the database is away.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// No statement of a loop is meant to take longer.
const STATEMENT_TIMEOUT_MS: u32 = 5_000;
/// An open transaction holds back the cleaning of every table.
const IDLE_IN_TRANSACTION_TIMEOUT_MS: u32 = 10_000;

/// Writing a table anew keeps everybody from it: nobody waits longer for that to begin.
const VACUUM_LOCK_TIMEOUT_MS: u32 = 2_000;
/// Taking deleted rows out of the tables takes no longer.
const VACUUM_TIMEOUT_MS: u32 = 600_000;

/// The migrations, in the binary.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// The newest schema that this version writes.
const SCHEMA: i32 = 3;

/// Whether a guarded write found what it expected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Applied {
    /// The row was as expected, and is changed.
    Yes,
    /// Somebody else was faster; nothing was changed.
    Stale,
}

impl Applied {
    const fn from_rows(rows: u64) -> Self {
        if rows == 0 { Self::Stale } else { Self::Yes }
    }
}

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database is away, or refused.
    #[error("the database did not answer as expected")]
    Database(#[from] sqlx::Error),
    /// The migrations did not run.
    #[error("the database could not be brought to this version's schema")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The database is of a later version.
    #[error(
        "the database has schema {found}, readable from version {min_reader} on; this flyci knows {ours}: install the flyci that migrated it, or a later one"
    )]
    TooNew { found: i32, min_reader: i32, ours: i32 },
    /// The database is of an earlier version, and this process may not bring it forward.
    #[error(
        "the database has schema {found}, and this flyci needs {ours}: start a gateway of this version first, it brings the schema forward"
    )]
    TooOld { found: i32, ours: i32 },
    /// The database was migrated by a later version.
    #[error(
        "the database is of a newer version: its migration {0} is not one of this flyci's; install the flyci that migrated it, or a later one (nothing was changed)"
    )]
    Newer(i64),
    /// The transition is not one that the state machine knows.
    #[error(transparent)]
    Denied(#[from] crate::domain::vm::Denied),
}

impl StoreError {
    /// True when trying again may help: the connection broke, a deadlock was resolved.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::Database(error)) => {
                matches!(error.code().as_deref(), Some("40P01" | "40001" | "57P01" | "57P03" | "55P03"))
            }
            Self::Database(
                sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Tls(_),
            ) => true,
            Self::Database(_)
            | Self::Migrate(_)
            | Self::TooNew { .. }
            | Self::TooOld { .. }
            | Self::Newer(_)
            | Self::Denied(_) => false,
        }
    }
}

/// What every function of the store answers with.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Who a pool acts as: a database role that owns and bypasses nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Takes deliveries, speaks to GitHub.
    Gateway,
    /// Owns a machine's vms.
    Host,
}

impl Role {
    const fn database_role(self) -> &'static str {
        match self {
            Self::Gateway => "flyci_gateway",
            Self::Host => "flyci_host",
        }
    }
}

/// Brings the database to this version's schema, or refuses one that is too new.
///
/// Runs under sqlx's advisory lock: of several that start at once, one migrates and the others wait.
///
/// # Errors
/// When the database is away, too new, or a migration fails (it is then rolled back).
pub async fn migrate(options: &PgConnectOptions) -> Result<()> {
    let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE_TIMEOUT).connect_with(options.clone());
    let pool = match pool.await {
        // The pool tries until its time is over, and does not say what it met.
        Err(sqlx::Error::PoolTimedOut) => return Err(why_away(options).await),
        pool => pool?,
    };
    let outcome = migrate_with(&pool).await;
    pool.close().await;
    outcome
}

/// What one try to connect meets.
async fn why_away(options: &PgConnectOptions) -> StoreError {
    match tokio::time::timeout(ACQUIRE_TIMEOUT, PgConnection::connect_with(options)).await {
        Ok(Err(error)) => error.into(),
        Ok(Ok(_)) | Err(_) => sqlx::Error::PoolTimedOut.into(),
    }
}

async fn migrate_with(pool: &PgPool) -> Result<()> {
    if let Some(fleet) = fleet::find_schema(pool).await? {
        refuse_newer(&fleet)?;
        if fleet.schema > SCHEMA {
            return Ok(());
        }
    }
    MIGRATOR.run(pool).await.map_err(|error| match error {
        sqlx::migrate::MigrateError::VersionMissing(version) => StoreError::Newer(version),
        other => other.into(),
    })
}

/// A schema that programs of this version must not touch.
fn refuse_newer(fleet: &fleet::Schema) -> Result<()> {
    if fleet.min_reader > SCHEMA {
        return Err(StoreError::TooNew { found: fleet.schema, min_reader: fleet.min_reader, ours: SCHEMA });
    }
    Ok(())
}

/// Makes sure that the database has the schema that this version works with: for a host, which does not migrate.
///
/// # Errors
/// When the database is away, too old or too new.
pub async fn check_schema(pool: &PgPool) -> Result<()> {
    let fleet = fleet::find_schema(pool).await?.unwrap_or(fleet::Schema { schema: 0, min_reader: 0 });
    refuse_newer(&fleet)?;
    if fleet.schema < SCHEMA {
        return Err(StoreError::TooOld { found: fleet.schema, ours: SCHEMA });
    }
    Ok(())
}

/// What is done as the tables' owner, which serves nobody: a connection of its own for each time.
#[derive(Clone, Debug)]
pub struct Maintenance(PgConnectOptions);

impl Maintenance {
    /// As the login that migrates.
    #[must_use]
    pub const fn new(options: PgConnectOptions) -> Self {
        Self(options)
    }

    /// Takes deleted rows out of the files of the tables that held a tenant's. The one with the wrapped keys
    /// is written anew, so that nothing of a deleted one is in it; what is in the way is not waited for long.
    ///
    /// # Errors
    /// When the database is away, or the lock is not to be had now.
    pub async fn vacuum(&self) -> Result<()> {
        let mut connection = PgConnection::connect_with(&self.0).await?;
        let set = format!("SET lock_timeout = {VACUUM_LOCK_TIMEOUT_MS}; SET statement_timeout = {VACUUM_TIMEOUT_MS}");
        connection.execute(sqlx::AssertSqlSafe(set)).await?;
        connection.execute("VACUUM (FULL) tenants").await?;
        connection.execute("VACUUM jobs, runners, runner_names, repositories, refusals, lanes, vms").await?;
        connection.close().await?;
        Ok(())
    }
}

/// A pool that acts as `role`, with the bounds that keep one slow statement from holding up all.
///
/// # Errors
/// When the database is away or refuses the role.
pub async fn connect(options: &PgConnectOptions, role: Role, max_connections: u32) -> Result<PgPool> {
    let pool = PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                let set = format!(
                    "SET ROLE {}; SET statement_timeout = {STATEMENT_TIMEOUT_MS}; \
                     SET idle_in_transaction_session_timeout = {IDLE_IN_TRANSACTION_TIMEOUT_MS}",
                    role.database_role()
                );
                connection.execute(sqlx::AssertSqlSafe(set)).await?;
                Ok(())
            })
        })
        .connect_with(options.clone());
    match pool.await {
        // As above.
        Err(sqlx::Error::PoolTimedOut) => Err(why_away(options).await),
        pool => Ok(pool?),
    }
}
