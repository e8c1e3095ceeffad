//! One connection to the agent: HTTP/2, the gRPC service, and their bounds.
//!
//! When the connection ends, however it does, everything it began ends with it.

use crate::exec;
use crate::prepare;
use crate::proto::agent_server::{Agent, AgentServer};
use crate::proto::{ExecRequest, ExecResponse, ResolveIpRequest, ResolveIpResponse};
use crate::{HEADER_BYTES, MESSAGE_BYTES};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Most calls in flight on one connection.
const STREAMS: u32 = 16;

/// Most commands that run at once, over all connections.
const COMMANDS: usize = 32;

/// How long a silent peer is waited for before it is asked for a sign of life, and for that sign.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Most bytes in flight of one call and of one connection, in either direction.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// What the agent may do beyond running commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// Only run commands.
    None,
    /// Also set clock, randomness and host name, and power the machine off: only inside a VM.
    Machine,
}

/// The agent's service.
#[derive(Clone)]
pub struct Server {
    commands: Arc<Semaphore>,
    privilege: Privilege,
}

impl Server {
    /// A server with no connection yet.
    pub fn new(privilege: Privilege) -> Self {
        Self { commands: Arc::new(Semaphore::new(COMMANDS)), privilege }
    }

    /// Serves one connection to its end. Dropping the future ends the connection, too.
    ///
    /// # Errors
    /// The connection broke, or its peer does not speak HTTP/2.
    pub async fn serve<S>(&self, io: S) -> Result<(), hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let service = AgentServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        // Ends the calls with the connection: they are aborted when it is dropped.
        let calls = Calls::default();
        http2::Builder::new(calls.clone())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEADER_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .serve_connection(TokioIo::new(io), TowerToHyperService::new(service))
            .await
    }
}

/// The tasks of one connection's calls.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<JoinSet<()>>>);

impl<F> Executor<F> for Calls
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, call: F) {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while calls.try_join_next().is_some() {}
        calls.spawn(call);
    }
}

#[tonic::async_trait]
impl Agent for Server {
    type ExecStream = ReceiverStream<Result<ExecResponse, Status>>;

    async fn exec(&self, request: Request<Streaming<ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
        let slot = self.commands.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{COMMANDS} commands run already, the most there may be"))
        })?;
        let mut requests = request.into_inner();
        let command = exec::first(&mut requests).await?;
        let responses = match command.name.as_str() {
            prepare::RESERVED if self.privilege == Privilege::Machine => prepare::answer(command, requests, slot),
            _ => exec::start(command, requests, slot)?,
        };
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn resolve_ip(&self, _request: Request<ResolveIpRequest>) -> Result<Response<ResolveIpResponse>, Status> {
        let ip = own_address().map_err(|error| Status::unavailable(format!("no address: {error}")))?;
        Ok(Response::new(ResolveIpResponse { ip }))
    }
}

/// The address that packets to the outside would carry. Nothing is sent.
fn own_address() -> std::io::Result<String> {
    const OUTSIDE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(OUTSIDE)?;
    Ok(socket.local_addr()?.ip().to_string())
}
