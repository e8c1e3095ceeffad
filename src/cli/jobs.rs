//! `flyci jobs` and `flyci jobs why`.

use super::args::{JobStateArg, JobsArgs, JobsCommand};
use super::client::{Admin, segment};
use super::exit::{CliError, DONE};
use super::human::{ago, between, plural, span};
use super::out::{self, Look, Tone, harmless};
use super::status::short;
use super::suggest::commands;
use super::table::{Cell, Column, Table, toned};
use super::{more, print_json, print_value};
use crate::api::{EarlierVm, Job, JobsQuery, Page, Reason, Refusals, RefusalsQuery, Refused, Why, WhyQuery};
use chrono::{DateTime, Utc};
use clap::ValueEnum;
use unicode_width::UnicodeWidthStr;

/// The most rows of a page that the daemon gives.
const PAGE: u32 = 500;

/// Runs `flyci jobs …`.
pub async fn run(admin: &Admin, args: &JobsArgs, look: &Look) -> Result<u8, CliError> {
    if let Some(JobsCommand::Why { job, json }) = &args.command {
        return why(admin, job, *json, look).await;
    }
    let state = args.state.map(word);
    let since = args.since.map(|since| since.to_string());
    let query = |after, wanted: u32| JobsQuery {
        state: state.clone(),
        since: since.clone(),
        limit: Some(wanted.min(PAGE)),
        after,
    };
    if args.refused {
        return refused_jobs(admin, args, look).await;
    }
    let page: Page<Job> = admin.list("/jobs", args.limit, query).await?;
    if args.json {
        print_value(&page)?;
        return Ok(DONE);
    }
    let is_narrowed = args.state.is_some() || args.since.is_some();
    let text = match page.items.is_empty() {
        true if is_narrowed => "No such job.\n".to_owned(),
        true => "No job yet.\n".to_owned(),
        false => format!("{}{}", render(&page.items, Utc::now(), look), more(&page)),
    };
    let last = if is_narrowed { String::new() } else { not_taken(admin).await? };
    out::print(&format!("{text}{last}"))?;
    Ok(DONE)
}

/// The line that tells of jobs which are in no list, since they were not taken.
async fn not_taken(admin: &Admin) -> Result<String, CliError> {
    let query = RefusalsQuery { since: None, limit: Some(1) };
    let refusals: Refusals = admin.get("/refusals", &query).await?;
    Ok(match refusals.total {
        0 => String::new(),
        total => format!("  {} not taken in the last day: {}\n", was(total), commands("flyci jobs --refused")),
    })
}

/// `1 job was`, `2 jobs were`.
fn was(jobs: u64) -> String {
    format!("{} {}", plural(jobs, "job"), if jobs == 1 { "was" } else { "were" })
}

/// `flyci jobs --refused`
async fn refused_jobs(admin: &Admin, args: &JobsArgs, look: &Look) -> Result<u8, CliError> {
    let since = args.since.map(|since| since.to_string());
    let query = RefusalsQuery { since, limit: Some(args.limit.min(PAGE)) };
    let refusals: Refusals = admin.get("/refusals", &query).await?;
    if args.json {
        print_value(&refusals)?;
    } else {
        out::print(&refused_table(&refusals, Utc::now(), look))?;
    }
    Ok(DONE)
}

fn refused_table(refusals: &Refusals, now: DateTime<Utc>, look: &Look) -> String {
    if refusals.items.is_empty() {
        return "No job was refused.\n".to_owned();
    }
    let mut table = Table::new([
        Column::right("CAME"),
        Column::left("ACCOUNT").shrinks_to(10),
        Column::left("LABEL").shrinks_to(12),
        Column::left("NEAREST PROFILE").shrinks_to(12).leaves_at(1),
        Column::left("WHY"),
    ]);
    for refused in &refusals.items {
        table.row([
            ago(now, refused.refused_at).into(),
            refused.account.as_deref().unwrap_or("(erased)").into(),
            refused.label.as_deref().unwrap_or("").into(),
            refused.nearest_profile.as_deref().unwrap_or("").into(),
            toned(Tone::Warn, &refused.reason),
        ]);
    }
    let shown = u64::try_from(refusals.items.len()).unwrap_or(u64::MAX);
    let more = if shown < refusals.total {
        format!("  … and {} more: --limit N\n", refusals.total - shown)
    } else {
        String::new()
    };
    let end = commands("  what to do about one: flyci jobs why, with its address at GitHub\n");
    format!("{}{more}{}", table.render(look), look.paint(Tone::Dim, &end))
}

fn word(state: JobStateArg) -> String {
    state.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// The list.
#[must_use]
pub fn render(jobs: &[Job], now: DateTime<Utc>, look: &Look) -> String {
    let mut table = Table::new([
        Column::left("JOB"),
        Column::left("STATE"),
        Column::left("REPOSITORY").shrinks_to(14),
        Column::left("PROFILE").shrinks_to(12).leaves_at(3),
        Column::right("CAME").leaves_at(1),
        Column::right("WAITED"),
        Column::right("RAN"),
        Column::left("HOST").shrinks_to(10).leaves_at(2),
        Column::left("HOW").shrinks_to(10),
    ]);
    for job in jobs {
        table.row([
            job.id.as_str().into(),
            state(&job.state),
            job.repository.as_deref().unwrap_or("(erased)").into(),
            job.profile.as_str().into(),
            format!("{} ago", span(between(job.received_at, now))).into(),
            waited(job, now).into(),
            ran(job, now).into(),
            job.vm.as_ref().map_or("", |vm| vm.host.as_str()).into(),
            how(job),
        ]);
    }
    table.render(look)
}

fn state(state: &str) -> Cell {
    let tone = match state {
        "running" | "claimed" => Tone::Busy,
        "done" => Tone::Good,
        "unserved" | "lost" => Tone::Bad,
        "cancelled" => Tone::Dim,
        _ => Tone::Plain,
    };
    toned(tone, state)
}

/// From our hearing of it to its runner's start. GitHub's clock and ours differ, so never below 0.
fn waited(job: &Job, now: DateTime<Utc>) -> String {
    let end = match job.state.as_str() {
        "waiting" | "queued" | "claimed" => Some(now),
        _ => job.github.started_at,
    };
    end.map(|end| span(between(job.received_at, end))).unwrap_or_default()
}

fn ran(job: &Job, now: DateTime<Utc>) -> String {
    let Some(start) = job.github.started_at else { return String::new() };
    let end = if job.state == "running" { Some(now) } else { job.github.completed_at };
    end.map(|end| span(between(start, end))).unwrap_or_default()
}

/// How it ended, or why it waits.
fn how(job: &Job) -> Cell {
    match (job.conclusion.as_deref(), job.reason.as_deref()) {
        (Some("success"), _) => toned(Tone::Good, "success"),
        (Some("failure"), _) => toned(Tone::Bad, "failure"),
        (Some(conclusion), None) => conclusion.into(),
        (_, Some(reason)) => toned(Tone::Warn, reason),
        (None, None) => "".into(),
    }
}

async fn why(admin: &Admin, asked: &str, json: bool, look: &Look) -> Result<u8, CliError> {
    let target = Target::parse(asked)?;
    let path = format!("/jobs/{}/why", segment(&target.id));
    let body = admin.read(&path, &WhyQuery { account: target.account }).await?;
    if json {
        print_json(&body)?;
    } else {
        out::print(&explain(&super::read_json(&path, &body)?, Utc::now(), look))?;
    }
    Ok(DONE)
}

/// Which job is meant.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    id: String,
    account: Option<String>,
}

impl Target {
    /// A number, or `https://github.com/OWNER/REPO/actions/runs/RUN[/job/JOB]`, as a browser shows it.
    fn parse(asked: &str) -> Result<Self, CliError> {
        let wrong = || {
            CliError::Failed(format!(
                "`{}` is no job: give GitHub's number of it, or its address, like \
                 https://github.com/acme/app/actions/runs/91/job/4711",
                harmless(asked)
            ))
        };
        let number =
            |text: &str| !text.is_empty() && text.len() <= 20 && text.bytes().all(|byte| byte.is_ascii_digit());
        if number(asked) {
            return Ok(Self { id: asked.to_owned(), account: None });
        }
        let Some((_, address)) = asked.split_once("://") else { return Err(wrong()) };
        let address = address.split(['?', '#']).next().unwrap_or_default();
        let parts: Vec<&str> = address.split('/').filter(|part| !part.is_empty()).skip(1).collect();
        let id = match parts.as_slice() {
            [_, _, "actions", "runs", _, "job" | "jobs", job, ..] if number(job) => (*job).to_owned(),
            [_, _, "actions", "runs", run, ..] if number(run) => format!("run-{run}"),
            [_, _, "runs", job, ..] if number(job) => (*job).to_owned(),
            _ => return Err(wrong()),
        };
        Ok(Self { id, account: parts.first().map(|&account| account.to_owned()) })
    }
}

/// The whole story of a job.
#[must_use]
pub fn explain(why: &Why, now: DateTime<Utc>, look: &Look) -> String {
    let mut text = match (&why.job, &why.refusal) {
        (Some(job), _) => story(job, now, look),
        (None, Some(refusal)) => refused(&why.id, refusal, look),
        (None, None) => format!("{}\n", look.paint(Tone::Strong, &format!("job {}", harmless(&why.id)))),
    };
    text.extend(why.earlier_vms.iter().map(|vm| in_vain(vm, look)));
    text.extend(why.reasons.iter().map(|reason| because(reason, look)));
    text
}

/// A vm that the job waited for, and that ended without one.
fn in_vain(vm: &EarlierVm, look: &Look) -> String {
    let reason = vm.reason.as_deref().unwrap_or("unknown");
    let told = harmless(&format!("vm {} on {} ended without a job ({reason})", short(&vm.id), vm.host));
    let clock = look.clock(vm.ended_at);
    out::hanging(&format!("  {}  ", look.paint(Tone::Dim, &clock)), clock.len() + 4, &told, look)
}

fn because(reason: &Reason, look: &Look) -> String {
    let word = harmless(&reason.reason);
    let begin = format!("  {}  ", look.paint(Tone::Warn, &word));
    let mut text = out::hanging(&begin, word.width() + 4, &harmless(&reason.evidence), look);
    if let Some(fix) = &reason.fix {
        let begin = format!("  {} ", look.paint(Tone::Dim, "do:"));
        text.push_str(&out::hanging(&begin, 6, &commands(&harmless(fix)), look));
    }
    text
}

fn refused(id: &str, refusal: &Refused, look: &Look) -> String {
    let title = format!("job {} was not taken", harmless(id));
    let account = refusal.account.as_deref().unwrap_or("(erased)");
    let mut detail = format!("of {account}, refused at {}", look.minute(refusal.refused_at));
    if let Some(label) = &refusal.label {
        detail.push_str(&format!(", label {label}"));
    }
    if let Some(profile) = refusal.nearest_profile.as_ref().filter(|profile| refusal.label.as_ref() != Some(*profile)) {
        detail.push_str(&format!(" (the nearest profile is {profile})"));
    }
    let detail = out::hanging("  ", 2, &harmless(&detail), look);
    format!("{} · {}\n{detail}", look.paint(Tone::Strong, &title), harmless(&refusal.reason))
}

fn story(job: &Job, now: DateTime<Utc>, look: &Look) -> String {
    let title = format!("job {}", job.id);
    let mut text = format!("{} · {} · {}", look.paint(Tone::Strong, &title), harmless(&job.profile), job.state);
    let waits = waited(job, now);
    match ran(job, now) {
        ran if !ran.is_empty() => text.push_str(&format!(" · waited {waits}, ran {ran}")),
        _ if !waits.is_empty() => text.push_str(&format!(" · waits {waits}")),
        _ => {}
    }
    if let Some(conclusion) = &job.conclusion {
        text.push_str(&format!(" · {}", harmless(conclusion)));
    }
    let repository = job.repository.as_deref().unwrap_or("(erased)");
    let initiator = job.initiator.as_deref().unwrap_or("(erased)");
    let whose = format!("{repository}, started by {initiator}, run {} attempt {}", job.run_id, job.run_attempt);
    text.push_str(&format!("\n{}", look.paint(Tone::Dim, &out::hanging("  ", 2, &harmless(&whose), look))));
    for (at, what) in steps(job) {
        text.push_str(&format!("  {}  {}\n", look.paint(Tone::Dim, &look.clock(at)), harmless(&what)));
    }
    text
}

/// What happened when, in order. GitHub's times are whole seconds of another clock.
fn steps(job: &Job) -> Vec<(DateTime<Utc>, String)> {
    let mut steps = vec![(job.received_at, "known to us".to_owned())];
    let mut add = |at: Option<DateTime<Utc>>, what: String| steps.extend(at.map(|at| (at, what)));
    add(job.github.created_at, "queued (GitHub's clock)".to_owned());
    add(job.github.started_at, "running (GitHub's clock)".to_owned());
    add(job.github.completed_at, "completed (GitHub's clock)".to_owned());
    if let Some(vm) = &job.vm {
        let times = &vm.times;
        add(Some(times.planned_at), format!("vm {} planned on {}", short(&vm.id), vm.host));
        add(times.cloned_at, format!("cloned from {}", short(&vm.image)));
        add(times.booted_at, "its process started".to_owned());
        add(times.ready_at, "its agent answered".to_owned());
        add(times.bound_at, "bound to this class of jobs".to_owned());
        add(times.minted_at, "runner registered at GitHub".to_owned());
        add(times.delivering_at, "JIT config about to be delivered".to_owned());
        add(times.serving_at, "runner started".to_owned());
        add(times.gone_at, "vm destroyed, nothing of it left".to_owned());
    }
    steps.sort_by_key(|(at, _)| *at);
    steps
}

#[cfg(test)]
mod tests {
    use super::super::out::tests::look;
    use super::super::samples;
    use super::*;

    fn jobs() -> Vec<Job> {
        let running = Job {
            state: "running".into(),
            github: crate::api::JobTimes { started_at: Some(samples::before(70.5)), ..samples::ended_job().github },
            conclusion: None,
            ..samples::ended_job()
        };
        let waits = Job { reason: Some("no_capacity".into()), ..samples::job("4713", "queued") };
        vec![waits, running, samples::ended_job()]
    }

    #[test]
    fn the_list_fits_wide_and_narrow_terminals() {
        insta::assert_snapshot!("jobs_120", render(&jobs(), samples::now(), &look(120)));
        insta::assert_snapshot!("jobs_80", render(&jobs(), samples::now(), &look(80)));
    }

    #[test]
    fn a_waiting_job_says_why_and_what_to_do() {
        let reason = Reason {
            reason: "no_capacity".into(),
            evidence: "9 of 40 hosts could run it: 8 are busy, 1 is quarantined (mini-31)".into(),
            fix: Some("flyci hosts".into()),
        };
        let why = Why {
            id: "4713".into(),
            job: jobs().first().cloned(),
            refusal: None,
            reasons: vec![reason],
            earlier_vms: vec![],
        };
        insta::assert_snapshot!("why_waiting", explain(&why, samples::now(), &look(100)));
    }

    #[test]
    fn refused_jobs_are_listed_with_why() {
        let refused = |account: Option<&str>, label: Option<&str>, reason: &str| Refused {
            reason: reason.into(),
            account: account.map(Into::into),
            nearest_profile: label.map(|_| "flyci-macos-large".into()),
            label: label.map(Into::into),
            refused_at: samples::before(4_000.0),
        };
        let items = vec![
            refused(Some("acme"), Some("flyci-macos-lrage"), "label_unknown"),
            refused(None, None, "tenant_not_approved"),
        ];
        let refusals = Refusals { items, total: 7 };
        insta::assert_snapshot!("refused_80", refused_table(&refusals, samples::now(), &look(80)));
        assert_eq!([1, 2].map(was), ["1 job was", "2 jobs were"]);
    }

    #[test]
    fn a_job_that_was_tried_in_vain_tells_of_each_vm() {
        let vm = |reason: &str, seconds| EarlierVm {
            id: "3f0c9a4e-1111-4222-8333-444455556666".into(),
            host: "mini-07".into(),
            reason: Some(reason.into()),
            ended_at: samples::before(seconds),
        };
        let why = Why {
            id: "4713".into(),
            job: jobs().first().cloned(),
            refusal: None,
            reasons: Vec::new(),
            earlier_vms: vec![vm("idle", 90.0), vm("runner_exited", 30.0)],
        };
        insta::assert_snapshot!("why_tried", explain(&why, samples::now(), &look(60)));
    }

    #[test]
    fn an_ended_job_tells_its_whole_way() {
        let why = Why {
            id: "4711".into(),
            job: Some(samples::ended_job()),
            refusal: None,
            reasons: vec![],
            earlier_vms: vec![],
        };
        insta::assert_snapshot!("why_ended", explain(&why, samples::now(), &look(100)));
    }

    #[test]
    fn a_refused_job_has_an_answer_too() {
        let refusal = Refused {
            reason: "label_unknown".into(),
            account: Some("acme".into()),
            nearest_profile: Some("flyci-macos-large".into()),
            label: Some("flyci-macos-lrage".into()),
            refused_at: samples::before(60.0),
        };
        let why = Why { id: "9".into(), job: None, refusal: Some(refusal), reasons: vec![], earlier_vms: vec![] };
        insta::assert_snapshot!("why_refused", explain(&why, samples::now(), &look(100)));
    }

    #[test]
    fn a_pasted_address_is_understood() {
        let target = |id: &str| Ok(Target { id: id.into(), account: Some("acme".into()) }.id);
        for (asked, id) in [
            ("https://github.com/acme/app/actions/runs/91/job/4711", "4711"),
            ("https://github.com/acme/app/actions/runs/91/job/4711?pr=3#step:2:1", "4711"),
            ("https://ghe.example.com/acme/app/actions/runs/91", "run-91"),
            ("https://github.com/acme/app/actions/runs/91/attempts/2", "run-91"),
            ("https://github.com/acme/app/runs/4711", "4711"),
        ] {
            let parsed = Target::parse(asked).map(|target| {
                assert_eq!(target.account.as_deref(), Some("acme"), "{asked}");
                target.id
            });
            assert_eq!(parsed.map_err(|error| error.to_string()), target(id), "{asked}");
        }
        assert_eq!(Target::parse("4711").map(|target| target.account).ok(), Some(None));
        for asked in ["", "acme/app", "https://github.com/acme/app", "https://github.com/acme/app/actions/runs/x"] {
            assert!(Target::parse(asked).is_err(), "{asked}");
        }
    }
}
