//! The host's end of the pipe: says HELLO, and discards what was left from before.

use super::{MAGIC, NONCE_BYTES, Nonce, Scanner, WRITE_BYTES, hello};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout, timeout_at};

/// How long the first HELLO waits for its answer; each next one waits this much longer.
const PATIENCE: Duration = Duration::from_millis(250);

/// Longest wait for the answer to one HELLO.
const PATIENCE_MAX: Duration = Duration::from_secs(2);

/// Most stale bytes that are discarded before the guest is given up.
const STALE_BYTES: usize = 64 * 1024 * 1024;

/// Bytes taken from the pipe at once.
const READ_BYTES: usize = 32 * 1024;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// No agent answered in time: the guest boots, hangs or has none.
    #[error("no agent answered HELLO within {0:?}")]
    Silent(Duration),
    /// Somebody in the guest writes without end.
    #[error("the guest sent {STALE_BYTES} bytes and no answer to HELLO")]
    Flood,
    /// The pipe closed or failed.
    #[error("the guest channel failed")]
    Io(#[from] io::Error),
}

/// Begins a connection on the pipe, within `deadline`.
///
/// # Errors
/// See [`ChannelError`]; the stream is closed then.
pub async fn connect<S>(mut stream: S, deadline: Duration) -> Result<Connection<S>, ChannelError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let ends = Instant::now() + deadline;
    let mut stale = Stale::default();
    let mut patience = PATIENCE;
    loop {
        let nonce: Nonce = rand::random();
        let attempt = async {
            stream.write_all(&hello(&nonce)).await?;
            stream.flush().await?;
            match timeout(patience, stale.answer(&mut stream, &nonce)).await {
                Ok(rest) => rest.map(Some),
                Err(_elapsed) => Ok(None),
            }
        };
        match timeout_at(ends, attempt).await {
            Err(_elapsed) => return Err(ChannelError::Silent(deadline)),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(Some(early))) => return Ok(Connection { stream, early }),
            Ok(Ok(None)) => patience = (patience + PATIENCE).min(PATIENCE_MAX),
        }
    }
}

/// What was read and discarded so far.
#[derive(Default)]
struct Stale {
    scanner: Scanner,
    bytes: usize,
}

impl Stale {
    /// Reads until this nonce comes back; returns what was read behind it.
    async fn answer<S>(&mut self, stream: &mut S, nonce: &Nonce) -> Result<Vec<u8>, ChannelError>
    where
        S: AsyncRead + Unpin,
    {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let read = stream.read(&mut buffer).await?;
            if read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let mut rest = &buffer[..read];
            while let Some((seen, taken)) = self.scanner.feed(rest) {
                rest = &rest[taken..];
                if seen == *nonce {
                    return Ok(rest.to_vec());
                }
            }
            self.bytes += read;
            if self.bytes > STALE_BYTES {
                return Err(ChannelError::Flood);
            }
        }
    }
}

/// A clean connection to the agent.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    /// Read together with the answer to HELLO.
    early: Vec<u8>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let some = self.early.len().min(buf.remaining());
        buf.put_slice(&self.early[..some]);
        self.early.drain(..some);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let some = &bytes[..bytes.len().min(WRITE_BYTES)];
        Pin::new(&mut self.stream).poll_write(cx, some)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

const _: () = assert!(READ_BYTES > MAGIC.len() + NONCE_BYTES);
