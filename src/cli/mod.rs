//! The command line: what an operator types, and what is shown for it.
//!
//! `args` says what can be typed, `exit` how a command ends. Most commands ask the daemon over its admin socket
//! (`client`) and render its answer: `status`, `hosts`, `jobs`, `vms`, `tenants`, `records`. Others work on files
//! of this host: `config`, `image`, `database`, `doctor`, `service`. Rendering is pure, on the pieces of `out`, `human` and `table`.
//! Does not: know how the daemon finds its answers.

mod args;
mod audit;
mod client;
mod config;
mod database;
#[cfg(feature = "demo")]
mod demo;
mod doctor;
mod examples;
mod exit;
mod host;
mod hosts;
mod human;
mod image;
mod jobs;
mod keys;
mod out;
mod process;
mod progress;
mod records;
#[cfg(test)]
mod samples;
mod service;
mod status;
mod suggest;
mod table;
mod tenants;
mod vm;
mod vms;

use crate::api::Page;
use crate::app::{self, AppError, Overrides};
use crate::config::Config;
use crate::errors::chain;
use crate::logging;
use args::{Cli, Command, ServeArgs};
use clap::{CommandFactory, Parser};
use client::Admin;
use exit::{CliError, DONE};
use host::HostCommand;
use keys::KeysCommand;
use out::Look;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::path::Path;
use std::process::ExitCode;

#[cfg(feature = "demo")]
pub use demo::search;

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse_from(args::flags_as_commands(std::env::args_os()));
    process::no_core_dumps();
    suggest::remember(cli.config.as_deref());
    match &cli.command {
        Command::Serve(args) => logging::start(logging::Purpose::Daemon, args.log_file.as_deref()),
        Command::Vm(_) => logging::start(logging::Purpose::Daemon, None),
        _ => logging::start(logging::Purpose::Command, None),
    }
    exit::report(run(&cli))
}

fn run(cli: &Cli) -> Result<u8, CliError> {
    let file = cli.config.as_deref();
    match &cli.command {
        Command::Serve(args) => serve(load(file)?, args),
        Command::Config(command) => config::run(command, file),
        Command::Backup(args) => block_on(database::backup(&load(file)?, args)),
        Command::Restore(args) => block_on(database::restore(&load(file)?, args)),
        Command::Database(command) => block_on(database::run(&load(file)?, command)),
        Command::Image(command) => block_on(image::run(command, &load(file)?, &Look::of_stdout())),
        #[cfg(feature = "demo")]
        Command::Demo(args) => block_on(demo::run(args, &Look::of_stdout())),
        Command::Vm(args) => Ok(vm::run(args)),
        Command::Completions { shell } => completions(*shell),
        Command::Doctor(args) => block_on(doctor::run(args, file, &Look::of_stdout())),
        Command::Service(command) => block_on(service::run(command, file, &Look::of_stdout())),
        Command::Keys(KeysCommand::New { file }) => keys::new(file),
        Command::Host(HostCommand::Join(args)) => block_on(host::join(&load(file)?, args)),
        command => ask(command, file),
    }
}

/// Runs the daemon until it is told to stop.
fn serve(config: Config, args: &ServeArgs) -> Result<u8, CliError> {
    process::keep_memory_private();
    let overrides = overrides(&config, args);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::part("cannot start", error))?;
    runtime.block_on(app::serve(config, overrides)).map_err(not_started)?;
    Ok(DONE)
}

/// Why the daemon did not start: a wrong configuration has its own exit code, since no restart mends it.
fn not_started(error: AppError) -> CliError {
    if error.is_of_configuration() {
        CliError::Config(format!("cannot start: {}", chain(&error)))
    } else {
        CliError::part("cannot start", error)
    }
}

/// What stands in the place of what the configuration names: nothing, but in a demo.
#[cfg(feature = "demo")]
fn overrides(config: &Config, args: &ServeArgs) -> Overrides {
    if args.pretend { demo::pretend::overrides(config) } else { Overrides::default() }
}

/// What stands in the place of what the configuration names: nothing.
#[cfg(not(feature = "demo"))]
fn overrides(_: &Config, _: &ServeArgs) -> Overrides {
    Overrides::default()
}

/// The commands that ask the daemon.
fn ask(command: &Command, file: Option<&Path>) -> Result<u8, CliError> {
    let socket = crate::config::admin_socket(file).map_err(|faults| CliError::Config(faults.to_string()))?;
    let admin = Admin::new(socket);
    let look = Look::of_stdout();
    block_on(async {
        match command {
            Command::Status(args) => status::run(&admin, args, &look).await,
            Command::Drain(args) => hosts::drain(&admin, args).await,
            Command::Resume(args) => hosts::resume(&admin, args).await,
            Command::Host(command) => host::run(&admin, command).await,
            Command::Hosts(args) => hosts::list(&admin, args, &look).await,
            Command::Jobs(args) => jobs::run(&admin, args, &look).await,
            Command::Vms(args) => vms::run(&admin, args, &look).await,
            Command::Tenants(args) => tenants::run(&admin, args, &look).await,
            Command::Deliveries(args) => records::deliveries(&admin, args, &look).await,
            Command::Audit(args) => audit::run(&admin, args, &look).await,
            Command::Keys(command) => keys::run(&admin, command, &look).await,
            Command::Usage(args) => records::usage(&admin, args, &look).await,
            Command::Serve(_)
            | Command::Config(_)
            | Command::Completions { .. }
            | Command::Vm(_)
            | Command::Image(_)
            | Command::Backup(_)
            | Command::Restore(_)
            | Command::Database(_)
            | Command::Doctor(_)
            | Command::Service(_) => unreachable!("these do not ask the daemon"),
            #[cfg(feature = "demo")]
            Command::Demo(_) => unreachable!("it has a daemon of its own"),
        }
    })
}

fn load(file: Option<&Path>) -> Result<Config, CliError> {
    Config::load(file).map_err(|faults| CliError::Config(faults.to_string()))
}

/// Runs a command that mostly waits.
fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::part("cannot start", error))?
        .block_on(work)
}

fn completions(shell: clap_complete::Shell) -> Result<u8, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "flyci", &mut script);
    out::print(&String::from_utf8_lossy(&script))?;
    Ok(DONE)
}

/// An answer of the daemon, understood.
fn read_json<T: DeserializeOwned>(path: &str, body: &[u8]) -> Result<T, CliError> {
    client::decode(path, body)
}

/// Prints an answer of the daemon as it came.
fn print_json(body: &[u8]) -> Result<(), CliError> {
    let text = String::from_utf8_lossy(body);
    Ok(out::print(&format!("{}\n", text.trim_end()))?)
}

/// Prints what several answers made.
fn print_value(value: &impl Serialize) -> Result<(), CliError> {
    print_json(&serde_json::to_vec(value).expect("the API's types are JSON"))
}

/// The line below a list that is not whole.
fn more<T>(page: &Page<T>) -> &'static str {
    if page.next.is_some() { "  … and more: --limit N\n" } else { "" }
}
