//! What stands between flyci and a registry, and does what a test says.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use futures_util::{StreamExt as _, stream};
use std::sync::{Arc, Mutex};
use tokio::task::JoinHandle;

/// A request, as rules see it.
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    /// How many there were of this path, this one included.
    pub count: usize,
}

impl Seen {
    pub fn is_blob(&self) -> bool {
        self.method == Method::GET && self.path.contains("/blobs/")
    }

    pub fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// What happens to a request.
pub enum Deed {
    /// The registry answers.
    Pass,
    /// An answer of its own.
    Answer(StatusCode, Vec<(&'static str, String)>, String),
    /// The registry's answer breaks off after so many bytes.
    Cut(usize),
    /// The registry's answer ends after so many bytes as if that were all.
    Shorten(usize),
    /// A byte of the registry's answer is another.
    Spoil(usize),
    /// The registry's answer, and something after it.
    Lengthen(Vec<u8>),
    /// The registry is asked for all of it.
    WithoutRange,
}

type Rule = Arc<dyn Fn(&Seen) -> Deed + Send + Sync>;

#[derive(Clone)]
struct Between {
    registry: String,
    http: reqwest::Client,
    rule: Rule,
    seen: Arc<Mutex<Vec<String>>>,
}

pub struct Proxy {
    task: JoinHandle<()>,
    pub place: String,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    pub async fn before(registry: &str, rule: impl Fn(&Seen) -> Deed + Send + Sync + 'static) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let between = Between { registry: registry.to_owned(), http, rule: Arc::new(rule), seen: Arc::clone(&seen) };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let place = listener.local_addr().expect("bound").to_string();
        let app = Router::new().fallback(answer).with_state(between);
        let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        Self { task, place, seen }
    }

    pub fn image(&self, rest: &str) -> String {
        format!("{}/{rest}", self.place)
    }

    /// How many layers and other blobs were asked for, also in part.
    pub fn blobs_asked_for(&self) -> usize {
        self.seen
            .lock()
            .expect("held shortly")
            .iter()
            .filter(|asked| asked.starts_with("GET") && asked.contains("/blobs/"))
            .count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(between): State<Between>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().expect("a path").to_string();
    let asked = format!("{} {path}", parts.method);
    let count = {
        let mut seen = between.seen.lock().expect("held shortly");
        seen.push(asked.clone());
        seen.iter().filter(|other| **other == asked).count()
    };
    let seen = Seen { method: parts.method, path, headers: parts.headers, count };
    let deed = (between.rule)(&seen);
    if let Deed::Answer(status, headers, text) = deed {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(name, value);
        }
        return response.body(Body::from(text)).expect("a response");
    }
    let body = axum::body::to_bytes(body, 64 << 20).await.expect("a body");
    let mut request = between.http.request(seen.method.clone(), format!("http://{}{}", between.registry, seen.path));
    for (name, value) in &seen.headers {
        let ours = [header::HOST, header::AUTHORIZATION, header::CONTENT_LENGTH].contains(name);
        if !(ours || *name == header::RANGE && matches!(deed, Deed::WithoutRange)) {
            request = request.header(name, value);
        }
    }
    let answered = request.body(body).send().await.expect("the registry answers");
    let (status, mut headers) = (answered.status(), answered.headers().clone());
    let bytes = answered.bytes().await.expect("its body").to_vec();
    headers.remove(header::TRANSFER_ENCODING);
    if seen.method != Method::HEAD {
        headers.remove(header::CONTENT_LENGTH);
    }
    let body = spoilt(bytes, &deed, &mut headers);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn spoilt(mut bytes: Vec<u8>, deed: &Deed, headers: &mut HeaderMap) -> Body {
    match deed {
        Deed::Pass | Deed::WithoutRange | Deed::Answer(..) => {}
        Deed::Cut(at) => {
            headers.insert(header::CONTENT_LENGTH, bytes.len().into());
            bytes.truncate(*at);
            // In small pieces, so that some are on their way when it breaks.
            let pieces: Vec<_> = bytes.chunks(4096).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            let broken = stream::iter(pieces).then(|piece| async {
                tokio::task::yield_now().await;
                piece
            });
            return Body::from_stream(broken.chain(stream::once(async { Err(std::io::Error::other("broken")) })));
        }
        Deed::Shorten(at) => bytes.truncate(*at),
        Deed::Spoil(at) => {
            let at = *at % bytes.len();
            bytes[at] ^= 0x40;
        }
        Deed::Lengthen(more) => bytes.extend(more),
    }
    Body::from(bytes)
}
