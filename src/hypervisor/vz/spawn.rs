//! Who starts a VM's process, and in which session.
//!
//! [`Fork`]: a child of the daemon, for development and tests. [`Launchd`]: a launchd job in the graphical session of
//! the daemon's user (`gui/UID`): macOS guests from version 15 on need that session and its keychain, and a launchd job
//! outlives the daemon, however that ends. What is said to launchctl and what it answers is planned and read by pure
//! functions in [`launchd`].

use super::launchd::{self, Plan};
use crate::hypervisor::process::{Tool, ToolError};
use crate::hypervisor::record::VmDirectory;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

/// What a VM's process says, in its directory.
pub(super) const LOG_FILE: &str = "vm.log";

/// How long launchctl may take.
const LAUNCHCTL: Duration = Duration::from_secs(20);

/// How long a session may take to come back.
const SESSION_BACK: Duration = Duration::from_secs(30);

/// Pause between looks for it.
const LOOK: Duration = Duration::from_millis(500);

/// Why a process was not started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// There is no session to start it in.
    #[error("{0}")]
    NoSession(String),
    /// launchd did not do it.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The file system or the kernel did not.
    #[error("the process could not be started")]
    Io(#[from] io::Error),
}

/// A way to start the processes of VMs.
#[async_trait::async_trait]
pub(crate) trait Spawner: Send + Sync {
    /// Starts the process of a VM, under the lock that was taken for it. A child is collected by the caller.
    async fn spawn(&self, vm: &VmDirectory, lock: File) -> Result<Option<Child>, SpawnError>;

    /// Forgets what was made around a process that has ended.
    async fn forget(&self, vm: &VmDirectory) -> Result<(), SpawnError>;
}

/// The program that runs, and what it is told.
fn words(program: &Path, vm: &VmDirectory) -> Vec<String> {
    [program.display().to_string(), "vm".to_owned(), "--directory".to_owned(), vm.path().display().to_string()].into()
}

fn log(vm: &VmDirectory) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(vm.path().join(LOG_FILE))
}

/// Children of this daemon. They begin a session of their own, and live on when it ends.
pub(crate) struct Fork {
    /// `flyci` itself.
    pub(crate) program: PathBuf,
}

#[async_trait::async_trait]
impl Spawner for Fork {
    async fn spawn(&self, vm: &VmDirectory, lock: File) -> Result<Option<Child>, SpawnError> {
        let words = words(&self.program, vm);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().env("PATH", launchd::PATH).env("LC_ALL", "C.UTF-8");
        command.current_dir(vm.path()).stdin(Stdio::from(lock)).stdout(Stdio::null()).stderr(Stdio::from(log(vm)?));
        Ok(Some(command.spawn()?))
    }

    async fn forget(&self, _: &VmDirectory) -> Result<(), SpawnError> {
        Ok(())
    }
}

/// Jobs of launchd in a user's graphical session.
pub(crate) struct Launchd {
    /// `flyci` itself.
    pub(crate) program: PathBuf,
    /// Whose session.
    pub(crate) uid: u32,
    /// A session that was lost is brought back by `killall -HUP loginwindow`, which the user may do without a password.
    pub(crate) restore_session: bool,
}

impl Launchd {
    fn plan(&self, vm: &VmDirectory) -> Plan {
        Plan::new(self.uid, &words(&self.program, vm), vm.path(), &vm.lock_file(), &vm.path().join(LOG_FILE))
    }

    async fn session_is_there(&self) -> Result<bool, ToolError> {
        match run(&launchd::print_session(self.uid)).await {
            Ok(said) => Ok(launchd::is_graphical(&said)),
            Err(ToolError::Failed { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes sure of the session, and brings it back where that is allowed.
    async fn ensure_session(&self) -> Result<(), SpawnError> {
        if self.session_is_there().await? {
            return Ok(());
        }
        let lost = |more: &str| {
            SpawnError::NoSession(format!(
                "the user with id {} has no graphical session: log in at the screen (or by screen sharing) as that user{more}",
                self.uid
            ))
        };
        if !self.restore_session {
            return Err(lost(", or set restore_session under [host.vz]"));
        }
        tracing::warn!(uid = self.uid, "the graphical session is lost: loginwindow is told to make it again");
        if let Err(error) = run(&launchd::restore_session()).await {
            return Err(lost(&format!("; it could not be brought back: {error}")));
        }
        let deadline = Instant::now() + SESSION_BACK;
        while !self.session_is_there().await? {
            if Instant::now() > deadline {
                return Err(lost("; loginwindow was told to make it again, and did not"));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl Spawner for Launchd {
    async fn spawn(&self, vm: &VmDirectory, lock: File) -> Result<Option<Child>, SpawnError> {
        self.ensure_session().await?;
        let plan = self.plan(vm);
        // launchd opens it otherwise, for whoever may read.
        drop(log(vm)?);
        fs::write(&plan.file, &plan.plist)?;
        // A job of that name is of a process that has ended: the lock was free.
        self.forget(vm).await?;
        // The process takes it itself: launchd gives it the file, unlocked.
        drop(lock);
        run(&plan.bootstrap).await?;
        Ok(None)
    }

    async fn forget(&self, vm: &VmDirectory) -> Result<(), SpawnError> {
        match run(&self.plan(vm).bootout).await {
            Err(ToolError::Failed { complaint, .. }) if launchd::is_not_there(&complaint) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(()),
        }
    }
}

async fn run(words: &[String]) -> Result<String, ToolError> {
    let said = Tool::new(&words[0], LAUNCHCTL)?.args(&words[1..]).run().await?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}
