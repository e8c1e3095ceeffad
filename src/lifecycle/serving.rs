//! A vm whose runner was started: watched until the runner exits, GitHub says that the job is over, or
//! a deadline passes.

use super::{DriverError, Machine, Next, ending};
use crate::domain::ids::RunnerId;
use crate::domain::job::JobState;
use crate::domain::reason::{JobEnd, VmEnd};
use crate::domain::runner::RunnerState;
use crate::guest::{Guest, RunnerEnd};
use crate::points::effect;
use crate::store::demand;
use crate::store::vms::{self, Vm, Watch};
use crate::wake::VmWake;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a runner may take to exit by itself after GitHub said that its job is over.
const EXIT_GRACE: Duration = Duration::from_secs(2);
/// How often the rows are read although nobody woke the driver.
const LOOK_PERIOD: Duration = Duration::from_secs(5);
/// How long the deliveries about a runner's job may be late, when the runner is out already.
const WORD_PATIENCE: Duration = Duration::from_secs(3);
/// How long a guest that does not answer is left alone before it is asked again.
const GUEST_RETRY: Duration = Duration::from_secs(1);

/// What names a runner in its guest: our id, since hosts do not see GitHub's names.
pub(super) fn marker(runner: RunnerId) -> String {
    runner.to_string()
}

pub(super) async fn step(machine: &Machine, vm: &Vm, wake: &VmWake) -> Result<Next, DriverError> {
    let Some(mut watch) = vms::watch(&machine.pool, vm.id).await? else { return Ok(Next::Over) };
    let Some((runner, _)) = watch.runner else {
        return ending::stop(machine, vm, VmEnd::Restarted).await;
    };
    let guest = machine.hypervisor.guest(vm.id);
    let name = marker(runner);
    // Both futures live as long as the vm serves: a wake must not restart the watch in the guest.
    let exited = until_exit(&guest, &name);
    let ended = machine.hypervisor.ended(vm.id);
    tokio::pin!(exited, ended);
    loop {
        if watch.state != vm.state {
            return Ok(Next::Again);
        }
        let verdict = judge(machine, vm, &watch).await?;
        match verdict {
            Verdict::Stop(end) => return ending::stop(machine, vm, end).await,
            Verdict::StopAfterExit(end) => {
                effect!("lifecycle.job_is_over", guest.job_is_over(&name).await);
                // The runner leaves GitHub by itself, if it may.
                let _ = tokio::time::timeout(EXIT_GRACE, &mut exited).await;
                return ending::stop(machine, vm, end).await;
            }
            Verdict::Release => {
                effect!("lifecycle.release", vms::ask_release(&machine.pool, vm.id).await)?;
                machine.wakes.removal.notify_one();
            }
            Verdict::Watch => {}
        }
        tokio::select! {
            end = &mut exited => return runner_exited(machine, vm, wake, &end).await,
            () = &mut ended => return vanished(machine, vm).await,
            () = wake.wait(LOOK_PERIOD) => {}
            () = machine.shutdown.cancelled() => return Ok(Next::Again),
        }
        match vms::watch(&machine.pool, vm.id).await? {
            Some(now) => watch = now,
            None => return Ok(Next::Over),
        }
    }
}

/// The VM's process ended by itself.
async fn vanished(machine: &Machine, vm: &Vm) -> Result<Next, DriverError> {
    let words = machine.hypervisor.last_words(vm.id).await.unwrap_or_default();
    tracing::warn!(vm.id = %vm.id, why = words, "the vm's process ended by itself");
    ending::stop(machine, vm, VmEnd::Vanished).await
}

/// What the rows call for.
enum Verdict {
    /// Nothing yet.
    Watch,
    /// GitHub is asked to let go of the runner.
    Release,
    /// The vm ends now.
    Stop(VmEnd),
    /// The vm ends as soon as its runner is out, or a moment later.
    StopAfterExit(VmEnd),
}

async fn judge(machine: &Machine, vm: &Vm, watch: &Watch) -> Result<Verdict, DriverError> {
    if let Some(end) = watch.kill_asked {
        return Ok(Verdict::Stop(end));
    }
    if let Some(job) = watch.job {
        return Ok(with_job(machine, vm, watch, job));
    }
    match watch.runner {
        Some((_, RunnerState::Removed | RunnerState::Void)) => return Ok(Verdict::Stop(let_go(machine, vm, watch))),
        // Its `completed` came without a job of ours: GitHub is done with it.
        Some((_, RunnerState::Ended)) => return Ok(Verdict::StopAfterExit(VmEnd::JobDone)),
        Some(_) | None => {}
    }
    if watch.release_asked_at.is_some() {
        return Ok(Verdict::Watch);
    }
    let unwanted = is_idle(machine, vm, watch) || !demand::stands(&machine.pool, vm.id).await?;
    Ok(if unwanted { Verdict::Release } else { Verdict::Watch })
}

fn with_job(machine: &Machine, vm: &Vm, watch: &Watch, job: JobState) -> Verdict {
    match job {
        JobState::Done => Verdict::StopAfterExit(VmEnd::JobDone),
        JobState::Cancelled => Verdict::StopAfterExit(VmEnd::JobCancelled),
        JobState::Lost(JobEnd::RepositoryGone | JobEnd::UnknownToGithub) => Verdict::Stop(VmEnd::TenantGone),
        JobState::Waiting
        | JobState::Queued
        | JobState::Running
        | JobState::Unserved(_)
        | JobState::Lost(_)
        | JobState::Unknown => {
            if is_over_time(machine, vm, watch) {
                Verdict::Stop(VmEnd::JobTimeout)
            } else {
                Verdict::Watch
            }
        }
    }
}

fn is_over_time(machine: &Machine, vm: &Vm, watch: &Watch) -> bool {
    let limit =
        machine.profile(&vm.profile).and_then(|profile| profile.job_timeout).map_or(machine.limits.job, |s| s.0);
    let began = watch.job_started_at.or(vm.serving_at);
    began.is_some_and(|at| (watch.now - at).to_std().is_ok_and(|ran| ran > limit))
}

fn is_idle(machine: &Machine, vm: &Vm, watch: &Watch) -> bool {
    vm.serving_at.is_some_and(|at| (watch.now - at).to_std().is_ok_and(|waited| waited > machine.limits.idle))
}

/// Why a vm goes whose registration GitHub let go of.
fn let_go(machine: &Machine, vm: &Vm, watch: &Watch) -> VmEnd {
    if is_idle(machine, vm, watch) { VmEnd::Idle } else { VmEnd::Surplus }
}

/// Resolves when the runner has ended. A guest that does not answer is asked again: its process's end
/// and the deadlines are watched elsewhere.
async fn until_exit(guest: &Arc<dyn Guest>, name: &str) -> RunnerEnd {
    loop {
        match guest.wait(name).await {
            Ok(end) => return end,
            Err(error) => {
                tracing::debug!(error = %crate::errors::chain(&error), "the runner's end could not be watched");
                tokio::time::sleep(GUEST_RETRY).await;
            }
        }
    }
}

/// The runner is out. Its exit status decides nothing about the job: GitHub's word does.
async fn runner_exited(machine: &Machine, vm: &Vm, wake: &VmWake, end: &RunnerEnd) -> Result<Next, DriverError> {
    let job = if end.status == 0 { word_of_job(machine, vm, wake).await? } else { job_of(machine, vm).await? };
    let reason = match job {
        Some(JobState::Cancelled) => VmEnd::JobCancelled,
        Some(_) => VmEnd::JobDone,
        None if end.too_old => VmEnd::RunnerTooOld,
        None => VmEnd::RunnerExited,
    };
    tracing::info!(vm.id = %vm.id, runner.status = end.status, reason = %reason, "the runner exited");
    ending::stop(machine, vm, reason).await
}

/// The job of a runner that ended well: its deliveries may be on the way still.
async fn word_of_job(machine: &Machine, vm: &Vm, wake: &VmWake) -> Result<Option<JobState>, DriverError> {
    let deadline = Instant::now() + WORD_PATIENCE;
    loop {
        let job = job_of(machine, vm).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        if job.is_some() || left.is_zero() || machine.shutdown.is_cancelled() {
            return Ok(job);
        }
        wake.wait(left).await;
    }
}

async fn job_of(machine: &Machine, vm: &Vm) -> Result<Option<JobState>, DriverError> {
    Ok(vms::watch(&machine.pool, vm.id).await?.and_then(|watch| watch.job))
}
