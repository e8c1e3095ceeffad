//! Starts the listeners, and stops them in order.
//!
//! | listener | where | who may |
//! |---|---|---|
//! | public | `[web] listen`, TLS | the internet |
//! | admin socket | `[admin] socket`, 0600 in a private directory | our own user, and root |
//! | admin over TCP | `[admin] listen`, loopback alone, off by default; reads alone | whoever is on this machine |
//! | metrics | `[admin] metrics_listen`, loopback by default; no names in it | whoever reaches it |

use super::connections::{Admit, bound};
use super::headers::over_tls;
use super::sources::Sources;
use super::tls::{Tls, TlsError, TlsMode};
use axum::Router;
use axum::middleware::from_fn;
use axum_server::tls_rustls::RustlsAcceptor;
use axum_server::{Address, Handle, Server};
use nix::unistd::{Uid, geteuid};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections of the public listener at once.
const PUBLIC_CONNECTIONS: usize = 384;
/// Further ones for who is known.
const KEPT_CONNECTIONS: usize = 128;
/// Connections of each other listener at once.
const PRIVATE_CONNECTIONS: usize = 64;
/// A client must have finished the TLS handshake by then.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Requests that run when a server is to stop may take so long.
const GRACE: Duration = Duration::from_secs(10);
/// The longest path that a socket may have on every system that we run on (macOS: 104 with its end).
const MAX_SOCKET_PATH: usize = 103;
/// The socket's mode: its owner connects, and root.
const SOCKET_MODE: u32 = 0o600;
/// The mode of a directory that is made for it.
const DIRECTORY_MODE: u32 = 0o700;
/// What group and others must not have on it.
const OTHERS: u32 = 0o077;

/// Why a listener is not there.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Somebody else has the address.
    #[error(
        "{key} = \"{address}\": the port is in use. `lsof -nP -iTCP:{port} -sTCP:LISTEN` shows by whom (an earlier flyci?): stop it, or choose another port",
        port = address.port()
    )]
    InUse {
        /// The configuration's key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// The port is for root alone.
    #[error(
        "{key} = \"{address}\": this user may not listen on ports under 1024. Choose a higher one, like 8443, and forward to it"
    )]
    Forbidden {
        /// The configuration's key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// The address is not this machine's, or something else.
    #[error("{key} = \"{address}\": cannot listen there; use an address of this machine, or 0.0.0.0 for all")]
    Bind {
        /// The configuration's key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What must stay on this machine would leave it.
    #[error("{key} = \"{address}\": {why}; use 127.0.0.1 or [::1]")]
    NotLoopback {
        /// The configuration's key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why that matters.
        why: &'static str,
    },
    /// There is no TLS as configured.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The path is longer than a socket's may be.
    #[error(
        "[admin] socket {path}: {length} bytes are more than the {MAX_SOCKET_PATH} that a socket's path may have; choose a shorter data_dir"
    )]
    SocketPath {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// Another daemon answers there.
    #[error("[admin] socket {path}: a flyci is running there; stop it first, or give this one another data_dir")]
    SocketInUse {
        /// The path.
        path: PathBuf,
    },
    /// Others could reach into the directory.
    #[error(
        "[admin] socket {path}: its directory belongs to user {owner} with mode {mode:04o}; it must be ours alone: run `chmod 700` on it, or `chown` it to user {ours}"
    )]
    SocketDirectory {
        /// The path.
        path: PathBuf,
        /// The directory's owner.
        owner: u32,
        /// Our user.
        ours: Uid,
        /// Its mode.
        mode: u32,
    },
    /// The file system refuses.
    #[error("[admin] socket {path} cannot be made")]
    Socket {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// How long servers live, and who owns their tasks.
#[derive(Clone, Default)]
pub struct Lifetime {
    /// The tasks: closed and waited for by their owner.
    pub tasks: TaskTracker,
    /// Tells the servers to stop.
    pub stop: CancellationToken,
}

/// A server that runs until its [`Lifetime`] ends.
pub struct Running<A> {
    /// Where it listens.
    pub address: A,
    task: JoinHandle<()>,
}

impl<A> Running<A> {
    /// Returns when the server has stopped: at most ten seconds after it was told to.
    pub async fn stopped(self) {
        if let Err(error) = self.task.await {
            tracing::error!("a listener's task ended by itself: {error}");
        }
    }
}

/// Starts the public listener. `sources` is what the router knows too. Give the [`Tls`] to whoever reloads certificates.
///
/// # Errors
/// When the address or the certificate cannot be used.
pub fn start_public(
    listen: SocketAddr,
    mode: &TlsMode,
    router: Router,
    sources: &Arc<Sources>,
    life: &Lifetime,
) -> Result<(Running<SocketAddr>, Option<Tls>), ServeError> {
    const KEY: &str = "[web] listen";
    let tls = Tls::load(mode)?;
    if tls.is_none() {
        require_loopback(KEY, listen, "without TLS the listener must be on loopback, behind a proxy or tunnel")?;
    }
    let (listener, address) = bind_tcp(KEY, listen)?;
    let server = serve_tcp(listener, KEY, address)?;
    let task = match &tls {
        Some(tls) => {
            let admit = Admit::public(PUBLIC_CONNECTIONS, KEPT_CONNECTIONS, Arc::clone(sources));
            let router = router.layer(from_fn(over_tls));
            let acceptor = RustlsAcceptor::new(tls.config()).handshake_timeout(HANDSHAKE_DEADLINE).acceptor(admit);
            run(server.acceptor(acceptor), router, life)
        }
        // The proxy is the only one that comes, and tells its own clients apart.
        None => run(server.acceptor(Admit::new(PUBLIC_CONNECTIONS)), router, life),
    };
    Ok((Running { address, task }, tls))
}

/// Starts the metrics listener: plain HTTP.
///
/// # Errors
/// When the address cannot be used.
pub fn start_metrics(listen: SocketAddr, router: Router, life: &Lifetime) -> Result<Running<SocketAddr>, ServeError> {
    const KEY: &str = "[admin] metrics_listen";
    if !listen.ip().is_loopback() {
        tracing::warn!(%listen, "metrics can be read from other machines, without TLS or password: keep the port behind a firewall");
    }
    let (listener, address) = bind_tcp(KEY, listen)?;
    let server = serve_tcp(listener, KEY, address)?.acceptor(Admit::new(PRIVATE_CONNECTIONS));
    Ok(Running { address, task: run(server, router, life) })
}

/// Starts the admin API over TCP: loopback alone.
///
/// # Errors
/// When the address is not loopback, or cannot be used.
pub fn start_admin_tcp(listen: SocketAddr, router: Router, life: &Lifetime) -> Result<Running<SocketAddr>, ServeError> {
    const KEY: &str = "[admin] listen";
    require_loopback(KEY, listen, "the admin API shows names of accounts and repositories to whoever asks")?;
    let (listener, address) = bind_tcp(KEY, listen)?;
    let server = serve_tcp(listener, KEY, address)?.acceptor(Admit::new(PRIVATE_CONNECTIONS));
    Ok(Running { address, task: run(server, router, life) })
}

/// Starts the admin socket. A socket that a dead daemon left is replaced.
///
/// # Errors
/// When the path or its directory cannot be used, or another daemon answers there.
pub fn start_admin_socket(path: &Path, router: Router, life: &Lifetime) -> Result<Running<PathBuf>, ServeError> {
    let failed = |source| ServeError::Socket { path: path.to_owned(), source };
    let length = path.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        return Err(ServeError::SocketPath { path: path.to_owned(), length });
    }
    require_private_directory(path)?;
    remove_stale(path)?;
    // Before the mode is set the directory alone guards it, which is ours alone.
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
    let server = axum_server::from_unix(listener).map_err(failed)?.acceptor(Admit::new(PRIVATE_CONNECTIONS));
    Ok(Running { address: path.to_owned(), task: run(server, router, life) })
}

fn require_loopback(key: &'static str, address: SocketAddr, why: &'static str) -> Result<(), ServeError> {
    if address.ip().is_loopback() { Ok(()) } else { Err(ServeError::NotLoopback { key, address, why }) }
}

fn bind_tcp(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let told = |source: std::io::Error| match source.kind() {
        ErrorKind::AddrInUse => ServeError::InUse { key, address },
        ErrorKind::PermissionDenied => ServeError::Forbidden { key, address },
        _ => ServeError::Bind { key, address, source },
    };
    let listener = TcpListener::bind(address).map_err(told)?;
    let bound = listener.local_addr().map_err(told)?;
    Ok((listener, bound))
}

fn serve_tcp(listener: TcpListener, key: &'static str, address: SocketAddr) -> Result<Server<SocketAddr>, ServeError> {
    axum_server::from_tcp(listener).map_err(|source| ServeError::Bind { key, address, source })
}

fn require_private_directory(path: &Path) -> Result<(), ServeError> {
    let failed = |source| ServeError::Socket { path: path.to_owned(), source };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).map_err(failed)?;
    let metadata = std::fs::metadata(directory).map_err(failed)?;
    let (owner, mode, ours) = (metadata.uid(), metadata.permissions().mode() & 0o7777, geteuid());
    if owner != ours.as_raw() || mode & OTHERS != 0 {
        return Err(ServeError::SocketDirectory { path: path.to_owned(), owner, ours, mode });
    }
    Ok(())
}

fn remove_stale(path: &Path) -> Result<(), ServeError> {
    match UnixStream::connect(path) {
        Ok(_) => Err(ServeError::SocketInUse { path: path.to_owned() }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| ServeError::Socket { path: path.to_owned(), source })
        }
        // Nothing there; whatever else it is, the bind tells.
        Err(_) => Ok(()),
    }
}

/// Serves until it is told to stop, then lets requests end.
fn run<A, C>(server: Server<A, C>, router: Router, life: &Lifetime) -> JoinHandle<()>
where
    A: Address + Send + Sync + 'static,
    A::Stream: Send,
    A::Listener: Send + Sync,
    C: axum_server::accept::Accept<A::Stream, Router> + Clone + Send + Sync + 'static,
    C::Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send,
    C::Service: axum_server::service::SendService<axum::http::Request<hyper::body::Incoming>> + Send,
    C::Future: Send,
{
    let (handle, stop) = (Handle::new(), life.stop.clone());
    let server = bound(server)
        .handle(handle.clone())
        .accept_error_handler(|_, error| tracing::debug!("a connection was not accepted: {error}"));
    life.tasks.spawn(async move {
        let serve = server.serve(router.into_make_service());
        tokio::pin!(serve);
        let outcome = tokio::select! {
            outcome = &mut serve => outcome,
            () = stop.cancelled() => {
                handle.graceful_shutdown(Some(GRACE));
                serve.await
            }
        };
        if let Err(error) = outcome {
            tracing::error!("a listener ended: {error}");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileTypeExt;

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[tokio::test]
    async fn a_port_in_use_is_told_with_what_to_do() {
        let taken = TcpListener::bind(loopback()).expect("a free port");
        let address = taken.local_addr().expect("it is bound");
        let error = start_metrics(address, Router::new(), &Lifetime::default()).err().expect("it is taken");
        let text = error.to_string();
        assert!(text.contains(&format!("lsof -nP -iTCP:{}", address.port())), "{text}");
        assert!(text.contains("[admin] metrics_listen"), "{text}");
    }

    #[tokio::test]
    async fn what_must_stay_on_this_machine_stays() {
        let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let admin = start_admin_tcp(everywhere, Router::new(), &Lifetime::default()).err();
        assert!(matches!(admin, Some(ServeError::NotLoopback { .. })));
        let sources = Arc::new(Sources::new(crate::config::Allow::Anyone));
        let plain = start_public(everywhere, &TlsMode::Off, Router::new(), &sources, &Lifetime::default()).err();
        assert!(matches!(plain, Some(ServeError::NotLoopback { .. })));
    }

    #[tokio::test]
    async fn the_socket_is_ours_alone_and_one_daemon_has_it() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("run/admin.sock");
        let life = Lifetime::default();
        let first = start_admin_socket(&path, Router::new(), &life).expect("nobody is there");
        let metadata = std::fs::metadata(&path).expect("it is there");
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o777, SOCKET_MODE);
        let second = start_admin_socket(&path, Router::new(), &life).err();
        assert!(matches!(second, Some(ServeError::SocketInUse { .. })));
        life.stop.cancel();
        first.stopped().await;
        let again = start_admin_socket(&path, Router::new(), &life).expect("what a dead daemon left is replaced");
        again.stopped().await;
    }

    #[tokio::test]
    async fn a_directory_that_others_reach_into_is_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).expect("it is ours");
        let path = directory.path().join("admin.sock");
        let error = start_admin_socket(&path, Router::new(), &Lifetime::default()).err();
        assert!(matches!(error, Some(ServeError::SocketDirectory { .. })));
        let long = directory.path().join("x".repeat(MAX_SOCKET_PATH));
        let error = start_admin_socket(&long, Router::new(), &Lifetime::default()).err();
        assert!(matches!(error, Some(ServeError::SocketPath { .. })));
    }
}
