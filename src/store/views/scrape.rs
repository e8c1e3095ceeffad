//! What Prometheus reads from the tables: a few totals over indexes of what lives, and the vms that
//! ended since the last time.

use crate::domain::ids::VmId;
use crate::store::Result;
use chrono::{DateTime, Utc};
use sqlx::PgExecutor;

use super::fleet::VmTimes;
use super::jobs::Cursor;

/// Jobs that are not over, by profile and state.
pub async fn jobs_by_state(db: impl PgExecutor<'_>) -> Result<Vec<(String, String, i64)>> {
    let rows = sqlx::query!(
        r#"SELECT profile, state, count(*) AS "count!" FROM jobs WHERE state = 'queued' GROUP BY profile, state
           UNION ALL
           SELECT profile, state, count(*) FROM jobs WHERE state IN ('waiting', 'running') GROUP BY profile, state"#
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().filter_map(|row| Some((row.profile?, row.state?, row.count))).collect())
}

/// Vms that live, by host and state.
pub async fn vms_by_state(db: impl PgExecutor<'_>) -> Result<Vec<(String, String, i64)>> {
    let rows = sqlx::query!(
        r#"SELECT h.name AS host, v.state, count(*) AS "count!" FROM vms v JOIN hosts h ON h.id = v.host_id
           WHERE v.state <> 'gone' GROUP BY h.name, v.state"#
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.host, row.state, row.count)).collect())
}

/// What Prometheus is told of a host.
#[derive(Clone, Debug)]
pub struct HostRow {
    /// Its name.
    pub name: String,
    /// Vms at once.
    pub slots: i32,
    /// It takes no new work.
    pub draining: bool,
    /// How long ago it was heard of, in seconds.
    pub silent_for_s: f64,
}

/// Every host.
pub async fn hosts(db: impl PgExecutor<'_>) -> Result<Vec<HostRow>> {
    Ok(sqlx::query_as!(
        HostRow,
        r#"SELECT name, slots, draining, extract(epoch FROM clock_timestamp() - beat_at)::float8 AS "silent_for_s!"
           FROM hosts"#
    )
    .fetch_all(db)
    .await?)
}

/// A vm that ended, with the times of its job.
#[derive(Clone, Debug)]
pub struct GoneVm {
    /// Its id.
    pub id: VmId,
    /// Its host's name.
    pub host: String,
    /// The profile it was for.
    pub profile: String,
    /// Why it ended.
    pub reason: Option<String>,
    /// When it took each step.
    pub times: VmTimes,
    /// Since when its job was demand.
    pub queued_at: Option<DateTime<Utc>>,
    /// When GitHub said that its runner has the job.
    pub running_at: Option<DateTime<Utc>>,
}

/// Up to `limit` vms that ended after `after`, in the order of their ends. Those of the last `settle_s`
/// seconds wait for the next time: a transaction that ends late may still bring one in among them.
pub async fn gone_vms(db: impl PgExecutor<'_>, after: Cursor, settle_s: f64, limit: i64) -> Result<Vec<GoneVm>> {
    let rows = sqlx::query!(
        r#"SELECT v.id AS "id: VmId", h.name AS host, v.profile, v.reason, v.planned_at, v.cloned_at, v.booted_at,
                  v.ready_at, v.bound_at, v.minted_at, v.delivering_at, v.serving_at, v.stopping_at, v.gone_at,
                  j.queued_at AS "queued_at?", r.busy_at AS "running_at?"
           FROM vms v JOIN hosts h ON h.id = v.host_id
           LEFT JOIN LATERAL (SELECT queued_at FROM jobs WHERE vm_id = v.id ORDER BY received_at LIMIT 1) j ON true
           LEFT JOIN LATERAL (SELECT busy_at FROM runners WHERE vm_id = v.id ORDER BY requested_at DESC LIMIT 1) r ON true
           WHERE v.state = 'gone' AND (v.gone_at, v.id) > ($1, $2::uuid)
             AND v.gone_at < clock_timestamp() - make_interval(secs => $3)
           ORDER BY v.gone_at, v.id LIMIT $4"#,
        after.at,
        after.id,
        settle_s,
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| GoneVm {
            id: row.id,
            host: row.host,
            profile: row.profile,
            reason: row.reason,
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
            queued_at: row.queued_at,
            running_at: row.running_at,
        })
        .collect())
}
