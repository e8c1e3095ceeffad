//! Where connections come from: a virtio-serial port, vsock or a Unix socket.

use crate::fd::{self, FdStream};
use crate::server::Server;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

/// Most connections at once on a listener that takes several.
const CONNECTIONS: usize = 8;

/// Pause after a failed accept, so that a lasting fault does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves connections to a Unix socket, for ever.
///
/// # Errors
/// The socket cannot be made; an old one of that name is replaced.
pub async fn unix(path: &Path, server: Server) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let slot = slots.clone().acquire_owned().await.expect("never closed");
        match listener.accept().await {
            Ok((stream, _)) => spawn(server.clone(), stream, slot),
            Err(error) => accept_failed(&error).await,
        }
    }
}

/// Serves connections to a vsock port, from any peer (the hypervisor lets only the host in).
///
/// # Errors
/// The system has no vsock, or the port is taken.
pub async fn vsock(port: u32, server: Server) -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, bind, socket};
    use socket2::SockRef;
    const ANY: u32 = u32::MAX;
    const BACKLOG: i32 = 8;
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::empty(), None)?;
    bind(socket.as_raw_fd(), &VsockAddr::new(ANY, port))?;
    let listening = SockRef::from(&socket);
    listening.set_cloexec(true)?;
    listening.set_nonblocking(true)?;
    listening.listen(BACKLOG)?;
    let listener = fd::register(Arc::new(socket))?;
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let slot = slots.clone().acquire_owned().await.expect("never closed");
        match listener.async_io(tokio::io::Interest::READABLE, |fd| SockRef::from(fd).accept()).await {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                spawn(server.clone(), FdStream::new(Arc::new(OwnedFd::from(stream)))?, slot);
            }
            Err(error) => accept_failed(&error).await,
        }
    }
}

async fn accept_failed(error: &io::Error) {
    tracing::warn!("cannot accept a connection: {error}");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

fn spawn<S>(server: Server, stream: S, slot: tokio::sync::OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        if let Err(error) = server.serve(stream).await {
            tracing::debug!("a connection ended: {error}");
        }
        drop(slot);
    });
}

#[cfg(target_os = "linux")]
pub use virtio::serve as virtio;

/// The virtio-serial port: a character device that is the same pipe for the guest's whole life.
#[cfg(target_os = "linux")]
mod virtio {
    use super::*;
    use crate::channel::Port;
    use std::fs::OpenOptions;
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
    use std::path::PathBuf;

    /// How often an absent port, or an absent host, is looked for: the kernel tells neither in a
    /// way that could be waited for.
    const LOOK: Duration = Duration::from_millis(20);

    /// Serves one connection after the other on the port of this name, for ever.
    ///
    /// # Errors
    /// The port is there and cannot be opened.
    pub async fn serve(name: &str, server: Server) -> io::Result<()> {
        loop {
            let path = find(name).await;
            if let Err(error) = serve_device(&path, &server).await {
                tracing::warn!("virtio port {name}: {error}; looking for it again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    /// Serves the device until it vanishes. It is never closed in between: that would discard what
    /// the host has sent.
    async fn serve_device(path: &Path, server: &Server) -> io::Result<()> {
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(path)?;
        let opened = file.metadata()?;
        let same = || std::fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (opened.dev(), opened.ino()));
        let device = Arc::new(OwnedFd::from(file));
        let mut port = Port::new(FdStream::new(device.clone())?);
        loop {
            while fd::hung_up(&device)? {
                if !same() {
                    return Err(io::Error::other("the device was replaced"));
                }
                tokio::time::sleep(LOOK).await;
            }
            serve_attached(&mut port, server).await;
        }
    }

    /// Serves connections until the host lets go of the port.
    async fn serve_attached(port: &mut Port<FdStream>, server: &Server) {
        loop {
            match port.accept().await {
                Ok(session) => {
                    if let Err(error) = server.serve(session).await {
                        tracing::debug!("a connection ended: {error}");
                    }
                }
                Err(error) => {
                    tracing::debug!("the host let go of the port: {error}");
                    return;
                }
            }
        }
    }

    /// Waits for the port of this name: by its link where something like udev makes one, else by
    /// the name that the kernel tells.
    async fn find(name: &str) -> PathBuf {
        loop {
            let link = Path::new("/dev/virtio-ports").join(name);
            if link.exists() {
                return link;
            }
            if let Some(path) = find_by_sysfs(name) {
                return path;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn find_by_sysfs(name: &str) -> Option<PathBuf> {
        let ports = std::fs::read_dir("/sys/class/virtio-ports").ok()?;
        ports.flatten().find_map(|port| {
            let told = std::fs::read_to_string(port.path().join("name")).ok()?;
            (told.trim_end() == name).then(|| Path::new("/dev").join(port.file_name()))
        })
    }
}
