//! The audit trail: who did what from where. Append-only; each row carries the hash of the one before.

use super::Result;
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgExecutor, PgPool};

/// Every writer takes this advisory lock, so that the chain has one order.
const CHAIN_LOCK: i64 = 0x666c_7963_6961_7564;

/// One act.
pub struct Act<'a> {
    /// Who: `operator:uid`, `gateway`, `host:NAME`.
    pub actor: &'a str,
    /// What: a word of the code, like `tenant.approve`.
    pub action: &'a str,
    /// To what: an id of ours.
    pub subject: &'a str,
    /// What else there is to say; never a name of a person, an account or a repository.
    pub detail: Option<&'a str>,
}

/// Appends an act to the chain.
pub async fn append(pool: &PgPool, act: &Act<'_>) -> Result<()> {
    let mut tx = pool.begin().await?;
    append_within(&mut tx, act).await?;
    tx.commit().await?;
    Ok(())
}

/// Appends an act to the chain in the transaction that does it: there is neither without the other.
/// Call it last, since other writers of the chain wait until the transaction ends.
pub async fn append_within(tx: &mut PgConnection, act: &Act<'_>) -> Result<()> {
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", CHAIN_LOCK).execute(&mut *tx).await?;
    let previous = sqlx::query_scalar!("SELECT hash FROM audit ORDER BY seq DESC LIMIT 1")
        .fetch_optional(&mut *tx)
        .await?
        .unwrap_or_default();
    // Microseconds are what the database keeps.
    let at = DateTime::from_timestamp_micros(Utc::now().timestamp_micros()).unwrap_or_default();
    let hash = link(&previous, at, act.actor, act.action, act.subject, act.detail);
    sqlx::query!(
        "INSERT INTO audit (at, actor, action, subject, detail, previous, hash) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        at,
        act.actor,
        act.action,
        act.subject,
        act.detail,
        previous,
        hash.as_slice()
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// One row of the trail.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Entry {
    /// Its number in the chain.
    pub seq: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// Who.
    pub actor: String,
    /// What.
    pub action: String,
    /// To what.
    pub subject: String,
    /// What else there is to say.
    pub detail: Option<String>,
    /// The hash of the row before.
    #[serde(skip)]
    pub previous: Vec<u8>,
    /// The hash of this row.
    #[serde(skip)]
    pub hash: Vec<u8>,
}

impl Entry {
    /// True when the row says what it said when it was written.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        let expected = link(&self.previous, self.at, &self.actor, &self.action, &self.subject, self.detail.as_deref());
        expected.as_slice() == self.hash
    }
}

/// The rows after `seq`, in their order.
pub async fn after(db: impl PgExecutor<'_>, seq: i64, limit: i64) -> Result<Vec<Entry>> {
    Ok(sqlx::query_as!(
        Entry,
        "SELECT seq, at, actor, action, subject, detail, previous, hash FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2",
        seq,
        limit
    )
    .fetch_all(db)
    .await?)
}

fn link(
    previous: &[u8],
    at: DateTime<Utc>,
    actor: &str,
    action: &str,
    subject: &str,
    detail: Option<&str>,
) -> [u8; 32] {
    let mut hash = Sha256::new();
    let at = at.timestamp_micros().to_be_bytes();
    let detail = detail.unwrap_or_default();
    for part in [previous, &at, actor.as_bytes(), action.as_bytes(), subject.as_bytes(), detail.as_bytes()] {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}
