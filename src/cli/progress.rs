//! What is shown while something takes more than a second: one line that changes on a terminal, lines without one.

use super::out::tell;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::sync::Mutex;
use std::time::Duration;

const TICK: Duration = Duration::from_millis(120);

/// A line on stderr that says what goes on. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub struct Line {
    bar: Option<ProgressBar>,
    last: Mutex<String>,
}

impl Line {
    /// Begins.
    #[must_use]
    pub fn start(what: &str) -> Self {
        let line = Self { bar: stderr().is_terminal().then(spinner), last: Mutex::default() };
        line.say(what);
        line
    }

    /// Says what goes on now. Without a terminal a line is printed only when it differs in more than its times.
    pub fn say(&self, what: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(what.to_owned()),
            None => {
                let words = without_digits(what);
                let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if *last != words {
                    *last = words;
                    tell(what);
                }
            }
        }
    }

    /// Ends with a last word that stays.
    pub fn done(self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        tell(what);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {wide_msg}").expect("the template is well-formed");
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style);
    bar.enable_steady_tick(TICK);
    bar
}

fn without_digits(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_ascii_digit()).collect()
}
