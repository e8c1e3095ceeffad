//! The jobs of a host that went silent count as demand again, as soon as it is sure that it will not run them.
//!
//! Definition: a host is *silent* when its beat stood still for [`LEASE`] on this process's own clock, while this
//! process's own writes went well all the time. No clock of another machine is compared. What is decided about its vms:
//!
//! | its vm | becomes |
//! |---|---|
//! | nothing was delivered yet | `abandoned`: its demand counts again at once |
//! | its runner has no job that we know of | GitHub is asked to let go of the registration (`mint`) |
//! | … GitHub let go of it (204, 404) | `stopping`: its demand counts again once GitHub was asked about it |
//! | … GitHub says busy (422) | `unreachable`: still serving |
//!
//! The registration is the fence: a host that is not dead, but cut off, cannot run a job that another runs too. It
//! destroys what was abandoned, and takes up what is unreachable, before it starts anything (`dispatch`).
//!
//! A host that was revoked is treated as silent at once, and its vms are written off as soon as nothing is left to
//! decide about them.
//!
//! Does not: end a vm's process (its host alone can), or speak to GitHub. One gateway does it at a time; another one
//! that takes over counts from its own first look.

use crate::domain::reason::VmEnd;
use crate::domain::runner::RunnerState;
use crate::domain::vm::{VmEvent, VmState};
use crate::domain::{ids::HostId, job::JobState};
use crate::points::effect;
use crate::store::rescue::{self, Beat, Stranded};
use crate::store::vms::{self, Fence};
use crate::store::{Applied, StoreError, jobs, pass_leases};
use crate::wake::Wakes;
use sqlx::{PgConnection, PgPool};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Its name among the leases.
const PASS: &str = "rescue";
/// How long another gateway waits for this one: three periods.
const PASS_LEASE: Duration = Duration::from_secs(15);
/// How long a beat stands still before the host counts as dead. Hosts beat every 5 s, and after an outage try again
/// after 15 s at the latest.
pub const LEASE: Duration = Duration::from_secs(30);
/// A longer time between two looks proves nothing of the hosts: this process itself was held up.
const GAP: Duration = Duration::from_secs(15);
/// How often GitHub is asked again about a runner that it called busy, and whose job nobody told of.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Looks after silent hosts.
pub struct Rescue {
    pool: PgPool,
    gateway: Uuid,
    wakes: Arc<Wakes>,
    watch: Mutex<Watch>,
}

/// What one pass did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RescueReport {
    /// Another gateway does it.
    pub elsewhere: bool,
    /// Hosts that are silent.
    pub silent: u32,
    /// Vms whose demand counts again: nothing was delivered.
    pub abandoned: u32,
    /// Vms about whose registration GitHub is asked.
    pub asked: u32,
    /// Vms that serve on, as GitHub says.
    pub unreachable: u32,
    /// Vms whose registration GitHub let go of.
    pub stopped: u32,
}

impl Rescue {
    /// A rescuer that has seen nothing yet. `gateway` is this process.
    #[must_use]
    pub fn new(pool: PgPool, gateway: Uuid, wakes: Arc<Wakes>) -> Self {
        Self { pool, gateway, wakes, watch: Mutex::default() }
    }

    /// One round. `now` is this process's own clock.
    ///
    /// # Errors
    /// When the database is away: then everything is counted from the start again.
    pub async fn pass(&self, now: Instant) -> Result<RescueReport, StoreError> {
        let outcome = self.look(now).await;
        if !matches!(outcome, Ok(RescueReport { elsewhere: false, .. })) {
            self.watch().forget();
        }
        outcome
    }

    async fn look(&self, now: Instant) -> Result<RescueReport, StoreError> {
        let mut report = RescueReport::default();
        // Its own beat: a write, as the hosts' are.
        if !effect!("upkeep.rescue_lease", pass_leases::take(&self.pool, PASS, self.gateway, PASS_LEASE).await)? {
            report.elsewhere = true;
            return Ok(report);
        }
        let beats = rescue::beats(&self.pool).await?;
        let silent = self.watch().observe(now, &beats);
        for beat in silent {
            report.silent += 1;
            self.rescue(beat, Belief::Silent, &mut report).await?;
        }
        // Nothing that they say counts any more: they are not waited for.
        for beat in rescue::revoked(&self.pool).await? {
            self.rescue(beat, Belief::Revoked, &mut report).await?;
        }
        Ok(report)
    }

    fn watch(&self) -> std::sync::MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides about the vms of one host, unless it speaks.
    async fn rescue(&self, beat: Beat, belief: Belief, report: &mut RescueReport) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        if !rescue::hold(&mut tx, beat).await? {
            return Ok(());
        }
        let fence = Fence { host: beat.host, session: beat.session };
        let mut done = RescueReport::default();
        for vm in rescue::stranded(&mut *tx, beat.host, ASK_AGAIN).await? {
            apply(&mut tx, fence, &vm, judge(&vm), &mut done).await?;
        }
        if belief == Belief::Revoked {
            rescue::write_off(&mut *tx, beat.host).await?;
        }
        effect!("upkeep.rescue", tx.commit().await)?;
        if done != RescueReport::default() {
            tracing::warn!(
                host.id = %beat.host, abandoned = done.abandoned, asked = done.asked, unreachable = done.unreachable,
                stopped = done.stopped, "a host is silent; what it cannot serve any more is served elsewhere"
            );
            self.wake();
        }
        report.abandoned += done.abandoned;
        report.asked += done.asked;
        report.unreachable += done.unreachable;
        report.stopped += done.stopped;
        Ok(())
    }

    fn wake(&self) {
        self.wakes.demand.notify_one();
        self.wakes.mint.notify_one();
        self.wakes.removal.notify_one();
        self.wakes.doubt.notify_one();
    }
}

/// Why a host's vms are decided about by somebody else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Belief {
    /// It is not heard of, and may come back.
    Silent,
    /// It was thrown out: nobody will tell of its vms' end.
    Revoked,
}

/// What is decided about a vm of a silent host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// Nothing was delivered: its demand counts again.
    Abandon,
    /// GitHub is asked to let go of its registration.
    Ask,
    /// It serves on.
    LoseSight,
    /// It will have no (more) job.
    Stop(VmEnd),
    /// Nothing is known yet, or all is said.
    Leave,
}

fn judge(vm: &Stranded) -> Verdict {
    let ask = if vm.is_asked { Verdict::Leave } else { Verdict::Ask };
    match (vm.state, vm.runner) {
        (
            VmState::Planned | VmState::Cloning | VmState::Cloned | VmState::Booting | VmState::Ready | VmState::Bound,
            _,
        ) => Verdict::Abandon,
        (VmState::Stopping(_) | VmState::Gone(_) | VmState::Abandoned | VmState::Unknown, _) => Verdict::Leave,
        (
            VmState::Delivering | VmState::Serving | VmState::Unreachable,
            None | Some(RunnerState::Removed | RunnerState::Void),
        ) => Verdict::Stop(end(vm.job)),
        (VmState::Delivering | VmState::Serving | VmState::Unreachable, Some(RunnerState::Busy)) => match vm.job {
            Some(job) if job.is_ended() => ask,
            Some(_) | None if vm.state != VmState::Unreachable => Verdict::LoseSight,
            // Its job's own end, or GitHub's giving it up, will be told.
            Some(_) => Verdict::Leave,
            None if vm.is_answer_old => ask,
            None => Verdict::Leave,
        },
        (VmState::Delivering | VmState::Serving | VmState::Unreachable, Some(_)) => ask,
    }
}

/// Why a vm ends that its host cannot end.
const fn end(job: Option<JobState>) -> VmEnd {
    match job {
        Some(JobState::Done) => VmEnd::JobDone,
        Some(JobState::Cancelled) => VmEnd::JobCancelled,
        Some(
            JobState::Waiting
            | JobState::Queued
            | JobState::Running
            | JobState::Unserved(_)
            | JobState::Lost(_)
            | JobState::Unknown,
        )
        | None => VmEnd::Abandoned,
    }
}

async fn apply(
    db: &mut PgConnection,
    fence: Fence,
    vm: &Stranded,
    verdict: Verdict,
    done: &mut RescueReport,
) -> Result<(), StoreError> {
    let (event, count) = match verdict {
        Verdict::Leave => return Ok(()),
        Verdict::Ask => {
            vms::ask_release(&mut *db, vm.id).await?;
            done.asked += 1;
            return Ok(());
        }
        Verdict::Abandon => (VmEvent::Abandon, &mut done.abandoned),
        Verdict::LoseSight => (VmEvent::LoseSight, &mut done.unreachable),
        Verdict::Stop(end) => (VmEvent::Stop(end), &mut done.stopped),
    };
    if vms::advance(&mut *db, fence, vm.id, vm.state, event).await? == Applied::Stale {
        return Ok(());
    }
    *count += 1;
    if matches!(verdict, Verdict::Stop(_)) {
        // What its host would have put in doubt: its runner may have had a job whose deliveries were lost.
        match (vm.job, vm.class) {
            (Some(_), _) => jobs::doubt_of_vm(&mut *db, vm.id).await?,
            (None, Some(class)) => jobs::doubt_class(&mut *db, class).await?,
            (None, None) => {}
        }
    }
    Ok(())
}

/// What was seen of the hosts, by this process's own clock.
#[derive(Default)]
struct Watch {
    looked_at: Option<Instant>,
    seen: HashMap<HostId, (Beat, Instant)>,
}

impl Watch {
    fn forget(&mut self) {
        *self = Self::default();
    }

    /// Takes in the beats, and answers those that stood still for a lease.
    fn observe(&mut self, now: Instant, beats: &[Beat]) -> Vec<Beat> {
        if self.looked_at.is_none_or(|then| now.saturating_duration_since(then) > GAP) {
            self.seen.clear();
        }
        self.looked_at = Some(now);
        let before = std::mem::take(&mut self.seen);
        let mut silent = Vec::new();
        for &beat in beats {
            let since = match before.get(&beat.host) {
                Some(&(known, since)) if known == beat => since,
                Some(_) | None => now,
            };
            if now.saturating_duration_since(since) >= LEASE {
                silent.push(beat);
            }
            self.seen.insert(beat.host, (beat, since));
        }
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::VmId;
    use crate::domain::reason::JobEnd;

    fn beat(seq: i64) -> Beat {
        Beat { host: HostId(Uuid::nil()), session: 1, seq }
    }

    /// Looks once a second at what the host said at that second; answers when it was believed dead first.
    fn believed_dead(said: impl Fn(u64) -> Option<i64>, seconds: u64) -> Option<u64> {
        let (began, mut watch) = (Instant::now(), Watch::default());
        (0..seconds).find(|second| {
            let Some(seq) = said(*second) else { return false };
            !watch.observe(began + Duration::from_secs(*second), &[beat(seq)]).is_empty()
        })
    }

    #[test]
    fn a_host_that_stands_still_for_a_lease_is_dead() {
        assert_eq!(believed_dead(|_| Some(7), 100), Some(30));
        assert_eq!(believed_dead(|second| Some(second.min(20).cast_signed()), 100), Some(50));
    }

    #[test]
    fn a_host_that_speaks_is_alive_however_it_counts() {
        assert_eq!(believed_dead(|second| Some((second / 29).cast_signed()), 1000), None);
        // A database that was restored goes back.
        assert_eq!(believed_dead(|second| Some(1000 - (second / 20).cast_signed()), 1000), None);
    }

    #[test]
    fn a_time_in_which_the_rescuer_saw_nothing_does_not_count() {
        // It looks for 25 s, is held up for 16 s, and looks again.
        let held_up = |second: u64| (!(25..=40).contains(&second)).then_some(7);
        assert_eq!(believed_dead(held_up, 200), Some(41 + 30));
        let (began, mut watch) = (Instant::now(), Watch::default());
        for second in 0..=29 {
            assert!(watch.observe(began + Duration::from_secs(second), &[beat(7)]).is_empty());
        }
        watch.forget();
        assert!(watch.observe(began + Duration::from_secs(30), &[beat(7)]).is_empty(), "its own write failed");
    }

    #[test]
    fn what_becomes_of_each_vm() {
        let judge = |state, runner, job, is_asked| {
            judge(&Stranded { id: VmId::random(), class: None, state, runner, job, is_asked, is_answer_old: false })
        };
        use VmState as V;
        for blank in [V::Planned, V::Cloning, V::Cloned, V::Booting, V::Ready, V::Bound] {
            assert_eq!(judge(blank, Some(RunnerState::Minted), None, false), Verdict::Abandon);
        }
        for given in [V::Delivering, V::Serving, V::Unreachable] {
            assert_eq!(judge(given, Some(RunnerState::Online), None, false), Verdict::Ask);
            assert_eq!(judge(given, Some(RunnerState::Online), None, true), Verdict::Leave, "GitHub has not answered");
            assert_eq!(judge(given, Some(RunnerState::Removed), None, true), Verdict::Stop(VmEnd::Abandoned));
            assert_eq!(
                judge(given, Some(RunnerState::Removed), Some(JobState::Done), true),
                Verdict::Stop(VmEnd::JobDone)
            );
            assert_eq!(judge(given, Some(RunnerState::Busy), Some(JobState::Done), false), Verdict::Ask);
            let lost = JobState::Lost(JobEnd::UnknownToGithub);
            assert_eq!(judge(given, Some(RunnerState::Busy), Some(lost), false), Verdict::Ask);
        }
        for seen in [V::Delivering, V::Serving] {
            assert_eq!(judge(seen, Some(RunnerState::Busy), None, false), Verdict::LoseSight);
            assert_eq!(judge(seen, Some(RunnerState::Busy), Some(JobState::Running), false), Verdict::LoseSight);
        }
        assert_eq!(judge(V::Unreachable, Some(RunnerState::Busy), Some(JobState::Running), false), Verdict::Leave);
        for over in [V::Abandoned, V::Stopping(VmEnd::Killed), V::Gone(VmEnd::Killed), V::Unknown] {
            assert_eq!(judge(over, Some(RunnerState::Online), None, false), Verdict::Leave);
        }
    }
}
