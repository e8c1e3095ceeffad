//! The program itself as a process: with files of its own, beside a simulated GitHub.

use fake_github::FakeGitHub;
use flyci::api::Status;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What a command may take, a first start with a new private database included.
const DEADLINE: Duration = Duration::from_secs(90);
/// Between looks.
const LOOK: Duration = Duration::from_millis(100);

/// Where one daemon lives.
pub struct Place {
    /// The directory of configuration, secrets, log and data.
    pub root: TempDir,
    /// The port where deliveries are taken.
    pub public: u16,
    /// The port where metrics are read.
    pub metrics: u16,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    /// What it said on stderr.
    pub said: String,
    /// What it showed on stdout.
    pub shown: String,
}

impl Ended {
    /// Fails unless it ended so, and said each of these on few lines.
    pub fn expect(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:#?}");
        let text = format!("{}{}", self.said, self.shown);
        for word in words {
            assert!(text.contains(word), "`{word}` is missing in: {text}");
        }
    }
}

impl Place {
    /// Writes the secrets of the App and a configuration with the fake backend; `more` are lines after it.
    pub fn new(github: &FakeGitHub, database: Option<&str>, hypervisor: &str, more: &str) -> Self {
        let (root, public, metrics) = (tempfile::tempdir().expect("a folder"), free_port(), free_port());
        let place = Self { root, public, metrics };
        place.write_private("app.pem", github.private_key_pem());
        place.write_private("webhook.secret", github.webhook_secret());
        let database = database.map(|url| format!("[database]\nurl = \"{url}\"\n")).unwrap_or_default();
        let text = format!(
            r#"
data_dir = "{root}/data"
[web]
listen = "127.0.0.1:{public}"
[web.tls]
mode = "off"
[admin]
metrics_listen = "127.0.0.1:{metrics}"
[github]
api_url = "{api}"
app_id = {app}
private_key_file = "{root}/app.pem"
webhook_secret_file = "{root}/webhook.secret"
[tenants]
admission = "open"
{database}
[[profiles]]
label = "flyci-test"
cpus = 1
memory = "128MB"
disk_free = "1GB"
image = "linux-none"
[host]
hypervisor = "{hypervisor}"
slots = 1
reserve_memory = "0B"
{more}
"#,
            root = place.root.path().display(),
            api = github.url(),
            app = github.app_id(),
        );
        place.write_private("flyci.toml", &text);
        github.set_webhook(&format!("http://127.0.0.1:{public}/webhooks/github"), None).expect("a URL");
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn write_private(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("it is writable");
        self.set_mode(name, 0o600);
    }

    pub fn set_mode(&self, name: &str, mode: u32) {
        std::fs::set_permissions(self.path(name), Permissions::from_mode(mode)).expect("it is ours");
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flyci"));
        command.args(line.split_whitespace()).arg("--config").arg(self.path("flyci.toml")).stdin(Stdio::null());
        command.env_remove("RUST_LOG").env_remove("FLYCI_LOG");
        command
    }

    /// Runs a command to its end. One that does not end in time is killed, and fails the test.
    pub async fn run(&self, line: &str) -> Ended {
        let mut command = tokio::process::Command::from(self.command(line));
        let output = tokio::time::timeout(DEADLINE, command.kill_on_drop(true).output()).await;
        let output = output.unwrap_or_else(|_| panic!("`flyci {line}` goes on")).expect("it starts");
        Ended {
            code: output.status.code().expect("it ends by itself"),
            said: String::from_utf8_lossy(&output.stderr).into_owned(),
            shown: String::from_utf8_lossy(&output.stdout).into_owned(),
        }
    }

    /// Runs a command until it shows this.
    pub async fn until_shown(&self, line: &str, word: &str) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let ended = self.run(line).await;
            if ended.shown.contains(word) {
                return;
            }
            assert!(Instant::now() < deadline, "`flyci {line}` does not show `{word}`: {ended:#?}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Starts the daemon, and waits until its status shows a host and that GitHub was asked.
    pub async fn serve(&self, arguments: &str, filter: &str) -> Serving {
        let log = File::create(self.path("log")).expect("it is writable");
        let child = self
            .command(&format!("serve {arguments}"))
            .env("FLYCI_LOG", filter)
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("it starts");
        let mut serving = Serving { child, log: self.path("log") };
        self.until(&mut serving, |status| {
            !status.hosts.is_empty() && (status.readiness == "ready" || !status.problems.is_empty())
        })
        .await;
        serving
    }

    /// Waits until the daemon's status is so.
    pub async fn until(&self, serving: &mut Serving, condition: impl Fn(&Status) -> bool) -> Status {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let ended = self.run("status --json").await;
            if let Ok(status) = serde_json::from_str::<Status>(&ended.shown)
                && condition(&status)
            {
                return status;
            }
            let is_over = serving.child.try_wait().expect("it is our child").is_some();
            assert!(!is_over && Instant::now() < deadline, "not so: {ended:#?}\n{}", serving.log());
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A daemon that runs.
pub struct Serving {
    child: Child,
    log: PathBuf,
}

impl Serving {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Kills it without a word at a moment when `condition` holds. Answers whether there was one.
    pub async fn kill_now(mut self, condition: impl AsyncFn() -> bool) -> bool {
        let deadline = Instant::now() + DEADLINE;
        let mut is_so = condition().await;
        while !is_so && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
            is_so = condition().await;
        }
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
        is_so && condition().await
    }

    /// Tells it to stop, as a service manager does, and waits for its end.
    pub fn stop(mut self) -> ExitStatus {
        self.end().expect("it ends in time")
    }

    fn end(&mut self) -> Option<ExitStatus> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Some(status);
        }
        let pid = i32::try_from(self.child.id()).expect("a process id");
        // It may have ended by itself meanwhile.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(LOOK);
        }
        None
    }
}

impl Drop for Serving {
    /// A private Postgres is left by a daemon that is killed: it is told to stop first.
    fn drop(&mut self) {
        if self.end().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A port of loopback that nobody has now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port()
}

/// Changes a file's text.
pub fn edit(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).expect("it is readable");
    assert!(text.contains(from), "{from} is not in {}", path.display());
    std::fs::write(path, text.replace(from, to)).expect("it is writable");
}
