//! `flyci config check` and `flyci config show`.

use super::args::ConfigCommand;
use super::exit::{CONFIG, CliError, DONE};
use super::human::plural;
use super::out::{self, Look, Tone};
use crate::config::{self, Report};
use std::path::Path;

/// Runs `flyci config …`.
pub fn run(command: &ConfigCommand, file: Option<&Path>) -> Result<u8, CliError> {
    match command {
        ConfigCommand::Check => {
            let report = config::check(file, None);
            out::print(&verdict(&report, &Look::of_stdout()))?;
            Ok(if report.faults.is_empty() { DONE } else { CONFIG })
        }
        ConfigCommand::Show => {
            out::print(&config::show(&super::load(file)?))?;
            Ok(DONE)
        }
    }
}

/// All findings, the faults first, and a last line that sums them up.
fn verdict(report: &Report, look: &Look) -> String {
    let mut text = String::new();
    for fault in &report.faults {
        text.push_str(&format!("{}  {fault}\n", look.paint(Tone::Bad, "wrong  ")));
    }
    for warning in &report.warnings {
        text.push_str(&format!("{}  {warning}\n", look.paint(Tone::Warn, "warning")));
    }
    let file =
        report.file.as_ref().map_or_else(|| "no file: defaults only".to_owned(), |file| file.display().to_string());
    let warnings = plural(report.warnings.len(), "warning");
    let sum = match report.faults.len() {
        0 => look.paint(Tone::Good, "can be used").into_owned(),
        faults => look.paint(Tone::Bad, &plural(faults, "fault")).into_owned(),
    };
    text.push_str(&format!("{file}: {sum}, {warnings}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::super::out::tests::look;
    use super::*;

    #[test]
    fn a_configuration_without_faults_says_so() {
        let report = Report { file: Some("/etc/flyci.toml".into()), faults: vec![], warnings: vec![], config: None };
        assert_eq!(verdict(&report, &look(80)), "/etc/flyci.toml: can be used, 0 warnings\n");
    }
}
