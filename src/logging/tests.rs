//! What the log shows, and what it never shows.

use super::line::{Format, Lines};
use super::*;
use std::io::Write;
use std::sync::{Arc, Mutex};
use tracing::Level;

/// A log in memory.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no writer panics").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What `work` logs under the most talkative filter.
fn logged(format: Format, work: impl FnOnce()) -> String {
    let memory = Memory::default();
    let (filter, _) = filter(Purpose::Daemon, |_| Some("trace".to_owned()));
    let subscriber = tracing_subscriber::registry().with(filter).with(Lines::new(format, memory.clone()));
    tracing::subscriber::with_default(subscriber, work);
    String::from_utf8(memory.0.lock().expect("no writer panics").clone()).expect("lines are UTF-8")
}

#[test]
fn an_event_tells_its_fields_and_those_of_its_spans() {
    let text = logged(Format::Json, || {
        let span = tracing::info_span!("drive", vm.id = "3f0c", job.id = tracing::field::Empty);
        span.record("job.id", 4711);
        span.in_scope(|| tracing::warn!(attempt = 2, error = %"the disk is full", "the vm could not be cloned"));
    });
    let line: serde_json::Value = serde_json::from_str(&text).expect("one object per line");
    assert_eq!(line["message"], "the vm could not be cloned");
    assert_eq!(line["level"], "warn");
    assert_eq!((&line["vm.id"], &line["job.id"], &line["attempt"]), (&"3f0c".into(), &4711.into(), &2.into()));
    assert_eq!(line["error"], "the disk is full");
}

#[test]
fn names_do_not_leak_even_at_trace() {
    for format in [Format::Text, Format::Json] {
        let text = logged(format, || {
            tracing::trace!(repository = "acme/canary", jit_config = "canary", github.owner = "canary", "minting");
            tracing::info_span!(target: "octocrab", "request", url = "https://api.github.com/repos/canary").in_scope(
                || {
                    tracing::warn!(target: "sqlx::query", statement = "select canary", "slow canary");
                    tracing::debug!("our own event inside");
                },
            );
        });
        assert!(!text.contains("canary"), "{text}");
        assert!(text.contains("sqlx::query reports something"), "{text}");
        assert!(text.contains("our own event inside") && text.contains("(withheld)"), "{text}");
    }
}

#[test]
fn other_crates_are_heard_from_warn_up_only() {
    let text = logged(Format::Text, || {
        tracing::info!(target: "hyper", "connection");
        tracing::event!(target: "flycillary", Level::INFO, "not ours");
    });
    assert_eq!(text, "");
}

#[test]
fn a_value_cannot_forge_a_line() {
    let text = logged(Format::Text, || tracing::info!(reason = "x\n00:00 ERROR forged \u{1b}[2J", "said"));
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(!text.contains("\u{1b}[2J"), "{text}");
}

#[test]
fn a_long_value_is_cut() {
    let text = logged(Format::Json, || tracing::info!(reason = "ä".repeat(10_000), "said"));
    assert!(text.len() < 3_000, "{} bytes", text.len());
}

#[test]
fn a_panic_tells_its_place_and_no_text_that_was_put_together() {
    let text = logged(Format::Json, || {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(tell_panic));
        let canary = "canary";
        let outcome = std::panic::catch_unwind(|| panic!("no room for {canary}"));
        std::panic::set_hook(before);
        assert!(outcome.is_err());
    });
    assert!(text.contains("logging/tests.rs") && !text.contains("canary"), "{text}");
}

#[test]
fn the_filter_comes_from_the_environment_and_is_checked() {
    let set = |wanted: &'static str, text: &'static str| move |name: &str| (name == wanted).then(|| text.to_owned());
    assert_eq!(filter(Purpose::Daemon, |_| None).1, None);
    assert_eq!(filter(Purpose::Daemon, set("RUST_LOG", "debug")).1, None);
    let (_, fault) = filter(Purpose::Daemon, set("FLYCI_LOG", "flyci=loud"));
    assert!(fault.is_some_and(|fault| fault.contains("FLYCI_LOG")));
}
