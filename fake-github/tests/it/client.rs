//! A small GitHub App for the tests: signs JWTs, holds tokens, calls the API; and a receiver of webhooks.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use fake_github::{FakeGitHub, Repo};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};

/// Long enough on a slow machine; no test measures it.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A client of the API.
pub struct App<'a> {
    github: &'a FakeGitHub,
    http: Client,
}

impl<'a> App<'a> {
    /// The App that the server knows.
    pub fn of(github: &'a FakeGitHub) -> Self {
        Self { github, http: http(github.ca_pem()) }
    }

    /// A JWT that is valid from `iat` to `exp`, in seconds from now.
    pub fn jwt(&self, iat: i64, exp: i64, iss: Value) -> String {
        jwt(self.github.private_key_pem().as_bytes(), iat, exp, &iss)
    }

    /// A call with a bearer.
    pub async fn call(&self, method: Method, path: &str, bearer: &str, body: Option<Value>) -> Response {
        let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.github.url()) };
        let mut request = self.http.request(method, url).bearer_auth(bearer);
        if let Some(body) = body {
            request = request.json(&body);
        }
        request.send().await.unwrap()
    }

    /// A call as the App.
    pub async fn app(&self, method: Method, path: &str) -> Response {
        let jwt = self.jwt(-60, 540, json!(self.github.app_id()));
        self.call(method, path, &jwt, None).await
    }

    /// A token of an installation, for everything it may do.
    pub async fn token(&self, installation: u64) -> String {
        let path = format!("/app/installations/{installation}/access_tokens");
        let answer = self.app(Method::POST, &path).await;
        assert_eq!(answer.status(), 201);
        answer.json::<Value>().await.unwrap()["token"].as_str().unwrap().to_owned()
    }

    /// Asks for a JIT configuration.
    pub async fn jit(&self, token: &str, repo: &Repo, name: &str, labels: &[&str]) -> Response {
        let path = format!("/repos/{}/actions/runners/generate-jitconfig", repo.full_name);
        let body = json!({ "name": name, "runner_group_id": 1, "labels": labels });
        self.call(Method::POST, &path, token, Some(body)).await
    }

    /// Asks for a JIT configuration that must be given: runner id and configuration.
    pub async fn runner(&self, token: &str, repo: &Repo, name: &str, labels: &[&str]) -> (u64, String) {
        let answer = self.jit(token, repo, name, labels).await;
        assert_eq!(answer.status(), 201);
        let answer: Value = answer.json().await.unwrap();
        (answer["runner"]["id"].as_u64().unwrap(), answer["encoded_jit_config"].as_str().unwrap().to_owned())
    }
}

/// An HTTP client that trusts one CA.
pub fn http(ca: Option<&str>) -> Client {
    let tls = tls(ca.unwrap_or_default());
    Client::builder().no_proxy().tls_backend_preconfigured(tls).build().unwrap()
}

/// A JWT that is valid from `iat` to `exp`, in seconds from now.
pub fn jwt(key_pem: &[u8], iat: i64, exp: i64, iss: &Value) -> String {
    let now = chrono::Utc::now().timestamp();
    let key = EncodingKey::from_rsa_pem(key_pem).unwrap();
    let claims = json!({ "iat": now + iat, "exp": now + exp, "iss": iss });
    jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims, &key).unwrap()
}

fn tls(ca: &str) -> rustls::ClientConfig {
    use rustls_pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    for cert in rustls_pki_types::CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(cert.unwrap()).unwrap();
    }
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// The address of the next page, out of the Link header.
pub fn next_page(answer: &Response) -> Option<String> {
    let links = answer.headers().get("link")?.to_str().unwrap();
    let next = links.split(", ").find(|l| l.ends_with("rel=\"next\""))?;
    Some(next[1..next.find('>').unwrap()].to_owned())
}

/// `X-Hub-Signature-256` of a body.
pub fn signed(secret: &str, body: &[u8]) -> String {
    use hmac::{KeyInit as _, Mac as _};
    let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

/// A webhook as it was received.
#[derive(Clone)]
pub struct Hook {
    pub headers: HeaderMap,
    pub raw: Bytes,
    pub body: Value,
}

impl Hook {
    /// A header's text.
    pub fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    /// `workflow_job queued`, `ping`.
    pub fn title(&self) -> String {
        let action = self.body["action"].as_str().map(|a| format!(" {a}")).unwrap_or_default();
        format!("{}{action}", self.header("x-github-event"))
    }
}

/// A receiver of webhooks.
#[derive(Clone, Default)]
pub struct Receiver {
    hooks: Arc<Mutex<Vec<Hook>>>,
    answer: Arc<Mutex<Option<StatusCode>>>,
}

impl Receiver {
    /// Starts one and points the server at it.
    pub async fn of(github: &FakeGitHub) -> Self {
        let receiver = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/webhooks/github", listener.local_addr().unwrap());
        let app = axum::Router::new().route("/webhooks/github", post(receive)).with_state(receiver.clone());
        tokio::spawn(async move {
            axum_server::from_tcp(listener.into_std().unwrap()).unwrap().serve(app.into_make_service()).await
        });
        github.set_webhook(&url, None).unwrap();
        receiver
    }

    /// What was received so far.
    pub fn hooks(&self) -> Vec<Hook> {
        self.hooks.lock().unwrap().clone()
    }

    /// What was received so far, by title.
    pub fn titles(&self) -> Vec<String> {
        self.hooks().iter().map(Hook::title).collect()
    }

    /// Answers this from now on; `None`: 202.
    pub fn answer(&self, status: Option<StatusCode>) {
        *self.answer.lock().unwrap() = status;
    }
}

async fn receive(State(receiver): State<Receiver>, headers: HeaderMap, raw: Bytes) -> StatusCode {
    let body = serde_json::from_slice(&raw).unwrap();
    receiver.hooks.lock().unwrap().push(Hook { headers, raw, body });
    receiver.answer.lock().unwrap().unwrap_or(StatusCode::ACCEPTED)
}
