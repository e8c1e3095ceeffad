//! What is on offer, as the gateway's configuration says: hosts compare theirs with it.

use super::Result;
use sqlx::PgExecutor;

/// Writes what is on offer, as JSON by label. What is there already stays as it is; what is not on offer goes.
pub async fn publish(db: impl PgExecutor<'_>, labels: &[String], descriptions: &[String]) -> Result<()> {
    sqlx::query!(
        "WITH gone AS (DELETE FROM profiles WHERE label <> ALL($1))
         INSERT INTO profiles AS p (label, description)
         SELECT o.label, o.description::jsonb FROM unnest($1::text[], $2::text[]) AS o (label, description)
         ON CONFLICT (label) DO UPDATE SET description = EXCLUDED.description, published_at = clock_timestamp()
         WHERE p.description <> EXCLUDED.description",
        labels,
        descriptions
    )
    .execute(db)
    .await?;
    Ok(())
}

/// What is on offer: label and JSON.
pub async fn published(db: impl PgExecutor<'_>) -> Result<Vec<(String, String)>> {
    let rows = sqlx::query!(r#"SELECT label, description::text AS "description!" FROM profiles ORDER BY label"#)
        .fetch_all(db)
        .await?;
    Ok(rows.into_iter().map(|row| (row.label, row.description)).collect())
}
