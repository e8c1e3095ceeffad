//! Where a call to GitHub goes: the installation and the repository of a row, opened for the time of
//! the call. The only other place that opens names is the operator's API.

use crate::domain::ids::{RepositoryId, TenantId};
use crate::github::{Denial, GitHubError, InstallationId, RepositoryRef};
use crate::secrets::{Column, KeyRing, SecretsError, TenantKeys};
use crate::store::repositories::Visibility;
use crate::store::tenants::Tenant;
use crate::store::{StoreError, repositories, tenants};
use sqlx::PgPool;
use std::sync::Arc;

/// An installation and one of its repositories.
pub struct Place {
    /// The tenant.
    pub tenant: Tenant,
    /// Opens the tenant's values.
    pub keys: Arc<TenantKeys>,
    /// GitHub's id of the installation.
    pub installation: InstallationId,
    /// Everybody can see the repository.
    pub is_public: bool,
    /// The repository is gone, or not ours to serve: GitHub answers no question about it.
    pub is_removed: bool,
    repository_id: u64,
    repository_name: String,
}

impl Place {
    /// The repository.
    #[must_use]
    pub fn repository(&self) -> RepositoryRef<'_> {
        RepositoryRef { id: self.repository_id, full_name: &self.repository_name }
    }
}

/// Why a place could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The database is away.
    #[error("the tenant or the repository could not be read")]
    Store(#[from] StoreError),
    /// A stored value does not open.
    #[error("the stored values of the tenant cannot be opened")]
    Secrets(#[from] SecretsError),
    /// A row is gone.
    #[error("the {0} is not there any more")]
    Missing(&'static str),
}

/// Opens the place of a tenant's repository.
///
/// # Errors
/// When a row is gone, or does not open with the master key that we have.
pub async fn open(
    pool: &PgPool,
    ring: &KeyRing,
    tenant: TenantId,
    repository: RepositoryId,
) -> Result<Place, PlaceError> {
    let tenant = tenants::get(pool, tenant).await?.ok_or(PlaceError::Missing("tenant"))?;
    let repository = repositories::get(pool, repository).await?.ok_or(PlaceError::Missing("repository"))?;
    let keys = ring.unwrap(tenant.id, &tenant.wrapped_keys)?;
    Ok(Place {
        installation: installation(&keys, &tenant)?,
        is_public: repository.visibility != Visibility::Private.as_str(),
        is_removed: repository.removed_at.is_some(),
        repository_id: keys.open_id(Column::RepositoryGithubId, repository.id.0, &repository.github_id)?,
        repository_name: keys.open_text(Column::RepositoryName, repository.id.0, &repository.name)?,
        tenant,
        keys,
    })
}

/// Puts in doubt what GitHub's refusal speaks of: the installation, the repository or both. `false` when the
/// refusal says nothing of either.
///
/// # Errors
/// When the database is away.
pub async fn suspect(
    pool: &PgPool,
    tenant: TenantId,
    repository: RepositoryId,
    refusal: &GitHubError,
) -> Result<bool, StoreError> {
    let (of_tenant, of_repository) = match refusal {
        GitHubError::NotFound { .. } | GitHubError::Moved { .. } => (true, true),
        GitHubError::InstallationSuspended { .. }
        | GitHubError::Unauthorized { .. }
        | GitHubError::Forbidden { reason: Denial::MissingPermission, .. } => (true, false),
        GitHubError::RateLimited { .. }
        | GitHubError::Forbidden { .. }
        | GitHubError::NameTaken { .. }
        | GitHubError::Invalid { .. }
        | GitHubError::Server { .. }
        | GitHubError::Network { .. }
        | GitHubError::Decode { .. }
        | GitHubError::Input { .. } => (false, false),
    };
    if of_tenant {
        tenants::doubt(pool, tenant).await?;
    }
    if of_repository {
        repositories::doubt(pool, repository).await?;
    }
    Ok(of_tenant || of_repository)
}

/// GitHub's id of a tenant's installation.
///
/// # Errors
/// When it does not open.
pub fn installation(keys: &TenantKeys, tenant: &Tenant) -> Result<InstallationId, SecretsError> {
    Ok(InstallationId(keys.open_id(Column::TenantInstallationId, tenant.id.0, &tenant.installation_id)?))
}
