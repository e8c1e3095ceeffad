//! Who may ask what: over the socket our own user and root everything, over loopback TCP anybody on
//! this machine may read.
//!
//! A browser of this machine is kept out of the TCP listener by its `Host` (a name that was made to
//! point here) and its `Origin` (a page of somebody else).

use super::ROUTES;
use crate::store::audit::{Act, Trail};
use crate::web::connections::Peer;
use crate::web::failure::Failure;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use nix::unistd::geteuid;
use sqlx::PgPool;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Refusals of a minute that are written down.
const REFUSALS_A_MINUTE: u32 = 30;

/// Who asks for a change: a user of this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operator {
    uid: u32,
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operator:{}", self.uid)
    }
}

impl<S: Sync> FromRequestParts<S> for Operator {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        parts.extensions.get::<Self>().copied().ok_or_else(read_only)
    }
}

/// Lets a request through, or refuses it and writes that down.
pub async fn guard(State(refusals): State<Arc<Refusals>>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().copied();
    match judge(peer, &request) {
        Ok(Some(operator)) => {
            request.extensions_mut().insert(operator);
        }
        Ok(None) => {}
        Err(failure) => {
            refusals.record(peer, request.method(), request.uri().path()).await;
            return failure.into_response();
        }
    }
    next.run(request).await
}

/// Who may ask this: an operator everything, whoever is on this machine may read.
fn judge(peer: Option<Peer>, request: &Request) -> Result<Option<Operator>, Failure> {
    match peer {
        Some(Peer::User(uid)) if uid == geteuid().as_raw() || uid == 0 => Ok(Some(Operator { uid })),
        Some(Peer::User(_)) => {
            let detail = "only the user that flyci runs as, and root, may use the admin socket: use sudo";
            Err(Failure::new(StatusCode::FORBIDDEN, "this user may not do that").detail(detail))
        }
        Some(Peer::Network | Peer::Source(_)) if !is_local(request.headers()) => {
            Err(Failure::new(StatusCode::FORBIDDEN, "the Host or Origin is not this machine"))
        }
        Some(Peer::Network | Peer::Source(_)) if !matches!(*request.method(), Method::GET | Method::HEAD) => {
            Err(read_only())
        }
        Some(Peer::Network | Peer::Source(_)) => Ok(None),
        None => Err(Failure::new(StatusCode::FORBIDDEN, "nobody knows who asks")),
    }
}

/// Writes refusals into the audit trail: so many in a minute, and of the others the number, since whoever is
/// refused can ask as often as they like.
pub struct Refusals {
    pool: PgPool,
    trail: Trail,
    minute: Mutex<Minute>,
}

/// The refusals of the minute that goes on, and those of before that were not written.
#[derive(Default)]
struct Minute {
    began: Option<Instant>,
    written: u32,
    unwritten: u64,
}

impl Minute {
    /// Whether one more is written; then how many were not since the last that was.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if self.began.is_none_or(|began| now.duration_since(began) >= Duration::from_secs(60)) {
            (self.began, self.written) = (Some(now), 0);
        }
        if self.written >= REFUSALS_A_MINUTE {
            self.unwritten = self.unwritten.saturating_add(1);
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.unwritten))
    }
}

impl Refusals {
    /// Refusals of one listener.
    #[must_use]
    pub fn new(pool: PgPool, trail: Trail) -> Self {
        Self { pool, trail, minute: Mutex::default() }
    }

    async fn record(&self, peer: Option<Peer>, method: &Method, path: &str) {
        let taken = self.minute.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        let Some(unwritten) = taken else { return };
        let actor = match peer {
            Some(Peer::User(uid)) => format!("user:{uid}"),
            Some(Peer::Network | Peer::Source(_)) => "network".to_owned(),
            None => "unknown".to_owned(),
        };
        // The path may hold an account's name, and whatever a stranger writes: its kind is told alone.
        let kind = ROUTES.iter().filter_map(|(_, route)| kind(route)).find(|known| Some(*known) == kind(path));
        let kind = kind.unwrap_or("else");
        let method = if *method == Method::GET || *method == Method::HEAD { "read" } else { "change" };
        let detail = (unwritten > 0).then(|| format!("{unwritten} more before it are not written down"));
        let subject = format!("{method} {kind}");
        let act = Act { actor: &actor, action: "admin.refused", subject: &subject, detail: detail.as_deref() };
        if let Err(error) = self.trail.append(&self.pool, &act).await {
            tracing::warn!(error = %crate::errors::chain(&error), "a refusal could not be written into the audit trail");
        }
    }
}

/// What a path of the API is about: `jobs` of `/api/v1/jobs/7/why`.
fn kind(path: &str) -> Option<&str> {
    path.strip_prefix(crate::api::BASE)?.split('/').nth(1)
}

fn read_only() -> Failure {
    Failure::new(StatusCode::FORBIDDEN, "the API over TCP reads alone").detail("make changes over the admin socket")
}

fn is_local(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let Some(host) = text(header::HOST) else { return false };
    let same_origin = text(header::ORIGIN).is_none_or(|origin| origin.strip_prefix("http://") == Some(host));
    is_loopback(host) && same_origin
}

fn is_loopback(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(host: Option<&'static str>, origin: Option<&'static str>) -> HeaderMap {
        let pair = |name, value: Option<&'static str>| value.map(|value| (name, HeaderValue::from_static(value)));
        [pair(header::HOST, host), pair(header::ORIGIN, origin)].into_iter().flatten().collect()
    }

    #[test]
    fn a_browser_is_kept_out() {
        for host in ["localhost", "localhost:9465", "127.0.0.1:9465", "[::1]:9465", "[::1]", "LOCALHOST:1"] {
            assert!(is_local(&headers(Some(host), None)), "{host}");
        }
        for host in ["evil.example:9465", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.1.1:9465", ""] {
            assert!(!is_local(&headers(Some(host), None)), "{host}");
        }
        assert!(!is_local(&headers(None, None)), "no Host");
        assert!(is_local(&headers(Some("localhost:1"), Some("http://localhost:1"))));
        for origin in ["https://evil.example", "http://localhost:2", "null"] {
            assert!(!is_local(&headers(Some("localhost:1"), Some(origin))), "{origin}");
        }
    }

    #[test]
    fn refusals_are_written_down_within_a_bound_and_counted_beyond_it() {
        let (mut minute, began) = (Minute::default(), Instant::now());
        for _ in 0..REFUSALS_A_MINUTE {
            assert_eq!(minute.take(began), Some(0));
        }
        assert_eq!((minute.take(began), minute.take(began)), (None, None));
        assert_eq!(minute.take(began + Duration::from_secs(60)), Some(2));
    }
}
