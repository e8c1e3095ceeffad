//! A world of its own for each story: a simulated GitHub over HTTPS, `flyci serve` as a child process, real VMs.
//! All of it ends with the story, however that ends. A story's last words are [`World::nothing_is_left`].

use crate::database::TestDatabase;
use crate::support::{PATIENCE, image};
use fake_github::{AccountKind, FakeGitHub, JobHandle, JobScript, JobView, Options, Repo, Visibility};
use flyci::images::ImageStore;
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// The profile of the stories.
pub const LABEL: &str = "flyci-test";
/// Where guests find the host's allowed ports.
const GUESTS_WAY_OUT: &str = "10.0.2.2";
/// Pause before something is looked at again.
const AGAIN: Duration = Duration::from_millis(100);
/// How much of the daemon's log is shown when a wait fails, in bytes.
const TAIL: usize = 6_000;

/// What differs between the stories.
pub struct Setup {
    /// Vms at once.
    pub slots: u32,
    /// Lines under `[limits]`.
    pub limits: &'static str,
    /// The runner's `run.sh`, if it is not the small runner that works.
    pub run: Option<&'static str>,
    /// Guests whose kernel finds nothing to start: they run, and never answer.
    pub broken: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { slots: 1, limits: "", run: None, broken: false }
    }
}

/// One organisation with one private repository, and a daemon that serves it.
pub struct World {
    pub github: FakeGitHub,
    pub repo: Repo,
    pub gate: Gate,
    db: TestDatabase,
    daemon: Daemon,
    directory: Directory,
}

impl World {
    pub async fn new(setup: Setup) -> Self {
        let directory = Directory::new();
        let root = directory.0.path();
        fs::create_dir(directory.data()).expect("a data directory");
        fs::set_permissions(directory.data(), Permissions::from_mode(0o700)).expect("its owner's");
        let store = ImageStore::open(&directory.data()).expect("a store");
        let image = store.import(&image().await.path).expect("the image is imported");
        runner(&root.join("runner"), setup.run);
        let gate = Gate::open().await;
        let (github, port) = github().await;
        let web = free_port();
        certify(root, &github, web);
        let db = TestDatabase::new().await;
        let ports = [port, gate.port];
        let config =
            config(&Parts { root, setup: &setup, github: &github, db: &db, web, ports, image: &image.manifest.name });
        private(&root.join("flyci.toml"), config.as_bytes());
        let daemon = Daemon::start(root).await;
        let acme = github.install("acme", AccountKind::Organization);
        let repo = github.repository(&acme, "app", Visibility::Private);
        Self { github, repo, gate, db, daemon, directory }
    }

    /// Somebody pushes: a job is queued.
    pub fn queue(&self, script: JobScript) -> JobHandle {
        self.github.queue_job(&self.repo, &[LABEL], script)
    }

    /// Waits until GitHub says that the job is over.
    pub async fn completed(&self, job: JobHandle) -> JobView {
        match self.github.job_completed(job.id, PATIENCE).await {
            Ok(view) => view,
            Err(late) => panic!("{late}; the daemon's log ends so:\n{}", self.log_tail()),
        }
    }

    /// What the job's runner streamed to GitHub.
    pub fn log_of(&self, job: JobHandle) -> String {
        self.github.logs(job).join("\n")
    }

    /// The first column of a query, as text.
    pub async fn texts(&self, query: &str) -> Vec<String> {
        sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_all(&self.db.owner).await.expect("the query works")
    }

    /// Waits until a query finds exactly this.
    pub async fn until(&self, query: &str, expected: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.texts(query).await;
            if found == expected {
                return;
            }
            if Instant::now() >= deadline {
                panic!("{query}: {found:?}, not {expected:?}; the daemon's log ends so:\n{}", self.log_tail());
            }
            sleep(AGAIN).await;
        }
    }

    /// Waits until a query finds something.
    pub async fn until_some(&self, query: &str) {
        self.until(&format!("SELECT 'yes' WHERE EXISTS ({query})"), &["yes"]).await;
    }

    /// The daemon dies on the spot, as it would for lack of memory.
    pub fn kill_daemon(&mut self) {
        self.daemon.kill();
    }

    /// It is started again.
    pub async fn restart_daemon(&mut self) {
        self.daemon = Daemon::start(self.directory.0.path()).await;
    }

    /// Ids of processes whose arguments name a file of a vm: QEMU, and what carries its network.
    pub fn machines(&self) -> Vec<u32> {
        machines(&self.directory.data())
    }

    /// Waits until no vm lives, and finds no directory, process or runner of one.
    pub async fn nothing_is_left(&self) {
        self.until("SELECT id::text FROM vms WHERE state <> 'gone'", &[]).await;
        self.github.no_runners(PATIENCE).await.expect("no runner is left at GitHub");
        let vms = self.directory.data().join("vms");
        let directories: Vec<PathBuf> = fs::read_dir(vms)
            .map_or_else(|_| Vec::new(), |entries| entries.map(|entry| entry.expect("an entry").path()).collect());
        assert_eq!(directories, Vec::<PathBuf>::new());
        assert_eq!(self.machines(), Vec::<u32>::new(), "processes of vms");
    }

    /// Where a text is: files of the daemon, its log, its database, arguments and environments of all processes.
    pub async fn places_of(&self, text: &str) -> Vec<String> {
        let mut places = files_with(self.directory.0.path(), text);
        places.extend(processes_with(text));
        let hex = hex::encode(text);
        let tables = self.texts("SELECT format('%I', tablename) FROM pg_tables WHERE schemaname = 'public'").await;
        assert!(!tables.is_empty(), "a schema to look into");
        for table in tables {
            let query = format!(
                "SELECT '{table}' FROM {table} AS r WHERE strpos(r::text, '{text}') + strpos(r::text, '{hex}') > 0"
            );
            places.extend(self.texts(&query).await);
        }
        places
    }

    fn log_tail(&self) -> String {
        let log = fs::read(self.directory.0.path().join("daemon.log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(TAIL)..]).into_owned()
    }
}

/// A port at which steps wait until the story lets them go on: whoever comes there runs inside a VM.
pub struct Gate {
    listener: tokio::net::TcpListener,
    port: u16,
}

impl Gate {
    async fn open() -> Self {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        Self { listener, port }
    }

    /// Shell text that waits at the gate. The pipe keeps standard input open.
    pub fn wait_there(&self) -> String {
        format!("rm -f /tmp/gate; mkfifo /tmp/gate; nc {GUESTS_WAY_OUT} {} <>/tmp/gate\n", self.port)
    }

    /// Waits for somebody.
    pub async fn arrival(&self) -> Waiting {
        let (stream, _) =
            timeout(PATIENCE, self.listener.accept()).await.expect("a step comes to the gate").expect("a guest");
        Waiting(stream)
    }
}

/// A step that waits at the gate.
pub struct Waiting(TcpStream);

impl Waiting {
    /// Lets it go on.
    pub async fn go_on(mut self) {
        self.0.write_all(b"go on\n").await.expect("the step waits");
        self.0.shutdown().await.expect("the step waits");
    }
}

/// The running daemon.
struct Daemon(Child);

impl Daemon {
    async fn start(root: &Path) -> Self {
        let log =
            OpenOptions::new().append(true).create(true).mode(0o600).open(root.join("daemon.log")).expect("a log");
        let child = flyci(root, &["serve"])
            .env("FLYCI_LOG", "flyci=trace")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("the daemon starts");
        let mut daemon = Self(child);
        let deadline = Instant::now() + PATIENCE;
        while !is_ready(root) {
            let told = || fs::read_to_string(root.join("daemon.log")).unwrap_or_default();
            assert_eq!(daemon.0.try_wait().expect("a child"), None, "the daemon ended:\n{}", told());
            assert!(Instant::now() < deadline, "the daemon is not ready:\n{}", told());
            sleep(AGAIN).await;
        }
        daemon
    }

    fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        self.0.wait().expect("a child");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

fn flyci(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flyci"));
    command.args(arguments).arg("--config").arg(root.join("flyci.toml"));
    command
}

/// As an operator would ask.
fn is_ready(root: &Path) -> bool {
    let told = flyci(root, &["status", "--json"]).output().expect("the command runs").stdout;
    let Ok(status) = serde_json::from_slice::<serde_json::Value>(&told) else { return false };
    status["readiness"] == "ready" && status["hosts"].as_array().is_some_and(|hosts| !hosts.is_empty())
}

/// The story's directory. With it go the machines that are left, and images, which are read-only.
struct Directory(TempDir);

impl Directory {
    /// Below `/tmp`, for the path of a socket must be short.
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("flyci-vm-").tempdir_in("/tmp").expect("a directory"))
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        for pid in machines(&self.data()) {
            // Its arguments name this new directory: it is ours.
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid.cast_signed()),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        make_writable(self.0.path());
    }
}

fn make_writable(directory: &Path) {
    let _ = fs::set_permissions(directory, Permissions::from_mode(0o700));
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        make_writable(&entry.path());
    }
}

fn machines(data: &Path) -> Vec<u32> {
    let home = data.join("vms").display().to_string();
    let named = process_files("cmdline").filter(|(_, text)| contains(text, &home));
    named.map(|(pid, _)| pid).collect()
}

/// A file of each process that this user may read, without the test's own.
fn process_files(name: &str) -> impl Iterator<Item = (u32, Vec<u8>)> {
    let entries = fs::read_dir("/proc").expect("processes").flatten();
    entries.filter_map(move |entry| {
        let pid = entry.file_name().to_str()?.parse().ok().filter(|pid| *pid != std::process::id())?;
        Some((pid, fs::read(entry.path().join(name)).ok()?))
    })
}

fn processes_with(text: &str) -> Vec<String> {
    let files =
        ["cmdline", "environ"].into_iter().flat_map(|name| process_files(name).map(move |(pid, all)| (name, pid, all)));
    files.filter(|(_, _, all)| contains(all, text)).map(|(name, pid, _)| format!("{name} of process {pid}")).collect()
}

fn files_with(directory: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let kind = entry.file_type().expect("a kind");
        // A file may go while it is looked for.
        if kind.is_dir() {
            found.extend(files_with(&entry.path(), text));
        } else if kind.is_file() && fs::read(entry.path()).is_ok_and(|bytes| contains(&bytes, text)) {
            found.push(entry.path().display().to_string());
        }
    }
    found
}

fn contains(bytes: &[u8], text: &str) -> bool {
    memchr::memmem::find(bytes, text.as_bytes()).is_some()
}

async fn github() -> (FakeGitHub, u16) {
    let port = free_port();
    let options = Options {
        listen: (Ipv4Addr::LOCALHOST, port).into(),
        names: vec![GUESTS_WAY_OUT.to_owned()],
        runner_url: Some(format!("https://{GUESTS_WAY_OUT}:{port}")),
        ..Options::https()
    };
    (FakeGitHub::start(options).await.expect("the simulated GitHub starts"), port)
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// Writes the App's secrets and a certificate for the webhook's address, which GitHub is told of.
fn certify(root: &Path, github: &FakeGitHub, web: u16) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    private(&root.join("tls.key"), made.signing_key.serialize_pem().as_bytes());
    private(&root.join("tls.pem"), made.cert.pem().as_bytes());
    private(&root.join("app.pem"), github.private_key_pem().as_bytes());
    private(&root.join("webhook-secret"), github.webhook_secret().as_bytes());
    private(&root.join("github-ca.pem"), github.ca_pem().expect("it speaks HTTPS").as_bytes());
    let url = format!("https://localhost:{web}/webhooks/github");
    github.set_webhook(&url, Some(&made.cert.pem())).expect("webhooks can be delivered");
}

fn private(path: &Path, content: &[u8]) {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(content)).expect("it is written");
}

/// A runner's directory: the small runner for guests with its `run.sh`, or with another.
fn runner(directory: &Path, run: Option<&str>) {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let built = Path::new(env!("CARGO_BIN_EXE_flyci")).ancestors().nth(2).expect("cargo's target directory");
    let program = built.join(&target).join("agent/fake-runner");
    fs::create_dir(directory).expect("a directory for the runner");
    fs::copy(&program, directory.join("fake-runner")).unwrap_or_else(|error| {
        panic!(
            "{}: {error}\nthe runner for guests is built by: cargo build -p fake-github --bin fake-runner \
             --no-default-features --features guest --profile agent --target {target}",
            program.display()
        )
    });
    let run = run.unwrap_or(include_str!("../../../fake-github/runner/run.sh"));
    executable(&directory.join("run.sh"), run);
    fs::set_permissions(directory.join("fake-runner"), Permissions::from_mode(0o755)).expect("it is ours");
}

fn executable(path: &Path, text: &str) {
    fs::write(path, text).expect("it is written");
    fs::set_permissions(path, Permissions::from_mode(0o755)).expect("it is ours");
}

struct Parts<'a> {
    root: &'a Path,
    setup: &'a Setup,
    github: &'a FakeGitHub,
    db: &'a TestDatabase,
    web: u16,
    ports: [u16; 2],
    image: &'a str,
}

fn config(parts: &Parts<'_>) -> String {
    let Parts { root, setup, github, db, web, ports, image } = parts;
    let binary = if setup.broken { broken_machine(root) } else { String::new() };
    let (root, api, app_id) = (root.display(), github.url(), github.app_id());
    let (slots, limits, database) = (setup.slots, setup.limits, &db.url);
    format!(
        r#"data_dir = "{root}/data"
[web]
listen = "127.0.0.1:{web}"
public_url = "https://localhost:{web}"
[web.tls]
cert_file = "{root}/tls.pem"
key_file = "{root}/tls.key"
[admin]
metrics_listen = "off"
[github]
api_url = "{api}"
app_id = {app_id}
private_key_file = "{root}/app.pem"
webhook_secret_file = "{root}/webhook-secret"
ca_file = "{root}/github-ca.pem"
[tenants]
admission = "open"
[database]
url = "{database}"
[host]
name = "test"
hypervisor = "qemu"
slots = {slots}
reserve_memory = "0B"
cpu_overcommit = 8.0
[host.qemu]
accel = "tcg"
{binary}allow_host_ports = {ports:?}
[runner]
directory = "{root}/runner"
[limits]
{limits}
[[profiles]]
label = "{LABEL}"
cpus = 1
memory = "256MB"
disk_free = "64MB"
image = "{image}"
"#
    )
}

/// QEMU with a kernel that is told of no disk to start from, and stays there.
fn broken_machine(root: &Path) -> String {
    let path = root.join("broken-qemu");
    let run = format!("#!/bin/sh\nexec qemu-system-{} \"$@\" -append 'rdinit=/none panic=0'\n", std::env::consts::ARCH);
    executable(&path, &run);
    format!("binary = \"{}\"\n", path.display())
}
