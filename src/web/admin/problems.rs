//! What is wrong, each with what shows it and what to do next. Computed from the tables when asked.

use super::{AdminState, runner_age};
use crate::api::{Host, Trouble};
use crate::domain::counted::{are, plural, times};
use crate::domain::reason::Waiting;
use crate::store::delivery_log::Health;
use crate::store::image_pins;
use crate::store::tenants::{self, Admission};
use crate::store::views;
use crate::web::failure::Failure;
use chrono::{DateTime, Utc};
use std::fmt::Display;

/// So many of one kind are listed; more of the same says nothing new.
const EACH: i64 = 5;
/// GitHub's log is read at least each minute: later than this it is not, in seconds.
const UNREAD_AFTER_S: i64 = 600;
/// An update that was given up is told for so long.
const TOLD_FOR: chrono::Duration = chrono::Duration::hours(24);
/// A vm that is being destroyed for longer is stuck, in seconds.
const STUCK_AFTER_S: f64 = 120.0;

fn trouble(what: impl Display, evidence: impl Display, fix: impl Display) -> Trouble {
    Trouble { what: what.to_string(), evidence: evidence.to_string(), fix: fix.to_string() }
}

/// Everything that is wrong, worst first.
pub async fn read(state: &AdminState, hosts: &[Host], log: &Health) -> Result<Vec<Trouble>, Failure> {
    let mut all = Vec::new();
    all.extend(readiness(state.readiness.word()));
    all.extend(state.troubles.all());
    all.extend(paused(hosts));
    all.extend(silent(hosts));
    all.extend(runner_age::troubles(hosts, chrono::Utc::now()));
    all.extend(quarantined(hosts));
    all.extend(pulls(hosts));
    all.extend(rejected(state).await?);
    all.extend(runners(state).await?);
    all.extend(stuck(state).await?);
    all.extend(missed(log, &state.about.intake, chrono::Utc::now()));
    all.extend(no_host(state, hosts));
    all.extend(differing(hosts));
    all.extend(deferred(state).await?);
    all.extend(unknown_labels(state).await?);
    all.extend(deliveries(state).await?);
    all.extend(pending(state).await?);
    Ok(all)
}

fn readiness(word: &str) -> Option<Trouble> {
    match word {
        "database" => Some(trouble(
            "the database does not answer",
            "deliveries are refused, and GitHub's log keeps them",
            "look at the database's log; deliveries are fetched again once it answers",
        )),
        _ => None,
    }
}

/// No host takes work: a drain is the operator's own doing, and easily forgotten.
fn paused(hosts: &[Host]) -> Option<Trouble> {
    let first = hosts.first()?;
    if !hosts.iter().all(|host| host.state.starts_with("drain")) {
        return None;
    }
    let since = first.drained_at.map_or_else(String::new, |at| format!(" since {}", at.format("%F %H:%M UTC")));
    let why = first.drain_reason.as_deref().map_or_else(String::new, |why| format!(": {why}"));
    let by = first.drained_by.as_deref().map_or_else(String::new, |by| format!(" by {by}"));
    let what =
        if hosts.len() == 1 { format!("host {} takes no work", first.name) } else { "no host takes work".to_owned() };
    Some(trouble(what, format!("drained{since}{by}{why}"), "flyci resume --all, when the machines may work again"))
}

fn silent(hosts: &[Host]) -> impl Iterator<Item = Trouble> {
    hosts.iter().filter(|host| host.state == "silent").map(|host| {
        let evidence = format!("not heard of for {:.0} s; it has {}", host.silent_for_s, plural(host.vms, "vm"));
        trouble(format!("host {} is silent", host.name), evidence, format!("start flyci on {}", host.name))
    })
}

fn quarantined(hosts: &[Host]) -> impl Iterator<Item = Trouble> {
    hosts.iter().flat_map(|host| &host.failing_images).filter_map(|failing| {
        let until = failing.quarantined_until?;
        let last = failing.last_failure.as_deref().unwrap_or("unknown");
        Some(trouble(
            format!("image {} does not boot on {}", failing.image, failing.host),
            format!(
                "{} in a row ({last}); tried again at {}",
                plural(failing.failures, "failure"),
                until.format("%H:%M:%S UTC")
            ),
            if last == "runner_too_old" {
                "give hosts a newer runner ([runner] version), or update the image".to_owned()
            } else {
                format!("look for `the vm did not come up` in the log of {}", failing.host)
            },
        ))
    })
}

/// Images that do not come.
fn pulls(hosts: &[Host]) -> impl Iterator<Item = Trouble> + '_ {
    hosts.iter().flat_map(|host| host.pulls.iter().map(move |pull| (host, pull))).filter_map(|(host, pull)| {
        let why = pull.trouble.as_deref()?;
        Some(trouble(
            format!("{} could not fetch {}", host.name, pull.reference),
            why,
            "mend what it says; flyci tries again by itself, at the latest in ten minutes",
        ))
    })
}

/// Updates of images that were given up lately.
async fn rejected(state: &AdminState) -> Result<Vec<Trouble>, Failure> {
    let since = Utc::now() - TOLD_FOR;
    let given_up =
        image_pins::all(&state.pool).await?.into_iter().filter_map(|pin| Some((pin.reference, pin.rejected?)));
    let told = given_up.filter(|(_, rejected)| rejected.at > since).map(|(reference, rejected)| {
        trouble(
            format!("the update of {reference} was given up"),
            format!("{}: {}", rejected.candidate, rejected.why),
            "no job was moved to it; flyci image update tries the tag's newest image again",
        )
    });
    Ok(told.collect())
}

async fn runners(state: &AdminState) -> Result<Vec<Trouble>, Failure> {
    let rows = views::runner_trouble(&state.pool).await?;
    let told = |row: views::RunnerTroubleRow| {
        let (what, fix) = match Waiting::parse(&row.trouble) {
            Some(Waiting::MintingRateLimited) => {
                ("GitHub limits our calls", "wait; if it lasts, other programs use this App's limit")
            }
            Some(Waiting::OrgForbidsRepoRunners) => (
                "an organisation does not allow runners on its repositories",
                "its owner allows them (Settings, Actions, Runners), or set [github] runner_scope = \"organization-group\"",
            ),
            Some(Waiting::TenantNotApproved) => {
                ("an installation was suspended while runners were wanted", "flyci tenants shows which")
            }
            _ => ("GitHub does not make runners", "look for `mint` in the daemon's log"),
        };
        let evidence = format!(
            "{} waiting since {} ({})",
            are(row.runners, "runner"),
            row.since.format("%H:%M:%S UTC"),
            row.trouble
        );
        trouble(what, evidence, fix)
    };
    Ok(rows.into_iter().map(told).collect())
}

async fn stuck(state: &AdminState) -> Result<Vec<Trouble>, Failure> {
    let rows = views::stuck_vms(&state.pool, STUCK_AFTER_S, EACH).await?;
    let told = |row: views::StuckRow| {
        trouble(
            format!("vm {} on {} is not gone", row.id, row.host),
            format!("its destruction began {:.0} s ago; it keeps its slot", row.for_s),
            format!("look for the vm's id in the log of {}", row.host),
        )
    };
    Ok(rows.into_iter().map(told).collect())
}

/// Profiles that no host can ever run.
fn no_host<'a>(state: &'a AdminState, hosts: &'a [Host]) -> impl Iterator<Item = Trouble> + 'a {
    let fits = |profile: &crate::domain::profile::Profile, host: &Host| match &host.can_boot {
        Some(labels) => labels.contains(&profile.label),
        None => {
            host.memory_bytes >= profile.memory.0
                && profile.hardware.as_ref().is_none_or(|need| need.is_met_by(&host.hardware))
        }
    };
    // Before the first host has come, every profile would be told.
    let profiles = if hosts.is_empty() { &[][..] } else { &state.about.profiles[..] };
    profiles.iter().filter(move |profile| !hosts.iter().any(|host| fits(profile, host))).map(|profile| {
        let need = profile.hardware.as_ref().map_or_else(String::new, |need| format!(" and hardware {need}"));
        trouble(
            format!("no host can run `{}`", profile.label),
            format!("it needs {} of memory{need}, and the image `{}`", profile.memory, profile.image),
            "join a host that can, or change the profile; flyci image list on a host shows its images",
        )
    })
}

/// Hosts that would make another vm of a profile than the gateway promises.
fn differing(hosts: &[Host]) -> impl Iterator<Item = Trouble> + '_ {
    hosts.iter().filter(|host| !host.differs.is_empty()).map(|host| {
        trouble(
            format!("{} has other profiles than the gateway", host.name),
            format!("its configuration differs in {}", host.differs.join(", ")),
            format!("make [[profiles]] the same on {} as on the gateway, and start flyci there again", host.name),
        )
    })
}

/// GitHub's deliveries do not come, or its log of them is not read.
fn missed(log: &Health, intake: &str, now: DateTime<Utc>) -> Option<Trouble> {
    let unread_s = log.read_at.map_or(0, |at| (now - at).num_seconds());
    if unread_s > UNREAD_AFTER_S {
        return Some(trouble(
            "GitHub's log of deliveries is not read",
            format!("the last time was {unread_s} s ago"),
            "look for `redeliver` or `pull` in the gateways' logs",
        ));
    }
    // Where deliveries are pulled, GitHub's own all fail.
    let failed_last = log.failed_at.is_some_and(|failed| log.good_at.is_none_or(|good| failed > good));
    (intake == "webhook" && log.missed > 0 && (failed_last || log.given_up > 0)).then(|| {
        let good = log.good_at.map_or_else(|| "never".to_owned(), |at| at.format("%Y-%m-%d %H:%M:%S UTC").to_string());
        trouble(
            "GitHub's deliveries do not arrive",
            format!("{} failed and have not come yet, {} of them for good; the last good one: {good}", log.missed, log.given_up),
            "is the webhook's URL in the App's settings this gateway's, its certificate valid, its port open? GitHub shows why under Advanced, Recent deliveries; missing jobs are found meanwhile, only later",
        )
    })
}

async fn deferred(state: &AdminState) -> Result<Vec<Trouble>, Failure> {
    let rows = views::deferred(&state.pool).await?;
    let told = |row: views::DeferredRow| {
        trouble(
            format!("{} of `{}` tried slowly", are(row.jobs, "job"), row.profile),
            format!("tried up to {} without success; [limits] attempts says from when on", times(row.attempts)),
            "flyci vms --all shows why their vms ended; flyci jobs why ID tells of one",
        )
    };
    Ok(rows.into_iter().map(told).collect())
}

async fn unknown_labels(state: &AdminState) -> Result<Vec<Trouble>, Failure> {
    let rows = views::unknown_labels(&state.pool, EACH).await?;
    let told = |row: views::LabelRow| {
        let fix = match row.nearest_profile {
            Some(profile) => format!("did they mean `{profile}`? Tell them, or add a profile"),
            None => "add a profile with this label, or tell who wrote it".to_owned(),
        };
        trouble(
            format!("no profile serves `{}`", row.label),
            format!("{} asked for it in 24 h", plural(row.jobs, "job")),
            fix,
        )
    };
    Ok(rows.into_iter().map(told).collect())
}

async fn deliveries(state: &AdminState) -> Result<Option<Trouble>, Failure> {
    let unread = views::unread_deliveries(&state.pool).await?;
    Ok((unread > 0).then(|| {
        trouble(
            format!(
                "{} not understood",
                if unread == 1 { "1 delivery was".to_owned() } else { format!("{unread} deliveries were") }
            ),
            "of the last 24 h; they were signed by GitHub",
            "flyci deliveries --failed shows why; a later flyci may know them",
        )
    }))
}

async fn pending(state: &AdminState) -> Result<Option<Trouble>, Failure> {
    let waits =
        |tenant: &tenants::Tenant| tenant.admission == Admission::Pending.as_str() && tenant.uninstalled_at.is_none();
    let pending = tenants::all(&state.pool).await?.iter().filter(|tenant| waits(tenant)).count();
    Ok((pending > 0).then(|| {
        trouble(
            format!(
                "{} your approval",
                if pending == 1 { "1 account waits for".to_owned() } else { format!("{pending} accounts wait for") }
            ),
            "jobs are refused until then",
            "flyci tenants, then flyci tenants approve ACCOUNT",
        )
    }))
}
