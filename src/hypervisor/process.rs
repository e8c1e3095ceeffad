//! Runs a helper program to its end: bounded output, a deadline, a clear error. Programs that
//! outlive the call (a VM's process) are the backends' own business.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// Most that is kept of a program's standard output, in bytes; the rest is read and dropped.
pub const OUTPUT_LIMIT: u64 = 4 << 20;

/// Most that is kept of what a program complains of, in bytes.
const COMPLAINT_LIMIT: u64 = 4 << 10;

/// Where system programs are, besides the search path: an unprivileged user's often lacks them.
const SYSTEM_DIRECTORIES: [&str; 5] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/opt/homebrew/bin", "/usr/local/bin"];

/// Why a helper program was of no help.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("`{0}` is not installed; run script/setup, or install the package that has it")]
    Missing(String),
    /// It could not be started or spoken to.
    #[error("`{program}` could not be run")]
    Run {
        program: String,
        #[source]
        source: std::io::Error,
    },
    /// It failed.
    #[error("`{program}` failed ({status}): {complaint}")]
    Failed { program: String, status: String, complaint: String },
    /// It took too long, and was killed.
    #[error("`{program}` did not end within {} s, and was killed", .deadline.as_secs())]
    TimedOut { program: String, deadline: Duration },
}

/// Finds a program on the search path and in the usual directories of system programs.
///
/// # Errors
/// [`ToolError::Missing`].
pub fn find(program: &str) -> Result<PathBuf, ToolError> {
    if program.contains('/') {
        let path = PathBuf::from(program);
        return if path.is_file() { Ok(path) } else { Err(ToolError::Missing(program.to_owned())) };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_DIRECTORIES.iter().map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| ToolError::Missing(program.to_owned()))
}

/// One run of a helper program.
#[derive(Debug)]
pub struct Tool {
    program: String,
    command: Command,
    input: Vec<u8>,
    deadline: Duration,
}

impl Tool {
    /// A run of `program`, killed when it takes longer than `deadline`.
    ///
    /// # Errors
    /// [`ToolError::Missing`].
    pub fn new(program: &str, deadline: Duration) -> Result<Self, ToolError> {
        let mut command = Command::new(find(program)?);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        // What tools say is matched and shown: one language, whatever the operator's is.
        command.env("LC_ALL", "C.UTF-8");
        Ok(Self { program: program.to_owned(), command, input: Vec::new(), deadline })
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets one variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets the directory that it runs in.
    #[must_use]
    pub fn directory(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Sets what it reads from its standard input.
    #[must_use]
    pub fn input(mut self, input: Vec<u8>) -> Self {
        self.command.stdin(Stdio::piped());
        self.input = input;
        self
    }

    /// Lets it write its standard output to a file.
    #[must_use]
    pub fn output_to(mut self, file: std::fs::File) -> Self {
        self.command.stdout(file);
        self
    }

    /// Runs it to its end; returns its standard output, at most [`OUTPUT_LIMIT`] bytes of it.
    ///
    /// # Errors
    /// It cannot be started, fails, or takes longer than its deadline.
    pub async fn run(mut self) -> Result<Vec<u8>, ToolError> {
        let program = self.program.clone();
        let fault = |source| ToolError::Run { program: program.clone(), source };
        let child = self.command.spawn().map_err(fault)?;
        let conversation = tokio::time::timeout(self.deadline, converse(child, self.input));
        let Ok(ended) = conversation.await else {
            return Err(ToolError::TimedOut { program: self.program, deadline: self.deadline });
        };
        let (status, output, complaint) = ended.map_err(fault)?;
        if status.success() {
            return Ok(output);
        }
        let complaint = String::from_utf8_lossy(&complaint).trim().to_owned();
        Err(ToolError::Failed { program: self.program, status: status.to_string(), complaint })
    }
}

/// Feeds a program, and reads it until it ends.
async fn converse(mut child: Child, input: Vec<u8>) -> std::io::Result<(std::process::ExitStatus, Vec<u8>, Vec<u8>)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that wants no more has its reasons: its exit status tells.
            let _ = stdin.write_all(&input).await;
        }
    };
    let ((), output, complaint) = tokio::join!(feed, bounded(stdout, OUTPUT_LIMIT), bounded(stderr, COMPLAINT_LIMIT));
    Ok((child.wait().await?, output?, complaint?))
}

/// Reads to the end, keeping at most `limit` bytes.
async fn bounded(pipe: Option<impl AsyncRead + Unpin>, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    if let Some(mut pipe) = pipe {
        (&mut pipe).take(limit).read_to_end(&mut kept).await?;
        tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_program_gets_its_input_and_gives_its_output() {
        let said = Tool::new("cat", SOON).expect("cat").input(b"hello".to_vec()).run().await;
        assert_eq!(said.expect("cat works"), b"hello");
    }

    #[tokio::test]
    async fn a_failure_says_what_the_program_said() {
        let tool = Tool::new("sh", SOON).expect("sh").args(["-c", "echo no room >&2; exit 3"]);
        let told = tool.run().await.expect_err("it fails").to_string();
        assert!(told.contains("no room") && told.contains('3'), "{told}");
    }

    #[tokio::test]
    async fn a_missing_program_is_told_by_name() {
        let told = Tool::new("no-such-program", SOON).expect_err("missing").to_string();
        assert!(told.contains("`no-such-program` is not installed"), "{told}");
    }

    #[tokio::test]
    async fn a_program_that_never_ends_is_killed() {
        let tool = Tool::new("sleep", Duration::from_millis(50)).expect("sleep").arg("600");
        assert!(matches!(tool.run().await, Err(ToolError::TimedOut { .. })));
    }
}
