//! From a clone to a machine that runs: the process is started, spoken to, and asked for its start; again where the
//! platform has not let go of a slot yet.

use super::backend::{Vz, now, of_spawn};
use super::client::{Client, ControlError};
use super::end::{Cause, Death};
use super::fault::{Fault, FaultReason};
use super::protocol::{Condition, Request};
use super::recipe::RECIPE_FILE;
use super::server::CONTROL_SOCKET;
use super::slots::LostSlots;
use super::spawn::LOG_FILE;
use crate::domain::ids::VmId;
use crate::errors::chain;
use crate::hypervisor::log::tail;
use crate::hypervisor::record::{self, Process, VmDirectory};
use crate::hypervisor::{HypervisorError, VmSpec, io_error};
use std::fs::{self, File};
use std::io;
use std::time::Duration;
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// How long a process may take until it can be spoken to.
const PROCESS_UP: Duration = Duration::from_secs(30);

/// How long a question about the machine's state may take.
const STATE: Duration = Duration::from_secs(5);

/// Pause between looks for what a process that came up no further left.
const LOOK: Duration = Duration::from_millis(50);

/// Why a try to boot came to nothing.
enum Failure {
    /// The machine complained.
    Fault(Fault),
    /// Something else.
    Other(HypervisorError),
}

impl From<HypervisorError> for Failure {
    fn from(error: HypervisorError) -> Self {
        Self::Other(error)
    }
}

impl Vz {
    /// One try: a process that can be spoken to, and a machine that runs.
    async fn try_boot(&self, spec: &VmSpec, vm: &VmDirectory) -> Result<(), Failure> {
        let at = |source| io_error("start the vm in", vm.path(), source);
        let mut child = match vm.take_lock().map_err(at)? {
            Some(lock) => self.spawn(spec, vm, lock).await?,
            // A daemon before this one has started it, and may have come no further.
            None => None,
        };
        let socket = vm.path().join(CONTROL_SOCKET);
        let up = timeout_at(Instant::now() + PROCESS_UP, async {
            tokio::select! {
                client = Client::wait(&socket) => client.map_err(of_control),
                death = self.death_of(vm, child.as_mut()) => Err(of_death(&death)),
            }
        });
        let late =
            |_| Failure::Other(HypervisorError::Process(format!("it was not up within {} s", PROCESS_UP.as_secs())));
        let outcome = match up.await.map_err(late).flatten() {
            Ok(client) => self.start(vm, client).await,
            Err(failure) => Err(failure),
        };
        match outcome {
            Ok(()) => {
                if let Some(child) = child {
                    tokio::spawn(collect(spec.id, vm.clone(), child));
                }
                Ok(())
            }
            Err(failure) => {
                if matches!(failure, Failure::Fault(_)) {
                    // It ends by itself then, and says why; one that does not is killed.
                    let _ = timeout(self.options.stop_deadline, vm.ended()).await;
                }
                vm.kill().await.map_err(at)?;
                self.spawner.forget(vm).await.map_err(of_spawn)?;
                Err(failure.with_log(vm))
            }
        }
    }

    /// Asks the process for its machine's start, unless that was done before.
    async fn start(&self, vm: &VmDirectory, mut client: Client) -> Result<(), Failure> {
        if let Some(pid) = client.process() {
            note_process(vm, pid).map_err(|source| io_error("write the record in", vm.path(), source))?;
        }
        let asked = match client.ask(&Request::State, STATE).await.map_err(of_control)? {
            Condition::Running | Condition::Paused => Condition::Running,
            _ => client.ask(&Request::Start, self.options.start_deadline).await.map_err(of_control)?,
        };
        tracing::debug!(path = %vm.path().display(), program = client.program(), state = ?asked, "the machine runs");
        Ok(())
    }

    async fn spawn(&self, spec: &VmSpec, vm: &VmDirectory, lock: File) -> Result<Option<Child>, Failure> {
        let recipe = self.recipe(spec, vm)?;
        let write = || -> io::Result<()> {
            Death::forget(vm.path())?;
            fs::write(vm.path().join(RECIPE_FILE), serde_json::to_vec_pretty(&recipe)?)?;
            let mut record = vm.read_record()?;
            record.process = Some(Process { boot_id: record::boot_id()?, pid: None, start_time: None });
            vm.write_record(&record)
        };
        write().map_err(|source| io_error("write the recipe in", vm.path(), source))?;
        self.spawner.spawn(vm, lock).await.map_err(|error| Failure::Other(of_spawn(error)))
    }

    /// Resolves with why a process that was to come up ended. One that launchd started is known by what it leaves.
    async fn death_of(&self, vm: &VmDirectory, child: Option<&mut Child>) -> Death {
        if let Some(child) = child {
            let status = child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
            let left = Death::read(vm.path()).ok().flatten();
            return left.unwrap_or_else(|| Death::new(Cause::Killed, format!("it ended at once ({status})")));
        }
        loop {
            if let Ok(Some(death)) = Death::read(vm.path()) {
                return death;
            }
            sleep(LOOK).await;
        }
    }

    /// Boots, again where the platform has not let go of a slot yet.
    pub(super) async fn boot_until_settled(&self, spec: &VmSpec, vm: &VmDirectory) -> Result<(), HypervisorError> {
        let mut pauses = self.options.slot_pauses.iter();
        loop {
            let fault = match self.try_boot(spec, vm).await {
                Ok(()) => return Ok(()),
                Err(Failure::Other(error)) => return Err(error),
                Err(Failure::Fault(fault)) => fault,
            };
            if fault.reason != FaultReason::LimitExceeded {
                return Err(of_fault(fault, spec));
            }
            let strays = self.end_strays().await?;
            match pauses.next() {
                Some(pause) => {
                    tracing::warn!(vm.id = %spec.id, strays, again_in = ?pause, "the platform has no slot for the vm");
                    sleep(*pause).await;
                }
                None => return Err(self.out_of_slots(spec.id, &fault)),
            }
        }
    }

    /// Ends processes whose directories were removed under them: they hold slots that nobody counts.
    async fn end_strays(&self) -> Result<usize, HypervisorError> {
        let mut ended = 0;
        for id in self.list_now()? {
            let vm = self.home.of(id);
            if vm.read_record().is_err() && vm.is_alive().unwrap_or(false) {
                vm.kill().await.map_err(|source| io_error("kill the stray in", vm.path(), source))?;
                ended += 1;
            }
        }
        Ok(ended)
    }

    /// The platform refuses a VM, and nothing of ours explains it.
    fn out_of_slots(&self, vm: VmId, fault: &Fault) -> HypervisorError {
        let living = self.living(vm);
        if living >= self.options.slots {
            return HypervisorError::NoRoom(format!("{living} VMs run here: {fault}"));
        }
        let mut lost = self.lost();
        lost.refused(living, self.options.slots, now());
        self.keep(&lost);
        HypervisorError::SlotLost(format!(
            "it starts no VM beside the {living} that live, and {} are configured: {fault}",
            self.options.slots
        ))
    }

    /// How many VMs live, without this one.
    pub(super) fn living(&self, vm: VmId) -> u32 {
        let others = self.home.list().unwrap_or_default().into_iter().filter(|other| *other != vm);
        let living = others.filter(|other| self.home.of(*other).is_alive().unwrap_or(true)).count();
        u32::try_from(living).unwrap_or(u32::MAX)
    }

    pub(super) fn keep(&self, lost: &LostSlots) {
        if let Err(error) = lost.write(&self.options.data_dir) {
            tracing::warn!(%error, "the lost slots cannot be written down: a restart of flyci forgets them");
        }
    }
}

impl Failure {
    /// Adds what the process said, where there is no fault that says more.
    fn with_log(self, vm: &VmDirectory) -> Self {
        match self {
            Self::Other(HypervisorError::Process(text)) => {
                Self::Other(HypervisorError::Process(format!("{text}: {}", tail(&vm.path().join(LOG_FILE)))))
            }
            other => other,
        }
    }
}

/// Writes down which process is the vm's.
fn note_process(vm: &VmDirectory, pid: u32) -> io::Result<()> {
    let mut record = vm.read_record()?;
    let (boot_id, start_time) = (record::boot_id()?, record::start_time(pid));
    record.process = Some(Process { boot_id, pid: Some(pid), start_time });
    vm.write_record(&record)
}

/// Takes the end of a process that this daemon started, and leaves word of a kill, which the process could not.
async fn collect(id: VmId, vm: VmDirectory, mut child: Child) {
    let status = child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
    tracing::debug!(vm.id = %id, status, "the vm's process ended");
    if vm.exists()
        && let Err(error) = Death::new(Cause::Killed, format!("it left no word, and ended so: {status}")).leave(vm.path())
        // A vm that is being destroyed has no use for it.
        && vm.exists()
    {
        tracing::warn!(vm.id = %id, %error, "how the vm's process ended cannot be written down");
    }
}

fn of_control(error: ControlError) -> Failure {
    match error {
        ControlError::Refused(fault) => Failure::Fault(fault),
        other => Failure::Other(HypervisorError::Process(chain(&other).to_string())),
    }
}

fn of_death(death: &Death) -> Failure {
    match death.fault() {
        Some(fault) => Failure::Fault(fault),
        None => Failure::Other(HypervisorError::Process(death.text.clone())),
    }
}

/// Whose fault a fault is.
fn of_fault(fault: Fault, spec: &VmSpec) -> HypervisorError {
    let text = fault.to_string();
    match fault.reason {
        FaultReason::LimitExceeded | FaultReason::OutOfSpace => HypervisorError::NoRoom(text),
        FaultReason::SessionLost => HypervisorError::NoSession(text),
        FaultReason::DiskBroken => HypervisorError::Image { path: spec.image.clone(), reason: text },
        FaultReason::Unfit => HypervisorError::Unfit(text),
        FaultReason::StorageLocked
        | FaultReason::Network
        | FaultReason::StateMismatch
        | FaultReason::WrongState
        | FaultReason::Internal => HypervisorError::Process(text),
    }
}
