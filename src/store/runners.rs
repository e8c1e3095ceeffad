//! GitHub's registration of one vm for one job. Written by the gateway, except the host's marks.

use super::{Applied, Result};
use crate::domain::class::Class;
use crate::domain::ids::{HostId, RepositoryId, RunnerId, TenantId, VmId};
use crate::domain::reason::{RunnerEnd, Waiting};
use crate::domain::runner::RunnerState;
use crate::secrets::{Lookup, Sealed};
use chrono::{DateTime, Utc};
use sqlx::PgExecutor;
use std::time::Duration;
use uuid::Uuid;

/// What is needed to request a runner.
pub struct NewRunner<'a> {
    /// Our id.
    pub id: RunnerId,
    /// The vm it is for.
    pub vm: VmId,
    /// The host whose key the JIT config is sealed to.
    pub host: HostId,
    /// Whose job it is for.
    pub tenant: TenantId,
    /// The one repository it may serve.
    pub repository: RepositoryId,
    /// Exactly the job's labels.
    pub labels: &'a [String],
    /// The class.
    pub class: Class,
}

/// Writes that a vm wants a runner.
pub async fn request(db: impl PgExecutor<'_>, new: &NewRunner<'_>) -> Result<()> {
    sqlx::query!(
        "INSERT INTO runners (id, vm_id, host_id, tenant_id, repository_id, labels, class, state)
         VALUES ($1, $2, $3, $4, $5, $6, $7, 'requested')",
        new.id.0,
        new.vm.0,
        new.host.0,
        new.tenant.0,
        new.repository.0,
        new.labels,
        new.class.0
    )
    .execute(db)
    .await?;
    Ok(())
}

/// One runner.
#[derive(Clone, Debug)]
pub struct Runner {
    /// Our id.
    pub id: RunnerId,
    /// Its vm.
    pub vm: VmId,
    /// Its host.
    pub host: HostId,
    /// Whose job it is for.
    pub tenant: TenantId,
    /// The one repository it may serve.
    pub repository: RepositoryId,
    /// Exactly the job's labels.
    pub labels: Vec<String>,
    /// The class.
    pub class: Class,
    /// Its state.
    pub state: RunnerState,
    /// The name offered to GitHub last.
    pub name: Option<Sealed>,
    /// GitHub's id.
    pub github_id: Option<Sealed>,
    /// The JIT config, sealed to its host: there from minted until delivered.
    pub sealed_jit: Option<Vec<u8>>,
    /// When GitHub made it.
    pub minted_at: Option<DateTime<Utc>>,
    /// How often GitHub was asked for it.
    pub tries: i32,
}

struct Row {
    id: RunnerId,
    vm: VmId,
    host: HostId,
    tenant: TenantId,
    repository: RepositoryId,
    labels: Vec<String>,
    class: Class,
    state: String,
    name: Option<Sealed>,
    github_id: Option<Sealed>,
    sealed_jit: Option<Vec<u8>>,
    minted_at: Option<DateTime<Utc>>,
    tries: i32,
}

impl From<Row> for Runner {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            vm: row.vm,
            host: row.host,
            tenant: row.tenant,
            repository: row.repository,
            labels: row.labels,
            class: row.class,
            state: RunnerState::decode(&row.state),
            name: row.name,
            github_id: row.github_id,
            sealed_jit: row.sealed_jit,
            minted_at: row.minted_at,
            tries: row.tries,
        }
    }
}

/// Takes up to `limit` runners to mint: requested ones whose time has come, and those whose gateway
/// did not come back. They are this gateway's until `lease` has passed.
pub async fn take_for_minting(
    db: impl PgExecutor<'_>,
    gateway: Uuid,
    lease: Duration,
    limit: i64,
) -> Result<Vec<Runner>> {
    let rows = sqlx::query_as!(
        Row,
        r#"UPDATE runners SET state = 'minting', minting_by = $1, tries = tries + 1,
                  minting_until = clock_timestamp() + make_interval(secs => $2)
           WHERE id IN (
               SELECT id FROM runners
               WHERE (state = 'requested' AND (not_before IS NULL OR not_before <= clock_timestamp()))
                  OR (state = 'minting' AND minting_until < clock_timestamp())
               ORDER BY requested_at LIMIT $3 FOR NO KEY UPDATE SKIP LOCKED)
           RETURNING id AS "id: RunnerId", vm_id AS "vm: VmId", host_id AS "host: HostId",
                     tenant_id AS "tenant: TenantId", repository_id AS "repository: RepositoryId", labels,
                     class AS "class: Class", state, name AS "name: Sealed", github_id AS "github_id: Sealed",
                     sealed_jit, minted_at, tries"#,
        gateway,
        lease.as_secs_f64(),
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(Runner::from).collect())
}

/// Writes a name before it is offered to GitHub. Append-only: the record that heals a crash.
pub async fn record_name(
    db: impl PgExecutor<'_>,
    runner: RunnerId,
    tenant: TenantId,
    gateway: Uuid,
    lookup: Lookup,
    name: &Sealed,
) -> Result<Applied> {
    let rows = sqlx::query!(
        "WITH held AS (UPDATE runners SET name = $5 WHERE id = $2 AND state = 'minting' AND minting_by = $4 RETURNING id)
         INSERT INTO runner_names (lookup, runner_id, tenant_id) SELECT $1, id, $3 FROM held",
        lookup.as_bytes(),
        runner.0,
        tenant.0,
        gateway,
        name.0
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// Writes what GitHub made. Stale when the lease went, or the vm does not wait for it any more:
/// whoever made it must then delete it.
pub async fn minted(
    db: impl PgExecutor<'_>,
    runner: RunnerId,
    gateway: Uuid,
    github_lookup: Lookup,
    github_id: &Sealed,
    sealed_jit: &[u8],
) -> Result<Applied> {
    let rows = sqlx::query!(
        "UPDATE runners r SET state = 'minted', github_lookup = $3, github_id = $4, sealed_jit = $5,
                minted_at = clock_timestamp(), minting_by = NULL, minting_until = NULL, trouble = NULL
         FROM vms v
         WHERE r.id = $1 AND r.state = 'minting' AND r.minting_by = $2 AND v.id = r.vm_id AND v.state = 'bound'",
        runner.0,
        gateway,
        github_lookup.as_bytes(),
        github_id.0,
        sealed_jit
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// What became of the name that was offered to GitHub last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameFate {
    /// GitHub has no registration of it.
    Settled,
    /// The answer was lost: there may be a registration, to be found by the name and deleted first.
    Unknown,
}

/// Gives a runner back to be minted later, under a new name. `trouble` tells the operator why.
pub async fn put_back(
    db: impl PgExecutor<'_>,
    runner: RunnerId,
    gateway: Uuid,
    fate: NameFate,
    wait: Duration,
    trouble: Option<Waiting>,
) -> Result<Applied> {
    let rows = sqlx::query!(
        "UPDATE runners SET state = 'requested', minting_by = NULL, minting_until = NULL, trouble = $5,
                name = CASE WHEN $4 THEN NULL ELSE name END,
                not_before = clock_timestamp() + make_interval(secs => $3)
         WHERE id = $1 AND state = 'minting' AND minting_by = $2",
        runner.0,
        gateway,
        wait.as_secs_f64(),
        fate == NameFate::Settled,
        trouble.map(Waiting::as_str)
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// Ends a runner that GitHub was not asked for, or that GitHub does not have.
pub async fn void(db: impl PgExecutor<'_>, runner: RunnerId, from: RunnerState, reason: RunnerEnd) -> Result<Applied> {
    let rows = sqlx::query!(
        "UPDATE runners SET state = 'void', reason = $3, sealed_jit = NULL, ended_at = clock_timestamp(),
                minting_by = NULL, minting_until = NULL
         WHERE id = $1 AND state = $2",
        runner.0,
        from.as_str(),
        reason.as_str()
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// Moves a runner; the sealed JIT config is erased as soon as it is not needed.
pub async fn advance(
    db: impl PgExecutor<'_>,
    runner: RunnerId,
    from: RunnerState,
    to: RunnerState,
    reason: Option<RunnerEnd>,
) -> Result<Applied> {
    let rows = sqlx::query!(
        "UPDATE runners SET state = $3, reason = coalesce($4, reason),
            sealed_jit = CASE WHEN $3 IN ('minted', 'delivering') THEN sealed_jit END,
            busy_at = CASE WHEN $3 = 'busy' THEN coalesce(busy_at, clock_timestamp()) ELSE busy_at END,
            ended_at = CASE WHEN $3 IN ('ended', 'removed') THEN coalesce(ended_at, clock_timestamp()) ELSE ended_at END,
            removed_at = CASE WHEN $3 = 'removed' THEN clock_timestamp() ELSE removed_at END
         WHERE id = $1 AND state = $2",
        runner.0,
        from.as_str(),
        to.as_str(),
        reason.map(RunnerEnd::as_str)
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// One runner.
pub async fn get(db: impl PgExecutor<'_>, id: RunnerId) -> Result<Option<Runner>> {
    Ok(sqlx::query_as!(
        Row,
        r#"SELECT id AS "id: RunnerId", vm_id AS "vm: VmId", host_id AS "host: HostId",
                  tenant_id AS "tenant: TenantId", repository_id AS "repository: RepositoryId", labels,
                  class AS "class: Class", state, name AS "name: Sealed", github_id AS "github_id: Sealed",
                  sealed_jit, minted_at, tries
           FROM runners WHERE id = $1"#,
        id.0
    )
    .fetch_optional(db)
    .await?
    .map(Runner::from))
}

/// The runner of a repository with this id of GitHub's: the only way a delivery names one of ours.
pub async fn find_by_github_id(
    db: impl PgExecutor<'_>,
    repository: RepositoryId,
    lookup: Lookup,
) -> Result<Option<(RunnerId, VmId, RunnerState)>> {
    let row = sqlx::query!(
        r#"SELECT id AS "id: RunnerId", vm_id AS "vm: VmId", state FROM runners
           WHERE repository_id = $1 AND github_lookup = $2"#,
        repository.0,
        lookup.as_bytes()
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| (row.id, row.vm, RunnerState::decode(&row.state))))
}

/// The runner that was offered to GitHub under this name and whose id we do not know: the answer was lost.
pub async fn find_by_name(
    db: impl PgExecutor<'_>,
    repository: RepositoryId,
    lookup: Lookup,
) -> Result<Option<(RunnerId, VmId, RunnerState)>> {
    let row = sqlx::query!(
        r#"SELECT r.id AS "id: RunnerId", r.vm_id AS "vm: VmId", r.state
           FROM runner_names n JOIN runners r ON r.id = n.runner_id
           WHERE n.lookup = $2 AND r.repository_id = $1 AND r.github_lookup IS NULL"#,
        repository.0,
        lookup.as_bytes()
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| (row.id, row.vm, RunnerState::decode(&row.state))))
}

/// The runner that a name was offered to GitHub for, with the name that it was offered under last.
pub async fn owner_of_name(
    db: impl PgExecutor<'_>,
    lookup: Lookup,
) -> Result<Option<(RunnerId, RunnerState, Option<Sealed>)>> {
    let row = sqlx::query!(
        r#"SELECT r.id AS "id: RunnerId", r.state, r.name AS "name: Sealed"
           FROM runner_names n JOIN runners r ON r.id = n.runner_id WHERE n.lookup = $1"#,
        lookup.as_bytes()
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| (row.id, RunnerState::decode(&row.state), row.name)))
}

/// Why GitHub is asked to forget a runner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RemovalCause {
    /// Its vm is ending, abandoned or gone.
    VmEnding,
    /// Its host asks whether it can be let go: it had no job for too long, or its vm is not wanted.
    ReleaseAsked,
}

/// Registrations that GitHub is to be asked to forget: those whose vm is ending or abandoned, and those that a
/// host asked about. Oldest first.
pub async fn to_remove(db: impl PgExecutor<'_>, limit: i64) -> Result<Vec<(Runner, RemovalCause)>> {
    let rows = sqlx::query!(
        r#"SELECT r.id AS "id: RunnerId", r.vm_id AS "vm: VmId", r.host_id AS "host: HostId",
                  r.tenant_id AS "tenant: TenantId", r.repository_id AS "repository: RepositoryId", r.labels,
                  r.class AS "class: Class", r.state, r.name AS "name: Sealed", r.github_id AS "github_id: Sealed",
                  r.minted_at, r.tries, v.state IN ('stopping', 'gone', 'abandoned') AS "ending!"
           FROM runners r JOIN vms v ON v.id = r.vm_id
           WHERE r.state NOT IN ('removed', 'void', 'requested', 'unknown')
             AND (r.not_before IS NULL OR r.not_before <= clock_timestamp())
             AND (v.state IN ('stopping', 'gone', 'abandoned') OR r.state IN ('ended', 'removing')
                  OR (v.release_asked_at IS NOT NULL AND r.state <> 'minting'))
             AND (r.state <> 'minting' OR r.minting_until < clock_timestamp())
           ORDER BY r.requested_at LIMIT $1"#,
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let cause = if row.ending { RemovalCause::VmEnding } else { RemovalCause::ReleaseAsked };
            let runner = Runner {
                id: row.id,
                vm: row.vm,
                host: row.host,
                tenant: row.tenant,
                repository: row.repository,
                labels: row.labels,
                class: row.class,
                state: RunnerState::decode(&row.state),
                name: row.name,
                github_id: row.github_id,
                sealed_jit: None,
                minted_at: row.minted_at,
                tries: row.tries,
            };
            (runner, cause)
        })
        .collect())
}

/// Asks again later: GitHub said busy, or did not answer.
pub async fn postpone(db: impl PgExecutor<'_>, runner: RunnerId, wait: Duration) -> Result<()> {
    sqlx::query!(
        "UPDATE runners SET not_before = clock_timestamp() + make_interval(secs => $2) WHERE id = $1",
        runner.0,
        wait.as_secs_f64()
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Voids what was requested for vms that are ending: GitHub was never asked.
pub async fn void_of_ending_vms(db: impl PgExecutor<'_>) -> Result<u64> {
    Ok(sqlx::query!(
        "UPDATE runners r SET state = 'void', reason = 'vm_ended', ended_at = clock_timestamp()
         FROM vms v WHERE v.id = r.vm_id AND r.state = 'requested' AND v.state IN ('stopping', 'gone', 'abandoned')"
    )
    .execute(db)
    .await?
    .rows_affected())
}
