//! `flyci service …`: makes flyci a service, says how it does, and takes it back. The plan is `crate::service`'s.

use super::exit::{CliError, DONE, NOT_RUNNING};
use super::out::{self, Look, Tone, harmless};
use crate::config;
use crate::doctor::{BootMode, System, shown};
use crate::errors::chain;
use crate::hypervisor::process::Tool;
use crate::service::apply::{Done, Place};
use crate::service::{self, Act, PROGRAM, Settings, Step};
use clap::{Args, Subcommand, ValueEnum};
use nix::unistd::Uid;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `flyci service …`
#[derive(Subcommand, Debug)]
pub enum ServiceCommand {
    /// Make the user, the directories and the service, and start it; again: an upgrade
    Install(InstallArgs),
    /// Take all of it back; data and user stay unless they are purged
    Uninstall(UninstallArgs),
    /// Say how the service does
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// What both directions need.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// Print every file and command, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Write files below this directory, and run no command
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// A user that is there already [default: one of its own is made]
    #[arg(long, value_name = "NAME", value_parser = user_name)]
    pub user: Option<String>,
    /// The plan of another system
    #[arg(long, value_name = "SYSTEM", requires = "dry_run")]
    pub system: Option<SystemArg>,
}

/// `flyci service install`
#[derive(Args, Debug)]
pub struct InstallArgs {
    #[command(flatten)]
    pub plan: PlanArgs,
    /// How a Mac comes up after a power cut
    #[arg(long, default_value = "unattended")]
    pub mode: ModeArg,
    /// Who signs the program on a Mac [default: nobody, ad hoc]
    #[arg(long, value_name = "NAME", default_value = "-", hide_default_value = true)]
    pub identity: String,
    /// Do not start it
    #[arg(long)]
    pub no_start: bool,
}

/// `flyci service uninstall`
#[derive(Args, Debug)]
pub struct UninstallArgs {
    #[command(flatten)]
    pub plan: PlanArgs,
    /// Also remove the data directory with keys, images and vms, and the user
    #[arg(long)]
    pub purge: bool,
}

/// How a Mac comes up after a power cut.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum ModeArg {
    /// By itself: auto-login, and FileVault is off
    Unattended,
    /// When somebody logs in: FileVault is on
    Attended,
}

/// A system.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum SystemArg {
    /// launchd
    Macos,
    /// systemd
    Linux,
}

/// How long the service manager may take to say how a service does.
const STATUS_DEADLINE: Duration = Duration::from_secs(20);
/// Characters of a user's name.
const MAX_USER: usize = 32;

/// A name that stands in a unit, a property list and a command as it is.
fn user_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.';
    if text.is_empty() || text.len() > MAX_USER || text.starts_with('-') || !text.chars().all(fits) {
        return Err("write letters, digits, `_`, `-` or `.`".to_owned());
    }
    Ok(text.to_owned())
}

/// Runs `flyci service …`.
pub async fn run(command: &ServiceCommand, file: Option<&Path>, look: &Look) -> Result<u8, CliError> {
    match command {
        ServiceCommand::Install(args) => {
            let mode = match args.mode {
                ModeArg::Unattended => BootMode::Unattended,
                ModeArg::Attended => BootMode::Attended,
            };
            let settings = Settings {
                mode,
                identity: args.identity.clone(),
                start: !args.no_start,
                ..settings(file, &args.plan)?
            };
            carry_out(&service::install(&settings), &args.plan, look).await
        }
        ServiceCommand::Uninstall(args) => {
            let settings = Settings { purge: args.purge, ..settings(file, &args.plan)? };
            carry_out(&service::uninstall(&settings), &args.plan, look).await
        }
        ServiceCommand::Status { json } => status(file, *json, look).await,
    }
}

fn settings(file: Option<&Path>, args: &PlanArgs) -> Result<Settings, CliError> {
    let report = config::check(file, None);
    let faults = config::ConfigFaults(report.faults);
    let (Some(config), Some(file)) = (report.config, report.file) else {
        return Err(CliError::Config(if faults.0.is_empty() {
            "a service needs a configuration file, and there is none: copy config/flyci.example.toml".to_owned()
        } else {
            faults.to_string()
        }));
    };
    let file = std::path::absolute(file).map_err(|error| CliError::part("the configuration's path", error))?;
    unfit_for_a_unit(&file)?;
    unfit_for_a_unit(&config.data_dir)?;
    let program =
        std::env::current_exe().map_err(|error| CliError::part("this program's file cannot be found", error))?;
    let mut settings = Settings::of(&config, &file, program);
    settings.user.clone_from(&args.user);
    let root = args.root.as_deref().unwrap_or(Path::new("/"));
    match args.system {
        Some(SystemArg::Macos) => settings.system = System::Mac,
        Some(SystemArg::Linux) => settings.system = System::Linux,
        None => {}
    }
    let there = |path: &PathBuf| root.join(path.strip_prefix("/").unwrap_or(path)).exists();
    settings.shared = service::others(&settings).iter().any(there);
    Ok(settings)
}

/// systemd reads spaces, quotes, `%` and `$` in a unit as its own.
fn unfit_for_a_unit(path: &Path) -> Result<(), CliError> {
    let text = path.to_string_lossy();
    if text.chars().any(|c| c.is_whitespace() || c.is_control() || "\"'\\%$".contains(c)) {
        return Err(CliError::Failed(format!("`{}` has characters that stand in no unit: rename it", harmless(&text))));
    }
    Ok(())
}

async fn carry_out(steps: &[Step], args: &PlanArgs, look: &Look) -> Result<u8, CliError> {
    if args.dry_run {
        out::print(&render(steps, look))?;
        return Ok(DONE);
    }
    let place = args.root.as_deref().map_or_else(Place::machine, Place::below);
    if args.root.is_none() && !Uid::effective().is_root() {
        return Err(CliError::Failed(
            "this changes the system: run it with sudo (--dry-run shows what it does)".to_owned(),
        ));
    }
    let mut yours = Vec::new();
    for step in steps {
        let done = match place.apply(step).await {
            Ok(done) => done,
            Err(error) => {
                tell_yours(&yours, look)?;
                return Err(CliError::part(format!("not done: {}", step.why), error));
            }
        };
        let (mark, tone) = match &done {
            Done::Changed => ("\u{2714}", Tone::Good),
            Done::Already => ("=", Tone::Dim),
            Done::NotHere => ("-", Tone::Dim),
            Done::Yours(_) => ("!", Tone::Warn),
        };
        out::print(&format!("  {}  {}\n", look.paint(tone, mark), step.why))?;
        if let Done::Yours(command) = done {
            yours.push((step.why.clone(), command));
        }
    }
    tell_yours(&yours, look)?;
    Ok(DONE)
}

/// What asks for a password is left to the operator.
fn tell_yours(yours: &[(String, String)], look: &Look) -> Result<(), CliError> {
    if yours.is_empty() {
        return Ok(());
    }
    let mut text = format!("\n  {}\n", look.paint(Tone::Strong, "These ask for a password, so they are yours:"));
    for (why, command) in yours {
        text.push_str(&format!("  {}\n      {command}\n", look.paint(Tone::Dim, &format!("# {why}"))));
    }
    Ok(out::print(&text)?)
}

/// A plan, as it is read before it is carried out.
#[must_use]
fn render(steps: &[Step], look: &Look) -> String {
    let mut text = String::new();
    for step in steps {
        text.push_str(&format!("{}\n{}\n", look.paint(Tone::Dim, &format!("# {}", step.why)), act(&step.act)));
        if let Some(undo) = &step.undo {
            text.push_str(&format!("{}\n", look.paint(Tone::Dim, &format!("#   undo: {}", act(undo)))));
        }
        text.push('\n');
    }
    text
}

/// What a step does, as a shell would be told.
fn act(act: &Act) -> String {
    match act {
        Act::Directory { path, mode, owner } => {
            format!("install -d -m {mode:04o} -o {} {}", owner_name(owner), path.display())
        }
        Act::Write { path, mode, owner, text } if text.is_empty() => {
            format!("install -m {mode:04o} -o {} /dev/null {}", owner_name(owner), path.display())
        }
        Act::Write { path, mode, owner, text } => {
            format!("install -m {mode:04o} -o {} /dev/stdin {} <<'END'\n{text}END", owner_name(owner), path.display())
        }
        Act::Copy { from, to, mode } => format!("install -m {mode:04o} {} {}", from.display(), to.display()),
        Act::Link { link, to } => format!("ln -sfn {} {}", to.display(), link.display()),
        Act::Remove { path } => format!("rm -f {}", path.display()),
        Act::RemoveAll { path } => format!("rm -rf {}", path.display()),
        Act::Run { command, unless, may_fail } => {
            let unless = unless.as_ref().map(|unless| format!("{} || ", shown(unless))).unwrap_or_default();
            format!("{unless}{}{}", shown(command), if *may_fail { " || true" } else { "" })
        }
        Act::Ask { command } => command.clone(),
    }
}

fn owner_name(owner: &service::Owner) -> &str {
    match owner {
        service::Owner::Root => "root",
        service::Owner::User(name) => name,
    }
}

/// How the service does, for scripts.
#[derive(Serialize)]
struct Standing {
    service: &'static str,
    installed: bool,
    running: bool,
    program: Option<PathBuf>,
    evidence: String,
}

async fn status(file: Option<&Path>, json: bool, look: &Look) -> Result<u8, CliError> {
    let report = config::check(file, None);
    let Some(config) = report.config else {
        return Err(CliError::Config(config::ConfigFaults(report.faults).to_string()));
    };
    let settings = Settings::of(&config, file.unwrap_or(Path::new("flyci.toml")), PathBuf::new());
    let (command, made_of) = service::status_command(&settings);
    let evidence = match Tool::new(&command[0], STATUS_DEADLINE) {
        Ok(tool) => match tool.args(&command[1..]).run().await {
            Ok(output) => summary(&String::from_utf8_lossy(&output)),
            Err(error) => first_line(&chain(&error).to_string()),
        },
        Err(error) => error.to_string(),
    };
    let standing = Standing {
        service: settings.duty.name(),
        installed: made_of.exists(),
        running: is_running(&evidence),
        program: std::fs::read_link(PROGRAM).ok(),
        evidence,
    };
    if json {
        super::print_value(&standing)?;
    } else {
        out::print(&render_status(&standing, &made_of, look))?;
    }
    Ok(if standing.running { DONE } else { NOT_RUNNING })
}

fn render_status(standing: &Standing, made_of: &Path, look: &Look) -> String {
    let word = match (standing.installed, standing.running) {
        (_, true) => look.paint(Tone::Good, "runs"),
        (true, false) => look.paint(Tone::Bad, "does not run"),
        (false, false) => look.paint(Tone::Warn, "is not installed"),
    };
    let program = standing.program.as_ref().map_or_else(|| "none".to_owned(), |path| path.display().to_string());
    format!(
        "{} {word}\n  {}  {}\n  {}  {}\n  {}  {program}\n",
        look.paint(Tone::Strong, standing.service),
        look.paint(Tone::Dim, "says    "),
        harmless(&standing.evidence),
        look.paint(Tone::Dim, "made of "),
        made_of.display(),
        look.paint(Tone::Dim, "program "),
    )
}

/// The lines of systemd's or launchd's answer that say something.
fn summary(text: &str) -> String {
    const SYSTEMD: [&str; 4] = ["ActiveState=", "SubState=", "MainPID=", "ExecMainStartTimestamp="];
    const LAUNCHD: [&str; 4] = ["state = ", "pid = ", "runs = ", "last exit code = "];
    let says = |line: &&str| SYSTEMD.iter().chain(&LAUNCHD).any(|key| line.starts_with(key));
    let mut lines: Vec<&str> = text.lines().map(str::trim).filter(says).collect();
    lines.dedup();
    lines.join(", ")
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn is_running(summary: &str) -> bool {
    summary.contains("ActiveState=active") || summary.split(", ").any(|line| line == "state = running")
}

#[cfg(test)]
mod tests {
    use super::super::out::tests::look;
    use super::*;

    #[test]
    fn both_managers_answers_are_understood() {
        let systemd =
            summary("ActiveState=active\nSubState=running\nMainPID=812\nExecMainStartTimestamp=Wed 2026-11-25\n");
        assert!(is_running(&systemd), "{systemd}");
        assert!(!is_running(&summary("ActiveState=failed\nSubState=failed\nMainPID=0\n")));
        let launchd = "system/io.flyci.host = {\n\tactive count = 1\n\tpath = /Library/LaunchDaemons/x.plist\n\tstate = running\n\n\tprogram = /usr/local/bin/flyci\n\tpid = 702\n\truns = 1\n\tlast exit code = (never exited)\n}\n";
        let launchd = summary(launchd);
        assert_eq!(launchd, "state = running, pid = 702, runs = 1, last exit code = (never exited)");
        assert!(is_running(&launchd) && !is_running("state = spawn scheduled, runs = 7"));
    }

    #[test]
    fn a_service_that_does_not_run_is_told_apart_from_none() {
        let standing = |installed, running| Standing {
            service: "flyci",
            installed,
            running,
            program: None,
            evidence: "ActiveState=failed".to_owned(),
        };
        let path = Path::new("/etc/systemd/system/flyci.service");
        assert!(render_status(&standing(true, false), path, &look(80)).starts_with("flyci does not run\n"));
        assert!(render_status(&standing(false, false), path, &look(80)).starts_with("flyci is not installed\n"));
    }

    #[test]
    fn hostile_names_are_refused() {
        assert!(user_name("flyci_2").is_ok());
        for name in ["", "-x", "a b", "a\nUser=root", "$(id)"] {
            assert!(user_name(name).is_err(), "{name}");
        }
        assert!(unfit_for_a_unit(Path::new("/etc/flyci/flyci.toml")).is_ok());
        assert!(unfit_for_a_unit(Path::new("/etc/my flyci/flyci.toml")).is_err());
    }
}
