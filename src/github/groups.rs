//! The runner group of one repository, for organisations that forbid runners on repositories or
//! would rather not grant Administration.
//! <https://docs.github.com/en/rest/actions/self-hosted-runner-groups>
//!
//! A runner in such a group can be used by the group's repositories, so the group must hold exactly
//! one: that is looked at before the group is used, and again every few minutes.

use super::auth::TokenKey;
use super::error::{Call, Denial, GitHubError, Result};
use super::exchange::Idempotent;
use super::once::Once;
use super::permission::PermissionSet;
use super::request::{RepositoryRef, Request};
use super::{GitHub, InstallationId};
use serde::Deserialize;
use std::time::Duration;

/// How long a group is believed to be as it was seen.
const BELIEVED: Duration = Duration::from_secs(300);
/// Groups per page: GitHub's most.
const PAGE: usize = 100;
/// Pages that a search reads at most.
const MAX_PAGES: usize = 20;

/// Group ids by installation and repository.
pub(super) type Groups = Once<(u64, u64), u64>;

#[derive(Deserialize)]
struct WireGroups {
    runner_groups: Vec<WireGroup>,
}

#[derive(Deserialize)]
struct WireGroup {
    id: u64,
    #[serde(default)]
    name: String,
    #[serde(default)]
    visibility: String,
}

#[derive(Deserialize)]
struct WireRepositories {
    total_count: u64,
    repositories: Vec<WireRepository>,
}

#[derive(Deserialize)]
struct WireRepository {
    id: u64,
}

impl GitHub {
    /// The id of the runner group that holds exactly `repository`; it is made if there is none.
    pub(super) async fn runner_group(
        &self,
        installation: InstallationId,
        repository: RepositoryRef<'_>,
    ) -> Result<u64> {
        let key = (installation.0, repository.id);
        let fetch = async || {
            let group = self.find_or_make_group(installation, repository).await?;
            Ok((group, BELIEVED))
        };
        self.inner.groups.get(&key, fetch).await
    }

    /// GitHub does not know the group any more.
    pub(super) async fn forget_runner_group(
        &self,
        installation: InstallationId,
        repository: RepositoryRef<'_>,
        group: u64,
    ) {
        self.inner.groups.forget(&(installation.0, repository.id), |known| *known == group).await;
    }

    async fn find_or_make_group(&self, installation: InstallationId, repository: RepositoryRef<'_>) -> Result<u64> {
        let (org, _) = repository.split(Call::new("GET", "/orgs/{org}/actions/runner-groups"))?;
        // Not narrowed to the repository: the group's other repositories must be seen.
        let key = TokenKey {
            installation: installation.0,
            repository: None,
            permissions: PermissionSet::OrganizationRunners,
        };
        let name = format!("flyci-{}", repository.id);
        let group = match self.find_group(key, org, &name).await? {
            Some(group) => group,
            None => match self.make_group(key, org, &name, repository.id).await {
                // Another gateway was faster.
                Err(GitHubError::NameTaken { call }) => {
                    self.find_group(key, org, &name).await?.ok_or(GitHubError::NameTaken { call })?
                }
                made => made?,
            },
        };
        self.require_exclusive(key, org, &group, repository.id).await?;
        Ok(group.id)
    }

    async fn find_group(&self, key: TokenKey, org: &str, name: &str) -> Result<Option<WireGroup>> {
        for page in 1..=MAX_PAGES {
            let request =
                Request::get("/orgs/{org}/actions/runner-groups", &[org]).query("per_page", PAGE).query("page", page);
            let found: WireGroups = self.as_installation(key, &request, Idempotent::Yes).await?.json()?;
            let last = found.runner_groups.len() < PAGE;
            let group = found.runner_groups.into_iter().find(|group| group.name == name);
            if group.is_some() || last {
                return Ok(group);
            }
        }
        Ok(None)
    }

    async fn make_group(&self, key: TokenKey, org: &str, name: &str, repository: u64) -> Result<WireGroup> {
        let request = Request::post("/orgs/{org}/actions/runner-groups", &[org]).json(&serde_json::json!({
            "name": name,
            "visibility": "selected",
            "selected_repository_ids": [repository],
            "allows_public_repositories": self.inner.public_repositories,
        }));
        self.as_installation(key, &request, Idempotent::No).await?.json()
    }

    async fn require_exclusive(&self, key: TokenKey, org: &str, group: &WireGroup, repository: u64) -> Result<()> {
        let id = group.id.to_string();
        let request = Request::get("/orgs/{org}/actions/runner-groups/{runner_group_id}/repositories", &[org, &id]);
        let held: WireRepositories = self.as_installation(key, &request, Idempotent::Yes).await?.json()?;
        let only = held.total_count == 1 && held.repositories.iter().all(|one| one.id == repository);
        if group.visibility == "selected" && only && held.repositories.len() == 1 {
            return Ok(());
        }
        Err(GitHubError::Forbidden { call: request.call(), reason: Denial::GroupNotExclusive })
    }
}
