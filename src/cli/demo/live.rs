//! Shows what happens, while it happens: one line per event, with the seconds since the first job was queued.

use super::story::{self, Story};
use super::{DemoError, Running};
use crate::api::{Job, JobsQuery, Page, Vm, VmsQuery};
use crate::cli::exit::CliError;
use crate::cli::human::{between, plural, span};
use crate::cli::out::{self, Look, Tone, harmless};
use crate::cli::status::short;
use chrono::{DateTime, Utc};
use fake_github::Status;
use std::collections::HashSet;
use std::time::Duration;
use tokio::time::{Instant, interval};

/// Between looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(150);
/// From the first job to the last vm's end. Without KVM a guest is some ten times slower.
const DEADLINE: Duration = Duration::from_secs(600);
/// The rows that are asked for: the demo has fewer.
const ROWS: u32 = 100;

/// Everything that was seen when all was over.
pub struct Seen {
    /// The jobs, oldest first.
    pub jobs: Vec<Job>,
    /// Every vm that there was.
    pub vms: Vec<Vm>,
}

/// Shows events until every job has ended and every vm is gone.
///
/// # Errors
/// When the daemon ends, or the deadline passes.
pub async fn watch(running: &mut Running<'_>, story: &Story, look: &Look) -> Result<Seen, DemoError> {
    let deadline = Instant::now() + DEADLINE;
    let mut board = Board { begun: Utc::now(), shown: HashSet::new(), look };
    let mut looks = interval(LOOK_INTERVAL);
    let mut cancelled = false;
    loop {
        looks.tick().await;
        running.alive()?;
        let seen = seen(running).await?;
        board.show(story, &seen)?;
        if !cancelled && seen.jobs.len() == story.jobs.len() {
            // GitHub told of all jobs; one of them is cancelled while its vm still boots.
            cancelled = true;
            running.stage.github.cancel(story.job("docs").handle);
            board.say(Tone::Plain, &story.job("docs").to_string(), "somebody cancels it")?;
        }
        let github = &running.stage.github;
        let ended =
            story.jobs.iter().all(|job| github.job(job.handle.id).is_some_and(|job| job.status == Status::Completed));
        let told = seen.jobs.len() == story.jobs.len() && seen.jobs.iter().all(is_over);
        if ended && told && seen.vms.iter().all(|vm| vm.times.gone_at.is_some()) {
            return Ok(seen);
        }
        if Instant::now() >= deadline {
            return Err(DemoError::TooSlow { seconds: DEADLINE.as_secs(), open: open(&seen) });
        }
    }
}

fn is_over(job: &Job) -> bool {
    matches!(job.state.as_str(), "done" | "cancelled" | "unserved" | "lost")
}

/// When we noticed a job's end: its vm began to end then. GitHub's clock counts whole seconds.
fn noticed_end(job: &Job, vms: &[Vm]) -> DateTime<Utc> {
    let vm = job.vm.as_ref().and_then(|own| vms.iter().find(|vm| vm.id == own.id));
    vm.and_then(|vm| vm.stopping_at).unwrap_or_else(Utc::now)
}

/// What is not over, in words.
fn open(seen: &Seen) -> String {
    let jobs = seen.jobs.iter().filter(|job| !is_over(job)).map(|job| format!("job {} {}", job.id, job.state));
    let vms =
        seen.vms.iter().filter(|vm| vm.times.gone_at.is_none()).map(|vm| format!("vm {} {}", short(&vm.id), vm.state));
    jobs.chain(vms).collect::<Vec<_>>().join(", ")
}

async fn seen(running: &Running<'_>) -> Result<Seen, DemoError> {
    let admin = &running.daemon.admin;
    let jobs = JobsQuery { limit: Some(ROWS), ..JobsQuery::default() };
    let vms = VmsQuery { all: true, limit: Some(ROWS), after: None };
    let mut jobs: Page<Job> = admin.get("/jobs", &jobs).await.map_err(DemoError::Ask)?;
    let vms: Result<Page<Vm>, CliError> = admin.get("/vms", &vms).await;
    jobs.items.reverse();
    Ok(Seen { jobs: jobs.items, vms: vms.map_err(DemoError::Ask)?.items })
}

/// What was shown already.
struct Board<'a> {
    begun: DateTime<Utc>,
    shown: HashSet<String>,
    look: &'a Look,
}

impl Board<'_> {
    fn show(&mut self, story: &Story, seen: &Seen) -> Result<(), DemoError> {
        let mut events: Vec<(DateTime<Utc>, Tone, String, String)> = Vec::new();
        for job in &seen.jobs {
            if let Some(known) = story.jobs.iter().find(|known| known.handle.id.to_string() == job.id) {
                events.extend(self.of_job(job, known, noticed_end(job, &seen.vms)));
            }
        }
        for vm in &seen.vms {
            events.extend(self.of_vm(vm));
        }
        events.sort_by_key(|(at, ..)| *at);
        for (at, tone, who, what) in events {
            self.line(at, tone, &who, &what)?;
        }
        Ok(())
    }

    /// The news of a job. What has no time of our clock is told with the moment at which it was seen.
    fn of_job(
        &mut self,
        job: &Job,
        known: &story::Job,
        end: DateTime<Utc>,
    ) -> Vec<(DateTime<Utc>, Tone, String, String)> {
        let who = known.to_string();
        let mut news = Vec::new();
        let mut tell = |at, tone, what: String| {
            if self.shown.insert(format!("job {} {what}", job.id)) {
                news.push((at, tone, who.clone(), what));
            }
        };
        tell(job.received_at, Tone::Plain, format!("queued: job {}", job.id));
        if job.state == "claimed" {
            tell(Utc::now(), Tone::Plain, "claimed: a vm is being made for it".to_owned());
        }
        if job.github.started_at.is_some()
            && let Some(vm) = &job.vm
        {
            tell(vm.times.serving_at.unwrap_or_else(Utc::now), Tone::Busy, format!("running in vm {}", short(&vm.id)));
        }
        if is_over(job) {
            let is_good = job.conclusion.as_deref() == Some("success");
            let is_meant = !is_good && known.ends_as_expected(job);
            let tone = if is_good { Tone::Good } else { Tone::Warn };
            let how = job.conclusion.as_deref().or(job.reason.as_deref()).unwrap_or(&job.state);
            let meant = if is_meant { ", as it is meant to" } else { "" };
            tell(end, tone, format!("ended: {}{meant}", harmless(how)));
        }
        news
    }

    fn of_vm(&mut self, vm: &Vm) -> Vec<(DateTime<Utc>, Tone, String, String)> {
        let who = format!("vm {}", short(&vm.id));
        let times = &vm.times;
        let mut news = Vec::new();
        let mut tell = |at: Option<DateTime<Utc>>, tone, what: String| {
            if let Some(at) = at
                && self.shown.insert(format!("{who} {what}"))
            {
                news.push((at, tone, who.clone(), what));
            }
        };
        let since = |from: Option<DateTime<Utc>>, to: Option<DateTime<Utc>>| match (from, to) {
            (Some(from), Some(to)) => span(between(from, to)),
            _ => String::new(),
        };
        tell(Some(times.planned_at), Tone::Dim, "planned".to_owned());
        tell(times.cloned_at, Tone::Dim, format!("cloned in {}", since(Some(times.planned_at), times.cloned_at)));
        tell(times.ready_at, Tone::Dim, format!("booted in {}", since(times.booted_at, times.ready_at)));
        tell(times.minted_at, Tone::Dim, "its runner is registered, for one job".to_owned());
        let why = vm.reason.as_deref().unwrap_or("ended").replace('_', " ");
        tell(times.gone_at, Tone::Dim, format!("destroyed in {}: {why}", since(vm.stopping_at, times.gone_at)));
        news
    }

    fn say(&self, tone: Tone, who: &str, what: &str) -> Result<(), DemoError> {
        self.line(Utc::now(), tone, who, what)
    }

    fn line(&self, at: DateTime<Utc>, tone: Tone, who: &str, what: &str) -> Result<(), DemoError> {
        const WHO: usize = 26;
        let after = format!("{:>6.1} s", between(self.begun, at).as_secs_f64());
        let after = self.look.paint(Tone::Dim, &after);
        let who = format!("{who:<WHO$}");
        let (who, what) = match tone {
            Tone::Dim => (self.look.paint(Tone::Dim, &who), self.look.paint(Tone::Dim, what)),
            tone => (who.as_str().into(), self.look.paint(tone, what)),
        };
        out::print(&format!("{after}  {who}  {what}\n")).map_err(|error| DemoError::Ask(error.into()))
    }
}

/// `2 vms at once, 5 jobs`: what was shown, in a line.
#[must_use]
pub fn summary(seen: &Seen) -> String {
    format!("{} and {}, one vm for each job that ran", plural(seen.jobs.len(), "job"), plural(seen.vms.len(), "vm"))
}
