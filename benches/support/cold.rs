//! A job in a real VM that is made for it: nothing is warm.

use super::daemon::Child;
use super::stats::{Samples, Table};
use fake_github::{AccountKind, JobScript, Visibility};
use std::path::Path;
use std::time::Duration;

/// Jobs, one after the other.
const JOBS: usize = 8;
/// How long one may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// The steps of a vm, and the rows' columns that they lie between.
const STEPS: [(&str, &str); 6] = [
    ("queued → runner started", "v.serving_at - j.received_at"),
    ("  planned → cloned", "v.cloned_at - v.planned_at"),
    ("  cloned → process up", "v.booted_at - v.cloned_at"),
    ("  process up → guest ready", "v.ready_at - v.booted_at"),
    ("  ready → runner started", "v.serving_at - v.ready_at"),
    ("end decided → gone", "v.gone_at - v.stopping_at"),
];

pub async fn run() {
    let folder = tempfile::Builder::new().prefix("flyci-bench").tempdir_in("/tmp").expect("a folder");
    let daemon = Child::with_qemu(runner(folder.path())).await;
    let acme = daemon.github.install("acme", AccountKind::Organization);
    let repository = daemon.github.repository(&acme, "app", Visibility::Private);
    for _ in 0..JOBS {
        let job = daemon.github.queue_job(&repository, &["flyci-test"], JobScript::new().step("true"));
        daemon.github.job_completed(job.id, DEADLINE).await.expect("the job is served");
        daemon.github.no_runners(DEADLINE).await.expect("its runner is gone");
    }
    let mut table = Table::new(&["a job in a QEMU VM, cold (ms)", "p50", "worst"]);
    for (name, difference) in STEPS {
        let sql = format!(
            "SELECT extract(epoch FROM {difference}) * 1000 FROM jobs j JOIN vms v ON v.id = j.vm_id WHERE v.gone_at IS NOT NULL"
        );
        let samples = Samples::new(daemon.query(&sql));
        table.row(&[
            format!("{name:<28}"),
            format!("{:.0}", samples.percentile(50.0)),
            format!("{:.0}", samples.percentile(100.0)),
        ]);
    }
    table.print();
    daemon.stop().await;
}

/// The small runner for guests, which `script/bench` builds.
fn runner(folder: &Path) -> std::path::PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = format!("target/{}-unknown-linux-musl/agent/fake-runner", std::env::consts::ARCH);
    let directory = folder.join("runner");
    std::fs::create_dir(&directory).expect("the runner's folder");
    std::fs::copy(root.join(target), directory.join("fake-runner")).expect("script/bench builds the runner");
    std::fs::copy(root.join("fake-github/runner/run.sh"), directory.join("run.sh")).expect("the runner's script");
    directory
}
