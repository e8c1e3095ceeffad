//! The terminal: whether there is one, how wide it is, and what colour means. Rendering is pure (text out of
//! data and a [`Look`]); only this file prints.

use super::suggest::commands;
use chrono::{DateTime, FixedOffset, Local, Offset, Utc};
use owo_colors::{OwoColorize, Style};
use std::borrow::Cow;
use std::io::{IsTerminal, Write, stderr, stdout};
use unicode_width::UnicodeWidthStr;

/// How output is to look.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// With colours.
    pub colour: bool,
    /// Columns of the terminal; `None`: no terminal, nothing is cut.
    pub width: Option<usize>,
    /// The time zone of clock times.
    pub zone: FixedOffset,
}

/// What a piece of text says beside its words. Colour never carries what the words do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Tone {
    /// Ordinary.
    #[default]
    Plain,
    /// Headings, what matters.
    Strong,
    /// Detail.
    Dim,
    /// As it should be.
    Good,
    /// In between: on its way, or waiting.
    Busy,
    /// Wants attention.
    Warn,
    /// Wrong.
    Bad,
}

impl Look {
    /// As stdout is.
    #[must_use]
    pub fn of_stdout() -> Self {
        let terminal = stdout().is_terminal();
        let width = terminal_size::terminal_size_of(stdout()).map(|(width, _)| usize::from(width.0));
        Self {
            colour: terminal && colour_wanted(),
            width: width.filter(|_| terminal),
            zone: Local::now().offset().fix(),
        }
    }

    /// Text in a tone.
    #[must_use]
    pub fn paint<'a>(&self, tone: Tone, text: &'a str) -> Cow<'a, str> {
        let style = match tone {
            Tone::Plain => return Cow::Borrowed(text),
            Tone::Strong => Style::new().bold(),
            Tone::Dim => Style::new().dimmed(),
            Tone::Good => Style::new().green(),
            Tone::Busy => Style::new().cyan(),
            Tone::Warn => Style::new().yellow(),
            Tone::Bad => Style::new().red().bold(),
        };
        if self.colour && !text.is_empty() { Cow::Owned(text.style(style).to_string()) } else { Cow::Borrowed(text) }
    }

    /// A time of day: `03:11:02.410`.
    #[must_use]
    pub fn clock(&self, at: DateTime<Utc>) -> String {
        at.with_timezone(&self.zone).format("%H:%M:%S%.3f").to_string()
    }

    /// A time with its day: `2026-11-25 03:11`.
    #[must_use]
    pub fn minute(&self, at: DateTime<Utc>) -> String {
        at.with_timezone(&self.zone).format("%Y-%m-%d %H:%M").to_string()
    }
}

/// <https://no-color.org>: set and not empty means no colour.
fn colour_wanted() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Text that others chose (names, reasons, labels), made harmless for a terminal: no control characters.
#[must_use]
pub fn harmless(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

/// Lines of whole words, none wider than `width` unless a word is. Without a width: one line.
#[must_use]
pub fn wrapped(text: &str, width: Option<usize>) -> Vec<String> {
    let width = width.unwrap_or(usize::MAX);
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut().filter(|line| line.width() + 1 + word.width() <= width) {
            Some(line) => line.extend([" ", word]),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A text behind its beginning, wrapped to the terminal: later lines stand below the text's own beginning. `width` is
/// the beginning's, which may be painted.
#[must_use]
pub fn hanging(begin: &str, width: usize, text: &str, look: &Look) -> String {
    // A text in a column of a few letters is not read.
    const NARROWEST: usize = 12;
    let room = look.width.map(|columns| columns.saturating_sub(width)).filter(|room| *room >= NARROWEST);
    format!("{begin}{}\n", wrapped(text, room).join(&format!("\n{}", " ".repeat(width))))
}

/// Prints text as it is.
pub fn print(text: &str) -> std::io::Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Says on stderr what is wrong: `flyci: …`.
pub fn complain(message: &str) {
    let colour = stderr().is_terminal() && colour_wanted();
    let look = Look { colour, width: None, zone: Utc.fix() };
    // Nothing can be said about a failure to say something.
    let _ = writeln!(stderr().lock(), "{} {}", look.paint(Tone::Bad, "flyci:"), commands(message));
}

/// Says on stderr what is going on, where output itself is for stdout: `flyci: …`.
pub fn tell(message: &str) {
    let _ = writeln!(stderr().lock(), "flyci: {message}");
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Output for snapshots: no colour, UTC.
    pub fn look(width: usize) -> Look {
        Look { colour: false, width: Some(width), zone: Utc.fix() }
    }

    #[test]
    fn without_colour_text_stays_as_it_is() {
        assert_eq!(look(80).paint(Tone::Bad, "lost"), "lost");
        let colourful = Look { colour: true, ..look(80) };
        assert_eq!(colourful.paint(Tone::Good, "done"), "\u{1b}[32mdone\u{1b}[0m");
    }

    #[test]
    fn a_long_text_hangs_below_its_beginning() {
        let text = hanging("  do: ", 6, "put it back under the profiles, or change it", &look(36));
        assert_eq!(text, "  do: put it back under the\n      profiles, or change it\n");
        assert_eq!(wrapped("a_word_without_end and", Some(6)), ["a_word_without_end", "and"]);
        assert_eq!(hanging("  ", 2, "one two", &Look { width: None, ..look(1) }), "  one two\n");
        assert_eq!(hanging("  ", 2, "one two", &look(8)), "  one two\n", "too narrow to be read in columns");
    }

    #[test]
    fn a_hostile_label_cannot_drive_the_terminal() {
        assert_eq!(harmless("flyci-\u{1b}[2Jx\n"), "flyci-\u{fffd}[2Jx\u{fffd}");
    }
}
