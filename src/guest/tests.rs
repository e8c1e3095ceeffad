//! Guests as the daemon meets them: the real agent and the real scripts, in a directory of its own
//! in place of a machine. The runner is a script that does what its test tells it.

use super::*;
use flyci_agent::channel::Port;
use flyci_agent::listen;
use flyci_agent::proto::agent_client::AgentClient;
use flyci_agent::proto::exec_request::{Command, Type as Input};
use flyci_agent::proto::{ExecRequest, IoChunk};
use flyci_agent::server::{Privilege, Server};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::AbortHandle;

/// Long enough for a busy machine: only a hang reaches it.
const DEADLINE: Duration = Duration::from_secs(120);

/// The runner: tells what it was given, then lives until it is told how to end.
const RUNNER: &str = r#"#!/bin/sh
cd "$(dirname "$0")"
root=$(cat root 2>/dev/null || pwd)
echo "$ACTIONS_RUNNER_INPUT_JITCONFIG" >>"$root/started"
umask >"$root/umask"
mkfifo "$root/end" 2>/dev/null
while ! read -r code words <"$root/end"; do :; done
echo "$words"
exit "$code"
"#;

/// A machine in a directory.
struct Machine {
    directory: tempfile::TempDir,
    agent: AbortHandle,
}

impl Machine {
    /// With an agent as on a virtio-serial port (`Resync`) or on vsock (`Plain`).
    async fn boot(framing: Framing) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let server = Server::new(Privilege::None);
        let agent = match framing {
            Framing::Plain => tokio::spawn(async move { listen::unix(&socket, server).await.unwrap() }),
            Framing::Resync => tokio::spawn(serve_port(UnixListener::bind(socket).unwrap(), server)),
        };
        let machine = Self { directory, agent: agent.abort_handle() };
        std::fs::create_dir(machine.path("runner")).unwrap();
        std::fs::write(machine.path("runner/run.sh"), RUNNER).unwrap();
        std::fs::set_permissions(machine.path("runner/run.sh"), PermissionsExt::from_mode(0o755)).unwrap();
        eventually("the agent listens", || machine.path("agent.sock").exists()).await;
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn options(&self) -> GuestOptions {
        let runner = |name| self.path(name).display().to_string();
        GuestOptions {
            state: self.path("state").display().to_string(),
            runner_directories: vec![runner("absent"), runner("runner")],
            ..GuestOptions::default()
        }
    }

    /// A daemon that has just come up.
    fn daemon(&self, framing: Framing) -> AgentGuest {
        AgentGuest::new(self.path("agent.sock"), framing, self.options())
    }

    /// A daemon whose connection goes through another socket.
    fn daemon_through(&self, socket: &str) -> AgentGuest {
        AgentGuest::new(self.path(socket), Framing::Plain, self.options())
    }

    /// Has the runner end.
    async fn end_runner(&self, code: i32, words: &str) {
        eventually("the runner listens", || self.path("runner/end").exists()).await;
        std::fs::write(self.path("runner/end"), format!("{code} {words}\n")).unwrap();
    }

    async fn runner_started(&self) {
        eventually("the runner started", || self.text("runner/started").ends_with('\n')).await;
    }
}

impl Drop for Machine {
    /// Nothing of the machine lives on: its runner was told, or is told now.
    fn drop(&mut self) {
        self.agent.abort();
        if self.path("runner/end").exists() {
            let end = self.path("runner/end");
            std::thread::spawn(move || std::fs::write(end, "0\n"));
        }
    }
}

/// An agent as on a virtio-serial port: one connection at a time, each begun by a HELLO.
async fn serve_port(listener: UnixListener, server: Server) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let mut port = Port::new(stream);
        while let Ok(session) = port.accept().await {
            let _ = server.serve(session).await;
        }
    }
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let held = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, held).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn start_of(name: &str, jit: &str) -> RunnerStart {
    RunnerStart {
        name: name.to_owned(),
        registered_name: format!("flyci-{name}"),
        jit_config: jit.to_owned().into(),
        setup_info: "[]".to_owned(),
    }
}

#[tokio::test]
async fn a_runner_is_started_watched_and_its_end_told() {
    for framing in [Framing::Plain, Framing::Resync] {
        let machine = Machine::boot(framing).await;
        let daemon = machine.daemon(framing);
        daemon.ready().await.unwrap();
        assert_eq!(daemon.probe("r1").await.unwrap(), RunnerProbe::Absent);
        let jit = "x".repeat(9000);
        daemon.start(start_of("r1", &jit)).await.unwrap();
        machine.runner_started().await;
        assert_eq!(machine.text("runner/started"), format!("{jit}\n"));
        assert_eq!(machine.text("runner/.setup_info"), "[]");
        assert_eq!(daemon.probe("r1").await.unwrap(), RunnerProbe::Alive);
        let (end, ()) = tokio::join!(daemon.wait("r1"), machine.end_runner(3, "Job done"));
        assert_eq!(end.unwrap(), RunnerEnd { status: 3, too_old: false });
        assert_eq!(daemon.probe("r1").await.unwrap(), RunnerProbe::Exited(3));
        // The end can be asked for again.
        assert_eq!(daemon.wait("r1").await.unwrap().status, 3);
    }
}

#[tokio::test]
async fn a_guest_starts_one_runner_in_its_life() {
    let machine = Machine::boot(Framing::Plain).await;
    let daemon = machine.daemon(Framing::Plain);
    daemon.start(start_of("r1", "one")).await.unwrap();
    for name in ["r1", "r2"] {
        let again = daemon.start(start_of(name, "two")).await;
        assert!(matches!(again, Err(GuestError::Failed(text)) if text.contains("before")));
    }
    machine.runner_started().await;
    machine.end_runner(0, "").await;
    daemon.wait("r1").await.unwrap();
    assert!(daemon.start(start_of("r1", "three")).await.is_err());
    assert_eq!(machine.text("runner/started"), "one\n");
    assert_eq!(daemon.probe("r2").await.unwrap(), RunnerProbe::Lost);
}

#[tokio::test]
async fn a_runner_outlives_the_daemon_that_started_it() {
    let machine = Machine::boot(Framing::Plain).await;
    let first = machine.daemon(Framing::Plain);
    first.start(start_of("r1", "jit")).await.unwrap();
    machine.runner_started().await;
    let watch = tokio::time::timeout(Duration::from_millis(200), first.wait("r1")).await;
    assert!(watch.is_err(), "it runs");
    drop(first);
    let second = machine.daemon(Framing::Plain);
    assert_eq!(second.probe("r1").await.unwrap(), RunnerProbe::Alive);
    let (end, ()) = tokio::join!(second.wait("r1"), machine.end_runner(0, ""));
    assert_eq!(end.unwrap().status, 0);
}

#[tokio::test]
async fn a_runner_that_github_finds_too_old_is_told_by_its_own_words() {
    let machine = Machine::boot(Framing::Plain).await;
    let daemon = machine.daemon(Framing::Plain);
    daemon.start(start_of("r1", "jit")).await.unwrap();
    let words = "An error occurred: Runner version v2.300.0 is deprecated and cannot receive messages.";
    machine.end_runner(1, words).await;
    assert_eq!(daemon.wait("r1").await.unwrap(), RunnerEnd { status: 1, too_old: true });
    assert!(!contains(&machine.path("state"), words), "what a runner says is not kept");
}

#[tokio::test]
async fn the_jit_configuration_is_in_the_environment_of_the_runner_alone() {
    let machine = Machine::boot(Framing::Plain).await;
    let daemon = machine.daemon(Framing::Plain);
    let canary = "canary-of-a-jit-configuration";
    daemon.start(start_of("r1", canary)).await.unwrap();
    machine.runner_started().await;
    assert!(!contains(&machine.path("state"), canary), "not in a file of ours");
    let holders = processes_with(canary);
    // The shell of run.sh, and the children that it may have at this moment.
    assert!(holders.iter().all(|(_, command)| !command.contains("become_runner")), "{holders:?}");
    assert!(holders.iter().any(|(_, command)| command.contains("run.sh")), "{holders:?}");
    assert!(holders.iter().all(|(_, command)| !command.contains(canary)), "never in an argument");
    assert_ne!(machine.text("runner/umask").trim(), "0077", "the job has the machine's own umask");
    machine.end_runner(0, "").await;
    daemon.wait("r1").await.unwrap();
}

/// The processes that have this text in their environment, with their arguments.
fn processes_with(text: &str) -> Vec<(String, String)> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let has = |path: PathBuf| std::fs::read(path).is_ok_and(|bytes| find(&bytes, text));
    processes
        .filter(|process| has(process.path().join("environ")))
        .map(|process| {
            let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            (process.file_name().to_string_lossy().into_owned(), command)
        })
        .collect()
}

fn find(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Whether any file under this directory has the text.
fn contains(directory: &std::path::Path, text: &str) -> bool {
    std::fs::read_dir(directory).unwrap().flatten().any(|entry| {
        let kind = entry.file_type().unwrap();
        (kind.is_dir() && contains(&entry.path(), text))
            || (kind.is_file() && find(&std::fs::read(entry.path()).unwrap(), text))
    })
}

#[tokio::test]
async fn a_daemon_that_dies_in_the_middle_of_the_input_has_begun_nothing() {
    let machine = Machine::boot(Framing::Plain).await;
    for sent in ["", "5", "5 ", "5 whol", "6 whole\n", "5 whole"] {
        begin_and_die(&machine, sent, true).await;
    }
    begin_and_die(&machine, "5 wh", false).await;
    let daemon = machine.daemon(Framing::Plain);
    assert_eq!(daemon.probe("r1").await.unwrap(), RunnerProbe::Absent);
    daemon.start(start_of("r1", "whole")).await.unwrap();
    machine.runner_started().await;
    assert_eq!(machine.text("runner/started"), "whole\n");
    machine.end_runner(0, "").await;
    daemon.wait("r1").await.unwrap();
}

/// What a daemon does that dies while it sends: the input ends (as some agents make of it) or the
/// connection just breaks.
async fn begin_and_die(machine: &Machine, sent: &str, ends: bool) {
    let path = machine.path("agent.sock");
    let connection = call::connection(&path, Framing::Plain);
    let options = machine.options();
    let fixed = ["-c", agent::START_SCRIPT, "flyci", &options.state, "r1", "[]", agent::WATCH_SCRIPT];
    let command = Command {
        name: "/bin/sh".to_owned(),
        args: fixed.into_iter().map(str::to_owned).chain(options.runner_directories).collect(),
        interactive: true,
        ..Command::default()
    };
    let piece = |text: &str| Input::StandardInput(IoChunk { data: text.as_bytes().to_vec() });
    let mut inputs = vec![Input::Command(command), piece(sent)];
    if ends {
        inputs.push(piece(""));
    }
    let requests = inputs.into_iter().map(|input| ExecRequest { r#type: Some(input) });
    let requests = futures_util::StreamExt::chain(
        futures_util::stream::iter(requests.collect::<Vec<_>>()),
        futures_util::stream::pending(),
    );
    let mut responses = AgentClient::new(connection).exec(requests).await.unwrap().into_inner();
    while ends && responses.message().await.unwrap().is_some() {}
}

#[tokio::test]
async fn a_connection_cut_anywhere_in_a_start_leaves_one_runner_or_none() {
    let mut outcomes = Vec::new();
    for bytes in (0..14_000).step_by(700) {
        let machine = Machine::boot(Framing::Plain).await;
        let proxy = tokio::spawn(cut_after(machine.path("proxy.sock"), machine.path("agent.sock"), bytes));
        eventually("the proxy listens", || machine.path("proxy.sock").exists()).await;
        let cut = machine.daemon_through("proxy.sock").start(start_of("r1", &"j".repeat(5000))).await;
        proxy.abort();
        let daemon = machine.daemon(Framing::Plain);
        let found = daemon.probe("r1").await.unwrap();
        match found {
            RunnerProbe::Absent => daemon.start(start_of("r1", "again")).await.unwrap(),
            RunnerProbe::Alive => assert!(daemon.start(start_of("r1", "again")).await.is_err()),
            // Begun and killed on the way: this guest is not used again.
            RunnerProbe::Lost => {
                assert!(cut.is_err());
                assert!(daemon.start(start_of("r1", "again")).await.is_err());
                outcomes.push(found);
                continue;
            }
            RunnerProbe::Exited(_) => panic!("nobody ended it"),
        }
        outcomes.push(found);
        machine.runner_started().await;
        machine.end_runner(0, "").await;
        daemon.wait("r1").await.unwrap();
        assert_eq!(machine.text("runner/started").lines().count(), 1);
    }
    assert!(outcomes.contains(&RunnerProbe::Absent), "{outcomes:?}");
    assert!(outcomes.contains(&RunnerProbe::Alive), "{outcomes:?}");
}

/// Passes so many bytes on to the agent, then breaks off.
async fn cut_after(own: PathBuf, agent: PathBuf, bytes: usize) {
    let listener = UnixListener::bind(own).unwrap();
    let (mut host, _) = listener.accept().await.unwrap();
    drop(listener);
    let mut guest = UnixStream::connect(agent).await.unwrap();
    let (mut from_guest, mut to_guest) = guest.split();
    let (from_host, mut to_host) = host.split();
    let mut from_host = from_host.take(bytes as u64);
    tokio::select! {
        _ = tokio::io::copy(&mut from_host, &mut to_guest) => {}
        _ = tokio::io::copy(&mut from_guest, &mut to_host) => {}
    }
}

#[tokio::test]
async fn a_wait_whose_connection_breaks_can_be_made_again() {
    let machine = Machine::boot(Framing::Plain).await;
    machine.daemon(Framing::Plain).start(start_of("r1", "jit")).await.unwrap();
    let listener = UnixListener::bind(machine.path("proxy.sock")).unwrap();
    let agent = machine.path("agent.sock");
    let broken = tokio::spawn(async move {
        let (mut host, _) = listener.accept().await.unwrap();
        let mut guest = UnixStream::connect(agent).await.unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(300), copy_bidirectional(&mut host, &mut guest)).await;
        host.shutdown().await
    });
    let waited = machine.daemon_through("proxy.sock").wait("r1").await;
    assert!(matches!(waited, Err(GuestError::Unreachable(_))), "{waited:?}");
    broken.await.unwrap().unwrap();
    let daemon = machine.daemon(Framing::Plain);
    let (end, ()) = tokio::join!(daemon.wait("r1"), machine.end_runner(0, ""));
    assert_eq!(end.unwrap().status, 0);
}

#[tokio::test]
async fn a_runner_killed_with_all_that_watched_it_is_lost_and_ended() {
    let machine = Machine::boot(Framing::Plain).await;
    let daemon = machine.daemon(Framing::Plain);
    daemon.start(start_of("r1", "jit")).await.unwrap();
    machine.runner_started().await;
    let told = machine.text("state/r1/pid");
    let pid: i32 = told.split_whitespace().next().unwrap().parse().unwrap();
    let kill = async {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    };
    let (end, ()) = tokio::join!(daemon.wait("r1"), kill);
    assert_ne!(end.unwrap().status, 0);
    assert_eq!(daemon.probe("r1").await.unwrap(), RunnerProbe::Lost);
    machine.end_runner(0, "").await;
}

#[tokio::test]
async fn a_runner_may_leave_something_behind_that_holds_its_output() {
    let machine = Machine::boot(Framing::Plain).await;
    let left = machine.path("left").display().to_string();
    let runner = format!("#!/bin/sh\nsleep 1000 &\necho $! >{left}\nexit 4\n");
    std::fs::write(machine.path("runner/run.sh"), runner).unwrap();
    let daemon = machine.daemon(Framing::Plain);
    daemon.start(start_of("r1", "jit")).await.unwrap();
    assert_eq!(daemon.wait("r1").await.unwrap().status, 4);
    let pid = machine.text("left").trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_runner_on_a_disk_that_cannot_be_written_is_copied() {
    let machine = Machine::boot(Framing::Plain).await;
    // A directory in the place of the file: as impossible to write, for root too.
    std::fs::create_dir(machine.path("runner/.setup_info")).unwrap();
    let runner = machine.path("runner");
    std::fs::write(machine.path("runner/root"), runner.display().to_string()).unwrap();
    let daemon = machine.daemon(Framing::Plain);
    daemon.start(start_of("r1", "jit")).await.unwrap();
    machine.runner_started().await;
    assert!(machine.path("state/r1/runner/run.sh").exists());
    assert_eq!(machine.text("state/r1/runner/.setup_info"), "[]");
    machine.end_runner(0, "").await;
    daemon.wait("r1").await.unwrap();
}

#[tokio::test]
async fn a_guest_without_a_runner_says_so_and_is_not_used_up() {
    let machine = Machine::boot(Framing::Plain).await;
    std::fs::remove_file(machine.path("runner/run.sh")).unwrap();
    let daemon = machine.daemon(Framing::Plain);
    let refused = daemon.start(start_of("r1", "jit")).await;
    assert!(matches!(refused, Err(GuestError::Failed(text)) if text.contains("no runner")));
    assert_eq!(daemon.probe("r1").await.unwrap(), RunnerProbe::Absent);
}

#[tokio::test]
async fn nobody_at_the_other_end_is_unreachable_and_bad_names_go_nowhere() {
    let machine = Machine::boot(Framing::Plain).await;
    let gone = machine.daemon_through("nobody.sock");
    assert!(matches!(gone.probe("r1").await, Err(GuestError::Unreachable(_))));
    let daemon = machine.daemon(Framing::Plain);
    for bad in ["", ".", "..", "a/b", "a b", "$(reboot)", &"x".repeat(200)] {
        assert!(matches!(daemon.probe(bad).await, Err(GuestError::Failed(_))), "{bad}");
    }
    let refused = daemon.start(start_of("r1", "not base64\n")).await;
    assert!(matches!(refused, Err(GuestError::Failed(_))));
}

#[tokio::test]
async fn an_agent_that_answers_nonsense_is_not_believed() {
    let machine = Machine::boot(Framing::Plain).await;
    let nonsense = UnixListener::bind(machine.path("nonsense.sock")).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = nonsense.accept().await {
            let _ = stream.write_all(&[0xFF; 100_000]).await;
        }
    });
    let daemon = machine.daemon_through("nonsense.sock");
    assert!(matches!(daemon.probe("r1").await, Err(GuestError::Unreachable(_))));
}
