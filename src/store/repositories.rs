//! The repositories that jobs came from.

use super::Result;
use crate::domain::ids::{RepositoryId, TenantId};
use crate::domain::reason::words;
use crate::secrets::{Lookup, Sealed};
use chrono::{DateTime, Utc};
use sqlx::PgExecutor;
use std::time::Duration;

words! {
    /// Who can see a repository, and so who can bring code to it.
    Visibility {
        /// Its members.
        Private = "private",
        /// Everybody.
        Public = "public",
    }
}

/// One repository.
#[derive(Clone, Debug)]
pub struct Repository {
    /// Our id.
    pub id: RepositoryId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// GitHub's id.
    pub github_id: Sealed,
    /// `owner/name`.
    pub name: Sealed,
    /// Who can see it.
    pub visibility: String,
    /// Since when it is gone, or not ours to serve.
    pub removed_at: Option<DateTime<Utc>>,
}

/// What a delivery says of a repository.
pub struct Told<'a> {
    /// Our id, if it is new.
    pub id: RepositoryId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Finds it by GitHub's id.
    pub lookup: Lookup,
    /// GitHub's id.
    pub github_id: &'a Sealed,
    /// `owner/name`.
    pub name: &'a Sealed,
    /// Who can see it.
    pub visibility: Visibility,
}

/// Makes the repository. Answers our id, which another gateway may have given it.
pub async fn insert(db: impl PgExecutor<'_>, told: &Told<'_>) -> Result<RepositoryId> {
    Ok(sqlx::query_scalar!(
        r#"INSERT INTO repositories (id, tenant_id, github_lookup, github_id, name, visibility)
           VALUES ($1, $2, $3, $4, $5, $6)
           ON CONFLICT (tenant_id, github_lookup) DO UPDATE SET removed_at = NULL
           RETURNING id AS "id: RepositoryId""#,
        told.id.0,
        told.tenant.0,
        told.lookup.as_bytes(),
        told.github_id.0,
        told.name.0,
        told.visibility.as_str()
    )
    .fetch_one(db)
    .await?)
}

/// Writes a repository's present name and visibility; it is there (again).
pub async fn rewrite(db: impl PgExecutor<'_>, id: RepositoryId, name: &Sealed, visibility: Visibility) -> Result<()> {
    sqlx::query!(
        "UPDATE repositories SET name = $2, visibility = $3, removed_at = NULL WHERE id = $1",
        id.0,
        name.0,
        visibility.as_str()
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Writes who can see a repository.
pub async fn set_visibility(db: impl PgExecutor<'_>, id: RepositoryId, visibility: Visibility) -> Result<()> {
    sqlx::query!("UPDATE repositories SET visibility = $2 WHERE id = $1", id.0, visibility.as_str())
        .execute(db)
        .await?;
    Ok(())
}

/// The repository of a tenant with this id of GitHub's.
pub async fn find(db: impl PgExecutor<'_>, tenant: TenantId, lookup: Lookup) -> Result<Option<Repository>> {
    Ok(sqlx::query_as!(
        Repository,
        r#"SELECT id AS "id: RepositoryId", tenant_id AS "tenant_id: TenantId",
                  github_id AS "github_id: Sealed", name AS "name: Sealed", visibility, removed_at
           FROM repositories WHERE tenant_id = $1 AND github_lookup = $2"#,
        tenant.0,
        lookup.as_bytes()
    )
    .fetch_optional(db)
    .await?)
}

/// One repository by our id.
pub async fn get(db: impl PgExecutor<'_>, id: RepositoryId) -> Result<Option<Repository>> {
    Ok(sqlx::query_as!(
        Repository,
        r#"SELECT id AS "id: RepositoryId", tenant_id AS "tenant_id: TenantId",
                  github_id AS "github_id: Sealed", name AS "name: Sealed", visibility, removed_at
           FROM repositories WHERE id = $1"#,
        id.0
    )
    .fetch_optional(db)
    .await?)
}

/// Marks a repository as removed, transferred away or deleted.
pub async fn mark_removed(db: impl PgExecutor<'_>, id: RepositoryId) -> Result<()> {
    sqlx::query!(
        "UPDATE repositories SET removed_at = coalesce(removed_at, clock_timestamp()), verify_since = NULL WHERE id = $1",
        id.0
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Puts a repository in doubt: GitHub is asked what it is called, and whether we reach it.
pub async fn doubt(db: impl PgExecutor<'_>, id: RepositoryId) -> Result<()> {
    sqlx::query!("UPDATE repositories SET verify_since = clock_timestamp() WHERE id = $1 AND removed_at IS NULL", id.0)
        .execute(db)
        .await?;
    Ok(())
}

/// Since when a repository is in doubt.
pub async fn doubted_since(db: impl PgExecutor<'_>, id: RepositoryId) -> Result<Option<DateTime<Utc>>> {
    Ok(sqlx::query_scalar!("SELECT verify_since FROM repositories WHERE id = $1", id.0)
        .fetch_optional(db)
        .await?
        .flatten())
}

/// Takes the doubt of `since` away; one that came while GitHub was asked stays.
pub async fn confirm(db: impl PgExecutor<'_>, id: RepositoryId, since: Option<DateTime<Utc>>) -> Result<()> {
    sqlx::query!("UPDATE repositories SET verify_since = nullif(verify_since, $2) WHERE id = $1", id.0, since)
        .execute(db)
        .await?;
    Ok(())
}

/// Repositories that GitHub is to be asked about, of installations that work and are not in doubt themselves.
pub async fn doubtful(db: impl PgExecutor<'_>, limit: i64) -> Result<Vec<(RepositoryId, TenantId)>> {
    let rows = sqlx::query!(
        r#"SELECT r.id AS "id: RepositoryId", r.tenant_id AS "tenant: TenantId"
           FROM repositories r JOIN tenants t ON t.id = r.tenant_id
           WHERE r.verify_since IS NOT NULL AND t.verify_since IS NULL
             AND t.suspended_at IS NULL AND t.uninstalled_at IS NULL
           ORDER BY r.verify_since LIMIT $1"#,
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.tenant)).collect())
}

/// A repository whose open jobs are to be listed.
#[derive(Clone, Debug)]
pub struct Due {
    /// Our id.
    pub id: RepositoryId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Of the last list, if nothing was open in it.
    pub etag: Option<String>,
}

/// How often a repository is looked at, by when it last had a job.
#[derive(Clone, Copy, Debug)]
pub struct Rhythm {
    /// In the last hour.
    pub hour: Duration,
    /// In the last day.
    pub day: Duration,
    /// In the last month.
    pub month: Duration,
    /// Before that.
    pub older: Duration,
}

/// Served repositories whose turn it is, those that last had a job first. Of those that had one in the last month,
/// it is the turn of each that was not looked at since `since`.
pub async fn due_for_scan(
    db: impl PgExecutor<'_>,
    rhythm: &Rhythm,
    since: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Due>> {
    Ok(sqlx::query_as!(
        Due,
        r#"SELECT r.id AS "id: RepositoryId", r.tenant_id AS "tenant: TenantId", r.scan_etag AS etag
           FROM repositories r JOIN tenants t ON t.id = r.tenant_id
           CROSS JOIN LATERAL (SELECT max(j.received_at) AS at FROM jobs j WHERE j.repository_id = r.id) a
           WHERE r.removed_at IS NULL AND r.verify_since IS NULL
             AND t.admission = 'approved' AND t.suspended_at IS NULL AND t.uninstalled_at IS NULL
             AND (r.scanned_at IS NULL OR (r.scanned_at < $2 AND a.at > clock_timestamp() - interval '30 days')
                  OR r.scanned_at < clock_timestamp() - make_interval(secs => CASE
                      WHEN a.at > clock_timestamp() - interval '1 hour' THEN $3
                      WHEN a.at > clock_timestamp() - interval '1 day' THEN $4
                      WHEN a.at > clock_timestamp() - interval '30 days' THEN $5 ELSE $6::float8 END))
           ORDER BY a.at DESC NULLS LAST, r.scanned_at NULLS FIRST LIMIT $1"#,
        limit,
        since,
        rhythm.hour.as_secs_f64(),
        rhythm.day.as_secs_f64(),
        rhythm.month.as_secs_f64(),
        rhythm.older.as_secs_f64()
    )
    .fetch_all(db)
    .await?)
}

/// Writes that a repository's open jobs were listed, or that it was tried: `etag` is kept only of a list that was
/// handled.
pub async fn scanned(db: impl PgExecutor<'_>, id: RepositoryId, etag: Option<&str>) -> Result<()> {
    sqlx::query!("UPDATE repositories SET scanned_at = clock_timestamp(), scan_etag = $2 WHERE id = $1", id.0, etag)
        .execute(db)
        .await?;
    Ok(())
}

/// Served repositories in which runners were made within `within`, whose registrations were not listed for `period`.
pub async fn due_for_sweep(
    db: impl PgExecutor<'_>,
    within: Duration,
    period: Duration,
    limit: i64,
) -> Result<Vec<(RepositoryId, TenantId)>> {
    let rows = sqlx::query!(
        r#"SELECT r.id AS "id: RepositoryId", r.tenant_id AS "tenant: TenantId"
           FROM repositories r JOIN tenants t ON t.id = r.tenant_id
           WHERE r.removed_at IS NULL AND t.suspended_at IS NULL AND t.uninstalled_at IS NULL
             AND (r.swept_at IS NULL OR r.swept_at < clock_timestamp() - make_interval(secs => $2))
             AND r.id IN (SELECT u.repository_id FROM runner_names n JOIN runners u ON u.id = n.runner_id
                          WHERE n.tried_at > clock_timestamp() - make_interval(secs => $1))
           ORDER BY r.swept_at NULLS FIRST LIMIT $3"#,
        within.as_secs_f64(),
        period.as_secs_f64(),
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.tenant)).collect())
}

/// Writes that a repository's registrations were listed.
pub async fn swept(db: impl PgExecutor<'_>, id: RepositoryId) -> Result<()> {
    sqlx::query!("UPDATE repositories SET swept_at = clock_timestamp() WHERE id = $1", id.0).execute(db).await?;
    Ok(())
}
