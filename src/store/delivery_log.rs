//! How far GitHub's log of the App's deliveries is read, and which of them never came.

use super::Result;
use chrono::{DateTime, Utc};
use sqlx::PgExecutor;
use uuid::Uuid;

/// So many times GitHub is asked for one delivery again.
pub const MAX_ASKED: i32 = 8;

/// How far the log is read.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Reading {
    /// Of the newest page, when all of it was handled.
    pub etag: Option<String>,
    /// Attempts until then were looked at, but for those below the cursor (GitHub's clock).
    pub read_to: Option<DateTime<Utc>>,
    /// Where a long reading goes on.
    pub cursor: Option<String>,
    /// And where it ends.
    pub floor: Option<DateTime<Utc>>,
    /// The newest attempt that was answered 2xx.
    pub good_at: Option<DateTime<Utc>>,
}

/// Reads how far the log is read.
pub async fn reading(db: impl PgExecutor<'_>) -> Result<Reading> {
    Ok(sqlx::query_as!(Reading, "SELECT etag, read_to, cursor, floor, good_at FROM delivery_log").fetch_one(db).await?)
}

/// Writes how far the log is read.
pub async fn set_reading(db: impl PgExecutor<'_>, reading: &Reading) -> Result<()> {
    sqlx::query!(
        "UPDATE delivery_log SET etag = $1, read_to = $2, cursor = $3, floor = $4, good_at = $5,
                read_at = clock_timestamp()",
        reading.etag,
        reading.read_to,
        reading.cursor,
        reading.floor,
        reading.good_at
    )
    .execute(db)
    .await?;
    Ok(())
}

/// A delivery that GitHub tried in vain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Missed {
    /// Names the event.
    pub guid: Uuid,
    /// GitHub's id of an attempt.
    pub attempt: i64,
    /// When it was tried (GitHub's clock).
    pub failed_at: DateTime<Utc>,
}

/// Those of the GUIDs that never came.
pub async fn unknown(db: impl PgExecutor<'_>, guids: &[Uuid]) -> Result<Vec<Uuid>> {
    Ok(sqlx::query_scalar!(
        r#"SELECT g AS "guid!" FROM unnest($1::uuid[]) g WHERE NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.guid = g)"#,
        guids
    )
    .fetch_all(db)
    .await?)
}

/// Remembers that a delivery failed, unless it came. The newest attempt is kept.
pub async fn remember_missed(db: impl PgExecutor<'_>, missed: &Missed) -> Result<()> {
    sqlx::query!(
        "INSERT INTO missed_deliveries AS m (guid, attempt, failed_at)
         SELECT $1, $2, $3 WHERE NOT EXISTS (SELECT 1 FROM deliveries WHERE guid = $1)
         ON CONFLICT (guid) DO UPDATE SET attempt = EXCLUDED.attempt, failed_at = EXCLUDED.failed_at
         WHERE m.failed_at < EXCLUDED.failed_at",
        missed.guid,
        missed.attempt,
        missed.failed_at
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Forgets what came meanwhile, and what failed before `before`: GitHub cannot deliver it any more. Answers how many.
pub async fn settle_missed(db: impl PgExecutor<'_>, before: DateTime<Utc>) -> Result<u64> {
    Ok(sqlx::query!(
        "DELETE FROM missed_deliveries m
         WHERE m.failed_at < $1 OR EXISTS (SELECT 1 FROM deliveries d WHERE d.guid = m.guid)",
        before
    )
    .execute(db)
    .await?
    .rows_affected())
}

/// Deliveries to be asked for again now, the oldest first: after 1, 5, 25 minutes, then each hour.
pub async fn due_missed(db: impl PgExecutor<'_>, limit: i64) -> Result<Vec<Missed>> {
    Ok(sqlx::query_as!(
        Missed,
        "SELECT guid, attempt, failed_at FROM missed_deliveries
         WHERE asked < $2 AND (asked_at IS NULL OR asked_at < clock_timestamp()
               - least(power(5, greatest(asked - 1, 0)), 60) * interval '1 minute')
         ORDER BY failed_at LIMIT $1",
        limit,
        MAX_ASKED
    )
    .fetch_all(db)
    .await?)
}

/// Counts a request for a delivery, before it is made.
pub async fn count_asked(db: impl PgExecutor<'_>, guid: Uuid) -> Result<()> {
    sqlx::query!("UPDATE missed_deliveries SET asked = asked + 1, asked_at = clock_timestamp() WHERE guid = $1", guid)
        .execute(db)
        .await?;
    Ok(())
}

/// Forgets a delivery that GitHub does not have any more.
pub async fn forget_missed(db: impl PgExecutor<'_>, guid: Uuid) -> Result<()> {
    sqlx::query!("DELETE FROM missed_deliveries WHERE guid = $1", guid).execute(db).await?;
    Ok(())
}

/// How GitHub's deliveries do.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Health {
    /// When the log was read last.
    pub read_at: Option<DateTime<Utc>>,
    /// When GitHub last delivered with success (GitHub's clock).
    pub good_at: Option<DateTime<Utc>>,
    /// Deliveries that failed and have not come yet.
    pub missed: i64,
    /// Of those, the ones that were asked for as often as they are.
    pub given_up: i64,
    /// When the newest of them failed (GitHub's clock).
    pub failed_at: Option<DateTime<Utc>>,
}

/// Reads how GitHub's deliveries do.
pub async fn health(db: impl PgExecutor<'_>) -> Result<Health> {
    Ok(sqlx::query_as!(
        Health,
        r#"SELECT l.read_at, l.good_at, m.missed AS "missed!", m.given_up AS "given_up!", m.failed_at
           FROM delivery_log l,
                (SELECT count(*) AS missed, count(*) FILTER (WHERE asked >= $1) AS given_up, max(failed_at) AS failed_at
                 FROM missed_deliveries) m"#,
        MAX_ASKED
    )
    .fetch_one(db)
    .await?)
}
