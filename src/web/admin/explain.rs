//! Why a job waits, or ended so: from the tables to a word of the closed list, with its evidence.
//!
//! Pure once the [`Facts`] are read. The first reason decides; what follows is true as well.

use super::hosts::SILENT_AFTER_S;
use super::{About, AdminState};
use crate::api::Reason;
use crate::domain::counted::{plural, times};
use crate::domain::ids::TenantId;
use crate::domain::job::JobState;
use crate::domain::profile::Profile;
use crate::domain::reason::{JobEnd, Waiting};
use crate::domain::vm::VmState;
use crate::images::registry::Reference;
use crate::store::hosts::{self, Host, ImageHealth};
use crate::store::image_pulls::{self, PullRow};
use crate::store::refusals::Refusal;
use crate::store::views::{self, JobRow, JobVmRow, Load, TenantLoad};
use crate::troubles::{self, Troubles};
use crate::web::failure::Failure;
use chrono::{DateTime, Utc};
use std::sync::Arc;

/// What the fleet is at a moment.
pub struct Facts {
    /// The database's clock.
    pub now: DateTime<Utc>,
    /// What the daemon is, and offers.
    pub about: Arc<About>,
    /// The digest of the image that each profile's newest vm was made of.
    pub images: Vec<(String, String)>,
    /// The machines.
    pub hosts: Vec<Host>,
    /// What they carry.
    pub load: Vec<Load>,
    /// The tenants with queued jobs.
    pub tenants: Vec<TenantLoad>,
    /// Images that failed on hosts.
    pub failing: Vec<ImageHealth>,
    /// Images whose runner GitHub refuses.
    pub too_old: Vec<String>,
    /// What hosts fetch.
    pub pulls: Vec<PullRow>,
    /// What this process found wrong.
    pub troubles: Arc<Troubles>,
    /// Queued jobs of the profile that are older than the one asked about, and all of them.
    pub place: Option<(i64, i64)>,
}

impl Facts {
    /// Reads them.
    pub async fn read(state: &AdminState) -> Result<Self, Failure> {
        let (load, tenants) = views::load(&state.pool).await?;
        Ok(Self {
            now: views::now(&state.pool).await?,
            about: Arc::clone(&state.about),
            images: views::newest_images(&state.pool).await?,
            hosts: hosts::all(&state.pool).await?,
            load,
            tenants,
            failing: hosts::failing_images(&state.pool).await?,
            too_old: views::too_old_images(&state.pool).await?,
            pulls: image_pulls::all(&state.pool).await?,
            troubles: Arc::clone(&state.troubles),
            place: None,
        })
    }

    /// Reads them, with the place in the queue of one job.
    pub async fn of(state: &AdminState, job: &JobRow) -> Result<Self, Failure> {
        let mut facts = Self::read(state).await?;
        if let Some(queued_at) = job.queued_at {
            facts.place = Some(views::place_in_queue(&state.pool, &job.profile, queued_at).await?);
        }
        Ok(facts)
    }

    fn tenant(&self, id: TenantId) -> Option<&TenantLoad> {
        self.tenants.iter().find(|tenant| tenant.tenant == id)
    }

    /// The hosts that can run the profile at all.
    fn able<'a>(&'a self, profile: &'a Profile) -> impl Iterator<Item = &'a Host> {
        self.hosts.iter().filter(move |host| {
            if let Some(labels) = &host.can_boot {
                return labels.contains(&profile.label) && host.slots > 0;
            }
            let memory = u64::try_from(host.memory).unwrap_or(0);
            profile.hardware.as_ref().is_none_or(|need| need.is_met_by(&host.hardware))
                && memory >= profile.memory.0
                && host.slots > 0
        })
    }

    /// Whether an image, named by its digest, is the profile's, which may name it otherwise.
    fn is_image_of(&self, image: &str, profile: &Profile) -> bool {
        let newest = self.images.iter().any(|(label, newest)| *label == profile.label && newest == image);
        newest || profile.image.ends_with(image)
    }

    /// The failure for which the profile's image is not tried on a host now.
    fn quarantine(&self, host: &str, profile: &Profile) -> Option<&ImageHealth> {
        self.failing.iter().find(|health| {
            health.host == host
                && health.quarantined_until.is_some_and(|end| end > self.now)
                && self.is_image_of(&health.image, profile)
        })
    }

    /// Whether one more vm of the profile fits beside what a host carries.
    fn has_room(&self, host: &Host, profile: &Profile) -> bool {
        let used = self.load.iter().find(|load| load.host == host.name).map_or(0, |load| load.memory);
        let free = u64::try_from(host.memory - used).unwrap_or(0);
        host.vms < i64::from(host.slots) && free >= profile.memory.0
    }
}

fn because(word: Waiting, evidence: impl Into<String>, fix: Option<String>) -> Reason {
    Reason { reason: word.as_str().to_owned(), evidence: evidence.into(), fix }
}

/// The reasons of a job's state, the deciding one first.
pub fn reasons(job: &JobRow, facts: &Facts) -> Vec<Reason> {
    match JobState::decode(&job.state, job.reason.as_deref()) {
        JobState::Waiting => vec![because(
            Waiting::GithubApproval,
            "GitHub holds it back: an environment's rule wants an approval, or a wait timer runs",
            Some("approve it on the run's page at GitHub".to_owned()),
        )],
        JobState::Queued => queued(job, facts),
        JobState::Running => vec![running(job)],
        JobState::Done | JobState::Cancelled => vec![ended(job)],
        JobState::Unserved(end) | JobState::Lost(end) => vec![given_up(end, job)],
        JobState::Unknown => Vec::new(),
    }
}

fn queued(job: &JobRow, facts: &Facts) -> Vec<Reason> {
    let mut reasons: Vec<Reason> =
        [not_served(job, facts), in_doubt(job), deferred(job, facts)].into_iter().flatten().collect();
    if let Some(vm) = &job.vm {
        reasons.push(coming(vm));
        return reasons;
    }
    let Some(profile) = facts.about.profiles.iter().find(|profile| profile.label == job.profile) else {
        reasons.push(no_profile(&job.profile));
        return reasons;
    };
    reasons.extend(at_limit(job, facts));
    reasons.extend(too_old(profile, facts));
    reasons.push(supply(job, profile, facts));
    reasons
}

fn not_served(job: &JobRow, facts: &Facts) -> Option<Reason> {
    let served = facts.tenant(job.tenant).is_none_or(|tenant| tenant.served);
    (!served).then(|| {
        because(
            Waiting::TenantNotApproved,
            "its account is not approved, or suspended, or has removed the App",
            Some("flyci tenants, then flyci tenants approve ACCOUNT".to_owned()),
        )
    })
}

fn in_doubt(job: &JobRow) -> Option<Reason> {
    let since = job.verify_since?;
    let evidence = format!("a runner of its kind ended at {} and may have had it: GitHub is being asked", short(since));
    Some(because(Waiting::GithubDelay, evidence, None))
}

fn deferred(job: &JobRow, facts: &Facts) -> Option<Reason> {
    let until = job.not_before.filter(|until| *until > facts.now)?;
    let evidence = format!("it was tried {} without success; the next try is at {}", times(job.attempts), short(until));
    Some(because(Waiting::DeferredAfterFailures, evidence, Some("flyci vms --all shows why its vms ended".to_owned())))
}

/// A vm is being made for it, or waits with it.
fn coming(vm: &JobVmRow) -> Reason {
    if let Some(trouble) = vm.trouble.as_deref().and_then(Waiting::parse) {
        let (evidence, fix) = match trouble {
            Waiting::OrgForbidsRepoRunners => (
                "GitHub refused its runner: the organisation does not allow runners on repositories",
                "an owner of the organisation allows them: Settings, Actions, Runners, Repository runners; or set [github] runner_scope = \"organization-group\"",
            ),
            Waiting::MintingRateLimited => (
                "GitHub limits our calls: its runner is made when the limit allows it",
                "wait; flyci status shows since when",
            ),
            _ => ("GitHub did not make its runner", "flyci status shows what else is wrong"),
        };
        return because(trouble, format!("vm {} on {} is ready. {evidence}", vm.id, vm.host), Some(fix.to_owned()));
    }
    match VmState::decode(&vm.state, vm.reason.as_deref()) {
        VmState::Serving | VmState::Unreachable => because(
            Waiting::GithubDelay,
            format!("runner of vm {} on {} waits for it; GitHub has not handed it out", vm.id, vm.host),
            Some("githubstatus.com shows whether Actions is slow".to_owned()),
        ),
        state => because(Waiting::BeingServed, format!("vm {} on {} is {}", vm.id, vm.host, state.as_str()), None),
    }
}

fn no_profile(label: &str) -> Reason {
    because(
        Waiting::LabelUnknown,
        format!("the profile `{label}` is not on offer any more"),
        Some("put it back under [[profiles]], or change the job's runs-on".to_owned()),
    )
}

fn at_limit(job: &JobRow, facts: &Facts) -> Option<Reason> {
    let tenant = facts.tenant(job.tenant)?;
    let limit = tenant.vm_limit.map_or_else(|| i64::from(facts.about.vms_per_tenant), i64::from);
    (tenant.vms >= limit).then(|| {
        let evidence = format!("its account has {}, and may have {limit}", plural(tenant.vms, "vm"));
        because(Waiting::TenantLimit, evidence, Some("flyci tenants limit ACCOUNT N".to_owned()))
    })
}

fn too_old(profile: &Profile, facts: &Facts) -> Option<Reason> {
    facts.too_old.iter().any(|image| facts.is_image_of(image, profile)).then(|| {
        because(
            Waiting::RunnerTooOld,
            format!("GitHub refused the runner of the image {} for its age", profile.image),
            Some("give hosts a newer runner ([runner] version), or update the image".to_owned()),
        )
    })
}

/// What the hosts say.
fn supply(job: &JobRow, profile: &Profile, facts: &Facts) -> Reason {
    let fit: Vec<&Host> = facts.able(profile).collect();
    // What this process's host lacks is told in full, where no other host has it.
    let missing = facts.troubles.get(&troubles::missing_image(&profile.label));
    if let Some(missing) = missing.filter(|_| fit.len() <= 1 && facts.hosts.len() == 1) {
        return because(
            Waiting::NoHostForProfile,
            format!("{}: {}", missing.what, missing.evidence),
            Some(missing.fix),
        );
    }
    if fit.is_empty() {
        return pulling(profile, facts).unwrap_or_else(|| no_host(profile, facts));
    }
    let able: Vec<&Host> = fit.iter().copied().filter(|host| host.serves(job.tenant)).collect();
    if able.is_empty() {
        let evidence = format!("every host that could run it is dedicated to other accounts ({})", names(&fit));
        let fix = "add its account to [host] dedicated_to of one, or join another host";
        return because(Waiting::NoHostForProfile, evidence, Some(fix.to_owned()));
    }
    let working: Vec<&Host> = able.iter().copied().filter(|host| !host.draining).collect();
    if working.is_empty() {
        let why =
            able.iter().find_map(|host| host.drain_reason.as_deref()).map_or(String::new(), |why| format!(": {why}"));
        let evidence = format!("every host that could run it drains ({}){why}", names(&able));
        return because(Waiting::PausedByOperator, evidence, Some("flyci resume --all".to_owned()));
    }
    let sound: Vec<&Host> =
        working.iter().copied().filter(|host| facts.quarantine(&host.name, profile).is_none()).collect();
    if sound.is_empty() {
        return quarantined(&working, profile, facts);
    }
    let heard: Vec<&Host> = sound.iter().copied().filter(|host| host.silent_for_s <= SILENT_AFTER_S).collect();
    if heard.iter().any(|host| facts.has_room(host, profile)) {
        return because(
            Waiting::BeingServed,
            format!("there is room on {}: a vm is planned next", names(&heard)),
            None,
        );
    }
    full(job, &able, &heard, facts)
}

/// The image comes to hosts that can run the profile then.
fn pulling(profile: &Profile, facts: &Facts) -> Option<Reason> {
    let reference = profile.image.parse::<Reference>().ok()?.to_string();
    let pulls: Vec<&PullRow> = facts.pulls.iter().filter(|pull| pull.reference == reference).collect();
    // The furthest one says how long it takes.
    let best = pulls.iter().filter(|pull| pull.trouble.is_none()).max_by_key(|pull| pull.done);
    let (pull, fix) = match best {
        Some(pull) => (pull, None),
        None => (pulls.first()?, Some("mend what it says; flyci tries again by itself, at the latest in ten minutes")),
    };
    let evidence = format!("{} {}", pull.host, pull_progress(pull));
    Some(because(Waiting::ImagePulling, evidence, fix.map(str::to_owned)))
}

/// How far a pull is: `fetches ghcr.io/…: 43 % of 27 GB, 4 min left`.
fn pull_progress(pull: &PullRow) -> String {
    if let Some(trouble) = &pull.trouble {
        return format!("could not fetch {}: {trouble}", pull.reference);
    }
    if pull.total == 0 && pull.replaces {
        return format!("makes room for {}: vms of the image before come to their end", pull.reference);
    }
    if pull.total == 0 {
        return format!("begins to fetch {}", pull.reference);
    }
    let percent = pull.done.saturating_mul(100) / pull.total;
    let seconds = (pull.updated_at - pull.begun_at).num_seconds();
    let left = (pull.total - pull.done).max(0).saturating_mul(seconds).checked_div(pull.done).unwrap_or(0);
    let left = if left == 0 { String::new() } else { format!(", {} min left", left / 60 + 1) };
    let gigabytes = pull.total.unsigned_abs().div_ceil(1_000_000_000);
    format!("fetches {}: {percent} % of {gigabytes} GB{left}", pull.reference)
}

fn no_host(profile: &Profile, facts: &Facts) -> Reason {
    let need = profile.hardware.as_ref().map_or_else(String::new, |need| format!("{need} and "));
    let evidence = format!(
        "`{}` needs {need}{} of memory and the image `{}`; of {} none has that{}",
        profile.label,
        profile.memory,
        profile.image,
        plural(facts.hosts.len(), "host"),
        differing(profile, facts)
    );
    because(
        Waiting::NoHostForProfile,
        evidence,
        Some("join a host that can, give one the image (flyci image build there), or change the profile".to_owned()),
    )
}

/// Hosts that would make another vm of the profile than the gateway promises.
fn differing(profile: &Profile, facts: &Facts) -> String {
    let differs = |host: &&Host| host.differs.as_ref().is_some_and(|labels| labels.contains(&profile.label));
    let hosts: Vec<&Host> = facts.hosts.iter().filter(differs).collect();
    if hosts.is_empty() {
        return String::new();
    }
    format!("; the configuration of {} has another `{}` than the gateway's", names(&hosts), profile.label)
}

fn quarantined(working: &[&Host], profile: &Profile, facts: &Facts) -> Reason {
    let told: Vec<String> = working
        .iter()
        .filter_map(|host| facts.quarantine(&host.name, profile))
        .map(|health| {
            let last = health.last_failure.as_deref().unwrap_or("unknown");
            let until = health.quarantined_until.map(short).unwrap_or_default();
            format!("{} failed {} ({last}), tried again at {until}", health.host, times(health.failures))
        })
        .collect();
    let fix = working.first().map(|host| format!("look for `the vm did not come up` in the log of {}", host.name));
    because(Waiting::HostQuarantined, format!("image {}: {}", profile.image, told.join("; ")), fix)
}

fn full(job: &JobRow, able: &[&Host], heard: &[&Host], facts: &Facts) -> Reason {
    let (slots, vms) = heard.iter().fold((0, 0), |(slots, vms), host| (slots + i64::from(host.slots), vms + host.vms));
    let mut evidence = format!(
        "{} of {} can run it now, with {} in {}",
        heard.len(),
        plural(able.len(), "host"),
        plural(vms, "vm"),
        plural(slots, "slot")
    );
    if let Some((older, all)) = facts.place {
        evidence.push_str(&format!("; it is number {} of {all} waiting for `{}`", older + 1, job.profile));
    }
    let silent: Vec<&Host> = able.iter().copied().filter(|host| host.silent_for_s > SILENT_AFTER_S).collect();
    let fix = if silent.is_empty() { None } else { Some(format!("start flyci again on {}", names(&silent))) };
    because(Waiting::NoCapacity, evidence, fix)
}

fn running(job: &JobRow) -> Reason {
    let evidence = match &job.vm {
        Some(vm) => format!("it runs in vm {} on {}", vm.id, vm.host),
        None => "it runs on a runner that is not ours".to_owned(),
    };
    because(Waiting::BeingServed, evidence, None)
}

fn ended(job: &JobRow) -> Reason {
    let conclusion = job.conclusion.as_deref().unwrap_or("unknown");
    match &job.vm {
        Some(vm) => {
            let reason = vm.reason.clone().unwrap_or_else(|| "being_served".to_owned());
            let evidence =
                format!("GitHub says {conclusion}; it ran in vm {} on {}, which is {}", vm.id, vm.host, vm.state);
            Reason { reason, evidence, fix: None }
        }
        None if job.state == "cancelled" => Reason {
            reason: JobEnd::CancelledInQueue.as_str().to_owned(),
            evidence: format!("GitHub ended it ({conclusion}) before it had a runner"),
            fix: None,
        },
        None => {
            because(Waiting::BeingServed, format!("GitHub says {conclusion}; another runner than ours had it"), None)
        }
    }
}

fn given_up(end: JobEnd, job: &JobRow) -> Reason {
    let (evidence, fix) = match end {
        JobEnd::CancelledInQueue => ("GitHub ended it before it had a runner", None),
        JobEnd::QueueTimeout => ("nobody could serve it within [limits] queue_timeout", Some("run the job again")),
        JobEnd::VmVanished => ("its vm was gone before GitHub told of its end", Some("run the job again")),
        JobEnd::UnknownToGithub => ("GitHub does not know it any more", None),
        JobEnd::RepositoryGone => ("its repository is gone, or the App was removed from it", None),
        JobEnd::RunOver => ("its run was over while GitHub had it queued", Some("run the workflow again")),
    };
    let on = job.vm.as_ref().map_or_else(String::new, |vm| format!(" (vm {} on {})", vm.id, vm.host));
    Reason { reason: end.as_str().to_owned(), evidence: format!("{evidence}{on}"), fix: fix.map(str::to_owned) }
}

/// Why a job was not taken.
pub fn refusal(refusal: &Refusal, account: Option<&str>) -> Reason {
    let account = account.unwrap_or("its account");
    let nearest = refusal.nearest_profile.as_deref();
    let (evidence, fix) = match Waiting::parse(&refusal.reason) {
        Some(Waiting::TenantNotApproved) => (
            format!("{account} was not approved when it came"),
            Some(format!("flyci tenants approve {account}, then run the job again")),
        ),
        Some(Waiting::PublicRepository) => (
            "its repository is public: anybody's pull request could run code here".to_owned(),
            Some("[tenants] public_repositories = true serves them".to_owned()),
        ),
        Some(Waiting::LabelUnknown) => (
            match &refusal.label {
                Some(label) => format!("no profile serves `{label}` with its other labels"),
                None => "its labels are not ours".to_owned(),
            },
            nearest.map(|profile| format!("did it mean `{profile}`?")),
        ),
        _ => ("it was not taken".to_owned(), None),
    };
    let evidence = format!("{evidence} (at {})", short(refusal.refused_at));
    Reason { reason: refusal.reason.clone(), evidence, fix }
}

fn names(hosts: &[&Host]) -> String {
    /// So many names are shown.
    const SHOWN: usize = 3;
    let shown: Vec<&str> = hosts.iter().take(SHOWN).map(|host| host.name.as_str()).collect();
    let more = hosts.len().saturating_sub(SHOWN);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

fn short(time: DateTime<Utc>) -> String {
    time.format("%H:%M:%S UTC").to_string()
}
