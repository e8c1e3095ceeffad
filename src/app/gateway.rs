//! The gateway's part of the daemon: takes deliveries, speaks to GitHub. The only holder of the App's key.

use super::AppError;
use super::database::Databases;
use super::github::AppCheck;
use super::loops::{By, Loops, More, Never};
use crate::config::{self, AdmissionRule, Config, RunnerScope};
use crate::domain::ids::FleetId;
use crate::domain::units::Span;
use crate::github::{GitHub, GitHubError, Scope};
use crate::intake::signature::WebhookSecrets;
use crate::intake::{Intake, Policy};
use crate::metrics::Metrics;
use crate::mint::Minter;
use crate::secrets::{KeyRing, files};
use crate::store::jobs::Patience;
use crate::store::tenants;
use crate::troubles::Troubles;
use crate::upkeep::doubts::Doubts;
use crate::upkeep::prune::{self, Retention};
use crate::wake::Wakes;
use crate::web::Readiness;
use crate::web::admin::RunnerReleases;
use secrecy::SecretString;
use sqlx::PgPool;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// How often minting and removals are looked at although nobody woke them.
const MINT_PERIOD: Duration = Duration::from_secs(2);
/// How often doubts are looked at although nobody woke them.
const DOUBT_PERIOD: Duration = Duration::from_secs(5);
/// How often GitHub is asked whether it knows the App's key, and what the App may do.
const GITHUB_PERIOD: Duration = Duration::from_secs(60);
/// How often the list of the runner's releases is read: GitHub makes one a month.
const RELEASES_PERIOD: Duration = Duration::from_secs(6 * 60 * 60);
/// How often rows are pruned.
const PRUNE_PERIOD: Duration = Duration::from_secs(600);
/// How long after its vm's end a job's `completed` may come by itself before GitHub is asked.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(10);
/// How long GitHub may go on calling a job running whose vm is gone: its own time-out is 10 minutes.
const LOST_PATIENCE: Duration = Duration::from_secs(900);

/// What a gateway is made of.
pub struct Gateway {
    /// Acts as the gateway.
    pub pool: PgPool,
    /// Opens what is stored of tenants.
    pub ring: Arc<KeyRing>,
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
    /// The longest that a job may be queued.
    pub queue_timeout: Duration,
    /// The longest that a job may run.
    pub job_timeout: Duration,
    /// How long rows are kept.
    pub retention: Retention,
    /// Wakes loops and drivers.
    pub wakes: Arc<Wakes>,
}

/// Puts a gateway together.
pub fn build(
    config: &Config,
    section: &config::Github,
    databases: &Databases,
    fleet: FleetId,
    wakes: Arc<Wakes>,
    metrics: &Arc<Metrics>,
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
        pool: databases.gateway.clone(),
        ring: super::open_ring(config)?,
        github: super::github_client(config, section, metrics)?,
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
        queue_timeout: config.limits.queue_timeout.0,
        job_timeout: config.limits.job_timeout.0,
        retention: Retention { deliveries: days(config.retention.deliveries), jobs: days(config.retention.jobs) },
        wakes,
    })
}

/// Reads a secret of the configuration: a text file that nobody else may read.
pub fn read_secret(key: &'static str, path: &Path) -> Result<SecretString, AppError> {
    let bytes = files::read_private(path).map_err(|source| AppError::File { key, source })?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned().into())
}

impl Gateway {
    /// Makes sure that what is stored can be opened. A key that was lost is made anew when the daemon starts,
    /// and would seal new values beside old ones that nobody can read.
    ///
    /// # Errors
    /// When a tenant's keys do not open with the master key.
    pub async fn check_master_key(&self, config: &Config) -> Result<(), AppError> {
        let Some(tenant) = tenants::all(&self.pool).await?.into_iter().next() else { return Ok(()) };
        match self.ring.unwrap(tenant.id, &tenant.wrapped_keys) {
            Ok(_) => Ok(()),
            Err(source) => Err(AppError::OtherMasterKey { file: config.master_key_file(), source }),
        }
    }

    /// Starts the gateway's loops. Answers the intake, for the web server.
    #[must_use]
    pub fn start(
        self,
        loops: &Loops,
        readiness: &Arc<Readiness>,
        troubles: &Arc<Troubles>,
        releases: &Arc<RunnerReleases>,
    ) -> Arc<Intake> {
        spawn_releases(loops, &self.github, releases);
        let wakes = &self.wakes;
        let minter = Arc::new(Minter {
            pool: self.pool.clone(),
            ring: Arc::clone(&self.ring),
            github: self.github.clone(),
            fleet: self.fleet,
            gateway: Uuid::new_v4(),
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
        let check = Arc::new(AppCheck {
            github: self.github.clone(),
            scope: self.scope,
            by_webhook: self.by_webhook,
            readiness: Arc::clone(readiness),
            troubles: Arc::clone(troubles),
        });
        loops.spawn("github", GITHUB_PERIOD, Never, move || {
            let check = Arc::clone(&check);
            async move { check.pass().await.map(|()| More::No) }
        });
        let doubts = Arc::new(Doubts {
            pool: self.pool.clone(),
            ring: Arc::clone(&self.ring),
            github: self.github,
            patience: Patience {
                queue: self.queue_timeout,
                running: self.job_timeout,
                delivery: DELIVERY_PATIENCE,
                lost: LOST_PATIENCE,
            },
            wakes: Arc::clone(wakes),
        });
        loops.spawn("doubts", DOUBT_PERIOD, By(Arc::clone(wakes), |wakes| &wakes.doubt), move || {
            let doubts = Arc::clone(&doubts);
            async move { doubts.pass().await.map(|_| More::No) }
        });
        let (pool, retention) = (self.pool.clone(), self.retention);
        loops.spawn("prune", PRUNE_PERIOD, Never, move || {
            let pool = pool.clone();
            async move {
                let report = prune::pass(&pool, retention, chrono::Utc::now()).await?;
                Ok::<_, crate::store::StoreError>(if report.is_partial() { More::Soon } else { More::No })
            }
        });
        Arc::new(Intake::new(self.pool, self.ring, self.secrets, self.policy, self.wakes))
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
