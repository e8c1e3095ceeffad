//! One call to a registry: logged in when it asks for that, and tried again as often as it may help.

use super::super::manifest::Digest;
use super::auth::{Challenge, fetch_token};
use super::credentials::{CredentialsError, Login};
use super::{Access, Options};
use hyper_rustls::ConfigBuilderExt as _;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Client, Method, Response, StatusCode, Url, redirect};
use rustls::pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// How often a call is tried.
pub(in crate::images) const TRIES: u32 = 5;
/// The longest wait between two tries, also when the registry names a longer one.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How often one call logs in: once, and once more when the token ran out meanwhile.
const LOGINS: u32 = 2;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(15);
/// How long a registry may be silent before and in an answer: it hashes what was uploaded before it answers.
const SILENCE: Duration = Duration::from_secs(60);
/// Most redirections of one call.
const REDIRECTS: usize = 5;

/// Why a registry was of no help.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection, or a broken one.
    #[error("the registry {host} cannot be reached, or broke off")]
    Unreachable {
        host: String,
        #[source]
        source: reqwest::Error,
    },
    /// It wants a login, or another one.
    #[error(
        "the registry {host} does not let this login in ({status}); log in with `docker login {host}`, or set `images.credentials_file`"
    )]
    Unauthorised { host: String, status: StatusCode },
    /// It has no such thing.
    #[error("the registry {host} has no such image or layer (404); private ones are hidden until you log in")]
    NotFound { host: String },
    /// It is busy, broken, or limits calls, and was tried again.
    #[error(
        "the registry {host} answered {status} while {doing}, {TRIES} times; try again later: what was fetched is kept"
    )]
    Busy { host: String, status: StatusCode, doing: &'static str },
    /// It refused.
    #[error("the registry {host} answered {status} while {doing}")]
    Refused { host: String, status: StatusCode, doing: &'static str },
    /// Its answer is not what the specification says.
    #[error("the registry {host} answered with {what}")]
    Strange { host: String, what: &'static str },
    /// The manifest is another one.
    #[error("the registry's manifest is {got}, and {wanted} was asked for")]
    WrongManifest { wanted: Digest, got: Digest },
    /// A blob is another one.
    #[error("the registry's blob is {got}, and {wanted} was asked for")]
    WrongBlob { wanted: Digest, got: Digest },
    /// The login cannot be used.
    #[error("the login of the registry cannot be used")]
    Credentials(#[from] CredentialsError),
    /// The certificates of the configuration cannot be used.
    #[error("`images.ca_file` holds no certificate in PEM")]
    Ca,
    /// The system's certificates cannot be read.
    #[error("the system's certificates cannot be read")]
    SystemRoots(#[source] std::io::Error),
    /// A file that is uploaded cannot be read.
    #[error("what is uploaded cannot be read")]
    File(#[source] std::io::Error),
}

impl RegistryError {
    /// A failed call, without its URL: that of a redirection holds a signature.
    pub(super) fn unreachable(host: &str, source: reqwest::Error) -> Self {
        Self::Unreachable { host: host.to_owned(), source: source.without_url() }
    }

    /// True when the same call may succeed later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Busy { .. })
    }
}

/// What a call sends.
#[derive(Clone, Debug)]
pub(super) enum Body {
    /// Nothing.
    None,
    /// These bytes.
    Bytes(Vec<u8>),
    /// A file, read as it is sent.
    File(PathBuf),
}

/// A call.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    /// What is being done, for messages.
    pub doing: &'static str,
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Body,
    /// The answers that are good ones.
    pub good: &'a [StatusCode],
}

impl<'a> Ask<'a> {
    pub fn new(doing: &'static str, method: Method, url: Url, good: &'a [StatusCode]) -> Self {
        Self { doing, method, url, headers: HeaderMap::new(), body: Body::None, good }
    }
}

/// Counts tries, and waits between them.
#[derive(Debug)]
pub(in crate::images) struct Tries {
    made: u32,
    wait: Duration,
}

impl Tries {
    pub(in crate::images) const fn new(first_wait: Duration) -> Self {
        Self { made: 1, wait: first_wait }
    }

    /// Waits for the next try, as long as the registry asked for; false when there have been enough.
    pub(in crate::images) async fn again(&mut self, asked: Option<Duration>) -> bool {
        if self.made >= TRIES {
            return false;
        }
        self.made += 1;
        let wait = asked.unwrap_or(Duration::ZERO).max(self.wait.mul_f64(rand::random_range(0.5..1.0)));
        tokio::time::sleep(wait.min(LONGEST_WAIT)).await;
        self.wait *= 2;
        true
    }
}

/// What is said in `Authorization`, and how often it was changed.
#[derive(Debug, Default)]
struct Session {
    header: Option<HeaderValue>,
    changes: u64,
}

/// Speaks to one registry about one repository.
#[derive(Debug)]
pub(super) struct Exchange {
    http: Client,
    base: Url,
    scope: String,
    login: Option<Login>,
    session: Mutex<Session>,
    first_wait: Duration,
}

impl Exchange {
    pub fn new(
        place: &str,
        repository: &str,
        access: Access,
        login: Option<Login>,
        options: &Options,
    ) -> Result<Self, RegistryError> {
        let url = |scheme: &str| Url::parse(&format!("{scheme}://{place}/")).expect("a reference's registry is a host");
        let plain = options.plain_loopback && is_loopback(&url("https"));
        let base = url(if plain { "http" } else { "https" });
        let actions = match access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
        };
        Ok(Self {
            http: client(options, is_loopback(&base))?,
            base,
            scope: format!("repository:{repository}:{actions}"),
            login,
            session: Mutex::default(),
            first_wait: options.first_wait,
        })
    }

    pub fn url(&self, path: &str) -> Url {
        self.base.join(path).expect("a repository's path is a URL's")
    }

    pub const fn first_wait(&self) -> Duration {
        self.first_wait
    }

    fn host(&self) -> String {
        self.base.host_str().unwrap_or_default().to_owned()
    }

    /// An answer that is not what the specification says.
    pub fn strange(&self, what: &'static str) -> RegistryError {
        RegistryError::Strange { host: self.host(), what }
    }

    /// Makes a call until it is answered well, or cannot be.
    pub async fn send(&self, ask: &Ask<'_>) -> Result<Response, RegistryError> {
        let mut tries = Tries::new(self.first_wait);
        loop {
            let (error, asked) = match self.attempt(ask).await {
                Ok(response) => return Ok(response),
                Err(fault) => fault,
            };
            if !error.is_transient() || !tries.again(asked).await {
                return Err(error);
            }
            tracing::debug!(doing = ask.doing, %error, "the registry is asked again");
        }
    }

    /// Makes a call once.
    pub async fn send_once(&self, ask: &Ask<'_>) -> Result<Response, RegistryError> {
        self.attempt(ask).await.map_err(|(error, _)| error)
    }

    /// One try; a failure comes with the wait that the registry asks for.
    async fn attempt(&self, ask: &Ask<'_>) -> Result<Response, (RegistryError, Option<Duration>)> {
        let plainly = |error| (error, None);
        let mut logins = 0;
        loop {
            let (header, changes) = self.authorization(&ask.url).await;
            let response = self.request(ask, header).await.map_err(plainly)?;
            let status = response.status();
            if ask.good.contains(&status) {
                return Ok(response);
            }
            if status != StatusCode::UNAUTHORIZED || logins >= LOGINS {
                return Err(self.fault(ask, &response));
            }
            logins += 1;
            self.log_in(&response, changes).await.map_err(plainly)?;
        }
    }

    async fn authorization(&self, url: &Url) -> (Option<HeaderValue>, u64) {
        let session = self.session.lock().await;
        // An upload may go elsewhere, and the login is the registry's alone.
        let ours = url.origin() == self.base.origin();
        (session.header.clone().filter(|_| ours), session.changes)
    }

    async fn request(&self, ask: &Ask<'_>, header: Option<HeaderValue>) -> Result<Response, RegistryError> {
        let mut request = self.http.request(ask.method.clone(), ask.url.clone()).headers(ask.headers.clone());
        if let Some(header) = header {
            request = request.header(AUTHORIZATION, header);
        }
        request = match &ask.body {
            Body::None => request,
            Body::Bytes(bytes) => request.body(bytes.clone()),
            Body::File(path) => request.body(tokio::fs::File::open(path).await.map_err(RegistryError::File)?),
        };
        request.send().await.map_err(|error| RegistryError::unreachable(&self.host(), error))
    }

    fn fault(&self, ask: &Ask<'_>, response: &Response) -> (RegistryError, Option<Duration>) {
        let (host, status, doing) = (self.host(), response.status(), ask.doing);
        let error = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Unauthorised { host, status },
            StatusCode::NOT_FOUND => RegistryError::NotFound { host },
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => RegistryError::Busy { host, status, doing },
            broken if broken.is_server_error() => RegistryError::Busy { host, status, doing },
            _ => RegistryError::Refused { host, status, doing },
        };
        let asked = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        (error, asked.map(Duration::from_secs))
    }

    /// Does what the registry's challenge asks for, unless another call did meanwhile.
    async fn log_in(&self, response: &Response, changes: u64) -> Result<(), RegistryError> {
        let mut session = self.session.lock().await;
        if session.changes != changes {
            return Ok(());
        }
        let refused = || RegistryError::Unauthorised { host: self.host(), status: StatusCode::UNAUTHORIZED };
        let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let header = match Challenge::choose(challenges).ok_or_else(refused)? {
            Challenge::Basic => self.login.as_ref().map(Login::basic).ok_or_else(refused)?,
            Challenge::Bearer { realm, service } => {
                let realm = Url::parse(&realm).map_err(|_| self.strange("a login place that is no URL"))?;
                if !is_protected(&realm) {
                    return Err(self.strange("a login place without TLS"));
                }
                fetch_token(&self.http, realm, service.as_deref(), &self.scope, self.login.as_ref()).await?
            }
        };
        session.header = Some(header);
        session.changes += 1;
        Ok(())
    }

    /// Reads an answer whole.
    pub async fn read(&self, mut response: Response, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        while let Some(piece) =
            response.chunk().await.map_err(|error| RegistryError::unreachable(&self.host(), error))?
        {
            if (bytes.len() + piece.len()) as u64 > limit {
                return Err(self.strange("more bytes than it announced or may send"));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }
}

/// True for this machine itself.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// True when nobody on the way can read along.
fn is_protected(url: &Url) -> bool {
    url.scheme() == "https" || (url.scheme() == "http" && is_loopback(url))
}

fn client(options: &Options, loopback: bool) -> Result<Client, RegistryError> {
    // Registries send to stores elsewhere, with a signature in the URL. The login does not go along.
    let follow = redirect::Policy::custom(|attempt| {
        if attempt.previous().len() > REDIRECTS {
            attempt.error("the registry sends from place to place without end")
        } else if is_protected(attempt.url()) {
            attempt.follow()
        } else {
            attempt.error("the registry sends to a place without TLS")
        }
    });
    let builder = Client::builder()
        .user_agent(concat!("flyci/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE)
        .redirect(follow)
        .tls_backend_preconfigured(tls(options.ca_pem.as_deref())?);
    let builder = if loopback { builder.no_proxy() } else { builder };
    Ok(builder.build().expect("its parts are fixed"))
}

/// TLS that trusts the given certificates and no others; without any, the system's.
fn tls(ca_pem: Option<&[u8]>) -> Result<rustls::ClientConfig, RegistryError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring knows TLS 1.2 and 1.3");
    let Some(pem) = ca_pem else {
        return Ok(builder.with_native_roots().map_err(RegistryError::SystemRoots)?.with_no_client_auth());
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(|_| RegistryError::Ca)?).map_err(|_| RegistryError::Ca)?;
    }
    if roots.is_empty() {
        return Err(RegistryError::Ca);
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
