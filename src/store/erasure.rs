//! Forgetting a tenant: what must end first, its rows batch by batch, and its own row with the wrapped keys.

use super::Result;
use crate::domain::ids::{TenantId, VmId};
use crate::domain::reason::VmEnd;
use crate::secrets::KeyId;
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor, PgPool};

/// Repositories that go in one statement: for each, the tables that name it are looked through.
const REPOSITORIES: i64 = 20;

/// Asks for a tenant to be forgotten: nothing of it is served any more.
pub async fn ask(db: impl PgExecutor<'_>, tenant: TenantId) -> Result<()> {
    sqlx::query!(
        "UPDATE tenants SET erase_asked_at = coalesce(erase_asked_at, clock_timestamp()), admission = 'suspended'
         WHERE id = $1",
        tenant.0
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Tenants that were uninstalled before `before`, and that nobody asked to forget yet.
pub async fn forgotten_by_github(db: impl PgExecutor<'_>, before: DateTime<Utc>, limit: i64) -> Result<Vec<TenantId>> {
    Ok(sqlx::query_scalar!(
        r#"SELECT id AS "id: TenantId" FROM tenants
           WHERE uninstalled_at < $1 AND erase_asked_at IS NULL ORDER BY uninstalled_at LIMIT $2"#,
        before,
        limit
    )
    .fetch_all(db)
    .await?)
}

/// A tenant that is to be forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Due {
    /// The tenant.
    pub id: TenantId,
    /// Since when.
    pub asked_at: DateTime<Utc>,
    /// Its vms that are not gone.
    pub vms: i64,
    /// Its registrations that GitHub may still have.
    pub runners: i64,
}

/// Tenants that are to be forgotten, longest first.
pub async fn due(db: impl PgExecutor<'_>, limit: i64) -> Result<Vec<Due>> {
    Ok(sqlx::query_as!(
        Due,
        r#"SELECT t.id AS "id: TenantId", t.erase_asked_at AS "asked_at!",
                  (SELECT count(*) FROM vms v WHERE v.tenant_id = t.id AND v.state <> 'gone') AS "vms!",
                  (SELECT count(*) FROM runners r WHERE r.tenant_id = t.id AND r.state NOT IN ('removed', 'void')) AS "runners!"
           FROM tenants t WHERE t.erase_asked_at IS NOT NULL ORDER BY t.erase_asked_at LIMIT $1"#,
        limit
    )
    .fetch_all(db)
    .await?)
}

/// Asks the hosts to destroy the tenant's vms. Answers those that were not asked for before.
pub async fn kill_vms(db: impl PgExecutor<'_>, tenant: TenantId) -> Result<Vec<VmId>> {
    Ok(sqlx::query_scalar!(
        r#"UPDATE vms SET kill_asked = $2
           WHERE tenant_id = $1 AND state NOT IN ('stopping', 'gone') AND kill_asked IS NULL
           RETURNING id AS "id: VmId""#,
        tenant.0,
        VmEnd::Killed.as_str()
    )
    .fetch_all(db)
    .await?)
}

/// Removes up to `limit` rows of each kind. Answers how many; 0: only the tenant's own row is left.
pub async fn remove_rows(pool: &PgPool, tenant: TenantId, limit: i64) -> Result<u64> {
    let id = tenant.0;
    let mut removed = 0;
    removed +=
        sqlx::query!("DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE tenant_id = $1 LIMIT $2)", id, limit)
            .execute(pool)
            .await?
            .rows_affected();
    removed += sqlx::query!(
        "DELETE FROM runners WHERE id IN (SELECT id FROM runners WHERE tenant_id = $1 LIMIT $2)",
        id,
        limit
    )
    .execute(pool)
    .await?
    .rows_affected();
    removed += sqlx::query!(
        "DELETE FROM refusals WHERE id IN (SELECT id FROM refusals WHERE tenant_id = $1 LIMIT $2)",
        id,
        limit
    )
    .execute(pool)
    .await?
    .rows_affected();
    // A host's vms are its own history: they forget whose they were.
    removed += sqlx::query!(
        "UPDATE vms SET tenant_id = NULL, repository_id = NULL, class = NULL
         WHERE id IN (SELECT id FROM vms WHERE tenant_id = $1 LIMIT $2)",
        id,
        limit
    )
    .execute(pool)
    .await?
    .rows_affected();
    if removed > 0 {
        return Ok(removed);
    }
    Ok(sqlx::query!(
        "DELETE FROM repositories WHERE id IN (SELECT id FROM repositories WHERE tenant_id = $1 LIMIT $2)",
        id,
        REPOSITORIES
    )
    .execute(pool)
    .await?
    .rows_affected())
}

/// Removes the tenant's own row, with its wrapped keys and whatever came meanwhile, and remembers which
/// master key could have opened them. `false` when it was gone.
pub async fn finish(tx: &mut PgConnection, tenant: TenantId, master_key: KeyId) -> Result<bool> {
    sqlx::query!(
        "DELETE FROM github_holds WHERE installation_lookup IN (SELECT installation_lookup FROM tenants WHERE id = $1)",
        tenant.0
    )
    .execute(&mut *tx)
    .await?;
    let gone = sqlx::query!("DELETE FROM tenants WHERE id = $1", tenant.0).execute(&mut *tx).await?.rows_affected();
    if gone == 0 {
        return Ok(false);
    }
    sqlx::query!("INSERT INTO erasures (tenant_id, master_key) VALUES ($1, $2)", tenant.0, master_key.as_bytes())
        .execute(tx)
        .await?;
    Ok(true)
}

/// Whether the tenant is there, when it was forgotten, and from when on that is final.
pub async fn erased(
    db: impl PgExecutor<'_>,
    tenant: TenantId,
) -> Result<Option<(DateTime<Utc>, Option<DateTime<Utc>>)>> {
    let row = sqlx::query!("SELECT erased_at, final_from FROM erasures WHERE tenant_id = $1", tenant.0)
        .fetch_optional(db)
        .await?;
    Ok(row.map(|row| (row.erased_at, row.final_from)))
}
