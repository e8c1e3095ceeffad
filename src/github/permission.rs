//! What the App asks an account for, and why: the whole list. Documentation and set-up quote it.
//!
//! Names are those of GitHub's `permissions` object:
//! <https://docs.github.com/en/rest/apps/apps#create-an-installation-access-token-for-an-app>,
//! and what each call needs is GitHub's
//! <https://docs.github.com/en/rest/authentication/permissions-required-for-github-apps>.

use std::collections::BTreeMap;

/// Where runners are registered (`github.runner_scope`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Scope {
    /// On the repository itself; needs the repository permission Administration.
    Repository,
    /// In a runner group of the organisation that holds exactly this repository.
    OrganizationGroup,
}

/// How far a permission goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Access {
    /// Look.
    Read,
    /// Look and change.
    Write,
}

impl Access {
    /// GitHub's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "read" => Some(Self::Read),
            "write" | "admin" => Some(Self::Write),
            _ => None,
        }
    }
}

/// One permission of the App, with its reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Permission {
    /// GitHub's name of it in tokens and manifests.
    pub name: &'static str,
    /// GitHub's name of it in the App's settings.
    pub title: &'static str,
    /// How far it goes.
    pub access: Access,
    /// The scope that needs it; `None`: both do.
    pub scope: Option<Scope>,
    /// What flyci does with it, and what it does not.
    pub reason: &'static str,
}

/// All that flyci needs, and no more.
pub const PERMISSIONS: &[Permission] = &[
    Permission {
        name: "metadata",
        title: "Metadata",
        access: Access::Read,
        scope: None,
        reason: "GitHub grants it with any other: it finds the repository by its id",
    },
    Permission {
        name: "actions",
        title: "Actions",
        access: Access::Write,
        scope: None,
        reason: "reads the state of queued runs and jobs, to find those whose webhook was lost; writes only to ask \
                 for a job again that flyci itself lost",
    },
    Permission {
        name: "administration",
        title: "Administration",
        access: Access::Write,
        scope: Some(Scope::Repository),
        reason: "registers and removes one-job runners on the repository: GitHub has no lesser permission for that",
    },
    Permission {
        name: "organization_self_hosted_runners",
        title: "Self-hosted runners",
        access: Access::Write,
        scope: Some(Scope::OrganizationGroup),
        reason: "registers and removes one-job runners in a runner group that holds just the one repository",
    },
];

/// The webhook events that the App subscribes to. Those of installations come unasked.
pub const EVENTS: &[&str] = &["workflow_job"];

/// What of [`PERMISSIONS`] an App or an installation lacks for `scope`.
#[must_use]
pub fn missing_permissions(granted: &BTreeMap<String, String>, scope: Scope) -> Vec<&'static Permission> {
    let has = |wanted: &Permission| {
        granted.get(wanted.name).and_then(|access| Access::parse(access)).is_some_and(|access| access >= wanted.access)
    };
    PERMISSIONS.iter().filter(|one| one.scope.is_none_or(|of| of == scope) && !has(one)).collect()
}

/// What of [`EVENTS`] an App is not subscribed to.
#[must_use]
pub fn missing_events(subscribed: &[String]) -> Vec<&'static str> {
    EVENTS.iter().copied().filter(|event| !subscribed.iter().any(|have| have == event)).collect()
}

/// What one token may do: the least that one kind of call needs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum PermissionSet {
    /// Mint, find, list, remove runners of a repository.
    RepositoryRunners,
    /// The same in an organisation's runner group.
    OrganizationRunners,
    /// Look at runs and jobs.
    ReadActions,
    /// Ask for a job again.
    RerunActions,
    /// Look at what a repository is called.
    Metadata,
}

impl PermissionSet {
    /// The `permissions` object of the token request.
    pub(super) const fn grants(self) -> &'static [(&'static str, Access)] {
        match self {
            Self::RepositoryRunners => &[("administration", Access::Write), ("metadata", Access::Read)],
            Self::OrganizationRunners => {
                &[("organization_self_hosted_runners", Access::Write), ("metadata", Access::Read)]
            }
            Self::ReadActions => &[("actions", Access::Read), ("metadata", Access::Read)],
            Self::RerunActions => &[("actions", Access::Write), ("metadata", Access::Read)],
            Self::Metadata => &[("metadata", Access::Read)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETS: [PermissionSet; 5] = [
        PermissionSet::RepositoryRunners,
        PermissionSet::OrganizationRunners,
        PermissionSet::ReadActions,
        PermissionSet::RerunActions,
        PermissionSet::Metadata,
    ];

    #[test]
    fn no_token_asks_for_more_than_the_app_declares() {
        for (name, access) in SETS.iter().flat_map(|set| set.grants()) {
            let declared = PERMISSIONS.iter().find(|one| one.name == *name).expect("declared");
            assert!(declared.access >= *access, "{name}");
        }
    }

    #[test]
    fn each_declared_permission_is_used_by_some_token() {
        for one in PERMISSIONS {
            let used = SETS
                .iter()
                .flat_map(|set| set.grants())
                .any(|(name, access)| (*name, *access) == (one.name, one.access));
            assert!(used, "{} is asked for and never used", one.name);
        }
    }

    #[test]
    fn an_app_without_what_its_scope_needs_is_told_which() {
        let granted: BTreeMap<String, String> =
            [("metadata", "read"), ("actions", "read"), ("administration", "write")]
                .map(|(name, access)| (name.to_owned(), access.to_owned()))
                .into();
        let names = |scope| missing_permissions(&granted, scope).iter().map(|one| one.name).collect::<Vec<_>>();
        assert_eq!(names(Scope::Repository), ["actions"]);
        assert_eq!(names(Scope::OrganizationGroup), ["actions", "organization_self_hosted_runners"]);
        assert_eq!(missing_events(&["push".to_owned()]), ["workflow_job"]);
    }
}
