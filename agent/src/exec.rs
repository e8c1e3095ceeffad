//! One command: spawned in a process group of its own, fed and read through a gRPC stream, and
//! killed with its group when that stream ends before it does.

use crate::CHUNK_BYTES;
use crate::proto::exec_request::{Command as Asked, Type as Input};
use crate::proto::exec_response::{Exit, Type as Output};
use crate::proto::{ExecRequest, ExecResponse, IoChunk};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::{Status, Streaming};

/// Responses that wait for the peer, each at most one chunk.
const RESPONSES: usize = 8;

/// How long a stream may take to tell its command.
const FIRST: Duration = Duration::from_secs(10);

/// How long output is still read after the command ended, when a child of it holds it open.
const DRAIN: Duration = Duration::from_secs(1);

/// What goes back to the peer.
pub(crate) type Responses = mpsc::Sender<Result<ExecResponse, Status>>;

/// The command, which must be the stream's first message.
pub(crate) async fn first(requests: &mut Streaming<ExecRequest>) -> Result<Asked, Status> {
    let message =
        timeout(FIRST, requests.message()).await.map_err(|_| Status::deadline_exceeded("no command came"))??;
    match message.and_then(|message| message.r#type) {
        Some(Input::Command(command)) => Ok(command),
        _ => Err(Status::invalid_argument("the first message must be a command")),
    }
}

/// Starts the command. It and its process group are killed when the receiver is dropped.
pub(crate) fn start(
    asked: Asked,
    requests: Streaming<ExecRequest>,
    slot: OwnedSemaphorePermit,
) -> Result<mpsc::Receiver<Result<ExecResponse, Status>>, Status> {
    let mut group = Group::spawn(asked)?;
    let (responses, receiver) = mpsc::channel(RESPONSES);
    tokio::spawn(async move {
        tokio::select! {
            () = responses.closed() => {}
            () = group.run(requests, &responses) => {}
        }
        drop((group, slot));
    });
    Ok(receiver)
}

/// A response message.
pub(crate) fn response(output: Output) -> ExecResponse {
    ExecResponse { r#type: Some(output) }
}

/// The last response of a command.
pub(crate) fn exit(code: i32) -> ExecResponse {
    response(Output::Exit(Exit { code }))
}

/// A command and its process group.
struct Group {
    child: Child,
    /// The group, while the command was not waited for: after that its number may be another's.
    id: Option<Pid>,
}

impl Group {
    fn spawn(asked: Asked) -> Result<Self, Status> {
        let mut command = command(asked)?;
        let child = command.spawn().map_err(|error| Status::not_found(format!("cannot start the command: {error}")))?;
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Ok(Self { child, id: id.map(Pid::from_raw) })
    }

    /// Runs the command to its end, or until its stream breaks.
    async fn run(&mut self, requests: Streaming<ExecRequest>, responses: &Responses) {
        let mut output = JoinSet::new();
        if let Some(stdout) = self.child.stdout.take() {
            output.spawn(forward(stdout, responses.clone(), Output::StandardOutput));
        }
        if let Some(stderr) = self.child.stderr.take() {
            output.spawn(forward(stderr, responses.clone(), Output::StandardError));
        }
        let stdin = self.child.stdin.take();
        let status = tokio::select! {
            status = self.child.wait() => status,
            () = feed(requests, stdin) => return,
        };
        self.id = None;
        let drained = timeout(DRAIN, async { while output.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            output.shutdown().await;
        }
        let last = match status {
            Ok(status) => Ok(exit(code(status))),
            Err(error) => Err(Status::internal(format!("cannot wait for the command: {error}"))),
        };
        // Nobody listens any more: nothing is left to be told.
        let _ = responses.send(last).await;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            // It may have ended by itself a moment ago; its status is collected by the runtime.
            let _ = killpg(id, Signal::SIGKILL);
        }
    }
}

/// The command as a process that is yet to be spawned.
fn command(asked: Asked) -> Result<Command, Status> {
    if asked.tty || asked.detach {
        return Err(Status::unimplemented("this agent has neither tty nor detach"));
    }
    if asked.name.is_empty() {
        return Err(Status::invalid_argument("the command has no name"));
    }
    let mut command = Command::new(&asked.name);
    command
        .args(&asked.args)
        .envs(&asked.env)
        .stdin(if asked.interactive { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    if !asked.workdir.is_empty() {
        command.current_dir(&asked.workdir);
    }
    Ok(command)
}

/// Gives the peer's input to the command. Returns only when the stream broke: its end alone, and a
/// command that does not read, are no reason to end the command.
async fn feed(mut requests: Streaming<ExecRequest>, mut stdin: Option<ChildStdin>) {
    loop {
        match requests.message().await {
            Ok(Some(ExecRequest { r#type: Some(Input::StandardInput(chunk)) })) => {
                let Some(open) = &mut stdin else { continue };
                if chunk.data.is_empty() || open.write_all(&chunk.data).await.is_err() {
                    stdin = None;
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// Gives the command's output to the peer, at the peer's pace.
async fn forward(mut from: impl AsyncRead + Unpin, responses: Responses, wrap: fn(IoChunk) -> Output) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let data = buffer[..read].to_vec();
        if responses.send(Ok(response(wrap(IoChunk { data })))).await.is_err() {
            return;
        }
    }
}

/// The exit code as a shell tells it: 128 and the signal's number for a killed command.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}
