//! Reads a delivery's body with bounded memory and time, whoever sends it.
//!
//! Nobody can be believed before the signature was checked, and that needs the whole body. So each
//! byte is paid for from a purse before it is kept, and given back when the delivery is answered.
//! The first part of every body is paid from one purse, what is beyond it from another: who sends
//! large junk can keep large deliveries out, not the ordinary ones of some ten kilobytes. A suspect's
//! bodies are paid from a third, small one, so that it keeps nobody out but other suspects.

use super::failure::Failure;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// GitHub's own limit of a payload, in bytes.
/// <https://docs.github.com/webhooks/webhook-events-and-payloads#payload-cap>
pub const MAX_BODY: usize = 25 * 1024 * 1024;
/// What is paid from the first purse, in bytes of one body.
const ORDINARY: usize = 256 * 1024;
/// All bodies together keep so many bytes within their first part.
const ORDINARY_PURSE: usize = 32 * 1024 * 1024;
/// All bodies together keep so many bytes beyond it.
const LARGE_PURSE: usize = 48 * 1024 * 1024;
/// All bodies of suspects together keep so many bytes.
const SUSPECTS_PURSE: usize = 1024 * 1024;
/// A whole body must be here by then: GitHub itself gives up after ten seconds.
pub const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// What all bodies that are being read, or decided on, may keep in memory.
pub struct Purse {
    ordinary: Arc<Semaphore>,
    large: Arc<Semaphore>,
    suspects: Arc<Semaphore>,
    deadline: Duration,
}

/// Who sends a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sender {
    /// Nothing is known against it.
    Anyone,
    /// Its signatures were wrong too often.
    Suspect,
}

impl Default for Purse {
    fn default() -> Self {
        Self::new(ORDINARY_PURSE, LARGE_PURSE, BODY_DEADLINE)
    }
}

/// A whole body; its bytes are given back to the purse when it is dropped.
pub struct Paid {
    /// The raw bytes.
    pub bytes: Vec<u8>,
    ordinary: Option<OwnedSemaphorePermit>,
    large: Option<OwnedSemaphorePermit>,
    suspect: Option<OwnedSemaphorePermit>,
}

impl Purse {
    fn new(ordinary: usize, large: usize, deadline: Duration) -> Self {
        let purse = |bytes| Arc::new(Semaphore::new(bytes));
        Self { ordinary: purse(ordinary), large: purse(large), suspects: purse(SUSPECTS_PURSE), deadline }
    }

    /// Reads a body to its end.
    ///
    /// # Errors
    /// 413 when it is, or says that it is, larger than any of GitHub's; 408 when it does not end in
    /// time; 503 when there is no memory for it now (of a suspect: 429); 400 when the connection breaks.
    pub async fn read(&self, sender: Sender, headers: &HeaderMap, body: Body) -> Result<Paid, Failure> {
        if declared_length(headers).is_some_and(|length| length > MAX_BODY as u64) {
            return Err(too_large());
        }
        tokio::time::timeout(self.deadline, self.read_to_end(sender, body))
            .await
            .map_err(|_| Failure::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"))?
    }

    async fn read_to_end(&self, sender: Sender, mut body: Body) -> Result<Paid, Failure> {
        let mut paid = Paid { bytes: Vec::new(), ordinary: None, large: None, suspect: None };
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Failure::bad_request("the body broke off"))?;
            let Ok(chunk) = frame.into_data() else { continue };
            self.pay(sender, &mut paid, chunk.len())?;
            // Doubling would keep up to twice of what is paid for.
            paid.bytes.reserve_exact(chunk.len().max(growth(paid.bytes.len())));
            paid.bytes.extend_from_slice(&chunk);
        }
        Ok(paid)
    }

    fn pay(&self, sender: Sender, paid: &mut Paid, more: usize) -> Result<(), Failure> {
        let (before, after) = (paid.bytes.len(), paid.bytes.len() + more);
        if after > MAX_BODY {
            return Err(too_large());
        }
        if sender == Sender::Suspect {
            return take(&self.suspects, &mut paid.suspect, more).map_err(|_| too_often());
        }
        let ordinary = after.min(ORDINARY) - before.min(ORDINARY);
        take(&self.ordinary, &mut paid.ordinary, ordinary)?;
        take(&self.large, &mut paid.large, more - ordinary)
    }
}

/// Room to add so that a body in many small chunks is not copied for each of them: an eighth.
fn growth(length: usize) -> usize {
    length / 8
}

fn take(purse: &Arc<Semaphore>, held: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> Result<(), Failure> {
    let Ok(bytes) = u32::try_from(bytes) else { return Err(too_large()) };
    // Not waited for: those that hold the rest may wait for each other.
    let permit = Arc::clone(purse).try_acquire_many_owned(bytes).map_err(|_| Failure::unavailable())?;
    match held {
        Some(held) => held.merge(permit),
        None => *held = Some(permit),
    }
    Ok(())
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

const fn too_large() -> Failure {
    Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 25 MB")
}

/// What a suspect is told.
pub(super) const fn too_often() -> Failure {
    Failure::new(StatusCode::TOO_MANY_REQUESTS, "too many wrong signatures came from here: try again later")
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse;

    const LONG: Duration = Duration::from_secs(3600);

    async fn read(purse: &Purse, bytes: usize) -> Result<Paid, StatusCode> {
        let body = Body::from(vec![b'x'; bytes]);
        purse.read(Sender::Anyone, &HeaderMap::new(), body).await.map_err(|failure| failure.into_response().status())
    }

    #[tokio::test]
    async fn memory_over_all_bodies_is_bounded_and_given_back() {
        let purse = Purse::new(3 * ORDINARY, 1000, LONG);
        let large = read(&purse, ORDINARY + 1000).await.expect("there is room for one");
        assert_eq!(large.bytes.len(), ORDINARY + 1000);
        assert_eq!(read(&purse, ORDINARY + 1).await.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
        let ordinary = read(&purse, ORDINARY).await.expect("large bodies do not keep ordinary ones out");
        drop((large, ordinary));
        assert_eq!((purse.ordinary.available_permits(), purse.large.available_permits()), (3 * ORDINARY, 1000));
    }

    #[tokio::test]
    async fn suspects_share_a_little_and_keep_nobody_else_out() {
        let purse = Purse::new(ORDINARY, 0, LONG);
        let of_suspect = async |bytes: usize| {
            let body = Body::from(vec![b'x'; bytes]);
            purse.read(Sender::Suspect, &HeaderMap::new(), body).await.map_err(|no| no.into_response().status())
        };
        let held = of_suspect(SUSPECTS_PURSE).await.expect("there is room for it");
        assert_eq!(of_suspect(1).await.err(), Some(StatusCode::TOO_MANY_REQUESTS));
        read(&purse, ORDINARY).await.expect("others have their own");
        drop(held);
        of_suspect(1).await.expect("it is given back");
    }

    #[tokio::test]
    async fn what_is_larger_than_github_sends_is_refused_before_it_is_read() {
        let headers = HeaderMap::from_iter([(header::CONTENT_LENGTH, (MAX_BODY + 1).into())]);
        let refused =
            Purse::default().read(Sender::Anyone, &headers, Body::empty()).await.err().expect("it is too large");
        assert_eq!(refused.into_response().status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(read(&Purse::default(), MAX_BODY + 1).await.err(), Some(StatusCode::PAYLOAD_TOO_LARGE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_end_is_cut() {
        let endless = Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        let cut =
            Purse::default().read(Sender::Anyone, &HeaderMap::new(), endless).await.err().expect("it does not end");
        assert_eq!(cut.into_response().status(), StatusCode::REQUEST_TIMEOUT);
    }
}
