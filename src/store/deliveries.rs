//! Webhook deliveries: what came and what was done with it, never what was in it.

use super::Result;
use crate::domain::reason::words;
use chrono::{DateTime, Utc};
use sqlx::PgExecutor;
use uuid::Uuid;

words! {
    /// What became of a delivery.
    Outcome {
        /// Its effect is committed.
        Applied = "applied",
        /// It was understood, and called for nothing.
        Ignored = "ignored",
        /// It was not understood.
        NotUnderstood = "not_understood",
    }
}

/// Remembers a delivery. `false` when one with this GUID was applied before: its effect stands.
/// One that was ignored is judged again, since the operator may have added the missing profile.
pub async fn record(
    db: impl PgExecutor<'_>,
    guid: Uuid,
    event: &str,
    action: Option<&str>,
    outcome: Outcome,
    reason: Option<&str>,
) -> Result<bool> {
    let rows = sqlx::query!(
        "INSERT INTO deliveries (guid, event, action, outcome, reason) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (guid) DO UPDATE SET outcome = EXCLUDED.outcome, reason = EXCLUDED.reason
         WHERE deliveries.outcome <> 'applied'",
        guid,
        event,
        action,
        outcome.as_str(),
        reason
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(rows > 0)
}

/// One delivery, as the operator sees it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Delivery {
    /// GitHub's name for it.
    pub guid: Uuid,
    /// The event's name.
    pub event: String,
    /// The event's action.
    pub action: Option<String>,
    /// What became of it.
    pub outcome: String,
    /// Why, if it was not applied.
    pub reason: Option<String>,
    /// When it came.
    pub received_at: DateTime<Utc>,
}

/// The latest deliveries, newest first.
pub async fn latest(db: impl PgExecutor<'_>, limit: i64) -> Result<Vec<Delivery>> {
    Ok(sqlx::query_as!(
        Delivery,
        "SELECT guid, event, action, outcome, reason, received_at FROM deliveries
         ORDER BY received_at DESC LIMIT $1",
        limit
    )
    .fetch_all(db)
    .await?)
}

/// Forgets up to `limit` deliveries that came before `before`. Answers how many.
pub async fn prune(db: impl PgExecutor<'_>, before: DateTime<Utc>, limit: i64) -> Result<u64> {
    Ok(sqlx::query!(
        "DELETE FROM deliveries WHERE guid IN
           (SELECT guid FROM deliveries WHERE received_at < $1 ORDER BY received_at LIMIT $2)",
        before,
        limit
    )
    .execute(db)
    .await?
    .rows_affected())
}
