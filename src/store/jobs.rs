//! GitHub's jobs. Follows GitHub alone: written by intake and upkeep.

use super::{Applied, Result};
use crate::domain::class::Class;
use crate::domain::ids::{JobId, RepositoryId, TenantId, VmId};
use crate::domain::job::JobState;
use crate::domain::reason::words;
use crate::secrets::{Lookup, Sealed};
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor};
use std::time::Duration;

words! {
    /// How a job became a row.
    Origin {
        /// Its labels are a profile's.
        Matched = "matched",
        /// It runs on one of our runners, though its labels are no profile's.
        Foreign = "foreign",
    }
}

/// What a decision about a job needs to know of it.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Our id.
    pub id: JobId,
    /// Its state.
    pub state: JobState,
    /// Its class.
    pub class: Class,
    /// The vm that has, or had, it.
    pub vm_id: Option<VmId>,
}

/// GitHub's times of a job: whole seconds of GitHub's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// When the run made it.
    pub created_at: Option<DateTime<Utc>>,
    /// When its runner began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
}

/// What is needed to make a job's row.
pub struct NewJob<'a> {
    /// Our id.
    pub id: JobId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Of which repository.
    pub repository: RepositoryId,
    /// Finds it by GitHub's id.
    pub lookup: Lookup,
    /// GitHub's id.
    pub github_id: &'a Sealed,
    /// GitHub's id of the run.
    pub run_id: &'a Sealed,
    /// Which attempt of the run.
    pub run_attempt: i32,
    /// Who started it.
    pub initiator: Option<&'a Sealed>,
    /// The profile that serves it.
    pub profile: &'a str,
    /// Its labels, sorted and lower case.
    pub labels: &'a [String],
    /// Its class.
    pub class: Class,
    /// How it became a row.
    pub origin: Origin,
    /// The state that the first delivery tells.
    pub state: JobState,
    /// How it ended, in GitHub's word.
    pub conclusion: Option<&'a str>,
    /// GitHub's times.
    pub times: Times,
    /// The vm that has it.
    pub vm: Option<VmId>,
    /// Intake's word on it.
    pub mac: &'a [u8],
}

/// Makes a job's row, and forgets its refusal if there was one: in one statement, since this is on the way of every
/// delivery. `false` when another gateway was faster: read its row, and decide again.
pub async fn insert(db: impl PgExecutor<'_>, new: &NewJob<'_>) -> Result<bool> {
    let rows = sqlx::query!(
        "WITH accepted AS (DELETE FROM refusals WHERE tenant_id = $2 AND github_lookup = $4)
         INSERT INTO jobs (id, tenant_id, repository_id, github_lookup, github_id, run_id, run_attempt, initiator,
                           profile, labels, class, origin, state, reason, conclusion, queued_at,
                           github_created_at, github_started_at, github_completed_at, ended_at, vm_id, mac)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,
                 CASE WHEN $13 = 'queued' THEN clock_timestamp() END, $16, $17, $18,
                 CASE WHEN $19 THEN clock_timestamp() END, $20, $21)
         ON CONFLICT (tenant_id, github_lookup) DO NOTHING",
        new.id.0,
        new.tenant.0,
        new.repository.0,
        new.lookup.as_bytes(),
        new.github_id.0,
        new.run_id.0,
        new.run_attempt,
        new.initiator.map(|sealed| sealed.0.as_slice()),
        new.profile,
        new.labels,
        new.class.0,
        new.origin.as_str(),
        new.state.as_str(),
        new.state.end().map(crate::domain::reason::JobEnd::as_str),
        new.conclusion,
        new.times.created_at,
        new.times.started_at,
        new.times.completed_at,
        new.state.is_ended(),
        new.vm.map(|vm| vm.0),
        new.mac
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(rows > 0)
}

/// Reads a job and holds its row until the transaction ends.
pub async fn find_for_update(db: &mut PgConnection, tenant: TenantId, lookup: Lookup) -> Result<Option<Known>> {
    let row = sqlx::query!(
        r#"SELECT id AS "id: JobId", state, reason, class AS "class: Class", vm_id AS "vm_id: VmId" FROM jobs
           WHERE tenant_id = $1 AND github_lookup = $2 FOR UPDATE"#,
        tenant.0,
        lookup.as_bytes()
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Known {
        id: row.id,
        state: JobState::decode(&row.state, row.reason.as_deref()),
        class: row.class,
        vm_id: row.vm_id,
    }))
}

/// Moves a job from the state it was read in. Times and conclusion that are `None` stay.
pub async fn advance(
    db: impl PgExecutor<'_>,
    job: JobId,
    from: JobState,
    to: JobState,
    conclusion: Option<&str>,
    times: Times,
    vm: Option<VmId>,
) -> Result<Applied> {
    let rows = sqlx::query!(
        "UPDATE jobs SET
            state = $3, reason = $4,
            conclusion = coalesce($5, conclusion),
            github_created_at = coalesce($6, github_created_at),
            github_started_at = coalesce($7, github_started_at),
            github_completed_at = coalesce($8, github_completed_at),
            queued_at = CASE WHEN $3 = 'queued' AND state <> 'queued' THEN clock_timestamp() ELSE queued_at END,
            ended_at = CASE WHEN NOT $9 THEN NULL ELSE coalesce(ended_at, clock_timestamp()) END,
            vm_id = CASE WHEN $3 = 'queued' THEN NULL ELSE coalesce($10, vm_id) END,
            verify_since = NULL, ask_after = NULL, confirmed_at = clock_timestamp()
         WHERE id = $1 AND state = $2",
        job.0,
        from.as_str(),
        to.as_str(),
        to.end().map(crate::domain::reason::JobEnd::as_str),
        conclusion,
        times.created_at,
        times.started_at,
        times.completed_at,
        to.is_ended(),
        vm.map(|vm| vm.0)
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// A job that GitHub is to be asked about.
#[derive(Clone, Debug)]
pub struct Doubtful {
    /// Our id.
    pub id: JobId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Of which repository.
    pub repository: RepositoryId,
    /// Its class.
    pub class: Class,
    /// GitHub's id.
    pub github_id: Sealed,
    /// GitHub's id of its run.
    pub run_id: Sealed,
    /// Its state.
    pub state: JobState,
    /// It has been in the queue for so long that its run is asked about, too.
    pub stale: bool,
    /// It has been in the queue for longer than it may.
    pub overdue: bool,
    /// The vm that has, or had, it.
    pub vm: Option<VmId>,
    /// That vm is gone, or there was none.
    pub vm_gone: bool,
    /// Its vm has been gone for so long that GitHub must know it, too.
    pub abandoned: bool,
}

/// When a job is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The longest that a job may be queued.
    pub queue: Duration,
    /// How long a job is queued before its run is asked about as well.
    pub run: Duration,
    /// How long an open job stays as it is before GitHub is asked whether it still is so.
    pub confirm: Duration,
    /// How long after its vm's end a `completed` may still come by itself.
    pub delivery: Duration,
    /// How long after its vm's end a job that GitHub still calls running is lost.
    pub lost: Duration,
}

/// Jobs whose state is in doubt, or was not confirmed for too long: oldest doubt first. Those of a suspended
/// installation wait: GitHub does not answer for it.
pub async fn doubtful(db: impl PgExecutor<'_>, patience: &Patience, limit: i64) -> Result<Vec<Doubtful>> {
    let rows = sqlx::query!(
        r#"SELECT j.id AS "id: JobId", j.tenant_id AS "tenant: TenantId", j.repository_id AS "repository: RepositoryId",
                  j.class AS "class: Class", j.github_id AS "github_id: Sealed", j.run_id AS "run_id: Sealed",
                  j.state, j.reason, j.vm_id AS "vm: VmId", coalesce(v.state = 'gone', true) AS "vm_gone!",
                  coalesce(j.queued_at < clock_timestamp() - make_interval(secs => $1), false) AS "overdue!",
                  coalesce(j.queued_at < clock_timestamp() - make_interval(secs => $5), false) AS "stale!",
                  coalesce(v.gone_at < clock_timestamp() - make_interval(secs => $3), false) AS "abandoned!"
           FROM jobs j JOIN tenants t ON t.id = j.tenant_id LEFT JOIN vms v ON v.id = j.vm_id
           WHERE (j.ask_after IS NULL OR j.ask_after <= clock_timestamp()) AND t.suspended_at IS NULL
             AND ((j.state IN ('queued', 'waiting') AND j.verify_since IS NOT NULL)
                  OR (j.state = 'queued' AND j.queued_at < clock_timestamp() - make_interval(secs => $1))
                  OR (j.state = 'running' AND j.verify_since < clock_timestamp() - make_interval(secs => $2))
                  OR (j.state IN ('queued', 'waiting', 'running') AND coalesce(j.confirmed_at, j.received_at)
                      < clock_timestamp() - make_interval(secs => $4)))
           ORDER BY j.verify_since NULLS LAST, j.received_at LIMIT $6"#,
        patience.queue.as_secs_f64(),
        patience.delivery.as_secs_f64(),
        patience.lost.as_secs_f64(),
        patience.confirm.as_secs_f64(),
        patience.run.as_secs_f64(),
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Doubtful {
            id: row.id,
            tenant: row.tenant,
            repository: row.repository,
            class: row.class,
            github_id: row.github_id,
            run_id: row.run_id,
            state: JobState::decode(&row.state, row.reason.as_deref()),
            stale: row.stale,
            overdue: row.overdue,
            vm: row.vm,
            vm_gone: row.vm_gone,
            abandoned: row.abandoned,
        })
        .collect())
}

/// Keeps the doubt about a running job whose vm ended: GitHub does not know that yet.
pub async fn doubt_again(db: impl PgExecutor<'_>, job: JobId) -> Result<()> {
    sqlx::query!(
        "UPDATE jobs SET verify_since = clock_timestamp(), confirmed_at = clock_timestamp() WHERE id = $1",
        job.0
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Asks about a job again later: GitHub did not answer.
pub async fn ask_later(db: impl PgExecutor<'_>, job: JobId, wait: Duration) -> Result<()> {
    sqlx::query!(
        "UPDATE jobs SET ask_after = clock_timestamp() + make_interval(secs => $2) WHERE id = $1",
        job.0,
        wait.as_secs_f64()
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Takes the doubt away: GitHub confirmed that the jobs are in these states. One that moved meanwhile is left alone.
pub async fn confirm(db: impl PgExecutor<'_>, jobs: &[(JobId, JobState)]) -> Result<()> {
    let ids: Vec<uuid::Uuid> = jobs.iter().map(|(id, _)| id.0).collect();
    let states: Vec<String> = jobs.iter().map(|(_, state)| state.as_str().to_owned()).collect();
    sqlx::query!(
        "UPDATE jobs j SET verify_since = NULL, ask_after = NULL, confirmed_at = clock_timestamp()
         FROM unnest($1::uuid[], $2::text[]) AS c (id, state) WHERE j.id = c.id AND j.state = c.state",
        &ids,
        &states
    )
    .execute(db)
    .await?;
    Ok(())
}

/// An open job, as a list of GitHub's is compared with it.
#[derive(Clone, Debug)]
pub struct Open {
    /// Our id.
    pub id: JobId,
    /// Finds it by GitHub's id.
    pub lookup: Vec<u8>,
    /// Its state.
    pub state: JobState,
    /// Its vm is gone: GitHub's word on it must be asked for by itself.
    pub vm_ended: bool,
}

/// The open jobs of a repository, up to `limit`.
pub async fn open_of_repository(db: impl PgExecutor<'_>, repository: RepositoryId, limit: i64) -> Result<Vec<Open>> {
    let rows = sqlx::query!(
        r#"SELECT j.id AS "id: JobId", j.github_lookup, j.state,
                  coalesce(v.state IN ('stopping', 'gone'), false) AS "vm_ended!"
           FROM jobs j LEFT JOIN vms v ON v.id = j.vm_id
           WHERE j.repository_id = $1 AND j.state IN ('waiting', 'queued', 'running') ORDER BY j.received_at LIMIT $2"#,
        repository.0,
        limit
    )
    .fetch_all(db)
    .await?;
    let open = rows.into_iter().map(|row| Open {
        id: row.id,
        lookup: row.github_lookup,
        state: JobState::decode(&row.state, None),
        vm_ended: row.vm_ended,
    });
    Ok(open.collect())
}

/// Puts jobs in doubt that are still in the state they were read in. Answers how many.
pub async fn doubt_if(db: impl PgExecutor<'_>, jobs: &[(JobId, JobState)]) -> Result<u64> {
    let ids: Vec<uuid::Uuid> = jobs.iter().map(|(id, _)| id.0).collect();
    let states: Vec<String> = jobs.iter().map(|(_, state)| state.as_str().to_owned()).collect();
    Ok(sqlx::query!(
        "UPDATE jobs j SET verify_since = coalesce(verify_since, clock_timestamp())
         FROM unnest($1::uuid[], $2::text[]) AS c (id, state) WHERE j.id = c.id AND j.state = c.state",
        &ids,
        &states
    )
    .execute(db)
    .await?
    .rows_affected())
}

/// Puts the open jobs of a repository in doubt: it is gone, or not ours to serve any more.
pub async fn doubt_repository(db: impl PgExecutor<'_>, repository: RepositoryId) -> Result<()> {
    sqlx::query!(
        "UPDATE jobs SET verify_since = coalesce(verify_since, clock_timestamp()), ask_after = NULL
         WHERE repository_id = $1 AND state IN ('waiting', 'queued', 'running')",
        repository.0
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Puts a job in doubt: GitHub is asked before it counts.
pub async fn doubt(db: impl PgExecutor<'_>, job: JobId) -> Result<()> {
    sqlx::query!("UPDATE jobs SET verify_since = coalesce(verify_since, clock_timestamp()) WHERE id = $1", job.0)
        .execute(db)
        .await?;
    Ok(())
}

/// True when the vm has, or had, a job other than this one.
pub async fn has_other(db: impl PgExecutor<'_>, vm: VmId, job: JobId) -> Result<bool> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM jobs WHERE vm_id = $1 AND id <> $2) AS "other!""#,
        vm.0,
        job.0
    )
    .fetch_one(db)
    .await?)
}

/// Puts the queued jobs of a class in doubt: a runner of theirs ended without a job that we know of,
/// so one of them may have run. They count as demand again once GitHub was asked.
pub async fn doubt_class(db: impl PgExecutor<'_>, class: Class) -> Result<()> {
    sqlx::query!(
        "UPDATE jobs SET verify_since = coalesce(verify_since, clock_timestamp()) WHERE class = $1 AND state = 'queued'",
        class.0
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Puts the running job of a vm in doubt: the vm ended, and GitHub has not told of the job's end.
pub async fn doubt_of_vm(db: impl PgExecutor<'_>, vm: VmId) -> Result<()> {
    sqlx::query!(
        "UPDATE jobs SET verify_since = coalesce(verify_since, clock_timestamp()) WHERE vm_id = $1 AND state = 'running'",
        vm.0
    )
    .execute(db)
    .await?;
    Ok(())
}

/// When the oldest queued job of a class was made at GitHub, and when we heard of it.
pub async fn oldest_queued(
    db: impl PgExecutor<'_>,
    class: Class,
) -> Result<Option<(Option<DateTime<Utc>>, DateTime<Utc>)>> {
    let row = sqlx::query!(
        "SELECT github_created_at, received_at FROM jobs WHERE class = $1 AND state = 'queued'
         ORDER BY queued_at LIMIT 1",
        class.0
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| (row.github_created_at, row.received_at)))
}

/// Charges a failed try to the oldest queued job of a class. From `alarm` tries on it waits a
/// growing while before it counts as demand again: 5, 10, … up to 30 minutes.
pub async fn count_attempt(db: impl PgExecutor<'_>, class: Class, alarm: i32) -> Result<()> {
    sqlx::query!(
        "UPDATE jobs SET attempts = attempts + 1,
            not_before = CASE WHEN attempts + 1 >= $2
                THEN clock_timestamp() + least(attempts + 2 - $2, 6) * interval '5 minutes' END
         WHERE id = (SELECT id FROM jobs WHERE class = $1 AND state = 'queued' ORDER BY queued_at LIMIT 1)",
        class.0,
        alarm
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Forgets up to `limit` ended jobs that came before `before`. Answers how many.
pub async fn prune(db: impl PgExecutor<'_>, before: DateTime<Utc>, limit: i64) -> Result<u64> {
    Ok(sqlx::query!(
        "DELETE FROM jobs WHERE id IN
           (SELECT id FROM jobs WHERE received_at < $1 AND ended_at IS NOT NULL ORDER BY received_at LIMIT $2)",
        before,
        limit
    )
    .execute(db)
    .await?
    .rows_affected())
}
