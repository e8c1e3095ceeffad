//! A requested runner becomes a minted one, and a registration that is not needed goes away. Gateway.
//!
//! GitHub is asked last, when a machine is ready: it drops a JIT config that is not used within
//! minutes. Each try has a new name, stored before the call, so that a lost answer can be healed: the
//! registration is found by its name and deleted before the next try. What GitHub made and nobody
//! waits for any more is deleted by who made it.
//!
//! Does not: decide which vm serves whom (`dispatch`), or touch a vm's state (`lifecycle`).

mod removal;
mod warrant;

pub use removal::RemovalReport;

use crate::domain::ids::FleetId;
use crate::domain::labels::LabelSet;
use crate::domain::profile::{Platform, Profile};
use crate::domain::reason::{RunnerEnd, Waiting};
use crate::domain::runner::{RunnerState, name_prefix};
use crate::github::{Denial, GitHub, GitHubError, Minted, Removal, Scope};
use crate::place::{self, Place, PlaceError};
use crate::points::effect;
use crate::secrets::package;
use crate::secrets::sealing::{self, JitContext};
use crate::secrets::vouch::Warrant;
use crate::secrets::{Column, KeyRing, Lookup, Sealed, SecretsError};
use crate::store::audit::{Act, Trail};
use crate::store::runners::{self, NameFate, Runner};
use crate::store::{Applied, StoreError};
use crate::wake::Wakes;
use chrono::Utc;
use futures_util::StreamExt;
use sqlx::PgPool;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;
use warrant::Standing;

/// How long a gateway may take for one call; then another takes the runner over.
const MINTING_LEASE: Duration = Duration::from_secs(60);
/// Runners taken in one pass.
const BATCH: i64 = 32;
/// Calls to GitHub at once.
const CALLS_AT_ONCE: usize = 8;
/// The longest wait before a failed runner is tried again.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long a runner waits that GitHub refuses until somebody changes a setting.
const SETTING_WAIT: Duration = Duration::from_secs(300);

/// Mints and removes registrations.
pub struct Minter {
    /// Acts as the gateway.
    pub pool: PgPool,
    /// Opens what is stored of tenants.
    pub ring: Arc<KeyRing>,
    /// GitHub.
    pub github: GitHub,
    /// Every minted runner is in the audit trail.
    pub trail: Trail,
    /// Whose word on hosts counts.
    pub warrant: Arc<Warrant>,
    /// What is on offer, with the guests' platforms.
    pub profiles: Vec<(Profile, Option<Platform>)>,
    /// In every runner's name.
    pub fleet: FleetId,
    /// This process: holds the lease of a call.
    pub gateway: Uuid,
    /// Where runners are registered.
    pub scope: Scope,
    /// Wakes the drivers that wait.
    pub wakes: Arc<Wakes>,
}

/// What one pass did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct MintReport {
    /// Runners that GitHub made.
    pub minted: u32,
    /// Runners to be tried again.
    pub put_back: u32,
    /// Runners whose demand went.
    pub voided: u32,
    /// Runners that GitHub made and nobody waits for any more.
    pub late: u32,
}

impl MintReport {
    /// True when a whole batch was taken: there may be more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        i64::from(self.minted + self.put_back + self.voided + self.late) >= BATCH
    }
}

/// What became of one runner.
enum Outcome {
    Minted,
    PutBack,
    Voided,
    Late,
}

/// Why a runner could not be handled at all in this pass.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The database is away.
    #[error("the runner's rows could not be read or written")]
    Store(#[from] StoreError),
    /// A stored value does not open.
    #[error("the runner's stored values cannot be opened")]
    Secrets(#[from] SecretsError),
    /// GitHub did not do it.
    #[error("GitHub did not do what was asked")]
    GitHub(#[from] GitHubError),
    /// Where it belongs is not known any more.
    #[error("the runner's place cannot be opened")]
    Place(#[from] PlaceError),
    /// Rows do not fit each other, or nobody vouches for them.
    #[error("the rows that ask for the runner are not to be trusted: {0}")]
    Forged(&'static str),
    /// Its host is gone.
    #[error("the runner's host is not there any more")]
    HostGone,
}

impl Minter {
    /// One round: takes what is requested, asks GitHub for it.
    ///
    /// # Errors
    /// When the database is away. What goes wrong with one runner is logged, and does not stop the others.
    pub async fn pass(&self) -> Result<MintReport, StoreError> {
        effect!("mint.void_ended", runners::void_of_ending_vms(&self.pool).await)?;
        let taken =
            effect!("mint.take", runners::take_for_minting(&self.pool, self.gateway, MINTING_LEASE, BATCH).await)?;
        let outcomes: Vec<Outcome> = futures_util::stream::iter(taken)
            .map(|runner| async move { self.mint_or_log(&runner).await })
            .buffer_unordered(CALLS_AT_ONCE)
            .collect()
            .await;
        let mut report = MintReport::default();
        for outcome in outcomes {
            match outcome {
                Outcome::Minted => report.minted += 1,
                Outcome::PutBack => report.put_back += 1,
                Outcome::Voided => report.voided += 1,
                Outcome::Late => report.late += 1,
            }
        }
        Ok(report)
    }

    async fn mint_or_log(&self, runner: &Runner) -> Outcome {
        match self.mint(runner).await {
            Ok(outcome) => {
                self.wakes.vm(runner.vm);
                outcome
            }
            Err(error) => {
                tracing::warn!(runner.id = %runner.id, vm.id = %runner.vm, error = %crate::errors::chain(&error), "the runner could not be minted");
                if let Err(error) = self.put_back(runner, &error).await {
                    // Its lease ends, and any gateway takes it up again.
                    tracing::warn!(runner.id = %runner.id, error = %crate::errors::chain(&error), "the runner could not be put back");
                }
                Outcome::PutBack
            }
        }
    }

    async fn mint(&self, runner: &Runner) -> Result<Outcome, MintError> {
        let place = self.place(runner).await?;
        self.heal(runner, &place).await?;
        let Standing::Stands(key) = self.standing(runner, &place).await? else {
            let (from, end) = (RunnerState::Minting, RunnerEnd::DemandGone);
            let _ = effect!("mint.void", runners::void(&self.pool, runner.id, from, end).await)?;
            return Ok(Outcome::Voided);
        };
        let name = self.new_name();
        let lookup = place.keys.lookup(Column::RunnerName, name.as_bytes());
        let sealed = place.keys.seal_text(Column::RunnerName, runner.id.0, &name);
        let recorded = effect!(
            "mint.name",
            runners::record_name(&self.pool, runner.id, runner.tenant, self.gateway, lookup, &sealed).await
        )?;
        if recorded == Applied::Stale {
            return Ok(Outcome::Late);
        }
        let labels: LabelSet = runner.labels.iter().collect();
        let minted = effect!(
            "mint.call",
            self.github.mint(place.installation, place.repository(), self.scope, &name, &labels).await
        )?;
        self.hand_over(runner, &place, &key, &name, &minted).await
    }

    /// Stores what GitHub made, sealed to the host that will use it; deletes it if nobody waits for it.
    async fn hand_over(
        &self,
        runner: &Runner,
        place: &Place,
        key: &[u8],
        name: &str,
        minted: &Minted,
    ) -> Result<Outcome, MintError> {
        let context = JitContext {
            fleet: self.fleet,
            host: runner.host,
            vm: runner.vm,
            runner: runner.id,
            repository: runner.repository,
        };
        let jit = sealing::seal_jit(key, &context, &package::join(name, &minted.jit_config))?;
        let lookup = place.keys.lookup_id(Column::RunnerGithubId, minted.runner_id);
        let github_id = place.keys.seal_id(Column::RunnerGithubId, runner.id.0, minted.runner_id);
        if self.store(runner, lookup, &github_id, &jit).await? == Applied::Yes {
            return Ok(Outcome::Minted);
        }
        let removed = effect!(
            "mint.remove_late",
            self.github.remove_runner(place.installation, place.repository(), self.scope, minted.runner_id).await
        )?;
        match removed {
            // Still ours if its vm ended meanwhile: what nobody waits for does not wait for its lease either.
            Removal::Gone => {
                let _ = effect!(
                    "mint.let_late_go",
                    runners::put_back(&self.pool, runner.id, self.gateway, NameFate::Settled, Duration::ZERO, None)
                        .await
                )?;
            }
            // It has a job already, though nobody was given its config: the removal loop looks again by its name.
            Removal::Busy => tracing::error!(runner.id = %runner.id, "a late registration is busy"),
        }
        Ok(Outcome::Late)
    }

    /// Stores what GitHub made, and that the App's key was used for it, or neither.
    async fn store(
        &self,
        runner: &Runner,
        lookup: Lookup,
        github_id: &Sealed,
        jit: &[u8],
    ) -> Result<Applied, StoreError> {
        let mut tx = self.pool.begin().await?;
        let applied = runners::minted(&mut *tx, runner.id, self.gateway, lookup, github_id, jit).await?;
        if applied == Applied::Yes {
            let (subject, detail) =
                (runner.id.to_string(), format!("for tenant {} to host {}", runner.tenant, runner.host));
            let act = Act { actor: "gateway", action: "runner.mint", subject: &subject, detail: Some(&detail) };
            self.trail.append_within(&mut tx, &act).await?;
        }
        effect!("mint.store", tx.commit().await)?;
        Ok(applied)
    }

    /// Deletes what an earlier try may have left at GitHub: its answer was lost.
    async fn heal(&self, runner: &Runner, place: &Place) -> Result<(), MintError> {
        let Some(sealed) = &runner.name else { return Ok(()) };
        let name = place.keys.open_text(Column::RunnerName, runner.id.0, sealed)?;
        let found = self.github.find_runner(place.installation, place.repository(), self.scope, &name).await?;
        if let Some(found) = found {
            effect!(
                "mint.heal",
                self.github.remove_runner(place.installation, place.repository(), self.scope, found.id).await
            )?;
        }
        Ok(())
    }

    /// Where a runner belongs.
    async fn place(&self, runner: &Runner) -> Result<Place, PlaceError> {
        place::open(&self.pool, &self.ring, runner.tenant, runner.repository).await
    }

    async fn put_back(&self, runner: &Runner, error: &MintError) -> Result<(), StoreError> {
        let Retry { wait, fate, trouble } = retry(error, runner.tries);
        if let MintError::Forged(why) = error {
            self.record_refusal(runner, why).await?;
        }
        if let MintError::GitHub(refusal) = error
            && effect!("mint.suspect", place::suspect(&self.pool, runner.tenant, runner.repository, refusal).await)?
        {
            self.wakes.doubt.notify_one();
        }
        // Stale: the lease ended, and another gateway has it.
        let _ = effect!(
            "mint.put_back",
            runners::put_back(&self.pool, runner.id, self.gateway, fate, wait, trouble).await
        )?;
        Ok(())
    }

    /// A name that nobody can guess, from which the fleet can be told.
    fn new_name(&self) -> String {
        format!("{}{}", name_prefix(self.fleet), Uuid::from_bytes(rand::random()).simple())
    }
}

/// When and how a runner is tried again.
struct Retry {
    wait: Duration,
    fate: NameFate,
    trouble: Option<Waiting>,
}

fn retry(error: &MintError, tries: i32) -> Retry {
    let growing = LONGEST_WAIT.min(Duration::from_secs(1 << tries.clamp(0, 6)));
    let settled = |wait, trouble| Retry { wait, fate: NameFate::Settled, trouble };
    match error {
        MintError::GitHub(GitHubError::RateLimited { until, .. }) => {
            settled((*until - Utc::now()).to_std().unwrap_or(growing), Some(Waiting::MintingRateLimited))
        }
        MintError::GitHub(GitHubError::Forbidden { reason: Denial::OrgForbidsRepoRunners, .. }) => {
            settled(SETTING_WAIT, Some(Waiting::OrgForbidsRepoRunners))
        }
        MintError::GitHub(GitHubError::Forbidden { reason: Denial::MissingPermission, .. }) => {
            settled(SETTING_WAIT, None)
        }
        MintError::GitHub(error) if !error.may_have_happened() => settled(growing, None),
        // What an earlier try may have left is healed by then.
        MintError::Forged(_) => settled(SETTING_WAIT, None),
        MintError::GitHub(_)
        | MintError::Store(_)
        | MintError::Secrets(_)
        | MintError::Place(_)
        | MintError::HostGone => Retry { wait: growing, fate: NameFate::Unknown, trouble: None },
    }
}
