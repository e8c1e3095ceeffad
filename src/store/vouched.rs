//! What minting relies on, read with the MACs that say who wrote it, and what becomes of rows that nobody vouches for.

use super::Result;
use crate::domain::class::Class;
use crate::domain::ids::{HostId, JobId, RepositoryId, TenantId, VmId};
use crate::domain::vm::VmState;
use crate::secrets::vouch::JobFacts;
use sqlx::PgExecutor;

/// A vm that wants a runner, with its host.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The vm's state.
    pub state: VmState,
    /// Its host.
    pub host: HostId,
    /// The session in which the vm is written.
    pub session: i64,
    /// Its slot.
    pub slot: i32,
    /// The profile that it is for.
    pub profile: String,
    /// Whose job it was taken for.
    pub tenant: Option<TenantId>,
    /// Of which repository.
    pub repository: Option<RepositoryId>,
    /// The class that took it.
    pub class: Option<Class>,
    /// The host's unique name.
    pub host_name: String,
    /// The login that the host's row belongs to.
    pub host_login: String,
    /// The key that JIT configs for it are sealed to.
    pub public_key: Vec<u8>,
    /// A gateway's word on it.
    pub mac: Option<Vec<u8>>,
    /// The host was thrown out.
    pub is_revoked: bool,
    /// The host's session now.
    pub host_session: i64,
    /// Its slots.
    pub slots: i32,
    /// Its chip.
    pub hardware: String,
}

/// What stands behind a vm that wants a runner: one statement, so that vm and host are of one moment.
pub async fn claim(db: impl PgExecutor<'_>, vm: VmId) -> Result<Option<Claim>> {
    let row = sqlx::query!(
        r#"SELECT v.state, v.reason, v.host_id AS "host: HostId", v.session, v.slot, v.profile,
                  v.tenant_id AS "tenant: TenantId", v.repository_id AS "repository: RepositoryId",
                  v.class AS "class: Class", h.name, h.login, h.public_key, h.mac, h.session AS host_session, h.slots,
                  h.hardware, h.revoked_at IS NOT NULL AS "is_revoked!"
           FROM vms v JOIN hosts h ON h.id = v.host_id WHERE v.id = $1"#,
        vm.0
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Claim {
        state: VmState::decode(&row.state, row.reason.as_deref()),
        host: row.host,
        session: row.session,
        slot: row.slot,
        profile: row.profile,
        tenant: row.tenant,
        repository: row.repository,
        class: row.class,
        host_name: row.name,
        host_login: row.login,
        public_key: row.public_key,
        mac: row.mac,
        is_revoked: row.is_revoked,
        host_session: row.host_session,
        slots: row.slots,
        hardware: row.hardware,
    }))
}

/// A queued job, with intake's word on it.
#[derive(Clone, Debug)]
pub struct Queued {
    /// Our id.
    pub id: JobId,
    tenant: TenantId,
    repository: RepositoryId,
    lookup: Vec<u8>,
    profile: String,
    labels: Vec<String>,
    class: Class,
    origin: String,
    /// Intake's word; `None`: it is of a version that gave none.
    pub mac: Option<Vec<u8>>,
}

impl Queued {
    /// What the word is about.
    #[must_use]
    pub fn facts(&self) -> JobFacts<'_> {
        JobFacts {
            id: self.id,
            tenant: self.tenant,
            repository: self.repository,
            lookup: &self.lookup,
            profile: &self.profile,
            labels: &self.labels,
            class: self.class,
            origin: &self.origin,
        }
    }

    /// True when a runner of this tenant and repository with these labels would serve it.
    #[must_use]
    pub fn is_of(&self, tenant: TenantId, repository: RepositoryId, labels: &[String]) -> bool {
        self.tenant == tenant && self.repository == repository && self.labels == labels
    }
}

/// The oldest queued jobs of a class and profile, up to `limit`.
pub async fn queued(db: impl PgExecutor<'_>, class: Class, profile: &str, limit: i64) -> Result<Vec<Queued>> {
    Ok(sqlx::query_as!(
        Queued,
        r#"SELECT id AS "id: JobId", tenant_id AS "tenant: TenantId", repository_id AS "repository: RepositoryId",
                  github_lookup AS lookup, profile, labels, class AS "class: Class", origin, mac
           FROM jobs WHERE class = $1 AND profile = $2 AND state = 'queued' ORDER BY queued_at, id LIMIT $3"#,
        class.0,
        profile,
        limit
    )
    .fetch_all(db)
    .await?)
}

/// Removes the row of a queued job that nobody vouches for. If GitHub has the job, backfill takes it in anew.
pub async fn remove(db: impl PgExecutor<'_>, job: JobId) -> Result<()> {
    sqlx::query!("DELETE FROM jobs WHERE id = $1 AND state = 'queued'", job.0).execute(db).await?;
    Ok(())
}
