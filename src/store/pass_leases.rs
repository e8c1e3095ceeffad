//! Which gateway does a pass that only one shall do at a time.

use super::Result;
use sqlx::PgExecutor;
use std::time::Duration;
use uuid::Uuid;

/// Takes or keeps the right to do a pass for `lease`. `false` while another holder has it.
pub async fn take(db: impl PgExecutor<'_>, pass: &str, holder: Uuid, lease: Duration) -> Result<bool> {
    let rows = sqlx::query!(
        "INSERT INTO pass_leases AS l (pass, holder, until)
         VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
         ON CONFLICT (pass) DO UPDATE SET holder = EXCLUDED.holder, until = EXCLUDED.until
         WHERE l.holder = EXCLUDED.holder OR l.until < clock_timestamp()",
        pass,
        holder,
        lease.as_secs_f64()
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(rows > 0)
}
