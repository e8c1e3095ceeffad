//! A vm that is ready: blank until a class takes it, then bound until its runner is minted.

use super::{DriverError, Machine, Next, PERIOD, ending};
use crate::domain::reason::VmEnd;
use crate::domain::runner::RunnerState;
use crate::domain::vm::{VmEvent, VmState};
use crate::points::effect;
use crate::store::runners;
use crate::store::vms::{self, Vm, Watch};
use crate::store::{Applied, demand, hosts};
use crate::wake::VmWake;
use std::time::Duration;

/// A JIT config that is older is not delivered: GitHub drops those that are not used within minutes.
const JIT_LIFE: Duration = Duration::from_secs(90);

/// Waits to be taken. `dispatch` binds it; after `idle` it goes, unless it is to be kept warm.
pub(super) async fn ready(machine: &Machine, vm: &Vm, wake: &VmWake) -> Result<Next, DriverError> {
    let Some(watch) = vms::watch(&machine.pool, vm.id).await? else { return Ok(Next::Over) };
    if let Some(end) = watch.kill_asked {
        return ending::stop(machine, vm, end).await;
    }
    if hosts::is_draining(&machine.pool, machine.fence.host).await? {
        return ending::stop(machine, vm, VmEnd::Drained).await;
    }
    if machine.is_outdated(vm) {
        return ending::stop(machine, vm, VmEnd::Surplus).await;
    }
    let waited = vm.ready_at.map_or(Duration::ZERO, |at| (watch.now - at).to_std().unwrap_or_default());
    if waited >= machine.limits.idle && let_go(machine, vm).await? {
        return Ok(Next::Again);
    }
    rest(machine, vm, wake).await
}

/// Ends a blank vm that is one too many, under the profile's lock: of two that are one too many, one goes.
async fn let_go(machine: &Machine, vm: &Vm) -> Result<bool, DriverError> {
    let warm = machine.profile(&vm.profile).map_or(0, |profile| profile.warm);
    let mut tx = machine.pool.begin().await?;
    demand::lock_profile(&mut tx, &vm.profile).await?;
    if demand::wanted(&mut *tx, machine.fence.host, &vm.profile, machine.limits.vms_per_tenant, warm).await? >= 0 {
        return Ok(false);
    }
    let stop = VmEvent::Stop(VmEnd::Surplus);
    let stopped = vms::advance(&mut *tx, machine.fence, vm.id, vm.state, stop).await?;
    effect!("lifecycle.let_go", tx.commit().await)?;
    Ok(stopped == Applied::Yes)
}

/// Waits for the runner to be minted, then begins the delivery.
pub(super) async fn bound(machine: &Machine, vm: &Vm, wake: &VmWake) -> Result<Next, DriverError> {
    let Some(watch) = vms::watch(&machine.pool, vm.id).await? else { return Ok(Next::Over) };
    if let Some(end) = watch.kill_asked {
        return ending::stop(machine, vm, end).await;
    }
    let Some((runner, state)) = watch.runner else { return unbind(machine, vm).await };
    match state {
        // The gateway looks whether the demand stands right before it calls GitHub.
        RunnerState::Requested | RunnerState::Minting => rest(machine, vm, wake).await,
        RunnerState::Minted if is_usable(machine, vm, &watch, runner).await? => {
            let mut tx = machine.pool.begin().await?;
            let begun = vms::advance(&mut *tx, machine.fence, vm.id, vm.state, VmEvent::BeginDelivery).await?;
            let marked = runners::advance(&mut *tx, runner, state, RunnerState::Delivering, None).await?;
            if (begun, marked) == (Applied::Yes, Applied::Yes) {
                effect!("lifecycle.begin_delivery", tx.commit().await)?;
            }
            Ok(Next::Again)
        }
        RunnerState::Minted => {
            effect!("lifecycle.release_unused", vms::ask_release(&machine.pool, vm.id).await)?;
            machine.wakes.removal.notify_one();
            rest(machine, vm, wake).await
        }
        RunnerState::Void | RunnerState::Removed => unbind(machine, vm).await,
        // GitHub tells of a runner that nobody was given the config of: this vm is not trusted any more.
        RunnerState::Delivering | RunnerState::Online | RunnerState::Busy | RunnerState::Ended => {
            ending::stop(machine, vm, VmEnd::Restarted).await
        }
        RunnerState::Removing | RunnerState::Unknown => rest(machine, vm, wake).await,
    }
}

/// True when the JIT config is fresh and its demand stands, and nobody asked GitHub to let go of it.
async fn is_usable(
    machine: &Machine,
    vm: &Vm,
    watch: &Watch,
    runner: crate::domain::ids::RunnerId,
) -> Result<bool, DriverError> {
    if watch.release_asked_at.is_some() {
        return Ok(false);
    }
    let minted_at = runners::get(&machine.pool, runner).await?.and_then(|row| row.minted_at);
    effect!("lifecycle.minted", vms::mark_minted(&machine.pool, vm.id, minted_at).await)?;
    let age = minted_at.map_or(Duration::MAX, |at| (watch.now - at).to_std().unwrap_or_default());
    Ok(age < JIT_LIFE && demand::stands(&machine.pool, vm.id).await?)
}

/// The demand went before anything was delivered: the vm is blank again.
async fn unbind(machine: &Machine, vm: &Vm) -> Result<Next, DriverError> {
    if effect!("lifecycle.unbind", machine.advance(vm, VmEvent::Unbind).await)? == Applied::Yes {
        effect!("lifecycle.withdraw_release", vms::withdraw_release(&machine.pool, vm.id).await)?;
        machine.wakes.demand.notify_one();
    }
    Ok(Next::Again)
}

/// Sleeps until something happens. A process that ended by itself ends its vm.
async fn rest(machine: &Machine, vm: &Vm, wake: &VmWake) -> Result<Next, DriverError> {
    debug_assert!(matches!(vm.state, VmState::Ready | VmState::Bound), "only a waiting vm rests");
    tokio::select! {
        () = wake.wait(PERIOD) => Ok(Next::Again),
        () = machine.hypervisor.ended(vm.id) => ending::stop(machine, vm, VmEnd::Vanished).await,
        () = machine.shutdown.cancelled() => Ok(Next::Again),
    }
}
