//! Bytes to GitHub and back: connections, TLS, proxy, deadlines, bounds. No meaning.
//!
//! octocrab's own builder knows neither proxy nor CA, retries a POST three times after a 5xx, and
//! writes URLs into its traces. So the connector is built here and given to octocrab as its
//! service, without the retry, redirect and trace layers.

use super::error::{Call, GitHubError, NetworkFault, OptionsError, Result, Unreadable};
use super::request::Request;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::BodyExt as _;
use hyper::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, IF_NONE_MATCH, USER_AGENT};
use hyper::http::uri::Scheme;
use hyper::http::{HeaderName, Response, Uri};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use octocrab::service::middleware::{base_uri::BaseUriLayer, extra_headers::ExtraHeadersLayer};
use octocrab::{AuthState, OctoBody, Octocrab, OctocrabBuilder};
use rustls::pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use secrecy::{ExposeSecret as _, SecretString};
use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// Longest that a connection may take to be ready, proxy and TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence in the middle of a request or an answer.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest that one try of a call may take in all.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// GitHub closes idle connections after a minute.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(45);
/// Idle connections that are kept.
const POOL_IDLE_CONNECTIONS: usize = 16;
/// How much of a connection error's own words is kept.
const MAX_DETAIL_CHARS: usize = 240;
/// GitHub's own name for its JSON, and the one that its OpenAPI description uses.
const ACCEPTED: &str = "application/vnd.github+json, application/json";
/// The version of GitHub's API that the requests are written for.
const API_VERSION: &str = "2022-11-28";

/// What a connection is made of.
pub(super) struct Wire<'a> {
    pub api_url: &'a str,
    pub ca_pem: Option<&'a [u8]>,
    pub proxy_url: Option<&'a SecretString>,
    pub user_agent: &'a str,
}

/// An answer, read whole.
pub(super) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    /// May hold a JIT config or a token: wiped when dropped.
    pub body: Zeroizing<Vec<u8>>,
    pub call: Call,
}

impl Answer {
    /// A header's text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as what it is documented to be.
    pub(super) fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| {
            // serde's own message quotes values.
            let (line, column) = (error.line(), error.column());
            let what = match error.classify() {
                serde_json::error::Category::Data => Unreadable::Shape { line, column },
                serde_json::error::Category::Io
                | serde_json::error::Category::Syntax
                | serde_json::error::Category::Eof => Unreadable::Syntax { line, column },
            };
            GitHubError::Decode { call: self.call.clone(), what }
        })
    }
}

/// Sends requests; knows where to, and nothing of what they are about.
pub(super) struct Transport {
    octocrab: Octocrab,
    base: Uri,
}

impl Transport {
    pub(super) fn new(wire: &Wire<'_>) -> std::result::Result<Self, OptionsError> {
        let base = parse_api_url(wire.api_url)?;
        let tls = tls(wire.ca_pem)?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let agent = HeaderValue::from_str(wire.user_agent).map_err(|_| OptionsError::UserAgent)?;
        let octocrab = match wire.proxy_url {
            Some(proxy) => octocrab_over(tunnel(proxy, tcp)?, tls, &base, agent),
            None => octocrab_over(tcp, tls, &base, agent),
        };
        Ok(Self { octocrab, base })
    }

    /// True when `location` is on the server that tokens are for.
    pub(super) fn is_same_server(&self, location: &Uri) -> bool {
        location.authority().is_none()
            || (location.scheme() == self.base.scheme() && location.authority() == self.base.authority())
    }

    /// The path of the API's root without its last slash: empty, or `/api/v3` of an Enterprise Server.
    pub(super) fn root(&self) -> &str {
        self.base.path().trim_end_matches('/')
    }

    /// One try: sends the request once, and reads the answer whole. Any status is an answer.
    pub(super) async fn send(&self, request: &Request, bearer: &SecretString) -> Result<Answer> {
        let call = request.call();
        let built = build(request, bearer).map_err(|what| GitHubError::Input { call: call.clone(), what })?;
        let exchange = async {
            let response = self.octocrab.execute(built).await.map_err(|error| network_error(&call, &error))?;
            read(response, &call, request.limit_bytes).await
        };
        tokio::time::timeout(CALL_TIMEOUT, exchange).await.unwrap_or_else(|_| {
            let detail = format!("no whole answer in {} s", CALL_TIMEOUT.as_secs());
            Err(GitHubError::Network { call: call.clone(), fault: NetworkFault::Timeout, detail })
        })
    }
}

fn build(request: &Request, bearer: &SecretString) -> std::result::Result<hyper::Request<OctoBody>, &'static str> {
    let mut builder = hyper::Request::builder().method(request.method.as_str()).uri(request.path_and_query());
    if !request.anonymous {
        let bearer = Zeroizing::new(format!("Bearer {}", bearer.expose_secret()));
        let mut authorization = HeaderValue::from_str(&bearer).map_err(|_| "the token is no header value")?;
        authorization.set_sensitive(true);
        builder = builder.header(AUTHORIZATION, authorization);
    }
    if let Some(etag) = &request.etag {
        builder = builder.header(IF_NONE_MATCH, etag);
    }
    if request.body.is_some() {
        builder = builder.header(CONTENT_TYPE, "application/json");
    }
    let body = request.body.clone().map_or_else(OctoBody::empty, OctoBody::from);
    builder.body(body).map_err(|_| "it cannot be written as an HTTP request")
}

async fn read<B>(response: Response<B>, call: &Call, limit_bytes: usize) -> Result<Answer>
where
    B: hyper::body::Body<Data = hyper::body::Bytes, Error = octocrab::Error> + Unpin,
{
    let (parts, mut incoming) = response.into_parts();
    let request_id = parts.headers.get("x-github-request-id").and_then(|id| id.to_str().ok());
    let call = call.clone().answered(parts.status.as_u16(), request_id);
    let mut body = Zeroizing::new(Vec::new());
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| network_error(&call, &error))?;
        let Ok(data) = frame.into_data() else { continue };
        if body.len() + data.len() > limit_bytes {
            return Err(GitHubError::Decode { call, what: Unreadable::TooLarge { limit_bytes } });
        }
        body.extend_from_slice(&data);
    }
    Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body, call })
}

/// What a failed exchange says. The words are those of the connection (io, TLS, HTTP framing),
/// which knows hosts and no paths; octocrab's own layer is skipped, since it repeats them.
fn network_error(call: &Call, error: &octocrab::Error) -> GitHubError {
    let mut fault = NetworkFault::Broken;
    let mut words: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(client) = cause.downcast_ref::<hyper_util::client::legacy::Error>() {
            if client.is_connect() {
                fault = NetworkFault::Connect;
            }
        } else {
            let timed_out =
                cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut);
            if timed_out && fault != NetworkFault::Connect {
                fault = NetworkFault::Timeout;
            }
            let text = cause.to_string();
            if words.last() != Some(&text) {
                words.push(text);
            }
        }
        next = cause.source();
    }
    let detail = words.join(": ").chars().filter(|c| !c.is_control()).take(MAX_DETAIL_CHARS).collect();
    GitHubError::Network { call: call.clone(), fault, detail }
}

fn parse_api_url(text: &str) -> std::result::Result<Uri, OptionsError> {
    let url: Uri = text.parse().map_err(|_| OptionsError::ApiUrl)?;
    let host = url.host().ok_or(OptionsError::ApiUrl)?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let trusted = url.scheme() == Some(&Scheme::HTTPS) || (url.scheme() == Some(&Scheme::HTTP) && loopback);
    if trusted && url.query().is_none() { Ok(url) } else { Err(OptionsError::ApiUrl) }
}

/// TLS that trusts the given certificates and no others; without any, the system's.
fn tls(ca_pem: Option<&[u8]>) -> std::result::Result<rustls::ClientConfig, OptionsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring knows TLS 1.2 and 1.3");
    let Some(pem) = ca_pem else {
        return Ok(builder.with_native_roots().map_err(OptionsError::SystemRoots)?.with_no_client_auth());
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| OptionsError::Ca)?;
        roots.add(certificate).map_err(|_| OptionsError::Ca)?;
    }
    if roots.is_empty() {
        return Err(OptionsError::Ca);
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Connections that go through an HTTP proxy's CONNECT, so that the proxy sees no token.
fn tunnel(proxy_url: &SecretString, tcp: HttpConnector) -> std::result::Result<Tunnel<HttpConnector>, OptionsError> {
    let url: Uri = proxy_url.expose_secret().parse().map_err(|_| OptionsError::Proxy)?;
    let authority = url.authority().ok_or(OptionsError::Proxy)?;
    if url.scheme() != Some(&Scheme::HTTP) {
        return Err(OptionsError::Proxy);
    }
    let (user, place) = match authority.as_str().rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, authority.as_str()),
    };
    let destination: Uri = format!("http://{place}/").parse().map_err(|_| OptionsError::Proxy)?;
    let tunnel = Tunnel::new(destination, tcp);
    let Some(user) = user else { return Ok(tunnel) };
    let decoded = percent_decode(user).ok_or(OptionsError::Proxy)?;
    let basic = Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(&*decoded)));
    Ok(tunnel.with_auth(HeaderValue::from_str(&basic).map_err(|_| OptionsError::Proxy)?))
}

fn percent_decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut decoded = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let pair = [bytes.next()?, bytes.next()?];
            decoded.push(u8::from_str_radix(std::str::from_utf8(&pair).ok()?, 16).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    Some(decoded)
}

fn octocrab_over<C>(tcp: C, tls: rustls::ClientConfig, base: &Uri, agent: HeaderValue) -> Octocrab
where
    C: tower::Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: hyper_util::client::legacy::connect::Connection + hyper::rt::Read + hyper::rt::Write + Send + Unpin,
    C::Future: Send + 'static,
    C::Error: Into<Box<dyn StdError + Send + Sync>>,
    hyper_rustls::HttpsConnector<C>: Connect,
{
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
    let connector = OctocrabBuilder::new()
        .set_connect_timeout(Some(CONNECT_TIMEOUT))
        .set_read_timeout(Some(STALL_TIMEOUT))
        .set_write_timeout(Some(STALL_TIMEOUT))
        .set_connect_timeout_service(connector);
    let client: Client<_, OctoBody> = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .pool_max_idle_per_host(POOL_IDLE_CONNECTIONS)
        .build(connector);
    let headers = vec![
        (USER_AGENT, agent),
        (ACCEPT, HeaderValue::from_static(ACCEPTED)),
        (HeaderName::from_static("x-github-api-version"), HeaderValue::from_static(API_VERSION)),
    ];
    let built = OctocrabBuilder::new_empty()
        .with_service(client)
        .with_layer(&BaseUriLayer::new(base.clone()))
        .with_layer(&ExtraHeadersLayer::new(Arc::new(headers)))
        .with_auth(AuthState::None)
        .build();
    match built {
        Ok(octocrab) => octocrab,
        Err(never) => match never {},
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_over_tls_or_stays_on_this_machine() {
        for good in ["https://api.github.com", "https://ghe.example/api/v3/", "http://127.0.0.1:8080", "http://[::1]:1"]
        {
            assert!(parse_api_url(good).is_ok(), "{good}");
        }
        for bad in ["http://api.github.com", "ftp://127.0.0.1", "api.github.com", "", "https://x/?y"] {
            assert!(parse_api_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_proxy_is_http_and_may_have_a_user() {
        let with = |url: &str| tunnel(&SecretString::from(url), HttpConnector::new()).map(drop);
        assert!(with("http://proxy.example:3128").is_ok());
        assert!(with("http://me:p%40ss@proxy.example:3128").is_ok());
        for bad in ["https://proxy.example", "socks5://proxy.example", "proxy", "http://a%zz:b@c:1"] {
            assert!(with(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_ca_file_without_certificates_is_refused() {
        assert!(matches!(tls(Some(b"nothing")), Err(OptionsError::Ca)));
    }
}
