//! VMs that are not there: for load, faults and tests, and for trying flyci without a hypervisor.
//!
//! Chosen by `[host] hypervisor = "fake"`. Steps take the configured times. A test may also let a step
//! fail or hang, and give the vms a runner that speaks to a simulated GitHub.

mod guest;

pub use guest::{FakeRunner, TimedRunner};

use super::{Hypervisor, HypervisorError, Presence, VmSpec};
use crate::domain::ids::VmId;
use crate::guest::Guest;
use guest::{FakeGuest, Process};
use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How often a step that hangs looks whether it is healed.
const HANG_LOOK: Duration = Duration::from_millis(20);

/// How long steps take: `[host.fake]`.
#[derive(Clone, Debug, Default)]
pub struct FakeOptions {
    /// Making a clone.
    pub clone: Duration,
    /// From the start of the process to a guest that is ready.
    pub boot: Duration,
    /// Destroying.
    pub destroy: Duration,
    /// Gets a line of JSON for each vm made, started and deleted.
    pub events_file: Option<PathBuf>,
}

/// A step that can be made to fail or hang.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// Making a clone.
    Clone,
    /// Starting the process.
    Boot,
    /// The guest becoming ready.
    Ready,
    /// Trying what the guest must not reach: a failure is that it reaches all of it.
    Reach,
    /// Starting the runner.
    Start,
    /// Destroying.
    Destroy,
}

/// What goes wrong with a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// So many times it fails at once.
    Fail(u32),
    /// It does not end until the fault is healed.
    Hang,
}

/// One vm that is not there.
struct FakeVm {
    process: watch::Sender<Process>,
}

/// What is to go wrong, and who is told what happened.
#[derive(Clone, Default)]
struct Faults {
    planned: Arc<Mutex<HashMap<Step, Fault>>>,
    events_file: Option<PathBuf>,
}

impl Faults {
    /// Goes wrong if the step is to.
    async fn strike(&self, step: Step) -> Result<(), HypervisorError> {
        let fault = {
            let mut planned = lock(&self.planned);
            let fault = planned.get(&step).copied();
            if let Some(Fault::Fail(times)) = fault {
                match times.checked_sub(1) {
                    Some(left) if left > 0 => planned.insert(step, Fault::Fail(left)),
                    Some(_) | None => planned.remove(&step),
                };
            }
            fault
        };
        match fault {
            None => Ok(()),
            Some(Fault::Fail(_)) => Err(HypervisorError::Process(format!("{step:?} was made to fail"))),
            Some(Fault::Hang) => {
                while lock(&self.planned).get(&step) == Some(&Fault::Hang) {
                    tokio::time::sleep(HANG_LOOK).await;
                }
                Ok(())
            }
        }
    }

    /// Tells the events file. A bench that cannot be told is a bench that fails loudly.
    fn tell(&self, op: &str, vm: VmId, runner: Option<&str>) {
        let Some(path) = &self.events_file else { return };
        let line = serde_json::json!({
            "t": chrono::Utc::now().timestamp_millis(), "op": op, "vm": vm.to_string(), "runner": runner,
        });
        let written = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|mut file| writeln!(file, "{line}"));
        if let Err(error) = written {
            tracing::error!(path = %path.display(), %error, "the events file cannot be written");
        }
    }
}

/// The machine that the vms are not on. Shared by the daemons that a test starts one after the other.
pub struct FakeHypervisor {
    options: FakeOptions,
    runner: Arc<dyn FakeRunner>,
    vms: Mutex<HashMap<VmId, FakeVm>>,
    faults: Faults,
}

impl FakeHypervisor {
    /// A machine whose vms run `runner`.
    #[must_use]
    pub fn new(options: FakeOptions, runner: Arc<dyn FakeRunner>) -> Arc<Self> {
        let faults = Faults { planned: Arc::default(), events_file: options.events_file.clone() };
        Arc::new(Self { options, runner, vms: Mutex::default(), faults })
    }

    /// Lets a step go wrong from now on.
    pub fn inject(&self, step: Step, fault: Fault) {
        lock(&self.faults.planned).insert(step, fault);
    }

    /// Lets a step go well again.
    pub fn heal(&self, step: Step) {
        lock(&self.faults.planned).remove(&step);
    }

    /// Ends a vm's process, as a crash would.
    pub fn crash(&self, vm: VmId) {
        if let Some(vm) = lock(&self.vms).get(&vm) {
            vm.process.send_replace(Process::Ended);
        }
    }

    /// The vms that are there.
    #[must_use]
    pub fn vms(&self) -> Vec<VmId> {
        lock(&self.vms).keys().copied().collect()
    }

    /// Does a step: takes its time, and goes wrong if it is to.
    async fn step(&self, step: Step, time: Duration) -> Result<(), HypervisorError> {
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
        self.faults.strike(step).await
    }

    fn process(&self, vm: VmId) -> Option<watch::Receiver<Process>> {
        lock(&self.vms).get(&vm).map(|vm| vm.process.subscribe())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait::async_trait]
impl Hypervisor for FakeHypervisor {
    async fn clone_vm(&self, spec: &VmSpec) -> Result<(), HypervisorError> {
        self.faults.tell("create", spec.id, None);
        lock(&self.vms).entry(spec.id).or_insert_with(|| FakeVm { process: watch::Sender::new(Process::NotStarted) });
        self.step(Step::Clone, self.options.clone).await
    }

    async fn boot(&self, spec: &VmSpec) -> Result<(), HypervisorError> {
        self.step(Step::Boot, Duration::ZERO).await?;
        let vms = lock(&self.vms);
        let vm = vms.get(&spec.id).ok_or_else(|| HypervisorError::Process("there is no clone".into()))?;
        vm.process.send_if_modified(|process| {
            let starts = matches!(process, Process::NotStarted);
            if starts {
                *process = Process::Running { since: tokio::time::Instant::now(), runner: None };
            }
            starts
        });
        Ok(())
    }

    async fn presence(&self, vm: VmId) -> Presence {
        match self.process(vm).map(|process| process.borrow().is_running()) {
            None => Presence::Absent,
            Some(false) => Presence::Dormant,
            Some(true) => Presence::Running,
        }
    }

    async fn ended(&self, vm: VmId) {
        if let Some(mut process) = self.process(vm) {
            // An error means that the vm is gone: that is an end too.
            let _ = process.wait_for(|process| !process.is_running()).await;
        }
    }

    async fn destroy(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.step(Step::Destroy, self.options.destroy).await?;
        let removed = lock(&self.vms).remove(&vm);
        if let Some(removed) = removed {
            let name = removed.process.borrow().registered_name();
            removed.process.send_replace(Process::Ended);
            self.faults.tell("delete", vm, name.as_deref());
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<VmId>, HypervisorError> {
        Ok(self.vms())
    }

    fn guest(&self, vm: VmId) -> Arc<dyn Guest> {
        let process = lock(&self.vms).get(&vm).map(|vm| vm.process.clone());
        Arc::new(FakeGuest::new(vm, process, self.options.boot, Arc::clone(&self.runner), self.faults.clone()))
    }
}
