//! A gateway and hosts around one Postgres, each host in a network namespace of its own with a machine's directory of
//! its own: what it reaches is the database, GitHub, and nothing of the others.

use crate::daemon::{Directory, Gate, LABEL, certify, contains, flyci, free_port, github, machines, private, runner};
use crate::database::TestDatabase;
use crate::support::image;
use fake_github::{AccountKind, Conclusion, FakeGitHub, JobHandle, JobScript, Repo, Visibility};
use flyci::images::ImageStore;
use std::fs::{self, OpenOptions};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::net::{TcpListener, UnixStream};
use tokio::time::{Instant, sleep};

/// A lease of the rescue, and boots in software on a machine that does other things besides.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Pause before something is looked at again.
const AGAIN: Duration = Duration::from_millis(100);
/// How much of each log is shown when a wait fails, in bytes.
const TAIL: usize = 3_000;

/// A gateway alone, with a simulated GitHub, and what its hosts need to be.
pub struct Fleet {
    pub github: FakeGitHub,
    pub gate: Gate,
    repo: Repo,
    db: TestDatabase,
    /// Where hosts find the database.
    database: u16,
    ports: [u16; 2],
    image: (String, PathBuf),
    _gateway: Serving,
    directory: Directory,
}

impl Fleet {
    pub async fn new() -> Self {
        let directory = Directory::new();
        let root = directory.0.path();
        runner(&root.join("runner"), None);
        let gate = Gate::open().await;
        let (github, port) = github().await;
        let web = free_port();
        certify(root, &github, web);
        let db = TestDatabase::new().await;
        let image = image().await;
        let image = (image.manifest.name.clone(), image.path);
        private(&root.join("flyci.toml"), gateway_text(root, &github, &db.url, web, &image.0).as_bytes());
        let gateway = Serving::start(flyci(root, &["serve"]), root);
        let database = link(&db.url).await;
        let acme = github.install("acme", AccountKind::Organization);
        let repo = github.repository(&acme, "app", Visibility::Private);
        let ports = [port, gate.port];
        let fleet = Self { github, gate, repo, db, database, ports, image, _gateway: gateway, directory };
        fleet.until("the gateway is ready", async || is_ready(fleet.directory.0.path())).await;
        fleet
    }

    /// A host that has joined, as an operator lets it: its daemon does not run yet.
    pub async fn host(&self, name: &str, slots: u32) -> Host {
        let root = self.directory.0.path().join(name);
        fs::DirBuilder::new().mode(0o700).recursive(true).create(root.join("data")).expect("a directory");
        ImageStore::open(&root.join("data")).and_then(|store| store.import(&self.image.1)).expect("the image is there");
        let login = format!("flyci_host_{}", uuid::Uuid::new_v4().simple());
        let make = format!("CREATE ROLE {login} LOGIN NOINHERIT IN ROLE flyci_host");
        sqlx::query(sqlx::AssertSqlSafe(make)).execute(&self.db.owner).await.expect("a login");
        private(&root.join("flyci.toml"), self.host_text(&root, name, slots, &login).as_bytes());
        let network = Network::new(&[self.ports[0], self.ports[1], self.database]);
        let host = Host { network, root, daemon: None };
        let invite = ["host", "invite", name, "--login", &login, "--json"];
        let told = flyci(self.directory.0.path(), &invite).output().expect("the command runs");
        let invitation: serde_json::Value = serde_json::from_slice(&told.stdout).expect("an invitation");
        private(&host.root.join("token"), invitation["token"].as_str().expect("a token").as_bytes());
        let token = host.root.join("token").display().to_string();
        let joined = host.flyci(&["host", "join", "--token-file", &token]).output().expect("the command runs");
        assert!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
        host
    }

    fn host_text(&self, root: &Path, name: &str, slots: u32, login: &str) -> String {
        let database = name_of(&self.db.url);
        let (port, image, ports) = (self.database, &self.image.0, &self.ports);
        let (root, home) = (root.display(), self.directory.0.path().display());
        format!(
            r#"data_dir = "{root}/data"
roles = ["host"]
[admin]
metrics_listen = "off"
[database]
url = "postgres://{login}@127.0.0.1:{port}/{database}"
[host]
name = "{name}"
hypervisor = "qemu"
slots = {slots}
reserve_memory = "0B"
cpu_overcommit = 8.0
[host.qemu]
accel = "tcg"
allow_host_ports = {ports:?}
[runner]
directory = "{home}/runner"
{profile}"#,
            profile = profile_text(image),
        )
    }

    /// Somebody pushes: a job is queued.
    pub fn queue(&self, script: JobScript) -> JobHandle {
        self.github.queue_job(&self.repo, &[LABEL], script)
    }

    /// Waits until GitHub says that the job ended well.
    pub async fn succeeds(&self, job: JobHandle) {
        match self.github.job_completed(job.id, PATIENCE).await {
            Ok(view) => assert_eq!(view.conclusion, Some(Conclusion::Success)),
            Err(late) => panic!("{late}\n{}", self.picture().await),
        }
    }

    /// The first column of a query, as text.
    pub async fn texts(&self, query: &str) -> Vec<String> {
        sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_all(&self.db.owner).await.expect("the query works")
    }

    /// Waits until `condition` holds, and shows what is there when it does not.
    pub async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition().await {
            if Instant::now() > deadline {
                panic!("{what}: not within {PATIENCE:?}\n{}", self.picture().await);
            }
            sleep(AGAIN).await;
        }
    }

    /// The vms that live, each with its host.
    pub async fn live(&self) -> Vec<String> {
        self.texts(
            "SELECT h.name || ' ' || v.state FROM vms v JOIN hosts h ON h.id = v.host_id WHERE v.state <> 'gone'
             ORDER BY h.name, v.state",
        )
        .await
    }

    async fn picture(&self) -> String {
        let mut picture = String::new();
        for table in ["jobs", "vms", "runners", "hosts"] {
            let rows = self.texts(&format!("SELECT row_to_json(t)::text FROM {table} t")).await;
            picture += &format!("{table}:\n  {}\n", rows.join("\n  "));
        }
        let root = self.directory.0.path();
        let homes = fs::read_dir(root).expect("a directory").flatten().map(|entry| entry.path());
        for home in [root.to_owned()].into_iter().chain(homes) {
            let log = fs::read(home.join("daemon.log")).unwrap_or_default();
            let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(TAIL)..]).into_owned();
            picture += &format!("{}:\n{tail}\n", home.display());
        }
        picture
    }
}

/// A machine of the fleet.
pub struct Host {
    network: Network,
    root: PathBuf,
    daemon: Option<Serving>,
}

impl Host {
    /// Its daemon starts.
    pub fn start(&mut self) {
        self.daemon = Some(Serving::start(self.flyci(&["serve"]), &self.root));
    }

    /// Its daemon dies on the spot. Its VMs go on.
    pub fn kill(&mut self) {
        self.daemon = None;
    }

    fn flyci(&self, arguments: &[&str]) -> Command {
        let mut command = self.network.enter();
        command.arg(env!("CARGO_BIN_EXE_flyci")).args(arguments).arg("--config").arg(self.root.join("flyci.toml"));
        command
    }

    /// Processes of its VMs, and their directories.
    pub fn left(&self) -> Vec<String> {
        let data = self.root.join("data");
        let directories = fs::read_dir(data.join("vms")).into_iter().flatten().flatten();
        let mut left: Vec<String> = directories.map(|entry| entry.path().display().to_string()).collect();
        left.extend(machines(&data).iter().map(ToString::to_string));
        left
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.daemon = None;
        for pid in machines(&self.root.join("data")) {
            end(pid);
        }
    }
}

/// A daemon that runs.
struct Serving(Child);

impl Serving {
    fn start(mut command: Command, root: &Path) -> Self {
        let log =
            OpenOptions::new().append(true).create(true).mode(0o600).open(root.join("daemon.log")).expect("a log");
        command
            .env("FLYCI_LOG", "flyci=debug")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log);
        Self(command.spawn().expect("the daemon starts"))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A network namespace with a way to some ports of this machine's loopback, and to the internet. It outlives the
/// daemon in it, as a machine's network does.
struct Network {
    pasta: Child,
    holder: u32,
}

impl Network {
    fn new(ports: &[u16]) -> Self {
        let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        let options = "--quiet --ipv4-only --config-net --no-map-gw -t none -u none -U none -T";
        let pasta = Command::new("pasta")
            .args(options.split(' '))
            .args([&ports, "--", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .expect("pasta starts");
        let deadline = std::time::Instant::now() + PATIENCE;
        let children = format!("/proc/{0}/task/{0}/children", pasta.id());
        loop {
            let told = fs::read_to_string(&children).expect("pasta lives");
            let holder = told.split_whitespace().next().and_then(|pid| pid.parse().ok());
            // The network is set up before the program in it runs.
            if let Some(holder) = holder.filter(|pid| is_sleep(*pid)) {
                return Self { pasta, holder };
            }
            assert!(std::time::Instant::now() < deadline, "the namespace is not made");
            std::thread::sleep(AGAIN);
        }
    }

    /// A command that runs in it, as nobody special.
    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.holder.to_string(), "-U", "--preserve-credentials", "-n", "--"]);
        command.args(["unshare", "--user", "--map-user=1", "--map-group=1", "--"]);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        end(self.holder);
        let _ = self.pasta.kill();
        let _ = self.pasta.wait();
    }
}

fn is_sleep(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| contains(&line, "infinity") && !contains(&line, "pasta"))
}

/// Kills a process that this test started.
fn end(pid: u32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGKILL);
}

/// The hosts' way to the database: a port of loopback that leads to the test cluster's socket.
async fn link(url: &str) -> u16 {
    let directory = url.split("host=").nth(1).expect("the cluster has a socket").to_owned();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let socket = format!("{directory}/.s.PGSQL.5432");
            tokio::spawn(async move {
                if let Ok(mut far) = UnixStream::connect(socket).await {
                    // Either side may end it.
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    port
}

/// As an operator would ask.
fn is_ready(root: &Path) -> bool {
    let told = flyci(root, &["status", "--json"]).output().expect("the command runs").stdout;
    serde_json::from_slice::<serde_json::Value>(&told).is_ok_and(|status| status["readiness"] == "ready")
}

/// The database's name in a URL.
fn name_of(url: &str) -> String {
    url.split('?').next().and_then(|address| address.rsplit('/').next()).unwrap_or_default().to_owned()
}

fn profile_text(image: &str) -> String {
    format!(
        r#"[[profiles]]
label = "{LABEL}"
cpus = 1
memory = "256MB"
disk_free = "64MB"
image = "{image}"
"#
    )
}

fn gateway_text(root: &Path, github: &FakeGitHub, database: &str, web: u16, image: &str) -> String {
    let (root, api, app_id) = (root.display(), github.url(), github.app_id());
    format!(
        r#"data_dir = "{root}/data"
roles = ["gateway"]
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
{profile}"#,
        profile = profile_text(image),
    )
}
