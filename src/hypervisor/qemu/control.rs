//! The control socket of a VM's process (QMP): only whether the machine runs.
//!
//! Protocol: <https://www.qemu.org/docs/master/interop/qmp-spec.html>. The server greets first, and
//! does so before it has made the machine; commands are answered once that is done.

use serde::Deserialize;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::sleep;

/// Pause between tries while the socket is not there yet.
const LOOK: Duration = Duration::from_millis(10);

/// Most bytes of a conversation.
const CONVERSATION_LIMIT: u64 = 64 << 10;

/// What is asked.
const QUESTIONS: &[u8] = b"{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"query-status\", \"id\": \"status\"}\n";

/// One line that the process says. Greetings, events and other answers have none of these fields.
#[derive(Deserialize)]
struct Said {
    id: Option<String>,
    #[serde(rename = "return")]
    answer: Option<Status>,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    running: bool,
    #[serde(default)]
    status: String,
}

/// Resolves when the machine runs.
pub(super) async fn running(socket: &Path) -> io::Result<()> {
    let mut stream = loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => break stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                sleep(LOOK).await;
            }
            Err(error) => return Err(error),
        }
    };
    stream.write_all(QUESTIONS).await?;
    let mut lines = BufReader::new(stream.take(CONVERSATION_LIMIT)).lines();
    while let Some(line) = lines.next_line().await? {
        let said: Said = serde_json::from_str(&line)?;
        let Some(status) = said.answer.filter(|_| said.id.is_some()) else { continue };
        if status.running {
            return Ok(());
        }
        return Err(io::Error::other(format!("the machine is stopped: {}", status.status)));
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    /// What [`running`] makes of a process that says this.
    async fn judged(says: &str) -> io::Result<()> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("qmp.sock");
        let waiting = tokio::spawn({
            let path = path.clone();
            async move { running(&path).await }
        });
        let listener = UnixListener::bind(&path).expect("bound");
        let (mut peer, _) = listener.accept().await.expect("connected");
        let mut asked = vec![0; QUESTIONS.len()];
        peer.read_exact(&mut asked).await.expect("questions");
        peer.write_all(says.as_bytes()).await.expect("written");
        drop(peer);
        waiting.await.expect("no panic")
    }

    const GREETING: &str =
        "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n{\"return\": {}}\r\n{\"event\": \"RESUME\"}\r\n";

    #[tokio::test]
    async fn a_machine_that_runs_is_up() {
        let answer = "{\"return\": {\"status\": \"running\", \"running\": true}, \"id\": \"status\"}\r\n";
        judged(&format!("{GREETING}{answer}")).await.expect("it runs");
    }

    #[tokio::test]
    async fn a_machine_that_is_stopped_is_not() {
        let answer = "{\"return\": {\"status\": \"internal-error\", \"running\": false}, \"id\": \"status\"}\r\n";
        let told = judged(&format!("{GREETING}{answer}")).await.expect_err("stopped").to_string();
        assert!(told.contains("internal-error"), "{told}");
    }

    #[tokio::test]
    async fn a_greeting_alone_is_no_machine() {
        judged(GREETING).await.expect_err("it ended before it answered");
        judged("hello\n").await.expect_err("another program");
    }
}
