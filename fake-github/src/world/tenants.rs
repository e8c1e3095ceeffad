//! Accounts, installations and repositories: what people do to them, and the events that tell the App.

use std::collections::BTreeSet;

use super::model::{Account, AccountKind, Installed, Repository, RunnerGroup, Visibility};
use super::{Event, World};
use crate::webhooks::payload;

/// Every account's default group has this id at GitHub.
pub const DEFAULT_GROUP: u64 = 1;

impl World {
    /// An account installs the App, on all its repositories.
    pub fn install(&mut self, login: &str, kind: AccountKind) -> u64 {
        let account = match self.account_named(login) {
            Some(account) => account.id,
            None => self.add_account(login, kind),
        };
        let id = self.ids.small();
        let installed = Installed {
            id,
            account,
            permissions: self.app.permissions.clone(),
            suspended_at: None,
            created_at: self.now(),
            forbids_repository_runners: false,
        };
        self.installations.insert(id, installed);
        self.tell_installation(id, "created");
        id
    }

    fn add_account(&mut self, login: &str, kind: AccountKind) -> u64 {
        let id = self.ids.small();
        self.accounts.insert(id, Account { id, login: login.into(), kind });
        let default =
            RunnerGroup { id: DEFAULT_GROUP, name: "Default".into(), repositories: None, allows_public: false };
        self.groups.insert((id, DEFAULT_GROUP), default);
        id
    }

    /// Adds a runner group to an organisation. `repositories: None` admits all.
    pub fn add_group(&mut self, org: u64, name: &str, repositories: Option<BTreeSet<u64>>) -> u64 {
        let id = self.ids.small();
        self.groups.insert((org, id), RunnerGroup { id, name: name.into(), repositories, allows_public: false });
        id
    }

    /// Adds a repository to an installed account.
    pub fn add_repository(&mut self, installation: u64, name: &str, visibility: Visibility) -> Option<u64> {
        let owner = self.installations.get(&installation)?.account;
        let id = self.ids.small();
        let created_at = self.now();
        let repository = Repository { id, owner, name: name.into(), visibility, selected: true, runs: 0, created_at };
        self.repositories.insert(id, repository);
        self.tell_selection(id, "added");
        Some(id)
    }

    /// Takes a repository out of, or back into, the installation's selection.
    pub fn select(&mut self, repository: u64, selected: bool) -> bool {
        let Some(found) = self.repositories.get_mut(&repository) else {
            return false;
        };
        if found.selected != selected {
            found.selected = selected;
            self.tell_selection(repository, if selected { "added" } else { "removed" });
        }
        true
    }

    /// Suspends an installation: its tokens stop working.
    pub fn suspend(&mut self, installation: u64) -> bool {
        let now = self.now();
        let Some(found) = self.installations.get_mut(&installation) else {
            return false;
        };
        found.suspended_at = Some(now);
        self.tell_installation(installation, "suspend");
        true
    }

    /// Lifts a suspension.
    pub fn unsuspend(&mut self, installation: u64) -> bool {
        let Some(found) = self.installations.get_mut(&installation) else {
            return false;
        };
        found.suspended_at = None;
        self.tell_installation(installation, "unsuspend");
        true
    }

    /// Uninstalls: the API is gone before the event arrives.
    pub fn uninstall(&mut self, installation: u64) -> bool {
        if !self.installations.contains_key(&installation) {
            return false;
        }
        self.tell_installation(installation, "deleted");
        self.tokens.retain(|_, token| token.installation != installation);
        self.installations.remove(&installation);
        true
    }

    /// Changes what an installation grants.
    pub fn grant(&mut self, installation: u64, permission: &str, level: Option<&str>) -> bool {
        let Some(found) = self.installations.get_mut(&installation) else {
            return false;
        };
        match level {
            Some(level) => found.permissions.insert(permission.into(), level.into()),
            None => found.permissions.remove(permission),
        };
        self.tell_installation(installation, "new_permissions_accepted");
        true
    }

    /// An organisation allows or forbids runners on single repositories.
    pub fn forbid_repository_runners(&mut self, installation: u64, forbid: bool) -> bool {
        let Some(found) = self.installations.get_mut(&installation) else {
            return false;
        };
        found.forbids_repository_runners = forbid;
        true
    }

    /// Renames a repository.
    pub fn rename(&mut self, repository: u64, name: &str) -> bool {
        let Some(found) = self.repositories.get_mut(&repository) else {
            return false;
        };
        let from = std::mem::replace(&mut found.name, name.into());
        let changes = serde_json::json!({ "repository": { "name": { "from": from } } });
        self.tell_repository(repository, "renamed", Some(changes));
        true
    }

    /// Makes a private repository public, or a public one private.
    pub fn set_visibility(&mut self, repository: u64, visibility: Visibility) -> bool {
        let Some(found) = self.repositories.get_mut(&repository) else {
            return false;
        };
        found.visibility = visibility;
        let action = match visibility {
            Visibility::Public => "publicized",
            Visibility::Private => "privatized",
        };
        self.tell_repository(repository, action, None);
        true
    }

    /// Moves a repository to another installed account.
    pub fn transfer(&mut self, repository: u64, installation: u64) -> bool {
        let Some(to) = self.installations.get(&installation).map(|i| i.account) else {
            return false;
        };
        let Some(found) = self.repositories.get_mut(&repository) else {
            return false;
        };
        let from = std::mem::replace(&mut found.owner, to);
        self.runners.retain(|_, r| r.scope != super::model::Scope::Repository(repository) || r.job.is_some());
        let from = &self.accounts[&from];
        let from = match crate::shapes::organization(self, from) {
            Some(organization) => serde_json::json!({ "organization": organization }),
            None => serde_json::json!({ "user": crate::shapes::account(self, from) }),
        };
        let changes = serde_json::json!({ "owner": { "from": from } });
        self.tell_repository(repository, "transferred", Some(changes));
        true
    }

    /// Deletes a repository with its jobs' future.
    pub fn delete_repository(&mut self, repository: u64) -> bool {
        if self.repositories.get(&repository).is_none_or(|r| !r.selected) {
            return false;
        }
        self.tell_repository(repository, "deleted", None);
        let queued: Vec<u64> = self.queued.iter().copied().filter(|j| self.jobs[j].repository == repository).collect();
        for job in queued {
            self.queued.remove(&job);
        }
        // The row stays, unreachable, since its jobs still point to it.
        self.repositories.get_mut(&repository).expect("looked up above").selected = false;
        true
    }

    /// An account changes its login.
    pub fn rename_account(&mut self, installation: u64, login: &str) -> bool {
        let Some(account) = self.installations.get(&installation).map(|i| i.account) else {
            return false;
        };
        let found = self.accounts.get_mut(&account).expect("an installation's account exists");
        let from = std::mem::replace(&mut found.login, login.into());
        let event = payload::installation_target_renamed(self, &self.installations[&installation], &from);
        self.emit(event);
        true
    }

    /// GitHub's `ping`, as when a hook is made.
    pub fn ping(&mut self) {
        let event = payload::ping(self);
        self.emit(event);
    }

    fn tell_installation(&mut self, id: u64, action: &'static str) {
        let event = payload::installation(self, &self.installations[&id], action);
        self.emit(event);
    }

    fn tell_selection(&mut self, repository: u64, action: &'static str) {
        let found = &self.repositories[&repository];
        let Some(installation) = self.installation_of(found.owner) else {
            return;
        };
        let event = payload::installation_repositories(self, installation, found, action);
        self.emit(event);
    }

    fn tell_repository(&mut self, id: u64, action: &'static str, changes: Option<serde_json::Value>) {
        let repository = &self.repositories[&id];
        let Some(installation) = self.installation_hearing(repository) else {
            return;
        };
        let event: Event = payload::repository(self, repository, installation, action, changes);
        self.emit(event);
    }
}
