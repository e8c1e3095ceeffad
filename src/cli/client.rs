//! The admin API from the operator's side: HTTP/1 over the daemon's Unix socket, one connection per call, and
//! a deadline on each. Does not: interpret answers.

use super::exit::CliError;
use crate::api::{BASE, Page, Problem};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long a call may take: the daemon itself gives up on its database before.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// The longest answer that is read, in bytes: a page of 500 jobs is below 1 MB.
const MAX_ANSWER: usize = 32 << 20;
/// What stands in a path segment as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The daemon's admin API.
#[derive(Debug)]
pub struct Admin {
    socket: PathBuf,
}

/// One segment of a path, with whatever a person typed in it.
#[must_use]
pub fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

impl Admin {
    /// The API behind this socket. Nothing is connected yet.
    #[must_use]
    pub const fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Reads, as the daemon writes it. `path` begins behind `/api/v1`.
    pub async fn read(&self, path: &str, query: &impl Serialize) -> Result<Bytes, CliError> {
        let query = serde_urlencoded::to_string(query).expect("a query has only plain values");
        let mark = if query.is_empty() { "" } else { "?" };
        self.call(Method::GET, &format!("{path}{mark}{query}"), Bytes::new()).await
    }

    /// Reads a value.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, query: &impl Serialize) -> Result<T, CliError> {
        decode(path, &self.read(path, query).await?)
    }

    /// Reads the rows of a list, at most `limit`, page by page. `query` makes a page's query out of the `after`
    /// and the number of rows that are still wanted.
    pub async fn list<T: DeserializeOwned, Q: Serialize>(
        &self,
        path: &str,
        limit: u32,
        query: impl Fn(Option<String>, u32) -> Q,
    ) -> Result<Page<T>, CliError> {
        let mut items = Vec::new();
        let mut next = None;
        loop {
            let wanted = limit.saturating_sub(u32::try_from(items.len()).unwrap_or(u32::MAX));
            let page: Page<T> = self.get(path, &query(next.take(), wanted)).await?;
            let is_empty = page.items.is_empty();
            items.extend(page.items);
            next = page.next;
            if next.is_none() || is_empty || items.len() >= usize::try_from(limit).unwrap_or(usize::MAX) {
                return Ok(Page { items, next });
            }
        }
    }

    /// Changes something.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, CliError> {
        let body = serde_json::to_vec(body).expect("the API's types are JSON");
        decode(path, &self.call(Method::POST, path, body.into()).await?)
    }

    async fn call(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, CliError> {
        let route = path.split('?').next().unwrap_or(path);
        let call = format!("{method} {BASE}{route}");
        let request = Request::builder()
            .method(method)
            .uri(format!("{BASE}{path}"))
            .header(HOST, "localhost")
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|fault| CliError::NoAnswer { call: call.clone(), reason: fault.to_string() })?;
        match timeout(CALL_DEADLINE, self.exchange(&call, request)).await {
            Ok(answer) => answer,
            Err(_) => {
                let reason = format!("no answer within {} s", CALL_DEADLINE.as_secs());
                Err(CliError::NoAnswer { call, reason })
            }
        }
    }

    async fn exchange(&self, call: &str, request: Request<Full<Bytes>>) -> Result<Bytes, CliError> {
        let failed = |reason: String| CliError::NoAnswer { call: call.to_owned(), reason };
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(error.to_string()))?;
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|error| failed(error.to_string()))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        connection.abort();
        let body = body.map_err(|error| failed(error.to_string()))?.to_bytes();
        if status.is_success() { Ok(body) } else { Err(refusal(call, status, &body)) }
    }

    fn unreachable(&self, error: &std::io::Error) -> CliError {
        let socket = self.socket.clone();
        match error.kind() {
            ErrorKind::PermissionDenied => CliError::NotPermitted { owner: owner(&socket), socket },
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => CliError::NotRunning { socket },
            kind => {
                CliError::NoAnswer { call: format!("a connection to {}", socket.display()), reason: kind.to_string() }
            }
        }
    }
}

/// An answer, understood.
pub fn decode<T: DeserializeOwned>(path: &str, body: &[u8]) -> Result<T, CliError> {
    serde_json::from_slice(body).map_err(|fault| CliError::NoAnswer {
        call: format!("{BASE}{path}"),
        reason: format!("it is of another version of flyci than this command ({fault})"),
    })
}

fn refusal(call: &str, status: StatusCode, body: &[u8]) -> CliError {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => CliError::Refused { title: problem.title, detail: problem.detail },
        Err(_) => CliError::NoAnswer { call: call.to_owned(), reason: format!("it answered {status}") },
    }
}

/// The user whose the socket is, or the nearest directory above it that can be looked at.
fn owner(socket: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let uid = socket.ancestors().find_map(|path| path.symlink_metadata().ok()).map_or(0, |found| found.uid());
    match nix::unistd::User::from_uid(uid.into()) {
        Ok(Some(user)) => user.name,
        Ok(None) | Err(_) => format!("#{uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Done;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    /// A daemon that answers one call with this, and gives what it was asked.
    fn answering(answer: &'static str) -> (tempfile::TempDir, Admin, tokio::task::JoinHandle<String>) {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("admin.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a call");
            let mut asked = vec![0; 4096];
            let length = stream.read(&mut asked).await.expect("a request");
            stream.write_all(answer.as_bytes()).await.expect("an answer");
            String::from_utf8_lossy(&asked[..length]).into_owned()
        });
        (directory, Admin::new(socket), asked)
    }

    #[tokio::test]
    async fn a_change_is_asked_for_and_its_answer_read() {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 34\r\n\r\n{\"message\":\"approved\",\"changed\":1}";
        let (_directory, admin, asked) = answering(answer);
        let path = format!("/tenants/{}/approve", segment("../a b"));
        let done: Done = admin.post(&path, &()).await.expect("an answer");
        assert_eq!(done.message, "approved");
        assert!(asked.await.expect("a request").starts_with("POST /api/v1/tenants/..%2Fa%20b/approve HTTP/1.1\r\n"));
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_the_daemons_words() {
        let body = r#"{"type":"about:blank","title":"no such host","status":404,"detail":"see `flyci hosts`","request_id":"1"}"#;
        let answer = format!("HTTP/1.1 404 Not Found\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let (_directory, admin, _asked) = answering(answer.leak());
        let error = admin.read("/hosts/x/drain", &()).await.expect_err("a refusal");
        assert_eq!(error.to_string(), "no such host: see `flyci hosts`");
        assert_eq!(error.code(), super::super::exit::FAILED);
    }

    #[tokio::test]
    async fn no_daemon_is_told_as_such() {
        let directory = tempfile::tempdir().expect("a directory");
        let admin = Admin::new(directory.path().join("admin.sock"));
        let error = admin.read("/status", &()).await.expect_err("nobody is there");
        assert_eq!(error.code(), super::super::exit::NOT_RUNNING);
        assert!(error.to_string().contains("flyci serve"), "{error}");
    }

    #[tokio::test]
    async fn a_daemon_that_dies_in_its_answer_is_no_success() {
        let (_directory, admin, _asked) = answering("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{");
        let error = admin.read("/status", &()).await.expect_err("half an answer");
        assert!(matches!(error, CliError::NoAnswer { .. }), "{error}");
    }
}
