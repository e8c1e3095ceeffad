//! Commands that messages suggest are said so that they can be copied: where this one was given `--config FILE`, they
//! get it too. Texts of the daemon are among them: it does not know how it was asked.

use super::args::Cli;
use clap::CommandFactory;
use std::path::Path;
use std::sync::OnceLock;

/// `--config FILE`, as a shell reads it, if it was given.
static GIVEN: OnceLock<String> = OnceLock::new();

/// Remembers what `--config` was, before anything is said.
pub fn remember(config: Option<&Path>) {
    if let Some(path) = config {
        // It is set once, at the program's start.
        let _ = GIVEN.set(format!("--config {}", quoted(&path.to_string_lossy())));
    }
}

/// The text, its commands completed.
#[must_use]
pub fn commands(text: &str) -> String {
    match GIVEN.get() {
        Some(option) => completed(text, option),
        None => text.to_owned(),
    }
}

/// Puts the option behind each `flyci` that a command follows.
fn completed(text: &str, option: &str) -> String {
    const PROGRAM: &str = "flyci ";
    let program = Cli::command();
    let mut pieces = text.split(PROGRAM);
    let mut whole = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let ends_a_word = whole.ends_with(|letter: char| letter.is_alphanumeric() || matches!(letter, '/' | '-' | '_'));
        let word = piece.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-').next();
        let is_command = word.is_some_and(|word| program.find_subcommand(word).is_some());
        whole.push_str(PROGRAM);
        if is_command && !ends_a_word {
            whole.push_str(option);
            whole.push(' ');
        }
        whole.push_str(piece);
    }
    whole
}

/// A word for a shell.
fn quoted(text: &str) -> String {
    let is_plain =
        |letter: char| letter.is_alphanumeric() || matches!(letter, '/' | '.' | '-' | '_' | '+' | ',' | ':' | '@');
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suggested_command_can_be_copied() {
        let completed = |text| completed(text, "--config /srv/a.toml");
        for (text, whole) in [
            ("flyci status", "flyci --config /srv/a.toml status"),
            (
                "flyci tenants, then flyci tenants approve ACCOUNT",
                "flyci --config /srv/a.toml tenants, then flyci --config /srv/a.toml tenants approve ACCOUNT",
            ),
            ("run `flyci image build` there", "run `flyci --config /srv/a.toml image build` there"),
        ] {
            assert_eq!(completed(text), whole);
        }
        for prose in ["flyci is not root", "start flyci again", "a later flyci may know them", "/var/lib/flyci serve"] {
            assert_eq!(completed(prose), prose);
        }
    }

    #[test]
    fn a_path_is_one_word_for_a_shell() {
        assert_eq!(quoted("/etc/flyci/flyci.toml"), "/etc/flyci/flyci.toml");
        assert_eq!(quoted("my configs/it's.toml"), "'my configs/it'\\''s.toml'");
        assert_eq!(quoted(""), "''");
    }
}
