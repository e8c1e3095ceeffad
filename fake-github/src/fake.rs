//! Starts and ends the simulated GitHub: key, certificate, listener, webhook sender, clock.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use jsonwebtoken::DecodingKey;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::hub::{Hub, Wiring};
use crate::secret::{AppKey, KeyError, random_token};
use crate::server;
use crate::tls::{ServerTls, TlsError};
use crate::webhooks::sender::{self, Target, TargetError};
use crate::world::World;
use crate::world::switches::Switches;

/// How often the world's own doings are looked at.
const TICK: Duration = Duration::from_millis(50);

/// How the server is started. The default: plain HTTP on a free port of loopback, webhooks to nobody.
#[derive(Clone)]
pub struct Options {
    /// Where it listens.
    pub listen: SocketAddr,
    /// HTTPS by a CA of its own instead of HTTP.
    pub tls: bool,
    /// Further names and addresses of the certificate, besides loopback's.
    pub names: Vec<String>,
    /// Where runners reach the server, if not at [`FakeGitHub::url`].
    pub runner_url: Option<String>,
    /// Where webhooks go; [`FakeGitHub::set_webhook`] changes it.
    pub webhook_url: Option<String>,
    /// The CA of the webhook's receiver, PEM.
    pub webhook_ca: Option<String>,
    /// Signs webhooks; absent: a random one.
    pub webhook_secret: Option<String>,
    /// The App's private key, PKCS#1 PEM; absent: one that this process made and shares.
    pub private_key_pem: Option<String>,
    /// What misbehaves from the beginning.
    pub switches: Switches,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: false,
            names: Vec::new(),
            runner_url: None,
            webhook_url: None,
            webhook_ca: None,
            webhook_secret: None,
            private_key_pem: None,
            switches: Switches::default(),
        }
    }
}

impl Options {
    /// The default, over HTTPS.
    pub fn https() -> Self {
        Self { tls: true, ..Self::default() }
    }
}

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is not free.
    #[error("cannot listen on {addr}; choose a free port")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No certificate.
    #[error("the server's certificate could not be made")]
    Tls(#[source] TlsError),
    /// No key.
    #[error("the App's key cannot be used")]
    Key(#[source] KeyError),
    /// The webhook's receiver.
    #[error("the webhook target cannot be used")]
    Target(#[source] TargetError),
}

/// A running simulated GitHub. Dropping it ends it, with its connections.
pub struct FakeGitHub {
    pub(crate) hub: Arc<Hub>,
    url: String,
    key: AppKey,
    handle: Handle<SocketAddr>,
    _tasks: JoinSet<()>,
}

impl FakeGitHub {
    /// Starts a server. Call it inside a tokio runtime.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let listener = listen(options.listen)?;
        let addr = listener.local_addr().map_err(|source| StartError::Listen { addr: options.listen, source })?;
        let tls = options.tls.then(|| ServerTls::generate(&names(&options))).transpose().map_err(StartError::Tls)?;
        let key = match &options.private_key_pem {
            Some(pem) => AppKey::from_pem(pem),
            None => AppKey::shared(),
        }
        .map_err(StartError::Key)?;
        let url = base_url(addr, options.tls);
        let target = options.webhook_url.as_ref().map(|url| Target::new(url, options.webhook_ca.as_deref()));
        let target = target.transpose().map_err(StartError::Target)?;
        #[expect(clippy::disallowed_methods, reason = "GitHub accepts every event; a test has few")]
        let (events, event_queue) = mpsc::unbounded_channel();
        #[expect(clippy::disallowed_methods, reason = "GitHub accepts every event; a test has few")]
        let (redeliveries, redelivery_queue) = mpsc::unbounded_channel();
        let wiring = Wiring {
            events,
            redeliveries,
            target: Arc::new(Mutex::new(target)),
            webhook_secret: options.webhook_secret.unwrap_or_else(|| random_token("whsec_")),
            app_key: DecodingKey::from_rsa_pem(key.public_pem.as_bytes()).expect("a public key that we wrote"),
            ca_pem: tls.as_ref().map(|t| t.ca_pem.clone()),
            runner_url: options.runner_url.unwrap_or_else(|| url.clone()),
            control_token: random_token("control_"),
        };
        let mut world = World::new(url.clone());
        world.switches = options.switches;
        let hub = Hub::new(world, wiring);
        let handle = Handle::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(sender::run(hub.clone(), event_queue, redelivery_queue));
        tasks.spawn(tick(hub.clone()));
        tasks.spawn(serve(listener, tls, handle.clone(), hub.clone()));
        Ok(Self { hub, url, key, handle, _tasks: tasks })
    }

    /// The API's base URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The CA that clients must trust; absent on plain HTTP.
    pub fn ca_pem(&self) -> Option<&str> {
        self.hub.wiring.ca_pem.as_deref()
    }

    /// The App's id.
    pub fn app_id(&self) -> u64 {
        self.hub.read(|w| w.app.id)
    }

    /// The App's client id, also good as a JWT's `iss`.
    pub fn client_id(&self) -> String {
        self.hub.read(|w| w.app.client_id.clone())
    }

    /// The App's private key as GitHub hands it out.
    pub fn private_key_pem(&self) -> &str {
        &self.key.private_pem
    }

    /// Writes what an App's owner has into a directory, for the owner of the files alone: `app.pem` and
    /// `webhook.secret`.
    pub fn write_secrets(&self, directory: &std::path::Path) -> std::io::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        for (name, text) in [("app.pem", self.private_key_pem()), ("webhook.secret", self.webhook_secret())] {
            let path = directory.join(name);
            std::fs::write(&path, text)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        }
        Ok(())
    }

    /// What webhooks are signed with.
    pub fn webhook_secret(&self) -> &str {
        &self.hub.wiring.webhook_secret
    }

    /// Authorises calls of `/_control`.
    pub fn control_token(&self) -> &str {
        &self.hub.wiring.control_token
    }

    /// A key that GitHub does not know: the other half of a rotation.
    pub fn unknown_private_key_pem() -> Result<String, StartError> {
        AppKey::generate().map(|key| key.private_pem).map_err(StartError::Key)
    }

    /// Sends webhooks elsewhere from now on; `ca_pem` is the CA of that receiver.
    pub fn set_webhook(&self, url: &str, ca_pem: Option<&str>) -> Result<(), TargetError> {
        let target = Target::new(url, ca_pem)?;
        *self.hub.wiring.target.lock().unwrap_or_else(PoisonError::into_inner) = Some(target);
        Ok(())
    }
}

impl Drop for FakeGitHub {
    fn drop(&mut self) {
        self.handle.shutdown();
    }
}

fn listen(addr: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(addr).and_then(|l| l.set_nonblocking(true).map(|()| l));
    bound.map_err(|source| StartError::Listen { addr, source })
}

fn base_url(addr: SocketAddr, tls: bool) -> String {
    let host = match addr.ip() {
        ip if ip.is_unspecified() => SocketAddr::from(([127, 0, 0, 1], addr.port())),
        _ => addr,
    };
    format!("{}://{host}", if tls { "https" } else { "http" })
}

fn names(options: &Options) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), options.listen.ip().to_string()];
    names.extend(options.names.iter().cloned());
    names.sort();
    names.dedup();
    names
}

async fn tick(hub: Arc<Hub>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // Only what changed something wakes the waits.
        if hub.count(|w| w.tick(Instant::now())) {
            hub.change(|_| ());
        }
    }
}

async fn serve(listener: TcpListener, tls: Option<ServerTls>, handle: Handle<SocketAddr>, hub: Arc<Hub>) {
    let service = server::router(hub).into_make_service();
    let served = match tls {
        Some(tls) => {
            let config = RustlsConfig::from_config(tls.config);
            match axum_server::from_tcp_rustls(listener, config) {
                Ok(server) => server.handle(handle).serve(service).await,
                Err(e) => Err(e),
            }
        }
        None => match axum_server::from_tcp(listener) {
            Ok(server) => server.handle(handle).serve(service).await,
            Err(e) => Err(e),
        },
    };
    if let Err(error) = served {
        tracing::error!(%error, "the simulated GitHub stopped serving");
    }
}
