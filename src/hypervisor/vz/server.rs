//! The process's side: its two sockets, and the machine behind them.
//!
//! `control.sock` takes requests of [`protocol`]; each connection to `agent.sock` is bridged to a connection of its own
//! to the agent's port in the guest. The server ends with the machine, and says how that ended.

use super::fault::{Fault, FaultReason};
use super::machine::{Vm, VmState};
use super::protocol::{self, Answer, Choice, Condition, Greeting, Request, Versions};
use crate::hypervisor::record::AGENT_SOCKET;
use crate::hypervisor::remove_if_there;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// The control socket, in the vm's directory.
pub const CONTROL_SOCKET: &str = "control.sock";

/// Most connections at once on each socket. The daemon keeps one to the agent, and one to the control.
const CONNECTIONS: usize = 32;

/// How long a connection to the guest may take to begin.
const GUEST_CONNECT: Duration = Duration::from_secs(5);

/// How long a daemon may take to answer the greeting.
const GREET: Duration = Duration::from_secs(10);

/// How long the last answers may take to leave, once the machine has ended.
const FAREWELL: Duration = Duration::from_secs(1);

/// Pause after a connection that could not be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How the machine ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// It was asked to stop.
    Stopped,
    /// The guest powered itself off.
    PoweredOff,
    /// It failed, or never came up.
    Failed(Fault),
}

/// The machine, as the connections share it.
struct Shared {
    vm: Arc<dyn Vm>,
    agent_port: u32,
    /// How the start went, once it was begun. It is begun once, and goes on when whoever asked for it is gone.
    start: watch::Sender<Start>,
    end: watch::Sender<Option<End>>,
}

#[derive(Clone)]
enum Start {
    NotBegun,
    Begun,
    Over(Result<(), Fault>),
}

/// The two sockets of a process, bound.
pub struct Sockets {
    control: UnixListener,
    agent: UnixListener,
}

impl Sockets {
    /// Binds them in a directory. The process gives an empty path, its working directory: an address has at most 104
    /// bytes on macOS.
    ///
    /// # Errors
    /// They cannot be bound: nobody could ever speak to this process.
    pub fn bind(directory: &Path) -> io::Result<Self> {
        let bind = |name: &str| {
            let path = directory.join(name);
            // What a process that died left. Whoever binds holds the vm's lock.
            remove_if_there(&path)?;
            UnixListener::bind(path)
        };
        // The agent's first: whoever can ask for a start can also reach the guest.
        let agent = bind(AGENT_SOCKET)?;
        Ok(Self { agent, control: bind(CONTROL_SOCKET)? })
    }

    /// Serves until the machine has ended.
    pub async fn serve(self, vm: Arc<dyn Vm>, agent_port: u32) -> End {
        let (start, end) = (watch::Sender::new(Start::NotBegun), watch::Sender::new(None));
        let shared = Arc::new(Shared { vm, agent_port, start, end });
        let mut ended = shared.end.subscribe();
        let (mut controls, mut bridges) = (JoinSet::new(), JoinSet::new());
        let end = loop {
            tokio::select! {
                end = until_end(&shared, &mut ended) => break end,
                taken = self.control.accept(), if controls.len() < CONNECTIONS => {
                    if let Some(stream) = accepted(taken).await {
                        controls.spawn(control(Arc::clone(&shared), stream));
                    }
                }
                taken = self.agent.accept(), if bridges.len() < CONNECTIONS => {
                    if let Some(stream) = accepted(taken).await {
                        bridges.spawn(bridge(Arc::clone(&shared), stream));
                    }
                }
                Some(_) = controls.join_next() => {}
                Some(_) = bridges.join_next() => {}
            }
        };
        // Whoever asked for what ended the machine gets the answer; whoever asks no more is not waited for.
        let _ = timeout(FAREWELL, async { while controls.join_next().await.is_some() {} }).await;
        end
    }
}

/// Resolves when the machine has ended: by itself, by a stop, or by a start that failed.
async fn until_end(shared: &Shared, told: &mut watch::Receiver<Option<End>>) -> End {
    let mut state = shared.vm.state();
    let by_itself = async {
        let over = |state: &VmState| matches!(state, VmState::PoweredOff | VmState::Failed(_));
        match state.wait_for(over).await.as_deref() {
            Ok(VmState::Failed(fault)) => End::Failed(fault.clone()),
            Ok(_) => End::PoweredOff,
            Err(_) => End::Failed(internal("the machine is gone")),
        }
    };
    let told = async {
        let end = told.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        end.unwrap_or_else(|| End::Failed(internal("the server is gone")))
    };
    tokio::select! { end = told => end, end = by_itself => end }
}

/// A connection of this user, if one came.
async fn accepted(taken: io::Result<(UnixStream, tokio::net::unix::SocketAddr)>) -> Option<UnixStream> {
    match taken.and_then(|(stream, _)| Ok((stream.peer_cred()?.uid(), stream))) {
        Ok((peer, stream)) if peer == nix::unistd::geteuid().as_raw() => Some(stream),
        Ok((peer, _)) => {
            tracing::warn!(peer, "a connection of another user was turned away");
            None
        }
        Err(error) => {
            tracing::warn!(%error, "a connection could not be taken");
            sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// One daemon's conversation.
async fn control(shared: Arc<Shared>, mut stream: UnixStream) {
    if let Err(error) = converse(&shared, &mut stream).await {
        tracing::debug!(%error, "a conversation with a daemon was cut");
    }
}

async fn converse(shared: &Arc<Shared>, stream: &mut UnixStream) -> io::Result<()> {
    let greeting = Greeting { speaks: Versions::OURS, program: env!("CARGO_PKG_VERSION").to_owned() };
    protocol::write(stream, &greeting).await?;
    let choice = timeout(GREET, protocol::read::<Choice>(stream)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let Some(choice) = choice else { return Ok(()) };
    if !(Versions::OURS.oldest..=Versions::OURS.newest).contains(&choice.protocol) {
        tracing::warn!(
            protocol = choice.protocol,
            program = choice.program,
            "a daemon chose a version that is not spoken"
        );
        return Ok(());
    }
    let mut ended = shared.end.subscribe();
    loop {
        // A daemon that only listens does not keep a machine that has ended.
        let request = tokio::select! {
            request = protocol::read::<Request>(stream) => request?,
            _ = ended.wait_for(Option::is_some) => return Ok(()),
        };
        let Some(request) = request else { return Ok(()) };
        let answer = answer(shared, request).await;
        protocol::write(stream, &answer).await?;
    }
}

/// Does what was asked. An end that follows from it does not keep the answer from leaving.
async fn answer(shared: &Arc<Shared>, request: Request) -> Answer {
    let vm = &shared.vm;
    let done = match request {
        Request::Start => begin(shared, None).await,
        Request::Restore { file } => begin(shared, Some(file)).await,
        Request::State => Ok(()),
        Request::Stop => vm.stop().await.inspect(|()| drop(shared.end.send_replace(Some(End::Stopped)))),
        Request::Pause => vm.pause().await,
        Request::Resume => vm.resume().await,
        Request::Save { file } => vm.save(&file).await,
        Request::Unknown => Err(Fault {
            reason: FaultReason::Internal,
            detail: format!("flyci {} does not know this request", env!("CARGO_PKG_VERSION")),
        }),
    };
    match done {
        Ok(()) => Answer::Done(Condition::from(&*vm.state().borrow())),
        Err(fault) => Answer::Refused(fault.into()),
    }
}

/// Starts the machine, or waits for the start that is under way. Whoever asks first decides how.
async fn begin(shared: &Arc<Shared>, saved: Option<std::path::PathBuf>) -> Result<(), Fault> {
    let mut start = shared.start.subscribe();
    let first = shared.start.send_if_modified(|start| {
        let first = matches!(start, Start::NotBegun);
        if first {
            *start = Start::Begun;
        }
        first
    });
    if first {
        let shared = Arc::clone(shared);
        // A start cannot be taken back: it goes on when the daemon that asked for it is gone.
        tokio::spawn(async move {
            let outcome = match saved {
                Some(file) => shared.vm.restore(&file).await,
                None => shared.vm.start().await,
            };
            let failed = outcome.clone().err();
            shared.start.send_replace(Start::Over(outcome));
            if let Some(fault) = failed {
                shared.end.send_replace(Some(End::Failed(fault)));
            }
        });
    }
    let over = start.wait_for(|start| matches!(start, Start::Over(_))).await;
    match over.as_deref() {
        Ok(Start::Over(outcome)) => outcome.clone(),
        _ => Err(internal("the start was cut")),
    }
}

fn internal(detail: &str) -> Fault {
    Fault { reason: FaultReason::Internal, detail: detail.to_owned() }
}

/// Carries bytes between a connection and the agent's port, until both sides are done or one breaks.
async fn bridge(shared: Arc<Shared>, mut stream: UnixStream) {
    let connected = timeout(GUEST_CONNECT, shared.vm.connect(shared.agent_port)).await;
    let guest = match connected {
        Ok(Ok(guest)) => guest,
        Ok(Err(error)) => return tracing::debug!(%error, "the guest takes no connection"),
        Err(_) => return tracing::debug!("the guest did not take a connection in time"),
    };
    let carried = async { copy_bidirectional(&mut stream, &mut open(guest)?).await };
    if let Err(error) = carried.await {
        tracing::debug!(%error, "a connection to the guest was cut");
    }
}

/// A stream socket of the guest's, for the runtime.
fn open(guest: OwnedFd) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(guest);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
