//! Drops the host's side of a guest channel in the middle of bulk traffic, again and again, and
//! sees that each next connection is as good as the first.

use crate::common::{Client, client};
use flyci_agent::channel;
use flyci_agent::proto::exec_request::{Command, Type as Input};
use flyci_agent::proto::exec_response::Type as Output;
use flyci_agent::proto::{ExecRequest, ExecResponse, IoChunk};
use rand::RngExt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::{Status, Streaming};

/// Long enough for a busy machine: only a broken channel reaches it.
const DEADLINE: Duration = Duration::from_secs(60);

/// Most bytes of traffic before a drop.
const TRAFFIC_BYTES: usize = 2 * 1024 * 1024;

/// Runs `rounds` of connect, check, flood, drop; `open` opens the host's side of the pipe.
///
/// # Panics
/// A connection after a drop is not as good as the first.
pub async fn drop_in_traffic<C, F, S>(rounds: usize, open: C)
where
    C: Fn() -> F + Clone + Send + Sync + 'static,
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    for round in 0..rounds {
        let budget = Arc::new(AtomicUsize::new(usize::MAX));
        let mut client = connect(open.clone(), budget.clone()).await;
        let echoed = tokio::time::timeout(DEADLINE, echo(&mut client)).await;
        assert!(matches!(echoed, Ok(Ok(()))), "round {round}: {echoed:?}");
        budget.store(rand::rng().random_range(1..TRAFFIC_BYTES), Ordering::SeqCst);
        let flooded = tokio::time::timeout(DEADLINE, flood(&mut client)).await;
        flooded.unwrap_or_else(|_| panic!("round {round}: the traffic stalled"));
    }
}

/// Connects as the host does, on a stream that breaks off when its budget of bytes is used up.
async fn connect<C, F, S>(open: C, budget: Arc<AtomicUsize>) -> Client
where
    C: Fn() -> F + Clone + Send + Sync + 'static,
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connected = client(move || {
        let (stream, budget) = (open(), budget.clone());
        async move {
            let stream = Brittle { stream: stream.await?, budget };
            channel::connect(stream, DEADLINE).await
        }
    });
    let connected: Result<Client, tonic::transport::Error> = connected.await;
    connected.unwrap_or_else(|error| panic!("no connection: {error:?}"))
}

/// A short command that must come back exactly.
async fn echo(client: &mut Client) -> Result<(), Status> {
    let mut output = exec(client, "cat; exit 3", vec![b"whole".to_vec(), Vec::new()]).await?;
    let mut stdout = Vec::new();
    while let Some(response) = output.message().await? {
        match response.r#type {
            Some(Output::StandardOutput(chunk)) => stdout.extend(chunk.data),
            Some(Output::Exit(exit)) => assert_eq!(exit.code, 3),
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(stdout, b"whole");
    Ok(())
}

/// Traffic in both directions, and beside it, until the stream breaks off.
async fn flood(client: &mut Client) {
    let chunks = vec![vec![0xA5; 16 * 1024]; 4096];
    let (mut one, mut other) = (client.clone(), client.clone());
    let both = exec(&mut one, "cat", chunks);
    let back = exec(&mut other, "cat /dev/zero", Vec::new());
    if let (Ok(mut both), Ok(mut back)) = tokio::join!(both, back) {
        let (one, other) = tokio::join!(drain(&mut both), drain(&mut back));
        assert!(one.is_err() && other.is_err(), "both break off");
    }
}

async fn drain(output: &mut Streaming<ExecResponse>) -> Result<(), Status> {
    while output.message().await?.is_some() {}
    Ok(())
}

async fn exec(client: &mut Client, script: &str, chunks: Vec<Vec<u8>>) -> Result<Streaming<ExecResponse>, Status> {
    let command = Command {
        name: "/bin/sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        interactive: true,
        ..Command::default()
    };
    let inputs = chunks.into_iter().map(|data| Input::StandardInput(IoChunk { data }));
    let inputs = std::iter::once(Input::Command(command)).chain(inputs);
    let requests = inputs.map(|input| ExecRequest { r#type: Some(input) });
    Ok(client.exec(tokio_stream::iter(requests)).await?.into_inner())
}

/// A stream that breaks off in the middle of whatever it carries.
struct Brittle<S> {
    stream: S,
    budget: Arc<AtomicUsize>,
}

impl<S> Brittle<S> {
    fn left(&self) -> io::Result<usize> {
        match self.budget.load(Ordering::SeqCst) {
            0 => Err(io::ErrorKind::ConnectionAborted.into()),
            left => Ok(left),
        }
    }

    fn used(&self, bytes: usize) {
        if self.budget.load(Ordering::SeqCst) != usize::MAX {
            self.budget.fetch_sub(bytes, Ordering::SeqCst);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Brittle<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let most = self.left()?.min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
        std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buf.advance(read);
        self.used(read);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Brittle<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let most = self.left()?.min(bytes.len());
        let written = std::task::ready!(Pin::new(&mut self.stream).poll_write(cx, &bytes[..most]))?;
        self.used(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
