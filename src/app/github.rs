//! The client that speaks to GitHub as the App, and what is asked about the App itself: whether GitHub knows the key, and
//! whether the App has what flyci needs.

use super::AppError;
use crate::api::Trouble;
use crate::config::{self, Config};
use crate::errors::chain;
use crate::github::{App, GitHub, GitHubError, OnCall, Scope, missing_events, missing_permissions};
use crate::metrics::Metrics;
use crate::troubles::Troubles;
use crate::web::Readiness;
use std::sync::Arc;

/// The key of what GitHub's refusal is about.
const ACCESS: &str = "github:access";
/// The key of what the App lacks.
const PERMISSIONS: &str = "github:permissions";
/// The key of what the App does not hear of.
const EVENTS: &str = "github:events";

/// The look at the App.
pub struct AppCheck {
    /// GitHub.
    pub github: GitHub,
    /// Where runners are registered.
    pub scope: Scope,
    /// What `/readyz` says.
    pub readiness: Arc<Readiness>,
    /// What `status` shows.
    pub troubles: Arc<Troubles>,
}

impl AppCheck {
    /// Looks once.
    ///
    /// # Errors
    /// When GitHub does not tell of the App.
    pub async fn pass(&self) -> Result<(), GitHubError> {
        let answer = self.github.app().await;
        self.readiness.set_github(answer.is_ok());
        self.troubles.set(ACCESS, answer.as_ref().err().map(no_access));
        let app = answer?;
        self.troubles.set(PERMISSIONS, lacks(&app, self.scope));
        self.troubles.set(EVENTS, hears_not(&app));
        Ok(())
    }
}

fn no_access(error: &GitHubError) -> Trouble {
    let fix = match error {
        GitHubError::Unauthorized { .. } => "what the evidence says; it is asked again within a minute",
        GitHubError::Network { .. } => {
            "is there a way from here to [github] api_url (DNS, firewall, proxy_url, ca_file)? githubstatus.com tells of GitHub's own faults"
        }
        _ => "githubstatus.com tells whether it is GitHub's fault; it is asked again within a minute",
    };
    Trouble {
        what: "GitHub does not serve us: no runner can be made".to_owned(),
        evidence: chain(error).to_string(),
        fix: fix.to_owned(),
    }
}

fn lacks(app: &App, scope: Scope) -> Option<Trouble> {
    let missing: Vec<String> = missing_permissions(&app.permissions, scope)
        .iter()
        .map(|one| format!("{}: {} ({})", one.title, one.access.as_str(), one.reason))
        .collect();
    (!missing.is_empty()).then(|| Trouble {
        what: "the GitHub App lacks permissions".to_owned(),
        evidence: missing.join("; "),
        fix: "add them in the App's settings (Permissions & events), then each account accepts them by GitHub's mail"
            .to_owned(),
    })
}

fn hears_not(app: &App) -> Option<Trouble> {
    let missing = missing_events(&app.events);
    (!missing.is_empty()).then(|| Trouble {
        what: "the GitHub App is not told of jobs".to_owned(),
        evidence: format!("it does not subscribe to {}", missing.join(", ")),
        fix: "tick \"Workflow job\" in the App's settings (Permissions & events, Subscribe to events)".to_owned(),
    })
}

/// The client that speaks to GitHub as the App; its calls are counted in `metrics`.
///
/// # Errors
/// A file of the configuration cannot be read, or an option is wrong.
pub fn github_client(
    config: &Config,
    section: &config::Github,
    metrics: Option<&Arc<Metrics>>,
) -> Result<GitHub, AppError> {
    let ca_pem = match &section.ca_file {
        Some(path) => Some(std::fs::read(path).map_err(|source| AppError::Read {
            key: "github.ca_file",
            path: path.clone(),
            source,
        })?),
        None => None,
    };
    let private_key = super::gateway::read_secret("github.private_key_file", &section.private_key_file)?;
    let previous_private_key = section
        .previous_private_key_file
        .as_deref()
        .map(|path| super::gateway::read_secret("github.previous_private_key_file", path))
        .transpose()?;
    Ok(GitHub::new(&crate::github::Options {
        api_url: section.api_url.as_str().to_owned(),
        app_id: section.app_id,
        private_key,
        previous_private_key,
        ca_pem,
        proxy_url: section.proxy_url.as_ref().map(|url| url.expose().to_owned().into()),
        user_agent: concat!("flyci/", env!("CARGO_PKG_VERSION")).to_owned(),
        public_repositories: config.tenants.public_repositories,
        on_call: metrics
            .cloned()
            .map(|metrics| -> OnCall { Arc::new(move |route, status, took| metrics.github_call(route, status, took)) }),
    })?)
}
