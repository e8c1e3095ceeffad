//! The daemon of the demo: a child process of its own, as it would run as a service, so that its arguments,
//! environment and log can be looked into from outside.

use super::DemoError;
use crate::cli::client::Admin;
use crate::cli::exit::CliError;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::{Instant, interval, timeout};

/// From the start to the first answer that all is well: the first start makes a database.
const READY_DEADLINE: Duration = Duration::from_secs(120);
/// From SIGTERM to the end.
const STOP_DEADLINE: Duration = Duration::from_secs(60);
/// Between looks at a daemon that starts.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// As talkative as can be: what is not in this log is in none.
const LOG_FILTER: &str = "flyci=trace,flyci_agent=trace";
/// How much of its log's end is shown when it does not start, in bytes.
const TAIL: u64 = 4_096;
/// Lines of it.
const TAIL_LINES: usize = 6;

/// A daemon that runs.
pub struct Daemon {
    child: Child,
    /// Where its log goes.
    pub log: PathBuf,
    /// Speaks to it.
    pub admin: Admin,
}

impl Daemon {
    /// Starts it.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start(arguments: &[&str], config: &Path, socket: PathBuf, log: PathBuf) -> Result<Self, DemoError> {
        let cannot = |source| DemoError::Io { doing: "start the daemon".to_owned(), source };
        let out = OpenOptions::new().append(true).create(true).mode(0o600).open(&log).map_err(cannot)?;
        let program = std::env::current_exe().map_err(cannot)?;
        let child = Command::new(program)
            .args(arguments)
            .arg("--config")
            .arg(config)
            .env("FLYCI_LOG", LOG_FILTER)
            .stdin(Stdio::null())
            .stdout(out.try_clone().map_err(cannot)?)
            .stderr(out)
            // Ctrl-C is for the demo, which ends the daemon in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(cannot)?;
        Ok(Self { child, log, admin: Admin::new(socket) })
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// With the end of its log, when it ends or is not ready in time.
    pub async fn ready(&mut self) -> Result<(), DemoError> {
        let deadline = Instant::now() + READY_DEADLINE;
        let mut looks = interval(LOOK_INTERVAL);
        loop {
            looks.tick().await;
            if let Some(status) = self.ended()? {
                return Err(DemoError::DaemonEnded { status: status.to_string(), tail: self.tail() });
            }
            let is_ready = match self.admin.get::<crate::api::Status>("/status", &()).await {
                Ok(status) => status.readiness == "ready" && !status.hosts.is_empty(),
                Err(CliError::NotRunning { .. } | CliError::NoAnswer { .. } | CliError::Refused { .. }) => false,
                Err(error) => return Err(DemoError::Ask(error)),
            };
            if is_ready {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(DemoError::NotReady { seconds: READY_DEADLINE.as_secs(), tail: self.tail() });
            }
        }
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, DemoError> {
        self.child.try_wait().map_err(|source| DemoError::Io { doing: "look after the daemon".to_owned(), source })
    }

    /// Tells it to stop, as a service manager does, and waits for its end.
    ///
    /// # Errors
    /// When it does not end in time; it is killed then.
    pub async fn stop(&mut self) -> Result<ExitStatus, DemoError> {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended by itself: `wait` tells.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        match timeout(STOP_DEADLINE, self.child.wait()).await {
            Ok(status) => status.map_err(|source| DemoError::Io { doing: "stop the daemon".to_owned(), source }),
            Err(_) => {
                let _ = self.child.kill().await;
                Err(DemoError::NotStopped { seconds: STOP_DEADLINE.as_secs(), tail: self.tail() })
            }
        }
    }

    /// The end of its log, as far as it is readable.
    #[must_use]
    pub fn tail(&self) -> String {
        tail(&self.log).unwrap_or_default()
    }
}

fn tail(log: &Path) -> std::io::Result<String> {
    let length = fs::metadata(log)?.len();
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text.lines().rev().take(TAIL_LINES).map(|line| format!("  {}", told(line))).collect();
    Ok(lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
}

/// A line of the log as a person reads it: level, message and error of a JSON line, or the line itself.
fn told(line: &str) -> String {
    let Ok(serde_json::Value::Object(fields)) = serde_json::from_str(line) else { return line.to_owned() };
    let text = |name: &str| fields.get(name).and_then(serde_json::Value::as_str);
    let error = text("error").map(|error| format!(": {error}")).unwrap_or_default();
    format!("{} {}{error}", text("level").unwrap_or_default(), text("message").unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_reads_well() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = directory.path().join("log");
        let lines = "{\"level\":\"error\",\"message\":\"cannot start\",\"error\":\"port in use\"}\nflyci: plain\n";
        fs::write(&log, format!("{}{lines}", "x\n".repeat(5_000))).expect("it is writable");
        let tail = tail(&log).expect("it is readable");
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("  error cannot start: port in use\n  flyci: plain"), "{tail}");
    }
}
