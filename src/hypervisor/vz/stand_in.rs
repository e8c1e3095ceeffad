//! A machine for tests, where there is no Virtualization.framework: what it boots is a program, `flyci-agent` on a Unix
//! socket, so that a real runner runs through the code that drives real VMs.
//!
//! It is told by a file of the vm's directory what to boot, and what goes wrong; without the file there is no stand-in.
//! On Linux the program is the first process of a namespace of its own, so all that it starts ends with it, as with a
//! machine. Programs built without the feature `demo` have no stand-in.

use super::fault::{Fault, FaultReason};
use super::machine::{Vm, VmState};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, watch};
use tokio::time::sleep;

/// The file that says what to boot.
pub const SCRIPT_FILE: &str = "stand-in.json";

/// A file that lets something happen while the machine runs: a word of [`Happening`], in JSON.
pub const EVENT_FILE: &str = "stand-in.event";

/// The socket that the program serves, in the vm's directory.
pub const GUEST_SOCKET: &str = "guest.sock";

/// What a saved stand-in begins with.
const SAVED: &[u8] = b"a stand-in's memory\n";

/// How often the event file is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// What a stand-in boots, and what it does on request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Script {
    /// The program and its arguments: `flyci-agent --unix guest.sock`. Its directory is the vm's.
    pub boots: Vec<String>,
    /// What a start comes to.
    #[serde(default)]
    pub start: Act,
    /// What a stop comes to.
    #[serde(default)]
    pub stop: Act,
}

/// What a request comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// It is done.
    #[default]
    Well,
    /// It fails with this.
    Fail(FaultReason),
    /// It never ends.
    Hang,
    /// The process crashes.
    Crash,
}

/// What may happen to a machine that runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happening {
    /// The guest powers itself off.
    PowerOff,
    /// The machine ends by an error.
    Fail(FaultReason),
    /// The process crashes.
    Crash,
}

/// The stand-in of a directory.
pub struct StandIn {
    directory: PathBuf,
    state: watch::Sender<VmState>,
    program: Arc<Mutex<Option<Child>>>,
}

impl StandIn {
    /// The stand-in in a directory, if its file is there. `directory` may be empty: the working directory.
    #[must_use]
    pub fn open(directory: &Path) -> Option<Arc<dyn Vm>> {
        directory.join(SCRIPT_FILE).is_file().then(|| Arc::new(Self::new(directory)) as Arc<dyn Vm>)
    }

    fn new(directory: &Path) -> Self {
        let state = watch::Sender::new(VmState::Stopped);
        Self { directory: directory.to_owned(), state, program: Arc::default() }
    }

    fn script(&self) -> Result<Script, Fault> {
        let read =
            || -> io::Result<Script> { Ok(serde_json::from_slice(&fs::read(self.directory.join(SCRIPT_FILE))?)?) };
        read().map_err(|error| fault(FaultReason::Unfit, format!("{SCRIPT_FILE}: {error}")))
    }

    fn now(&self, state: VmState) {
        self.state.send_replace(state);
    }

    fn is(&self, wanted: &VmState) -> Result<(), Fault> {
        let state = self.state.borrow();
        if *state == *wanted {
            return Ok(());
        }
        Err(fault(FaultReason::WrongState, format!("it is {:?}, not {wanted:?}", *state)))
    }

    async fn boot(&self, script: &Script) -> Result<(), Fault> {
        let child = command(&self.directory, &script.boots).and_then(|mut command| command.spawn());
        let child = child.map_err(|error| fault(FaultReason::Unfit, format!("{:?}: {error}", script.boots)))?;
        *self.program.lock().await = Some(child);
        self.now(VmState::Running);
        let (program, state, event) = (Arc::clone(&self.program), self.state.clone(), self.directory.join(EVENT_FILE));
        tokio::spawn(async move { watch_over(&program, &state, &event).await });
        Ok(())
    }

    async fn end_program(&self) {
        if let Some(mut child) = self.program.lock().await.take() {
            // It may have ended by itself.
            let _ = child.kill().await;
        }
    }
}

#[async_trait::async_trait]
impl Vm for StandIn {
    async fn start(&self) -> Result<(), Fault> {
        self.is(&VmState::Stopped)?;
        self.now(VmState::Starting);
        let outcome = async {
            let script = self.script()?;
            act(script.start).await?;
            self.boot(&script).await
        };
        outcome.await.inspect_err(|fault| self.now(VmState::Failed(fault.clone())))
    }

    async fn stop(&self) -> Result<(), Fault> {
        act(self.script()?.stop).await?;
        self.now(VmState::Stopped);
        self.end_program().await;
        Ok(())
    }

    async fn pause(&self) -> Result<(), Fault> {
        self.is(&VmState::Running)?;
        self.now(VmState::Paused);
        Ok(())
    }

    async fn resume(&self) -> Result<(), Fault> {
        self.is(&VmState::Paused)?;
        self.now(VmState::Running);
        Ok(())
    }

    async fn save(&self, file: &Path) -> Result<(), Fault> {
        self.is(&VmState::Paused)?;
        fs::write(file, SAVED).map_err(|error| fault(FaultReason::Internal, error.to_string()))
    }

    async fn restore(&self, file: &Path) -> Result<(), Fault> {
        self.is(&VmState::Stopped)?;
        let saved = fs::read(file).map_err(|error| fault(FaultReason::StateMismatch, error.to_string()))?;
        if saved != SAVED {
            return Err(fault(FaultReason::StateMismatch, "it is no stand-in's".to_owned()));
        }
        self.boot(&self.script()?).await?;
        self.now(VmState::Paused);
        Ok(())
    }

    async fn connect(&self, _port: u32) -> Result<OwnedFd, Fault> {
        self.is(&VmState::Running)?;
        let connected = UnixStream::connect(self.directory.join(GUEST_SOCKET));
        connected.map(OwnedFd::from).map_err(|error| fault(FaultReason::Network, error.to_string()))
    }

    fn state(&self) -> watch::Receiver<VmState> {
        self.state.subscribe()
    }
}

fn fault(reason: FaultReason, detail: String) -> Fault {
    Fault { reason, detail }
}

/// Does what the script says of a request.
async fn act(act: Act) -> Result<(), Fault> {
    match act {
        Act::Well => Ok(()),
        Act::Fail(reason) => Err(fault(reason, "the stand-in was told to fail".to_owned())),
        Act::Hang => std::future::pending().await,
        Act::Crash => std::process::abort(),
    }
}

/// Tells how the machine ends: with its program, or by what the event file says.
async fn watch_over(program: &Mutex<Option<Child>>, state: &watch::Sender<VmState>, event: &Path) {
    let ends = |end: VmState| {
        state.send_if_modified(|state| {
            // A stop of ours is told already.
            let runs = matches!(state, VmState::Running | VmState::Paused);
            if runs {
                *state = end;
            }
            runs
        });
    };
    loop {
        let ended = program.lock().await.as_mut().map(Child::try_wait);
        match ended {
            None => return,
            Some(Ok(None)) => {}
            Some(Ok(Some(status))) if status.success() => return ends(VmState::PoweredOff),
            Some(ended) => {
                return ends(VmState::Failed(fault(FaultReason::Internal, format!("its program ended: {ended:?}"))));
            }
        }
        let happening = fs::read(event).ok().and_then(|text| serde_json::from_slice(&text).ok());
        match happening {
            None => sleep(LOOK).await,
            Some(Happening::PowerOff) => return ends(VmState::PoweredOff),
            Some(Happening::Fail(reason)) => {
                return ends(VmState::Failed(fault(reason, "the stand-in was told to fail".to_owned())));
            }
            Some(Happening::Crash) => std::process::abort(),
        }
    }
}

/// The program, in a namespace of its processes' own: it ends with this process, and all it began ends with it.
#[cfg(target_os = "linux")]
fn command(directory: &Path, boots: &[String]) -> io::Result<Command> {
    const ALONE: [&str; 12] = [
        "--pdeathsig",
        "KILL",
        "unshare",
        "--user",
        "--map-current-user",
        "--pid",
        "--fork",
        "--kill-child=KILL",
        "--mount-proc",
        "sh",
        "-c",
        // The program is not the first process itself: `flyci-agent` would bring up a machine.
        "\"$@\" & wait $!",
    ];
    let mut command = Command::new("setpriv");
    command.args(ALONE).arg("sh").args(boots);
    prepared(directory, command)
}

/// The program. What it began may outlive it.
#[cfg(not(target_os = "linux"))]
fn command(directory: &Path, boots: &[String]) -> io::Result<Command> {
    let mut words = boots.iter();
    let mut command = Command::new(words.next().ok_or(io::ErrorKind::InvalidInput)?);
    command.args(words);
    prepared(directory, command)
}

fn prepared(directory: &Path, mut command: Command) -> io::Result<Command> {
    let home = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    command.current_dir(home).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    Ok(command)
}
