//! A world of its own for each run: a simulated GitHub, machines, a database, and a daemon that is started again
//! whenever it dies. What dies is only the daemon; GitHub sends again what it could not deliver, as its button does.

use crate::daemon::{CONFIG, PLACE};
use crate::database::TestDatabase;
use crate::machines::{self, SOCKET};
use fake_github::runner::Behaviour;
use fake_github::{
    AccountKind, Conclusion, FakeGitHub, Installation, JobHandle, JobScript, JobView, Options, Repo, Visibility,
};
use flyci::guest::RunnerEnd;
use flyci::hypervisor::fake::{FakeHypervisor, FakeOptions, FakeRunner};
use flyci::points::{DIE, DIED, DIRECTORY, REACHED};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{Connection, Executor, PgConnection};
use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File, OpenOptions, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

/// No step of a story takes longer, a restart and the waits of a machine with many daemons included.
const PATIENCE: Duration = Duration::from_secs(90);
/// Pause before something is looked at again.
const AGAIN: Duration = Duration::from_millis(50);
/// How often it is looked which deliveries failed.
const REDELIVER: Duration = Duration::from_millis(200);
/// How much of the daemon's log is shown when a run fails, in lines.
const LOG_LINES: usize = 40;
/// Where daemons begin to look for a port of their own.
const FIRST_PORT: u16 = 21_000;
/// The profile of the stories.
pub const LABEL: &str = "flyci-test";

/// What is not the same in all worlds.
#[derive(Clone, Copy)]
pub struct Setup {
    /// Lines under `[limits]`.
    pub limits: &'static str,
    /// Deliveries are pulled.
    pub pulls: bool,
    /// The host serves the one installation alone.
    pub dedicated: bool,
    /// The master key is rotated when it is a day old.
    pub rotates: bool,
}

impl Setup {
    pub const fn with(limits: &'static str) -> Self {
        Self { limits, pulls: false, dedicated: false, rotates: false }
    }
}

/// A world with one organisation and one private repository.
pub struct World {
    pub github: Arc<FakeGitHub>,
    pub machines: Arc<FakeHypervisor>,
    pub runners: Arc<Runners>,
    pub acme: Installation,
    pub repo: Repo,
    db: TestDatabase,
    folder: TempDir,
    wanted: watch::Sender<bool>,
    running: watch::Receiver<bool>,
    failure: Arc<Mutex<Option<String>>>,
    power_cut: Arc<AtomicBool>,
    sends_again: Arc<AtomicBool>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

/// The runners in the vms: all do what the story says, and none is started twice.
pub struct Runners {
    behaviour: Mutex<Behaviour>,
    started: Mutex<HashSet<String>>,
    twice: Mutex<u32>,
}

impl Runners {
    /// What runners that start from now on do.
    pub fn will(&self, behaviour: Behaviour) {
        *self.behaviour.lock().expect("no runner panics") = behaviour;
    }
}

#[async_trait::async_trait]
impl FakeRunner for Runners {
    async fn run(&self, jit_config: SecretString) -> RunnerEnd {
        if !self.started.lock().expect("no runner panics").insert(jit_config.expose_secret().to_owned()) {
            *self.twice.lock().expect("no runner panics") += 1;
        }
        let behaviour = self.behaviour.lock().expect("no runner panics").clone();
        let status = fake_github::runner::run(jit_config.expose_secret(), behaviour).await;
        RunnerEnd { status, too_old: status == 7 }
    }
}

impl World {
    /// Puts it up; the daemon dies at the last of `deaths`, once each was reached in turn.
    pub async fn new(setup: &Setup, deaths: &[String]) -> Self {
        let db = TestDatabase::new().await;
        let github = Arc::new(FakeGitHub::start(Options::default()).await.expect("the simulated GitHub starts"));
        // Below `/tmp`, for the path of a socket must be short.
        let folder = tempfile::Builder::new().prefix("flyci-points-").tempdir_in("/tmp").expect("a folder");
        let web = port();
        write(folder.path(), "app.pem", github.private_key_pem());
        write(folder.path(), "webhook.secret", github.webhook_secret());
        let runners =
            Arc::new(Runners { behaviour: Mutex::default(), started: Mutex::default(), twice: Mutex::default() });
        let machines = FakeHypervisor::new(FakeOptions::default(), Arc::clone(&runners) as Arc<dyn FakeRunner>);
        let listener = UnixListener::bind(folder.path().join(SOCKET)).expect("a socket");
        github.set_webhook(&format!("http://127.0.0.1:{web}/webhooks/github"), None).expect("a URL");
        let (wanted, want) = watch::channel(true);
        let (runs, running) = watch::channel(false);
        let failure = Arc::new(Mutex::new(None));
        let power_cut = Arc::new(AtomicBool::new(false));
        let sends_again = Arc::new(AtomicBool::new(!setup.pulls));
        let keeper = Keeper {
            place: folder.path().to_owned(),
            owner: db.owner.clone(),
            want,
            runs,
            failure: Arc::clone(&failure),
            power_cut: Arc::clone(&power_cut),
            sends_again: Arc::clone(&sends_again),
            machines: Arc::clone(&machines),
        };
        arm(folder.path(), deaths);
        let acme = github.install("acme", AccountKind::Organization);
        let repo = github.repository(&acme, "app", Visibility::Private);
        write(folder.path(), CONFIG, &config(&github, &db.url, web, setup, &acme));
        let tasks = [
            AbortOnDropHandle::new(tokio::spawn(machines::serve(listener, Arc::clone(&machines)))),
            AbortOnDropHandle::new(tokio::spawn(keeper.keep(Arc::clone(&github)))),
        ];
        Self {
            github,
            machines,
            runners,
            acme,
            repo,
            db,
            folder,
            wanted,
            running,
            failure,
            power_cut,
            sends_again,
            _tasks: tasks,
        }
    }

    /// The daemon is killed, `meanwhile` happens, and it is started again; if it is to die, then from now on.
    pub async fn while_it_is_away(&self, deaths: &[String], meanwhile: impl AsyncFnOnce()) {
        self.wanted.send_replace(false);
        let mut running = self.running.clone();
        running.wait_for(|runs| !runs).await.expect("the keeper lives");
        meanwhile().await;
        arm(self.folder.path(), deaths);
        self.wanted.send_replace(true);
    }

    /// From now on the daemon's machine dies with it.
    pub fn machines_die_too(&self) {
        self.power_cut.store(true, Ordering::SeqCst);
    }

    /// From now on only the daemon has GitHub send again what it could not deliver.
    pub fn sends_once(&self) {
        self.sends_again.store(false, Ordering::SeqCst);
    }

    /// Loses every delivery from now on, without a trace, or none.
    pub fn lose_deliveries(&self, lose: bool) {
        self.github.switch(|switches| {
            switches.deliveries.drop_fraction = if lose { 1.0 } else { 0.0 };
            switches.deliveries.drop_without_trace = lose;
        });
    }

    /// Waits until GitHub has tried all its deliveries.
    pub async fn tried_all(&self) {
        self.github.deliveries_settled(PATIENCE).await.expect("the deliveries are tried in time");
    }

    /// Queues a job of the repository.
    pub fn queue(&self) -> JobHandle {
        self.github.queue_job(&self.repo, &[LABEL], JobScript::new().step("true"))
    }

    /// Waits until GitHub says that the job is over.
    pub async fn over(&self, job: JobHandle) -> JobView {
        match self.github.job_completed(job.id, PATIENCE).await {
            Ok(view) => view,
            Err(late) => panic!("{late}\n{}", self.picture().await),
        }
    }

    /// Waits until GitHub says that all jobs are over.
    pub async fn ended_all(&self) {
        for job in self.github.jobs() {
            if let Err(late) = self.github.job_completed(job.id, PATIENCE).await {
                panic!("{late}\n{}", self.picture().await);
            }
        }
    }

    /// Waits until the daemon reached a point, or died where it was to.
    pub async fn reaches_or_dies(&self, point: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.died() && !self.reached().contains(point) {
            if Instant::now() >= deadline {
                panic!("it does not reach {point}\n{}", self.picture().await);
            }
            sleep(AGAIN).await;
        }
    }

    /// The daemon may die yet where it is to.
    pub async fn may_die_within(&self, soon: Duration) {
        let deadline = Instant::now() + soon;
        while !self.died() && Instant::now() < deadline {
            sleep(AGAIN).await;
        }
    }

    /// Waits until GitHub says that the job was served.
    pub async fn served(&self, job: JobHandle) {
        assert_eq!(self.over(job).await.conclusion, Some(Conclusion::Success));
    }

    /// Waits until every job of ours is in one of these states.
    pub async fn jobs_are(&self, expected: &[&str]) {
        self.until("SELECT state FROM jobs ORDER BY state", expected).await;
    }

    /// Waits until a query finds something.
    pub async fn until_some(&self, query: &str) {
        self.until(&format!("SELECT 'yes' WHERE EXISTS ({query})"), &["yes"]).await;
    }

    /// Waits until a query finds exactly this.
    pub async fn until(&self, query: &str, expected: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.texts(query).await;
            if found == expected {
                return;
            }
            if let Some(failure) = self.failure.lock().expect("no keeper panics").take() {
                panic!("{failure}");
            }
            if Instant::now() >= deadline {
                panic!("{query}: {found:?}, not {expected:?}\n{}", self.picture().await);
            }
            sleep(AGAIN).await;
        }
    }

    pub async fn execute(&self, statement: &str) {
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&self.db.owner).await.expect("the statement works");
    }

    async fn texts(&self, query: &str) -> Vec<String> {
        sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_all(&self.db.owner).await.expect("the query works")
    }

    /// All that is there, for the reader of a failed run.
    async fn picture(&self) -> String {
        let mut picture = String::new();
        for table in ["jobs", "vms", "runners", "deliveries"] {
            let rows = self.texts(&format!("SELECT row_to_json(t)::text FROM {table} t")).await;
            picture += &format!("{table}:\n  {}\n", rows.join("\n  "));
        }
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let skipped = log.lines().count().saturating_sub(LOG_LINES);
        let tail: Vec<&str> = log.lines().skip(skipped).collect();
        picture
            + &format!("GitHub's jobs: {:?}\nGitHub's runners: {:?}\n", self.github.jobs(), self.github.all_runners())
            + &tail.join("\n")
    }

    /// The end of every story: no machine, no live row, no lease, no secret, no registration, and nobody ran twice.
    pub async fn nothing_is_left(&self) {
        self.until("SELECT state FROM vms WHERE state <> 'gone'", &[]).await;
        self.until("SELECT state FROM runners WHERE state NOT IN ('removed', 'void')", &[]).await;
        self.until("SELECT id::text FROM runners WHERE sealed_jit IS NOT NULL", &[]).await;
        self.until("SELECT id::text FROM jobs WHERE verify_since IS NOT NULL AND state IN ('queued', 'running')", &[])
            .await;
        self.github.no_runners(PATIENCE).await.expect("no runner is left at GitHub");
        let deadline = Instant::now() + PATIENCE;
        while !self.machines.vms().is_empty() {
            assert!(Instant::now() < deadline, "machines are left\n{}", self.picture().await);
            sleep(AGAIN).await;
        }
        assert_eq!(*self.runners.twice.lock().expect("no runner panics"), 0, "a JIT config was used twice");
        let entries = fs::read_dir(self.folder.path().join("data")).expect("a data directory").flatten();
        let vms: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.ends_with("vms")).collect();
        assert_eq!(vms, Vec::<PathBuf>::new(), "pretended machines have no files");
    }

    /// The points that were reached.
    pub fn reached(&self) -> BTreeSet<String> {
        let text = fs::read_to_string(self.folder.path().join(REACHED)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Whether the daemon died where it was to.
    pub fn died(&self) -> bool {
        self.folder.path().join(DIED).exists()
    }

    /// Takes it down, with its database. The daemon first: it writes into the folder.
    pub async fn end(self) {
        self.wanted.send_replace(false);
        // A keeper that gave up has no daemon either.
        let _ = self.running.clone().wait_for(|runs| !runs).await;
        let name = self.db.owner.connect_options().get_database().map(str::to_owned).expect("its database has a name");
        let server = self.db.owner.connect_options().as_ref().clone().database("postgres");
        drop(self);
        let mut connection = PgConnection::connect_with(&server).await.expect("the test cluster answers");
        let drop = format!("DROP DATABASE {name} WITH (FORCE)");
        connection.execute(sqlx::AssertSqlSafe(drop)).await.expect("the database can go");
    }
}

/// Keeps the daemon running.
struct Keeper {
    place: PathBuf,
    owner: sqlx::PgPool,
    want: watch::Receiver<bool>,
    runs: watch::Sender<bool>,
    failure: Arc<Mutex<Option<String>>>,
    power_cut: Arc<AtomicBool>,
    sends_again: Arc<AtomicBool>,
    machines: Arc<FakeHypervisor>,
}

impl Keeper {
    async fn keep(mut self, github: Arc<FakeGitHub>) {
        let mut asked = HashSet::new();
        while self.want.wait_for(|wanted| *wanted).await.is_ok() {
            let mut child = start(&self.place);
            self.runs.send_replace(true);
            let killed = loop {
                tokio::select! {
                    status = child.wait() => break status.expect("a child").signal() == Some(9),
                    true = unwanted(&mut self.want) => {
                        child.kill().await.expect("a child");
                        break true;
                    }
                    () = sleep(REDELIVER) => if self.sends_again.load(Ordering::SeqCst) {
                        redeliver(&github, &mut asked);
                    },
                }
            };
            if !killed {
                let log = fs::read_to_string(self.place.join("log")).unwrap_or_default();
                *self.failure.lock().expect("no story panics with it") =
                    Some(format!("the daemon ended by itself:\n{log}"));
                return;
            }
            if self.power_cut.load(Ordering::SeqCst) {
                self.machines.vms().into_iter().for_each(|vm| self.machines.crash(vm));
            }
            // A gateway that died holds its leases for a minute: it passes.
            let passes = "UPDATE runners SET minting_until = clock_timestamp() WHERE state = 'minting'";
            sqlx::query(passes).execute(&self.owner).await.expect("the statement works");
            self.runs.send_replace(false);
        }
    }
}

/// Resolves when the daemon is to be away; its channel is gone only with the world.
async fn unwanted(want: &mut watch::Receiver<bool>) -> bool {
    want.wait_for(|wanted| !wanted).await.is_ok()
}

/// Asks GitHub to send again what failed, each attempt once.
fn redeliver(github: &FakeGitHub, asked: &mut HashSet<u64>) {
    for attempt in github.deliveries() {
        if attempt.status_code >= 400 && asked.insert(attempt.id) {
            github.redeliver(attempt.id);
        }
    }
}

fn start(place: &Path) -> Child {
    let log = OpenOptions::new().create(true).append(true).open(place.join("log")).expect("a log");
    Command::new(std::env::current_exe().expect("this program"))
        .env(PLACE, place)
        .env(DIRECTORY, place)
        .stdin(Stdio::null())
        .stdout(File::open("/dev/null").expect("nothing"))
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("the daemon starts")
}

/// Where the daemon is to die.
fn arm(place: &Path, deaths: &[String]) {
    if !deaths.is_empty() {
        fs::write(place.join(DIE), deaths.join("\n")).expect("the folder takes it");
    }
}

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::write(&path, text).expect("the file is written");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("its mode is set");
}

/// A port that nobody has, below those that the system gives away: the daemon has it again after a restart.
fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(FIRST_PORT);
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::SeqCst)).find(free).expect("there are some")
}

fn config(github: &FakeGitHub, database: &str, web: u16, setup: &Setup, only: &Installation) -> String {
    let intake = if setup.pulls { "pull" } else { "webhook" };
    let dedicated = if setup.dedicated { format!("dedicated_to = [{}]", only.id) } else { String::new() };
    let keys = if setup.rotates { "[keys]\nrotate_every = \"1d\"" } else { "" };
    let limits = setup.limits;
    format!(
        r#"
data_dir = "data"
[web]
listen = "127.0.0.1:{web}"
[web.tls]
mode = "off"
[admin]
metrics_listen = "off"
[github]
api_url = "{api}"
app_id = {app}
private_key_file = "app.pem"
webhook_secret_file = "webhook.secret"
intake = "{intake}"
[tenants]
admission = "open"
[database]
url = "{database}"
[host]
name = "test"
hypervisor = "fake"
slots = 2
{dedicated}
{keys}
[limits]
{limits}
[[profiles]]
label = "{LABEL}"
cpus = 1
memory = "128MB"
disk_free = "1GB"
image = "any"
"#,
        api = github.url(),
        app = github.app_id(),
    )
}
