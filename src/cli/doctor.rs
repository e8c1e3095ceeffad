//! `flyci doctor`: the checks of `crate::doctor`, shown; and what mends them, run where it is safe and wished.

use super::client::Admin;
use super::exit::{CliError, DEGRADED, DONE};
use super::human::plural;
use super::out::{self, Look, Tone, harmless};
use crate::api::Status;
use crate::config::{self, Config};
use crate::doctor::probe::Here;
use crate::doctor::{self, Check, Subject, System, Verdict, shown};
use crate::errors::chain;
use crate::hypervisor::process::Tool;
use chrono::Utc;
use clap::Args;
use std::io::{BufRead, IsTerminal};
use std::path::Path;
use std::time::Duration;
use unicode_width::UnicodeWidthStr;

/// `flyci doctor`
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Also boot one vm to ready and destroy it (no daemon may run here)
    #[arg(long)]
    pub boot: bool,
    /// Run the safe ones of the commands that mend something, each after you said yes
    #[arg(long, conflicts_with = "json")]
    pub fix: bool,
    /// Say yes to all of them
    #[arg(long, requires = "fix")]
    pub yes: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// How long a command of `--fix` may take.
const FIX_DEADLINE: Duration = Duration::from_secs(60);
/// What is looked at where there is no configuration yet: this machine, as a host.
const NO_CONFIGURATION: &str =
    "roles = [\"host\"]\n[database]\nurl = \"postgres://localhost/flyci\"\n[host]\nname = \"new\"\n";

/// Runs `flyci doctor`.
pub async fn run(args: &DoctorArgs, file: Option<&Path>, look: &Look) -> Result<u8, CliError> {
    let mut checks = examine(args, file).await?;
    if args.json {
        super::print_value(&checks)?;
    } else {
        out::print(&render(&checks, look))?;
    }
    if args.fix && mend(&checks, args.yes).await? {
        checks = examine(args, file).await?;
        out::print(&format!("\n{}", render(&checks, look)))?;
    }
    Ok(if doctor::is_degraded(&checks) { DEGRADED } else { DONE })
}

/// Looks at everything. A configuration that is wrong, or not there, is one of the checks.
async fn examine(args: &DoctorArgs, file: Option<&Path>) -> Result<Vec<Check>, CliError> {
    let report = config::check(file, None);
    let mut checks = vec![configuration(&report)];
    let configured = report.config.is_some();
    let config = match report.config {
        Some(config) => config,
        None => Config::from_toml(NO_CONFIGURATION, Path::new("/"))
            .map_err(|faults| CliError::Config(faults.to_string()))?,
    };
    let answer = Admin::new(config.admin.socket.clone()).get::<Status>("/status", &()).await;
    let status = answer.as_ref().ok();
    let program = std::env::current_exe().unwrap_or_else(|_| "flyci".into());
    let subject = Subject { system: System::here(), config: &config, program, now: Utc::now() };
    checks.extend(doctor::machine(&subject, &Here).await);
    if configured {
        let away = answer.as_ref().err().map(ToString::to_string).unwrap_or_default();
        checks.push(doctor::database(&config).await);
        checks.extend(doctor::github(&subject).await);
        checks.extend(doctor::daemon(status.ok_or(away.as_str())));
        if args.boot {
            checks.push(doctor::canary(&config).await);
        }
    }
    Ok(checks)
}

fn configuration(report: &config::Report) -> Check {
    const NAME: &str = "configuration";
    let faults: Vec<String> = report.faults.iter().map(ToString::to_string).collect();
    let place = report.file.as_ref().map_or_else(|| "the environment".to_owned(), |file| file.display().to_string());
    if !faults.is_empty() {
        return Check::bad(NAME, faults.join("; "))
            .fix("flyci config check; the machine is looked at as a host meanwhile");
    }
    match report.warnings.as_slice() {
        [] => Check::good(NAME, place),
        warnings => {
            let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
            Check::warning(NAME, warnings.join("; ")).fix("flyci config check")
        }
    }
}

/// The page: what is wrong below its evidence says what mends it; the sum is last.
#[must_use]
pub fn render(checks: &[Check], look: &Look) -> String {
    let width = checks.iter().map(|check| check.name.width()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let (mark, tone) = match check.verdict {
            Verdict::Good => ("\u{2714}", Tone::Good),
            Verdict::Unknown => ("?", Tone::Dim),
            Verdict::Warning => ("!", Tone::Warn),
            Verdict::Bad => ("\u{2718}", Tone::Bad),
        };
        let name = format!("{:width$}", check.name);
        let name =
            if check.verdict == Verdict::Good { look.paint(Tone::Dim, &name) } else { look.paint(Tone::Strong, &name) };
        let indent = 2 + 1 + 2 + width + 2;
        let evidence = wrapped(&harmless(&check.evidence), indent, look.width);
        text.push_str(&format!("  {}  {name}  {evidence}\n", look.paint(tone, mark)));
        if let Some(fix) = &check.fix {
            let fix = wrapped(&harmless(fix), indent + 4, look.width);
            text.push_str(&format!("{:indent$}{} {fix}\n", "", look.paint(Tone::Dim, "do:")));
        }
    }
    text.push_str(&sum(checks, look));
    text
}

/// A text on as many lines as the terminal's width asks for, the further ones indented.
fn wrapped(text: &str, indent: usize, width: Option<usize>) -> String {
    /// Narrower columns are not worth it.
    const LEAST: usize = 24;
    let Some(room) = width.and_then(|width| width.checked_sub(indent)).filter(|room| *room >= LEAST) else {
        return text.to_owned();
    };
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in text.split(' ') {
        if !line.is_empty() && line.width() + 1 + word.width() > room {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines.join(&format!("\n{:indent$}", ""))
}

fn sum(checks: &[Check], look: &Look) -> String {
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count() as u64;
    let (bad, warnings, unknown) = (count(Verdict::Bad), count(Verdict::Warning), count(Verdict::Unknown));
    let mut parts = Vec::new();
    if bad > 0 {
        parts.push(look.paint(Tone::Bad, &format!("{} to mend", plural(bad, "thing"))).into_owned());
    }
    if warnings > 0 {
        parts.push(look.paint(Tone::Warn, &plural(warnings, "warning")).into_owned());
    }
    if unknown > 0 {
        parts.push(format!("{unknown} could not be looked at"));
    }
    if parts.is_empty() {
        parts.push(look.paint(Tone::Good, "all is well").into_owned());
    }
    let safe = checks.iter().filter(|check| check.verdict != Verdict::Good && !check.commands.is_empty()).count();
    let hint = if safe > 0 { format!("   (flyci doctor --fix can mend {safe})") } else { String::new() };
    format!("\n  {}{hint}\n", parts.join(" \u{b7} "))
}

/// Runs what mends, each after a yes. Answers whether anything was run.
async fn mend(checks: &[Check], yes: bool) -> Result<bool, CliError> {
    let wanted: Vec<&Check> =
        checks.iter().filter(|check| check.verdict != Verdict::Good && !check.commands.is_empty()).collect();
    if wanted.is_empty() {
        out::print("\n  Nothing here can be mended by itself.\n")?;
        return Ok(false);
    }
    if !yes && !std::io::stdin().is_terminal() {
        return Err(CliError::Failed(
            "there is no terminal to ask on: `flyci doctor --fix --yes` mends all of them".into(),
        ));
    }
    let mut ran = false;
    for check in wanted {
        for command in &check.commands {
            out::print(&format!("\n  {}: {}\n", check.name, shown(command)))?;
            if !yes && !asked("  run it? [y/N] ")? {
                continue;
            }
            ran = true;
            match execute(command).await {
                Ok(()) => out::print("  done\n")?,
                Err(why) => {
                    out::print(&format!("  it failed: {}\n  as root: sudo flyci doctor --fix\n", harmless(&why)))?
                }
            }
        }
    }
    Ok(ran)
}

fn asked(question: &str) -> Result<bool, CliError> {
    out::print(question)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

async fn execute(command: &[String]) -> Result<(), String> {
    let (program, arguments) = command.split_first().expect("a command has a program");
    let tool = Tool::new(program, FIX_DEADLINE).map_err(|error| error.to_string())?;
    tool.args(arguments).run().await.map(drop).map_err(|error| chain(&error).to_string())
}

#[cfg(test)]
mod tests {
    use super::super::out::tests::look;
    use super::*;

    fn samples() -> Vec<Check> {
        vec![
            Check::good("macos version", "macOS 15.5"),
            Check::bad(
                "gui session",
                "user 502 has no Aqua session: guests of macOS 15 and later do not start (VZErrorDomain -9 or 1)",
            )
            .fix("log the user in (Screen Sharing: open vnc://THIS-MAC)"),
            Check::warning("power settings", "powernap 1").mended_by(&[&["pmset", "-a", "powernap", "0"]]),
            Check::unknown("clock", "only root may ask"),
        ]
    }

    #[test]
    fn the_page_tells_what_to_do_below_each_fault() {
        insta::assert_snapshot!("doctor_80", render(&samples(), &look(80)));
        insta::assert_snapshot!("doctor_120", render(&samples(), &look(120)));
    }

    #[test]
    fn a_machine_without_faults_says_so() {
        assert!(render(&samples()[..1], &look(80)).ends_with("all is well\n"));
    }

    #[test]
    fn without_a_configuration_the_machine_is_a_host() {
        let config = Config::from_toml(NO_CONFIGURATION, Path::new("/")).expect("it is right");
        assert!(config.is_host() && !config.is_gateway());
    }

    #[tokio::test]
    async fn a_command_that_fails_says_why() {
        let command = ["sh", "-c", "echo no >&2; exit 1"].map(str::to_owned);
        assert!(execute(&command).await.expect_err("it fails").contains("no"));
        assert!(execute(&["true".to_owned()]).await.is_ok());
    }
}
