//! Until when GitHub holds calls back: one row for each installation and budget, shared by all gateways.

use super::Result;
use crate::domain::ids::TenantId;
use sqlx::PgExecutor;
use std::time::Duration;

/// A hold, by the look-up of an installation; an empty one is the App itself.
#[derive(Clone, Debug)]
pub struct Held {
    /// Finds the installation.
    pub installation_lookup: Vec<u8>,
    /// The tenant of it; `None`: the App, or an installation that is not known.
    pub tenant: Option<TenantId>,
    /// Which calls: a word of the closed list.
    pub budget: String,
    /// For how long.
    pub wait: Duration,
}

/// Writes a hold. It never shortens one.
pub async fn put(db: impl PgExecutor<'_>, installation_lookup: &[u8], budget: &str, wait: Duration) -> Result<()> {
    sqlx::query!(
        "INSERT INTO github_holds AS h (installation_lookup, budget, until)
         VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
         ON CONFLICT (installation_lookup, budget) DO UPDATE SET until = EXCLUDED.until
         WHERE h.until < EXCLUDED.until - interval '1 second'",
        installation_lookup,
        budget,
        wait.as_secs_f64()
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The holds that last, up to `limit`; those that are over are forgotten.
pub async fn current(db: impl PgExecutor<'_>, limit: i64) -> Result<Vec<Held>> {
    let rows = sqlx::query!(
        r#"WITH over AS (DELETE FROM github_holds WHERE until <= clock_timestamp())
           SELECT h.installation_lookup, t.id AS "tenant?: TenantId", h.budget,
                  extract(epoch FROM h.until - clock_timestamp())::float8 AS "wait_s!"
           FROM github_holds h LEFT JOIN tenants t ON t.installation_lookup = h.installation_lookup
           WHERE h.until > clock_timestamp() ORDER BY h.until DESC LIMIT $1"#,
        limit
    )
    .fetch_all(db)
    .await?;
    let held = rows.into_iter().map(|row| Held {
        installation_lookup: row.installation_lookup,
        tenant: row.tenant,
        budget: row.budget,
        wait: Duration::try_from_secs_f64(row.wait_s).unwrap_or_default(),
    });
    Ok(held.collect())
}
