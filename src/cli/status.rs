//! `flyci status`: what is wrong first, then queue, slots, hosts.

use super::client::Admin;
use super::exit::{CliError, DEGRADED, DONE};
use super::human::{ago, between, count, gigabytes, plural, span, times};
use super::out::{self, Look, Tone, harmless};
use super::suggest::commands;
use super::table::{Cell, Column, Table, toned};
use super::{args::StatusArgs, print_json};
use crate::api::{Day, Host, Queue, Status, Trouble};
use std::io::IsTerminal;
use std::time::Duration;
use unicode_width::UnicodeWidthStr;

/// Columns that the first words take at most: `flyci: its database does not answer   `.
const TITLE_WIDTH: usize = 36;
/// How often `--watch` draws again.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Hosts that are shown without `--all`.
const HOSTS_SHOWN: usize = 20;
/// Characters of a UUID, and how many of them are shown.
const UUID_LENGTH: usize = 36;
const UUID_SHOWN: usize = 8;
/// Characters of a SHA-256 in hexadecimal digits, and how many of them are shown.
const DIGEST_LENGTH: usize = 64;
const DIGEST_SHOWN: usize = 12;
/// Where the terminal's cursor goes home, and what is below is cleared.
const REDRAW: &str = "\x1b[H\x1b[J";

/// Runs `flyci status`.
pub async fn run(admin: &Admin, args: &StatusArgs, look: &Look) -> Result<u8, CliError> {
    if args.watch {
        return watch(admin, args.all, look).await;
    }
    let body = admin.read("/status", &()).await?;
    let status: Status = super::read_json("/status", &body)?;
    if args.json {
        print_json(&body)?;
    } else {
        out::print(&render(&status, args.all, look))?;
    }
    Ok(if is_degraded(&status) { DEGRADED } else { DONE })
}

/// Draws until interrupted. A daemon that is restarted meanwhile is no end.
async fn watch(admin: &Admin, all: bool, look: &Look) -> Result<u8, CliError> {
    let redraw = if std::io::stdout().is_terminal() { REDRAW } else { "" };
    let mut ticks = tokio::time::interval(WATCH_INTERVAL);
    loop {
        ticks.tick().await;
        let look = Look { width: Look::of_stdout().width, ..*look };
        let text = match admin.get::<Status>("/status", &()).await {
            Ok(status) => render(&status, all, &look),
            Err(error @ (CliError::NotRunning { .. } | CliError::NoAnswer { .. })) => format!("{error}\n"),
            Err(error) => return Err(error),
        };
        out::print(&format!("{redraw}{text}"))?;
    }
}

/// True when somebody should do something. A drain is meant, and no fault.
fn is_degraded(status: &Status) -> bool {
    !status.problems.is_empty() || !matches!(status.readiness.as_str(), "ready" | "draining")
}

/// The whole page.
#[must_use]
pub fn render(status: &Status, all: bool, look: &Look) -> String {
    let mut text = heading(status, look);
    for trouble in &status.problems {
        text.push_str(&problem(trouble, look));
    }
    text.push_str(&queue(&status.queue, status, look));
    text.push_str(&day(&status.day, look));
    if !status.hosts.is_empty() {
        text.push('\n');
        text.push_str(&hosts(&status.hosts, status.now, if all { usize::MAX } else { HOSTS_SHOWN }, look));
    }
    text
}

fn heading(status: &Status, look: &Look) -> String {
    let verdict = match (status.readiness.as_str(), status.problems.len()) {
        ("database", _) => look.paint(Tone::Bad, "its database does not answer"),
        ("github", _) => look.paint(Tone::Bad, "GitHub does not answer it"),
        ("draining", 0) => look.paint(Tone::Warn, "draining"),
        (_, 0) => look.paint(Tone::Good, "all is well"),
        (_, problems) => {
            let problems = plural(problems, "problem");
            look.paint(Tone::Warn, &problems).into_owned().into()
        }
    };
    let last = match status.last_delivery_at {
        Some(at) => format!("last delivery {}", ago(status.now, at)),
        None => "no delivery yet".to_owned(),
    };
    let up = span(between(status.started_at, status.now));
    let detail = harmless(&format!(
        "{} · intake {}, {last} · up {up} · {}",
        status.roles.join(", "),
        status.intake,
        status.version
    ));
    let title = format!("{}: {verdict}", look.paint(Tone::Strong, "flyci"));
    // Where one line is too long for the terminal, two are made.
    let room = look.width.unwrap_or(usize::MAX);
    let gap = if TITLE_WIDTH + detail.width() <= room { "   " } else { "\n  " };
    format!("{title}{gap}{}\n", look.paint(Tone::Dim, &detail))
}

fn problem(trouble: &Trouble, look: &Look) -> String {
    let what = harmless(&trouble.what);
    let mut text = format!("{} {}\n", look.paint(Tone::Bad, "!"), look.paint(Tone::Strong, &what));
    if !trouble.evidence.is_empty() {
        text.push_str(&out::hanging("    ", 4, &harmless(&trouble.evidence), look));
    }
    if !trouble.fix.is_empty() {
        let begin = format!("    {} ", look.paint(Tone::Dim, "do:"));
        text.push_str(&out::hanging(&begin, 8, &commands(&harmless(&trouble.fix)), look));
    }
    text
}

fn queue(queue: &Queue, status: &Status, look: &Look) -> String {
    let (vms, slots) = status
        .hosts
        .iter()
        .fold((0, 0), |(vms, slots), host| (vms + u64::from(host.vms), slots + u64::from(host.slots)));
    let oldest = match queue.oldest_queued_at {
        Some(at) if queue.queued > 0 => format!(" (oldest {})", span(between(at, status.now))),
        Some(_) | None => String::new(),
    };
    let mut parts = vec![
        format!("{} queued{oldest}", count(queue.queued)),
        format!("{} claimed", count(queue.claimed)),
        format!("{} running", count(queue.running)),
    ];
    if queue.waiting > 0 {
        parts.push(format!("{} held back by GitHub", count(queue.waiting)));
    }
    format!(
        "  {} {}\n  {} {} of {} in use on {}\n",
        look.paint(Tone::Dim, "queue"),
        parts.join(" · "),
        look.paint(Tone::Dim, "slots"),
        count(vms),
        count(slots),
        plural(status.hosts.len(), "host")
    )
}

fn day(day: &Day, look: &Look) -> String {
    let mut parts = vec![format!("{} done", count(day.done)), format!("{} cancelled", count(day.cancelled))];
    if day.unserved > 0 {
        parts.push(look.paint(Tone::Bad, &format!("{} unserved", count(day.unserved))).into_owned());
    }
    let lost = format!("{} lost", count(day.lost));
    parts.push(look.paint(if day.lost > 0 { Tone::Bad } else { Tone::Plain }, &lost).into_owned());
    if let (Some(half), Some(most)) = (seconds(day.wait_p50_s), seconds(day.wait_p99_s)) {
        parts.push(format!("waited p50 {}, p99 {}", span(half), span(most)));
    }
    format!("  {}  {}\n", look.paint(Tone::Dim, "24 h"), parts.join(" · "))
}

fn seconds(seconds: Option<f64>) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds?).ok()
}

/// The hosts that want attention first, then by name.
#[must_use]
pub fn hosts(hosts: &[Host], now: chrono::DateTime<chrono::Utc>, shown: usize, look: &Look) -> String {
    let mut table = Table::new([
        Column::left("HOST").shrinks_to(12),
        Column::left("STATE"),
        Column::right("VMS"),
        Column::right("MEM").leaves_at(1),
        Column::left("CHIP").shrinks_to(8).leaves_at(2),
        Column::left("SYSTEM").shrinks_to(8).leaves_at(4),
        Column::left("VERSION").leaves_at(3),
        Column::left("NOTE").shrinks_to(30),
    ]);
    let mut sorted: Vec<&Host> = hosts.iter().collect();
    sorted.sort_by_key(|host| (host.state == "ready" && host.failing_images.is_empty(), host.name.as_str()));
    for host in sorted.iter().take(shown) {
        table.row([
            host.name.as_str().into(),
            state(host),
            format!("{}/{}", host.vms, host.slots).into(),
            format!("{}/{}G", gigabytes(host.memory_used_bytes), gigabytes(host.memory_bytes)).into(),
            host.hardware.as_str().into(),
            host.os.as_str().into(),
            host.version.as_str().into(),
            note(host, now).into(),
        ]);
    }
    let mut text = table.render(look);
    let rest = sorted.len().saturating_sub(shown);
    if rest > 0 {
        text.push_str(&format!("  … {rest} more: {}\n", commands("flyci status --all")));
    }
    text
}

fn state(host: &Host) -> Cell {
    let tone = match host.state.as_str() {
        "ready" if host.failing_images.is_empty() => Tone::Good,
        "silent" => Tone::Bad,
        _ => Tone::Warn,
    };
    toned(tone, &host.state)
}

/// What else there is to say of a host, the gravest first.
fn note(host: &Host, now: chrono::DateTime<chrono::Utc>) -> String {
    let mut notes = Vec::new();
    if host.state == "silent" {
        notes.push(format!("last heard of {}", ago(now, host.beat_at)));
    }
    if host.state == "untested" {
        notes.push("a vm of each image boots before it takes work".to_owned());
    }
    for failing in &host.failing_images {
        let image = short(&failing.image);
        notes.push(match failing.quarantined_until.filter(|until| *until > now) {
            Some(until) => format!("{image} quarantined for {}", span(between(now, until))),
            None => format!("{image} failed {}", times(failing.failures)),
        });
    }
    for pull in &host.pulls {
        notes.push(match (&pull.trouble, pull.total_bytes) {
            (Some(_), _) => format!("cannot fetch {}", pull.reference),
            (None, 0) => format!("fetches {}", pull.reference),
            (None, total) => format!("fetches {}: {} %", pull.reference, pull.done_bytes.saturating_mul(100) / total),
        });
    }
    if let (Some(version), Some(until)) = (&host.runner_version, host.runner_cut_off_at) {
        notes.push(match between(now, until).is_zero() {
            true => format!("runner {version} is not served by GitHub"),
            false => format!("runner {version} served for {}", span(between(now, until))),
        });
    }
    if let Some(since) = host.drained_at.filter(|_| host.state.starts_with("drain")) {
        let reason = host.drain_reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        notes.push(format!("since {}{reason}", span(between(since, now))));
    }
    notes.join(" · ")
}

/// A digest or a random id, short enough for a table; any other text as it is.
#[must_use]
pub fn short(id: &str) -> String {
    let (name, digits) = id.rsplit_once("sha256:").unwrap_or(("", id));
    let shown = match digits.len() {
        UUID_LENGTH => UUID_SHOWN,
        DIGEST_LENGTH => DIGEST_SHOWN,
        _ => return id.to_owned(),
    };
    if digits.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        format!("{name}{}", &digits[..shown])
    } else {
        id.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::out::tests::look;
    use super::super::samples;
    use super::*;

    #[test]
    fn a_fleet_with_problems_tells_them_first() {
        insta::assert_snapshot!("status_120", render(&samples::status(), false, &look(120)));
        insta::assert_snapshot!("status_80", render(&samples::status(), false, &look(80)));
        assert!(is_degraded(&samples::status()));
    }

    #[test]
    fn a_healthy_single_host_is_short() {
        let mut status = samples::status();
        status.problems.clear();
        status.hosts.truncate(1);
        status.queue = Queue::default();
        status.last_delivery_at = None;
        insta::assert_snapshot!("status_healthy", render(&status, false, &look(80)));
        assert!(!is_degraded(&status));
    }

    #[test]
    fn many_hosts_are_counted_not_listed() {
        let mut status = samples::status();
        let ready = status.hosts[0].clone();
        status.hosts.extend((10..40).map(|number| Host { name: format!("mini-{number}"), ..ready.clone() }));
        let text = render(&status, false, &look(100));
        assert!(text.contains("… 13 more: flyci status --all"), "{text}");
        assert!(!render(&status, true, &look(100)).contains("more:"));
    }

    #[test]
    fn digests_are_shortened_and_names_are_not() {
        let digest = "923c98d3aabbccddeeff00112233445566778899aabbccddeeff001122334455";
        assert_eq!(short(&format!("linux-minimal@sha256:{digest}")), "linux-minimal@923c98d3aabb");
        assert_eq!(short("sha256:tooshort"), "sha256:tooshort");
        assert_eq!(short("linux-minimal"), "linux-minimal");
        assert_eq!(short("3f0c9a4e-1111-4222-8333-444455556666"), "3f0c9a4e");
    }
}
