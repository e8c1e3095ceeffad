//! A guest whose agent is reached over a socket on this machine.

use super::call::{Answer, Call, Framing, call, connection};
use super::{Guest, GuestError, RunnerEnd, RunnerProbe, RunnerStart};
use flyci_agent::prepare::{self, ENTROPY_BYTES_MIN, Preparation};
use secrecy::ExposeSecret;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

/// How long `ready` looks for an agent before it says that there is none yet.
const READY: Duration = Duration::from_secs(30);

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// How long preparing the machine may take.
const PREPARE: Duration = Duration::from_secs(15);

/// How long a probe may take: it waits up to five seconds for a start that is under way.
const PROBE: Duration = Duration::from_secs(30);

/// How long trying what the guest reaches may take: all are tried at once, for three seconds each.
const REACH: Duration = Duration::from_secs(20);

/// How long a start may take: the runner may have to be copied.
const START: Duration = Duration::from_secs(300);

/// How long one wait lasts before it is made anew, so that a call that was lost is noticed.
const WAIT: Duration = Duration::from_secs(600);

/// Most bytes of a JIT configuration; GitHub's are a few KiB.
const JIT_BYTES: usize = 32 * 1024;

/// Most bytes of `.setup_info`.
const SETUP_INFO_BYTES: usize = 16 * 1024;

/// Longest name of a runner, in bytes.
const NAME_BYTES: usize = 128;

/// The status of a runner that ended without leaving one: it was killed with all that watched it.
const NO_STATUS: i32 = -1;

/// The shell that every guest has.
const SHELL: &str = "/bin/sh";

macro_rules! script {
    ($name:literal) => {
        concat!(include_str!("scripts/common.sh"), include_str!(concat!("scripts/", $name)))
    };
}

pub(super) const START_SCRIPT: &str = include_str!("scripts/start.sh");
pub(super) const WATCH_SCRIPT: &str = script!("watch.sh");
const PROBE_SCRIPT: &str = script!("probe.sh");
const WAIT_SCRIPT: &str = script!("wait.sh");
const REACH_SCRIPT: &str = include_str!("scripts/reach.sh");
const CLOCK_SCRIPT: &str = include_str!("scripts/clock.sh");

/// What is particular to a guest.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// The name that the machine is given.
    pub hostname: String,
    /// Directory in the guest that is made when a runner is begun: at most once in its life. On a
    /// disk, since a runner that cannot be used where it is gets copied there.
    pub state: String,
    /// Where a runner is looked for in the guest, in this order; `~/` is the agent's home.
    pub runner_directories: Vec<String>,
}

impl Default for GuestOptions {
    fn default() -> Self {
        let places = ["/opt/runner", "/opt/actions-runner", "~/actions-runner"];
        Self {
            hostname: "runner".to_owned(),
            state: "/var/tmp/flyci".to_owned(),
            runner_directories: places.map(str::to_owned).to_vec(),
        }
    }
}

/// A guest behind a Unix socket of this machine: QEMU's port, or the vsock bridge of a Mac.
///
/// It keeps one connection. A port takes one at a time, so there must be one of these per vm.
pub struct AgentGuest {
    socket: PathBuf,
    framing: Framing,
    options: GuestOptions,
    connection: OnceLock<Channel>,
}

impl AgentGuest {
    /// A guest that nothing was asked yet.
    pub fn new(socket: PathBuf, framing: Framing, options: GuestOptions) -> Self {
        Self { socket, framing, options, connection: OnceLock::new() }
    }

    fn connection(&self) -> &Channel {
        self.connection.get_or_init(|| connection(&self.socket, self.framing))
    }

    async fn script(
        &self,
        script: &str,
        arguments: Vec<String>,
        input: Vec<u8>,
        deadline: Duration,
    ) -> Result<Answer, GuestError> {
        let fixed = ["-c", script, "flyci"].map(str::to_owned);
        let call_of = Call { program: SHELL, arguments: fixed.into_iter().chain(arguments).collect(), input, deadline };
        call(self.connection(), call_of).await
    }

    /// Sets the clock and seeds the randomness: at once by our agent, by tools for another.
    async fn prepare(&self) -> Result<(), GuestError> {
        let preparation = Preparation {
            unix_nanos: u64::try_from(since_epoch().as_nanos()).unwrap_or(u64::MAX),
            entropy: rand::random::<[u8; ENTROPY_BYTES_MIN * 2]>().to_vec(),
            hostname: self.options.hostname.clone(),
        };
        let call_of = Call {
            program: prepare::RESERVED,
            arguments: vec!["prepare".to_owned()],
            input: preparation.to_lines().into_bytes(),
            deadline: PREPARE,
        };
        match call(self.connection(), call_of).await {
            Ok(Answer { code: 0, .. }) => Ok(()),
            Err(error @ GuestError::Unreachable(_)) => Err(error),
            // How a shell, and how an agent tells that there is no such command.
            Ok(Answer { code: 127, .. }) | Err(GuestError::Failed(_)) => self.prepare_by_tools(preparation).await,
            Ok(Answer { code, .. }) => {
                Err(GuestError::Failed(format!("it could not set clock, randomness and host name (exit code {code})")))
            }
        }
    }

    async fn prepare_by_tools(&self, preparation: Preparation) -> Result<(), GuestError> {
        let seconds = since_epoch().as_secs().to_string();
        let stamp = chrono::Utc::now().format("%m%d%H%M%Y.%S").to_string();
        let answer = self.script(CLOCK_SCRIPT, vec![seconds, stamp], preparation.entropy, PREPARE);
        match answer.await?.code {
            0 => Ok(()),
            code => Err(GuestError::Failed(format!("its clock is off and cannot be set (exit code {code})"))),
        }
    }

    fn marker(&self, runner: &str) -> Vec<String> {
        vec![self.options.state.clone(), runner.to_owned()]
    }
}

#[async_trait::async_trait]
impl Guest for AgentGuest {
    async fn ready(&self) -> Result<(), GuestError> {
        let begun = Instant::now();
        loop {
            match self.prepare().await {
                Err(GuestError::Unreachable(_)) if begun.elapsed() < READY => sleep(LOOK).await,
                done => return done,
            }
        }
    }

    async fn reached(&self, targets: &[SocketAddrV4]) -> Result<Vec<SocketAddrV4>, GuestError> {
        let words = |target: &SocketAddrV4| [target.ip().to_string(), target.port().to_string()];
        let answer = self.script(REACH_SCRIPT, targets.iter().flat_map(words).collect(), Vec::new(), REACH).await?;
        let said = std::str::from_utf8(&answer.stdout).unwrap_or_default();
        let untried = || GuestError::Failed(format!("it did not tell what it reaches (exit code {})", answer.code));
        let numbers = said.strip_suffix("done\n").ok_or_else(untried)?.lines();
        let reached = |number: &str| targets.get(number.parse::<usize>().ok()?).copied();
        numbers.map(|number| reached(number).ok_or_else(untried)).collect()
    }

    async fn probe(&self, runner: &str) -> Result<RunnerProbe, GuestError> {
        plain(runner)?;
        let answer = self.script(PROBE_SCRIPT, self.marker(runner), Vec::new(), PROBE);
        told(&answer.await?).map(|told| told.0)
    }

    async fn start(&self, start: RunnerStart) -> Result<(), GuestError> {
        plain(&start.name)?;
        let jit = start.jit_config.expose_secret();
        if jit.len() > JIT_BYTES || !jit.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(GuestError::Failed("the JIT configuration is not base64 text".to_owned()));
        }
        if start.setup_info.len() > SETUP_INFO_BYTES {
            return Err(GuestError::Failed(format!(".setup_info is longer than {SETUP_INFO_BYTES} bytes")));
        }
        let input = format!("{} {jit}\n", jit.len()).into_bytes();
        let mut arguments = self.marker(&start.name);
        arguments.extend([start.setup_info, WATCH_SCRIPT.to_owned()]);
        arguments.extend(self.options.runner_directories.iter().cloned());
        match self.script(START_SCRIPT, arguments, input, START).await?.code {
            0 => Ok(()),
            code => Err(GuestError::Failed(not_started(code, &self.options))),
        }
    }

    async fn wait(&self, runner: &str) -> Result<RunnerEnd, GuestError> {
        plain(runner)?;
        loop {
            let begun = Instant::now();
            let answer = self.script(WAIT_SCRIPT, self.marker(runner), Vec::new(), WAIT);
            let answer = match answer.await {
                // Only this call was long: the connection says by itself when the guest is gone.
                Err(GuestError::Unreachable(_)) if begun.elapsed() >= WAIT => continue,
                answer => answer?,
            };
            return match told(&answer)? {
                (RunnerProbe::Exited(status), too_old) => Ok(RunnerEnd { status, too_old }),
                (RunnerProbe::Lost, _) => Ok(RunnerEnd { status: NO_STATUS, too_old: false }),
                (other, _) => Err(GuestError::Failed(format!("the runner did not end, but is {other:?}"))),
            };
        }
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Refuses a name that would be more than one directory's name in the guest.
fn plain(runner: &str) -> Result<(), GuestError> {
    let fits = (1..=NAME_BYTES).contains(&runner.len()) && !runner.starts_with('.');
    if fits && runner.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
        return Ok(());
    }
    Err(GuestError::Failed("the runner's name is no plain name".to_owned()))
}

/// Reads the line of the scripts' `how`: the state, and whether the runner was too old.
fn told(answer: &Answer) -> Result<(RunnerProbe, bool), GuestError> {
    let line = std::str::from_utf8(&answer.stdout).unwrap_or_default();
    let words: Vec<&str> = line.split_whitespace().collect();
    let probe = match words[..] {
        ["absent"] => RunnerProbe::Absent,
        ["alive"] => RunnerProbe::Alive,
        ["lost"] => RunnerProbe::Lost,
        ["exited", code, "yes" | "no"] if let Ok(code) = code.parse() => RunnerProbe::Exited(code),
        _ => {
            return Err(GuestError::Failed(format!("it did not tell how the runner does (exit code {})", answer.code)));
        }
    };
    Ok((probe, words.last() == Some(&"yes")))
}

/// What the start script's exit codes mean.
fn not_started(code: i32, options: &GuestOptions) -> String {
    match code {
        64 => "the JIT configuration arrived cut; nothing was begun".to_owned(),
        66 => format!("no runner in {}", options.runner_directories.join(", ")),
        70 => "the runner was begun but did not come up".to_owned(),
        73 => "a runner was begun in this guest before".to_owned(),
        74 => format!("the guest cannot write to {} or copy the runner", options.state),
        _ => format!("the start script failed (exit code {code})"),
    }
}
