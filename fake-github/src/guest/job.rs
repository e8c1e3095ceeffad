//! Runs a job: `.setup_info` first, then each step until one fails, with masked output, heartbeats and cancellation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::client::{Client, ClientError};
use super::mask::Mask;
use super::shell::Shell;
use crate::protocol::{Conclusion, JobMessage, StepMessage};

/// How long output is collected before it is sent.
const FLUSH: Duration = Duration::from_millis(200);
/// Lines that are sent at once at most.
const BATCH: usize = 200;
/// How long output is awaited from what a step left in the background.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Between looks at a step that has closed its output.
const PAUSE: Duration = Duration::from_millis(20);
/// The file in the runner's directory that is printed before the job.
const SETUP_INFO: &str = ".setup_info";

/// Why a job could not be run.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// No directory to work in.
    #[error("cannot make the work directory {}", dir.display())]
    Work {
        /// Where.
        dir: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No shell.
    #[error("/bin/sh cannot be run in {}", dir.display())]
    Shell {
        /// Where.
        dir: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The server.
    #[error("the job's progress cannot be told")]
    Client(#[source] ClientError),
}

/// One entry of `.setup_info`.
#[derive(Deserialize)]
struct SetupGroup {
    group: String,
    detail: String,
}

/// Runs a job to its end.
pub fn run(
    client: &Client,
    message: JobMessage,
    dir: &Path,
    work_folder: &str,
    heartbeat: Duration,
) -> Result<Conclusion, JobError> {
    let work = fresh_work_dir(dir, work_folder, message.job_id)?;
    let mask = Mask::new(message.secrets.values());
    let lines = setup_lines(dir).iter().map(|l| mask.apply(l)).collect();
    client.log(lines).map_err(JobError::Client)?;
    let mut job = Job { client, mask, secrets: &message.secrets, work: &work, heartbeat, beat_at: Instant::now() };
    let conclusion = job.steps(&message.steps);
    // The machine is destroyed after this job; what cannot be removed goes with it.
    std::fs::remove_dir_all(&work).ok();
    conclusion
}

fn fresh_work_dir(dir: &Path, work_folder: &str, job: u64) -> Result<PathBuf, JobError> {
    let wanted = dir.join(work_folder).join(job.to_string());
    if std::fs::create_dir_all(&wanted).is_ok() {
        return Ok(wanted);
    }
    // The runner's directory may be read-only.
    let dir = std::env::temp_dir().join(format!("runner-{}", std::process::id())).join(job.to_string());
    std::fs::create_dir_all(&dir).map_err(|source| JobError::Work { dir: dir.clone(), source })?;
    Ok(dir)
}

/// What the real runner prints into the job's "Set up job" group.
fn setup_lines(dir: &Path) -> Vec<String> {
    let mut lines = vec!["##[group]Set up job".to_owned(), format!("Current runner version: '{}'", super::VERSION)];
    if let Ok(text) = std::fs::read_to_string(dir.join(SETUP_INFO)) {
        match serde_json::from_str::<Vec<SetupGroup>>(&text) {
            Ok(groups) => lines.extend(groups.iter().flat_map(|g| {
                let details = g.detail.lines().map(str::to_owned);
                std::iter::once(format!("##[group]{}", g.group)).chain(details).chain(["##[endgroup]".to_owned()])
            })),
            Err(_) => lines.push(format!("##[warning]{SETUP_INFO} is not a list of groups; it is not shown")),
        }
    }
    lines.push("##[endgroup]".to_owned());
    lines
}

struct Job<'a> {
    client: &'a Client,
    mask: Mask,
    secrets: &'a BTreeMap<String, String>,
    work: &'a Path,
    heartbeat: Duration,
    beat_at: Instant,
}

impl Job<'_> {
    fn steps(&mut self, steps: &[StepMessage]) -> Result<Conclusion, JobError> {
        let mut so_far = Conclusion::Success;
        for (step, number) in steps.iter().zip(1..) {
            if so_far != Conclusion::Success {
                self.client.step(number, Some(Conclusion::Skipped)).map_err(JobError::Client)?;
                continue;
            }
            self.client.step(number, None).map_err(JobError::Client)?;
            so_far = self.step(step)?;
            self.client.step(number, Some(so_far)).map_err(JobError::Client)?;
        }
        Ok(so_far)
    }

    fn step(&mut self, step: &StepMessage) -> Result<Conclusion, JobError> {
        self.send(vec![format!("##[group]{}", step.name), "##[endgroup]".to_owned()])?;
        let started = Shell::start(&step.run, self.secrets, self.work);
        let mut shell = started.map_err(|source| JobError::Shell { dir: self.work.into(), source })?;
        let mut ended_at = None;
        loop {
            let (lines, closed) = collect(&shell);
            self.send(lines)?;
            if self.cancelled()? {
                shell.kill();
                self.send(vec!["##[error]The operation was canceled.".to_owned()])?;
                return Ok(Conclusion::Cancelled);
            }
            let Some(status) = shell.ended().map_err(|source| JobError::Shell { dir: self.work.into(), source })?
            else {
                if closed {
                    // It closed its output and goes on.
                    std::thread::sleep(PAUSE);
                }
                continue;
            };
            let ended_at = *ended_at.get_or_insert_with(Instant::now);
            if !closed && ended_at.elapsed() < LAST_WORDS {
                continue;
            }
            if status.success() {
                return Ok(Conclusion::Success);
            }
            let code = status.code().map_or_else(|| status.to_string(), |c| c.to_string());
            self.send(vec![format!("##[error]Process completed with exit code {code}.")])?;
            return Ok(Conclusion::Failure);
        }
    }

    fn send(&self, lines: Vec<String>) -> Result<(), JobError> {
        if lines.is_empty() {
            return Ok(());
        }
        let lines = lines.iter().map(|l| self.mask.apply(l)).collect();
        self.client.log(lines).map_err(JobError::Client)
    }

    /// Sends a heartbeat when one is due.
    fn cancelled(&mut self) -> Result<bool, JobError> {
        if self.beat_at.elapsed() < self.heartbeat {
            return Ok(false);
        }
        self.beat_at = Instant::now();
        self.client.heartbeat().map_err(JobError::Client)
    }
}

/// Output of the next moment, and whether there will be more.
fn collect(shell: &Shell) -> (Vec<String>, bool) {
    let until = Instant::now() + FLUSH;
    let mut lines = Vec::new();
    while lines.len() < BATCH {
        match shell.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => lines.push(line),
            Err(RecvTimeoutError::Timeout) => return (lines, false),
            Err(RecvTimeoutError::Disconnected) => return (lines, true),
        }
    }
    (lines, false)
}
