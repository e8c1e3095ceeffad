//! One machine of the framework, behind the trait [`Vm`].

use super::delegate::Delegate;
use super::queue::OnQueue;
use super::{configuration, failure, file_url};
use crate::hypervisor::vz::fault::{Fault, FaultReason};
use crate::hypervisor::vz::machine::{Vm, VmState};
use crate::hypervisor::vz::recipe::Recipe;
use block2::{DynBlock, RcBlock};
use dispatch2::DispatchQueue;
use objc2::AnyThread;
use objc2::rc::{Retained, Weak};
use objc2::runtime::ProtocolObject;
use objc2_foundation::NSError;
use objc2_virtualization::{VZVirtioSocketConnection, VZVirtioSocketDevice, VZVirtualMachine, VZVirtualMachineState};
use std::cell::Cell;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// How long the framework may take to start, stop, pause or resume a machine.
const STEP_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to write or read a machine's memory.
const MEMORY_LIMIT: Duration = Duration::from_secs(300);
/// How long a connection to the guest may take. The framework never answers where nobody listens.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// What the framework calls when a step is done: with null, or with what went wrong.
type Completion = DynBlock<dyn Fn(*mut NSError)>;

/// What may be touched on the machine's queue only.
struct Inner {
    machine: Retained<VZVirtualMachine>,
    /// The machine knows its delegate weakly: this keeps it.
    _delegate: Retained<Delegate>,
    /// Why the machine cannot be saved, if so.
    savable: Result<(), Fault>,
}

/// A machine, and the queue that it lives on.
pub(super) struct Machine {
    inner: OnQueue<Inner>,
    state: watch::Sender<VmState>,
}

/// A step that the framework takes for us.
struct Step {
    /// For messages: "start".
    name: &'static str,
    limit: Duration,
    /// Whether the machine is in a state for it.
    can: fn(&Inner) -> Result<bool, Fault>,
    /// What the machine does meanwhile, if that is told.
    meanwhile: Option<VmState>,
    /// What it does afterwards; nothing changes where there is none.
    afterwards: Option<VmState>,
}

impl Machine {
    /// Makes the machine of a recipe; it is not started.
    pub(super) fn new(recipe: &Recipe) -> Result<Self, Fault> {
        let (state, _) = watch::channel(VmState::Stopped);
        let (told, recipe) = (state.clone(), recipe.clone());
        let inner = OnQueue::make("flyci.machine", move |queue| Inner::new(queue, &recipe, told))?;
        Ok(Self { inner, state })
    }

    /// Has a step taken on the queue, and waits for its completion.
    async fn take(
        &self,
        step: Step,
        act: impl FnOnce(&VZVirtualMachine, &Completion) + Send + 'static,
    ) -> Result<(), Fault> {
        let (answer, answered) = oneshot::channel();
        let (state, name, limit) = (self.state.clone(), step.name, step.limit);
        self.inner.run(move |inner| inner.take(step, state, answer, act));
        wait(name, limit, answered).await
    }
}

impl Inner {
    fn new(queue: &DispatchQueue, recipe: &Recipe, state: watch::Sender<VmState>) -> Result<Self, Fault> {
        let parts = configuration::of(recipe)?;
        let delegate = Delegate::new(state);
        // SAFETY: The configuration was validated. This runs on the queue that the machine is given, which is serial,
        // and so does every later use of it: `OnQueue` sees to that.
        let (savable, machine) = unsafe {
            let savable = parts.validateSaveRestoreSupportWithError();
            let machine = VZVirtualMachine::initWithConfiguration_queue(VZVirtualMachine::alloc(), &parts, queue);
            machine.setDelegate(Some(ProtocolObject::from_ref(&*delegate)));
            (savable, machine)
        };
        Ok(Self { machine, _delegate: delegate, savable: savable.map_err(|error| failure::fault(&error)) })
    }

    fn take(
        &self,
        step: Step,
        state: watch::Sender<VmState>,
        answer: oneshot::Sender<Result<(), Fault>>,
        act: impl FnOnce(&VZVirtualMachine, &Completion),
    ) {
        match (step.can)(self) {
            Ok(true) => {}
            Ok(false) => return reply(answer, Err(self.wrong_state(step.name))),
            Err(fault) => return reply(answer, Err(fault)),
        }
        if let Some(meanwhile) = &step.meanwhile {
            state.send_replace(meanwhile.clone());
        }
        // Weakly: the framework may let go of the block on a thread of its own, where no machine may end.
        let (answer, machine) = (Cell::new(Some(answer)), Weak::from_retained(&self.machine));
        let completion = RcBlock::new(move |error: *mut NSError| {
            // SAFETY: The framework passes null, or an error that lives as long as this call.
            let result = unsafe { error.as_ref() }.map_or(Ok(()), |error| Err(failure::fault(error)));
            settle(machine.load().as_deref(), &step, &state, &result);
            if let Some(answer) = answer.take() {
                reply(answer, result);
            }
        });
        act(&self.machine, &completion);
    }

    fn wrong_state(&self, name: &str) -> Fault {
        // SAFETY: On the machine's queue.
        let state = unsafe { self.machine.state() };
        Fault::new(FaultReason::WrongState, format!("cannot {name} a machine in the framework's state {}", state.0))
    }

    fn connect(&self, port: u32, answer: oneshot::Sender<Result<OwnedFd, Fault>>) {
        // SAFETY: On the machine's queue.
        let device = unsafe { self.machine.socketDevices() }.firstObject();
        let Some(device) = device.and_then(|device| device.downcast::<VZVirtioSocketDevice>().ok()) else {
            return reply(answer, Err(Fault::new(FaultReason::WrongState, "the machine has no vsock device now")));
        };
        let answer = Cell::new(Some(answer));
        let completion = RcBlock::new(move |connection: *mut VZVirtioSocketConnection, error: *mut NSError| {
            // SAFETY: The framework passes a connection or null, and an error or null, that live as long as this call.
            let result = unsafe { descriptor(connection.as_ref(), error.as_ref()) };
            if let Some(answer) = answer.take() {
                reply(answer, result);
            }
        });
        // SAFETY: On the machine's queue; the framework copies the block.
        unsafe { device.connectToPort_completionHandler(port, &completion) };
    }
}

/// The descriptor of a connection, as one of our own: the connection closes its when it is freed.
///
/// # Safety
/// The connection, if there is one, is open for the length of the call.
unsafe fn descriptor(connection: Option<&VZVirtioSocketConnection>, error: Option<&NSError>) -> Result<OwnedFd, Fault> {
    let Some(connection) = connection else {
        return Err(
            error.map_or_else(|| Fault::new(FaultReason::Internal, "no connection, and no error"), failure::fault)
        );
    };
    // SAFETY: A property of a live object; it is -1 when the connection was closed already.
    let number = unsafe { connection.fileDescriptor() };
    if number < 0 {
        return Err(Fault::new(FaultReason::Internal, "the guest closed the connection at once"));
    }
    // SAFETY: The connection is alive and keeps the descriptor open while it is duplicated.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    borrowed.try_clone_to_owned().map_err(|error| {
        Fault::new(FaultReason::Internal, format!("cannot duplicate the connection's descriptor: {error}"))
    })
}

/// Tells what the machine does after a step. Runs on the machine's queue.
fn settle(machine: Option<&VZVirtualMachine>, step: &Step, state: &watch::Sender<VmState>, result: &Result<(), Fault>) {
    match result {
        Ok(()) => {
            if let Some(afterwards) = &step.afterwards {
                state.send_replace(afterwards.clone());
            }
        }
        Err(fault) => {
            // SAFETY: Completions are called on the machine's queue.
            let broken = machine.is_some_and(|machine| unsafe { machine.state() } == VZVirtualMachineState::Error);
            if broken || step.meanwhile.is_some() {
                state.send_replace(VmState::Failed(fault.clone()));
            }
        }
    }
}

/// Whoever asked may have stopped waiting.
fn reply<T>(answer: oneshot::Sender<T>, result: T) {
    let _ = answer.send(result);
}

async fn wait<T>(name: &str, limit: Duration, answered: oneshot::Receiver<Result<T, Fault>>) -> Result<T, Fault> {
    let silent = |how: String| Fault::new(FaultReason::Internal, format!("{name}: {how}"));
    match tokio::time::timeout(limit, answered).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(silent("the framework dropped the call without an answer".to_owned())),
        Err(_) => Err(silent(format!("no answer of the framework within {} s", limit.as_secs()))),
    }
}

#[async_trait::async_trait]
impl Vm for Machine {
    async fn start(&self) -> Result<(), Fault> {
        let step = Step {
            name: "start",
            limit: STEP_LIMIT,
            // SAFETY: On the machine's queue, as each `can` and each action below.
            can: |inner| Ok(unsafe { inner.machine.canStart() }),
            meanwhile: Some(VmState::Starting),
            afterwards: Some(VmState::Running),
        };
        // SAFETY: See above; the machine can start.
        self.take(step, |machine, done| unsafe { machine.startWithCompletionHandler(done) }).await
    }

    async fn stop(&self) -> Result<(), Fault> {
        if matches!(*self.state.borrow(), VmState::Stopped | VmState::PoweredOff | VmState::Failed(_)) {
            return Ok(());
        }
        let step = Step {
            name: "stop",
            limit: STEP_LIMIT,
            // SAFETY: On the machine's queue.
            can: |inner| Ok(unsafe { inner.machine.canStop() }),
            meanwhile: None,
            afterwards: Some(VmState::Stopped),
        };
        // SAFETY: On the machine's queue, and the machine can stop.
        self.take(step, |machine, done| unsafe { machine.stopWithCompletionHandler(done) }).await
    }

    async fn pause(&self) -> Result<(), Fault> {
        let step = Step {
            name: "pause",
            limit: STEP_LIMIT,
            // SAFETY: On the machine's queue.
            can: |inner| Ok(unsafe { inner.machine.canPause() }),
            meanwhile: None,
            afterwards: Some(VmState::Paused),
        };
        // SAFETY: On the machine's queue, and the machine can pause.
        self.take(step, |machine, done| unsafe { machine.pauseWithCompletionHandler(done) }).await
    }

    async fn resume(&self) -> Result<(), Fault> {
        let step = Step {
            name: "resume",
            limit: STEP_LIMIT,
            // SAFETY: On the machine's queue.
            can: |inner| Ok(unsafe { inner.machine.canResume() }),
            meanwhile: None,
            afterwards: Some(VmState::Running),
        };
        // SAFETY: On the machine's queue, and the machine can resume.
        self.take(step, |machine, done| unsafe { machine.resumeWithCompletionHandler(done) }).await
    }

    async fn save(&self, file: &Path) -> Result<(), Fault> {
        file_url(file)?;
        let file = file.to_owned();
        let step = Step {
            name: "save",
            limit: MEMORY_LIMIT,
            can: |inner| inner.can_keep_memory(VZVirtualMachineState::Paused),
            meanwhile: None,
            afterwards: None,
        };
        self.take(step, move |machine, done| {
            let url = file_url(&file).expect("looked at before");
            // SAFETY: On the machine's queue; the machine is paused, and can be saved.
            unsafe { machine.saveMachineStateToURL_completionHandler(&url, done) }
        })
        .await
    }

    async fn restore(&self, file: &Path) -> Result<(), Fault> {
        file_url(file)?;
        let file = file.to_owned();
        let step = Step {
            name: "restore",
            limit: MEMORY_LIMIT,
            can: |inner| inner.can_keep_memory(VZVirtualMachineState::Stopped),
            meanwhile: None,
            afterwards: Some(VmState::Paused),
        };
        self.take(step, move |machine, done| {
            let url = file_url(&file).expect("looked at before");
            // SAFETY: On the machine's queue; the machine is stopped, and can be restored.
            unsafe { machine.restoreMachineStateFromURL_completionHandler(&url, done) }
        })
        .await
    }

    async fn connect(&self, port: u32) -> Result<OwnedFd, Fault> {
        let (answer, answered) = oneshot::channel();
        self.inner.run(move |inner| inner.connect(port, answer));
        wait("connect to the guest", CONNECT_LIMIT, answered).await
    }

    fn state(&self) -> watch::Receiver<VmState> {
        self.state.subscribe()
    }
}

impl Inner {
    /// Whether the machine's memory can be written or read: it must be made for that, and in the one state for it.
    fn can_keep_memory(&self, state: VZVirtualMachineState) -> Result<bool, Fault> {
        self.savable.clone()?;
        // SAFETY: On the machine's queue.
        Ok(unsafe { self.machine.state() } == state)
    }
}
