//! The runner's program: takes the JIT configuration out of the environment for good, then serves one job.

use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use fake_github::guest;
use fake_github::protocol::{JIT_ENV, JIT_LIMIT};

/// The argument with which the program starts itself again, the JIT configuration on its standard input.
const AGAIN: &str = "--jit-on-stdin";

fn main() -> ExitCode {
    let failed = match jit() {
        Ok(jit) => match guest::serve(&jit, directory()) {
            Ok(_) => return ExitCode::SUCCESS,
            Err(error) => {
                print_chain(&error);
                return ExitCode::from(error.exit_code());
            }
        },
        Err(message) => message,
    };
    eprintln!("{failed}");
    ExitCode::FAILURE
}

/// The runner's directory: where the program lies, unless `--dir` names another.
fn directory() -> PathBuf {
    let mut arguments = std::env::args_os().skip_while(|a| a != "--dir").skip(1);
    let own = || std::env::current_exe().ok().and_then(|exe| exe.parent().map(PathBuf::from));
    arguments.next().map(PathBuf::from).or_else(own).unwrap_or_else(|| PathBuf::from("."))
}

/// The JIT configuration. A process cannot clear its own first environment, which its jobs could read in /proc; so the
/// program replaces itself by itself, without the variable, and hands the text over in a pipe.
fn jit() -> Result<String, String> {
    if std::env::args_os().any(|a| a == AGAIN) {
        let mut text = String::new();
        let read = std::io::stdin().take(JIT_LIMIT as u64).read_to_string(&mut text);
        return read
            .map(|_| text)
            .map_err(|e| format!("the JIT configuration cannot be read from standard input: {e}"));
    }
    let jit =
        std::env::var(JIT_ENV).map_err(|_| format!("{JIT_ENV} holds no JIT configuration; set it and try again"))?;
    if jit.len() >= JIT_LIMIT {
        return Err(format!("{JIT_ENV} is longer than {JIT_LIMIT} bytes, so it is no JIT configuration"));
    }
    let failed = |e: std::io::Error| format!("the runner cannot start itself without {JIT_ENV}: {e}");
    let (reader, mut writer) = std::io::pipe().map_err(failed)?;
    // The limit is a pipe's capacity, so this does not block.
    writer.write_all(jit.as_bytes()).map_err(failed)?;
    drop(writer);
    let program = std::env::current_exe().map_err(failed)?;
    let error =
        Command::new(program).args(std::env::args_os().skip(1)).arg(AGAIN).env_remove(JIT_ENV).stdin(reader).exec();
    Err(failed(error))
}

fn print_chain(error: &guest::RunnerError) {
    // The real runner tells of refusals on its standard output.
    println!("{error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        println!("  {error}");
        cause = error.source();
    }
}
