//! Runners: mint, find, list, remove.
//! <https://docs.github.com/en/rest/actions/self-hosted-runners>

use super::auth::TokenKey;
use super::error::{Call, GitHubError, Result};
use super::exchange::Idempotent;
use super::lenient::Name;
use super::permission::{PermissionSet, Scope};
use super::request::{Budget, Method, RepositoryRef, Request, is_name};
use super::{GitHub, InstallationId};
use crate::domain::labels::LabelSet;
use secrecy::SecretString;
use serde::Deserialize;

/// GitHub's id of the group that every repository's runners are in.
const DEFAULT_GROUP: u64 = 1;
/// Labels of one runner at most.
const MAX_LABELS: usize = 100;
/// The runner's working directory, relative to its own.
const WORK_FOLDER: &str = "_work";
/// Runners per page: GitHub's most.
const PAGE: usize = 100;
/// Pages that one listing reads at most: 2,000 runners.
const MAX_PAGES: usize = 20;

/// A new registration.
#[derive(Debug)]
pub struct Minted {
    /// GitHub's id of the runner.
    pub runner_id: u64,
    /// What the runner program needs to run one job. Good for one use, within minutes.
    pub jit_config: SecretString,
}

/// What became of a removal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Removal {
    /// GitHub has no such registration (any more).
    Gone,
    /// It has a job, or had one seconds ago: keep it, ask later.
    Busy,
}

/// A registration as GitHub tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunnerInfo {
    /// GitHub's id.
    pub id: u64,
    /// Its name.
    pub name: Name,
    /// True when its program is connected.
    pub online: bool,
    /// True when it has a job. May stay true for a while after its machine died.
    pub busy: bool,
    /// Its labels.
    pub labels: LabelSet,
}

/// What a listing found.
#[derive(Clone, Debug)]
pub struct Runners {
    /// The registrations.
    pub runners: Vec<RunnerInfo>,
    /// False when there were more than one listing reads: absence then proves nothing.
    pub complete: bool,
}

#[derive(Deserialize)]
struct JitAnswer {
    runner: WireId,
    encoded_jit_config: String,
}

#[derive(Deserialize)]
struct WireId {
    id: u64,
}

#[derive(Deserialize)]
struct WirePage {
    runners: Vec<WireRunner>,
}

#[derive(Deserialize)]
struct WireRunner {
    id: u64,
    #[serde(default)]
    name: Name,
    #[serde(default)]
    status: String,
    #[serde(default)]
    busy: bool,
    #[serde(default)]
    labels: Vec<WireLabel>,
}

#[derive(Deserialize)]
struct WireLabel {
    name: String,
}

impl From<WireRunner> for RunnerInfo {
    fn from(wire: WireRunner) -> Self {
        Self {
            id: wire.id,
            name: wire.name,
            online: wire.status == "online",
            busy: wire.busy,
            labels: wire.labels.iter().map(|label| &label.name).collect(),
        }
    }
}

/// The routes of one scope: where its runners are.
struct Place<'a> {
    scope: Scope,
    owner: &'a str,
    name: &'a str,
    key: TokenKey,
}

impl<'a> Place<'a> {
    fn new(installation: InstallationId, repository: RepositoryRef<'a>, scope: Scope) -> Result<Self> {
        let (permissions, template) = match scope {
            Scope::Repository => (PermissionSet::RepositoryRunners, "/repos/{owner}/{repo}/actions/runners"),
            Scope::OrganizationGroup => (PermissionSet::OrganizationRunners, "/orgs/{org}/actions/runners"),
        };
        let (owner, name) = repository.split(Call::new("GET", template))?;
        let key = TokenKey { installation: installation.0, repository: Some(repository.id), permissions };
        Ok(Self { scope, owner, name, key })
    }

    fn collection(&self) -> Request {
        match self.scope {
            Scope::Repository => Request::get("/repos/{owner}/{repo}/actions/runners", &[self.owner, self.name]),
            Scope::OrganizationGroup => Request::get("/orgs/{org}/actions/runners", &[self.owner]),
        }
        .query("per_page", PAGE)
    }

    fn runner(&self, method: Method, runner: u64) -> Request {
        let runner = runner.to_string();
        match self.scope {
            Scope::Repository => Request::new(
                method,
                "/repos/{owner}/{repo}/actions/runners/{runner_id}",
                &[self.owner, self.name, &runner],
            ),
            Scope::OrganizationGroup => {
                Request::new(method, "/orgs/{org}/actions/runners/{runner_id}", &[self.owner, &runner])
            }
        }
    }

    fn jit(&self) -> Request {
        match self.scope {
            Scope::Repository => {
                Request::post("/repos/{owner}/{repo}/actions/runners/generate-jitconfig", &[self.owner, self.name])
            }
            Scope::OrganizationGroup => Request::post("/orgs/{org}/actions/runners/generate-jitconfig", &[self.owner]),
        }
        .budget(Budget::RunnerRegistration)
    }
}

impl GitHub {
    /// Registers a runner that runs one job of `repository` whose labels are among `labels`.
    ///
    /// Sent once and never repeated, whatever comes back. Record `name` before the call. When the
    /// error [may have happened](GitHubError::may_have_happened), a registration may be there:
    /// [find](Self::find_runner) it by the name, [remove](Self::remove_runner) it, and mint under a
    /// new name. The names of a lost one cannot be used again for a while.
    ///
    /// # Errors
    /// [`GitHubError::NameTaken`]: a runner of this name exists. [`GitHubError::Forbidden`] with
    /// [`OrgForbidsRepoRunners`](super::Denial::OrgForbidsRepoRunners): only the other scope works.
    pub async fn mint(
        &self,
        installation: InstallationId,
        repository: RepositoryRef<'_>,
        scope: Scope,
        name: &str,
        labels: &LabelSet,
    ) -> Result<Minted> {
        let place = Place::new(installation, repository, scope)?;
        let request = place.jit();
        if !is_name(name) {
            return Err(GitHubError::Input {
                call: request.call(),
                what: "the runner's name has characters it may not",
            });
        }
        let labels: Vec<&str> = labels.iter().collect();
        if labels.is_empty() || labels.len() > MAX_LABELS {
            return Err(GitHubError::Input { call: request.call(), what: "a runner has 1 to 100 labels" });
        }
        self.inner.governor.check(Some(installation.0), &request)?;
        let group = match scope {
            Scope::Repository => DEFAULT_GROUP,
            Scope::OrganizationGroup => self.runner_group(installation, repository).await?,
        };
        let request = request.json(&serde_json::json!({
            "name": name,
            "runner_group_id": group,
            "labels": labels,
            "work_folder": WORK_FOLDER,
        }));
        let answer = self.as_installation(place.key, &request, Idempotent::No).await;
        if scope == Scope::OrganizationGroup && matches!(answer, Err(GitHubError::NotFound { .. })) {
            self.forget_runner_group(installation, repository, group).await;
        }
        let made: JitAnswer = answer?.json()?;
        Ok(Minted { runner_id: made.runner.id, jit_config: made.encoded_jit_config.into() })
    }

    /// Removes a registration, unless it has a job.
    ///
    /// # Errors
    /// Only when GitHub could not be asked; then nothing is known.
    pub async fn remove_runner(
        &self,
        installation: InstallationId,
        repository: RepositoryRef<'_>,
        scope: Scope,
        runner: u64,
    ) -> Result<Removal> {
        let place = Place::new(installation, repository, scope)?;
        let request = place.runner(Method::Delete, runner);
        match self.as_installation(place.key, &request, Idempotent::Yes).await {
            Ok(_) => Ok(Removal::Gone),
            // Only GitHub's word on this runner: a 404 or 422 on the token is about the installation.
            Err(GitHubError::NotFound { call }) if call.route == request.template => Ok(Removal::Gone),
            Err(GitHubError::Invalid { call, .. }) if call.route == request.template && call.status == Some(422) => {
                Ok(Removal::Busy)
            }
            Err(error) => Err(error),
        }
    }

    /// The registration with exactly this name.
    ///
    /// # Errors
    /// When GitHub could not be asked, or has more runners than can be read.
    pub async fn find_runner(
        &self,
        installation: InstallationId,
        repository: RepositoryRef<'_>,
        scope: Scope,
        name: &str,
    ) -> Result<Option<RunnerInfo>> {
        let place = Place::new(installation, repository, scope)?;
        let request = place.collection().query("name", name);
        let found = self.pages(place.key, &request, |runner| runner.name.as_str() == name).await?;
        let call = request.call();
        match found.runners.into_iter().find(|runner| runner.name.as_str() == name) {
            Some(runner) => Ok(Some(runner)),
            None if found.complete => Ok(None),
            None => Err(GitHubError::Input { call, what: "there are too many runners to find one by its name" }),
        }
    }

    /// The registration with this id.
    ///
    /// # Errors
    /// When GitHub could not be asked.
    pub async fn runner(
        &self,
        installation: InstallationId,
        repository: RepositoryRef<'_>,
        scope: Scope,
        runner: u64,
    ) -> Result<Option<RunnerInfo>> {
        let place = Place::new(installation, repository, scope)?;
        let request = place.runner(Method::Get, runner);
        match self.as_installation(place.key, &request, Idempotent::Yes).await {
            Ok(answer) => Ok(Some(answer.json::<WireRunner>()?.into())),
            Err(GitHubError::NotFound { call }) if call.route == request.template => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The registrations of a repository (or of its organisation, with that scope), up to a bound.
    ///
    /// # Errors
    /// When GitHub could not be asked.
    pub async fn list_runners(
        &self,
        installation: InstallationId,
        repository: RepositoryRef<'_>,
        scope: Scope,
    ) -> Result<Runners> {
        let place = Place::new(installation, repository, scope)?;
        self.pages(place.key, &place.collection(), |_| false).await
    }

    /// Reads pages until the last, the bound, or a runner that is `enough`.
    async fn pages(&self, key: TokenKey, request: &Request, enough: impl Fn(&RunnerInfo) -> bool) -> Result<Runners> {
        let mut runners: Vec<RunnerInfo> = Vec::new();
        for page in 1..=MAX_PAGES {
            let request = request.clone().query("page", page);
            let answer = self.as_installation(key, &request, Idempotent::Yes).await?;
            let found: WirePage = answer.json()?;
            let last = found.runners.len() < PAGE;
            runners.extend(found.runners.into_iter().map(RunnerInfo::from));
            if last || runners.iter().any(&enough) {
                return Ok(Runners { runners, complete: last });
            }
        }
        Ok(Runners { runners, complete: false })
    }
}
