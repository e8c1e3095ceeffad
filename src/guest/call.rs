//! One command in the guest: its connection, its deadline, its bounds.
//!
//! What the guest answers is another's word: it is limited in size, parsed by the caller, and its
//! text goes into no error.

use super::GuestError;
use flyci_agent::proto::agent_client::AgentClient;
use flyci_agent::proto::exec_request::{Command, Type as Input};
use flyci_agent::proto::exec_response::Type as Output;
use flyci_agent::proto::{ExecRequest, IoChunk};
use flyci_agent::{CHUNK_BYTES, HEADER_BYTES, MESSAGE_BYTES, channel};
use futures_util::{StreamExt, stream};
use hyper_util::rt::TokioIo;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::{error::Elapsed, timeout};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

/// How connections begin on the guest's channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// A pipe that keeps stale bytes, served by our agent (QEMU's virtio-serial): with a HELLO.
    Resync,
    /// A connection of its own each time (vsock).
    Plain,
}

/// How long a connection may take to begin.
const CONNECT: Duration = Duration::from_secs(5);

/// How long a silent guest is waited for before it is asked for a sign of life, and for that sign.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Most bytes in flight of one call and of the connection.
const WINDOW_BYTES: u32 = 64 * 1024;

/// Most bytes that a command may answer: our scripts answer one line.
const ANSWER_BYTES: usize = 4096;

/// What a command is given.
pub(super) struct Call<'a> {
    pub(super) program: &'a str,
    pub(super) arguments: Vec<String>,
    /// Standard input, whole; it ends after it.
    pub(super) input: Vec<u8>,
    /// How long the call may take, connection included.
    pub(super) deadline: Duration,
}

/// What a command left.
pub(super) struct Answer {
    pub(super) code: i32,
    pub(super) stdout: Vec<u8>,
}

/// A connection to the guest, made when it is needed and made again when it broke.
pub(super) fn connection(socket: &Path, framing: Framing) -> Channel {
    let socket = socket.to_owned();
    Endpoint::from_static("http://guest")
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .http2_max_header_list_size(HEADER_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .connect_with_connector_lazy(tower::service_fn(move |_: Uri| open(socket.clone(), framing)))
}

/// A stream of either framing.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn open(socket: PathBuf, framing: Framing) -> io::Result<TokioIo<Box<dyn Stream>>> {
    let late = |_: Elapsed| io::Error::from(io::ErrorKind::TimedOut);
    let stream = timeout(CONNECT, UnixStream::connect(socket)).await.map_err(late)??;
    Ok(TokioIo::new(match framing {
        Framing::Plain => Box::new(stream),
        Framing::Resync => {
            let connected = channel::connect(stream, CONNECT).await;
            Box::new(connected.map_err(io::Error::other)?)
        }
    }))
}

/// Runs a command to its end. If the call is dropped, the guest kills the command.
pub(super) async fn call(connection: &Channel, call: Call<'_>) -> Result<Answer, GuestError> {
    let deadline = call.deadline;
    let late = |_| GuestError::Unreachable(format!("no answer within {deadline:?}"));
    timeout(deadline, run(connection, call)).await.map_err(late)?
}

async fn run(connection: &Channel, call: Call<'_>) -> Result<Answer, GuestError> {
    let mut client = AgentClient::new(connection.clone())
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    // The request stream stays open: agents differ in what its end means.
    let requests = stream::iter(requests(call)).chain(stream::pending());
    let mut responses = client.exec(requests).await.map_err(refused)?.into_inner();
    let mut stdout = Vec::new();
    let mut bytes = 0;
    while let Some(response) = responses.message().await.map_err(refused)? {
        match response.r#type {
            Some(Output::Exit(exit)) => return Ok(Answer { code: exit.code, stdout }),
            Some(Output::StandardOutput(IoChunk { data })) => {
                bytes += data.len();
                stdout.extend(data);
            }
            Some(Output::StandardError(IoChunk { data })) => bytes += data.len(),
            None => {}
        }
        if bytes > ANSWER_BYTES {
            return Err(GuestError::Failed(format!("it answered more than {ANSWER_BYTES} bytes")));
        }
    }
    Err(GuestError::Unreachable("the answer was cut".to_owned()))
}

/// The messages of a call: the command, its input in pieces, and the input's end.
fn requests(call: Call<'_>) -> Vec<ExecRequest> {
    let command =
        Command { name: call.program.to_owned(), args: call.arguments, interactive: true, ..Command::default() };
    let piece = |data: &[u8]| Input::StandardInput(IoChunk { data: data.to_vec() });
    let pieces = call.input.chunks(CHUNK_BYTES).map(piece);
    std::iter::once(Input::Command(command))
        .chain(pieces)
        .chain(std::iter::once(piece(&[])))
        .map(|input| ExecRequest { r#type: Some(input) })
        .collect()
}

/// A call that came to nothing. A fault of the connection has a cause here; a refusal came over
/// the wire and has none.
fn refused(status: Status) -> GuestError {
    let ended = matches!(status.code(), Code::Unavailable | Code::Cancelled);
    match status.source() {
        Some(source) => return GuestError::Unreachable(last_cause(source)),
        None if ended => return GuestError::Unreachable("the connection ended".to_owned()),
        None => {}
    }
    GuestError::Failed(format!("it refused the command ({:?})", status.code()))
}

/// The deepest cause: the outer ones only say that something went wrong.
fn last_cause(mut error: &dyn Error) -> String {
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}
