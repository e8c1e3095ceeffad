//! `flyci demo`: the whole way of a job on real input, for somebody who has nothing but this program. A simulated
//! GitHub, a daemon of its own with its database, real VMs; jobs of two organisations; and at the end evidence.
//!
//! `stage` sets everything up, `daemon` runs the daemon as a child, `story` says what the jobs are, `live` shows
//! what happens, `search` looks for what must not be anywhere, `evidence` says what was found. In a feature of its
//! own, since it brings a GitHub with it.

mod daemon;
mod evidence;
mod image;
mod live;
pub mod pretend;
pub mod search;
mod stage;
mod story;

use super::args::{DemoArgs, DemoHypervisor};
use super::exit::{CliError, DONE, FAILED};
use super::human::span;
use super::out::{self, Look, Tone};
use super::progress::Line;
use crate::api::{Done, Kill, Page, Tenant, Vm, VmsQuery};
use crate::errors::chain;
use daemon::Daemon;
use evidence::Proof;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use search::{Findings, Needle};
use stage::Stage;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use story::Story;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::interval;

/// How long the accounts' installations may take to be known.
const APPROVAL_DEADLINE: Duration = Duration::from_secs(30);
/// Between looks at processes' arguments and environments.
const PROCESS_LOOKS: Duration = Duration::from_millis(500);
/// Between looks of a short wait.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How long vms may take to be destroyed when the demo is interrupted.
const CLEANUP_DEADLINE: Duration = Duration::from_secs(20);

/// Why the demo could not be shown to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Postgres refuses root, and so does the demo.
    #[error(
        "the demo does not run as root: its Postgres refuses to\n  run it as an ordinary user, or by script/demo, \
         which finds one"
    )]
    Root,
    /// The small runner for guests was not built.
    #[error(
        "no {} for guests found (at {} or where cargo leaves it)\n  script/demo builds it; or: cargo build -p \
         fake-github --bin fake-runner --no-default-features --features guest --target {target}\n  or name a runner's \
         directory with --runner",
        "fake-runner",
        .looked_at.display()
    )]
    NoRunner { looked_at: PathBuf, target: String },
    /// The machine did not do what was asked.
    #[error("cannot {doing}")]
    Io {
        doing: String,
        #[source]
        source: std::io::Error,
    },
    /// The daemon ended by itself.
    #[error("the daemon ended ({status}); the end of its log:\n{tail}")]
    DaemonEnded { status: String, tail: String },
    /// The daemon did not become ready.
    #[error("the daemon was not ready after {seconds} s; the end of its log:\n{tail}")]
    NotReady { seconds: u64, tail: String },
    /// The daemon did not end.
    #[error("the daemon did not end within {seconds} s of being told to; the end of its log:\n{tail}")]
    NotStopped { seconds: u64, tail: String },
    /// An account was not known in time.
    #[error("{account} installed the App, and the daemon did not hear of it within {seconds} s")]
    NotInstalled { account: String, seconds: u64 },
    /// The jobs took too long.
    #[error("after {seconds} s these were not over: {open}")]
    TooSlow { seconds: u64, open: String },
    /// Somebody pressed Ctrl-C.
    #[error("it was interrupted; its vms and its daemon are gone")]
    Interrupted,
    /// The daemon did not do what was asked.
    #[error("the daemon could not be asked")]
    Ask(#[source] CliError),
    /// A part failed, and says itself what to do.
    #[error("{what}")]
    Part {
        what: &'static str,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl DemoError {
    fn part(what: &'static str, source: impl Error + Send + Sync + 'static) -> Self {
        Self::Part { what, source: Box::new(source) }
    }
}

/// The stage with a daemon on it.
pub struct Running<'a> {
    stage: &'a Stage,
    daemon: Daemon,
}

impl Running<'_> {
    /// An error if the daemon has ended.
    fn alive(&mut self) -> Result<(), DemoError> {
        match self.daemon.ended()? {
            None => Ok(()),
            Some(status) => Err(DemoError::DaemonEnded { status: status.to_string(), tail: self.daemon.tail() }),
        }
    }
}

/// Runs `flyci demo`.
pub async fn run(args: &DemoArgs, look: &Look) -> Result<u8, CliError> {
    let begun = Instant::now();
    let proofs = show(args, look).await.map_err(|error| CliError::Failed(chain(&error).to_string()))?;
    let failed = proofs.iter().filter(|proof| !proof.holds).count();
    let took = span(begun.elapsed());
    if failed == 0 {
        out::print(&format!("\n{} in {took}.\n", look.paint(Tone::Good, "All of it holds")))?;
        Ok(DONE)
    } else {
        let broken = format!("{failed} of {} do not hold", proofs.len());
        out::print(&format!("\n{} ({took}).\n", look.paint(Tone::Bad, &broken)))?;
        Ok(FAILED)
    }
}

async fn show(args: &DemoArgs, look: &Look) -> Result<Vec<Proof>, DemoError> {
    if geteuid().is_root() {
        return Err(DemoError::Root);
    }
    let line = Line::start("setting the stage");
    let stage = tokio::select! {
        stage = Stage::set(args, &line) => stage?,
        () = interruption() => return Err(DemoError::Interrupted),
    };
    line.say("starting the daemon: HTTPS, a private Postgres, the host");
    let mut running = start(&stage, args.hypervisor)?;
    let outcome = tokio::select! {
        outcome = play(&mut running, args.hypervisor, line, look) => outcome,
        () = interruption() => Err(DemoError::Interrupted),
    };
    match outcome {
        Ok(proofs) => {
            if args.keep {
                say(&format!("\nkept: {} (daemon.log, data/)\n", stage.root.path().display()))?;
            }
            Ok(proofs)
        }
        Err(error) => {
            clean_up(&mut running).await;
            Err(error)
        }
    }
}

/// Ctrl-C, SIGTERM, or the terminal's end.
async fn interruption() {
    let listen = |kind| signal(kind).expect("the signals of a process can be listened to");
    let mut term = listen(SignalKind::terminate());
    let mut hangup = listen(SignalKind::hangup());
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = term.recv() => {}
        _ = hangup.recv() => {}
    }
}

fn start(stage: &Stage, hypervisor: DemoHypervisor) -> Result<Running<'_>, DemoError> {
    let arguments: &[&str] = match hypervisor {
        DemoHypervisor::Qemu => &["serve"],
        DemoHypervisor::Fake => &["serve", "--pretend"],
    };
    let daemon = Daemon::start(arguments, &stage.config, stage.socket.clone(), stage.log.clone())?;
    Ok(Running { stage, daemon })
}

fn introduce(running: &Running<'_>, hypervisor: DemoHypervisor, look: &Look) -> Result<(), DemoError> {
    let stage = running.stage;
    let vms = match hypervisor {
        DemoHypervisor::Qemu => format!("real QEMU VMs, {} at once", stage::SLOTS),
        DemoHypervisor::Fake => "pretended VMs: nothing of a job is run (--hypervisor qemu does)".to_owned(),
    };
    say(&format!(
        "{}\n  GitHub    simulated, at {}\n  daemon    process {}, webhooks over HTTPS, a private Postgres\n  VMs       \
         {vms}\n  label     runs-on: {}\n\n",
        look.paint(Tone::Strong, "flyci demo"),
        stage.github.url(),
        running.daemon.pid().unwrap_or_default(),
        stage.label
    ))
}

/// From the daemon's first answer to the evidence.
async fn play(
    running: &mut Running<'_>,
    hypervisor: DemoHypervisor,
    line: Line,
    look: &Look,
) -> Result<Vec<Proof>, DemoError> {
    running.daemon.ready().await?;
    drop(line);
    introduce(running, hypervisor, look)?;
    let installations = story::install(&running.stage.github);
    for account in story::ACCOUNTS {
        say(&format!("  {}\n", approve(running, account).await?))?;
    }
    say("\n")?;
    let is_real = hypervisor == DemoHypervisor::Qemu;
    let story = Story::begin(&running.stage.github, &installations, running.stage.label, is_real);
    let needles = evidence::needles(&story, is_real);
    let watcher = is_real.then(|| ProcessWatcher::start(needles.clone()));
    let seen = live::watch(running, &story, look).await?;
    let stage = running.stage;
    let (summary, left) = (live::summary(&seen), evidence::left(&seen, look));
    say(&format!("\n{}\n\nWhat is left of the jobs:\n{left}\n", look.paint(Tone::Strong, &summary)))?;
    say(&format!("{}\n", look.paint(Tone::Strong, "Evidence")))?;
    let mut proofs = Proofs { all: Vec::new(), look };
    proofs.add(evidence::ends(stage, &story, &seen))?;
    proofs.add(evidence::one_vm_per_job(&seen))?;
    proofs.add(evidence::deliveries(stage).await)?;
    if is_real {
        proofs.add(evidence::masked(stage, &story))?;
        proofs.add(evidence::spy(stage, &story))?;
    }
    proofs.add(evidence::no_runner(stage, &seen).await)?;
    proofs.add(evidence::no_vm(running).await?)?;
    if let Some(watcher) = watcher {
        proofs.add(watcher.stop(running).await)?;
    }
    end(running, &needles, is_real, &mut proofs).await?;
    Ok(proofs.all)
}

/// Stops the daemon, and looks at what is left when nothing runs any more.
async fn end(
    running: &mut Running<'_>,
    needles: &[Needle],
    are_real: bool,
    proofs: &mut Proofs<'_>,
) -> Result<(), DemoError> {
    let begun = Instant::now();
    let status = running.daemon.stop().await?;
    proofs.add(evidence::stopped(status, begun.elapsed(), running.stage))?;
    let line = Line::start("searching every file that is left");
    let in_files = evidence::in_files(running.stage, needles, are_real)?;
    drop(line);
    in_files.into_iter().try_for_each(|proof| proofs.add(proof))
}

/// Proofs, shown as they come.
struct Proofs<'a> {
    all: Vec<Proof>,
    look: &'a Look,
}

impl Proofs<'_> {
    fn add(&mut self, proof: Proof) -> Result<(), DemoError> {
        say(&evidence::lines(&proof, self.look))?;
        self.all.push(proof);
        Ok(())
    }
}

/// Approves an account as soon as the daemon knows it, as an operator does.
async fn approve(running: &mut Running<'_>, account: &str) -> Result<String, DemoError> {
    let deadline = tokio::time::Instant::now() + APPROVAL_DEADLINE;
    let mut looks = interval(LOOK_INTERVAL);
    loop {
        looks.tick().await;
        running.alive()?;
        let admin = &running.daemon.admin;
        let tenants: Page<Tenant> = admin.get("/tenants", &()).await.map_err(DemoError::Ask)?;
        if tenants.items.iter().any(|tenant| tenant.account.as_deref() == Some(account)) {
            let path = format!("/tenants/{}/approve", super::client::segment(account));
            let _: Done = admin.post(&path, &()).await.map_err(DemoError::Ask)?;
            return Ok(format!("{account} installed the App, and was approved (flyci tenants approve {account})"));
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(DemoError::NotInstalled { account: account.to_owned(), seconds: APPROVAL_DEADLINE.as_secs() });
        }
    }
}

fn say(text: &str) -> Result<(), DemoError> {
    out::print(text).map_err(|error| DemoError::Ask(error.into()))
}

/// Looks at all processes again and again, while jobs run.
struct ProcessWatcher {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(u64, Findings)>,
}

impl ProcessWatcher {
    fn start(needles: Vec<Needle>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let (mut looks, mut all) = (0, Findings::default());
            let mut times = interval(PROCESS_LOOKS);
            while !stopped.load(Ordering::Relaxed) {
                times.tick().await;
                let needles = needles.clone();
                let look = tokio::task::spawn_blocking(move || search::in_processes(&search::processes(), &needles));
                let Ok(findings) = look.await else { break };
                looks += 1;
                all.looked_at += findings.looked_at;
                all.bytes += findings.bytes;
                all.found.extend(findings.found);
            }
            (looks, all)
        });
        Self { stop, task }
    }

    /// What was seen, and how often it was looked. A watcher that broke saw nothing, and proves nothing. That
    /// arguments can be seen at all is proved by the daemon's own.
    async fn stop(self, running: &Running<'_>) -> Proof {
        self.stop.store(true, Ordering::Relaxed);
        let (looks, findings) = self.task.await.unwrap_or_default();
        let is_daemon = |process: &search::Process| Some(process.pid) == running.daemon.pid();
        let processes = search::processes();
        let control = processes.iter().any(|process| is_daemon(process) && process.names(&running.stage.config));
        evidence::in_processes(looks, &findings, control)
    }
}

/// After a failure: destroys the vms, ends the daemon, and whatever of theirs is left.
async fn clean_up(running: &mut Running<'_>) {
    let line = Line::start("cleaning up");
    let _ = tokio::time::timeout(CLEANUP_DEADLINE, destroy_all(running)).await;
    let _ = running.daemon.stop().await;
    let processes = search::processes();
    for process in evidence::machines(&processes, &running.stage.data_dir) {
        if let Ok(pid) = i32::try_from(process.pid) {
            // Its arguments name the demo's own directory, which is new and random: it is ours.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    drop(line);
}

async fn destroy_all(running: &mut Running<'_>) -> Result<(), CliError> {
    let admin = &running.daemon.admin;
    let mut looks = interval(LOOK_INTERVAL);
    loop {
        looks.tick().await;
        let query = VmsQuery { all: false, limit: None, after: None };
        let living: Page<Vm> = admin.get("/vms", &query).await?;
        if living.items.is_empty() {
            return Ok(());
        }
        for vm in living.items.iter().filter(|vm| vm.kill_asked.is_none() && vm.stopping_at.is_none()) {
            let path = format!("/vms/{}/kill", super::client::segment(&vm.id));
            let _: Done = admin.post(&path, &Kill { reason: "the demo was ended".to_owned() }).await?;
        }
    }
}
