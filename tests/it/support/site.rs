//! The listeners of a daemon, each on an address of its own, over a database of their own.

use super::database::TestDatabase;
use super::payload::Job;
use flyci::config::Allow;
use flyci::domain::ids::{HostId, VmId};
use flyci::domain::profile::Profile;
use flyci::intake::signature::WebhookSecrets;
use flyci::intake::{Intake, Policy};
use flyci::metrics::Metrics;
use flyci::secrets::KeyRing;
use flyci::store::Applied;
use flyci::store::audit::Trail;
use flyci::store::hosts::{self, Introduction};
use flyci::store::vms::{self, Fence, NewVm};
use flyci::upkeep::erase::Eraser;
use flyci::upkeep::keys::{Keeper, KeyPlan};
use flyci::upkeep::trail::{self, Auditor};
use flyci::wake::Wakes;
use flyci::web::admin::{self, About, AdminState};
use flyci::web::servers::{Lifetime, start_admin_socket, start_metrics, start_public};
use flyci::web::{
    MetricsState, PublicState, Purse, Readiness, SecurityTxt, Sources, TlsMode, metrics_router, public_router,
};
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::Sha256;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tempfile::TempDir;
use tokio::net::UnixStream;
use uuid::Uuid;

/// What deliveries are signed with.
const SECRET: &str = "It's a Secret to Everybody";

/// Where a site over TLS writes the certificate that it made.
pub const CERTIFICATE: &str = "web.crt";

/// A daemon's web, on loopback.
pub struct Site {
    pub db: TestDatabase,
    pub readiness: Arc<Readiness>,
    pub admin: AdminState,
    /// Where deliveries are taken: in plain HTTP, unless the site is [`Site::over_tls`].
    pub public: SocketAddr,
    /// What is known of who delivers.
    pub sources: Arc<Sources>,
    /// Where Prometheus asks.
    pub metrics: SocketAddr,
    socket: PathBuf,
    life: Lifetime,
    folder: TempDir,
}

/// An answer, read.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Value,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.life.stop.cancel();
    }
}

impl Site {
    pub async fn open() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Policy)) -> Self {
        Self::start(change, Allow::Anyone, |_| TlsMode::Off).await
    }

    /// A site that the internet may reach: each sender is known by its address.
    pub async fn over_tls(allow: Allow) -> Self {
        let mode = |folder: &Path| TlsMode::SelfSigned {
            cert_file: folder.join(CERTIFICATE),
            names: vec!["localhost".to_owned()],
        };
        Self::start(|_| {}, allow, mode).await
    }

    async fn start(change: impl FnOnce(&mut Policy), allow: Allow, mode: impl FnOnce(&Path) -> TlsMode) -> Self {
        let (db, folder) = (TestDatabase::new().await, tempfile::tempdir().expect("a folder"));
        let ring = Arc::new(KeyRing::open_or_create(&folder.path().join("master.key")).expect("a new key"));
        let (wakes, metrics, readiness) =
            (Arc::new(Wakes::default()), Arc::new(Metrics::new(chrono::Utc::now())), Arc::new(Readiness::default()));
        let trail = trail::open(&db.gateway, &ring, "site").await.expect("the trail has a key");
        let mut policy = policy();
        change(&mut policy);
        let about = about(&db, &policy).await;
        let intake = intake(&db, &ring, &trail, &wakes, policy);
        let life = Lifetime::default();
        let contact = SecurityTxt::new(&contact(), None);
        let state = PublicState {
            intake: Arc::new(intake),
            readiness: Arc::clone(&readiness),
            metrics: Arc::clone(&metrics),
            purse: Arc::new(Purse::default()),
            sources: Arc::new(Sources::new(allow)),
            security_txt: Some(Arc::new(contact)),
        };
        let (mode, sources) = (mode(folder.path()), Arc::clone(&state.sources));
        let router = public_router(state);
        let (public, _) = start_public(loopback(), &mode, router, &sources, &life).expect("a port");
        let told = MetricsState { metrics: Arc::clone(&metrics), pool: db.gateway.clone() };
        let prometheus = start_metrics(loopback(), metrics_router(told), &life).expect("a port");
        let admin = AdminState {
            pool: db.gateway.clone(),
            warrant: Arc::new(trail.warrant()),
            keeper: Arc::new(keeper(&db, &ring, &trail)),
            eraser: Arc::new(eraser(&db, &ring, &trail, &wakes)),
            auditor: Arc::new(Auditor::new(db.gateway.clone(), trail.clone(), chrono::Duration::days(1_000))),
            trail,
            ring,
            wakes,
            readiness: Arc::clone(&readiness),
            troubles: Arc::default(),
            metrics,
            releases: Arc::default(),
            about: Arc::new(about),
        };
        let socket = folder.path().join("run/admin.sock");
        start_admin_socket(&socket, admin::router(admin.clone()), &life).expect("a socket");
        let watched = Arc::clone(&readiness);
        let (pool, ends) = (db.gateway.clone(), life.stop.clone());
        tokio::spawn(async move { watched.watch_database(pool, ends).await });
        let (public, metrics) = (public.address, prometheus.address);
        Self { db, readiness, admin, public, sources, metrics, socket, life, folder }
    }

    /// Sends a delivery as GitHub does. Answers the status and the body.
    pub async fn deliver(&self, job: &Job) -> Answer {
        let body = serde_json::to_vec(&job.body()).expect("JSON");
        let signature = sign(&body);
        self.post(&[("x-github-event", "workflow_job"), ("x-hub-signature-256", &signature)], body).await
    }

    /// Posts to the webhook, with a new GUID.
    pub async fn post(&self, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        let url = format!("http://{}/webhooks/github", self.public);
        let mut request = client().post(url).header("x-github-delivery", Uuid::new_v4().to_string()).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.expect("it is answered");
        let status = StatusCode::from_u16(response.status().as_u16()).expect("a status");
        Answer { status, body: response.json().await.expect("it is JSON") }
    }

    /// Reads a text of the public or the metrics listener.
    pub async fn read(&self, address: SocketAddr, path: &str) -> (StatusCode, String) {
        let response = client().get(format!("http://{address}{path}")).send().await.expect("it is answered");
        let status = StatusCode::from_u16(response.status().as_u16()).expect("a status");
        (status, response.text().await.expect("it is text"))
    }

    /// Asks the admin socket.
    pub async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, None).await
    }

    /// Changes something over the admin socket.
    pub async fn change(&self, path: &str, body: Value) -> Answer {
        self.ask(Method::POST, path, Some(body)).await
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let stream = UnixStream::connect(&self.socket).await.expect("the daemon listens");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("it speaks HTTP");
        tokio::spawn(connection);
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1{path}"))
            .header("host", "localhost")
            .body(Full::new(body))
            .expect("a request");
        let response = sender.send_request(request).await.expect("it is answered");
        let status = response.status();
        let bytes = response.into_body().collect().await.expect("it is read").to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into());
        Answer { status, body }
    }

    /// A path in the site's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A host that is there, with this memory.
    pub async fn host(&self, name: &str, slots: u32, memory: u64) -> Fence {
        let introduction = Introduction {
            id: HostId::random(),
            name,
            public_key: &[1; 32],
            hypervisor: "fake",
            hardware: "m2",
            os: "macos",
            architecture: "arm64",
            slots,
            cpus: 8,
            memory,
            version: "0.0.0",
            runner_version: None,
            world: None,
            is_dedicated: false,
        };
        let (host, session) = hosts::introduce(&self.db.host, &introduction).await.expect("it is introduced");
        Fence { host, session }
    }

    /// A blank vm of the profile `flyci-test` on a host.
    pub async fn vm(&self, fence: Fence, slot: u16) -> VmId {
        let id = VmId::random();
        let new = NewVm { id, slot, profile: "flyci-test", image: "any", cpus: 1, memory: 128_000_000 };
        let planned = vms::insert(&self.db.host, fence, &new).await.expect("the slot is free");
        assert_eq!(planned, Applied::Yes);
        id
    }

    /// Arranges rows as no role of flyci may.
    pub async fn sql(&self, statement: &'static str) {
        sqlx::query(statement).execute(&self.db.owner).await.expect("the rows can be arranged");
    }
}

/// How long backups are kept, as far as the site knows.
pub const PLAN: KeyPlan = KeyPlan { rotate_every: None, backups: chrono::Duration::days(30) };

/// What rotates the master key of a site.
pub fn keeper(db: &TestDatabase, ring: &Arc<KeyRing>, trail: &Trail) -> Keeper {
    let (ring, trail) = (Arc::clone(ring), trail.clone());
    Keeper { pool: db.gateway.clone(), ring, trail, gateway: Uuid::new_v4(), name: "site".to_owned(), plan: PLAN }
}

/// What forgets tenants of a site.
pub fn eraser(db: &TestDatabase, ring: &Arc<KeyRing>, trail: &Trail, wakes: &Arc<Wakes>) -> Eraser {
    Eraser {
        pool: db.gateway.clone(),
        maintenance: db.maintenance.clone(),
        ring: Arc::clone(ring),
        trail: trail.clone(),
        plan: PLAN,
        grace: chrono::Duration::days(30),
        wakes: Arc::clone(wakes),
        unclean: AtomicBool::new(false),
    }
}

fn policy() -> Policy {
    Policy {
        profiles: vec![(profile(), None)],
        open_admission: true,
        public_repositories: false,
        queue_timeout: chrono::Duration::hours(48),
    }
}

fn intake(db: &TestDatabase, ring: &Arc<KeyRing>, trail: &Trail, wakes: &Arc<Wakes>, policy: Policy) -> Intake {
    let secrets = WebhookSecrets::new(SECRET.to_owned().into(), None);
    Intake::new(db.gateway.clone(), Arc::clone(ring), trail.clone(), secrets, policy, Arc::clone(wakes))
}

fn profile() -> Profile {
    let description = json!({
        "label": "flyci-test", "cpus": 1, "memory": "128MB", "disk_free": "1GB", "hardware": "m2", "image": "any",
    });
    serde_json::from_value(description).expect("it is a profile")
}

async fn about(db: &TestDatabase, policy: &Policy) -> About {
    About {
        fleet: flyci::store::fleet::id(&db.gateway).await.expect("the fleet has an id"),
        roles: vec!["gateway".to_owned()],
        intake: "webhook".to_owned(),
        started_at: chrono::Utc::now(),
        vms_per_tenant: 2,
        profiles: policy.profiles.iter().map(|(profile, _)| profile.clone()).collect(),
    }
}

/// What GitHub would send beside a body.
pub fn sign(body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length does");
    mac.update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

/// A client that trusts what it is told to.
pub fn client() -> reqwest::Client {
    client_builder().build().expect("a client")
}

pub fn client_builder() -> reqwest::ClientBuilder {
    // Of several tests the first wins; all want the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy()
}

pub fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Whom to tell of a hole, as an operator would write it.
fn contact() -> flyci::config::SecurityTxt {
    let text = "roles = [\"host\"]\n[host]\nhypervisor = \"fake\"\n[database]\nurl = \"postgres://localhost/flyci\"\n\
        [web.security_txt]\ncontact = [\"mailto:security@example.com\"]\nexpires = \"2099-12-31\"\n";
    let config = flyci::config::Config::from_toml(text, std::path::Path::new("/nowhere")).expect("it is valid");
    config.web.security_txt.expect("there is a contact")
}
