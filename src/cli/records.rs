//! What is on record: `flyci deliveries`, `flyci usage`.

use super::args::{DeliveriesArgs, UsageArgs};
use super::client::Admin;
use super::exit::{CliError, DONE};
use super::human::{between, count, plural, span};
use super::out::{self, Look, Tone};
use super::table::{Column, Table, toned};
use super::{more, print_json, print_value};
use crate::api::{DeliveriesQuery, Delivery, Page, Usage, UsageQuery};
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use std::time::Duration;

const PAGE: u32 = 500;

/// Runs `flyci deliveries`.
pub async fn deliveries(admin: &Admin, args: &DeliveriesArgs, look: &Look) -> Result<u8, CliError> {
    let query = |after, wanted: u32| DeliveriesQuery { failed: args.failed, limit: Some(wanted.min(PAGE)), after };
    let page: Page<Delivery> = admin.list("/deliveries", args.limit, query).await?;
    if args.json {
        print_value(&page)?;
    } else if page.items.is_empty() {
        out::print(if args.failed { "No delivery failed.\n" } else { "GitHub has delivered nothing yet.\n" })?;
    } else {
        out::print(&format!("{}{}", delivery_table(&page.items, Utc::now(), look), more(&page)))?;
    }
    Ok(DONE)
}

fn delivery_table(deliveries: &[Delivery], now: DateTime<Utc>, look: &Look) -> String {
    let mut table = Table::new([
        Column::right("AGO"),
        Column::left("EVENT").shrinks_to(12),
        Column::left("OUTCOME"),
        // The name by which GitHub's settings know it: never cut.
        Column::left("DELIVERY"),
    ]);
    for delivery in deliveries {
        let (tone, outcome) = match delivery.outcome.as_str() {
            "applied" => (Tone::Good, "applied"),
            "ignored" => (Tone::Dim, "ignored"),
            // As the option calls it; the line below says why.
            "not_understood" => (Tone::Bad, "failed"),
            other => (Tone::Bad, other),
        };
        let event = match &delivery.action {
            Some(action) => format!("{}.{action}", delivery.event),
            None => delivery.event.clone(),
        };
        table.row([
            span(Duration::from_secs(between(delivery.received_at, now).as_secs())).into(),
            event.into(),
            toned(tone, outcome),
            delivery.guid.as_str().into(),
        ]);
        if let Some(reason) = &delivery.reason {
            table.note(reason);
        }
    }
    table.render(look)
}

/// Runs `flyci usage`.
pub async fn usage(admin: &Admin, args: &UsageArgs, look: &Look) -> Result<u8, CliError> {
    let month = args.month.clone().unwrap_or_else(|| Utc::now().format("%Y-%m").to_string());
    let body = admin.read("/usage", &UsageQuery { month: Some(month.clone()), day: None }).await?;
    if args.json {
        print_json(&body)?;
        return Ok(DONE);
    }
    let page: Page<Usage> = super::read_json("/usage", &body)?;
    let text = if args.csv {
        usage_csv(&page.items)
    } else if page.items.is_empty() {
        format!("Nothing ran in {month}.\n")
    } else {
        usage_table(&page.items, &month, look)
    };
    out::print(&text)?;
    Ok(DONE)
}

/// By account and profile, with the sum.
fn usage_table(rows: &[Usage], month: &str, look: &Look) -> String {
    let mut sums: BTreeMap<(&str, &str), (u64, u64)> = BTreeMap::new();
    for row in rows {
        let sum = sums.entry((row.account.as_deref().unwrap_or("(erased)"), &row.profile)).or_default();
        *sum = (sum.0.saturating_add(row.jobs), sum.1.saturating_add(row.seconds));
    }
    let mut table = Table::new([
        Column::left("ACCOUNT").shrinks_to(14),
        Column::left("PROFILE").shrinks_to(14),
        Column::right("JOBS"),
        Column::right("MINUTES"),
        Column::right("TIME").leaves_at(1),
    ]);
    let mut total = (0_u64, 0_u64);
    for ((account, profile), (jobs, seconds)) in sums {
        total = (total.0.saturating_add(jobs), total.1.saturating_add(seconds));
        table.row([
            account.into(),
            profile.into(),
            count(jobs).into(),
            count(seconds.div_ceil(60)).into(),
            span(Duration::from_secs(seconds)).into(),
        ]);
    }
    let (jobs, seconds) = total;
    let sum = format!("{month}: {}, {} of runners", plural(jobs, "job"), span(Duration::from_secs(seconds)));
    format!("{}  {}\n", table.render(look), look.paint(Tone::Strong, &sum))
}

/// RFC 4180, one line per day, account and profile.
fn usage_csv(rows: &[Usage]) -> String {
    let mut text = "day,account,profile,jobs,seconds\r\n".to_owned();
    for row in rows {
        let account = field(row.account.as_deref().unwrap_or_default());
        text.push_str(&format!("{},{account},{},{},{}\r\n", row.day, field(&row.profile), row.jobs, row.seconds));
    }
    text
}

fn field(text: &str) -> String {
    if text.contains([',', '"', '\r', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::out::tests::look;
    use super::super::samples;
    use super::*;

    #[test]
    fn deliveries_that_were_not_understood_say_why() {
        let delivery = |event: &str, outcome: &str, reason: Option<&str>| Delivery {
            guid: "72d3162e-cc78-11e3-81ab-4c9367dc0958".into(),
            event: event.into(),
            action: Some("queued".into()),
            outcome: outcome.into(),
            reason: reason.map(Into::into),
            received_at: samples::before(42.0),
        };
        let deliveries = [
            delivery("workflow_job", "applied", None),
            delivery("workflow_job", "not_understood", Some("the field workflow_job.id is missing")),
        ];
        insta::assert_snapshot!("deliveries_120", delivery_table(&deliveries, samples::now(), &look(120)));
        insta::assert_snapshot!("deliveries_80", delivery_table(&deliveries, samples::now(), &look(80)));
    }

    #[test]
    fn usage_is_summed_by_account_and_profile() {
        let row = |day: &str, account: Option<&str>, seconds| Usage {
            day: day.into(),
            account: account.map(Into::into),
            profile: "flyci-macos-large".into(),
            jobs: 3,
            seconds,
        };
        let rows =
            [row("2026-11-24", Some("acme"), 610), row("2026-11-25", Some("acme"), 3_000), row("2026-11-25", None, 1)];
        insta::assert_snapshot!("usage_80", usage_table(&rows, "2026-11", &look(80)));
        insta::assert_snapshot!("usage_csv", usage_csv(&rows));
        assert_eq!(field("a\"b,c"), "\"a\"\"b,c\"");
    }
}
