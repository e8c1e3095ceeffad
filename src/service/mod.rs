//! What makes flyci a service of launchd or systemd: a plan, line by line, with the undo of each step.
//!
//! A plan is made of [`Settings`] alone and touches nothing; [`apply`] carries it out, or only tells what it would do.
//! The program lies under a versioned name and is put in place by a rename of its link, so that a running daemon and
//! its VMs keep the file that they were started from. Does not: configure flyci (`flyci setup`, the configuration).
//!
//! | file | plans |
//! |---|---|
//! | `launchd` | macOS: the user, the Mac's settings, signing, the property list |
//! | `systemd` | Linux: the user, the unit |

pub mod apply;
mod launchd;
mod systemd;

use crate::config::{Config, HypervisorKind};
use crate::doctor::{BootMode, System};
use std::path::{Path, PathBuf};

/// Where versions of the program lie.
const PROGRAMS: &str = "/usr/local/lib/flyci";
/// The link that names the version in use.
pub const PROGRAM: &str = "/usr/local/bin/flyci";
/// How long a daemon may take to stop, in seconds: its own deadline is 20.
const STOP_SECONDS: u32 = 60;
/// Files that a daemon may have open: a connection of every vm and client is one.
const OPEN_FILES: u32 = 65_536;

/// What a service does. The one that faces the internet and holds the App's key never runs in a logged-in session,
/// the one that owns VMs holds no key but its own: two services, two users.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Duty {
    /// Takes webhooks and speaks to GitHub.
    Gateway,
    /// Runs vms.
    Host,
    /// Both in one process.
    Both,
}

impl Duty {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Gateway, Self::Host, Self::Both];

    /// What a configuration's roles make.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        match (config.is_gateway(), config.is_host()) {
            (true, true) => Self::Both,
            (true, false) => Self::Gateway,
            (false, _) => Self::Host,
        }
    }

    /// The service's name: `flyci`, `flyci-gateway` or `flyci-host`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "flyci-gateway",
            Self::Host => "flyci-host",
            Self::Both => "flyci",
        }
    }

    const fn runs_vms(self) -> bool {
        matches!(self, Self::Host | Self::Both)
    }
}

/// What a plan is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// For which system.
    pub system: System,
    /// What the service does.
    pub duty: Duty,
    /// Whose processes it is; none: a user of its own is made.
    pub user: Option<String>,
    /// How a Mac comes up after a power cut.
    pub mode: BootMode,
    /// The configuration's file.
    pub config_file: PathBuf,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// True when vms may run by KVM.
    pub kvm: bool,
    /// The program to install.
    pub program: PathBuf,
    /// Its version.
    pub version: String,
    /// Who signs it on a Mac; `-`: nobody (ad hoc).
    pub identity: String,
    /// Whether the service is started.
    pub start: bool,
    /// Whether uninstalling takes the user and the data, too.
    pub purge: bool,
    /// Whether another of flyci's services is here: uninstalling leaves what both need.
    pub shared: bool,
}

impl Settings {
    /// The usual ones of a configuration.
    #[must_use]
    pub fn of(config: &Config, config_file: &Path, program: PathBuf) -> Self {
        Self {
            system: System::here(),
            duty: Duty::of(config),
            user: None,
            mode: BootMode::Unattended,
            config_file: config_file.to_owned(),
            data_dir: config.data_dir.clone(),
            kvm: config.is_host() && config.host.hypervisor == HypervisorKind::Qemu,
            program,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            identity: "-".to_owned(),
            start: true,
            purge: false,
            shared: false,
        }
    }

    /// The service's user.
    #[must_use]
    pub fn user(&self) -> String {
        self.user.clone().unwrap_or_else(|| match self.system {
            // Apple's convention for accounts that nobody logs in to; who owns VMs on a Mac is logged in.
            System::Mac if self.duty == Duty::Gateway => "_flyci_gateway".to_owned(),
            System::Mac => "flyci".to_owned(),
            System::Linux => self.duty.name().to_owned(),
        })
    }

    fn versioned(&self) -> PathBuf {
        Path::new(PROGRAMS).join(format!("flyci-{}", self.version))
    }
}

/// Who owns what a step makes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The system.
    Root,
    /// The service's user.
    User(String),
}

/// What a step does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Act {
    /// Makes a directory.
    Directory { path: PathBuf, mode: u32, owner: Owner },
    /// Writes a file, whole, by a rename.
    Write { path: PathBuf, mode: u32, owner: Owner, text: String },
    /// Copies the program, by a rename.
    Copy { from: PathBuf, to: PathBuf, mode: u32 },
    /// Points a link to a file, by a rename.
    Link { link: PathBuf, to: PathBuf },
    /// Removes a file or link.
    Remove { path: PathBuf },
    /// Removes a directory with all that is in it.
    RemoveAll { path: PathBuf },
    /// Runs a command; not when `unless` succeeds. A failure that `may_fail` is no end.
    Run { command: Vec<String>, unless: Option<Vec<String>>, may_fail: bool },
    /// A command that asks for a password: the operator runs it.
    Ask { command: String },
}

/// One step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// What it is for.
    pub why: String,
    /// What it does.
    pub act: Act,
    /// What takes it back.
    pub undo: Option<Act>,
}

impl Step {
    fn new(why: impl Into<String>, act: Act) -> Self {
        Self { why: why.into(), act, undo: None }
    }

    fn undone_by(mut self, undo: Act) -> Self {
        self.undo = Some(undo);
        self
    }
}

/// A command that is run.
fn run(command: &[&str]) -> Act {
    Act::Run { command: words(command), unless: None, may_fail: false }
}

/// A command that is run unless another says that it need not be.
fn run_unless(command: &[&str], unless: &[&str]) -> Act {
    Act::Run { command: words(command), unless: Some(words(unless)), may_fail: false }
}

/// A command whose failure means that there was nothing to do.
fn try_run(command: &[&str]) -> Act {
    Act::Run { command: words(command), unless: None, may_fail: true }
}

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|&word| word.to_owned()).collect()
}

/// Everything that makes flyci a service, in order.
#[must_use]
pub fn install(settings: &Settings) -> Vec<Step> {
    match settings.system {
        System::Mac => launchd::install(settings),
        System::Linux => systemd::install(settings),
    }
}

/// Everything that takes it back, in order. Data and user stay unless they are to be purged.
#[must_use]
pub fn uninstall(settings: &Settings) -> Vec<Step> {
    match settings.system {
        System::Mac => launchd::uninstall(settings),
        System::Linux => systemd::uninstall(settings),
    }
}

/// What other services of flyci's on a machine are made of, where there are any.
#[must_use]
pub fn others(settings: &Settings) -> Vec<PathBuf> {
    match settings.system {
        System::Mac => launchd::others(settings.duty),
        System::Linux => systemd::others(settings.duty),
    }
}

/// The command that says how the service does, and the path of what it is made of.
#[must_use]
pub fn status_command(settings: &Settings) -> (Vec<String>, PathBuf) {
    match settings.system {
        System::Mac => launchd::status_command(settings.duty),
        System::Linux => systemd::status_command(settings.duty),
    }
}

/// What a purge removes beyond what install made.
fn data_goes(settings: &Settings) -> Step {
    Step::new("keys, images, vms and the private database", Act::RemoveAll { path: settings.data_dir.clone() })
}

/// The steps that put the program in place: the same on every system, but for what signs it in between.
fn program(settings: &Settings, sign: Option<Step>) -> Vec<Step> {
    let versioned = settings.versioned();
    let mut steps = vec![
        Step::new(
            "where versions of the program lie",
            Act::Directory { path: PROGRAMS.into(), mode: 0o755, owner: Owner::Root },
        ),
        Step::new(
            "the program, under a versioned name: a running daemon keeps its own",
            Act::Copy { from: settings.program.clone(), to: versioned.clone(), mode: 0o755 },
        )
        .undone_by(Act::RemoveAll { path: PROGRAMS.into() }),
    ];
    steps.extend(sign);
    steps.push(
        Step::new("the version in use", Act::Link { link: PROGRAM.into(), to: versioned })
            .undone_by(Act::Remove { path: PROGRAM.into() }),
    );
    steps
}

/// The undo of every step that has one, the last first.
fn undone(steps: Vec<Step>) -> Vec<Step> {
    steps
        .into_iter()
        .rev()
        .filter_map(|step| step.undo.map(|act| Step { why: format!("back: {}", step.why), act, undo: None }))
        .collect()
}

#[cfg(test)]
mod tests;
