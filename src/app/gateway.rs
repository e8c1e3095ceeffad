//! The gateway's part of the daemon: takes deliveries, speaks to GitHub. The only holder of the App's key.

use super::AppError;
use super::database::Databases;
use super::github::AppCheck;
use super::hooks::{self, HookList};
use super::loops::{By, Loops, More, Never};
use super::upkeep::Upkeep;
use super::vault::Vault;
use crate::config::{self, AdmissionRule, Allow, Config, RunnerScope};
use crate::domain::ids::FleetId;
use crate::domain::units::Span;
use crate::github::{GitHub, GitHubError, Scope};
use crate::intake::signature::WebhookSecrets;
use crate::intake::{Intake, Policy};
use crate::metrics::Metrics;
use crate::mint::Minter;
use crate::secrets::files;
use crate::troubles::Troubles;
use crate::upkeep::prune::Retention;
use crate::web::admin::RunnerReleases;
use crate::web::{Readiness, Sources};
use secrecy::SecretString;
use sqlx::PgPool;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// How often minting and removals are looked at although nobody woke them.
const MINT_PERIOD: Duration = Duration::from_secs(2);
/// How often GitHub is asked whether it knows the App's key, and what the App may do.
const GITHUB_PERIOD: Duration = Duration::from_secs(60);
/// How often the list of the runner's releases is read: GitHub makes one a month.
const RELEASES_PERIOD: Duration = Duration::from_secs(6 * 60 * 60);
/// What a gateway is made of.
pub struct Gateway {
    /// Names this gateway among several: holds leases, also after a restart.
    pub id: Uuid,
    /// Acts as the gateway.
    pub pool: PgPool,
    /// The keys, and what is written down of their use.
    pub vault: Vault,
    /// GitHub.
    pub github: GitHub,
    /// The fleet.
    pub fleet: FleetId,
    /// Where runners are registered.
    pub scope: Scope,
    /// Who is served, and with what.
    pub policy: Policy,
    /// What deliveries are signed with.
    pub secrets: WebhookSecrets,
    /// Deliveries come by webhook.
    pub by_webhook: bool,
    /// Who may deliver.
    pub allow: Allow,
    /// The longest that a job may be queued.
    pub queue_timeout: Duration,
    /// Jobs that were lost with their machine are run again.
    pub rerun_lost_jobs: bool,
    /// How long rows are kept.
    pub retention: Retention,
}

/// What a gateway tells, and where.
pub struct Told<'a> {
    /// What `/readyz` says.
    pub readiness: &'a Arc<Readiness>,
    /// What `status` shows.
    pub troubles: &'a Arc<Troubles>,
    /// The runner's releases.
    pub releases: &'a Arc<RunnerReleases>,
    /// What Prometheus reads.
    pub metrics: &'a Arc<Metrics>,
}

/// A gateway that runs.
pub struct Running {
    /// Takes deliveries.
    pub intake: Arc<Intake>,
    /// What is known of who delivers; `None` where deliveries are pulled.
    pub sources: Option<Arc<Sources>>,
    /// Keeps the tables and GitHub in agreement.
    pub upkeep: Arc<Upkeep>,
}

/// Puts a gateway together.
pub fn build(
    config: &Config,
    section: &config::Github,
    databases: &Databases,
    fleet: FleetId,
    metrics: &Arc<Metrics>,
    (id, vault): (Uuid, Vault),
) -> Result<Gateway, AppError> {
    let previous = section.previous_webhook_secret_file.as_deref();
    let previous = previous.map(|path| read_secret("github.previous_webhook_secret_file", path)).transpose()?;
    let current = match section.webhook_secret_file.as_deref() {
        Some(path) => read_secret("github.webhook_secret_file", path)?,
        // Pull intake needs none; a random one accepts no delivery.
        None => hex::encode(rand::random::<[u8; 32]>()).into(),
    };
    let days = |span: Span| chrono::Duration::from_std(span.0).unwrap_or(chrono::Duration::MAX);
    Ok(Gateway {
        id,
        pool: databases.gateway().clone(),
        github: super::github_client(config, section, Some(metrics))?,
        fleet,
        scope: match section.runner_scope {
            RunnerScope::Repository => Scope::Repository,
            RunnerScope::OrganizationGroup => Scope::OrganizationGroup,
        },
        policy: Policy {
            profiles: config.profiles.iter().map(|profile| (profile.clone(), None)).collect(),
            open_admission: config.tenants.admission == AdmissionRule::Open,
            public_repositories: config.tenants.public_repositories,
            queue_timeout: days(config.limits.queue_timeout),
        },
        secrets: WebhookSecrets::new(current, previous),
        by_webhook: section.intake == config::Intake::Webhook,
        allow: config.web.allow,
        queue_timeout: config.limits.queue_timeout.0,
        rerun_lost_jobs: config.limits.rerun_lost_jobs,
        retention: Retention { deliveries: days(config.retention.deliveries), jobs: days(config.retention.jobs) },
        vault,
    })
}

/// The gateway's id, made when it first starts. It outlives the daemon, so that a restart keeps what it held; the
/// data directory belongs to one daemon at a time.
pub fn own_id(config: &Config) -> Result<Uuid, AppError> {
    let path = config.data_dir.join("gateway");
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().or_else(|_| write_id(&path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => write_id(&path),
        Err(source) => Err(source),
    }
    .map_err(|source| AppError::GatewayFile { path, source })
}

fn write_id(path: &Path) -> std::io::Result<Uuid> {
    let id = Uuid::new_v4();
    std::fs::write(path, format!("{id}\n"))?;
    Ok(id)
}

/// Reads a secret of the configuration: a text file that nobody else may read.
pub fn read_secret(key: &'static str, path: &Path) -> Result<SecretString, AppError> {
    let bytes = files::read_private(path).map_err(|source| AppError::File { key, source })?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned().into())
}

impl Gateway {
    /// Starts the gateway's loops.
    #[must_use]
    pub fn start(self, loops: &Loops, told: &Told<'_>) -> Running {
        let id = self.id;
        self.vault.start(loops);
        spawn_releases(loops, &self.github, told.releases);
        self.spawn_mint(loops, id);
        let check = Arc::new(AppCheck {
            github: self.github.clone(),
            scope: self.scope,
            readiness: Arc::clone(told.readiness),
            troubles: Arc::clone(told.troubles),
        });
        loops.spawn("github", GITHUB_PERIOD, Never, move || {
            let check = Arc::clone(&check);
            async move { check.pass().await.map(|()| More::No) }
        });
        let (pool, vault) = (self.pool.clone(), &self.vault);
        let (ring, trail, wakes) = (Arc::clone(&vault.ring), vault.trail.clone(), Arc::clone(&vault.wakes));
        let intake = Arc::new(Intake::new(pool, ring, trail, self.secrets.clone(), self.policy.clone(), wakes));
        let upkeep = Arc::new(Upkeep::build(&self, &intake, id, told.troubles, told.metrics));
        upkeep.spawn(loops);
        let sources = self.by_webhook.then(|| self.spawn_hooks(loops, told.troubles));
        Running { intake, sources, upkeep }
    }

    /// Where nobody is shut out, GitHub's list still says who is never limited.
    fn spawn_hooks(&self, loops: &Loops, troubles: &Arc<Troubles>) -> Arc<Sources> {
        let sources = Arc::new(Sources::new(self.allow));
        let (github, troubles) = (self.github.clone(), Arc::clone(troubles));
        let list = Arc::new(HookList { github, sources: Arc::clone(&sources), troubles });
        loops.spawn("hooks", hooks::PERIOD, Never, move || {
            let list = Arc::clone(&list);
            async move { list.pass().await.map(|()| More::No) }
        });
        sources
    }

    fn spawn_mint(&self, loops: &Loops, id: Uuid) {
        let (vault, wakes) = (&self.vault, &self.vault.wakes);
        let minter = Arc::new(Minter {
            pool: self.pool.clone(),
            ring: Arc::clone(&vault.ring),
            warrant: Arc::clone(&self.vault.warrant),
            profiles: self.policy.profiles.clone(),
            trail: vault.trail.clone(),
            github: self.github.clone(),
            fleet: self.fleet,
            gateway: id,
            scope: self.scope,
            wakes: Arc::clone(wakes),
        });
        let remover = Arc::clone(&minter);
        loops.spawn("mint", MINT_PERIOD, By(Arc::clone(wakes), |wakes| &wakes.mint), move || {
            let minter = Arc::clone(&minter);
            async move { minter.pass().await.map(|report| if report.is_full() { More::Now } else { More::No }) }
        });
        loops.spawn("removal", MINT_PERIOD, By(Arc::clone(wakes), |wakes| &wakes.removal), move || {
            let remover = Arc::clone(&remover);
            async move { remover.removal_pass().await.map(|_| More::No) }
        });
    }
}

/// Keeps the list of the runner's releases. Without it nothing is told of a runner's age, and nothing else is lost.
fn spawn_releases(loops: &Loops, github: &GitHub, releases: &Arc<RunnerReleases>) {
    let (github, releases) = (github.clone(), Arc::clone(releases));
    loops.spawn("releases", RELEASES_PERIOD, Never, move || {
        let (github, releases) = (github.clone(), Arc::clone(&releases));
        async move {
            match github.runner_releases().await {
                Ok(read) => releases.set(read),
                // GitHub Enterprise Server has none.
                Err(GitHubError::NotFound { .. }) => releases.set(Vec::new()),
                Err(error) => return Err(error),
            }
            Ok(More::No)
        }
    });
}
