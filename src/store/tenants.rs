//! The accounts that installed the App.

use super::Result;
use crate::domain::ids::TenantId;
use crate::domain::reason::words;
use crate::secrets::{Lookup, Sealed};
use chrono::{DateTime, Utc};
use sqlx::PgExecutor;

words! {
    /// Whether the operator serves an account.
    Admission {
        /// Nobody decided yet.
        Pending = "pending",
        /// It is served.
        Approved = "approved",
        /// The operator took the approval back.
        Suspended = "suspended",
    }
}

/// One tenant.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Our id.
    pub id: TenantId,
    /// Its data key and index key, wrapped by the master key.
    pub wrapped_keys: Vec<u8>,
    /// GitHub's installation id.
    pub installation_id: Sealed,
    /// GitHub's id of the account.
    pub account_id: Sealed,
    /// The account's login.
    pub account: Sealed,
    /// `organization` or `user`.
    pub account_kind: String,
    /// The operator's decision.
    pub admission: String,
    /// Since when GitHub says the installation is suspended.
    pub suspended_at: Option<DateTime<Utc>>,
    /// Since when the App is not installed any more.
    pub uninstalled_at: Option<DateTime<Utc>>,
    /// Vms at once, if not the configured limit.
    pub vm_limit: Option<i32>,
    /// When it was first seen.
    pub created_at: DateTime<Utc>,
}

impl Tenant {
    /// True when its jobs are served.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.admission == Admission::Approved.as_str() && self.suspended_at.is_none() && self.uninstalled_at.is_none()
    }
}

/// What is needed to make a tenant.
pub struct NewTenant<'a> {
    /// Our id.
    pub id: TenantId,
    /// Finds it by GitHub's installation id.
    pub installation_lookup: Lookup,
    /// Finds it by GitHub's account id.
    pub account_lookup: Lookup,
    /// Its keys.
    pub wrapped_keys: &'a [u8],
    /// GitHub's installation id.
    pub installation_id: &'a Sealed,
    /// GitHub's account id.
    pub account_id: &'a Sealed,
    /// The account's login.
    pub account: &'a Sealed,
    /// `organization` or `user`.
    pub account_kind: &'a str,
    /// The operator's decision so far.
    pub admission: Admission,
}

/// Whoever makes a tenant holds this advisory lock until its transaction ends, so that an installation
/// has one row although it may be found under several look-ups.
const MAKING_LOCK: i64 = 0x666c_7963_6974_656e;

/// Waits until nobody else makes a tenant.
pub async fn lock_making(db: impl PgExecutor<'_>) -> Result<()> {
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", MAKING_LOCK).execute(db).await?;
    Ok(())
}

/// Makes a tenant, unless the installation is known.
pub async fn insert(db: impl PgExecutor<'_>, new: &NewTenant<'_>) -> Result<()> {
    sqlx::query!(
        "INSERT INTO tenants (id, installation_lookup, account_lookup, wrapped_keys, installation_id,
                              account_id, account, account_kind, admission)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         ON CONFLICT (installation_lookup) DO NOTHING",
        new.id.0,
        new.installation_lookup.as_bytes(),
        new.account_lookup.as_bytes(),
        new.wrapped_keys,
        new.installation_id.0,
        new.account_id.0,
        new.account.0,
        new.account_kind,
        new.admission.as_str()
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The tenant of an installation: during a rotation of the master key under one of several look-ups.
pub async fn find(db: impl PgExecutor<'_>, installation: &[Lookup]) -> Result<Option<Tenant>> {
    let lookups: Vec<Vec<u8>> = installation.iter().map(|lookup| lookup.as_bytes().to_vec()).collect();
    Ok(sqlx::query_as!(
        Tenant,
        r#"SELECT id AS "id: TenantId", wrapped_keys, installation_id AS "installation_id: Sealed",
                  account_id AS "account_id: Sealed", account AS "account: Sealed", account_kind, admission,
                  suspended_at, uninstalled_at, vm_limit, created_at
           FROM tenants WHERE installation_lookup = ANY($1)"#,
        &lookups
    )
    .fetch_optional(db)
    .await?)
}

/// The tenants of these installations, as far as they are known.
pub async fn ids_of(db: impl PgExecutor<'_>, installations: &[Lookup]) -> Result<Vec<TenantId>> {
    let lookups: Vec<Vec<u8>> = installations.iter().map(|lookup| lookup.as_bytes().to_vec()).collect();
    Ok(sqlx::query_scalar!(
        r#"SELECT id AS "id: TenantId" FROM tenants WHERE installation_lookup = ANY ($1)"#,
        &lookups
    )
    .fetch_all(db)
    .await?)
}

/// One tenant by our id.
pub async fn get(db: impl PgExecutor<'_>, id: TenantId) -> Result<Option<Tenant>> {
    Ok(sqlx::query_as!(
        Tenant,
        r#"SELECT id AS "id: TenantId", wrapped_keys, installation_id AS "installation_id: Sealed",
                  account_id AS "account_id: Sealed", account AS "account: Sealed", account_kind, admission,
                  suspended_at, uninstalled_at, vm_limit, created_at
           FROM tenants WHERE id = $1"#,
        id.0
    )
    .fetch_optional(db)
    .await?)
}

/// Every tenant, oldest first.
pub async fn all(db: impl PgExecutor<'_>) -> Result<Vec<Tenant>> {
    Ok(sqlx::query_as!(
        Tenant,
        r#"SELECT id AS "id: TenantId", wrapped_keys, installation_id AS "installation_id: Sealed",
                  account_id AS "account_id: Sealed", account AS "account: Sealed", account_kind, admission,
                  suspended_at, uninstalled_at, vm_limit, created_at
           FROM tenants ORDER BY created_at"#
    )
    .fetch_all(db)
    .await?)
}

/// Writes the operator's decision.
pub async fn set_admission(db: impl PgExecutor<'_>, id: TenantId, admission: Admission) -> Result<()> {
    sqlx::query!("UPDATE tenants SET admission = $2 WHERE id = $1", id.0, admission.as_str()).execute(db).await?;
    Ok(())
}

/// Writes how many vms the tenant may have at once; `None` is the configured limit.
pub async fn set_vm_limit(db: impl PgExecutor<'_>, id: TenantId, limit: Option<i32>) -> Result<()> {
    sqlx::query!("UPDATE tenants SET vm_limit = $2 WHERE id = $1", id.0, limit).execute(db).await?;
    Ok(())
}

/// What GitHub says of an installation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It works.
    Active,
    /// The account suspended it.
    Suspended,
    /// It is uninstalled.
    Uninstalled,
}

/// Writes what GitHub says of an installation. The doubt of `since` is settled with it; one that came while GitHub
/// was asked is not.
pub async fn set_standing(
    db: impl PgExecutor<'_>,
    id: TenantId,
    standing: Standing,
    since: DateTime<Utc>,
) -> Result<()> {
    sqlx::query!(
        "UPDATE tenants SET
            verify_since = nullif(verify_since, $4),
            suspended_at = CASE WHEN $2 THEN coalesce(suspended_at, clock_timestamp()) END,
            uninstalled_at = CASE WHEN $3 THEN coalesce(uninstalled_at, clock_timestamp()) END
         WHERE id = $1",
        id.0,
        standing == Standing::Suspended,
        standing == Standing::Uninstalled,
        since
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Puts an installation in doubt: GitHub is asked how it stands.
pub async fn doubt(db: impl PgExecutor<'_>, id: TenantId) -> Result<()> {
    sqlx::query!("UPDATE tenants SET verify_since = clock_timestamp() WHERE id = $1", id.0).execute(db).await?;
    Ok(())
}

/// Installations whose standing GitHub is to be asked about, each with the time of its last doubt: oldest first.
pub async fn doubtful(db: impl PgExecutor<'_>, limit: i64) -> Result<Vec<(TenantId, DateTime<Utc>)>> {
    let rows = sqlx::query!(
        r#"SELECT id AS "id: TenantId", verify_since AS "since!" FROM tenants
           WHERE verify_since IS NOT NULL ORDER BY verify_since LIMIT $1"#,
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.since)).collect())
}

/// Writes the account's new login.
pub async fn set_account(db: impl PgExecutor<'_>, id: TenantId, account: &Sealed) -> Result<()> {
    sqlx::query!("UPDATE tenants SET account = $2 WHERE id = $1", id.0, account.0).execute(db).await?;
    Ok(())
}
