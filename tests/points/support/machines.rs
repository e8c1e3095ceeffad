//! The machines: pretended ones in the test's process, which a daemon in another process works on over a socket.
//! A call whose daemon dies is cut off, as a half-made clone would be; what runs goes on.

use flyci::domain::ids::VmId;
use flyci::domain::profile::Display;
use flyci::domain::units::Bytes;
use flyci::guest::{Guest, GuestError, RunnerEnd, RunnerProbe, RunnerStart};
use flyci::hypervisor::fake::FakeHypervisor;
use flyci::hypervisor::{Hypervisor, HypervisorError, Presence, VmSpec};
use secrecy::ExposeSecret;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// The socket in the daemon's directory.
pub const SOCKET: &str = "machines.sock";

/// One call.
#[derive(Serialize, Deserialize)]
enum Call {
    /// Never answered: ends with the test.
    Life,
    List,
    Clone(VmId),
    Boot(VmId),
    Presence(VmId),
    Ended(VmId),
    Destroy(VmId),
    Ready(VmId),
    Reached(VmId, Vec<SocketAddrV4>),
    Probe(VmId, String),
    Start(VmId, Start),
    Wait(VmId, String),
    JobIsOver(VmId, String),
}

/// What a runner is started with. The configuration is of a simulated GitHub: it is no secret.
#[derive(Serialize, Deserialize)]
struct Start {
    name: String,
    registered_name: String,
    jit_config: String,
    setup_info: String,
}

/// Answers the calls of daemons until it is dropped.
pub async fn serve(listener: UnixListener, machines: Arc<FakeHypervisor>) {
    let mut calls = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let machines = Arc::clone(&machines);
        calls.spawn(async move {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            // A daemon that died wants no answer.
            if stream.read_line(&mut line).await.unwrap_or_default() == 0 {
                return;
            }
            let call = serde_json::from_str(&line).expect("a call");
            let mut nothing = [0];
            tokio::select! {
                answer = act(&machines, call) => {
                    let answer = serde_json::to_vec(&answer).expect("JSON");
                    let _ = stream.get_mut().write_all(&answer).await;
                }
                _ = stream.read(&mut nothing) => {}
            }
        });
        while calls.try_join_next().is_some() {}
    }
}

async fn act(machines: &FakeHypervisor, call: Call) -> Result<Value, String> {
    let told = |error: &dyn std::error::Error| error.to_string();
    let done = |outcome: Result<(), HypervisorError>| outcome.map(|()| Value::Null).map_err(|error| told(&error));
    let failed = |error: GuestError| told(&error);
    match call {
        Call::Life => std::future::pending().await,
        Call::List => machines.list().await.map(|vms| json!(vms)).map_err(|error| told(&error)),
        Call::Clone(vm) => done(machines.clone_vm(&spec(vm)).await),
        Call::Boot(vm) => done(machines.boot(&spec(vm)).await),
        Call::Presence(vm) => Ok(json!(match machines.presence(vm).await {
            Presence::Absent => "absent",
            Presence::Dormant => "dormant",
            Presence::Running => "running",
        })),
        Call::Ended(vm) => {
            machines.ended(vm).await;
            Ok(Value::Null)
        }
        Call::Destroy(vm) => done(machines.destroy(vm).await),
        Call::Ready(vm) => machines.guest(vm).ready().await.map(|()| Value::Null).map_err(failed),
        Call::Reached(vm, targets) => {
            machines.guest(vm).reached(&targets).await.map(|reached| json!(reached)).map_err(failed)
        }
        Call::Probe(vm, runner) => machines.guest(vm).probe(&runner).await.map_err(failed).map(|probe| match probe {
            RunnerProbe::Absent => json!("absent"),
            RunnerProbe::Alive => json!("alive"),
            RunnerProbe::Exited(status) => json!(status),
            RunnerProbe::Lost => json!("lost"),
        }),
        Call::Start(vm, start) => {
            let Start { name, registered_name, jit_config, setup_info } = start;
            let start = RunnerStart { name, registered_name, jit_config: jit_config.into(), setup_info };
            machines.guest(vm).start(start).await.map(|()| Value::Null).map_err(failed)
        }
        Call::Wait(vm, runner) => {
            machines.guest(vm).wait(&runner).await.map(|end| json!([end.status, end.too_old])).map_err(failed)
        }
        Call::JobIsOver(vm, runner) => {
            machines.guest(vm).job_is_over(&runner).await;
            Ok(Value::Null)
        }
    }
}

/// Pretended machines are made of their id alone.
fn spec(id: VmId) -> VmSpec {
    VmSpec {
        id,
        slot: 0,
        image: PathBuf::new(),
        cpus: 1,
        memory: Bytes(0),
        disk_free: Bytes(0),
        display: Display::default(),
    }
}

/// The machines as the daemon sees them.
pub struct Remote {
    socket: PathBuf,
}

impl Remote {
    pub const fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Tells the test that the daemon is up, and resolves when there is no test any more.
    pub async fn until_the_test_is_gone(&self) {
        let _: Result<Value, String> = self.call(&Call::Life).await;
    }

    async fn call<T: DeserializeOwned>(&self, call: &Call) -> Result<T, String> {
        let answer = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            let mut line = serde_json::to_vec(call)?;
            line.push(b'\n');
            stream.write_all(&line).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = answer.await.map_err(|error| error.to_string())?;
        serde_json::from_slice::<Result<T, String>>(&answer).map_err(|error| error.to_string())?
    }

    async fn step(&self, call: Call) -> Result<(), HypervisorError> {
        self.call::<()>(&call).await.map_err(HypervisorError::Process)
    }
}

#[async_trait::async_trait]
impl Hypervisor for Remote {
    async fn clone_vm(&self, spec: &VmSpec) -> Result<(), HypervisorError> {
        self.step(Call::Clone(spec.id)).await
    }

    async fn boot(&self, spec: &VmSpec) -> Result<(), HypervisorError> {
        self.step(Call::Boot(spec.id)).await
    }

    async fn presence(&self, vm: VmId) -> Presence {
        match self.call::<String>(&Call::Presence(vm)).await.expect("the test answers").as_str() {
            "running" => Presence::Running,
            "dormant" => Presence::Dormant,
            _ => Presence::Absent,
        }
    }

    async fn ended(&self, vm: VmId) {
        let _ = self.call::<()>(&Call::Ended(vm)).await;
    }

    async fn destroy(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.step(Call::Destroy(vm)).await
    }

    async fn list(&self) -> Result<Vec<VmId>, HypervisorError> {
        self.call(&Call::List).await.map_err(HypervisorError::Process)
    }

    fn guest(&self, vm: VmId) -> Arc<dyn Guest> {
        Arc::new(RemoteGuest { vm, machines: Self { socket: self.socket.clone() } })
    }
}

/// The inside of one.
struct RemoteGuest {
    vm: VmId,
    machines: Remote,
}

#[async_trait::async_trait]
impl Guest for RemoteGuest {
    async fn ready(&self) -> Result<(), GuestError> {
        self.machines.call(&Call::Ready(self.vm)).await.map_err(GuestError::Unreachable)
    }

    async fn reached(&self, targets: &[SocketAddrV4]) -> Result<Vec<SocketAddrV4>, GuestError> {
        self.machines.call(&Call::Reached(self.vm, targets.to_vec())).await.map_err(GuestError::Unreachable)
    }

    async fn probe(&self, runner: &str) -> Result<RunnerProbe, GuestError> {
        let call = Call::Probe(self.vm, runner.to_owned());
        let answer: Value = self.machines.call(&call).await.map_err(GuestError::Unreachable)?;
        Ok(match (answer.as_str(), answer.as_i64()) {
            (Some("alive"), _) => RunnerProbe::Alive,
            (Some("lost"), _) => RunnerProbe::Lost,
            (_, Some(status)) => RunnerProbe::Exited(i32::try_from(status).expect("a status")),
            _ => RunnerProbe::Absent,
        })
    }

    async fn start(&self, start: RunnerStart) -> Result<(), GuestError> {
        let start = Start {
            name: start.name,
            registered_name: start.registered_name,
            jit_config: start.jit_config.expose_secret().to_owned(),
            setup_info: start.setup_info,
        };
        self.machines.call(&Call::Start(self.vm, start)).await.map_err(GuestError::Failed)
    }

    async fn wait(&self, runner: &str) -> Result<RunnerEnd, GuestError> {
        let call = Call::Wait(self.vm, runner.to_owned());
        let (status, too_old) = self.machines.call(&call).await.map_err(GuestError::Unreachable)?;
        Ok(RunnerEnd { status, too_old })
    }

    async fn job_is_over(&self, runner: &str) {
        let _ = self.machines.call::<()>(&Call::JobIsOver(self.vm, runner.to_owned())).await;
    }
}
