//! One clone of an image, booted once. Written by its host alone, and by [`super::rescue`] while its host is silent.

use super::{Applied, Result};
use crate::domain::class::Class;
use crate::domain::ids::{HostId, RepositoryId, RunnerId, TenantId, VmId};
use crate::domain::job::JobState;
use crate::domain::reason::VmEnd;
use crate::domain::runner::RunnerState;
use crate::domain::vm::{self, VmEvent, VmState};
use chrono::{DateTime, Utc};
use sqlx::PgExecutor;

/// Who may write a vm: its host, in this session of its daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fence {
    /// The host.
    pub host: HostId,
    /// Counts the starts of the host's daemon.
    pub session: i64,
}

/// One vm, as its driver needs it.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Its id, and the name of its directory.
    pub id: VmId,
    /// Which slot it holds.
    pub slot: u16,
    /// The profile it is for.
    pub profile: String,
    /// The image's digest.
    pub image: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Whose job it was taken for.
    pub tenant: Option<TenantId>,
    /// Of which repository.
    pub repository: Option<RepositoryId>,
    /// The class that took it.
    pub class: Option<Class>,
    /// Its state.
    pub state: VmState,
    /// When it was planned.
    pub planned_at: DateTime<Utc>,
    /// When its process was started.
    pub booted_at: Option<DateTime<Utc>>,
    /// When its guest was ready.
    pub ready_at: Option<DateTime<Utc>>,
    /// When its runner was started.
    pub serving_at: Option<DateTime<Utc>>,
}

/// What is needed to plan a vm.
pub struct NewVm<'a> {
    /// Its id.
    pub id: VmId,
    /// Which slot it takes.
    pub slot: u16,
    /// The profile it is for.
    pub profile: &'a str,
    /// The image's digest.
    pub image: &'a str,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
}

/// Plans a vm: takes the slot. Stale when a newer session of the host began, which would not know of the vm.
pub async fn insert(db: impl PgExecutor<'_>, fence: Fence, new: &NewVm<'_>) -> Result<Applied> {
    let rows = sqlx::query!(
        "INSERT INTO vms (id, host_id, session, slot, profile, image, cpus, memory, state)
         SELECT $1, id, session, $4, $5, $6, $7, $8, 'planned' FROM hosts WHERE id = $2 AND session = $3 FOR SHARE",
        new.id.0,
        fence.host.0,
        fence.session,
        i32::from(new.slot),
        new.profile,
        new.image,
        i32::try_from(new.cpus).unwrap_or(i32::MAX),
        i64::try_from(new.memory).unwrap_or(i64::MAX)
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

struct Row {
    id: VmId,
    slot: i32,
    profile: String,
    image: String,
    cpus: i32,
    memory: i64,
    tenant: Option<TenantId>,
    repository: Option<RepositoryId>,
    class: Option<Class>,
    state: String,
    reason: Option<String>,
    planned_at: DateTime<Utc>,
    booted_at: Option<DateTime<Utc>>,
    ready_at: Option<DateTime<Utc>>,
    serving_at: Option<DateTime<Utc>>,
}

impl From<Row> for Vm {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            slot: u16::try_from(row.slot).unwrap_or(u16::MAX),
            profile: row.profile,
            image: row.image,
            cpus: u32::try_from(row.cpus).unwrap_or(0),
            memory: u64::try_from(row.memory).unwrap_or(0),
            tenant: row.tenant,
            repository: row.repository,
            class: row.class,
            state: VmState::decode(&row.state, row.reason.as_deref()),
            planned_at: row.planned_at,
            booted_at: row.booted_at,
            ready_at: row.ready_at,
            serving_at: row.serving_at,
        }
    }
}

/// One vm.
pub async fn get(db: impl PgExecutor<'_>, id: VmId) -> Result<Option<Vm>> {
    Ok(sqlx::query_as!(
        Row,
        r#"SELECT id AS "id: VmId", slot, profile, image, cpus, memory, tenant_id AS "tenant: TenantId",
                  repository_id AS "repository: RepositoryId", class AS "class: Class", state, reason,
                  planned_at, booted_at, ready_at, serving_at
           FROM vms WHERE id = $1"#,
        id.0
    )
    .fetch_optional(db)
    .await?
    .map(Vm::from))
}

/// The vms of a host that are not gone, oldest first.
pub async fn live(db: impl PgExecutor<'_>, host: HostId) -> Result<Vec<Vm>> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT id AS "id: VmId", slot, profile, image, cpus, memory, tenant_id AS "tenant: TenantId",
                  repository_id AS "repository: RepositoryId", class AS "class: Class", state, reason,
                  planned_at, booted_at, ready_at, serving_at
           FROM vms WHERE host_id = $1 AND state <> 'gone' ORDER BY planned_at"#,
        host.0
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(Vm::from).collect())
}

/// Why a vm ended, or is ending; `None` while it lives.
pub async fn end_of(db: impl PgExecutor<'_>, id: VmId) -> Result<Option<VmEnd>> {
    let row = sqlx::query!("SELECT state, reason FROM vms WHERE id = $1", id.0).fetch_optional(db).await?;
    Ok(row.and_then(|row| VmState::decode(&row.state, row.reason.as_deref()).end()))
}

/// The vms of a class that are waiting for a job.
pub async fn jobless_of_class(db: impl PgExecutor<'_>, class: Class) -> Result<Vec<VmId>> {
    Ok(sqlx::query_scalar!(
        r#"SELECT v.id AS "id: VmId" FROM vms v
           WHERE v.class = $1 AND v.state NOT IN ('stopping', 'gone', 'abandoned')
             AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.vm_id = v.id)"#,
        class.0
    )
    .fetch_all(db)
    .await?)
}

/// Whether the host ever had a vm of this id, and whether it is gone.
pub async fn known(db: impl PgExecutor<'_>, host: HostId, ids: &[uuid::Uuid]) -> Result<Vec<(VmId, VmState)>> {
    let rows = sqlx::query!(
        r#"SELECT id AS "id: VmId", state, reason FROM vms WHERE host_id = $1 AND id = ANY($2)"#,
        host.0,
        ids
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, VmState::decode(&row.state, row.reason.as_deref()))).collect())
}

/// Takes the host's vms over for a new session of its daemon: the old one's writes are stale from now on.
pub async fn adopt(db: impl PgExecutor<'_>, fence: Fence) -> Result<u64> {
    Ok(sqlx::query!("UPDATE vms SET session = $2 WHERE host_id = $1 AND state <> 'gone'", fence.host.0, fence.session)
        .execute(db)
        .await?
        .rows_affected())
}

/// Moves a vm by an event, from the state it was read in, and writes the step's time.
///
/// # Errors
/// [`super::StoreError::Denied`] when the state machine has no such step.
pub async fn advance(
    db: impl PgExecutor<'_>,
    fence: Fence,
    id: VmId,
    from: VmState,
    event: VmEvent,
) -> Result<Applied> {
    let to = vm::next(from, event)?;
    let rows = sqlx::query!(
        "UPDATE vms SET state = $4, reason = coalesce($5, reason),
            cloned_at     = CASE WHEN $4 = 'cloned'     THEN clock_timestamp() ELSE cloned_at END,
            ready_at      = CASE WHEN $4 = 'ready'      THEN coalesce(ready_at, clock_timestamp()) ELSE ready_at END,
            delivering_at = CASE WHEN $4 = 'delivering' THEN clock_timestamp() ELSE delivering_at END,
            serving_at    = CASE WHEN $4 = 'serving'    THEN coalesce(serving_at, clock_timestamp()) ELSE serving_at END,
            stopping_at   = CASE WHEN $4 = 'stopping'   THEN clock_timestamp() ELSE stopping_at END,
            gone_at       = CASE WHEN $4 = 'gone'       THEN clock_timestamp() ELSE gone_at END,
            tenant_id     = CASE WHEN $4 = 'ready' THEN NULL ELSE tenant_id END,
            repository_id = CASE WHEN $4 = 'ready' THEN NULL ELSE repository_id END,
            class         = CASE WHEN $4 = 'ready' THEN NULL ELSE class END,
            bound_at      = CASE WHEN $4 = 'ready' THEN NULL ELSE bound_at END
         WHERE id = $1 AND host_id = $2 AND session = $6 AND state = $3",
        id.0,
        fence.host.0,
        from.as_str(),
        to.as_str(),
        to.end().map(VmEnd::as_str),
        fence.session
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// Writes that the process is up.
pub async fn mark_booted(db: impl PgExecutor<'_>, fence: Fence, id: VmId) -> Result<()> {
    sqlx::query!(
        "UPDATE vms SET booted_at = coalesce(booted_at, clock_timestamp()) WHERE id = $1 AND host_id = $2 AND session = $3",
        id.0,
        fence.host.0,
        fence.session
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Writes when GitHub made the vm's runner.
pub async fn mark_minted(db: impl PgExecutor<'_>, id: VmId, minted_at: Option<DateTime<Utc>>) -> Result<()> {
    sqlx::query!("UPDATE vms SET minted_at = $2 WHERE id = $1", id.0, minted_at).execute(db).await?;
    Ok(())
}

/// Writes the runner's exit status.
pub async fn mark_runner_status(db: impl PgExecutor<'_>, id: VmId, status: i32) -> Result<()> {
    sqlx::query!("UPDATE vms SET runner_status = $2 WHERE id = $1", id.0, status).execute(db).await?;
    Ok(())
}

/// Takes a ready vm for a class: from here on it is a tenant's.
pub async fn bind(
    db: impl PgExecutor<'_>,
    fence: Fence,
    id: VmId,
    tenant: TenantId,
    repository: RepositoryId,
    class: Class,
) -> Result<Applied> {
    let rows = sqlx::query!(
        "UPDATE vms SET state = 'bound', tenant_id = $4, repository_id = $5, class = $6, bound_at = clock_timestamp()
         WHERE id = $1 AND host_id = $2 AND session = $3 AND state = 'ready' AND kill_asked IS NULL",
        id.0,
        fence.host.0,
        fence.session,
        tenant.0,
        repository.0,
        class.0
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// Asks the gateway whether GitHub lets go of the vm's runner: the only proof that it will have no job.
pub async fn ask_release(db: impl PgExecutor<'_>, id: VmId) -> Result<()> {
    sqlx::query!("UPDATE vms SET release_asked_at = coalesce(release_asked_at, clock_timestamp()) WHERE id = $1", id.0)
        .execute(db)
        .await?;
    Ok(())
}

/// Takes the question back: the runner is busy.
pub async fn withdraw_release(db: impl PgExecutor<'_>, id: VmId) -> Result<()> {
    sqlx::query!("UPDATE vms SET release_asked_at = NULL WHERE id = $1", id.0).execute(db).await?;
    Ok(())
}

/// Asks the vm's host to destroy it. Stale when it is ending already.
pub async fn ask_kill(db: impl PgExecutor<'_>, id: VmId, end: VmEnd) -> Result<Applied> {
    let rows = sqlx::query!(
        "UPDATE vms SET kill_asked = $2 WHERE id = $1 AND state NOT IN ('stopping', 'gone')",
        id.0,
        end.as_str()
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// All that a driver decides by while its vm is bound or serving.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    /// The vm's state.
    pub state: VmState,
    /// Somebody wants it destroyed.
    pub kill_asked: Option<VmEnd>,
    /// The gateway was asked to have GitHub let go of the runner.
    pub release_asked_at: Option<DateTime<Utc>>,
    /// Its newest runner.
    pub runner: Option<(RunnerId, RunnerState)>,
    /// The state of the job that it has or had.
    pub job: Option<JobState>,
    /// When that job's runner began, by GitHub's clock.
    pub job_started_at: Option<DateTime<Utc>>,
    /// The database's clock.
    pub now: DateTime<Utc>,
}

/// Reads what a driver decides by.
pub async fn watch(db: impl PgExecutor<'_>, id: VmId) -> Result<Option<Watch>> {
    let row = sqlx::query!(
        r#"SELECT v.state, v.reason, v.kill_asked, v.release_asked_at,
                  r.id AS "runner_id?: RunnerId", r.state AS "runner_state?",
                  j.state AS "job_state?", j.reason AS job_reason, j.github_started_at AS "job_started_at?",
                  clock_timestamp() AS "now!"
           FROM vms v
           LEFT JOIN LATERAL (SELECT id, state FROM runners WHERE vm_id = v.id ORDER BY requested_at DESC LIMIT 1) r ON true
           LEFT JOIN LATERAL (SELECT state, reason, github_started_at FROM jobs WHERE vm_id = v.id
                              ORDER BY ended_at DESC NULLS FIRST LIMIT 1) j ON true
           WHERE v.id = $1"#,
        id.0
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Watch {
        state: VmState::decode(&row.state, row.reason.as_deref()),
        kill_asked: row.kill_asked.as_deref().map(|word| VmEnd::parse(word).unwrap_or(VmEnd::Killed)),
        release_asked_at: row.release_asked_at,
        runner: row.runner_id.zip(row.runner_state.as_deref().map(RunnerState::decode)),
        job: row.job_state.as_deref().map(|state| JobState::decode(state, row.job_reason.as_deref())),
        job_started_at: row.job_started_at,
        now: row.now,
    }))
}

/// Forgets up to `limit` vms that were gone before `before`. Answers how many.
pub async fn prune(db: impl PgExecutor<'_>, before: DateTime<Utc>, limit: i64) -> Result<u64> {
    Ok(sqlx::query!(
        "DELETE FROM vms WHERE id IN (
            SELECT v.id FROM vms v WHERE v.state = 'gone' AND v.gone_at < $1
              AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.vm_id = v.id)
              AND NOT EXISTS (SELECT 1 FROM runners r WHERE r.vm_id = v.id AND r.state NOT IN ('removed', 'void'))
            ORDER BY v.gone_at LIMIT $2)",
        before,
        limit
    )
    .execute(db)
    .await?
    .rows_affected())
}
