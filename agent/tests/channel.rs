//! The guest channel on a pipe that keeps stale bytes, the way a virtio-serial port does.

use flyci_agent::channel::{self, ChannelError, Port};
use flyci_agent::server::{Privilege, Server};
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

mod common;
#[path = "common/drops.rs"]
mod drops;

const DEADLINE: Duration = Duration::from_secs(30);

/// What a port holds in each direction, in bytes: like QEMU and the kernel together.
const PORT_BYTES: usize = 64 * 1024;

/// A virtio-serial port: bytes stay in it when the host's side closes and opens again.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Pipe>>);

#[derive(Default)]
struct Pipe {
    to_guest: VecDeque<u8>,
    to_host: VecDeque<u8>,
    host_is_there: bool,
    wakers: Vec<Waker>,
}

/// The guest's side: its reads end while the host is away and left nothing.
struct GuestEnd(Wire);

/// The host's socket.
struct HostEnd(Wire);

impl Wire {
    fn pipe(&self) -> MutexGuard<'_, Pipe> {
        self.0.lock().unwrap()
    }

    fn open(&self) -> HostEnd {
        let mut pipe = self.pipe();
        assert!(!pipe.host_is_there, "the host opens the port once");
        pipe.host_is_there = true;
        pipe.wake();
        HostEnd(self.clone())
    }

    async fn host_comes(&self) {
        std::future::poll_fn(|cx| {
            let mut pipe = self.pipe();
            match pipe.host_is_there || !pipe.to_guest.is_empty() {
                true => Poll::Ready(()),
                false => pipe.park(cx),
            }
        })
        .await;
    }

    /// The agent, on the port for ever.
    async fn serve(self) {
        let server = Server::new(Privilege::None);
        let mut port = Port::new(GuestEnd(self.clone()));
        loop {
            self.host_comes().await;
            while let Ok(session) = port.accept().await {
                let _ = server.serve(session).await;
            }
        }
    }
}

impl Pipe {
    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }

    fn park<T>(&mut self, cx: &mut Context<'_>) -> Poll<T> {
        self.wakers.push(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for HostEnd {
    fn drop(&mut self) {
        let mut pipe = self.0.pipe();
        pipe.host_is_there = false;
        pipe.wake();
    }
}

fn take(from: &mut VecDeque<u8>, buf: &mut ReadBuf<'_>) {
    let some = from.len().min(buf.remaining());
    buf.put_slice(&from.drain(..some).collect::<Vec<_>>());
}

fn give(to: &mut VecDeque<u8>, bytes: &[u8]) -> usize {
    let some = bytes.len().min(PORT_BYTES - to.len());
    to.extend(&bytes[..some]);
    some
}

impl AsyncRead for GuestEnd {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut pipe = self.0.pipe();
        if pipe.to_guest.is_empty() && pipe.host_is_there {
            return pipe.park(cx);
        }
        take(&mut pipe.to_guest, buf);
        pipe.wake();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for GuestEnd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut pipe = self.0.pipe();
        match give(&mut pipe.to_host, bytes) {
            0 if !pipe.host_is_there => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            0 => pipe.park(cx),
            some => {
                pipe.wake();
                Poll::Ready(Ok(some))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for HostEnd {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut pipe = self.0.pipe();
        if pipe.to_host.is_empty() {
            return pipe.park(cx);
        }
        take(&mut pipe.to_host, buf);
        pipe.wake();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HostEnd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut pipe = self.0.pipe();
        match give(&mut pipe.to_guest, bytes) {
            0 => pipe.park(cx),
            some => {
                pipe.wake();
                Poll::Ready(Ok(some))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Opens the host's side once the last one is closed, as QEMU does.
async fn open_when_free(wire: Wire) -> io::Result<HostEnd> {
    std::future::poll_fn(|cx| {
        let mut pipe = wire.pipe();
        match pipe.host_is_there {
            true => pipe.park(cx),
            false => Poll::Ready(()),
        }
    })
    .await;
    Ok(wire.open())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_drops_in_the_middle_of_traffic_comes_back_a_hundred_times() {
    let wire = Wire::default();
    tokio::spawn(wire.clone().serve());
    drops::drop_in_traffic(100, move || open_when_free(wire.clone())).await;
}

#[tokio::test]
async fn a_guest_that_says_nothing_is_given_up() {
    let wire = Wire::default();
    let refused = channel::connect(wire.open(), Duration::from_millis(50)).await;
    assert!(matches!(refused, Err(ChannelError::Silent(_))));
}

#[tokio::test]
async fn a_guest_that_writes_without_end_is_given_up() {
    let wire = Wire::default();
    let mut guest = GuestEnd(wire.clone());
    let host = wire.open();
    tokio::spawn(async move { while guest.write_all(&[0; 4096]).await.is_ok() {} });
    let refused = channel::connect(host, DEADLINE).await;
    assert!(matches!(refused, Err(ChannelError::Flood)));
}

#[tokio::test]
async fn an_answer_to_an_older_hello_is_not_taken() {
    let wire = Wire::default();
    wire.pipe().to_host.extend([channel::MAGIC.as_slice(), &[9; 16]].concat());
    let refused = channel::connect(wire.open(), Duration::from_millis(50)).await;
    assert!(matches!(refused, Err(ChannelError::Silent(_))));
}

#[tokio::test]
async fn a_session_ends_where_the_next_hello_begins() {
    let wire = Wire::default();
    let mut port = Port::new(GuestEnd(wire.clone()));
    let mut host = wire.open();
    let hello = |nonce: u8| [channel::MAGIC.as_slice(), &[nonce; 16]].concat();
    host.write_all(&hello(1)).await.unwrap();
    let mut session = port.accept().await.unwrap();
    host.write_all(b"frame").await.unwrap();
    let mut frame = [0; 5];
    session.read_exact(&mut frame).await.unwrap();
    host.write_all(&hello(2)).await.unwrap();
    assert_eq!(session.read(&mut frame).await.unwrap(), 0);
    assert!(session.write_all(b"late").await.is_err());
    let mut next = port.accept().await.unwrap();
    host.write_all(b"clean").await.unwrap();
    next.read_exact(&mut frame).await.unwrap();
    assert_eq!(&frame, b"clean");
    let mut answers = vec![0; 64];
    host.read_exact(&mut answers).await.unwrap();
    assert_eq!(answers, [hello(1), hello(2)].concat());
}
