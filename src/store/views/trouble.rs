//! What shows that something is wrong, and why jobs wait.

use crate::domain::ids::{TenantId, VmId};
use crate::store::Result;
use chrono::{DateTime, Utc};
use sqlx::PgExecutor;

/// A label with our prefix that no profile serves.
#[derive(Clone, Debug)]
pub struct LabelRow {
    /// The label.
    pub label: String,
    /// The profile whose label is nearest.
    pub nearest_profile: Option<String>,
    /// Jobs that asked for it in the last 24 hours.
    pub jobs: i64,
}

/// Labels with our prefix that no profile serves, of the last 24 hours, the most frequent first.
pub async fn unknown_labels(db: impl PgExecutor<'_>, limit: i64) -> Result<Vec<LabelRow>> {
    Ok(sqlx::query_as!(
        LabelRow,
        r#"SELECT label AS "label!", min(nearest_profile) AS nearest_profile, count(*) AS "jobs!" FROM refusals
           WHERE reason = 'label_unknown' AND label IS NOT NULL
             AND refused_at >= clock_timestamp() - interval '24 hours'
           GROUP BY label ORDER BY count(*) DESC, label LIMIT $1"#,
        limit
    )
    .fetch_all(db)
    .await?)
}

/// Jobs that are tried slowly.
#[derive(Clone, Debug)]
pub struct DeferredRow {
    /// Their profile.
    pub profile: String,
    /// How many.
    pub jobs: i64,
    /// The most tries that one of them had.
    pub attempts: i32,
}

/// Queued jobs that were tried in vain and wait for their next try, by profile.
pub async fn deferred(db: impl PgExecutor<'_>) -> Result<Vec<DeferredRow>> {
    Ok(sqlx::query_as!(
        DeferredRow,
        r#"SELECT profile, count(*) AS "jobs!", max(attempts) AS "attempts!" FROM jobs
           WHERE state = 'queued' AND not_before > clock_timestamp() GROUP BY profile ORDER BY profile"#
    )
    .fetch_all(db)
    .await?)
}

/// How many deliveries of the last 24 hours were not understood.
pub async fn unread_deliveries(db: impl PgExecutor<'_>) -> Result<i64> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM deliveries
           WHERE outcome = 'not_understood' AND received_at >= clock_timestamp() - interval '24 hours'"#
    )
    .fetch_one(db)
    .await?)
}

/// Runners that GitHub does not make, for one reason.
#[derive(Clone, Debug)]
pub struct RunnerTroubleRow {
    /// A word of the closed list.
    pub trouble: String,
    /// How many runners wait for it.
    pub runners: i64,
    /// Since when the first of them waits.
    pub since: DateTime<Utc>,
}

/// What keeps GitHub from making runners that are wanted.
pub async fn runner_trouble(db: impl PgExecutor<'_>) -> Result<Vec<RunnerTroubleRow>> {
    Ok(sqlx::query_as!(
        RunnerTroubleRow,
        r#"SELECT trouble AS "trouble!", count(*) AS "runners!", min(requested_at) AS "since!" FROM runners
           WHERE state IN ('requested', 'minting') AND trouble IS NOT NULL GROUP BY trouble ORDER BY trouble"#
    )
    .fetch_all(db)
    .await?)
}

/// A vm that should have been gone.
#[derive(Clone, Debug)]
pub struct StuckRow {
    /// The vm.
    pub id: VmId,
    /// Its host's name.
    pub host: String,
    /// For how long it is being destroyed, in seconds.
    pub for_s: f64,
}

/// Vms that have been in destruction for longer than `longer_than_s` seconds, the oldest first.
pub async fn stuck_vms(db: impl PgExecutor<'_>, longer_than_s: f64, limit: i64) -> Result<Vec<StuckRow>> {
    Ok(sqlx::query_as!(
        StuckRow,
        r#"SELECT v.id AS "id: VmId", h.name AS host,
                  extract(epoch FROM clock_timestamp() - v.stopping_at)::float8 AS "for_s!"
           FROM vms v JOIN hosts h ON h.id = v.host_id
           WHERE v.state = 'stopping' AND v.stopping_at < clock_timestamp() - make_interval(secs => $1)
           ORDER BY v.stopping_at LIMIT $2"#,
        longer_than_s,
        limit
    )
    .fetch_all(db)
    .await?)
}

/// Images whose last vm to get a runner ended because GitHub found that runner too old.
pub async fn too_old_images(db: impl PgExecutor<'_>) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar!(
        "SELECT l.image FROM (
             SELECT DISTINCT ON (image) image, reason FROM vms
             WHERE state = 'gone' AND delivering_at IS NOT NULL AND gone_at >= clock_timestamp() - interval '24 hours'
             ORDER BY image, gone_at DESC) l
         WHERE l.reason = 'runner_too_old' ORDER BY l.image"
    )
    .fetch_all(db)
    .await?)
}

/// What a host carries.
#[derive(Clone, Debug)]
pub struct Load {
    /// The host's name.
    pub host: String,
    /// Memory of its vms, in bytes.
    pub memory: i64,
    /// Vms that are blank, or bound and without a job yet.
    pub coming: i64,
}

/// A tenant's limit, and how near it is.
#[derive(Clone, Debug)]
pub struct TenantLoad {
    /// The tenant.
    pub tenant: TenantId,
    /// It is served.
    pub served: bool,
    /// Its own limit.
    pub vm_limit: Option<i32>,
    /// Vms that count against it.
    pub vms: i64,
}

/// What each host carries, and how near each tenant with queued jobs is to its limit.
pub async fn load(db: &sqlx::PgPool) -> Result<(Vec<Load>, Vec<TenantLoad>)> {
    let hosts = sqlx::query_as!(
        Load,
        r#"SELECT h.name AS host, coalesce(sum(v.memory), 0)::bigint AS "memory!",
                  count(v.id) FILTER (WHERE v.state IN ('planned', 'cloning', 'cloned', 'booting', 'ready', 'bound',
                                                        'delivering')) AS "coming!"
           FROM hosts h LEFT JOIN vms v ON v.host_id = h.id AND v.state <> 'gone' GROUP BY h.name"#
    )
    .fetch_all(db)
    .await?;
    let tenants = sqlx::query_as!(
        TenantLoad,
        r#"SELECT t.id AS "tenant: TenantId", t.vm_limit,
                  (t.admission = 'approved' AND t.suspended_at IS NULL AND t.uninstalled_at IS NULL) AS "served!",
                  (SELECT count(*) FROM vms v WHERE v.tenant_id = t.id
                   AND v.state NOT IN ('stopping', 'gone', 'abandoned')) AS "vms!"
           FROM tenants t WHERE t.id IN (SELECT tenant_id FROM jobs WHERE state = 'queued')"#
    )
    .fetch_all(db)
    .await?;
    Ok((hosts, tenants))
}
