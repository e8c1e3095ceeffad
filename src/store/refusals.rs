//! Jobs that we do not serve: enough to say why, for every job that anybody asks about.

use super::Result;
use crate::domain::ids::TenantId;
use crate::domain::reason::Waiting;
use crate::secrets::Lookup;
use chrono::{DateTime, Utc};
use sqlx::PgExecutor;

/// Why a job was not taken.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Refusal {
    /// A word of the closed list.
    pub reason: String,
    /// The profile whose label is nearest to the job's.
    pub nearest_profile: Option<String>,
    /// The label, if it begins with our prefix.
    pub label: Option<String>,
    /// When.
    pub refused_at: DateTime<Utc>,
}

/// Remembers why a job was not taken.
pub async fn record(
    db: impl PgExecutor<'_>,
    tenant: TenantId,
    job: Lookup,
    reason: Waiting,
    nearest_profile: Option<&str>,
    label: Option<&str>,
) -> Result<()> {
    sqlx::query!(
        "INSERT INTO refusals (tenant_id, github_lookup, reason, nearest_profile, label) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (tenant_id, github_lookup)
         DO UPDATE SET reason = EXCLUDED.reason, nearest_profile = EXCLUDED.nearest_profile, label = EXCLUDED.label,
                       refused_at = clock_timestamp()
         WHERE refusals.reason <> EXCLUDED.reason OR refusals.label IS DISTINCT FROM EXCLUDED.label",
        tenant.0,
        job.as_bytes(),
        reason.as_str(),
        nearest_profile,
        label
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Why this job was not taken, if it was not.
pub async fn find(db: impl PgExecutor<'_>, tenant: TenantId, job: Lookup) -> Result<Option<Refusal>> {
    Ok(sqlx::query_as!(
        Refusal,
        "SELECT reason, nearest_profile, label, refused_at FROM refusals WHERE tenant_id = $1 AND github_lookup = $2",
        tenant.0,
        job.as_bytes()
    )
    .fetch_optional(db)
    .await?)
}

/// How many jobs were refused since `since`, by reason.
pub async fn count_by_reason(db: impl PgExecutor<'_>, since: DateTime<Utc>) -> Result<Vec<(String, i64)>> {
    let rows = sqlx::query!(
        r#"SELECT reason, count(*) AS "count!" FROM refusals WHERE refused_at >= $1 GROUP BY reason ORDER BY reason"#,
        since
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.reason, row.count)).collect())
}

/// Forgets up to `limit` refusals from before `before`. Answers how many.
pub async fn prune(db: impl PgExecutor<'_>, before: DateTime<Utc>, limit: i64) -> Result<u64> {
    Ok(sqlx::query!(
        "DELETE FROM refusals WHERE id IN (SELECT id FROM refusals WHERE refused_at < $1 ORDER BY refused_at LIMIT $2)",
        before,
        limit
    )
    .execute(db)
    .await?
    .rows_affected())
}
