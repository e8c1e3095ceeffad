//! `/deliveries`, `/audit` and `/usage`: what is kept for the record.

use super::AdminState;
use super::input::{Query, cursor, page, page_size, since, whole};
use super::names::accounts;
use crate::api;
use crate::domain::ids::TenantId;
use crate::store::audit::{self, Entry, Head};
use crate::store::deliveries::{Delivery, Outcome};
use crate::store::views::{self, DeliveryFilter};
use crate::web::failure::Failure;
use axum::Json;
use axum::extract::State;
use chrono::{Days, Months, NaiveDate, Utc};
use std::collections::HashMap;

/// Heads that are compared at once.
const MAX_HEADS: usize = 100;

/// `GET /deliveries`
pub async fn deliveries(
    State(state): State<AdminState>,
    Query(query): Query<api::DeliveriesQuery>,
) -> Result<Json<api::Page<api::Delivery>>, Failure> {
    let limit = page_size(query.limit)?;
    let filter = DeliveryFilter {
        outcome: query.failed.then_some(Outcome::NotUnderstood.as_str()),
        after: cursor(query.after.as_deref())?,
        limit: i64::from(limit) + 1,
    };
    let rows = views::deliveries(&state.pool, filter).await?;
    Ok(Json(page(rows, limit, |row: &Delivery| (row.received_at, row.guid), show_delivery)))
}

fn show_delivery(delivery: Delivery) -> api::Delivery {
    api::Delivery {
        guid: delivery.guid.to_string(),
        event: delivery.event,
        action: delivery.action,
        outcome: delivery.outcome,
        reason: delivery.reason,
        received_at: delivery.received_at,
    }
}

/// `GET /audit`
pub async fn audit(
    State(state): State<AdminState>,
    Query(query): Query<api::AuditQuery>,
) -> Result<Json<api::Page<api::AuditEntry>>, Failure> {
    let limit = page_size(query.limit)?;
    let after = match (query.after.as_deref(), since(query.since.as_deref())?) {
        (Some(text), _) => text.parse().map_err(|_| Failure::bad_request("after is not the `next` of a page"))?,
        (None, Some(since)) => views::audit_before(&state.pool, since).await?,
        (None, None) => 0,
    };
    let mut rows = audit::after(&state.pool, after, i64::from(limit) + 1).await?;
    let limit = usize::try_from(limit).expect("a page is small");
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(|last| last.seq.to_string());
    let accounts = accounts(&state).await?;
    Ok(Json(api::Page { items: rows.into_iter().map(|row| show_entry(row, &accounts)).collect(), next }))
}

fn show_entry(entry: Entry, accounts: &HashMap<TenantId, String>) -> api::AuditEntry {
    let tenant = entry.subject.parse().ok().map(TenantId);
    api::AuditEntry {
        account: tenant.and_then(|tenant| accounts.get(&tenant).cloned()),
        seq: entry.seq,
        chain: entry.chain,
        position: entry.position,
        at: entry.at,
        actor: entry.actor,
        action: entry.action,
        subject: entry.subject,
        detail: entry.detail,
    }
}

/// `GET /audit/head`
pub async fn heads(State(state): State<AdminState>) -> Result<Json<api::AuditHeads>, Failure> {
    let heads = audit::heads(&state.pool).await?;
    Ok(Json(api::AuditHeads { heads: heads.iter().map(ToString::to_string).collect() }))
}

/// `GET /audit/verify`: reads the whole trail.
pub async fn verify(
    State(state): State<AdminState>,
    Query(query): Query<api::VerifyQuery>,
) -> Result<Json<api::AuditVerdict>, Failure> {
    let texts = query.heads.unwrap_or_default();
    let kept: Vec<Head> =
        texts.split_whitespace().map(str::parse).collect::<Result<_, _>>().map_err(Failure::bad_request)?;
    if kept.len() > MAX_HEADS {
        return Err(Failure::bad_request(format!("give at most {MAX_HEADS} heads at once")));
    }
    let verdict = state.auditor.verify(&kept).await?;
    let texts = |heads: &[Head]| heads.iter().map(ToString::to_string).collect();
    Ok(Json(api::AuditVerdict {
        intact: verdict.fault.is_none(),
        entries: verdict.entries,
        broken_at: verdict.fault.as_ref().map(|fault| fault.position),
        broken_chain: verdict.fault.as_ref().map(|fault| fault.chain.clone()),
        fault: verdict.fault.as_ref().map(|fault| fault.what.to_owned()),
        heads: texts(&verdict.heads),
        too_old: texts(&verdict.too_old),
    }))
}

/// `GET /usage`
pub async fn usage(
    State(state): State<AdminState>,
    Query(query): Query<api::UsageQuery>,
) -> Result<Json<api::Page<api::Usage>>, Failure> {
    let (first, end) = period(&query, Utc::now().date_naive())?;
    let accounts = accounts(&state).await?;
    let rows = views::usage(&state.pool, first, end).await?;
    let show = |row: views::UsageRow| api::Usage {
        day: row.day.to_string(),
        account: accounts.get(&row.tenant).cloned(),
        profile: row.profile,
        jobs: u64::try_from(row.jobs).unwrap_or(0),
        seconds: u64::try_from(row.seconds).unwrap_or(0),
    };
    Ok(Json(whole(rows.into_iter().map(show).collect())))
}

/// The first day, and the day after the last.
fn period(query: &api::UsageQuery, today: NaiveDate) -> Result<(NaiveDate, NaiveDate), Failure> {
    let month = |text: &str| {
        let first: NaiveDate = format!("{text}-01").parse().ok()?;
        Some((first, first.checked_add_months(Months::new(1))?))
    };
    let wrong = |what: &str| Failure::bad_request(what.to_owned());
    match (query.month.as_deref(), query.day.as_deref()) {
        (Some(_), Some(_)) => Err(wrong("give month or day, not both")),
        (Some(text), None) => month(text).ok_or_else(|| wrong("month is written `2026-11`")),
        (None, Some(text)) => {
            let first: Option<NaiveDate> = text.parse().ok();
            first
                .and_then(|first| Some((first, first.checked_add_days(Days::new(1))?)))
                .ok_or_else(|| wrong("day is written `2026-11-25`"))
        }
        (None, None) => month(&today.format("%Y-%m").to_string()).ok_or_else(|| wrong("today is out of range")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(text: &str) -> NaiveDate {
        text.parse().expect("a day")
    }

    #[test]
    fn a_period_is_a_month_or_a_day() {
        let of = |month: Option<&str>, day: Option<&str>| {
            let query = api::UsageQuery { month: month.map(str::to_owned), day: day.map(str::to_owned) };
            period(&query, self::day("2026-12-25")).ok()
        };
        assert_eq!(of(Some("2026-11"), None), Some((day("2026-11-01"), day("2026-12-01"))));
        assert_eq!(of(None, Some("2026-11-30")), Some((day("2026-11-30"), day("2026-12-01"))));
        assert_eq!(of(None, None), Some((day("2026-12-01"), day("2027-01-01"))));
        assert_eq!(of(Some("2026-13"), None), None);
        assert_eq!(of(Some("2026-11"), Some("2026-11-01")), None);
    }
}
