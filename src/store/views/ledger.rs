//! What is kept for the record: deliveries, the audit trail, usage.

use super::jobs::Cursor;
use crate::domain::ids::TenantId;
use crate::store::Result;
use crate::store::deliveries::Delivery;
use chrono::{DateTime, NaiveDate, Utc};
use sqlx::PgExecutor;

/// Which deliveries.
#[derive(Clone, Copy, Default)]
pub struct DeliveryFilter<'a> {
    /// With this outcome.
    pub outcome: Option<&'a str>,
    /// The end of the page before.
    pub after: Option<Cursor>,
    /// Rows at most.
    pub limit: i64,
}

/// Deliveries, newest first.
pub async fn deliveries(db: impl PgExecutor<'_>, filter: DeliveryFilter<'_>) -> Result<Vec<Delivery>> {
    Ok(sqlx::query_as!(
        Delivery,
        "SELECT guid, event, action, outcome, reason, received_at FROM deliveries
         WHERE ($1::text IS NULL OR outcome = $1)
           AND ($2::timestamptz IS NULL OR (received_at, guid) < ($2, $3::uuid))
         ORDER BY received_at DESC, guid DESC LIMIT $4",
        filter.outcome,
        filter.after.map(|cursor| cursor.at),
        filter.after.map(|cursor| cursor.id),
        filter.limit
    )
    .fetch_all(db)
    .await?)
}

/// When the last delivery came.
pub async fn last_delivery(db: impl PgExecutor<'_>) -> Result<Option<DateTime<Utc>>> {
    Ok(sqlx::query_scalar!("SELECT max(received_at) FROM deliveries").fetch_one(db).await?)
}

/// The number of the last act before `since`: those after it are at or after `since`.
pub async fn audit_before(db: impl PgExecutor<'_>, since: DateTime<Utc>) -> Result<i64> {
    Ok(sqlx::query_scalar!(r#"SELECT coalesce(max(seq), 0) AS "seq!" FROM audit WHERE at < $1"#, since)
        .fetch_one(db)
        .await?)
}

/// What a tenant used of a profile on a UTC day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRow {
    /// The day.
    pub day: NaiveDate,
    /// The tenant.
    pub tenant: TenantId,
    /// The profile.
    pub profile: String,
    /// Jobs that ran on that day.
    pub jobs: i64,
    /// Whole seconds.
    pub seconds: i64,
}

/// Usage of the UTC days from `first` to before `end`: of each job the seconds between GitHub's
/// `started_at` and `completed_at` that lie on the day. Jobs that never ran, and those that we lost,
/// count nothing.
pub async fn usage(db: impl PgExecutor<'_>, first: NaiveDate, end: NaiveDate) -> Result<Vec<UsageRow>> {
    Ok(sqlx::query_as!(
        UsageRow,
        r#"SELECT d.day AS "day!", j.tenant_id AS "tenant: TenantId", j.profile, count(*) AS "jobs!",
                  sum(extract(epoch FROM least(j.github_completed_at, (d.day + 1)::timestamp AT TIME ZONE 'UTC')
                      - greatest(j.github_started_at, d.day::timestamp AT TIME ZONE 'UTC')))::bigint AS "seconds!"
           FROM jobs j,
           LATERAL (SELECT g::date AS day FROM generate_series(
               greatest((j.github_started_at AT TIME ZONE 'UTC')::date, $1::date)::timestamp,
               least((j.github_completed_at AT TIME ZONE 'UTC')::date, $2::date - 1)::timestamp,
               interval '1 day') g) d
           WHERE j.state = 'done'
             AND j.github_started_at < $2::date::timestamp AT TIME ZONE 'UTC'
             AND j.github_completed_at >= $1::date::timestamp AT TIME ZONE 'UTC'
             AND j.github_completed_at >= j.github_started_at
           GROUP BY d.day, j.tenant_id, j.profile ORDER BY d.day, j.tenant_id, j.profile"#,
        first,
        end
    )
    .fetch_all(db)
    .await?)
}

/// The database's clock.
pub async fn now(db: impl PgExecutor<'_>) -> Result<DateTime<Utc>> {
    Ok(sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "now!""#).fetch_one(db).await?)
}
