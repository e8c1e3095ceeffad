//! Jobs that we lost, as far as GitHub is asked to run them again: columns of `jobs` of their own.

use super::{Applied, Result};
use crate::domain::ids::{JobId, RepositoryId, TenantId};
use crate::secrets::Sealed;
use sqlx::PgExecutor;
use std::time::Duration;

/// A job that we lost, and that GitHub is to be asked to run again.
#[derive(Clone, Copy, Debug)]
pub struct LostJob {
    /// Our id.
    pub id: JobId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Of which repository.
    pub repository: RepositoryId,
}

/// Jobs that were lost in the last day in one of their first `attempts`, and not asked for yet: oldest first.
pub async fn to_rerun(db: impl PgExecutor<'_>, attempts: i32, limit: i64) -> Result<Vec<LostJob>> {
    Ok(sqlx::query_as!(
        LostJob,
        r#"SELECT j.id AS "id: JobId", j.tenant_id AS "tenant: TenantId", j.repository_id AS "repository: RepositoryId"
           FROM jobs j JOIN tenants t ON t.id = j.tenant_id JOIN repositories r ON r.id = j.repository_id
           WHERE j.state = 'lost' AND j.reason = 'vm_vanished' AND j.run_attempt <= $1
             AND j.ended_at > clock_timestamp() - interval '1 day' AND j.rerun_asked_at IS NULL
             AND (j.rerun_after IS NULL OR j.rerun_after <= clock_timestamp())
             AND t.admission = 'approved' AND t.suspended_at IS NULL AND t.uninstalled_at IS NULL
             AND r.removed_at IS NULL
           ORDER BY j.ended_at LIMIT $2"#,
        attempts,
        limit
    )
    .fetch_all(db)
    .await?)
}

/// GitHub's id of a job.
pub async fn github_id(db: impl PgExecutor<'_>, job: JobId) -> Result<Option<Sealed>> {
    Ok(sqlx::query_scalar!(r#"SELECT github_id AS "github_id: Sealed" FROM jobs WHERE id = $1"#, job.0)
        .fetch_optional(db)
        .await?)
}

/// Writes, before the call, that GitHub is asked to run a job again. Stale when it was asked already.
pub async fn begin_rerun(db: impl PgExecutor<'_>, job: JobId) -> Result<Applied> {
    let rows = sqlx::query!(
        "UPDATE jobs SET rerun_asked_at = clock_timestamp() WHERE id = $1 AND rerun_asked_at IS NULL AND state = 'lost'",
        job.0
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// GitHub certainly did not run the job again: it is asked once more after `wait`.
pub async fn rerun_later(db: impl PgExecutor<'_>, job: JobId, wait: Duration) -> Result<()> {
    sqlx::query!(
        "UPDATE jobs SET rerun_asked_at = NULL, rerun_after = clock_timestamp() + make_interval(secs => $2) WHERE id = $1",
        job.0,
        wait.as_secs_f64()
    )
    .execute(db)
    .await?;
    Ok(())
}
