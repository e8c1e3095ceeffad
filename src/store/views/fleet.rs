//! Vms, tenants, images and profiles as people see them.

use super::jobs::{Cursor, SealedName};
use crate::domain::ids::{JobId, RunnerId, TenantId, VmId};
use crate::secrets::Sealed;
use crate::store::Result;
use chrono::{DateTime, Utc};
use sqlx::PgExecutor;
use uuid::Uuid;

/// When a vm took each step, by the database's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmTimes {
    /// A slot was taken.
    pub planned_at: DateTime<Utc>,
    /// The clone was there.
    pub cloned_at: Option<DateTime<Utc>>,
    /// The process was started.
    pub booted_at: Option<DateTime<Utc>>,
    /// The agent answered.
    pub ready_at: Option<DateTime<Utc>>,
    /// A class took it.
    pub bound_at: Option<DateTime<Utc>>,
    /// GitHub made its runner.
    pub minted_at: Option<DateTime<Utc>>,
    /// The JIT config was about to be sent.
    pub delivering_at: Option<DateTime<Utc>>,
    /// The runner was started.
    pub serving_at: Option<DateTime<Utc>>,
    /// Its destruction began.
    pub stopping_at: Option<DateTime<Utc>>,
    /// Nothing was left of it.
    pub gone_at: Option<DateTime<Utc>>,
}

/// Which vms.
#[derive(Clone, Copy, Default)]
pub struct VmFilter {
    /// Those that are gone too.
    pub gone: bool,
    /// The end of the page before.
    pub after: Option<Cursor>,
    /// Rows at most.
    pub limit: i64,
}

/// One vm, as people see it.
#[derive(Clone, Debug)]
pub struct VmRow {
    /// Its id.
    pub id: VmId,
    /// Its host's name.
    pub host: String,
    /// Which slot it holds.
    pub slot: i32,
    /// The profile it is for.
    pub profile: String,
    /// The image's digest.
    pub image: String,
    /// Virtual CPUs.
    pub cpus: i32,
    /// Memory in bytes.
    pub memory: i64,
    /// Its state.
    pub state: String,
    /// Why it ends, or ended.
    pub reason: Option<String>,
    /// Why it is to be destroyed.
    pub kill_asked: Option<String>,
    /// The runner's exit status.
    pub runner_status: Option<i32>,
    /// Whose it is, with that tenant's keys.
    pub tenant: Option<(TenantId, Vec<u8>)>,
    /// The repository's name.
    pub repository: Option<SealedName>,
    /// The runner's name at GitHub.
    pub runner_name: Option<SealedName>,
    /// GitHub's id of the job that it has, or had, in the job's row.
    pub job: Option<SealedName>,
    /// When each step was taken.
    pub times: VmTimes,
}

/// Vms, newest first.
pub async fn vms(db: impl PgExecutor<'_>, filter: VmFilter) -> Result<Vec<VmRow>> {
    let rows = sqlx::query_as!(
        Flat,
        r#"SELECT v.id AS "id: VmId", h.name AS host, v.slot, v.profile, v.image, v.cpus, v.memory, v.state, v.reason,
                  v.kill_asked, v.runner_status, v.planned_at, v.cloned_at, v.booted_at, v.ready_at, v.bound_at,
                  v.minted_at, v.delivering_at, v.serving_at, v.stopping_at, v.gone_at,
                  t.id AS "tenant_id?: TenantId", t.wrapped_keys AS "wrapped_keys?",
                  r.id AS "repository_id?", r.name AS "repository?: Sealed",
                  n.id AS "runner_id?: RunnerId", n.name AS "runner_name: Sealed",
                  j.id AS "job_id?: JobId", j.github_id AS "job?: Sealed"
           FROM vms v
           JOIN hosts h ON h.id = v.host_id
           LEFT JOIN tenants t ON t.id = v.tenant_id
           LEFT JOIN repositories r ON r.id = v.repository_id
           LEFT JOIN LATERAL (SELECT id, name FROM runners WHERE vm_id = v.id ORDER BY requested_at DESC LIMIT 1) n ON true
           LEFT JOIN LATERAL (SELECT id, github_id FROM jobs WHERE vm_id = v.id
                              ORDER BY ended_at DESC NULLS FIRST LIMIT 1) j ON true
           WHERE ($1 OR v.state <> 'gone')
             AND ($2::timestamptz IS NULL OR (v.planned_at, v.id) < ($2, $3::uuid))
           ORDER BY v.planned_at DESC, v.id DESC LIMIT $4"#,
        filter.gone,
        filter.after.map(|cursor| cursor.at),
        filter.after.map(|cursor| cursor.id),
        filter.limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(VmRow::from).collect())
}

/// A row as the query gives it.
struct Flat {
    id: VmId,
    host: String,
    slot: i32,
    profile: String,
    image: String,
    cpus: i32,
    memory: i64,
    state: String,
    reason: Option<String>,
    kill_asked: Option<String>,
    runner_status: Option<i32>,
    planned_at: DateTime<Utc>,
    cloned_at: Option<DateTime<Utc>>,
    booted_at: Option<DateTime<Utc>>,
    ready_at: Option<DateTime<Utc>>,
    bound_at: Option<DateTime<Utc>>,
    minted_at: Option<DateTime<Utc>>,
    delivering_at: Option<DateTime<Utc>>,
    serving_at: Option<DateTime<Utc>>,
    stopping_at: Option<DateTime<Utc>>,
    gone_at: Option<DateTime<Utc>>,
    tenant_id: Option<TenantId>,
    wrapped_keys: Option<Vec<u8>>,
    repository_id: Option<Uuid>,
    repository: Option<Sealed>,
    runner_id: Option<RunnerId>,
    runner_name: Option<Sealed>,
    job_id: Option<JobId>,
    job: Option<Sealed>,
}

impl From<Flat> for VmRow {
    fn from(row: Flat) -> Self {
        Self {
            id: row.id,
            host: row.host,
            slot: row.slot,
            profile: row.profile,
            image: row.image,
            cpus: row.cpus,
            memory: row.memory,
            state: row.state,
            reason: row.reason,
            kill_asked: row.kill_asked,
            runner_status: row.runner_status,
            tenant: row.tenant_id.zip(row.wrapped_keys),
            repository: row.repository_id.zip(row.repository).map(|(row, name)| SealedName { row, name }),
            runner_name: row.runner_id.zip(row.runner_name).map(|(id, name)| SealedName { row: id.0, name }),
            job: row.job_id.zip(row.job).map(|(id, name)| SealedName { row: id.0, name }),
            times: VmTimes {
                planned_at: row.planned_at,
                cloned_at: row.cloned_at,
                booted_at: row.booted_at,
                ready_at: row.ready_at,
                bound_at: row.bound_at,
                minted_at: row.minted_at,
                delivering_at: row.delivering_at,
                serving_at: row.serving_at,
                stopping_at: row.stopping_at,
                gone_at: row.gone_at,
            },
        }
    }
}

/// What a tenant uses now.
#[derive(Clone, Copy, Debug)]
pub struct TenantRow {
    /// The tenant.
    pub id: TenantId,
    /// Vms it has.
    pub vms: i64,
    /// Jobs that wait.
    pub queued: i64,
    /// Jobs that run.
    pub running: i64,
}

/// What each tenant uses now.
pub async fn tenants(db: impl PgExecutor<'_>) -> Result<Vec<TenantRow>> {
    Ok(sqlx::query_as!(
        TenantRow,
        r#"SELECT t.id AS "id: TenantId",
                  (SELECT count(*) FROM vms v WHERE v.tenant_id = t.id AND v.state <> 'gone') AS "vms!",
                  (SELECT count(*) FROM jobs j WHERE j.tenant_id = t.id AND j.state = 'queued') AS "queued!",
                  (SELECT count(*) FROM jobs j WHERE j.tenant_id = t.id AND j.state = 'running') AS "running!"
           FROM tenants t"#
    )
    .fetch_all(db)
    .await?)
}

/// One image, as far as the tables know it.
#[derive(Clone, Debug)]
pub struct ImageRow {
    /// The name or digest.
    pub image: String,
    /// Vms made of it that live.
    pub vms: i64,
    /// When a vm made of it was ready last.
    pub last_ready_at: Option<DateTime<Utc>>,
}

/// The images that vms were made of, by name.
pub async fn images(db: impl PgExecutor<'_>) -> Result<Vec<ImageRow>> {
    Ok(sqlx::query_as!(
        ImageRow,
        r#"SELECT image, count(*) FILTER (WHERE state <> 'gone') AS "vms!", max(ready_at) AS last_ready_at
           FROM vms GROUP BY image ORDER BY image"#
    )
    .fetch_all(db)
    .await?)
}

/// The image that the newest vm of each profile was made of, of the last 24 hours.
pub async fn newest_images(db: impl PgExecutor<'_>) -> Result<Vec<(String, String)>> {
    let rows = sqlx::query!(
        "SELECT DISTINCT ON (profile) profile, image FROM vms
         WHERE planned_at >= clock_timestamp() - interval '24 hours' ORDER BY profile, planned_at DESC"
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.profile, row.image)).collect())
}
