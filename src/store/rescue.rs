//! Hosts that went silent, and their vms: the one place where somebody else than a vm's host writes its state.
//!
//! Whoever writes here holds the host's row in the session and at the beat at which it was believed dead: a host that
//! speaks at the same moment either waits, and finds what was decided, or was faster, and nothing is.

use super::Result;
use crate::domain::class::Class;
use crate::domain::ids::{HostId, VmId};
use crate::domain::job::JobState;
use crate::domain::runner::RunnerState;
use crate::domain::vm::VmState;
use sqlx::{PgConnection, PgExecutor};
use std::time::Duration;

/// What a host said last: moves with every beat, and with every start of its daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Beat {
    /// The host.
    pub host: HostId,
    /// Counts the starts of its daemon.
    pub session: i64,
    /// Counts its beats.
    pub seq: i64,
}

/// The last beat of every host that has vms.
pub async fn beats(db: impl PgExecutor<'_>) -> Result<Vec<Beat>> {
    Ok(sqlx::query_as!(
        Beat,
        r#"SELECT id AS "host: HostId", session, seq FROM hosts h
           WHERE EXISTS (SELECT 1 FROM vms v WHERE v.host_id = h.id AND v.state <> 'gone')"#
    )
    .fetch_all(db)
    .await?)
}

/// Holds the host's row until the transaction ends, if it has said nothing since.
pub async fn hold(db: &mut PgConnection, beat: Beat) -> Result<bool> {
    let held = sqlx::query_scalar!(
        "SELECT 1 FROM hosts WHERE id = $1 AND session = $2 AND seq = $3 FOR NO KEY UPDATE",
        beat.host.0,
        beat.session,
        beat.seq
    )
    .fetch_optional(db)
    .await?;
    Ok(held.is_some())
}

/// A vm of a silent host, with what GitHub said of it.
#[derive(Clone, Debug)]
pub struct Stranded {
    /// The vm.
    pub id: VmId,
    /// The class that took it.
    pub class: Option<Class>,
    /// Its state.
    pub state: VmState,
    /// Its newest runner.
    pub runner: Option<RunnerState>,
    /// The job that it has or had.
    pub job: Option<JobState>,
    /// GitHub is being asked to let go of the runner.
    pub is_asked: bool,
    /// GitHub answered so long ago that it may be asked again.
    pub is_answer_old: bool,
}

/// The vms of a host about which something may be left to decide. An answer of GitHub's is old after `patience`.
pub async fn stranded(db: impl PgExecutor<'_>, host: HostId, patience: Duration) -> Result<Vec<Stranded>> {
    let rows = sqlx::query!(
        r#"SELECT v.id AS "id: VmId", v.class AS "class: Class", v.state, v.reason,
                  v.release_asked_at IS NOT NULL AS "is_asked!", r.state AS "runner_state?",
                  coalesce(r.not_before < clock_timestamp() - make_interval(secs => $2), true) AS "is_answer_old!",
                  j.state AS "job_state?", j.reason AS job_reason
           FROM vms v
           LEFT JOIN LATERAL (SELECT state, not_before FROM runners WHERE vm_id = v.id
                              ORDER BY requested_at DESC LIMIT 1) r ON true
           LEFT JOIN LATERAL (SELECT state, reason FROM jobs WHERE vm_id = v.id
                              ORDER BY ended_at DESC NULLS FIRST LIMIT 1) j ON true
           WHERE v.host_id = $1 AND v.state NOT IN ('stopping', 'gone', 'abandoned')"#,
        host.0,
        patience.as_secs_f64()
    )
    .fetch_all(db)
    .await?;
    let stranded = rows.into_iter().map(|row| Stranded {
        id: row.id,
        class: row.class,
        state: VmState::decode(&row.state, row.reason.as_deref()),
        runner: row.runner_state.as_deref().map(RunnerState::decode),
        job: row.job_state.as_deref().map(|state| JobState::decode(state, row.job_reason.as_deref())),
        is_asked: row.is_asked,
        is_answer_old: row.is_answer_old,
    });
    Ok(stranded.collect())
}

/// Hosts that were thrown out, and have vms still.
pub async fn revoked(db: impl PgExecutor<'_>) -> Result<Vec<Beat>> {
    Ok(sqlx::query_as!(
        Beat,
        r#"SELECT id AS "host: HostId", session, seq FROM hosts h WHERE revoked_at IS NOT NULL
           AND EXISTS (SELECT 1 FROM vms v WHERE v.host_id = h.id AND v.state <> 'gone')"#
    )
    .fetch_all(db)
    .await?)
}

/// Writes off the vms of a host that was thrown out, once nothing is left to decide about them: nobody will tell of
/// their end. What may be left of them on its machine, a daemon that comes back there destroys as orphans.
pub async fn write_off(db: impl PgExecutor<'_>, host: HostId) -> Result<u64> {
    Ok(sqlx::query!(
        "UPDATE vms SET state = 'gone', reason = coalesce(reason, 'abandoned'), gone_at = clock_timestamp()
         WHERE host_id = $1 AND state IN ('abandoned', 'stopping')",
        host.0
    )
    .execute(db)
    .await?
    .rows_affected())
}
