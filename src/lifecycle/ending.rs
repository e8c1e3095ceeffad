//! The end of a vm: the reason is written first, with what follows from it for the host and the job;
//! then the machine is destroyed, as often as it takes.

use super::{DriverError, Machine, Next};
use crate::domain::reason::VmEnd;
use crate::domain::vm::{VmEvent, VmState};
use crate::points::effect;
use crate::store::hosts::Weight;
use crate::store::vms::{self, Vm};
use crate::store::{Applied, hosts, jobs};
use std::time::Duration;

/// How long one try to destroy may take.
const DESTROY_DEADLINE: Duration = Duration::from_secs(60);

/// Writes that the vm is to be destroyed, and charges who is at fault.
pub(super) async fn stop(machine: &Machine, vm: &Vm, end: VmEnd) -> Result<Next, DriverError> {
    let had_job = vms::watch(&machine.pool, vm.id).await?.is_some_and(|watch| watch.job.is_some());
    let mut tx = machine.pool.begin().await?;
    let stopped = vms::advance(&mut *tx, machine.fence, vm.id, vm.state, VmEvent::Stop(end)).await?;
    if stopped == Applied::Stale {
        return Ok(Next::Again);
    }
    judge_image(machine, vm, end, &mut tx).await?;
    if let Some(class) = vm.class {
        if end.is_failed_try() && !had_job {
            jobs::count_attempt(&mut *tx, class, machine.limits.attempts).await?;
        }
        // Its runner may have had a job whose deliveries were lost: GitHub is asked before the
        // class's jobs count again.
        if vm.state.may_hold_registration() && !had_job {
            jobs::doubt_class(&mut *tx, class).await?;
        }
    }
    if had_job {
        jobs::doubt_of_vm(&mut *tx, vm.id).await?;
    }
    effect!("lifecycle.stop", tx.commit().await)?;
    tracing::info!(vm.id = %vm.id, reason = %end, "the vm ends");
    machine.wakes.doubt.notify_one();
    machine.wakes.removal.notify_one();
    Ok(Next::Again)
}

/// Writes what the end says of the host and its image.
async fn judge_image(machine: &Machine, vm: &Vm, end: VmEnd, tx: &mut sqlx::PgConnection) -> Result<(), DriverError> {
    let host = machine.fence.host;
    if end == VmEnd::RunnerTooOld {
        hosts::image_failed(tx, host, &vm.image, end, Weight::Final).await?;
    } else if end.is_host_failure() {
        hosts::image_failed(tx, host, &vm.image, end, Weight::Once).await?;
    } else if end == VmEnd::JobDone {
        hosts::image_served(tx, host, &vm.image).await?;
    }
    Ok(())
}

/// Destroys the machine. A vm that cannot be destroyed keeps its slot, and is tried for ever.
pub(super) async fn destroy(machine: &Machine, vm: &Vm) -> Result<Next, DriverError> {
    let destroyed =
        effect!("lifecycle.destroy", tokio::time::timeout(DESTROY_DEADLINE, machine.hypervisor.destroy(vm.id)).await);
    match destroyed {
        Ok(outcome) => outcome?,
        Err(_) => return Err(crate::hypervisor::HypervisorError::Process("it does not die".into()).into()),
    }
    if effect!("lifecycle.destroyed", machine.advance(vm, VmEvent::Destroyed).await)? == Applied::Yes {
        let reason = match vm.state {
            VmState::Stopping(end) => end.as_str(),
            _ => "unknown",
        };
        tracing::info!(vm.id = %vm.id, reason, "the vm is gone");
        machine.wakes.demand.notify_one();
    }
    Ok(Next::Again)
}
