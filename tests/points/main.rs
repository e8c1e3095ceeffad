//! `kill -9` before and after each effect of the daemon: every job still ends as it must, and nothing is left.
//!
//! The points come from the source: each `effect!` of `src/` makes two. Each story is played once to learn which
//! points it meets, then once for each of its points, with a daemon that dies there and is started again. A
//! point that no story meets fails the test. The daemon is this program again, as a process of its own; the
//! machines stay in the process of the test, as they would outlive a daemon. `FLYCI_POINTS_ONLY=mint.` plays
//! the points whose name contains the text.
//!
//! Needs the feature `failpoints` and a Postgres: `script/test` sees to both.

#[path = "../it/support/database.rs"]
#[expect(dead_code, reason = "here the daemon has pools of its own")]
mod database;

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/machines.rs"]
mod machines;
mod reconcile;
mod source;
mod stories;
mod table;
#[path = "support/world.rs"]
mod world;

use std::process::ExitCode;

/// The test's name.
const TEST: &str = "a_daemon_killed_at_any_point_loses_nothing_and_leaves_nothing";

/// As `cargo nextest` and `cargo test` ask of a test program without their harness.
fn main() -> ExitCode {
    if let Some(place) = std::env::var_os(daemon::PLACE) {
        return daemon::run(place.as_ref());
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let asked = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if asked("--list") {
        if !asked("--ignored") {
            println!("{TEST}: test");
        }
        return ExitCode::SUCCESS;
    }
    let filtered = arguments.iter().filter(|argument| !argument.starts_with('-'));
    if asked("--ignored")
        || filtered.clone().count() > 0 && !filtered.clone().any(|filter| TEST.contains(filter.as_str()))
    {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(table::play_all())
}
