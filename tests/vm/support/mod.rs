//! What the stories share: the image, a home for VMs that leaves nothing behind, and commands that
//! run inside a guest.

pub mod world;

use crate::common::{Client, client};
use flyci::domain::ids::VmId;
use flyci::domain::profile::Display;
use flyci::domain::units::Bytes;
use flyci::hypervisor::qemu::{Accelerator, Options, Qemu};
use flyci::hypervisor::{Hypervisor, Presence, VmSpec};
use flyci::images::build::{self, BuildOptions};
use flyci::images::{Image, ImageStore};
use flyci_agent::channel;
use flyci_agent::proto::exec_request::{Command, Type as Input};
use flyci_agent::proto::exec_response::Type as Output;
use flyci_agent::proto::{ExecRequest, IoChunk};
use futures_util::{StreamExt, stream};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::Status;

/// How long anything here may take on a machine that emulates and does other things besides.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How long a HELLO may take while the guest boots.
const HELLO: Duration = Duration::from_secs(5);

/// Pause before a guest that does not answer yet is asked again.
const AGAIN: Duration = Duration::from_millis(20);

/// The image of all tests, built once and shared by their processes. It lies where this user may
/// write: tests run as another user than the one who builds them.
pub async fn image() -> Image {
    let user = nix::unistd::geteuid();
    let home = std::env::temp_dir().join(format!("flyci-test-images-{user}"));
    DirBuilder::new().recursive(true).mode(0o700).create(&home).expect("a directory for the image");
    let owner = std::fs::metadata(&home).expect("the directory").uid();
    assert_eq!(owner, user.as_raw(), "{} belongs to another user", home.display());
    let lock = File::create(home.join("lock")).expect("a lock");
    lock.lock().expect("locked");
    let store = ImageStore::open(&home).expect("a store");
    let options = BuildOptions::usual(&home).expect("the agent built for guests; script/test builds it");
    let stamp = stamp(&options.agent);
    let options = BuildOptions { name: format!("test-{stamp}"), ..options };
    if let Ok(image) = store.find(&options.name) {
        return image;
    }
    build::linux_minimal(&options, &store, &mut |_| {}).await.unwrap_or_else(|error| {
        panic!("the image can be built: {}", flyci::errors::chain(&error));
    })
}

/// An image built once more, out of the packages that [`image`] fetched.
pub async fn rebuilt() -> Image {
    let cache = image().await.path.join("../../cache/packages");
    let home = tempfile::tempdir().expect("a directory");
    let store = ImageStore::open(home.path()).expect("a store");
    let options = BuildOptions { cache, ..BuildOptions::usual(home.path()).expect("the agent built for guests") };
    build::linux_minimal(&options, &store, &mut |_| {}).await.expect("built")
}

/// Changes when the agent does.
fn stamp(agent: &Path) -> String {
    let data = std::fs::metadata(agent).expect("the agent");
    let modified = data.modified().expect("a time").duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    format!("{}-{}", data.len(), modified.as_millis())
}

/// A place for VMs. All of them end with it, however the test ends.
pub struct Host {
    pub directory: tempfile::TempDir,
    pub qemu: Qemu,
    pub image: Image,
}

impl Host {
    pub async fn new(change: impl FnOnce(&mut Options)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut options = Options::new(directory.path());
        options.reserve = Bytes(0);
        // Works everywhere, and whether KVM does is not tried in each test.
        options.accelerator = Some(Accelerator::Tcg);
        change(&mut options);
        Self { qemu: Qemu::open(options).expect("a backend"), image: image().await, directory }
    }

    pub fn spec(&self, slot: u16) -> VmSpec {
        VmSpec {
            id: VmId::random(),
            slot,
            image: self.image.path.clone(),
            cpus: 1,
            memory: Bytes(256 << 20),
            disk_free: Bytes(64 << 20),
            display: Display::default(),
        }
    }

    /// A VM whose agent answers.
    pub async fn booted(&self, slot: u16) -> Vm {
        let spec = self.spec(slot);
        self.qemu.clone_vm(&spec).await.expect("cloned");
        self.qemu.boot(&spec).await.expect("booted");
        let vm = Vm { socket: self.path(spec.id).join("agent.sock"), spec };
        vm.connect().await;
        vm
    }

    pub fn path(&self, vm: VmId) -> PathBuf {
        self.directory.path().join("vms").join(vm.to_string())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    for vm in self.qemu.list().await.expect("listed") {
                        self.qemu.destroy(vm).await.expect("destroyed");
                        assert_eq!(self.qemu.presence(vm).await, Presence::Absent);
                    }
                });
            });
        });
    }
}

/// One booted VM.
pub struct Vm {
    pub spec: VmSpec,
    pub socket: PathBuf,
}

impl Vm {
    /// A connection to the agent, once it answers.
    pub async fn connect(&self) -> Client {
        let answered = async {
            loop {
                let socket = self.socket.clone();
                let open = move || {
                    let socket = socket.clone();
                    async move {
                        let stream = UnixStream::connect(socket).await.map_err(std::io::Error::other)?;
                        channel::connect(stream, HELLO).await.map_err(std::io::Error::other)
                    }
                };
                match client(open).await {
                    Ok(client) => return client,
                    Err(_) => tokio::time::sleep(AGAIN).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, answered).await.expect("the agent answers")
    }

    /// Runs a shell command in the guest; returns its status and what it printed.
    pub async fn run(&self, command: &str) -> (i32, String) {
        self.try_run(command).await.expect("an answer")
    }

    /// Runs a shell command that the guest may not live to answer.
    pub async fn try_run(&self, command: &str) -> Result<(i32, String), Status> {
        let mut client = self.connect().await;
        tokio::time::timeout(PATIENCE, run(&mut client, command)).await.expect("it ends")
    }
}

async fn run(client: &mut Client, command: &str) -> Result<(i32, String), Status> {
    let command = Command {
        name: "/bin/sh".into(),
        args: vec!["-c".into(), format!("{command} 2>&1")],
        interactive: true,
        ..Command::default()
    };
    let inputs = [Input::Command(command), Input::StandardInput(IoChunk { data: Vec::new() })];
    let requests = stream::iter(inputs.map(|input| ExecRequest { r#type: Some(input) })).chain(stream::pending());
    let mut responses = client.exec(requests).await?.into_inner();
    let mut printed = Vec::new();
    while let Some(response) = responses.message().await? {
        match response.r#type {
            Some(Output::Exit(exit)) => return Ok((exit.code, String::from_utf8_lossy(&printed).into_owned())),
            Some(Output::StandardOutput(IoChunk { data }) | Output::StandardError(IoChunk { data })) => {
                printed.extend(data);
            }
            None => {}
        }
    }
    Err(Status::unavailable("the command ended without a status"))
}
