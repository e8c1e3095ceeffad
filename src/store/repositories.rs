//! The repositories that jobs came from.

use super::Result;
use crate::domain::ids::{RepositoryId, TenantId};
use crate::domain::reason::words;
use crate::secrets::{Lookup, Sealed};
use chrono::{DateTime, Utc};
use sqlx::PgExecutor;

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
    sqlx::query!("UPDATE repositories SET removed_at = clock_timestamp() WHERE id = $1 AND removed_at IS NULL", id.0)
        .execute(db)
        .await?;
    Ok(())
}
