//! Jobs as people see them: with their vm, and `claimed` derived.

use super::fleet::VmTimes;
use crate::domain::ids::{JobId, RunnerId, TenantId, VmId};
use crate::secrets::{Lookup, Sealed};
use crate::store::Result;
use crate::store::refusals::Refusal;
use chrono::{DateTime, Utc};
use sqlx::PgExecutor;
use uuid::Uuid;

/// A queued job, and the vm that is being made for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// The job.
    pub job: JobId,
    /// The vm.
    pub vm: VmId,
}

/// Which vm each queued job is likely to get: the n-th oldest of a class the n-th vm that the class
/// has without a job, and of those left over the oldest of a profile its blank vms, as far as their
/// tenants may have more. For people: GitHub decides for itself.
pub async fn claims(db: impl PgExecutor<'_>, vms_per_tenant: u32, limit: i64) -> Result<Vec<Claim>> {
    Ok(sqlx::query_as!(
        Claim,
        r#"WITH open AS (
               SELECT id, tenant_id, class, profile, queued_at,
                      row_number() OVER (PARTITION BY class ORDER BY queued_at, id) AS n
               FROM jobs WHERE state = 'queued' AND verify_since IS NULL
                 AND (not_before IS NULL OR not_before <= clock_timestamp())),
           taken AS (
               SELECT v.id, v.class, row_number() OVER (PARTITION BY v.class ORDER BY v.bound_at, v.id) AS n
               FROM vms v WHERE v.class IS NOT NULL AND v.state NOT IN ('stopping', 'gone', 'abandoned')
                 AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.vm_id = v.id)),
           direct AS (
               SELECT o.id AS job, t.id AS vm FROM open o JOIN taken t ON t.class = o.class AND t.n = o.n),
           left_over AS (
               SELECT o.id, o.tenant_id, o.profile, o.queued_at,
                      row_number() OVER (PARTITION BY o.tenant_id ORDER BY o.queued_at, o.id) AS of_tenant
               FROM open o WHERE NOT EXISTS (SELECT 1 FROM direct d WHERE d.job = o.id)),
           room AS MATERIALIZED (
               SELECT t.id, coalesce(t.vm_limit, $1) - (SELECT count(*) FROM vms v
                          WHERE v.tenant_id = t.id AND v.state NOT IN ('stopping', 'gone', 'abandoned')) AS vms
               FROM tenants t
               WHERE t.admission = 'approved' AND t.suspended_at IS NULL AND t.uninstalled_at IS NULL),
           allowed AS (
               SELECT l.id, row_number() OVER (PARTITION BY l.profile ORDER BY l.queued_at, l.id) AS n, l.profile
               FROM left_over l JOIN room r ON r.id = l.tenant_id WHERE l.of_tenant <= r.vms),
           blank AS (
               SELECT id, profile, row_number() OVER (PARTITION BY profile ORDER BY planned_at, id) AS n
               FROM vms WHERE class IS NULL AND state IN ('planned', 'cloning', 'cloned', 'booting', 'ready'))
           SELECT job AS "job!: JobId", vm AS "vm!: VmId" FROM direct
           UNION ALL
           SELECT a.id, b.id FROM allowed a JOIN blank b ON b.profile = a.profile AND b.n = a.n
           LIMIT $2"#,
        i32::try_from(vms_per_tenant).unwrap_or(i32::MAX),
        limit
    )
    .fetch_all(db)
    .await?)
}

/// Where a page ended: the last row's time and id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cursor {
    /// The row's time.
    pub at: DateTime<Utc>,
    /// The row's id.
    pub id: Uuid,
}

/// Which jobs.
#[derive(Clone, Copy, Default)]
pub struct JobFilter<'a> {
    /// These alone.
    pub only: Option<&'a [Uuid]>,
    /// In this stored state.
    pub state: Option<&'a str>,
    /// Not these.
    pub except: &'a [Uuid],
    /// Received at or after.
    pub since: Option<DateTime<Utc>>,
    /// The end of the page before.
    pub after: Option<Cursor>,
    /// Rows at most.
    pub limit: i64,
}

/// A stored name with what opens it.
#[derive(Clone, Debug)]
pub struct SealedName {
    /// The row that it is in.
    pub row: Uuid,
    /// The name.
    pub name: Sealed,
}

/// A job, as people see it.
#[derive(Clone, Debug)]
pub struct JobRow {
    /// Our id.
    pub id: JobId,
    /// Whose it is.
    pub tenant: TenantId,
    /// That tenant's keys.
    pub wrapped_keys: Vec<u8>,
    /// GitHub's id.
    pub github_id: Sealed,
    /// GitHub's id of the run.
    pub run_id: Sealed,
    /// Which attempt of the run.
    pub run_attempt: i32,
    /// The repository's name.
    pub repository: SealedName,
    /// Who started it.
    pub initiator: Option<Sealed>,
    /// The profile that serves it.
    pub profile: String,
    /// Its stored state.
    pub state: String,
    /// Why it ended without being done.
    pub reason: Option<String>,
    /// GitHub's word of how it ended.
    pub conclusion: Option<String>,
    /// When we heard of it.
    pub received_at: DateTime<Utc>,
    /// Since when it is demand.
    pub queued_at: Option<DateTime<Utc>>,
    /// GitHub's times.
    pub github_created_at: Option<DateTime<Utc>>,
    /// When its runner began.
    pub github_started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub github_completed_at: Option<DateTime<Utc>>,
    /// Failed tries.
    pub attempts: i32,
    /// It is not tried again before then.
    pub not_before: Option<DateTime<Utc>>,
    /// Since when GitHub is to be asked about it.
    pub verify_since: Option<DateTime<Utc>>,
    /// The vm that has it, had it, or is made for it.
    pub vm: Option<JobVmRow>,
}

/// The vm of a job.
#[derive(Clone, Debug)]
pub struct JobVmRow {
    /// Its id.
    pub id: VmId,
    /// Its host's name.
    pub host: String,
    /// Its host's chip.
    pub hardware: String,
    /// The image's digest.
    pub image: String,
    /// Its state.
    pub state: String,
    /// Why it ends, or ended.
    pub reason: Option<String>,
    /// The runner's name at GitHub.
    pub runner_name: Option<SealedName>,
    /// What keeps GitHub from making its runner.
    pub trouble: Option<String>,
    /// When each step was taken.
    pub times: VmTimes,
}

/// Jobs, newest first. `claims` are those of [`claims`]: their vms are shown with their jobs.
pub async fn jobs(db: impl PgExecutor<'_>, filter: &JobFilter<'_>, claims: &[Claim]) -> Result<Vec<JobRow>> {
    let claimed: Vec<Uuid> = claims.iter().map(|claim| claim.job.0).collect();
    let claiming: Vec<Uuid> = claims.iter().map(|claim| claim.vm.0).collect();
    let rows = sqlx::query_as!(
        Flat,
        r#"SELECT j.id AS "id: JobId", j.tenant_id AS "tenant: TenantId", t.wrapped_keys,
                  j.github_id AS "github_id: Sealed", j.run_id AS "run_id: Sealed", j.run_attempt,
                  j.repository_id, r.name AS "repository: Sealed", j.initiator AS "initiator: Sealed", j.profile,
                  j.state, j.reason, j.conclusion, j.received_at, j.queued_at, j.github_created_at,
                  j.github_started_at, j.github_completed_at, j.attempts, j.not_before, j.verify_since,
                  v.id AS "vm_id?: VmId", h.name AS "host?", h.hardware AS "hardware?", v.image AS "image?",
                  v.state AS "vm_state?", v.reason AS "vm_reason?", v.planned_at AS "planned_at?", v.cloned_at,
                  v.booted_at, v.ready_at, v.bound_at, v.minted_at, v.delivering_at, v.serving_at, v.stopping_at, v.gone_at,
                  n.id AS "runner_id?: RunnerId", n.name AS "runner_name: Sealed", n.trouble
           FROM jobs j
           JOIN tenants t ON t.id = j.tenant_id
           JOIN repositories r ON r.id = j.repository_id
           LEFT JOIN unnest($1::uuid[], $2::uuid[]) AS c(job, vm) ON c.job = j.id
           LEFT JOIN vms v ON v.id = coalesce(j.vm_id, c.vm)
           LEFT JOIN hosts h ON h.id = v.host_id
           LEFT JOIN LATERAL (SELECT id, name, trouble FROM runners WHERE vm_id = v.id
                              ORDER BY requested_at DESC LIMIT 1) n ON true
           WHERE ($3::uuid[] IS NULL OR j.id = ANY($3))
             AND ($4::text IS NULL OR j.state = $4)
             AND j.id <> ALL($5::uuid[])
             AND ($6::timestamptz IS NULL OR j.received_at >= $6)
             AND ($7::timestamptz IS NULL OR (j.received_at, j.id) < ($7, $8::uuid))
           ORDER BY j.received_at DESC, j.id DESC LIMIT $9"#,
        &claimed,
        &claiming,
        filter.only,
        filter.state,
        filter.except,
        filter.since,
        filter.after.map(|cursor| cursor.at),
        filter.after.map(|cursor| cursor.id),
        filter.limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(JobRow::from).collect())
}

/// A row as the query gives it.
struct Flat {
    id: JobId,
    tenant: TenantId,
    wrapped_keys: Vec<u8>,
    github_id: Sealed,
    run_id: Sealed,
    run_attempt: i32,
    repository_id: Uuid,
    repository: Sealed,
    initiator: Option<Sealed>,
    profile: String,
    state: String,
    reason: Option<String>,
    conclusion: Option<String>,
    received_at: DateTime<Utc>,
    queued_at: Option<DateTime<Utc>>,
    github_created_at: Option<DateTime<Utc>>,
    github_started_at: Option<DateTime<Utc>>,
    github_completed_at: Option<DateTime<Utc>>,
    attempts: i32,
    not_before: Option<DateTime<Utc>>,
    verify_since: Option<DateTime<Utc>>,
    vm_id: Option<VmId>,
    host: Option<String>,
    hardware: Option<String>,
    image: Option<String>,
    vm_state: Option<String>,
    vm_reason: Option<String>,
    planned_at: Option<DateTime<Utc>>,
    cloned_at: Option<DateTime<Utc>>,
    booted_at: Option<DateTime<Utc>>,
    ready_at: Option<DateTime<Utc>>,
    bound_at: Option<DateTime<Utc>>,
    minted_at: Option<DateTime<Utc>>,
    delivering_at: Option<DateTime<Utc>>,
    serving_at: Option<DateTime<Utc>>,
    stopping_at: Option<DateTime<Utc>>,
    gone_at: Option<DateTime<Utc>>,
    runner_id: Option<RunnerId>,
    runner_name: Option<Sealed>,
    trouble: Option<String>,
}

impl From<Flat> for JobRow {
    fn from(row: Flat) -> Self {
        Self {
            id: row.id,
            tenant: row.tenant,
            wrapped_keys: row.wrapped_keys,
            github_id: row.github_id,
            run_id: row.run_id,
            run_attempt: row.run_attempt,
            repository: SealedName { row: row.repository_id, name: row.repository },
            initiator: row.initiator,
            profile: row.profile,
            state: row.state,
            reason: row.reason,
            conclusion: row.conclusion,
            received_at: row.received_at,
            queued_at: row.queued_at,
            github_created_at: row.github_created_at,
            github_started_at: row.github_started_at,
            github_completed_at: row.github_completed_at,
            attempts: row.attempts,
            not_before: row.not_before,
            verify_since: row.verify_since,
            vm: row.vm_id.zip(row.planned_at).map(|(id, planned_at)| JobVmRow {
                id,
                host: row.host.unwrap_or_default(),
                hardware: row.hardware.unwrap_or_default(),
                image: row.image.unwrap_or_default(),
                state: row.vm_state.unwrap_or_default(),
                reason: row.vm_reason,
                runner_name: row.runner_id.zip(row.runner_name).map(|(id, name)| SealedName { row: id.0, name }),
                trouble: row.trouble,
                times: VmTimes {
                    planned_at,
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
            }),
        }
    }
}

/// The jobs that these pairs of tenant and HMAC find.
pub async fn find_jobs(db: impl PgExecutor<'_>, lookups: &[(TenantId, Lookup)]) -> Result<Vec<JobId>> {
    let (tenants, hashes) = split(lookups);
    Ok(sqlx::query_scalar!(
        r#"SELECT j.id AS "id: JobId" FROM unnest($1::uuid[], $2::bytea[]) AS l(tenant, hash)
           JOIN jobs j ON j.tenant_id = l.tenant AND j.github_lookup = l.hash"#,
        &tenants,
        &hashes
    )
    .fetch_all(db)
    .await?)
}

/// The refusal that these pairs of tenant and HMAC find, and whose it is.
pub async fn find_refusals(
    db: impl PgExecutor<'_>,
    lookups: &[(TenantId, Lookup)],
) -> Result<Option<(TenantId, Refusal)>> {
    let (tenants, hashes) = split(lookups);
    let row = sqlx::query!(
        r#"SELECT r.tenant_id AS "tenant: TenantId", r.reason, r.nearest_profile, r.label, r.refused_at
           FROM unnest($1::uuid[], $2::bytea[]) AS l(tenant, hash)
           JOIN refusals r ON r.tenant_id = l.tenant AND r.github_lookup = l.hash
           ORDER BY r.refused_at DESC LIMIT 1"#,
        &tenants,
        &hashes
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| {
        let refusal = Refusal {
            reason: row.reason,
            nearest_profile: row.nearest_profile,
            label: row.label,
            refused_at: row.refused_at,
        };
        (row.tenant, refusal)
    }))
}

/// Refusals from `since` on, newest first, with whose they are.
pub async fn refusals(db: impl PgExecutor<'_>, since: DateTime<Utc>, limit: i64) -> Result<Vec<(TenantId, Refusal)>> {
    let rows = sqlx::query!(
        r#"SELECT tenant_id AS "tenant: TenantId", reason, nearest_profile, label, refused_at
           FROM refusals WHERE refused_at >= $1 ORDER BY refused_at DESC LIMIT $2"#,
        since,
        limit
    )
    .fetch_all(db)
    .await?;
    let shown = rows.into_iter().map(|row| {
        let refusal = Refusal {
            reason: row.reason,
            nearest_profile: row.nearest_profile,
            label: row.label,
            refused_at: row.refused_at,
        };
        (row.tenant, refusal)
    });
    Ok(shown.collect())
}

/// A vm that ended without a job, though one of its class waited.
#[derive(Clone, Debug)]
pub struct SpentVm {
    /// The vm.
    pub id: VmId,
    /// Its host's name.
    pub host: String,
    /// Why it ended.
    pub reason: Option<String>,
    /// When it began to end.
    pub ended_at: DateTime<Utc>,
}

/// Vms that were bound to the class of a job while it waited, and ended without a job: oldest first.
pub async fn spent_vms(db: impl PgExecutor<'_>, job: JobId, limit: i64) -> Result<Vec<SpentVm>> {
    Ok(sqlx::query_as!(
        SpentVm,
        r#"SELECT v.id AS "id: VmId", h.name AS host, v.reason, v.stopping_at AS "ended_at!"
           FROM jobs j JOIN vms v ON v.class = j.class JOIN hosts h ON h.id = v.host_id
           WHERE j.id = $1 AND v.state = 'gone' AND v.gone_at >= j.received_at
             AND v.stopping_at <= coalesce(j.github_started_at + interval '1 second', j.ended_at, clock_timestamp())
             AND NOT EXISTS (SELECT 1 FROM jobs other WHERE other.vm_id = v.id)
           ORDER BY v.stopping_at LIMIT $2"#,
        job.0,
        limit
    )
    .fetch_all(db)
    .await?)
}

fn split(lookups: &[(TenantId, Lookup)]) -> (Vec<Uuid>, Vec<Vec<u8>>) {
    lookups.iter().map(|(tenant, lookup)| (tenant.0, lookup.as_bytes().to_vec())).unzip()
}

/// The jobs that are not over, counted.
#[derive(Clone, Debug)]
pub struct QueueRow {
    /// Held back by GitHub.
    pub waiting: i64,
    /// Demand, claimed or not.
    pub queued: i64,
    /// A runner has them.
    pub running: i64,
    /// Since when the oldest of the demand waits.
    pub oldest_queued_at: Option<DateTime<Utc>>,
}

/// Counts the jobs that are not over.
pub async fn queue(db: impl PgExecutor<'_>) -> Result<QueueRow> {
    Ok(sqlx::query_as!(
        QueueRow,
        r#"SELECT (SELECT count(*) FROM jobs WHERE state = 'waiting') AS "waiting!",
                  (SELECT count(*) FROM jobs WHERE state = 'queued') AS "queued!",
                  (SELECT count(*) FROM jobs WHERE state = 'running') AS "running!",
                  (SELECT min(queued_at) FROM jobs WHERE state = 'queued') AS oldest_queued_at"#
    )
    .fetch_one(db)
    .await?)
}

/// The jobs received in the last 24 hours that are over.
#[derive(Clone, Debug)]
pub struct DayRow {
    /// Ran to their end.
    pub done: i64,
    /// Ended before they ran.
    pub cancelled: i64,
    /// Given up by us.
    pub unserved: i64,
    /// Lost with their vm.
    pub lost: i64,
    /// Half of those that ran waited no longer, in seconds.
    pub wait_p50_s: Option<f64>,
    /// 99 of 100 waited no longer, in seconds.
    pub wait_p99_s: Option<f64>,
}

/// Counts the jobs of the last 24 hours; waits are from when we heard of them to their runner's start.
pub async fn day(db: impl PgExecutor<'_>) -> Result<DayRow> {
    Ok(sqlx::query_as!(
        DayRow,
        r#"SELECT count(*) FILTER (WHERE j.state = 'done') AS "done!",
                  count(*) FILTER (WHERE j.state = 'cancelled') AS "cancelled!",
                  count(*) FILTER (WHERE j.state = 'unserved') AS "unserved!",
                  count(*) FILTER (WHERE j.state = 'lost') AS "lost!",
                  percentile_cont(0.5) WITHIN GROUP (ORDER BY w.wait) AS wait_p50_s,
                  percentile_cont(0.99) WITHIN GROUP (ORDER BY w.wait) AS wait_p99_s
           FROM jobs j LEFT JOIN vms v ON v.id = j.vm_id,
           LATERAL (SELECT CASE WHEN v.serving_at IS NOT NULL
                          THEN greatest(extract(epoch FROM v.serving_at - j.received_at)::float8, 0) END AS wait) w
           WHERE j.received_at >= clock_timestamp() - interval '24 hours'"#
    )
    .fetch_one(db)
    .await?)
}

/// How many queued jobs of the profile are older than one, and how many there are.
pub async fn place_in_queue(db: impl PgExecutor<'_>, profile: &str, queued_at: DateTime<Utc>) -> Result<(i64, i64)> {
    let row = sqlx::query!(
        r#"SELECT count(*) FILTER (WHERE queued_at < $2) AS "older!", count(*) AS "all!"
           FROM jobs WHERE state = 'queued' AND profile = $1"#,
        profile,
        queued_at
    )
    .fetch_one(db)
    .await?;
    Ok((row.older, row.all))
}
