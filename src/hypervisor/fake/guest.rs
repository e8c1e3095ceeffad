//! The inside of a vm that is not there: its agent, and the runner that it starts.

use crate::domain::ids::VmId;
use crate::guest::{Guest, GuestError, RunnerEnd, RunnerProbe, RunnerStart};
use secrecy::SecretString;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// What a fake vm does when it is given a JIT config.
#[async_trait::async_trait]
pub trait FakeRunner: Send + Sync + 'static {
    /// Runs until its job is over. Answers the exit status.
    async fn run(&self, jit_config: SecretString) -> RunnerEnd;
}

/// A runner that takes a time: `[host.fake] job`.
pub struct TimedRunner {
    /// How long; `None`: until GitHub says that the job is over.
    pub job: Option<Duration>,
}

#[async_trait::async_trait]
impl FakeRunner for TimedRunner {
    async fn run(&self, _jit_config: SecretString) -> RunnerEnd {
        match self.job {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
        RunnerEnd { status: 0, too_old: false }
    }
}

/// The process of a fake vm.
#[derive(Clone, Debug)]
pub(super) enum Process {
    NotStarted,
    Running { since: Instant, runner: Option<Running> },
    Ended,
}

/// The runner in it.
#[derive(Clone, Debug)]
pub(super) struct Running {
    name: String,
    registered_name: String,
    end: Option<RunnerEnd>,
}

impl Process {
    pub(super) const fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }

    pub(super) fn registered_name(&self) -> Option<String> {
        self.runner().map(|runner| runner.registered_name.clone())
    }

    const fn runner(&self) -> Option<&Running> {
        match self {
            Self::Running { runner, .. } => runner.as_ref(),
            Self::NotStarted | Self::Ended => None,
        }
    }
}

pub(super) struct FakeGuest {
    vm: VmId,
    process: Option<watch::Sender<Process>>,
    boot: Duration,
    runner: Arc<dyn FakeRunner>,
    faults: super::Faults,
}

impl FakeGuest {
    pub(super) const fn new(
        vm: VmId,
        process: Option<watch::Sender<Process>>,
        boot: Duration,
        runner: Arc<dyn FakeRunner>,
        faults: super::Faults,
    ) -> Self {
        Self { vm, process, boot, runner, faults }
    }

    fn process(&self) -> Result<&watch::Sender<Process>, GuestError> {
        self.process
            .as_ref()
            .filter(|process| process.borrow().is_running())
            .ok_or_else(|| GuestError::Unreachable(format!("vm {} does not run", self.vm)))
    }
}

#[async_trait::async_trait]
impl Guest for FakeGuest {
    async fn ready(&self) -> Result<(), GuestError> {
        let since = match *self.process()?.borrow() {
            Process::Running { since, .. } => since,
            Process::NotStarted | Process::Ended => Instant::now(),
        };
        tokio::time::sleep_until(since + self.boot).await;
        self.faults.strike(super::Step::Ready).await.map_err(|error| GuestError::Failed(error.to_string()))
    }

    async fn reached(&self, targets: &[SocketAddrV4]) -> Result<Vec<SocketAddrV4>, GuestError> {
        let reaches = self.faults.strike(super::Step::Reach).await.is_err();
        Ok(targets.iter().copied().filter(|_| reaches).collect())
    }

    async fn probe(&self, runner: &str) -> Result<RunnerProbe, GuestError> {
        let process = self.process()?.borrow();
        Ok(match process.runner().filter(|running| running.name == runner) {
            None => RunnerProbe::Absent,
            Some(Running { end: None, .. }) => RunnerProbe::Alive,
            Some(Running { end: Some(end), .. }) => RunnerProbe::Exited(end.status),
        })
    }

    async fn start(&self, start: RunnerStart) -> Result<(), GuestError> {
        self.faults.strike(super::Step::Start).await.map_err(|error| GuestError::Failed(error.to_string()))?;
        let process = self.process()?.clone();
        let fresh = process.send_if_modified(|process| match process {
            Process::Running { runner: runner @ None, .. } => {
                *runner = Some(Running {
                    name: start.name.clone(),
                    registered_name: start.registered_name.clone(),
                    end: None,
                });
                true
            }
            Process::Running { .. } | Process::NotStarted | Process::Ended => false,
        });
        if !fresh {
            return Err(GuestError::Failed("a runner was started here before".into()));
        }
        self.faults.tell("start", self.vm, Some(&start.registered_name));
        let runner = Arc::clone(&self.runner);
        // The vm's own life: it ends with the vm's process, not with the daemon's tasks.
        tokio::spawn(async move {
            let mut life = process.subscribe();
            tokio::select! {
                end = runner.run(start.jit_config) => finish(&process, end),
                _ = life.wait_for(|process| !process.is_running() || process.runner().is_some_and(|r| r.end.is_some())) => {}
            }
        });
        Ok(())
    }

    async fn wait(&self, runner: &str) -> Result<RunnerEnd, GuestError> {
        let mut life = self.process()?.subscribe();
        let seen = life
            .wait_for(|process| !process.is_running() || process.runner().is_some_and(|running| running.end.is_some()))
            .await
            .map_err(|_| GuestError::Unreachable("the vm is gone".into()))?;
        seen.runner()
            .filter(|running| running.name == runner)
            .and_then(|running| running.end.clone())
            .ok_or_else(|| GuestError::Unreachable("the vm's process ended".into()))
    }

    async fn job_is_over(&self, _runner: &str) {
        if let Some(process) = &self.process {
            finish(process, RunnerEnd { status: 0, too_old: false });
        }
    }
}

fn finish(process: &watch::Sender<Process>, end: RunnerEnd) {
    process.send_if_modified(|process| match process {
        Process::Running { runner: Some(runner), .. } if runner.end.is_none() => {
            runner.end = Some(end);
            true
        }
        Process::Running { .. } | Process::NotStarted | Process::Ended => false,
    });
}
