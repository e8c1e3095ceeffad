//! Commands through the real service, over a Unix socket, as the host sees them.

use flyci_agent::proto::exec_request::{Command, Type as Input};
use flyci_agent::proto::exec_response::Type as Output;
use flyci_agent::proto::{ExecRequest, IoChunk};
use flyci_agent::server::{Privilege, Server};
use flyci_agent::{MESSAGE_BYTES, listen};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};

mod common;
use common::{Client, client};

/// Long enough for a busy machine: only a hang reaches it.
const DEADLINE: Duration = Duration::from_secs(30);

/// An agent on a socket of its own.
struct Guest {
    directory: tempfile::TempDir,
}

impl Guest {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        tokio::spawn(async move { listen::unix(&socket, Server::new(Privilege::None)).await });
        let guest = Self { directory };
        eventually("the agent listens", || guest.path("agent.sock").exists()).await;
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn client(&self) -> Client {
        let path = self.path("agent.sock");
        client(move || tokio::net::UnixStream::connect(path.clone())).await.unwrap()
    }
}

/// A command under way.
struct Running {
    input: mpsc::Sender<ExecRequest>,
    output: Streaming<flyci_agent::proto::ExecResponse>,
}

/// What a command left.
#[derive(Default, PartialEq, Eq, Debug)]
struct Left {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Running {
    async fn begin(client: &mut Client, command: Command) -> Result<Self, Status> {
        let (input, requests) = mpsc::channel(4);
        input.send(request(Input::Command(command))).await.unwrap();
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let output = client.exec(requests).await?.into_inner();
        Ok(Self { input, output })
    }

    async fn feed(&self, data: &[u8]) {
        let chunk = IoChunk { data: data.to_vec() };
        self.input.send(request(Input::StandardInput(chunk))).await.unwrap();
    }

    async fn end(mut self) -> Result<Left, Status> {
        let mut left = Left::default();
        while let Some(response) = tokio::time::timeout(DEADLINE, self.output.message()).await.unwrap()? {
            assert_eq!(left.code, None, "the exit is the last message");
            match response.r#type.unwrap() {
                Output::StandardOutput(chunk) => left.stdout.extend(chunk.data),
                Output::StandardError(chunk) => left.stderr.extend(chunk.data),
                Output::Exit(exit) => left.code = Some(exit.code),
            }
        }
        Ok(left)
    }
}

fn request(input: Input) -> ExecRequest {
    ExecRequest { r#type: Some(input) }
}

fn sh(script: &str) -> Command {
    Command {
        name: "/bin/sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        interactive: true,
        ..Command::default()
    }
}

async fn run(guest: &Guest, command: Command) -> Result<Left, Status> {
    Running::begin(&mut guest.client().await, command).await?.end().await
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waited).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn alive(pid_file: &Path) -> bool {
    let pid = std::fs::read_to_string(pid_file).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn a_command_has_its_arguments_environment_directory_and_exit_code() {
    let guest = Guest::start().await;
    let mut command = sh("echo \"$0 $GREETING $(pwd)\"; echo no >&2; exit 7");
    command.args.push("zero".to_owned());
    command.env.insert("GREETING".to_owned(), "hello".to_owned());
    command.workdir = "/".to_owned();
    let left = run(&guest, command).await.unwrap();
    assert_eq!(left.code, Some(7));
    assert_eq!(left.stdout, b"zero hello /\n");
    assert_eq!(left.stderr, b"no\n");
}

#[tokio::test]
async fn a_killed_command_tells_its_signal_as_a_shell_does() {
    let guest = Guest::start().await;
    let left = run(&guest, sh("kill -TERM $$")).await.unwrap();
    assert_eq!(left.code, Some(128 + 15));
}

#[tokio::test]
async fn input_ends_with_an_empty_chunk() {
    let guest = Guest::start().await;
    let mut client = guest.client().await;
    let running = Running::begin(&mut client, sh("cat; echo end")).await.unwrap();
    running.feed(b"one ").await;
    running.feed(b"two ").await;
    running.feed(b"").await;
    assert_eq!(running.end().await.unwrap().stdout, b"one two end\n");
}

#[tokio::test]
async fn a_command_without_input_reads_nothing() {
    let guest = Guest::start().await;
    let mut command = sh("cat; echo end");
    command.interactive = false;
    assert_eq!(run(&guest, command).await.unwrap().stdout, b"end\n");
}

#[tokio::test]
async fn much_output_arrives_whole() {
    let guest = Guest::start().await;
    let left = run(&guest, sh("head -c 3000000 /dev/zero")).await.unwrap();
    assert_eq!((left.code, left.stdout.len()), (Some(0), 3_000_000));
}

#[tokio::test]
async fn a_command_and_its_group_die_with_their_stream() {
    let guest = Guest::start().await;
    let (own, child) = (guest.path("own"), guest.path("child"));
    let script = format!(
        "sleep 1000 & echo $! > {child}.new; mv {child}.new {child}; echo $$ > {own}; wait",
        child = child.display(),
        own = own.display()
    );
    let mut client = guest.client().await;
    let running = Running::begin(&mut client, sh(&script)).await.unwrap();
    eventually("the command runs", || own.exists() && std::fs::read(&own).unwrap().ends_with(b"\n")).await;
    drop(running);
    eventually("both are dead", || !alive(&own) && !alive(&child)).await;
}

#[tokio::test]
async fn a_command_dies_with_its_connection() {
    let guest = Guest::start().await;
    let own = guest.path("own");
    let mut client = guest.client().await;
    let running = Running::begin(&mut client, sh(&format!("echo $$ > {}; cat", own.display()))).await.unwrap();
    eventually("the command runs", || own.exists() && std::fs::read(&own).unwrap().ends_with(b"\n")).await;
    drop((client, running));
    eventually("it is dead", || !alive(&own)).await;
}

#[tokio::test]
async fn a_child_that_holds_the_output_does_not_hold_the_exit() {
    let guest = Guest::start().await;
    let child = guest.path("child");
    let script = format!("sleep 1000 & echo $! > {}; echo done", child.display());
    let left = run(&guest, sh(&script)).await.unwrap();
    assert_eq!((left.code, left.stdout), (Some(0), b"done\n".to_vec()));
    let pid = std::fs::read_to_string(child).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn what_the_agent_cannot_do_is_refused_with_a_reason() {
    let guest = Guest::start().await;
    let code = |result: Result<Left, Status>| result.unwrap_err().code();
    let tty = Command { tty: true, ..sh("true") };
    assert_eq!(code(run(&guest, tty).await), Code::Unimplemented);
    let absent = Command { name: "/no/such/program".to_owned(), ..sh("") };
    assert_eq!(code(run(&guest, absent).await), Code::NotFound);
    let nameless = Command { name: String::new(), ..sh("") };
    assert_eq!(code(run(&guest, nameless).await), Code::InvalidArgument);
    let long = sh(&"#".repeat(MESSAGE_BYTES));
    assert_eq!(code(run(&guest, long).await), Code::OutOfRange);
}

#[tokio::test]
async fn the_first_message_must_be_the_command() {
    let guest = Guest::start().await;
    let early = tokio_stream::iter([request(Input::StandardInput(IoChunk::default()))]);
    let refused = guest.client().await.exec(early).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_agent_outside_a_vm_does_not_touch_its_machine() {
    let guest = Guest::start().await;
    let prepare = Command { name: "flyci-agent".to_owned(), args: vec!["prepare".to_owned()], ..Command::default() };
    // It is a command as any other there, and not on the PATH.
    assert_eq!(run(&guest, prepare).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn the_commands_at_once_are_bounded_and_the_bound_frees_itself() {
    let guest = Guest::start().await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(guest.client().await);
    }
    let mut running = Vec::new();
    let refused = loop {
        let client = &mut clients[running.len() / 12];
        match Running::begin(client, sh("cat")).await {
            Ok(another) => running.push(another),
            Err(status) => break status,
        }
    };
    assert_eq!((refused.code(), running.len()), (Code::ResourceExhausted, 32));
    drop(running);
    let mut client = guest.client().await;
    let again = async {
        while Running::begin(&mut client, sh("true")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, again).await.expect("the bound frees itself");
}
