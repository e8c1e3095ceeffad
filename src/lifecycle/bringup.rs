//! From a taken slot to a guest that is ready. A failure is charged to the host and its image.

use super::isolation::{self, BreachError};
use super::{DriverError, Machine, Next, PERIOD, ending};
use crate::api::Trouble;
use crate::domain::reason::VmEnd;
use crate::domain::vm::{VmEvent, VmState};
use crate::guest::Guest;
use crate::hypervisor::HypervisorError;
use crate::points::effect;
use crate::store::vms::{self, Vm, Watch};
use crate::store::{Applied, hosts};
use crate::troubles;
use crate::wake::VmWake;
use std::sync::Arc;
use std::time::Duration;

/// The longest that a clone may take: a copy-on-write clone takes milliseconds.
const CLONE_DEADLINE: Duration = Duration::from_secs(120);
/// How often the guest's agent is tried while the guest boots.
const READY_INTERVAL: Duration = Duration::from_millis(100);

pub(super) async fn step(machine: &Machine, vm: &Vm, wake: &VmWake) -> Result<Next, DriverError> {
    if let Some(end) = wanted_end(machine, vm).await? {
        return ending::stop(machine, vm, end).await;
    }
    match vm.state {
        VmState::Planned => effect!("lifecycle.begin_clone", begin(machine, vm, VmEvent::BeginClone).await),
        VmState::Cloning => clone(machine, vm).await,
        VmState::Cloned => effect!("lifecycle.begin_boot", begin(machine, vm, VmEvent::BeginBoot).await),
        _ => boot(machine, vm, wake).await,
    }
}

/// Somebody wants the vm destroyed before it is ready.
async fn wanted_end(machine: &Machine, vm: &Vm) -> Result<Option<VmEnd>, DriverError> {
    Ok(vms::watch(&machine.pool, vm.id).await?.and_then(|watch| watch.kill_asked))
}

/// Writes the intent; the act follows when the row is read again.
async fn begin(machine: &Machine, vm: &Vm, event: VmEvent) -> Result<Next, DriverError> {
    let _ = machine.advance(vm, event).await?;
    Ok(Next::Again)
}

async fn clone(machine: &Machine, vm: &Vm) -> Result<Next, DriverError> {
    let outcome = match machine.spec(vm) {
        Ok(spec) => {
            effect!("lifecycle.clone", tokio::time::timeout(CLONE_DEADLINE, machine.hypervisor.clone_vm(&spec)).await)
        }
        Err(error) => return fail(machine, vm, VmEnd::CloneFailed, error).await,
    };
    match outcome {
        Ok(Ok(())) => effect!("lifecycle.cloned", begin(machine, vm, VmEvent::Cloned).await),
        Ok(Err(error)) => fail(machine, vm, VmEnd::CloneFailed, error).await,
        Err(_) => fail(machine, vm, VmEnd::CloneFailed, too_slow("cloning")).await,
    }
}

/// What happened first while the guest booted.
enum Boot {
    Ready,
    ProcessEnded,
    TooSlow,
    Wanted(VmEnd),
    /// Its row moved, or the daemon stops.
    LookAgain,
}

async fn boot(machine: &Machine, vm: &Vm, wake: &VmWake) -> Result<Next, DriverError> {
    let Some(left) = time_left(machine, vm).await? else {
        return fail(machine, vm, VmEnd::BootTimeout, too_slow("booting")).await;
    };
    let spec = machine.spec(vm)?;
    match effect!("lifecycle.boot", tokio::time::timeout(left, machine.hypervisor.boot(&spec)).await) {
        Ok(outcome) => {
            tell_session(machine, outcome.as_ref().err());
            if let Err(error) = outcome {
                return fail(machine, vm, end_of(&error), error).await;
            }
        }
        Err(_) => return fail(machine, vm, VmEnd::BootTimeout, too_slow("starting the process")).await,
    }
    effect!("lifecycle.booted", vms::mark_booted(&machine.pool, machine.fence, vm.id).await)?;
    match until_ready(machine, vm, wake, left).await? {
        Boot::Ready => ready(machine, vm).await,
        Boot::Wanted(end) => ending::stop(machine, vm, end).await,
        Boot::LookAgain => Ok(Next::Again),
        Boot::ProcessEnded => {
            let words = machine.hypervisor.last_words(vm.id).await.unwrap_or_default();
            let error = HypervisorError::Process(format!("it ended while the guest booted: {words}"));
            fail(machine, vm, VmEnd::BootFailed, error).await
        }
        Boot::TooSlow => fail(machine, vm, VmEnd::BootTimeout, too_slow("booting")).await,
    }
}

/// Shows a machine without a session as a trouble, as long as that is so.
fn tell_session(machine: &Machine, error: Option<&HypervisorError>) {
    let trouble = match error {
        None => None,
        Some(HypervisorError::NoSession(text)) => Some(Trouble {
            what: format!("no vm starts on {}: there is no session to run it in", machine.name),
            evidence: text.clone(),
            fix: "log in at its screen as the user of flyci's host service, and unlock the login keychain".to_owned(),
        }),
        // Another failure says nothing of the session.
        Some(_) => return,
    };
    machine.troubles.set(troubles::SESSION, trouble);
}

/// What a start that failed says of the vm: what no image is to blame for is not charged to one.
const fn end_of(error: &HypervisorError) -> VmEnd {
    match error {
        HypervisorError::SlotLost(_) => VmEnd::NoSlot,
        HypervisorError::Image { .. }
        | HypervisorError::Unfit(_)
        | HypervisorError::NoRoom(_)
        | HypervisorError::NoSession(_)
        | HypervisorError::Process(_)
        | HypervisorError::Io { .. } => VmEnd::BootFailed,
    }
}

/// The rest of the boot deadline, counted from the process's start; `None` when it has passed.
async fn time_left(machine: &Machine, vm: &Vm) -> Result<Option<Duration>, DriverError> {
    let Some(booted_at) = vm.booted_at else { return Ok(Some(machine.limits.boot)) };
    let Some(watch) = vms::watch(&machine.pool, vm.id).await? else { return Ok(None) };
    let passed = (watch.now - booted_at).to_std().unwrap_or_default();
    Ok(machine.limits.boot.checked_sub(passed).filter(|left| !left.is_zero()))
}

async fn until_ready(machine: &Machine, vm: &Vm, wake: &VmWake, left: Duration) -> Result<Boot, DriverError> {
    let guest = machine.hypervisor.guest(vm.id);
    let ready = answers(&guest);
    let ended = machine.hypervisor.ended(vm.id);
    let late = tokio::time::sleep(left);
    tokio::pin!(ready, ended, late);
    loop {
        tokio::select! {
            () = &mut ready => return Ok(Boot::Ready),
            () = &mut ended => return Ok(Boot::ProcessEnded),
            () = &mut late => return Ok(Boot::TooSlow),
            () = machine.shutdown.cancelled() => return Ok(Boot::LookAgain),
            () = wake.wait(PERIOD) => match vms::watch(&machine.pool, vm.id).await? {
                Some(Watch { kill_asked: Some(end), .. }) => return Ok(Boot::Wanted(end)),
                // This host was believed dead, and the vm abandoned.
                Some(watch) if watch.state != vm.state => return Ok(Boot::LookAgain),
                Some(_) => {}
                None => return Ok(Boot::LookAgain),
            }
        }
    }
}

/// Resolves when the agent answers and the guest is prepared.
async fn answers(guest: &Arc<dyn Guest>) {
    while guest.ready().await.is_err() {
        tokio::time::sleep(READY_INTERVAL).await;
    }
}

async fn ready(machine: &Machine, vm: &Vm) -> Result<Next, DriverError> {
    match isolation::breach(machine, vm).await? {
        None => {}
        Some(error @ BreachError::Reached(_)) => return fail(machine, vm, VmEnd::NotIsolated, error).await,
        Some(error) => return fail(machine, vm, VmEnd::BootFailed, error).await,
    }
    if effect!("lifecycle.ready", machine.advance(vm, VmEvent::Ready).await)? == Applied::Yes {
        let (pool, host) = (&machine.pool, machine.fence.host);
        effect!("lifecycle.image_booted", hosts::image_booted(pool, host, &vm.image).await)?;
        effect!("lifecycle.image_proven", hosts::image_proven(pool, host, &vm.image).await)?;
        machine.wakes.demand.notify_one();
    }
    Ok(Next::Again)
}

async fn fail(machine: &Machine, vm: &Vm, end: VmEnd, error: impl Into<DriverError>) -> Result<Next, DriverError> {
    let error = crate::errors::chain(&error.into()).to_string();
    tracing::warn!(vm.id = %vm.id, image = %vm.image, reason = %end, error, "the vm did not come up");
    ending::stop(machine, vm, end).await
}

fn too_slow(doing: &str) -> HypervisorError {
    HypervisorError::Process(format!("{doing} took longer than it may"))
}
