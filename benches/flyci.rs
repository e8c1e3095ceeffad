//! `script/bench`: what flyci's figures are made of, on this machine, in one run.
//!
//! Everything is measured with durable commits, and beside what the same Postgres reaches with `pgbench`:
//! figures of two machines, or of two runs, say little; ratios within one run say something.

mod support {
    pub mod clone;
    #[cfg(target_os = "linux")]
    pub mod cold;
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "real VMs are measured on Linux alone"))]
    pub mod daemon;
    #[cfg(target_os = "linux")]
    pub mod images;
    pub mod load;
    pub mod peer;
    pub mod reaction;
    pub mod stats;
}

use support::daemon::Child;
use support::stats::Table;
use support::{load, peer, reaction};

/// Deliveries of each level of the webhook load.
const DELIVERIES: usize = 3_000;
/// Deliveries under way at once.
const LEVELS: [usize; 3] = [1, 50, 200];
/// Jobs that are queued when the daemon's memory is looked at.
const QUEUED_JOBS: usize = 1_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    println!("{}\n", support::stats::machine());
    // `cargo bench` adds arguments of its own.
    let only = std::env::args().skip(1).find(|word| !word.starts_with("--"));
    let wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    if wanted("webhooks") {
        webhooks().await;
    }
    if wanted("reactions") {
        reactions().await;
    }
    if wanted("clone") {
        support::clone::run();
    }
    #[cfg(target_os = "linux")]
    if wanted("cold") {
        support::cold::run().await;
    }
    #[cfg(target_os = "linux")]
    if wanted("images") {
        support::images::run().await;
    }
}

/// Deliveries acknowledged per second beside plain inserts, and the daemon's memory.
async fn webhooks() {
    let daemon = Child::start().await;
    let mut memory = Table::new(&["memory of the daemon", "MB"]);
    memory.row(&["idle".into(), daemon.resident_mb()]);
    load::run(&daemon, 1, QUEUED_JOBS, 1).await;
    memory.row(&[format!("{QUEUED_JOBS} queued jobs"), daemon.resident_mb()]);

    let mut table = Table::new(&["deliveries at once", "acknowledged/s", "p50 ms", "p99 ms", "refused"]);
    let mut best: f64 = 0.0;
    for (round, level) in LEVELS.into_iter().enumerate() {
        let outcome = load::run(&daemon, level, DELIVERIES, 100_000 * (round as u64 + 1)).await;
        best = best.max(outcome.per_second);
        table.row(&[
            level.to_string(),
            format!("{:.0}", outcome.per_second),
            format!("{:.2}", outcome.latency.percentile(50.0)),
            format!("{:.2}", outcome.latency.percentile(99.0)),
            outcome.refused.to_string(),
        ]);
    }
    memory.row(&["after the load".into(), daemon.resident_mb()]);
    table.print();
    let inserts = peer::inserts_per_second(&daemon);
    println!(
        "pgbench, one-row insert, the same Postgres, {} connections: {inserts:.0}/s; webhooks reach {:.0} % of it\n",
        daemon.connections,
        100.0 * best / inserts
    );
    memory.print();
    daemon.stop().await;
}

/// From a queued job to the call that makes its vm, and from its end to the vm's.
async fn reactions() {
    let mut table =
        Table::new(&["jobs/s (fake VMs)", "jobs", "queued→create p50 ms", "p99 ms", "completed→gone p50 ms", "p99 ms"]);
    for (rate, jobs) in [(1, 15), (10, 100), (100, 500)] {
        let outcome = reaction::run(rate, jobs).await;
        table.row(&[
            rate.to_string(),
            jobs.to_string(),
            format!("{:.1}", outcome.create.percentile(50.0)),
            format!("{:.1}", outcome.create.percentile(99.0)),
            format!("{:.1}", outcome.gone.percentile(50.0)),
            format!("{:.1}", outcome.gone.percentile(99.0)),
        ]);
    }
    table.print();
}
