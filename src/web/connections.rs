//! Connections: how many there may be, who is at the other end, and how long they may take.
//!
//! On the public listener a part of the room is kept for who is known, so that strangers who fill the
//! rest do not keep GitHub out.

use super::sources::{Entry, Source, Sources};
use axum::extract::Request;
use axum_server::accept::Accept;
use axum_server::{Address, Server};
use std::future::{Ready, ready};
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

/// A request's head must be here by then, also the first of a connection.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// A request's head has at most so many bytes; GitHub's have one thousand.
const MAX_HEAD: usize = 16 * 1024;
/// Headers of one request.
const MAX_HEADERS: usize = 64;
/// Requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 16;
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
    /// Whoever reaches the public listener, by address.
    Source(Source),
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
        Ok(Peer::Source(self.peer_addr()?.ip().into()))
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
    public: Option<Public>,
}

/// What the public listener has beside the room for all.
#[derive(Clone)]
struct Public {
    sources: Arc<Sources>,
    /// Room for who is known, when the other is full.
    kept: Arc<Semaphore>,
}

/// What a connection holds while it is open.
struct Seat {
    _room: OwnedSemaphorePermit,
    _entry: Option<Entry>,
}

impl Admit {
    /// Room for `connections` at once.
    pub fn new(connections: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(connections)), public: None }
    }

    /// Room for `connections` at once, and for so many more that are `kept` for known sources.
    pub fn public(connections: usize, kept: usize, sources: Arc<Sources>) -> Self {
        let public = Public { sources, kept: Arc::new(Semaphore::new(kept)) };
        Self { public: Some(public), ..Self::new(connections) }
    }

    /// Who it is, as its requests are told, and its seat.
    fn seat(&self, peer: Peer) -> Option<(Peer, Seat)> {
        let room = || Arc::clone(&self.room).try_acquire_owned().ok();
        match (peer, &self.public) {
            (Peer::Source(source), Some(public)) => {
                let entry = public.sources.enter(source, Instant::now())?;
                let kept = || Arc::clone(&public.kept).try_acquire_owned().ok();
                let room = room().or_else(|| if entry.is_known() { kept() } else { None })?;
                Some((peer, Seat { _room: room, _entry: Some(entry) }))
            }
            (Peer::Source(_) | Peer::Network, _) => Some((Peer::Network, Seat { _room: room()?, _entry: None })),
            (Peer::User(_), _) => Some((peer, Seat { _room: room()?, _entry: None })),
        }
    }
}

impl<I: Peered, S> Accept<I, S> for Admit {
    type Stream = I;
    type Service = Admitted<S>;
    type Future = Ready<io::Result<(I, Admitted<S>)>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        ready(stream.peer().and_then(|peer| {
            let (peer, seat) = self.seat(peer).ok_or_else(|| io::Error::other("too many connections"))?;
            Ok((stream, Admitted { service, peer, _seat: Arc::new(seat) }))
        }))
    }
}

/// The service of one connection; its room is free again when it is dropped.
#[derive(Clone)]
pub(super) struct Admitted<S> {
    service: S,
    peer: Peer,
    _seat: Arc<Seat>,
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
