//! Registrations at GitHub that nothing of ours stands behind are deleted.
//!
//! Definition: a runner that GitHub lists with this fleet's prefix in its name, in a repository where a
//! runner was made lately, and whose row is over, or has another name by now, or that has no row at all. One
//! that GitHub calls busy is left alone, and looked at again; of the others the DELETE decides (204 and 404:
//! gone; 422: it got a job meanwhile). Names are written down before GitHub hears of them, so none of a runner
//! that is just being made is without a row.
//!
//! Does not: touch other fleets' registrations, or any while more of ours are unknown than known: that is
//! another database than the one they were made from. A registration whose row lives is `mint`'s to remove. A
//! vm whose runner never came, or vanished, ends by `[limits] idle_timeout` (`lifecycle`): GitHub is then asked
//! by `mint` to let go of the registration. One gateway does it at a time.

use crate::api::Trouble;
use crate::domain::ids::{FleetId, RepositoryId, TenantId};
use crate::domain::runner::{RunnerState, name_prefix};
use crate::github::{GitHub, GitHubError, Removal, RunnerInfo, Scope};
use crate::place::{self, Place, PlaceError};
use crate::points::effect;
use crate::secrets::{Column, KeyRing, SecretsError};
use crate::store::{StoreError, pass_leases, repositories, runners};
use crate::troubles::Troubles;
use sqlx::PgPool;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Its name among the leases.
const PASS: &str = "registrations";
/// How long another gateway waits for this one: less than two periods.
const LEASE: Duration = Duration::from_secs(100);
/// Repositories of one pass.
const BATCH: i64 = 20;
/// GitHub itself removes a JIT runner that was not connected for a day:
/// <https://docs.github.com/en/actions/reference/runners/self-hosted-runners>.
const LATELY: Duration = Duration::from_secs(26 * 60 * 60);
/// How often a repository's registrations are listed.
const EVERY: Duration = Duration::from_secs(10 * 60);

/// Deletes registrations without an owner.
pub struct Registrations {
    /// Acts as the gateway.
    pub pool: PgPool,
    /// Opens what is stored of tenants.
    pub ring: Arc<KeyRing>,
    /// GitHub.
    pub github: GitHub,
    /// Where runners are registered.
    pub scope: Scope,
    /// In every runner's name.
    pub fleet: FleetId,
    /// This process: holds the lease.
    pub gateway: Uuid,
    /// Takes what is to be asked of the operator.
    pub troubles: Arc<Troubles>,
}

/// What one pass did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RegistrationsReport {
    /// Another gateway does it.
    pub elsewhere: bool,
    /// Repositories whose registrations were listed.
    pub listed: u32,
    /// Registrations that were deleted.
    pub deleted: u32,
    /// Registrations without an owner that GitHub calls busy.
    pub busy: u32,
    /// Repositories that could not be handled.
    pub failed: u32,
    /// More registrations were unknown than known in a repository: none was touched there.
    pub strange_world: bool,
}

/// Why a repository could not be handled.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error("the runners' rows could not be read or written")]
    Store(#[from] StoreError),
    #[error("the repository's place cannot be opened")]
    Place(#[from] PlaceError),
    #[error("a runner's stored name cannot be opened")]
    Secrets(#[from] SecretsError),
    #[error("GitHub did not list or remove the registrations")]
    GitHub(#[from] GitHubError),
}

/// What stands behind a registration.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// A runner that lives, by this name.
    Live,
    /// A runner that is over, or goes by another name.
    Gone,
    /// Nothing that this database knows.
    Unknown,
}

impl Registrations {
    /// One round.
    ///
    /// # Errors
    /// When the database is away. A repository that cannot be handled is logged, and stops no other.
    pub async fn pass(&self) -> Result<RegistrationsReport, StoreError> {
        let mut report = RegistrationsReport::default();
        if !effect!("upkeep.registrations_lease", pass_leases::take(&self.pool, PASS, self.gateway, LEASE).await)? {
            report.elsewhere = true;
            return Ok(report);
        }
        for (repository, tenant) in repositories::due_for_sweep(&self.pool, LATELY, EVERY, BATCH).await? {
            match self.sweep(repository, tenant, &mut report).await {
                Ok(()) => {}
                Err(SweepError::Store(error)) => return Err(error),
                Err(error) => {
                    tracing::warn!(repository.id = %repository, error = %crate::errors::chain(&error), "the repository's registrations could not be compared");
                    report.failed += 1;
                    if let SweepError::GitHub(refusal) = &error {
                        effect!(
                            "upkeep.registrations_suspect",
                            place::suspect(&self.pool, tenant, repository, refusal).await
                        )?;
                    }
                }
            }
            effect!("upkeep.registrations_swept", repositories::swept(&self.pool, repository).await)?;
        }
        Ok(report)
    }

    async fn sweep(
        &self,
        repository: RepositoryId,
        tenant: TenantId,
        report: &mut RegistrationsReport,
    ) -> Result<(), SweepError> {
        let place = place::open(&self.pool, &self.ring, tenant, repository).await?;
        let listed = self.github.list_runners(place.installation, place.repository(), self.scope).await?;
        report.listed += 1;
        let prefix = name_prefix(self.fleet);
        let mut owned = Vec::new();
        for runner in listed.runners.into_iter().filter(|runner| runner.name.as_str().starts_with(&prefix)) {
            let owner = self.owner(&place, &runner).await?;
            owned.push((runner, owner));
        }
        if self.is_strange(repository, &owned) {
            report.strange_world = true;
            return Ok(());
        }
        for (runner, _) in owned.iter().filter(|(_, owner)| *owner != Owner::Live) {
            self.delete(&place, runner, report).await?;
        }
        Ok(())
    }

    async fn owner(&self, place: &Place, runner: &RunnerInfo) -> Result<Owner, SweepError> {
        let name = runner.name.as_str();
        let lookup = place.keys.lookup(Column::RunnerName, name.as_bytes());
        let Some((id, state, last)) = runners::owner_of_name(&self.pool, lookup).await? else {
            return Ok(Owner::Unknown);
        };
        if matches!(state, RunnerState::Removed | RunnerState::Void) {
            return Ok(Owner::Gone);
        }
        let last = last.map(|sealed| place.keys.open_text(Column::RunnerName, id.0, &sealed)).transpose()?;
        Ok(if last.as_deref() == Some(name) { Owner::Live } else { Owner::Gone })
    }

    /// True when this is probably not the database that the registrations were made from.
    fn is_strange(&self, repository: RepositoryId, owned: &[(RunnerInfo, Owner)]) -> bool {
        let unknown = owned.iter().filter(|(_, owner)| *owner == Owner::Unknown).count();
        let strange = unknown > 1 && unknown > owned.len() - unknown;
        self.troubles.set(
            &format!("registrations:{repository}"),
            strange.then(|| Trouble {
                what: "more of this fleet's runners at GitHub are unknown to the database than known".to_owned(),
                evidence: format!("{unknown} of {} in repository {repository}; none of them is touched", owned.len()),
                fix: "is it the right database, or one restored from a backup? GitHub removes idle ones within a day, and they can be removed by hand".to_owned(),
            }),
        );
        strange
    }

    async fn delete(
        &self,
        place: &Place,
        runner: &RunnerInfo,
        report: &mut RegistrationsReport,
    ) -> Result<(), SweepError> {
        if runner.busy {
            report.busy += 1;
            return Ok(());
        }
        let (scope, repository) = (self.scope, place.repository());
        let answer = effect!(
            "upkeep.registrations_remove",
            self.github.remove_runner(place.installation, repository, scope, runner.id).await
        );
        match answer? {
            Removal::Gone => {
                tracing::warn!("a registration without an owner was deleted");
                report.deleted += 1;
            }
            Removal::Busy => report.busy += 1,
        }
        Ok(())
    }
}
