//! A GitHub small enough to be scripted call by call. It knows tokens and the runners of
//! repositories; everything else, and every fault, is a test's own rule.
//!
//! Repository `acme/app-7` has the id 7; a token for it reaches no other.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use chrono::{TimeDelta, Utc};
use flyci::domain::labels::LabelSet;
use flyci::github::{GitHub, InstallationId, Options, RepositoryRef};
use rsa::pkcs1::{EncodeRsaPrivateKey as _, EncodeRsaPublicKey as _, LineEnding};
use secrecy::SecretString;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex};

pub const INSTALLATION: InstallationId = InstallationId(11);
pub const APP_ID: u64 = 4242;
const KEY_BITS: usize = 2048;

/// A key pair in PEM form.
pub struct Key {
    pub private: String,
    pub public: String,
}

impl Key {
    fn generate() -> Self {
        let private = rsa::PrivateKey::new(&mut rand::rng(), KEY_BITS).expect("a key");
        Self {
            private: private.to_pkcs1_pem(LineEnding::LF).expect("PEM").to_string(),
            public: private.to_public_key().to_pkcs1_pem(LineEnding::LF).expect("PEM"),
        }
    }
}

/// The App's key, and the one that a rotation would bring.
pub static KEY: LazyLock<Key> = LazyLock::new(Key::generate);
pub static NEXT_KEY: LazyLock<Key> = LazyLock::new(Key::generate);

/// One call that came in.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Seen {
    fn new(parts: &Parts, body: &Bytes) -> Self {
        Self {
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers.clone(),
            body: serde_json::from_slice(body).unwrap_or(Value::Null),
        }
    }

    pub fn bearer(&self) -> &str {
        self.headers["authorization"].to_str().expect("text").strip_prefix("Bearer ").expect("a bearer")
    }

    pub fn is(&self, method: &str, end: &str) -> bool {
        self.method == method && self.path.ends_with(end)
    }
}

/// What a rule answers.
pub struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Body,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Body>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    pub fn json(status: u16, body: &Value) -> Self {
        Self::new(status, body.to_string())
    }

    pub fn message(status: u16, message: &str) -> Self {
        Self::json(status, &json!({ "message": message }))
    }

    pub fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    fn into_response(self) -> Response {
        let mut response = Response::builder()
            .status(StatusCode::from_u16(self.status).expect("a status"))
            .header("x-github-request-id", "C0DE:1:2:3:ABC");
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        response.body(self.body).expect("a response")
    }
}

#[derive(Default)]
pub struct World {
    /// Runner names by (repository id, runner id).
    pub runners: BTreeMap<(u64, u64), String>,
    tokens: u64,
    last_runner: u64,
}

type Rule = dyn Fn(&Seen, &mut World) -> Option<Reply> + Send + Sync;

struct Shared {
    rule: Box<Rule>,
    world: Mutex<World>,
    seen: Mutex<Vec<Seen>>,
}

/// The server; gone when dropped.
pub struct Stub {
    pub url: String,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Stub {
    /// A server that asks `rule` first, and does as GitHub does where that has no answer.
    pub async fn start(rule: impl Fn(&Seen, &mut World) -> Option<Reply> + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (router, shared) = serve(rule);
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
        Self { url, shared, task }
    }

    pub async fn well_behaved() -> Self {
        Self::start(|_, _| None).await
    }

    pub fn client(&self) -> GitHub {
        GitHub::new(&options(&self.url)).expect("options")
    }

    pub fn seen(&self, method: &str, end: &str) -> Vec<Seen> {
        self.all_seen().into_iter().filter(|seen| seen.is(method, end)).collect()
    }

    pub fn all_seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("not poisoned").clone()
    }

    pub fn token_requests(&self) -> Vec<Seen> {
        self.seen("POST", "/access_tokens")
    }

    pub fn mints(&self) -> Vec<Seen> {
        self.seen("POST", "/generate-jitconfig")
    }
}

/// The routes, for a server of another kind (TLS).
pub fn router(rule: impl Fn(&Seen, &mut World) -> Option<Reply> + Send + Sync + 'static) -> Router {
    serve(rule).0
}

fn serve(rule: impl Fn(&Seen, &mut World) -> Option<Reply> + Send + Sync + 'static) -> (Router, Arc<Shared>) {
    let shared = Arc::new(Shared { rule: Box::new(rule), world: Mutex::default(), seen: Mutex::default() });
    (Router::new().fallback(answer).with_state(Arc::clone(&shared)), shared)
}

async fn answer(State(shared): State<Arc<Shared>>, parts: Parts, body: Bytes) -> Response {
    let seen = Seen::new(&parts, &body);
    shared.seen.lock().expect("not poisoned").push(seen.clone());
    let mut world = shared.world.lock().expect("not poisoned");
    let reply = (shared.rule)(&seen, &mut world).unwrap_or_else(|| world.answer(&seen));
    reply.into_response()
}

impl World {
    /// What GitHub would answer.
    pub fn answer(&mut self, seen: &Seen) -> Reply {
        let segments: Vec<&str> = seen.path.split('/').skip(1).collect();
        match (seen.method.as_str(), segments.as_slice()) {
            ("POST", ["app", "installations", _, "access_tokens"]) => self.token(seen, TimeDelta::hours(1)),
            (method, ["repos", "acme", name, "actions", "runners", rest @ ..]) => {
                let id: u64 = name.strip_prefix("app-").and_then(|id| id.parse().ok()).expect("a repository of ours");
                if !seen.bearer().starts_with(&format!("ghs_{id}_")) {
                    return Reply::message(404, "Not Found");
                }
                self.runner(method, id, rest, seen)
            }
            _ => Reply::message(404, "Not Found"),
        }
    }

    /// A token for the repository that it is asked for.
    pub fn token(&mut self, seen: &Seen, life: TimeDelta) -> Reply {
        self.tokens += 1;
        let repository = seen.body["repository_ids"][0].as_u64().unwrap_or_default();
        let token = format!("ghs_{repository}_{}", self.tokens);
        Reply::json(201, &json!({ "token": token, "expires_at": Utc::now() + life }))
    }

    fn runner(&mut self, method: &str, repository: u64, rest: &[&str], seen: &Seen) -> Reply {
        match (method, rest) {
            ("POST", ["generate-jitconfig"]) => {
                let name = seen.body["name"].as_str().expect("a name").to_owned();
                if self.runners.iter().any(|((at, _), known)| *at == repository && *known == name) {
                    return Reply::message(409, "Already exists");
                }
                self.last_runner += 1;
                self.runners.insert((repository, self.last_runner), name.clone());
                let jit = format!("jit-of-{name}");
                Reply::json(201, &json!({ "runner": { "id": self.last_runner }, "encoded_jit_config": jit }))
            }
            ("GET", []) => {
                let here = self.runners.iter().filter(|((at, _), _)| *at == repository);
                let runners: Vec<Value> = here.map(|((_, id), name)| wire_runner(*id, name)).collect();
                Reply::json(200, &json!({ "total_count": runners.len(), "runners": runners }))
            }
            ("DELETE", [id]) => {
                let id = id.parse().expect("an id");
                let status = if self.runners.remove(&(repository, id)).is_some() { 204 } else { 404 };
                Reply::new(status, "")
            }
            _ => Reply::message(404, "Not Found"),
        }
    }
}

pub fn wire_runner(id: u64, name: &str) -> Value {
    json!({ "id": id, "name": name, "os": "unknown", "status": "offline", "busy": false,
            "labels": [{ "id": 1, "name": "macOS", "type": "custom" }] })
}

pub fn options(url: &str) -> Options {
    Options {
        api_url: url.to_owned(),
        app_id: APP_ID,
        private_key: SecretString::from(KEY.private.as_str()),
        previous_private_key: None,
        ca_pem: None,
        proxy_url: None,
        user_agent: "flyci/test".to_owned(),
        public_repositories: false,
        on_call: None,
    }
}

/// `acme/app-N`.
pub fn full_name(id: u64) -> String {
    format!("acme/app-{id}")
}

/// Repository 7.
pub const APP_7: RepositoryRef<'static> = RepositoryRef { id: 7, full_name: "acme/app-7" };

pub fn labels() -> LabelSet {
    ["flyci-macos-large", "self-hosted"].iter().collect()
}
