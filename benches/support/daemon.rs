//! A daemon as it runs in production: a process of its own, HTTPS, its private Postgres.

use fake_github::{FakeGitHub, Options};
use rustls_pki_types::pem::PemObject;
use std::path::PathBuf;
use std::process::{Child as Process, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long the daemon may take to be ready: it makes a database first.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// The daemon's connections of each role.
const CONNECTIONS: u32 = 10;

pub struct Child {
    pub github: FakeGitHub,
    pub connections: u32,
    pub port: u16,
    process: Process,
    folder: TempDir,
}

/// The host's part of the configuration.
pub enum Machines {
    /// One vm that never comes up: the queue stays as it is.
    Stuck,
    /// Real ones, with the runner in this folder.
    Qemu { runner: PathBuf },
}

impl Child {
    /// A daemon whose queue only grows.
    pub async fn start() -> Self {
        let github = FakeGitHub::start(Options::default()).await.expect("the simulated GitHub starts");
        Self::with(github, &Machines::Stuck).await
    }

    /// A daemon with real VMs, whose runners reach the simulated GitHub through the one port that is allowed.
    pub async fn with_qemu(runner: PathBuf) -> Self {
        let port = free_port();
        let options = Options {
            listen: std::net::SocketAddr::from(([127, 0, 0, 1], port)),
            names: vec!["10.0.2.2".into()],
            runner_url: Some(format!("https://10.0.2.2:{port}")),
            ..Options::https()
        };
        let github = FakeGitHub::start(options).await.expect("the simulated GitHub starts");
        let child = Self::with(github, &Machines::Qemu { runner }).await;
        let certificate = std::fs::read_to_string(child.data_dir().join("web.crt")).expect("the certificate");
        let url = format!("https://localhost:{}/webhooks/github", child.port);
        child.github.set_webhook(&url, Some(&certificate)).expect("a URL");
        child
    }

    async fn with(github: FakeGitHub, machines: &Machines) -> Self {
        let folder = tempfile::Builder::new().prefix("flyci-bench").tempdir_in("/tmp").expect("a folder");
        let port = free_port();
        let config = config(&github, &folder, port, machines);
        if let Machines::Qemu { .. } = machines {
            let build = ["image", "build", "linux-minimal", "--config"];
            let built =
                Command::new(env!("CARGO_BIN_EXE_flyci")).args(build).arg(&config).output().expect("flyci runs");
            assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        }
        let log = std::fs::File::create(folder.path().join("flyci.log")).expect("a log");
        let process = Command::new(env!("CARGO_BIN_EXE_flyci"))
            .args(["serve", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the daemon starts");
        let child = Self { github, connections: CONNECTIONS, port, process, folder };
        child.until_ready().await;
        child
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A client that trusts the daemon's certificate. HTTP/1.1, a connection for each delivery under way.
    pub fn client(&self) -> reqwest::Client {
        let pem = std::fs::read(self.data_dir().join("web.crt")).expect("the certificate is written");
        let mut roots = rustls::RootCertStore::empty();
        let certificates = rustls_pki_types::CertificateDer::pem_slice_iter(&pem);
        roots.add_parsable_certificates(certificates.map(|certificate| certificate.expect("a certificate")));
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring knows them")
            .with_root_certificates(roots)
            .with_no_client_auth();
        reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().http1_only().build().expect("a client")
    }

    /// Resident memory in megabytes, as the kernel counts it.
    pub fn resident_mb(&self) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap_or_default();
        let kb = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB"));
        kb.and_then(|kb| kb.trim().parse::<f64>().ok()).map_or("unknown".into(), |kb| format!("{:.0}", kb / 1000.0))
    }

    /// The first column of a query, in the daemon's database.
    pub fn query(&self, sql: &str) -> Vec<f64> {
        let socket = self.data_dir().join("postgres").join("socket");
        let output =
            Command::new("psql").arg("-h").arg(socket).args(["-U", "flyci", "-d", "flyci", "-Atc", sql]).output();
        let output = output.expect("psql is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().map(|line| line.parse().expect("a number")).collect()
    }

    pub async fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.process.id()).expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("the daemon lives");
        self.process.wait().expect("the daemon ends");
    }

    async fn until_ready(&self) {
        let deadline = Instant::now() + START_DEADLINE;
        let certificate = self.data_dir().join("web.crt");
        while !certificate.exists() {
            assert!(Instant::now() < deadline, "the daemon did not start: {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (client, url) = (self.client(), format!("https://localhost:{}/readyz", self.port));
        loop {
            if client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
            assert!(Instant::now() < deadline, "the daemon is not ready: {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("flyci.log")).unwrap_or_default()
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

fn config(github: &FakeGitHub, folder: &TempDir, port: u16, machines: &Machines) -> PathBuf {
    github.write_secrets(folder.path()).expect("the secrets are written");
    if let Some(ca) = github.ca_pem() {
        std::fs::write(folder.path().join("github.crt"), ca).expect("the certificate is written");
    }
    let (ca_file, host, timeout, image) = match machines {
        Machines::Stuck => {
            (String::new(), "hypervisor = \"fake\"\nslots = 1\n[host.fake]\nclone = \"1h\"".into(), "1h", "any")
        }
        Machines::Qemu { runner } => {
            let api: u16 = github.url().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
            let host = format!(
                "hypervisor = \"qemu\"\nslots = 1\nreserve_memory = \"0B\"\n[host.qemu]\nallow_host_ports = [{api}]\n[runner]\ndirectory = \"{}\"",
                runner.display()
            );
            ("ca_file = \"github.crt\"".into(), host, "2m", "linux-minimal")
        }
    };
    let text = format!(
        r#"
data_dir = "{data}"
[web]
listen = "127.0.0.1:{port}"
[web.tls]
mode = "self-signed"
[admin]
metrics_listen = "off"
[github]
api_url = "{api}"
app_id = {app}
private_key_file = "app.pem"
webhook_secret_file = "webhook.secret"
{ca_file}
[tenants]
admission = "open"
[database]
max_connections = {CONNECTIONS}
[host]
name = "bench"
{host}
[limits]
boot_timeout = "{timeout}"
[[profiles]]
label = "flyci-test"
cpus = 1
memory = "256MB"
disk_free = "128MB"
image = "{image}"
"#,
        data = folder.path().join("data").display(),
        api = github.url(),
        app = github.app_id(),
    );
    let path = folder.path().join("flyci.toml");
    std::fs::write(&path, text).expect("the configuration is written");
    path
}
