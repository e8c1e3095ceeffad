//! A readable and writable descriptor (a virtio port, a vsock connection) as an async stream.

use nix::errno::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A non-blocking descriptor. Once the peer hung up it stays ended, though the descriptor may come
/// back to life: a registration never forgets a hang-up, so make a new stream on it then.
#[derive(Debug)]
pub(crate) struct FdStream {
    fd: AsyncFd<Arc<OwnedFd>>,
}

impl FdStream {
    /// Registers the descriptor, which must be non-blocking.
    pub(crate) fn new(fd: Arc<OwnedFd>) -> io::Result<Self> {
        Ok(Self { fd: register(fd)? })
    }
}

/// Registers a descriptor with the runtime.
pub(crate) fn register(fd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: an `OwnedFd` names one open descriptor for as long as it lives; the registration owns
    // a share of it, gives no mutable access to it, and is removed before that share is dropped.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

impl AsyncRead for FdStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.fd.poll_read_ready(cx))?;
            match nix::unistd::read(ready.get_inner(), buf.initialize_unfilled()) {
                Ok(read) => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                // Nothing there, and a hang-up was seen: this would be ready for ever.
                Err(Errno::EAGAIN) if ready.ready().is_read_closed() => return Poll::Ready(Ok(())),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncWrite for FdStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.fd.poll_write_ready(cx))?;
            match nix::unistd::write(ready.get_inner(), bytes) {
                Ok(written) => return Poll::Ready(Ok(written)),
                Err(Errno::EAGAIN) if ready.ready().is_write_closed() => {
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                }
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
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
