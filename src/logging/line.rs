//! One event as one line. Not here: which events there are.

use super::is_ours;
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::Value;
use std::fmt::{Debug, Write as _};
use std::io::Write;
use std::sync::Mutex;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// The longest value that is shown, in bytes.
const MAX_VALUE: usize = 2_048;
/// What is shown instead of what must not be.
const WITHHELD: &str = "(withheld)";
/// Words in a field's name that say its value identifies a customer or opens something.
const PRIVATE: [&str; 22] = [
    "account",
    "authorization",
    "body",
    "branch",
    "credential",
    "email",
    "header",
    "initiator",
    "jit",
    "key",
    "label",
    "login",
    "owner",
    "password",
    "payload",
    "repo",
    "secret",
    "sender",
    "sql",
    "token",
    "uri",
    "url",
];
/// The members that every line has in JSON; a field of the same name gives way.
const COMMON: [&str; 4] = ["time", "level", "message", "target"];
/// Of a value that was too long.
const ELLIPSIS: &str = "…";

/// How lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// For people.
    Text,
    /// For machines: one object per line.
    Json,
}

/// Writes every event as a line.
pub struct Lines<W> {
    format: Format,
    out: Mutex<W>,
}

impl<W: Write> Lines<W> {
    /// To this place.
    pub fn new(format: Format, out: W) -> Self {
        Self { format, out: Mutex::new(out) }
    }

    fn write(&self, line: &Line<'_>) {
        let mut text = match self.format {
            Format::Text => line.text(),
            Format::Json => line.json(),
        };
        text.push('\n');
        let mut out = self.out.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // A log that cannot be written must not stop the work.
        let _ = out.write_all(text.as_bytes());
    }
}

/// The fields of a span, kept with it.
struct SpanFields(Fields);

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Write + Send + 'static,
{
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        is_ours(metadata.target()) || *metadata.level() <= Level::WARN
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id).filter(|span| is_ours(span.metadata().target())) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().replace(SpanFields(fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(SpanFields(fields)) = span.extensions_mut().get_mut() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
            if let Some(SpanFields(outer)) = span.extensions().get() {
                fields.extend(outer);
            }
        }
        if is_ours(metadata.target()) {
            event.record(&mut fields);
        } else {
            let mut place = Place::default();
            event.record(&mut place);
            fields.message = place.told(metadata);
        }
        self.write(&Line { at: Utc::now(), level: *metadata.level(), target: metadata.target(), fields: &fields });
    }
}

/// What one line says.
struct Line<'a> {
    at: DateTime<Utc>,
    level: Level,
    target: &'a str,
    fields: &'a Fields,
}

impl Line<'_> {
    /// `03:11:02.410Z  WARN  message  vm.id=… error=…  (flyci::lifecycle)`
    fn text(&self) -> String {
        let at = self.at.format("%H:%M:%S%.3fZ");
        let (colour, end) = match self.level {
            Level::ERROR => ("\x1b[1;31m", "\x1b[0m"),
            Level::WARN => ("\x1b[33m", "\x1b[0m"),
            Level::INFO => ("", ""),
            Level::DEBUG | Level::TRACE => ("\x1b[2m", "\x1b[0m"),
        };
        let mut text = format!("{at} {colour}{:>5}{end}  {}", self.level.as_str(), escaped(&self.fields.message));
        for (name, value) in &self.fields.values {
            let shown = match value {
                Value::String(value) if value.contains([' ', '"']) => format!("{:?}", escaped(value)),
                Value::String(value) => escaped(value),
                value => value.to_string(),
            };
            // A `String` takes whatever is written.
            let _ = write!(text, "  \x1b[2m{name}=\x1b[0m{shown}");
        }
        text
    }

    /// One object, what every line has first.
    fn json(&self) -> String {
        let own = self.fields.values.iter().filter(|(name, _)| !COMMON.contains(name));
        let common: [Value; COMMON.len()] = [
            self.at.to_rfc3339_opts(SecondsFormat::Millis, true).into(),
            self.level.as_str().to_lowercase().into(),
            self.fields.message.clone().into(),
            self.target.into(),
        ];
        let members = COMMON.iter().zip(&common).chain(own.map(|(name, value)| (name, value)));
        let members: Vec<String> = members.map(|(name, value)| format!("{}:{value}", Value::from(*name))).collect();
        format!("{{{}}}", members.join(","))
    }
}

/// Control characters as `\n` and the like.
fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// The values of an event or a span of ours, those that must not be shown already replaced.
#[derive(Default)]
struct Fields {
    message: String,
    values: Vec<(&'static str, Value)>,
}

impl Fields {
    fn extend(&mut self, outer: &Self) {
        for (name, value) in &outer.values {
            self.put(name, value.clone());
        }
    }

    /// The last value of a name counts: an event knows better than its spans.
    fn put(&mut self, name: &'static str, value: Value) {
        self.values.retain(|(known, _)| *known != name);
        self.values.push((name, value));
    }

    fn set(&mut self, field: &Field, value: Value) {
        let name = field.name();
        if name == "message" {
            self.message = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        } else if is_private(name) {
            self.put(name, WITHHELD.into());
        } else {
            self.put(name, value);
        }
    }
}

/// Judged by the words of the name: `repository`, `jit_config`, `github.owner`; not `monkey`.
fn is_private(name: &str) -> bool {
    let mut words = name.split(['.', '_', '-']);
    words.any(|word| {
        PRIVATE
            .iter()
            .any(|private| word == *private || word.strip_suffix('s') == Some(private) || word == "repository")
    })
}

fn bounded(mut text: String) -> Value {
    if text.len() > MAX_VALUE {
        let end = (0..=MAX_VALUE).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
        text.push_str(ELLIPSIS);
    }
    Value::String(text)
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.set(field, bounded(format!("{value:?}")));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, bounded(value.to_owned()));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value.into());
    }
}

/// Where an event of another crate comes from: all that is told of it. Events of the `log` crate name their
/// place in fields.
#[derive(Default)]
struct Place {
    target: Option<String>,
    line: Option<u64>,
}

impl Place {
    fn told(&self, metadata: &tracing::Metadata<'_>) -> String {
        let target = self.target.as_deref().unwrap_or(metadata.target());
        let line = self.line.or_else(|| metadata.line().map(u64::from));
        let at = line.map(|line| format!(" at line {line}")).unwrap_or_default();
        format!("{target} reports something{at} (text withheld: it may name customers)")
    }
}

impl Visit for Place {
    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "log.target" {
            self.target = Some(value.to_owned());
        }
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "log.line" {
            self.line = Some(value);
        }
    }
}
