//! The log: one line per event on stderr, as text on a terminal, as JSON otherwise.
//!
//! This is one redacting boundary. Of our own events fields are shown, except those whose name says that they
//! hold what identifies a customer or opens something. Of other crates' events only level and place are shown,
//! whatever the filter says: their texts quote URLs, SQL, repository names. Control characters are escaped, so a
//! value cannot forge a line. Does not: know what an event means.

mod line;
mod rotation;

use std::io::{IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::path::Path;
use std::sync::Once;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What the process is for: says how much it tells by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// It runs for long, and its log is its voice.
    Daemon,
    /// It answers an operator, and speaks only of what went wrong.
    Command,
}

/// The environment variables that say how much is told, the first that is set counts.
const FILTERS: [&str; 2] = ["FLYCI_LOG", "RUST_LOG"];
/// Where our own events come from.
const OURS: [&str; 3] = ["flyci", "flyci_agent", "fake_github"];

/// Starts the log, once per process, and tells panics through it. With `file`, it goes there and not to stderr.
pub fn start(purpose: Purpose, file: Option<&Path>) {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let (filter, fault) = filter(purpose, |name| std::env::var(name).ok());
        let (lines, refused) = lines(file);
        tracing_subscriber::registry().with(filter).with(lines).init();
        std::panic::set_hook(Box::new(tell_panic));
        if let Some(fault) = fault {
            tracing::warn!(reason = %fault, "the log filter is not understood; the default is used");
        }
        if let Some(error) = refused {
            tracing::error!(%error, "the log file cannot be opened; the log goes to stderr");
        }
    });
}

/// Where lines go, and why they do not go to the file.
fn lines(file: Option<&Path>) -> (line::Lines<Box<dyn Write + Send>>, Option<std::io::Error>) {
    let format = if std::io::stderr().is_terminal() { line::Format::Text } else { line::Format::Json };
    match file.map(rotation::Rotating::open) {
        Some(Ok(file)) => (line::Lines::new(line::Format::Json, Box::new(file)), None),
        Some(Err(error)) => (line::Lines::new(format, Box::new(std::io::stderr())), Some(error)),
        None => (line::Lines::new(format, Box::new(std::io::stderr())), None),
    }
}

/// How much is told, and what was wrong with what the environment says.
fn filter(purpose: Purpose, variable: impl Fn(&str) -> Option<String>) -> (EnvFilter, Option<String>) {
    let default = match purpose {
        Purpose::Daemon => "warn,flyci=info,flyci_agent=info",
        Purpose::Command => "warn",
    };
    let builder = || EnvFilter::builder().with_default_directive(LevelFilter::WARN.into());
    let asked = FILTERS.iter().find_map(|name| Some((*name, variable(name).filter(|text| !text.is_empty())?)));
    let Some((name, text)) = asked else { return (builder().parse_lossy(default), None) };
    match builder().parse(&text) {
        Ok(filter) => (filter, None),
        Err(_) => (builder().parse_lossy(default), Some(format!("{name} must be like `debug` or `warn,flyci=debug`"))),
    }
}

/// True when events of this target are ours.
fn is_ours(target: &str) -> bool {
    OURS.iter().any(|ours| target.strip_prefix(ours).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")))
}

/// One line, with the text only when it is a literal: a text that was put together may hold anything.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let literal = panic.payload().downcast_ref::<&'static str>().copied();
    tracing::error!(
        place,
        thread = thread.name().unwrap_or_default(),
        what = literal.unwrap_or("(withheld: it was put together at run time)"),
        "a task panicked: this is a bug of flyci, please report this line"
    );
}

#[cfg(test)]
mod tests;
