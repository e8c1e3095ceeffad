//! Master keys by their ids, which gateways have them, what is still wrapped by each, and the erasures
//! that wait for one to be destroyed.
//!
//! The id of the key that wrapped something is in it (`secrets`): bytes 2 to 5.

use super::Result;
use crate::domain::ids::TenantId;
use crate::secrets::{KeyId, Lookup};
use chrono::{DateTime, Utc};
use sqlx::{PgExecutor, PgPool};
use uuid::Uuid;

/// A gateway that was not heard of for so many seconds does not count as running: it speaks every five.
const SILENT_AFTER_S: f64 = 60.0;
/// A gateway that was not heard of for so many days is forgotten, with the master keys that it had.
const FORGOTTEN_AFTER_DAYS: i32 = 30;

/// Writes that a gateway runs, and which master keys it has: the first is the one that it wraps with.
/// Its own row of an earlier process goes.
pub async fn announce(pool: &PgPool, gateway: Uuid, name: &str, keys: &[KeyId]) -> Result<()> {
    let ids: Vec<Vec<u8>> = keys.iter().map(|key| key.as_bytes().to_vec()).collect();
    let mut tx = pool.begin().await?;
    sqlx::query!(
        "INSERT INTO gateways (id, name, master_keys) VALUES ($1, $2, $3)
         ON CONFLICT (id) DO UPDATE SET master_keys = EXCLUDED.master_keys, seen_at = clock_timestamp()",
        gateway,
        name,
        &ids
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "DELETE FROM gateways WHERE id <> $1 AND seen_at < clock_timestamp() - make_interval(secs => $3)
           AND (name = $2 OR seen_at < clock_timestamp() - make_interval(days => $4))",
        gateway,
        name,
        SILENT_AFTER_S,
        FORGOTTEN_AFTER_DAYS
    )
    .execute(&mut *tx)
    .await?;
    // One that was destroyed and is here again came from a backup.
    sqlx::query!(
        "INSERT INTO master_keys (id) SELECT unnest($1::bytea[])
         ON CONFLICT (id) DO UPDATE SET destroyed_at = NULL WHERE master_keys.destroyed_at IS NOT NULL",
        &ids
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(())
}

/// A gateway, with its master keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gateway {
    /// Its machine's name.
    pub name: String,
    /// The master keys that it has; the first is the one that it wraps with.
    pub keys: Vec<KeyId>,
    /// Whether it was heard of lately.
    pub runs: bool,
}

/// The gateways that are remembered.
pub async fn gateways(db: impl PgExecutor<'_>) -> Result<Vec<Gateway>> {
    let rows = sqlx::query!(
        r#"SELECT name, master_keys, seen_at > clock_timestamp() - make_interval(secs => $1) AS "runs!"
           FROM gateways ORDER BY name, id"#,
        SILENT_AFTER_S
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Gateway {
            name: row.name,
            keys: row.master_keys.iter().filter_map(|id| KeyId::from_bytes(id)).collect(),
            runs: row.runs,
        })
        .collect())
}

/// A master key, and what is known of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MasterKeyRow {
    /// Its id.
    pub id: KeyId,
    /// When a gateway had it first.
    pub first_at: DateTime<Utc>,
    /// Since when no gateway has it any more.
    pub destroyed_at: Option<DateTime<Utc>>,
    /// Tenants whose keys it wraps.
    pub tenants: i64,
    /// Whether it wraps the audit trail's key.
    pub audit: bool,
    /// Erasures that become final by its destruction.
    pub erasures: i64,
}

impl MasterKeyRow {
    /// True when something stored does not open without it.
    #[must_use]
    pub const fn is_needed(&self) -> bool {
        self.tenants > 0 || self.audit
    }
}

/// Every master key that ever was, the newest first; also one that wraps something and that no gateway had.
pub async fn master_keys(db: impl PgExecutor<'_>) -> Result<Vec<MasterKeyRow>> {
    let rows = sqlx::query!(
        r#"WITH wraps AS (SELECT substring(wrapped_keys from 2 for 4) AS id, count(*) AS tenants FROM tenants GROUP BY 1),
                trail AS (SELECT substring(wrapped from 2 for 4) AS id FROM audit_key),
                ids AS (SELECT id FROM master_keys UNION SELECT id FROM wraps UNION SELECT id FROM trail)
           SELECT ids.id AS "id!", coalesce(m.first_at, clock_timestamp()) AS "first_at!", m.destroyed_at AS "destroyed_at?",
                  coalesce(w.tenants, 0) AS "tenants!", EXISTS (SELECT 1 FROM trail t WHERE t.id = ids.id) AS "audit!",
                  (SELECT count(*) FROM erasures e WHERE e.master_key = ids.id AND e.final_from IS NULL) AS "erasures!"
           FROM ids LEFT JOIN master_keys m ON m.id = ids.id LEFT JOIN wraps w ON w.id = ids.id
           ORDER BY m.first_at DESC NULLS LAST"#
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| {
            Some(MasterKeyRow {
                id: KeyId::from_bytes(&row.id)?,
                first_at: row.first_at,
                destroyed_at: row.destroyed_at,
                tenants: row.tenants,
                audit: row.audit,
                erasures: row.erasures,
            })
        })
        .collect())
}

/// A tenant whose keys are to be wrapped anew.
#[derive(Clone, Debug)]
pub struct ToRewrap {
    /// The tenant.
    pub id: TenantId,
    /// Its keys as they are wrapped now.
    pub wrapped_keys: Vec<u8>,
    /// GitHub's installation id.
    pub installation_id: crate::secrets::Sealed,
    /// GitHub's id of the account.
    pub account_id: crate::secrets::Sealed,
}

/// Up to `limit` tenants after `after` whose keys another master key wraps than this.
pub async fn to_rewrap(db: impl PgExecutor<'_>, current: KeyId, after: TenantId, limit: i64) -> Result<Vec<ToRewrap>> {
    Ok(sqlx::query_as!(
        ToRewrap,
        r#"SELECT id AS "id: TenantId", wrapped_keys, installation_id AS "installation_id: crate::secrets::Sealed",
                  account_id AS "account_id: crate::secrets::Sealed"
           FROM tenants WHERE substring(wrapped_keys from 2 for 4) <> $1 AND id > $2 ORDER BY id LIMIT $3"#,
        current.as_bytes(),
        after.0,
        limit
    )
    .fetch_all(db)
    .await?)
}

/// Writes a tenant's keys as another master key wraps them, with the look-ups that it makes; nothing when
/// somebody else was faster.
pub async fn rewrap(
    db: impl PgExecutor<'_>,
    tenant: &ToRewrap,
    wrapped: &[u8],
    installation: Lookup,
    account: Lookup,
) -> Result<()> {
    sqlx::query!(
        "UPDATE tenants SET wrapped_keys = $3, installation_lookup = $4, account_lookup = $5
         WHERE id = $1 AND wrapped_keys = $2",
        tenant.id.0,
        tenant.wrapped_keys,
        wrapped,
        installation.as_bytes(),
        account.as_bytes()
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Writes that a master key is destroyed, and from when on the erasures that waited for it are final.
/// Answers their tenants; `None` when it was written before.
pub async fn mark_destroyed(
    db: &mut sqlx::PgConnection,
    key: KeyId,
    final_from: DateTime<Utc>,
) -> Result<Option<Vec<Uuid>>> {
    let marked = sqlx::query!(
        "UPDATE master_keys SET destroyed_at = clock_timestamp() WHERE id = $1 AND destroyed_at IS NULL",
        key.as_bytes()
    )
    .execute(&mut *db)
    .await?
    .rows_affected();
    if marked == 0 {
        return Ok(None);
    }
    let settled = sqlx::query_scalar!(
        "UPDATE erasures SET final_from = $2 WHERE master_key = $1 AND final_from IS NULL RETURNING tenant_id",
        key.as_bytes(),
        final_from
    )
    .fetch_all(db)
    .await?;
    Ok(Some(settled))
}
