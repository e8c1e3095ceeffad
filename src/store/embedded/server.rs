//! The server's process: started as our child, or found running and adopted; watched, and stopped.

use super::binaries::Binaries;
use super::cluster::Layout;
use super::{EmbeddedError, command, io_error};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Child;
use tokio::time::{Instant, sleep};

/// A start includes the recovery after a crash: minutes, with much to redo on a slow disk.
const START_DEADLINE: Duration = Duration::from_secs(300);
/// A fast stop rolls back what runs and writes a checkpoint.
const STOP_DEADLINE: Duration = Duration::from_secs(60);
/// After that it is told to stop at once, and recovers at the next start.
const QUIT_DEADLINE: Duration = Duration::from_secs(10);
/// How often a state is looked at that nothing tells of.
const POLL: Duration = Duration::from_millis(20);
/// How often an adopted server, which is no child of ours, is looked at.
const WATCH: Duration = Duration::from_millis(500);
/// What an error shows of the log: its last lines.
const LOG_LINES: usize = 6;

/// A running server.
#[derive(Debug)]
pub(super) struct Server {
    pid: Pid,
    /// `None` when an earlier daemon started it.
    child: Option<Child>,
    stopped: bool,
}

impl Server {
    /// Starts a server, or adopts the one that runs on this cluster already.
    pub async fn start(layout: &Layout, binaries: &Binaries) -> Result<Self, EmbeddedError> {
        if let Some(server) = Self::find(layout).await? {
            tracing::info!(pid = %server.pid, "the private Postgres runs already; it is adopted");
            return server.ready(layout).await;
        }
        let log = layout.open_log()?;
        let error_log = log.try_clone().map_err(|error| io_error(&layout.log(), "written", error))?;
        let program = binaries.program("postgres");
        let child = command::command(&program)
            .args(layout.arguments())
            .stdout(Stdio::from(log))
            .stderr(Stdio::from(error_log))
            // A process group of its own: what the terminal interrupts is the daemon, and that stops
            // Postgres last.
            .process_group(0)
            .spawn()
            .map_err(|error| io_error(&program, "started", error))?;
        let id = child.id().and_then(|id| i32::try_from(id).ok()).expect("it was not waited for yet");
        Self { pid: Pid::from_raw(id), child: Some(child), stopped: false }.ready(layout).await
    }

    /// The server that an earlier daemon left running on this cluster, if there is one.
    pub async fn find(layout: &Layout) -> Result<Option<Self>, EmbeddedError> {
        Ok(running(layout).await?.map(|pid| Self { pid, child: None, stopped: false }))
    }

    /// Resolves when the server has no process any more.
    pub async fn ended(&mut self) {
        match &mut self.child {
            Some(child) => {
                // An error means that somebody else waited for it: it has ended.
                let _ = child.wait().await;
            }
            None => {
                while is_alive(self.pid) {
                    sleep(WATCH).await;
                }
            }
        }
        self.stopped = true;
    }

    /// Stops it: connections are cut, what was committed is kept.
    pub async fn stop(&mut self) -> Result<(), EmbeddedError> {
        for (signal, deadline) in [(Signal::SIGINT, STOP_DEADLINE), (Signal::SIGQUIT, QUIT_DEADLINE)] {
            self.signal(signal);
            let ended = async {
                match self.child {
                    Some(_) => self.ended().await,
                    None => gone(self.pid).await,
                }
            };
            if tokio::time::timeout(deadline, ended).await.is_ok() {
                self.stopped = true;
                return Ok(());
            }
            tracing::warn!(pid = %self.pid, "the private Postgres does not stop");
        }
        Err(EmbeddedError::NotStopped { pid: self.pid.as_raw(), deadline: STOP_DEADLINE + QUIT_DEADLINE })
    }

    /// Waits until connections are taken.
    async fn ready(mut self, layout: &Layout) -> Result<Self, EmbeddedError> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if PidFile::read(layout.cluster()).is_some_and(|file| file.pid == self.pid && file.status == Status::Ready)
            {
                return Ok(self);
            }
            if self.has_ended() {
                self.stopped = true;
                return Err(EmbeddedError::Died { log: layout.log(), tail: log_tail(&layout.log()) });
            }
            if Instant::now() > deadline {
                return Err(EmbeddedError::NotReady { log: layout.log(), deadline: START_DEADLINE });
            }
            sleep(POLL).await;
        }
    }

    fn has_ended(&mut self) -> bool {
        match &mut self.child {
            Some(child) => !matches!(child.try_wait(), Ok(None)),
            None => !is_alive(self.pid),
        }
    }

    fn signal(&self, signal: Signal) {
        // A child's id is its own until we waited for it; an adopted one was looked at just now.
        if !self.stopped && is_alive(self.pid) {
            let _ = kill(self.pid, signal);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(Signal::SIGINT);
    }
}

/// The server that runs on this cluster, if there is one. What a dead one left behind is cleared away
/// when it would keep a new one from starting.
async fn running(layout: &Layout) -> Result<Option<Pid>, EmbeddedError> {
    let Some(file) = PidFile::read(layout.cluster()) else { return Ok(None) };
    if is_postmaster(file.pid, layout.cluster()) {
        if file.status != Status::Stopping {
            return Ok(Some(file.pid));
        }
        let stopped = tokio::time::timeout(STOP_DEADLINE, gone(file.pid)).await;
        stopped.map_err(|_| EmbeddedError::NotStopped { pid: file.pid.as_raw(), deadline: STOP_DEADLINE })?;
        return Ok(None);
    }
    // After a power cut the id may be another process's of our own (a vm's): Postgres would take that
    // for a server on its folder and refuse for ever. A free id it handles itself.
    if is_alive(file.pid) && !has_processes(layout.cluster()) {
        tracing::warn!(pid = %file.pid, "the pid file of the private Postgres names another process; it is removed");
        let socket_lock = layout.socket_dir().join(format!(".s.PGSQL.{}.lock", super::PORT));
        for path in [PidFile::path(layout.cluster()), socket_lock] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io_error(&path, "removed", error));
                }
                _ => {}
            }
        }
    }
    Ok(None)
}

/// What Postgres says in `postmaster.pid` of how far it is (its source: `miscadmin.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Status {
    Starting,
    Ready,
    Stopping,
}

/// `postmaster.pid`: the process id in the first line, the status in the eighth.
struct PidFile {
    pid: Pid,
    status: Status,
}

impl PidFile {
    fn path(cluster: &Path) -> std::path::PathBuf {
        cluster.join("postmaster.pid")
    }

    fn read(cluster: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(Self::path(cluster)).ok()?;
        let mut lines = text.lines();
        // Negative for a backend that runs alone (`postgres --single`).
        let pid = lines.next()?.trim().parse::<i32>().ok().filter(|pid| *pid > 1)?;
        let status = match lines.nth(6).map(str::trim) {
            Some("ready") => Status::Ready,
            Some("stopping") => Status::Stopping,
            _ => Status::Starting,
        };
        Some(Self { pid: Pid::from_raw(pid), status })
    }
}

fn is_alive(pid: Pid) -> bool {
    // EPERM: it lives, and is another user's.
    matches!(kill(pid, None), Ok(()) | Err(Errno::EPERM)) && !is_zombie(pid)
}

async fn gone(pid: Pid) {
    while is_alive(pid) {
        sleep(POLL).await;
    }
}

/// True for a process that ended and was not waited for: an adopted server in a container whose first
/// process waits for nobody stays one for ever.
#[cfg(target_os = "linux")]
fn is_zombie(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

/// launchd waits for all that nobody else waits for.
#[cfg(not(target_os = "linux"))]
fn is_zombie(_: Pid) -> bool {
    false
}

/// True when this process is a Postgres on this cluster: it works in the cluster's directory.
#[cfg(target_os = "linux")]
fn is_postmaster(pid: Pid, cluster: &Path) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end() == "postgres" && !is_zombie(pid) && works_in(&format!("/proc/{pid}"), cluster)
}

/// True when any process works in the cluster's directory: a backend that outlived its server.
#[cfg(target_os = "linux")]
fn has_processes(cluster: &Path) -> bool {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.map(|entry| entry.path()).any(|process| works_in(&process.to_string_lossy(), cluster))
}

#[cfg(target_os = "linux")]
fn works_in(process: &str, cluster: &Path) -> bool {
    let here = std::fs::read_link(format!("{process}/cwd")).ok();
    here.is_some() && here == std::fs::canonicalize(cluster).ok()
}

/// True when this process is a Postgres on this cluster: its command line says so.
#[cfg(not(target_os = "linux"))]
fn is_postmaster(pid: Pid, cluster: &Path) -> bool {
    let listed = std::process::Command::new("/bin/ps").args(["-ww", "-o", "command=", "-p", &pid.to_string()]).output();
    let text = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.contains("postgres -D ") && text.contains(&*cluster.to_string_lossy())
}

/// Backends change their command lines on macOS; shared memory tells Postgres of them by itself.
#[cfg(not(target_os = "linux"))]
fn has_processes(_: &Path) -> bool {
    false
}

fn log_tail(log: &Path) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    command::end_of(&lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"))
}
