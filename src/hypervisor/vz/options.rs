//! What the backend is told: `[host]`, `[host.vz]` and the data directory.

use crate::domain::units::Bytes;
use crate::hypervisor::clone::How;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Free space that the host keeps for itself (its database is on the same disk), unless told else.
const DEFAULT_RESERVE: Bytes = Bytes(10_000_000_000);

/// How long a machine may take to run: the guest boots afterwards.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// How long a machine may take to stop before its process is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// The pauses between tries while the platform lets go of a slot: it takes seconds.
const SLOT_PAUSES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(4), Duration::from_secs(10), Duration::from_secs(15)];

/// Who starts the processes of VMs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spawn {
    /// This daemon: for development.
    Fork,
    /// launchd, in the graphical session of a user.
    Launchd {
        /// The user's id.
        uid: u32,
        /// Whether a session that was lost is brought back.
        restore_session: bool,
    },
}

/// What the backend is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where VMs and images are: one volume.
    pub data_dir: PathBuf,
    /// `flyci` itself.
    pub program: PathBuf,
    /// Who starts it.
    pub spawn: Spawn,
    /// VMs at once.
    pub slots: u32,
    /// How clones are made.
    pub how: How,
    /// Free space that the host keeps for itself.
    pub reserve: Bytes,
    /// How long a machine may take to run.
    pub start_deadline: Duration,
    /// How long a machine may take to stop before its process is killed.
    pub stop_deadline: Duration,
    /// The pauses between tries while the platform lets go of a slot.
    pub slot_pauses: Vec<Duration>,
    /// What takes the place of the framework, in tests.
    #[cfg(feature = "demo")]
    pub stand_ins: Option<std::sync::Arc<StandIns>>,
}

impl Options {
    /// The defaults, in this data directory.
    #[must_use]
    pub fn new(data_dir: &Path, program: PathBuf, spawn: Spawn) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            program,
            spawn,
            slots: 2,
            how: How::default(),
            reserve: DEFAULT_RESERVE,
            start_deadline: START_DEADLINE,
            stop_deadline: STOP_DEADLINE,
            slot_pauses: SLOT_PAUSES.to_vec(),
            #[cfg(feature = "demo")]
            stand_ins: None,
        }
    }
}

/// The stand-ins of all VMs: each does what the script says when its clone is made.
#[cfg(feature = "demo")]
#[derive(Debug)]
pub struct StandIns {
    script: std::sync::Mutex<super::stand_in::Script>,
    /// An unpacked runner that each finds.
    runner: PathBuf,
}

#[cfg(feature = "demo")]
impl StandIns {
    /// Stand-ins that boot this agent, with this runner.
    #[must_use]
    pub fn new(agent: &Path, runner: &Path) -> Self {
        use super::stand_in::{Act, GUEST_SOCKET, Script};
        let boots = [agent.display().to_string(), "--unix".to_owned(), GUEST_SOCKET.to_owned()].into();
        let script = std::sync::Mutex::new(Script { boots, start: Act::Well, stop: Act::Well });
        Self { script, runner: runner.to_owned() }
    }

    /// Changes what the next ones do.
    pub fn change(&self, change: impl FnOnce(&mut super::stand_in::Script)) {
        change(&mut self.script.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    /// Writes the script into a vm's directory.
    pub(super) fn lay(&self, vm: &Path) -> std::io::Result<()> {
        let script = self.script.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        std::fs::write(vm.join(super::stand_in::SCRIPT_FILE), serde_json::to_vec(&*script)?)
    }

    /// Each is on this machine's own file system, and keeps to its vm's directory there.
    pub(super) fn guest(&self, vm: &Path) -> crate::guest::GuestOptions {
        crate::guest::GuestOptions {
            state: vm.join("guest-state").display().to_string(),
            runner_directories: vec![self.runner.display().to_string()],
            ..crate::guest::GuestOptions::default()
        }
    }
}
