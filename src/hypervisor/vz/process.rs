//! The process of one VM: `flyci vm --directory DIR`, started by a daemon and by nobody else.
//!
//! It lives in a session of its own under the vm's lock, which is its standard input, reads the recipe, and serves the
//! machine until that has ended. It never ends without a word: [`Death`] is left in the directory. It knows nothing of
//! jobs, GitHub or the database, and holds no secret but what a daemon sends through the guest channel.

use super::end::{Cause, Death};
use super::machine::Vm;
use super::recipe::{FORMAT, RECIPE_FILE, Recipe};
use super::server::Sockets;
use crate::errors::chain;
use crate::hypervisor::record::{LOCK_FILE, lock_through};
use nix::sys::resource::{Resource, setrlimit};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Most bytes of a recipe.
const RECIPE_BYTES: u64 = 64 << 10;

/// Runs the VM of a directory to its end; whether that was as it was told to.
pub fn run(directory: &Path) -> bool {
    let lock = match enter(directory) {
        Ok(lock) => lock,
        // Another process may be the vm's: its directory is not written to, and the log has the word.
        Err(death) => return tell(&death),
    };
    if let Err(error) = std::env::set_current_dir(directory) {
        return leave(directory, &setup("enter the vm's directory", &error));
    }
    on_main_thread(move || {
        // From here on the working directory is the vm's, and this process its only one.
        let here = Path::new("");
        let served = std::panic::catch_unwind(|| served(here));
        let death = served.unwrap_or_else(|_| Death::new(Cause::Panic, "a fault of the program: the log has more"));
        let well = leave(here, &death);
        drop(lock);
        well
    })
}

/// Says in the log how it ended; whether that was as it was told to.
fn tell(death: &Death) -> bool {
    let well = matches!(death.cause, Cause::Stopped | Cause::PoweredOff);
    if well {
        tracing::info!(cause = ?death.cause, "the vm's process ends: {}", death.text);
    } else {
        tracing::error!(cause = ?death.cause, fault = ?death.fault, "the vm's process ends: {}", death.text);
    }
    well
}

/// Says it in the vm's directory too.
fn leave(directory: &Path, death: &Death) -> bool {
    if let Err(error) = death.leave(directory) {
        tracing::error!(%error, "why the vm's process ends cannot be left in its directory");
    }
    tell(death)
}

fn setup(doing: &str, error: &io::Error) -> Death {
    Death::new(Cause::Setup, format!("cannot {doing}: {error}"))
}

/// Makes this process the vm's: no core dumps, a session of its own, its lock.
fn enter(directory: &Path) -> Result<File, Death> {
    // The limit can always be lowered; were it refused, the process would still be of use.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    // A process of the daemon's session would get its signals. One that leads a session already has what it needs.
    if let Err(error) = nix::unistd::setsid()
        && nix::unistd::getsid(None) != Ok(nix::unistd::getpid())
    {
        return Err(setup("begin a session of its own", &error.into()));
    }
    lock(directory)
}

/// The vm's lock: the standard input, which the daemon or launchd has opened. Who inherits a locked file holds the lock
/// already; who got the file alone takes it now.
fn lock(directory: &Path) -> Result<File, Death> {
    let opened = || -> io::Result<(File, bool)> {
        let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let (is, wanted) = (input.metadata()?, fs::metadata(directory.join(LOCK_FILE))?);
        let same = (is.dev(), is.ino()) == (wanted.dev(), wanted.ino());
        Ok((input, same))
    };
    let (input, same) = opened().map_err(|error| setup("find the vm's lock", &error))?;
    if !same {
        return Err(Death::new(Cause::Setup, "standard input is not the vm's lock: a daemon starts this command"));
    }
    match lock_through(&input) {
        Ok(true) => Ok(input),
        Ok(false) => Err(Death::new(Cause::Setup, "another process of this vm lives: it holds the lock")),
        Err(error) => Err(setup("take the vm's lock", &error)),
    }
}

fn recipe(directory: &Path) -> Result<Recipe, Death> {
    let file = directory.join(RECIPE_FILE);
    let length = fs::metadata(&file).map_err(|error| setup("find the recipe", &error))?.len();
    if length > RECIPE_BYTES {
        return Err(Death::new(Cause::Setup, format!("the recipe has {length} bytes; it may have {RECIPE_BYTES}")));
    }
    let text = fs::read(&file).map_err(|error| setup("read the recipe", &error))?;
    let recipe: Recipe = serde_json::from_slice(&text)
        .map_err(|error| Death::new(Cause::Setup, format!("the recipe cannot be read: {error}")))?;
    if recipe.format != FORMAT {
        let text = format!("the recipe has format {}, and this flyci reads format {FORMAT}", recipe.format);
        return Err(Death::new(Cause::Setup, text));
    }
    Ok(recipe)
}

/// Serves the machine until it has ended.
fn served(here: &Path) -> Death {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return setup("start", &error),
    };
    runtime.block_on(async {
        let served = async {
            let recipe = recipe(here)?;
            let machine = open(here, &recipe)?;
            let sockets = Sockets::bind(here).map_err(|error| setup("bind the vm's sockets", &error))?;
            Ok::<_, Death>(Death::from(sockets.serve(machine, recipe.agent_port).await))
        };
        tokio::select! {
            death = served => death.unwrap_or_else(|death| death),
            death = told_to_end() => death,
        }
    })
}

/// Resolves when a signal tells this process to end. Its machine ends with it, as when a plug is pulled.
async fn told_to_end() -> Death {
    let watch = |kind| signal(kind).map_err(|error| setup("watch signals", &error));
    let (mut terminate, mut interrupt) = match (watch(SignalKind::terminate()), watch(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(death), _) | (_, Err(death)) => return death,
    };
    let name = tokio::select! { _ = terminate.recv() => "SIGTERM", _ = interrupt.recv() => "SIGINT" };
    Death::new(Cause::Signal, format!("{name} told it to end"))
}

/// The machine of a recipe.
fn open(here: &Path, recipe: &Recipe) -> Result<Arc<dyn Vm>, Death> {
    #[cfg(feature = "demo")]
    if let Some(stand_in) = super::stand_in::StandIn::open(here) {
        return Ok(stand_in);
    }
    #[cfg(not(feature = "demo"))]
    let _ = here;
    framework(recipe).map_err(|fault| {
        let text = chain(&fault).to_string();
        Death { fault: Some(fault.reason), ..Death::new(Cause::Fault, text) }
    })
}

#[cfg(target_os = "macos")]
fn framework(recipe: &Recipe) -> Result<Arc<dyn Vm>, super::fault::Fault> {
    super::framework::open(recipe)
}

#[cfg(not(target_os = "macos"))]
fn framework(_: &Recipe) -> Result<Arc<dyn Vm>, super::fault::Fault> {
    Err(super::fault::Fault {
        reason: super::fault::FaultReason::Unfit,
        detail: "Virtualization.framework is on Macs only".to_owned(),
    })
}

/// Runs the work beside the main thread's run loop, from which the framework's callbacks need sources.
#[cfg(target_os = "macos")]
fn on_main_thread(work: impl FnOnce() -> bool + Send + 'static) -> bool {
    std::thread::spawn(move || {
        let well = work();
        #[expect(clippy::disallowed_methods, reason = "the main thread runs the run loop, which never returns")]
        std::process::exit(i32::from(!well));
    });
    super::framework::run_loop()
}

/// Runs the work: only the framework needs a run loop.
#[cfg(not(target_os = "macos"))]
fn on_main_thread(work: impl FnOnce() -> bool) -> bool {
    work()
}
