//! What hosts fetch now, or could not fetch. A row goes when its image is there.

use super::{Applied, Result};
use crate::domain::ids::HostId;
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor};

/// One host at a time takes an image away to make room for another: this lock decides which.
const REPLACE_LOCK: i64 = 0x666c_7963_696d_6167;
/// A host that was not heard of for so many seconds does not keep others from replacing.
const REPLACING_UNTIL_S: f64 = 900.0;

/// How far a host is with an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pull<'a> {
    /// The host.
    pub host: HostId,
    /// What a profile names.
    pub reference: &'a str,
    /// The image's digest.
    pub image: &'a str,
    /// Bytes of it, as the registry has them; 0: not known yet.
    pub total: u64,
    /// Bytes that are here.
    pub done: u64,
    /// Why the last try came to nothing.
    pub trouble: Option<&'a str>,
}

/// Writes how far a host is.
pub async fn report(db: impl PgExecutor<'_>, pull: &Pull<'_>) -> Result<()> {
    let bytes = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    sqlx::query!(
        "INSERT INTO image_pulls AS p (host_id, reference, image, total, done, trouble)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (host_id, reference) DO UPDATE SET
            image = EXCLUDED.image, total = EXCLUDED.total, done = EXCLUDED.done, trouble = EXCLUDED.trouble,
            begun_at = CASE WHEN p.image = EXCLUDED.image AND p.done <= EXCLUDED.done AND p.trouble IS NULL
                       THEN p.begun_at ELSE clock_timestamp() END,
            updated_at = clock_timestamp()",
        pull.host.0,
        pull.reference,
        pull.image,
        bytes(pull.total),
        bytes(pull.done),
        pull.trouble
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Takes the right to remove an image before its successor is fetched: of all hosts one at a time has it, so that the
/// others go on with what they have. Stale while another has it.
pub async fn begin_replacing(tx: &mut PgConnection, host: HostId, reference: &str, image: &str) -> Result<Applied> {
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", REPLACE_LOCK).execute(&mut *tx).await?;
    let rows = sqlx::query!(
        "INSERT INTO image_pulls AS p (host_id, reference, image, replaces)
         SELECT $1, $2, $3, true WHERE NOT EXISTS (
             SELECT 1 FROM image_pulls o WHERE o.reference = $2 AND o.replaces AND o.host_id <> $1
                AND o.updated_at > clock_timestamp() - make_interval(secs => $4))
         ON CONFLICT (host_id, reference) DO UPDATE SET
            image = EXCLUDED.image, replaces = true, trouble = NULL, updated_at = clock_timestamp()",
        host.0,
        reference,
        image,
        REPLACING_UNTIL_S
    )
    .execute(tx)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// Nothing is left to fetch of a reference.
pub async fn finished(db: impl PgExecutor<'_>, host: HostId, reference: &str) -> Result<()> {
    sqlx::query!("DELETE FROM image_pulls WHERE host_id = $1 AND reference = $2", host.0, reference)
        .execute(db)
        .await?;
    Ok(())
}

/// Removes what a host wanted once, and does not any more.
pub async fn keep_only(db: impl PgExecutor<'_>, host: HostId, references: &[String]) -> Result<()> {
    sqlx::query!("DELETE FROM image_pulls WHERE host_id = $1 AND reference <> ALL($2)", host.0, references)
        .execute(db)
        .await?;
    Ok(())
}

/// A pull as people see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PullRow {
    /// The host's name.
    pub host: String,
    /// What a profile names.
    pub reference: String,
    /// The image's digest.
    pub image: String,
    /// Bytes of it, as the registry has them; 0: not known yet.
    pub total: i64,
    /// Bytes that are there.
    pub done: i64,
    /// The image before is removed first, for want of room.
    pub replaces: bool,
    /// Why the last try came to nothing.
    pub trouble: Option<String>,
    /// Since when it goes on without a break.
    pub begun_at: DateTime<Utc>,
    /// When it was heard of.
    pub updated_at: DateTime<Utc>,
}

/// Every pull, by host.
pub async fn all(db: impl PgExecutor<'_>) -> Result<Vec<PullRow>> {
    Ok(sqlx::query_as!(
        PullRow,
        "SELECT h.name AS host, p.reference, p.image, p.total, p.done, p.replaces, p.trouble, p.begun_at, p.updated_at
         FROM image_pulls p JOIN hosts h ON h.id = p.host_id ORDER BY h.name, p.reference"
    )
    .fetch_all(db)
    .await?)
}
