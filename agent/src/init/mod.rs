//! PID 1 of a minimal Linux guest: brings the machine up as the kernel's command line tells, runs
//! the agent as a child of its own, collects orphans, and powers off at SIGTERM or SIGUSR2.
//!
//! | command line | meaning |
//! |---|---|
//! | `flyci.port=NAME` | the virtio-serial port to serve; without it the agent serves vsock |
//! | `flyci.modules=A,B` | kernel modules `/lib/modules/A.ko`, loaded in this order |
//! | `flyci.root=DEVICE` | an ext4 file system that becomes the root, writable, grown to its disk's size |
//! | `flyci.data=DEVICE` | a runner's disk, mounted read-only on `/opt/runner` |
//! | `flyci.net=ADDRESS/PREFIX,GATEWAY,DNS` | the first network card's static address (IPv4) |
//!
//! A fault is told on the console and the rest is done all the same: only the host knows which part
//! a job needs, and a guest whose agent answers can be asked.

mod cmdline;
mod grow;
mod mounts;
mod net;

use crate::prepare::chain;
use cmdline::CmdLine;
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, sync};
use std::convert::Infallible;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

/// How long processes have to end by themselves at power-off.
const FAREWELL: Duration = Duration::from_secs(2);

/// How often it is looked whether they did.
const LOOK: Duration = Duration::from_millis(20);

/// Pause before the agent is started again, should it end.
const RESTART: Duration = Duration::from_millis(200);

/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What could not be done.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}")]
struct InitError {
    doing: String,
    #[source]
    source: std::io::Error,
}

/// Names what was being done when a call failed.
trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, InitError>;
}

impl<T, E: Into<std::io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, InitError> {
        self.map_err(|source| InitError { doing: what(), source: source.into() })
    }
}

/// Tells a fault on the console.
fn told(done: Result<(), InitError>) {
    if let Err(error) = done {
        eprintln!("flyci-agent: {}", chain(&error));
    }
}

/// Is PID 1 until the machine is off.
pub fn run() -> ! {
    // From here on these are waited for, not acted upon.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGUSR2] {
        signals.add(signal);
    }
    told(sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), None).doing(|| "block signals".into()));
    let cmdline = bring_up();
    serve_until_power_off(&cmdline, &signals);
    power_off()
}

/// Brings the machine up, as far as it can be.
fn bring_up() -> CmdLine {
    told(mounts::kernel_interfaces());
    let cmdline = match std::fs::read_to_string("/proc/cmdline") {
        Ok(text) => CmdLine::parse(&text),
        Err(error) => {
            told(Err(error).doing(|| "read the kernel's command line".into()));
            CmdLine::default()
        }
    };
    for module in &cmdline.modules {
        told(load(module));
    }
    if let Some(device) = &cmdline.root {
        told(mounts::switch_root(device).and_then(|()| grow::root(device)));
    }
    told(mounts::scratch());
    if let Some(device) = &cmdline.data {
        told(mounts::runner_disk(device));
    }
    told(net::loopback());
    if let Some(address) = &cmdline.net {
        told(net::card(address));
    }
    cmdline
}

/// Loads `/lib/modules/NAME.ko`. One that is there already is no fault.
fn load(name: &str) -> Result<(), InitError> {
    let path = PathBuf::from(format!("/lib/modules/{name}.ko"));
    let file = File::open(&path).doing(|| format!("open {}", path.display()))?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        // What the kernel says of a symbol that is not there.
        Err(error @ Errno::ENOENT) => {
            Err(error).doing(|| format!("load {}: a module that it needs is not loaded", path.display()))
        }
        Err(error) => Err(error).doing(|| format!("load {}", path.display())),
    }
}

/// Starts the agent, from the running program itself: its file may be out of reach by now.
fn start_agent(cmdline: &CmdLine) -> Result<Child, InitError> {
    let mut command = Command::new("/proc/self/exe");
    match &cmdline.port {
        Some(port) => command.args(["--virtio-port", port]),
        None => command.arg("--vsock"),
    };
    let home = if Path::new("/root").is_dir() { "/root" } else { "/" };
    command
        .arg("--machine")
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", home)
        .current_dir(home)
        .spawn()
        .doing(|| "start the agent".into())
}

fn serve_until_power_off(cmdline: &CmdLine, signals: &SigSet) {
    let mut agent = None;
    loop {
        if agent.is_none() {
            match start_agent(cmdline) {
                Ok(child) => agent = Some(Pid::from_raw(child.id().cast_signed())),
                Err(error) => {
                    told(Err(error));
                    std::thread::sleep(RESTART);
                    continue;
                }
            }
        }
        if let Ok(Signal::SIGTERM | Signal::SIGUSR2) = signals.wait() {
            return;
        }
        if collect(agent) {
            eprintln!("flyci-agent: the agent ended; it is started again");
            agent = None;
            std::thread::sleep(RESTART);
        }
    }
}

/// Collects every process that has ended: whether the agent was among them.
fn collect(agent: Option<Pid>) -> bool {
    let mut ended = false;
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        match status.pid() {
            Some(pid) => ended |= Some(pid) == agent,
            None => break,
        }
    }
    ended
}

/// Ends all processes, writes out what is to be written, and turns the machine off.
fn power_off() -> ! {
    const EVERYBODY: Pid = Pid::from_raw(-1);
    let looks = FAREWELL.as_millis() / LOOK.as_millis();
    // There may be nobody left to be told.
    let _ = kill(EVERYBODY, Signal::SIGTERM);
    for _ in 0..looks {
        collect(None);
        if waitpid(None, Some(WaitPidFlag::WNOHANG)) == Err(Errno::ECHILD) {
            break;
        }
        std::thread::sleep(LOOK);
    }
    let _ = kill(EVERYBODY, Signal::SIGKILL);
    mounts::make_read_only();
    sync();
    let failed: Result<Infallible, Errno> = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("flyci-agent: cannot power off: {}", failed.err().unwrap_or(Errno::UnknownErrno));
    loop {
        std::thread::park();
    }
}
