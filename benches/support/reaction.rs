//! How soon flyci acts: a daemon with VMs that take no time, and runners that speak to the simulated GitHub.

use super::stats::Samples;
use fake_github::runner::{Behaviour, Work};
use fake_github::{AccountKind, Conclusion, FakeGitHub, JobHandle, JobScript, Options, Visibility};
use flyci::app::{Daemon, Overrides};
use flyci::config::Config;
use flyci::guest::RunnerEnd;
use flyci::hypervisor::Hypervisor;
use flyci::hypervisor::fake::{FakeHypervisor, FakeOptions, FakeRunner};
use secrecy::{ExposeSecret, SecretString};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a job runs.
const JOB: Duration = Duration::from_millis(500);
/// How long the last job may take to be over.
const DEADLINE: Duration = Duration::from_secs(180);

pub struct Outcome {
    pub create: Samples,
    pub gone: Samples,
}

struct Runner;

#[async_trait::async_trait]
impl FakeRunner for Runner {
    async fn run(&self, jit_config: SecretString) -> RunnerEnd {
        let behaviour = Behaviour::working(Work::For(JOB, Conclusion::Success));
        RunnerEnd { status: fake_github::runner::run(jit_config.expose_secret(), behaviour).await, too_old: false }
    }
}

/// Queues `jobs` jobs at `rate` per second, and looks when their vms are made and gone.
pub async fn run(rate: u32, jobs: usize) -> Outcome {
    let github = FakeGitHub::start(Options::default()).await.expect("the simulated GitHub starts");
    let folder = tempfile::Builder::new().prefix("flyci-bench").tempdir_in("/tmp").expect("a folder");
    let events = folder.path().join("events.jsonl");
    let options = FakeOptions { events_file: Some(events.clone()), ..FakeOptions::default() };
    let machines = FakeHypervisor::new(options, Arc::new(Runner)) as Arc<dyn Hypervisor>;
    let config = config(&github, folder.path());
    let daemon = Daemon::start(&config, Overrides { hypervisor: Some(machines) }).await.expect("the daemon starts");
    let address = daemon.public_address().expect("it listens");
    github.set_webhook(&format!("http://{address}/webhooks/github"), None).expect("a URL");
    let acme = github.install("acme", AccountKind::Organization);
    let repositories: Vec<_> =
        (0..10).map(|index| github.repository(&acme, &format!("app-{index}"), Visibility::Private)).collect();

    let mut queued: Vec<(i64, JobHandle)> = Vec::new();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    for index in 0..jobs {
        ticks.tick().await;
        let at = chrono::Utc::now().timestamp_millis();
        let script = JobScript::new().step("true");
        queued.push((at, github.queue_job(&repositories[index % 10], &["flyci-test"], script)));
    }
    let mut completed = Vec::new();
    for (_, job) in &queued {
        let job = github.job_completed(job.id, DEADLINE).await.expect("every job is served");
        completed.push(job.completed_at.expect("it is completed").timestamp_millis());
    }
    let (created, deleted) = until_gone(&events, jobs).await;
    daemon.stop().await;
    // The n-th call is paired with the n-th job: all are alike.
    let queued = queued.into_iter().map(|(at, _)| at).collect();
    Outcome { create: pair(queued, created), gone: pair(completed, deleted) }
}

fn pair(mut from: Vec<i64>, mut to: Vec<i64>) -> Samples {
    from.sort_unstable();
    to.sort_unstable();
    Samples::new(from.iter().zip(&to).map(|(from, to)| (to - from) as f64).collect())
}

/// When vms were made and deleted, once as many are deleted as there were jobs.
async fn until_gone(events: &Path, jobs: usize) -> (Vec<i64>, Vec<i64>) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let text = std::fs::read_to_string(events).unwrap_or_default();
        let (mut created, mut deleted) = (Vec::new(), Vec::new());
        for line in text.lines() {
            let Ok(event) = serde_json::from_str::<serde_json::Value>(line) else { continue };
            let at = event["t"].as_i64().unwrap_or_default();
            match event["op"].as_str() {
                Some("create") => created.push(at),
                Some("delete") => deleted.push(at),
                _ => {}
            }
        }
        if deleted.len() >= jobs {
            return (created, deleted);
        }
        assert!(tokio::time::Instant::now() < deadline, "{} of {jobs} vms are gone", deleted.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn config(github: &FakeGitHub, folder: &Path) -> Config {
    github.write_secrets(folder).expect("the secrets are written");
    let text = format!(
        r#"
data_dir = "data"
[web]
listen = "127.0.0.1:0"
[web.tls]
mode = "off"
[admin]
metrics_listen = "off"
[github]
api_url = "{}"
app_id = {}
private_key_file = "app.pem"
webhook_secret_file = "webhook.secret"
[tenants]
admission = "open"
[database]
max_connections = 20
[host]
name = "bench"
hypervisor = "fake"
slots = 250
[limits]
jobs_per_installation = 250
[[profiles]]
label = "flyci-test"
cpus = 1
memory = "128MB"
disk_free = "1GB"
image = "any"
"#,
        github.url(),
        github.app_id()
    );
    Config::from_toml(&text, folder).unwrap_or_else(|faults| panic!("{faults}"))
}
