//! Connections: how many there may be, who is at the other end, and how long they may take.

use axum::extract::Request;
use axum_server::accept::Accept;
use axum_server::{Address, Server};
use std::future::{Ready, ready};
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

/// A request's head must be here by then, also the first of a connection.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// A request's head has at most so many bytes.
const MAX_HEAD: usize = 64 * 1024;
/// Headers of one request.
const MAX_HEADERS: usize = 64;
/// Requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 64;
/// What a client may send on one HTTP/2 stream before it is read, in bytes.
const STREAM_WINDOW: u32 = 64 * 1024;
/// What a client may send on one HTTP/2 connection before it is read, in bytes.
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// An HTTP/2 client is asked so often whether it is still there.
const PING_PERIOD: Duration = Duration::from_secs(20);
/// It must answer by then.
const PING_DEADLINE: Duration = Duration::from_secs(10);

/// Who is at the other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// A process of this user, on our socket.
    User(u32),
    /// Whoever reaches the address.
    Network,
}

/// A stream that says who is at its other end.
pub(super) trait Peered {
    /// Who it is.
    fn peer(&self) -> io::Result<Peer>;
}

impl Peered for TcpStream {
    fn peer(&self) -> io::Result<Peer> {
        // Small answers, each in one go: not to be held back for more.
        self.set_nodelay(true)?;
        Ok(Peer::Network)
    }
}

impl Peered for UnixStream {
    fn peer(&self) -> io::Result<Peer> {
        Ok(Peer::User(self.peer_cred()?.uid()))
    }
}

/// Lets so many connections in at once, and tells each request its [`Peer`]. What is beyond is
/// closed at once: waiting connections cost memory too.
#[derive(Clone)]
pub(super) struct Admit {
    room: Arc<Semaphore>,
}

impl Admit {
    /// Room for `connections` at once.
    pub fn new(connections: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(connections)) }
    }
}

impl<I: Peered, S> Accept<I, S> for Admit {
    type Stream = I;
    type Service = Admitted<S>;
    type Future = Ready<io::Result<(I, Admitted<S>)>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let permit = Arc::clone(&self.room).try_acquire_owned().map_err(|_| io::Error::other("too many connections"));
        ready(permit.and_then(|permit| {
            let peer = stream.peer()?;
            Ok((stream, Admitted { service, peer, _permit: Arc::new(permit) }))
        }))
    }
}

/// The service of one connection; its room is free again when it is dropped.
#[derive(Clone)]
pub(super) struct Admitted<S> {
    service: S,
    peer: Peer,
    _permit: Arc<OwnedSemaphorePermit>,
}

impl<S, B> Service<Request<B>> for Admitted<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        request.extensions_mut().insert(self.peer);
        self.service.call(request)
    }
}

/// Sets the deadlines and limits of a server's connections.
pub(super) fn bound<A: Address, C>(mut server: Server<A, C>) -> Server<A, C> {
    let builder = server.http_builder();
    builder.http1().header_read_timeout(HEAD_DEADLINE).max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
    builder
        .http2()
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD).expect("the head's limit is small"))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING_PERIOD)
        .keep_alive_timeout(PING_DEADLINE);
    server.first_request_timeout(HEAD_DEADLINE)
}
