//! Whole jobs in VMs whose processes are real: from GitHub's webhook to nothing that is left. The driver is the one that
//! runs QEMU's VMs (tests/vm/jobs.rs).

use crate::database::TestDatabase;
use crate::support::{Host, PATIENCE, eventually};
use fake_github::{AccountKind, Conclusion, FakeGitHub, JobHandle, JobScript, Options, Repo, Visibility};
use flyci::app::{Daemon, Overrides};
use flyci::config::Config;
use flyci::errors::chain;
use flyci::hypervisor::Hypervisor;
use flyci::hypervisor::vz::fault::FaultReason;
use flyci::hypervisor::vz::stand_in::Act;
use std::path::Path;
use std::sync::Arc;

/// The profile of the stories.
const LABEL: &str = "flyci-test";

/// A simulated GitHub, a daemon, and a host with two slots.
struct World {
    host: Host,
    github: FakeGitHub,
    repo: Repo,
    db: TestDatabase,
    daemon: Option<Daemon>,
}

impl World {
    async fn new() -> Self {
        let (host, db) = (Host::new(), TestDatabase::new().await);
        let github = FakeGitHub::start(Options::default()).await.expect("the simulated GitHub starts");
        let acme = github.install("acme", AccountKind::Organization);
        let repo = github.repository(&acme, "app", Visibility::Private);
        github.write_secrets(host.directory.path()).expect("the secrets are written");
        let mut world = Self { host, github, repo, db, daemon: None };
        world.start().await;
        world
    }

    async fn start(&mut self) {
        let hypervisor = Arc::clone(&self.host.vz) as Arc<dyn Hypervisor>;
        self.begin(hypervisor).await;
    }

    async fn begin(&mut self, hypervisor: Arc<dyn Hypervisor>) {
        let config = config(self.host.directory.path(), &self.host.image, &self.github, &self.db);
        let overrides = Overrides { hypervisor: Some(hypervisor) };
        let daemon = Daemon::start(&config, overrides).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        let address = daemon.public_address().expect("a gateway listens");
        self.github.set_webhook(&format!("http://{address}/webhooks/github"), None).expect("a URL");
        self.daemon = Some(daemon);
    }

    fn queue(&self, script: JobScript) -> JobHandle {
        self.github.queue_job(&self.repo, &[LABEL], script)
    }

    async fn texts(&self, query: &str) -> Vec<String> {
        sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_all(&self.db.owner).await.expect("the query works")
    }

    async fn until(&self, query: &str, expected: &[&str]) {
        eventually(&format!("{query} gives {expected:?}"), async || self.texts(query).await == expected).await;
    }

    async fn completed(&self, job: JobHandle) -> Option<Conclusion> {
        self.github.job_completed(job.id, PATIENCE).await.expect("it is completed in time").conclusion
    }

    async fn nothing_is_left(mut self) {
        self.until("SELECT id::text FROM vms WHERE state <> 'gone'", &[]).await;
        self.github.no_runners(PATIENCE).await.expect("no runner is left at GitHub");
        assert!(self.host.vz.list().await.expect("listed").is_empty());
        let vms = self.host.directory.path().join("vms");
        assert_eq!(crate::support::processes_of(&vms.display().to_string()), Vec::<String>::new());
        assert_eq!(std::fs::read_dir(vms).expect("listed").count(), 0);
        self.daemon.take().expect("a daemon").stop().await;
    }
}

fn config(root: &Path, image: &Path, github: &FakeGitHub, db: &TestDatabase) -> Config {
    let text = format!(
        r#"
data_dir = "data"
[web]
listen = "127.0.0.1:0"
[web.tls]
mode = "off"
[admin]
metrics_listen = "127.0.0.1:0"
[github]
api_url = "{api}"
app_id = {app}
private_key_file = "app.pem"
webhook_secret_file = "webhook.secret"
[tenants]
admission = "open"
[database]
url = "{database}"
[host]
name = "test"
hypervisor = "fake"
slots = 2
[[profiles]]
label = "{LABEL}"
cpus = 1
memory = "256MB"
disk_free = "1MB"
image = "{image}"
"#,
        api = github.url(),
        app = github.app_id(),
        database = db.url,
        image = image.display(),
    );
    Config::from_toml(&text, root).unwrap_or_else(|faults| panic!("{faults}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_jobs_run_in_processes_of_their_own_and_leave_only_metadata() {
    let world = World::new().await;
    let good = world.queue(JobScript::new().step("echo \"in namespace $(readlink /proc/self/ns/pid)\""));
    let bad = world.queue(JobScript::new().step("echo 'assertion failed'; exit 3").step("echo never"));
    assert_eq!(world.completed(good).await, Some(Conclusion::Success));
    assert_eq!(world.completed(bad).await, Some(Conclusion::Failure));
    let here = std::fs::read_link("/proc/self/ns/pid").expect("a namespace").display().to_string();
    let log = world.github.logs(good).join("\n");
    assert!(log.contains("in namespace pid:") && !log.contains(&here), "it ran inside: {log}");
    assert!(!world.github.logs(bad).join("\n").contains("never"));
    world.until("SELECT state FROM jobs", &["done", "done"]).await;
    world.until("SELECT coalesce(reason, state) FROM vms", &["job_done", "job_done"]).await;
    let vms = "SELECT DISTINCT vm_id::text FROM jobs JOIN vms ON vms.id = vm_id
        WHERE cloned_at <= booted_at AND booted_at <= ready_at AND ready_at <= serving_at";
    assert_eq!(world.texts(vms).await.len(), 2, "each had a vm of its own, and each step its time");
    world.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_while_no_daemon_is_there_and_the_next_ends_its_vm() {
    let mut world = World::new().await;
    let gate = world.host.directory.path().join("gate");
    let wait = format!("until [ -e {} ]; do sleep 0.05; done; echo through", gate.display());
    let job = world.queue(JobScript::new().step(wait));
    world.until("SELECT state FROM vms", &["serving"]).await;
    world.until("SELECT state FROM jobs", &["running"]).await;
    world.daemon.take().expect("a daemon").stop().await;
    let next = Arc::new(world.host.next_daemon());
    world.begin(next).await;
    world.until("SELECT state FROM vms", &["serving"]).await;
    std::fs::write(gate, "").expect("written");
    assert_eq!(world.completed(job).await, Some(Conclusion::Success));
    assert!(world.github.logs(job).join("\n").contains("through"));
    world.until("SELECT coalesce(reason, state) FROM vms", &["job_done"]).await;
    world.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_slot_is_told_and_charged_to_no_image_while_the_other_slot_serves() {
    let world = World::new().await;
    let gate = world.host.directory.path().join("gate");
    let wait = format!("until [ -e {} ]; do sleep 0.05; done", gate.display());
    let first = world.queue(JobScript::new().step(wait));
    world.until("SELECT state FROM jobs", &["running"]).await;
    world.host.stand_ins.change(|script| script.start = Act::Fail(FaultReason::LimitExceeded));
    let second = world.queue(JobScript::new().step("echo second"));
    world.until("SELECT reason FROM vms WHERE state = 'gone'", &["no_slot"]).await;
    assert_eq!(world.host.vz.lost_slots(), 1);
    assert_eq!(world.texts("SELECT host_id::text FROM host_images WHERE failures > 0").await, Vec::<String>::new());
    // The slot that is left serves both, one after the other.
    world.host.stand_ins.change(|script| script.start = Act::Well);
    std::fs::write(gate, "").expect("written");
    assert_eq!(world.completed(first).await, Some(Conclusion::Success));
    assert_eq!(world.completed(second).await, Some(Conclusion::Success));
    world.until("SELECT count(*)::text FROM vms WHERE reason = 'no_slot'", &["1"]).await;
    world.nothing_is_left().await;
}
