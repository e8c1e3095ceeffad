//! One step in a shell of its own process group: its output as lines, its end, and its killing.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::protocol::{JIT_ENV, LINE_LIMIT};

/// Lines that wait to be sent; a step that writes faster waits.
const QUEUE: usize = 1_024;

/// A running step.
pub struct Shell {
    child: Child,
    /// Its output, standard error included, in order.
    pub lines: Receiver<String>,
}

impl Shell {
    /// Starts a script with secrets in its environment.
    pub fn start(script: &str, secrets: &BTreeMap<String, String>, work: &Path) -> std::io::Result<Self> {
        let (reader, writer) = std::io::pipe()?;
        let child = Command::new("/bin/sh")
            .args(["-e", "-c", script])
            .current_dir(work)
            .env_remove(JIT_ENV)
            .env("CI", "true")
            .env("GITHUB_ACTIONS", "true")
            .env("GITHUB_WORKSPACE", work)
            .envs(secrets)
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .process_group(0)
            .spawn()?;
        let (sender, lines) = sync_channel(QUEUE);
        thread::spawn(move || forward(BufReader::new(reader), &sender));
        Ok(Self { child, lines })
    }

    /// Its exit status, once it has ended.
    pub fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Kills it with everything it started.
    pub fn kill(&mut self) {
        // The shell leads its group. A group that is gone is what is wanted.
        let group = Pid::from_raw(self.child.id().cast_signed());
        killpg(group, Signal::SIGKILL).ok();
        self.child.wait().ok();
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // What a step left in the background ends with it.
        self.kill();
    }
}

/// Sends each line, cut at [`LINE_LIMIT`], until the output or the receiver is gone.
fn forward(mut output: impl BufRead, lines: &SyncSender<String>) {
    loop {
        let mut line = Vec::new();
        let limit = LINE_LIMIT as u64;
        match output.by_ref().take(limit).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        while line.last().is_some_and(|b| *b == b'\n' || *b == b'\r') {
            line.pop();
        }
        if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
            return;
        }
    }
}
