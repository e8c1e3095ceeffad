//! The whole of it: a simulated GitHub on the wire, a daemon, and machines that are not there.
//!
//! The vms' runners speak to the simulated GitHub over HTTP, as real ones would. A story ends with
//! [`World::nothing_is_left`].

use super::database::TestDatabase;
use fake_github::runner::{Behaviour, Work};
use fake_github::{AccountKind, Conclusion, FakeGitHub, Installation, JobHandle, JobScript, Options, Repo, Visibility};
use flyci::app::{Daemon, Overrides, Upkeep};
use flyci::config::{Config, TlsMode};
use flyci::domain::ids::FleetId;
use flyci::errors::chain;
use flyci::github::GitHub;
use flyci::guest::RunnerEnd;
use flyci::hypervisor::fake::{FakeHypervisor, FakeOptions, FakeRunner, Fault, Step};
use flyci::secrets::KeyRing;
use flyci::secrets::vouch::{self, JoinToken, Warrant};
use flyci::store::{self, Role, joins};
use flyci::upkeep::trail;
use secrecy::{ExposeSecret, SecretString};
use sqlx::PgPool;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

/// No step of a story takes longer.
pub const SOON: Duration = Duration::from_secs(20);
/// The profile of the stories.
pub const LABEL: &str = "flyci-test";

/// What is configured beside the defaults of a story.
#[derive(Default)]
pub struct Setup {
    /// Lines under `[limits]`.
    pub limits: &'static str,
    /// Lines under `[host]`.
    pub host: &'static str,
    /// Slots of the host; 0: four.
    pub slots: u32,
    /// Lines under `[[profiles]]`.
    pub profile: &'static str,
    /// The account that installs the App must be approved first.
    pub admission_by_operator: bool,
    /// Jobs of public repositories are served.
    pub public_repositories: bool,
    /// Deliveries are fetched from GitHub's log of them.
    pub pull: bool,
    /// The daemon is a gateway alone: hosts are started by the story.
    pub gateway_alone: bool,
    /// The public listener speaks TLS, and this stands under `[web]`.
    pub web_over_tls: Option<&'static str>,
}

/// A world with one organisation and one private repository.
pub struct World {
    pub github: FakeGitHub,
    pub db: TestDatabase,
    pub machines: Arc<FakeHypervisor>,
    pub runners: Arc<Runners>,
    pub acme: Installation,
    pub repo: Repo,
    config: Config,
    daemon: Option<Daemon>,
    folder: TempDir,
}

/// Another host of the fleet: a daemon and a machine of its own.
pub struct Host {
    pub machines: Arc<FakeHypervisor>,
    /// Its login of the database.
    pub login: String,
    pub config: Config,
    daemon: Option<Daemon>,
}

impl Host {
    /// Starts its daemon, again.
    pub async fn start(&mut self) {
        self.daemon = Some(start_with(&self.config, &self.machines).await);
    }

    /// Acts as its daemon does.
    pub async fn pool(&self) -> PgPool {
        let url = self.config.database.url.as_ref().expect("it has one").expose();
        store::connect(&url.parse().expect("a URL"), Role::Host, 2).await.expect("its login may be a host")
    }

    /// Why its daemon does not start.
    pub async fn refusal(&self) -> String {
        match Daemon::start(&self.config, overrides(&self.machines)).await {
            Ok(_) => panic!("it started"),
            Err(error) => chain(&error).to_string(),
        }
    }

    /// Stops its daemon; its machines go on. For the others it falls silent.
    pub async fn stop(&mut self) {
        self.daemon.take().expect("its daemon runs").stop().await;
    }

    /// Waits until none of its machines is there, and stops it.
    pub async fn nothing_is_left(mut self, world: &World) {
        world.until("nothing is left on the host", async || self.machines.vms().is_empty()).await;
        if self.daemon.is_some() {
            self.stop().await;
        }
    }
}

/// The runners in the vms: all do what the story says.
pub struct Runners(Mutex<Behaviour>);

impl Runners {
    /// What runners that start from now on do.
    pub fn will(&self, behaviour: Behaviour) {
        *self.0.lock().expect("no runner panics") = behaviour;
    }
}

#[async_trait::async_trait]
impl FakeRunner for Runners {
    async fn run(&self, jit_config: SecretString) -> RunnerEnd {
        let behaviour = self.0.lock().expect("no runner panics").clone();
        let status = fake_github::runner::run(jit_config.expose_secret(), behaviour).await;
        // What the real runner exits with when GitHub calls it deprecated.
        RunnerEnd { status, too_old: status == 7 }
    }
}

impl World {
    pub async fn new() -> Self {
        Self::with(Setup::default()).await
    }

    pub async fn with(setup: Setup) -> Self {
        let db = TestDatabase::new().await;
        let github = FakeGitHub::start(Options::default()).await.expect("the simulated GitHub starts");
        let folder = tempfile::tempdir().expect("a folder");
        let config = config(&setup, &github, &db, &folder);
        let runners = Arc::new(Runners(Mutex::new(Behaviour::default())));
        let machines = FakeHypervisor::new(FakeOptions::default(), Arc::clone(&runners) as Arc<dyn FakeRunner>);
        let daemon = start(&config, &machines, &github).await;
        let acme = github.install("acme", AccountKind::Organization);
        let repo = github.repository(&acme, "app", Visibility::Private);
        Self { github, db, machines, runners, acme, repo, config, daemon: Some(daemon), folder }
    }

    /// Starts the daemon again.
    pub async fn start(&mut self) {
        self.daemon = Some(start(&self.config, &self.machines, &self.github).await);
    }

    /// Another host that has joined, with this number of slots and a login of its own; its daemon is not started yet.
    pub async fn host(&self, name: &str, slots: u32) -> Host {
        let host = self.stranger(name, slots).await;
        let token = self.invite(name, &host.login).await;
        let joined = flyci::app::join(&host.config, &token).await;
        joined.unwrap_or_else(|error| panic!("{}", chain(&error)));
        host
    }

    /// A host that has a login of the database, and has not joined.
    pub async fn stranger(&self, name: &str, slots: u32) -> Host {
        // Logins are the cluster's, which the tests share.
        let login = format!("flyci_host_{}", uuid::Uuid::new_v4().simple());
        self.execute(&format!("CREATE ROLE {login} LOGIN NOINHERIT IN ROLE flyci_host")).await;
        let url = self.db.url.replacen("//flyci@", &format!("//{login}@"), 1);
        let text = host_text(name, slots, &url);
        let config = Config::from_toml(&text, self.folder.path()).unwrap_or_else(|faults| panic!("{faults}"));
        let machines = FakeHypervisor::new(FakeOptions::default(), Arc::clone(&self.runners) as Arc<dyn FakeRunner>);
        Host { machines, login, config, daemon: None }
    }

    /// What the gateways vouch for hosts by.
    pub async fn warrant(&self) -> Warrant {
        let ring = KeyRing::open(&self.folder.path().join("data/master.key")).expect("the gateway's master key");
        trail::open(&self.db.gateway, &ring, "world").await.expect("the trail's key opens").warrant()
    }

    /// Lets a host join, as `flyci host invite` does.
    pub async fn invite(&self, name: &str, login: &str) -> JoinToken {
        let nonce = vouch::nonce();
        let mut tx = self.db.gateway.begin().await.expect("a transaction");
        let until = joins::invite(&mut tx, name, login, &nonce, 15).await.expect("it is invited");
        tx.commit().await.expect("it is committed");
        self.warrant().await.token(name, login, &nonce, until)
    }

    /// The hosts of the live vms, and the vms' states.
    pub async fn live(&self) -> Vec<String> {
        self.texts(
            "SELECT h.name || ' ' || v.state FROM vms v JOIN hosts h ON h.id = v.host_id
             WHERE v.state <> 'gone' ORDER BY h.name, v.planned_at",
        )
        .await
    }

    /// Stops the daemon; the machines go on.
    pub async fn stop(&mut self) {
        self.daemon.take().expect("a daemon runs").stop().await;
    }

    /// What keeps the daemon and GitHub in agreement, to be stepped.
    pub fn upkeep(&self) -> Arc<Upkeep> {
        Arc::clone(self.daemon.as_ref().and_then(|daemon| daemon.upkeep.as_ref()).expect("a gateway runs"))
    }

    /// A path in the world's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where deliveries are taken.
    pub fn public(&self) -> SocketAddr {
        self.daemon.as_ref().and_then(Daemon::public_address).expect("deliveries are taken")
    }

    /// The daemon's fleet.
    pub fn fleet(&self) -> FleetId {
        self.daemon.as_ref().expect("a daemon runs").fleet
    }

    /// Queues a job whose vm does not get ready until [`Step::Ready`] is healed, and waits until that vm boots.
    pub async fn queue_held(&self) -> JobHandle {
        self.machines.inject(Step::Ready, Fault::Hang);
        let job = self.queue();
        self.vms_are("booting", 1).await;
        job
    }

    /// The same on another host of the fleet.
    pub async fn queue_held_on(&self, host: &Host) -> JobHandle {
        host.machines.inject(Step::Ready, Fault::Hang);
        let job = self.queue();
        self.vms_are("booting", 1).await;
        job
    }

    /// Another client of the same App.
    pub fn client(&self) -> GitHub {
        GitHub::new(&flyci::github::Options {
            api_url: self.github.url().to_owned(),
            app_id: self.github.app_id(),
            private_key: self.github.private_key_pem().to_owned().into(),
            previous_private_key: None,
            ca_pem: None,
            proxy_url: None,
            user_agent: "test".to_owned(),
            public_repositories: false,
            on_call: None,
        })
        .expect("a client")
    }

    /// Loses the next delivery so that GitHub itself does not know of it.
    pub fn lose_next_delivery(&self) {
        self.github.switch(|switches| {
            switches.deliveries.drop_next = 1;
            switches.deliveries.drop_without_trace = true;
        });
    }

    /// Loses every delivery from now on, without a trace.
    pub fn lose_deliveries(&self) {
        self.github.switch(|switches| {
            switches.deliveries.drop_fraction = 1.0;
            switches.deliveries.drop_without_trace = true;
        });
    }

    /// Waits until GitHub has tried all its deliveries.
    pub async fn settled(&self) {
        self.github.deliveries_settled(SOON).await.expect("the deliveries are tried in time");
    }

    /// It is the turn of every repository again.
    pub async fn repositories_are_due(&self) {
        self.execute("UPDATE repositories SET scanned_at = NULL, swept_at = NULL").await;
    }

    /// Queues a job of the repository.
    pub fn queue(&self) -> JobHandle {
        self.queue_on(&self.repo)
    }

    pub fn queue_on(&self, repo: &Repo) -> JobHandle {
        self.github.queue_job(repo, &[LABEL], JobScript::new().step("true"))
    }

    /// Waits until GitHub says that the job is over.
    pub async fn completed(&self, job: JobHandle) -> fake_github::JobView {
        self.github.job_completed(job.id, SOON).await.expect("the job is completed in time")
    }

    /// Waits until every job of ours is in one of these states.
    pub async fn jobs_are(&self, expected: &[&str]) {
        self.until("the jobs are as expected", async || {
            let mut states = self.texts("SELECT state FROM jobs ORDER BY state").await;
            let mut expected: Vec<String> = expected.iter().map(|state| (*state).to_owned()).collect();
            expected.sort();
            states.sort();
            states == expected
        })
        .await;
    }

    /// Waits until as many vms are in this state.
    pub async fn vms_are(&self, state: &str, count: usize) {
        self.until(&format!("{count} vms are {state}"), async || {
            self.texts("SELECT state FROM vms").await.iter().filter(|found| *found == state).count() == count
        })
        .await;
    }

    /// Why the vms ended, in the order of their plans.
    pub async fn ends(&self) -> Vec<String> {
        self.texts("SELECT coalesce(reason, state) FROM vms ORDER BY planned_at").await
    }

    /// The first column of a query, as text.
    pub async fn texts(&self, query: &str) -> Vec<String> {
        sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_all(&self.db.owner).await.expect("the query works")
    }

    pub async fn execute(&self, statement: &str) {
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&self.db.owner).await.expect("the statement works");
    }

    /// Waits until `condition` holds, and says what is there when it does not in time.
    pub async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let deadline = tokio::time::Instant::now() + SOON;
        while !condition().await {
            if tokio::time::Instant::now() > deadline {
                panic!("{what}: not within {SOON:?}\n{}", self.picture().await);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// All that is there, for the reader of a failed test.
    async fn picture(&self) -> String {
        let mut picture = String::new();
        for table in ["jobs", "vms", "runners", "hosts", "host_images", "deliveries", "refusals"] {
            let rows = self.texts(&format!("SELECT row_to_json(t)::text FROM {table} t")).await;
            picture += &format!("{table}:\n  {}\n", rows.join("\n  "));
        }
        picture
            + &format!("GitHub's jobs: {:#?}\nGitHub's runners: {:#?}", self.github.jobs(), self.github.all_runners())
    }

    /// The end of every story: no machine, no live row, no registration is left.
    pub async fn nothing_is_left(mut self) {
        self.until("nothing is left", async || {
            let live = self.texts("SELECT state FROM vms WHERE state <> 'gone'").await;
            let open = self.texts("SELECT state FROM runners WHERE state NOT IN ('removed', 'void')").await;
            let sealed = self.texts("SELECT id::text FROM runners WHERE sealed_jit IS NOT NULL").await;
            live.is_empty()
                && open.is_empty()
                && sealed.is_empty()
                && self.machines.vms().is_empty()
                && self.github.all_runners().is_empty()
        })
        .await;
        if self.daemon.is_some() {
            self.stop().await;
        }
    }
}

/// A runner that ends its job well after a while.
pub fn working_for(time: Duration) -> Behaviour {
    Behaviour::working(Work::For(time, Conclusion::Success))
}

fn overrides(machines: &Arc<FakeHypervisor>) -> Overrides {
    Overrides { hypervisor: Some(Arc::clone(machines) as Arc<dyn flyci::hypervisor::Hypervisor>) }
}

async fn start_with(config: &Config, machines: &Arc<FakeHypervisor>) -> Daemon {
    Daemon::start(config, overrides(machines)).await.unwrap_or_else(|error| panic!("{}", chain(&error)))
}

async fn start(config: &Config, machines: &Arc<FakeHypervisor>, github: &FakeGitHub) -> Daemon {
    let daemon = start_with(config, machines).await;
    match daemon.public_address() {
        Some(address) if config.web.tls.mode == TlsMode::Off => {
            github.set_webhook(&format!("http://{address}/webhooks/github"), None).expect("a URL");
        }
        Some(address) => {
            let certificate = std::fs::read_to_string(config.data_dir.join("web.crt")).expect("the daemon made it");
            let url = format!("https://localhost:{}/webhooks/github", address.port());
            github.set_webhook(&url, Some(&certificate)).expect("a URL");
        }
        None => {}
    }
    daemon
}

fn config(setup: &Setup, github: &FakeGitHub, db: &TestDatabase, folder: &TempDir) -> Config {
    github.write_secrets(folder.path()).expect("the secrets are written");
    let slots = if setup.slots == 0 { 4 } else { setup.slots };
    let admission = if setup.admission_by_operator { "approve" } else { "open" };
    let roles = if setup.gateway_alone { "\"gateway\"" } else { "\"gateway\", \"host\"" };
    let text = format!(
        r#"
data_dir = "data"
roles = [{roles}]
[web]
listen = "127.0.0.1:0"
{web}
[web.tls]
mode = "{tls}"
[admin]
metrics_listen = "127.0.0.1:0"
[github]
api_url = "{api}"
app_id = {app}
private_key_file = "app.pem"
{deliveries}
[tenants]
admission = "{admission}"
public_repositories = {public}
[database]
url = "{database}"
[host]
name = "test"
hypervisor = "fake"
slots = {slots}
{host}
[limits]
{limits}
[[profiles]]
label = "{LABEL}"
cpus = 1
memory = "128MB"
disk_free = "1GB"
image = "any"
{profile}
"#,
        web = setup.web_over_tls.unwrap_or_default(),
        tls = if setup.web_over_tls.is_some() { "self-signed" } else { "off" },
        api = github.url(),
        app = github.app_id(),
        deliveries = if setup.pull { "intake = \"pull\"" } else { "webhook_secret_file = \"webhook.secret\"" },
        public = setup.public_repositories,
        database = db.url,
        host = setup.host,
        limits = setup.limits,
        profile = setup.profile,
    );
    Config::from_toml(&text, folder.path()).unwrap_or_else(|faults| panic!("{faults}"))
}

fn host_text(name: &str, slots: u32, url: &str) -> String {
    format!(
        r#"
data_dir = "data-{name}"
roles = ["host"]
[admin]
metrics_listen = "127.0.0.1:0"
[database]
url = "{database}"
[host]
name = "{name}"
hypervisor = "fake"
slots = {slots}
[[profiles]]
label = "{LABEL}"
cpus = 1
memory = "128MB"
disk_free = "1GB"
image = "any"
"#,
        database = url,
    )
}
