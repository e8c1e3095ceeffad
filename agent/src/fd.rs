//! A readable and writable descriptor (a virtio port, a vsock connection) as an async stream.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A non-blocking descriptor. On a virtio port a hang-up is not the end: the host may come back, but
/// a registration never forgets a hang-up. So the stream ends only while the peer is away, and is
/// registered anew once it is seen to be back.
#[derive(Debug)]
pub(crate) struct FdStream {
    fd: Arc<OwnedFd>,
    /// `None` only while it is renewed.
    registered: Option<AsyncFd<Arc<OwnedFd>>>,
}

impl FdStream {
    /// Registers the descriptor, which must be non-blocking.
    pub(crate) fn new(fd: Arc<OwnedFd>) -> io::Result<Self> {
        Ok(Self { registered: Some(register(fd.clone())?), fd })
    }

    fn registered(&self) -> &AsyncFd<Arc<OwnedFd>> {
        self.registered.as_ref().expect("registered but for the time of a renewal")
    }

    /// After a hang-up was seen and nothing could be done: whether the peer is back, with a
    /// registration that knows nothing of the hang-up.
    fn is_back(&mut self, cx: &Context<'_>) -> io::Result<bool> {
        if peer_is_away(&self.fd)? {
            return Ok(false);
        }
        // One descriptor cannot be registered twice.
        drop(self.registered.take());
        self.registered = Some(register(self.fd.clone())?);
        // Whoever waited with the old registration, in the other direction, has to ask again.
        cx.waker().wake_by_ref();
        Ok(true)
    }
}

/// Whether the peer is away. It may have left something to read.
fn peer_is_away(fd: &OwnedFd) -> io::Result<bool> {
    Ok(events(fd)?.contains(PollFlags::POLLHUP))
}

/// Whether the peer is away, and has left nothing to read.
#[cfg(target_os = "linux")]
pub(crate) fn hung_up(fd: &OwnedFd) -> io::Result<bool> {
    let events = events(fd)?;
    Ok(events.contains(PollFlags::POLLHUP) && !events.contains(PollFlags::POLLIN))
}

fn events(fd: &OwnedFd) -> io::Result<PollFlags> {
    let mut polled = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO)?;
    Ok(polled[0].revents().unwrap_or(PollFlags::empty()))
}

/// Registers a descriptor with the runtime.
pub(crate) fn register(fd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: an `OwnedFd` names one open descriptor for as long as it lives; the registration owns
    // a share of it, gives no mutable access to it, and is removed before that share is dropped.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// What one attempt at a descriptor came to.
enum Attempt<T> {
    Done(io::Result<T>),
    /// Nothing to do yet.
    Wait,
    /// Nothing to do, and the registration has seen a hang-up: it would say "ready" for ever.
    HungUp,
}

impl AsyncRead for FdStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.registered().poll_read_ready(cx))?;
            let attempt = match nix::unistd::read(ready.get_inner(), buf.initialize_unfilled()) {
                Err(Errno::EAGAIN) if ready.ready().is_read_closed() => Attempt::HungUp,
                Err(Errno::EAGAIN) => {
                    ready.clear_ready();
                    Attempt::Wait
                }
                Err(Errno::EINTR) => Attempt::Wait,
                done => Attempt::Done(done.map_err(Into::into)),
            };
            match attempt {
                Attempt::Wait => {}
                Attempt::HungUp if self.is_back(cx)? => {}
                Attempt::HungUp => return Poll::Ready(Ok(())),
                Attempt::Done(read) => return Poll::Ready(read.map(|read| buf.advance(read))),
            }
        }
    }
}

impl AsyncWrite for FdStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.registered().poll_write_ready(cx))?;
            let attempt = match nix::unistd::write(ready.get_inner(), bytes) {
                Err(Errno::EAGAIN) if ready.ready().is_write_closed() => Attempt::HungUp,
                Err(Errno::EAGAIN) => {
                    ready.clear_ready();
                    Attempt::Wait
                }
                Err(Errno::EINTR) => Attempt::Wait,
                done => Attempt::Done(done.map_err(Into::into)),
            };
            match attempt {
                Attempt::Wait => {}
                Attempt::HungUp if self.is_back(cx)? => {}
                Attempt::HungUp => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                Attempt::Done(written) => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The descriptor closes with its last owner.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
