//! The guest's end of the pipe: one connection after the other, each begun by a HELLO.

use super::{NONCE_BYTES, Nonce, Scanner, WRITE_BYTES, hello};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Bytes taken from the pipe at once.
const READ_BYTES: usize = 32 * 1024;

/// The guest's end of a pipe that keeps stale bytes.
#[derive(Debug)]
pub struct Port<S> {
    io: S,
    scanner: Scanner,
    /// The HELLO that waits for its answer.
    hello: Option<Nonce>,
    buffer: Box<[u8]>,
    /// The part of `buffer` that was read and scanned, and not yet given to the session.
    unread: std::ops::Range<usize>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Port<S> {
    /// A port on this pipe. Nothing is sent before a HELLO came.
    pub fn new(io: S) -> Self {
        Self {
            io,
            scanner: Scanner::default(),
            hello: None,
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            unread: 0..0,
        }
    }

    /// Waits for a HELLO, answers it, and gives the connection that follows. There is no deadline:
    /// the host may come when it likes.
    ///
    /// # Errors
    /// The pipe failed, or ended for now: the caller may come again when the host is back.
    pub async fn accept(&mut self) -> io::Result<Session<'_, S>> {
        if self.hello.is_none() {
            // Scanned already, and left behind by the connection before.
            self.unread = 0..0;
        }
        let nonce = loop {
            while self.scan_next() {}
            if let Some(nonce) = self.hello.take() {
                break nonce;
            }
            let read = self.io.read(&mut self.buffer).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.unread = 0..read;
        };
        self.io.write_all(&hello(&nonce)).await?;
        self.io.flush().await?;
        Ok(Session { port: self })
    }

    /// Scans what was read: whether a HELLO is in it. What is before it is stale.
    fn scan_next(&mut self) -> bool {
        let Some((nonce, taken)) = self.scanner.feed(&self.buffer[self.unread.clone()]) else {
            return false;
        };
        self.hello = Some(nonce);
        self.unread.start += taken;
        true
    }

    /// Reads until there is something for the session, a HELLO, or the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut buf = ReadBuf::new(&mut self.buffer);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
        self.unread = 0..buf.filled().len();
        self.scan_next();
        Poll::Ready(Ok(()))
    }
}

/// One connection. It ends, for its reader, where the next HELLO begins.
#[derive(Debug)]
pub struct Session<'a, S> {
    port: &'a mut Port<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Session<'_, S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let port = &mut *self.port;
        if port.hello.is_none() && port.unread.is_empty() {
            ready!(port.poll_fill(cx))?;
        }
        if port.hello.is_none() {
            let some = port.unread.len().min(buf.remaining());
            let from = port.unread.start;
            buf.put_slice(&port.buffer[from..from + some]);
            port.unread.start += some;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Session<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.port.hello.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let some = &bytes[..bytes.len().min(WRITE_BYTES)];
        Pin::new(&mut self.port.io).poll_write(cx, some)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.port.io).poll_flush(cx)
    }

    /// The pipe stays open: only the connection ends.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

const _: () = assert!(READ_BYTES > NONCE_BYTES);
