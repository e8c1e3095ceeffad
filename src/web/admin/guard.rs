//! Who may ask what: over the socket our own user and root everything, over loopback TCP anybody on
//! this machine may read.
//!
//! A browser of this machine is kept out of the TCP listener by its `Host` (a name that was made to
//! point here) and its `Origin` (a page of somebody else).

use crate::web::connections::Peer;
use crate::web::failure::Failure;
use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use nix::unistd::geteuid;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

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

/// Lets a request through, or refuses it.
pub async fn guard(mut request: Request, next: Next) -> Response {
    match request.extensions().get::<Peer>().copied() {
        Some(Peer::User(uid)) if uid == geteuid().as_raw() || uid == 0 => {
            request.extensions_mut().insert(Operator { uid });
        }
        Some(Peer::User(_)) => {
            let detail = "only the user that flyci runs as, and root, may use the admin socket: use sudo";
            return Failure::new(StatusCode::FORBIDDEN, "this user may not do that").detail(detail).into_response();
        }
        Some(Peer::Network) => {
            if !is_local(request.headers()) {
                let title = "the Host or Origin is not this machine";
                return Failure::new(StatusCode::FORBIDDEN, title).into_response();
            }
            if !matches!(*request.method(), Method::GET | Method::HEAD) {
                return read_only().into_response();
            }
        }
        None => return Failure::new(StatusCode::FORBIDDEN, "nobody knows who asks").into_response(),
    }
    next.run(request).await
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
}
