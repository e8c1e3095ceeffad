//! Debian's `docker-registry` as a child process.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(30);

pub struct Registry {
    child: Child,
    root: TempDir,
    /// `127.0.0.1:PORT`.
    pub place: String,
}

impl Registry {
    pub fn start() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        // Another may take the port before the registry does: then another port.
        for _ in 0..5 {
            let place = free_place();
            if let Some(child) = serve(root.path(), &place) {
                return Self { child, root, place };
            }
        }
        panic!("docker-registry does not start; its log:\n{}", log(root.path()));
    }

    /// A repository's image here.
    pub fn image(&self, rest: &str) -> String {
        format!("{}/{rest}", self.place)
    }

    /// Copies an image as another tool does.
    pub fn skopeo_copy(&self, from: &str, to: &str) {
        let mut command = Command::new("skopeo");
        command.args([
            "copy",
            "--insecure-policy",
            "--preserve-digests",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
        ]);
        command.args([format!("docker://{from}"), format!("docker://{to}")]).env("HOME", self.root.path());
        let output = command.output().expect("skopeo is installed (script/setup)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log(root: &Path) -> String {
    std::fs::read_to_string(root.join("log")).unwrap_or_default()
}

fn free_place() -> String {
    TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a port").to_string()
}

fn serve(root: &Path, place: &str) -> Option<Child> {
    let config = root.join("config.yml");
    let storage = root.join("storage");
    let text = format!(
        "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {place}\n",
        storage.display()
    );
    std::fs::write(&config, text).expect("a configuration");
    let log = std::fs::File::create(root.join("log")).expect("a log");
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&config).stdin(Stdio::null());
    command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
    let mut child = command.spawn().expect("docker-registry is installed (script/setup)");
    let begun = Instant::now();
    while begun.elapsed() < DEADLINE {
        if child.try_wait().expect("asked").is_some() {
            return None;
        }
        if std::net::TcpStream::connect(place).is_ok() {
            return Some(child);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}
