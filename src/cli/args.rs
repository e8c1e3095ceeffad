//! The command line: what can be typed, and what `--help` says. Nothing is done here.

use super::audit::AuditArgs;
use super::examples;
use super::image::ImageCommand;
use super::keys::KeysCommand;
use super::tenants::TenantsArgs;
use crate::domain::units::Span;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use std::ffi::OsString;
use std::path::PathBuf;

const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   failed (the message says why)
  2   wrong usage
  3   the daemon is not running
  4   it runs, and something is degraded (status, doctor)
  5   timed out (drain --wait)
  78  the configuration is wrong

`flyci --status` and `flyci --drain` equal the commands.
Colour is shown on a terminal only, and not with NO_COLOR.
The log goes to stderr, as JSON unless that is a terminal; FLYCI_LOG=debug (or RUST_LOG) says how much.";

/// Ephemeral GitHub Actions runners on your own machines: one VM per job, nothing kept after it.
#[derive(Parser, Debug)]
#[command(name = "flyci", version, after_help = EXIT_CODES, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    /// The configuration file [default: $FLYCI_CONFIG, else the first of /etc/flyci/flyci.toml,
    /// /usr/local/etc/flyci/flyci.toml and flyci.toml that is there]
    // `FLYCI_CONFIG` is read by the configuration itself, so that a fault of it is told the same way.
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the roles that the configuration names, until SIGTERM
    #[command(after_help = examples::SERVE)]
    Serve(ServeArgs),
    /// Show what is wrong first, then hosts, slots, vms and queue
    #[command(after_help = examples::STATUS)]
    Status(StatusArgs),
    /// Take no new work on a host; what runs comes to its end
    #[command(after_help = examples::DRAIN)]
    Drain(DrainArgs),
    /// Take work again
    Resume(ResumeArgs),
    /// List the hosts
    Hosts(ListArgs),
    /// Let a machine join the fleet, join it, or throw one out
    #[command(subcommand)]
    Host(super::host::HostCommand),
    /// List jobs, newest first; `jobs why` says why one waits or how it ended
    #[command(args_conflicts_with_subcommands = true, after_help = examples::JOBS)]
    Jobs(JobsArgs),
    /// List the vms that exist; `vms kill` ends one
    #[command(args_conflicts_with_subcommands = true, after_help = examples::VMS)]
    Vms(VmsArgs),
    /// List who installed the GitHub App; approve, suspend, limit, export or erase them
    #[command(args_conflicts_with_subcommands = true, after_help = examples::TENANTS)]
    Tenants(TenantsArgs),
    /// List the webhook deliveries of GitHub
    #[command(after_help = examples::DELIVERIES)]
    Deliveries(DeliveriesArgs),
    /// Pull, build, list, verify, push and remove the images that vms are cloned from
    #[command(subcommand, after_help = examples::IMAGE)]
    Image(ImageCommand),
    /// Check or show the configuration
    #[command(subcommand, after_help = examples::CONFIG)]
    Config(ConfigCommand),
    /// Show who did what; `audit verify` proves that no entry was changed
    #[command(args_conflicts_with_subcommands = true, after_help = examples::AUDIT)]
    Audit(AuditArgs),
    /// List and rotate the master keys that everything stored is encrypted under
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Show the minutes used, by account and profile
    #[command(after_help = examples::USAGE)]
    Usage(UsageArgs),
    /// Write the private database into a file
    #[command(after_help = examples::BACKUP)]
    Backup(BackupArgs),
    /// Bring the private database back from a backup
    #[command(after_help = examples::BACKUP)]
    Restore(RestoreArgs),
    /// Look after the private database
    #[command(subcommand)]
    Database(DatabaseCommand),
    /// Look at everything that could keep this machine from work
    #[command(after_help = examples::DOCTOR)]
    Doctor(super::doctor::DoctorArgs),
    /// Make flyci a service of launchd (macOS) or systemd (Linux)
    #[command(subcommand, after_help = examples::SERVICE)]
    Service(super::service::ServiceCommand),
    /// Show flyci at work: real jobs in VMs, a simulated GitHub, and evidence
    #[cfg(feature = "demo")]
    #[command(after_help = examples::DEMO)]
    Demo(DemoArgs),
    /// The process of one vm: a daemon starts it
    #[command(hide = true)]
    Vm(super::vm::VmArgs),
    /// Print the completions of a shell
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

/// `flyci serve`
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Write the log there, as JSON; it rotates itself [default: stderr]
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// The vms of `flyci demo --hypervisor fake`
    #[cfg(feature = "demo")]
    #[arg(long, hide = true)]
    pub pretend: bool,
}

/// `--json` alone.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
}

/// `flyci status`
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
    /// Draw again every two seconds, until Ctrl-C
    #[arg(long, conflicts_with = "json")]
    pub watch: bool,
    /// Show every host, however many there are
    #[arg(long)]
    pub all: bool,
}

/// `flyci drain`
#[derive(Args, Debug)]
pub struct DrainArgs {
    #[command(flatten)]
    pub which: WhichHost,
    /// Wait until nothing runs there any more, and show what it waits for
    #[arg(long)]
    pub wait: bool,
    /// How long to wait; then exit code 5, and the drain goes on
    #[arg(long, requires = "wait", value_name = "TIME", default_value = "7h")]
    pub timeout: Span,
    /// Why, for those who look at it later
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// `flyci resume`
#[derive(Args, Debug)]
pub struct ResumeArgs {
    #[command(flatten)]
    pub which: WhichHost,
}

/// One host, or all.
#[derive(Args, Debug)]
pub struct WhichHost {
    /// The host [default: the only one there is]
    pub host: Option<String>,
    /// All hosts
    #[arg(long, conflicts_with = "host")]
    pub all: bool,
}

/// `flyci jobs`
#[derive(Args, Debug)]
pub struct JobsArgs {
    #[command(subcommand)]
    pub command: Option<JobsCommand>,
    /// Only jobs in this state
    #[arg(long)]
    pub state: Option<JobStateArg>,
    /// Only jobs that came within this time
    #[arg(long, value_name = "TIME")]
    pub since: Option<Span>,
    /// Jobs that were not taken, with why; of the last day, or of --since
    #[arg(long, conflicts_with = "state")]
    pub refused: bool,
    /// How many to show at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
}

/// The states of a job, as people filter by them.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobStateArg {
    /// GitHub holds it back
    Waiting,
    /// It waits for a machine
    Queued,
    /// A vm is being made for it
    Claimed,
    /// A runner has it
    Running,
    /// It ran, and ended
    Done,
    /// It ended before any runner had it
    Cancelled,
    /// We gave up on it
    Unserved,
    /// Its vm was lost while it ran
    Lost,
}

/// `flyci jobs …`
#[derive(Subcommand, Debug)]
pub enum JobsCommand {
    /// Say why a job waits, or how it ended
    #[command(after_help = examples::JOBS_WHY)]
    Why {
        /// GitHub's id of the job, or its address, as a browser shows it
        #[arg(value_name = "ID-or-URL")]
        job: String,
        /// Print the API's JSON
        #[arg(long)]
        json: bool,
    },
}

/// `flyci vms`
#[derive(Args, Debug)]
pub struct VmsArgs {
    #[command(subcommand)]
    pub command: Option<VmsCommand>,
    /// Those that are gone too, newest first, with why they ended
    #[arg(long)]
    pub all: bool,
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
}

/// `flyci vms …`
#[derive(Subcommand, Debug)]
pub enum VmsCommand {
    /// End a vm now, whatever it does; its job is lost
    Kill {
        /// The vm's id, or enough of its beginning
        #[arg(value_name = "ID")]
        vm: String,
        /// Why: goes to the audit
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

/// `flyci deliveries`
#[derive(Args, Debug)]
pub struct DeliveriesArgs {
    /// Only those that could not be applied
    #[arg(long)]
    pub failed: bool,
    /// How many to show at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
}

/// `flyci config …`
#[derive(Subcommand, Debug)]
pub enum ConfigCommand {
    /// Tell all faults of the configuration at once
    Check,
    /// Show the configuration as it is understood, defaults included, secrets masked
    Show,
}

/// `flyci usage`
#[derive(Args, Debug)]
pub struct UsageArgs {
    /// Which month, in UTC [default: this one]
    #[arg(long, value_name = "YYYY-MM", value_parser = month)]
    pub month: Option<String>,
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
    /// Print CSV, one line per day, account and profile
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
}

/// `flyci backup`
#[derive(Args, Debug)]
pub struct BackupArgs {
    /// The file to write.
    pub file: PathBuf,
}

/// `flyci restore`
#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// The backup to read.
    pub file: PathBuf,
}

/// `flyci database …`
#[derive(Subcommand, Debug)]
pub enum DatabaseCommand {
    /// Move the private database to the installed major version of Postgres; the old one is kept
    Upgrade,
}

/// `flyci demo`
#[cfg(feature = "demo")]
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// What the vms are
    #[arg(long, default_value = DEFAULT_DEMO_HYPERVISOR)]
    pub hypervisor: DemoHypervisor,
    /// Keep the data directory, and say where it is
    #[arg(long)]
    pub keep: bool,
    /// The runner to put into the image: an unpacked directory with a run.sh [default: a small one of flyci's own]
    #[arg(long, value_name = "DIR")]
    pub runner: Option<PathBuf>,
}

/// What the demo's vms are.
#[cfg(feature = "demo")]
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum DemoHypervisor {
    /// Real virtual machines
    Qemu,
    /// None: shows the way of a job where no VM can be had
    Fake,
}

#[cfg(feature = "demo")]
const DEFAULT_DEMO_HYPERVISOR: &str = if cfg!(target_os = "linux") { "qemu" } else { "fake" };

/// A limit of vms; none: the configuration's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmLimit(pub Option<u32>);

pub fn vm_limit(text: &str) -> Result<VmLimit, String> {
    if text == "default" {
        return Ok(VmLimit(None));
    }
    text.parse().map(|limit| VmLimit(Some(limit))).map_err(|_| "write a number, or `default`".to_owned())
}

/// A month as `2026-11`.
fn month(text: &str) -> Result<String, String> {
    chrono::NaiveDate::parse_from_str(&format!("{text}-01"), "%Y-%m-%d")
        .map(|first| first.format("%Y-%m").to_string())
        .map_err(|_| "write a year and a month, like 2026-11".to_owned())
}

/// Reads `flyci --status` as `flyci status`, and `flyci --drain` as `flyci drain`: the flag stands where the
/// command would, behind `--config` at most.
#[must_use]
pub fn flags_as_commands(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut at = 1;
    while arguments.get(at).is_some_and(|argument| argument == "--config") {
        at += 2;
    }
    while arguments.get(at).is_some_and(|argument| argument.as_encoded_bytes().starts_with(b"--config=")) {
        at += 1;
    }
    if let Some(argument) = arguments.get_mut(at) {
        let command = match argument.to_str() {
            Some("--status") => "status",
            Some("--drain") => "drain",
            _ => return arguments,
        };
        *argument = command.into();
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(flags_as_commands(line.split_whitespace().map(OsString::from)))
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_equal_the_commands() {
        for line in
            ["flyci --status --json", "flyci --config a.toml --status --json", "flyci --config=a --status --json"]
        {
            let cli = parse(line).unwrap_or_else(|fault| panic!("{line}: {fault}"));
            assert!(matches!(cli.command, Command::Status(StatusArgs { json: true, .. })), "{line}");
        }
        let cli = parse("flyci --drain --all --wait --timeout 30m").expect("it parses");
        let Command::Drain(drain) = cli.command else { panic!("not a drain") };
        assert!(drain.which.all && drain.wait);
        assert_eq!(drain.timeout, Span::seconds(1800));
    }

    #[test]
    fn every_command_takes_the_configuration_behind_it_too() {
        let cli = parse("flyci jobs why 12 --config other.toml").expect("it parses");
        assert_eq!(cli.config, Some(PathBuf::from("other.toml")));
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            "flyci",
            "flyci setup",
            "flyci drain mini-1 --all",
            "flyci drain --timeout 3m",
            "flyci drain --wait --timeout 3",
            "flyci jobs --state sleeping",
            "flyci vms kill 123",
            "flyci usage --month 2026-13",
            "flyci tenants limit acme many",
        ] {
            assert!(parse(line).is_err(), "{line} was accepted");
        }
    }
}
