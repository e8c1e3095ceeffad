//! The JIT config goes to the guest: started at most once, whatever dies in between.
//!
//! `delivering` was committed before the first byte. So whoever finds a vm in this state asks the guest
//! how its runner does before anything else, and starts it only where it was never started.

use super::{DriverError, Machine, Next, PERIOD, ending, serving};
use crate::domain::ids::RunnerId;
use crate::domain::reason::VmEnd;
use crate::domain::runner::RunnerState;
use crate::domain::vm::VmEvent;
use crate::guest::{RunnerProbe, RunnerStart};
use crate::points::effect;
use crate::secrets::package;
use crate::secrets::sealing::JitContext;
use crate::store::runners::{self, Runner};
use crate::store::vms::{self, Vm, Watch};
use crate::store::{Applied, jobs};
use crate::wake::VmWake;
use chrono::Duration as Span;
use std::time::Duration;

/// How long a guest may not answer before GitHub is asked to let go of its runner.
const DELIVERY_DEADLINE: Duration = Duration::from_secs(60);
/// A JIT config that is older when it could first be delivered is not used.
const JIT_LIFE_MINUTES: i64 = 3;

pub(super) async fn step(machine: &Machine, vm: &Vm, wake: &VmWake) -> Result<Next, DriverError> {
    let Some(watch) = vms::watch(&machine.pool, vm.id).await? else { return Ok(Next::Over) };
    if let Some(end) = watch.kill_asked {
        return ending::stop(machine, vm, end).await;
    }
    let Some((runner, state)) = watch.runner else {
        return ending::stop(machine, vm, VmEnd::Restarted).await;
    };
    if watch.job.is_some() {
        // GitHub gave it a job, so it was started, whatever the guest answers, and though its runner may
        // be out and gone from GitHub already.
        return served(machine, vm, runner, state).await;
    }
    if matches!(state, RunnerState::Removed | RunnerState::Void) {
        // GitHub let go of it: no job will come.
        return ending::stop(machine, vm, VmEnd::DeliveryFailed).await;
    }
    tokio::select! {
        outcome = tokio::time::timeout(DELIVERY_DEADLINE, deliver(machine, vm, &watch, runner)) => match outcome {
            Ok(Ok(Delivered::Started)) => served(machine, vm, runner, state).await,
            Ok(Ok(Delivered::Impossible)) => ending::stop(machine, vm, VmEnd::Restarted).await,
            Ok(Ok(Delivered::Lost)) => give_up(machine, vm, wake, "the guest lost its runner").await,
            Ok(Err(error)) => {
                let why = crate::errors::chain(&error).to_string();
                give_up(machine, vm, wake, &why).await
            }
            Err(_) => give_up(machine, vm, wake, "the guest did not answer in time").await,
        },
        () = machine.hypervisor.ended(vm.id) => ending::stop(machine, vm, VmEnd::Vanished).await,
        () = machine.shutdown.cancelled() => Ok(Next::Again),
    }
}

/// How a delivery went.
enum Delivered {
    /// The runner was started, now or before.
    Started,
    /// It was never started, and there is no config any more that could be used.
    Impossible,
    /// It was begun, and neither lives nor left a status.
    Lost,
}

async fn deliver(machine: &Machine, vm: &Vm, watch: &Watch, id: RunnerId) -> Result<Delivered, DriverError> {
    let guest = machine.hypervisor.guest(vm.id);
    let marker = serving::marker(id);
    match guest.probe(&marker).await? {
        RunnerProbe::Alive | RunnerProbe::Exited(_) => return Ok(Delivered::Started),
        RunnerProbe::Lost => return Ok(Delivered::Lost),
        RunnerProbe::Absent => {}
    }
    let Some(runner) = runners::get(&machine.pool, id).await? else { return Ok(Delivered::Impossible) };
    let fresh = runner.minted_at.is_some_and(|at| watch.now - at < Span::minutes(JIT_LIFE_MINUTES));
    let Some(sealed) = runner.sealed_jit.as_deref().filter(|_| fresh) else {
        return Ok(Delivered::Impossible);
    };
    let opened = machine.key.open_jit(&context(machine, vm, &runner), sealed)?;
    let Some((registered_name, jit_config)) = package::split(&opened) else {
        return Ok(Delivered::Impossible);
    };
    let setup_info = setup_info(machine, vm).await?;
    let start = RunnerStart { name: marker, registered_name, jit_config, setup_info };
    effect!("lifecycle.start", guest.start(start).await)?;
    Ok(Delivered::Started)
}

fn context(machine: &Machine, vm: &Vm, runner: &Runner) -> JitContext {
    JitContext {
        fleet: machine.fleet,
        host: machine.fence.host,
        vm: vm.id,
        runner: runner.id,
        repository: runner.repository,
    }
}

async fn served(machine: &Machine, vm: &Vm, runner: RunnerId, state: RunnerState) -> Result<Next, DriverError> {
    let served = effect!("lifecycle.served", machine.advance(vm, VmEvent::Served).await)?;
    if served == Applied::Yes && state == RunnerState::Delivering {
        // Stale: a delivery of GitHub's told of its job meanwhile.
        let _ = effect!(
            "lifecycle.online",
            runners::advance(&machine.pool, runner, state, RunnerState::Online, None).await
        )?;
    }
    Ok(Next::Again)
}

/// The runner may or may not be started: only GitHub's letting go of the registration proves that no
/// job is lost with the vm.
async fn give_up(machine: &Machine, vm: &Vm, wake: &VmWake, why: &str) -> Result<Next, DriverError> {
    tracing::warn!(vm.id = %vm.id, why, "the runner could not be delivered; GitHub is asked to let go of it");
    effect!("lifecycle.give_up", vms::ask_release(&machine.pool, vm.id).await)?;
    machine.wakes.removal.notify_one();
    wake.wait(PERIOD).await;
    Ok(Next::Again)
}

/// What GitHub's runner prints in the job's own log, under "Set up job".
async fn setup_info(machine: &Machine, vm: &Vm) -> Result<String, DriverError> {
    let mut detail = vec![
        format!("vm: {}", vm.id),
        format!("host: {}", machine.name),
        format!("profile: {}", vm.profile),
        format!("image: {}", vm.image),
    ];
    if let Some(class) = vm.class
        && let Some((created_at, received_at)) = jobs::oldest_queued(&machine.pool, class).await?
    {
        let now = chrono::Utc::now();
        if let Some(created_at) = created_at {
            detail.push(format!("waited for GitHub: {}", seconds(received_at - created_at)));
        }
        detail.push(format!("waited for a machine: {}", seconds(now - received_at)));
    }
    if let Some(url) = &machine.support_url {
        detail.push(format!("support: {url}"));
    }
    Ok(serde_json::json!([{ "group": "flyci", "detail": detail.join("\n") }]).to_string())
}

/// The two clocks may differ: less than nothing is nothing.
fn seconds(span: Span) -> String {
    format!("{:.1}s", span.as_seconds_f64().max(0.0))
}
