//! What the demo runs on: a directory of its own, a simulated GitHub, a certificate, a configuration, an image.

use super::DemoError;
use super::image;
use crate::cli::args::{DemoArgs, DemoHypervisor};
use crate::cli::progress::Line;
use fake_github::{FakeGitHub, Options};
use nix::unistd::mkdtemp;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where guests find the host's allowed ports: QEMU's user network puts its machine there.
const GUESTS_WAY_OUT: &str = "10.0.2.2";
/// Longer paths leave too little of the 104 bytes that macOS gives the path of a socket.
const LONGEST_TEMP_PATH: usize = 40;
/// Vms at once.
pub const SLOTS: u32 = 2;
/// How long a vm that is not there takes to boot.
const PRETENDED_BOOT: &str = "1500ms";

/// The demo's directory; removed with all that is in it, unless it is kept.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    keep: bool,
}

impl Root {
    fn make(keep: bool) -> Result<Self, DemoError> {
        let temp = std::env::temp_dir();
        let short = if temp.as_os_str().len() <= LONGEST_TEMP_PATH { temp } else { PathBuf::from("/tmp") };
        let path = mkdtemp(&short.join("flyci-demo-XXXXXX"))
            .map_err(|errno| io(&format!("make a directory in {}", short.display()))(errno.into()))?;
        Ok(Self { path, keep })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed now is told by nobody: the demo is over.
            let _ = remove_tree(&self.path);
        }
    }
}

/// Removes a directory with images in it: these are read-only, their directories too.
pub fn remove_tree(directory: &Path) -> std::io::Result<()> {
    make_writable(directory)?;
    fs::remove_dir_all(directory)
}

fn make_writable(directory: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_writable(&entry.path())?;
        }
    }
    Ok(())
}

/// Everything but the daemon.
pub struct Stage {
    /// The simulated GitHub.
    pub github: FakeGitHub,
    /// The daemon's configuration.
    pub config: PathBuf,
    /// The daemon's data directory.
    pub data_dir: PathBuf,
    /// The daemon's admin socket.
    pub socket: PathBuf,
    /// The daemon's log.
    pub log: PathBuf,
    /// The profile's label.
    pub label: &'static str,
    /// The directory of all this. Last: it goes last.
    pub root: Root,
}

impl Stage {
    /// Puts it up.
    pub async fn set(args: &DemoArgs, line: &Line) -> Result<Self, DemoError> {
        let root = Root::make(args.keep)?;
        let data_dir = root.path().join("data");
        fs::DirBuilder::new().mode(0o700).create(&data_dir).map_err(io("make the data directory"))?;
        let image = match args.hypervisor {
            DemoHypervisor::Qemu => image::provide(&data_dir, root.path(), args.runner.as_deref(), line).await?,
            DemoHypervisor::Fake => "pretended".to_owned(),
        };
        line.say("starting a simulated GitHub");
        let (github, port) = github(args.hypervisor).await?;
        let web_port = free_port()?;
        let certificate = secrets(root.path(), &github)?;
        let url = format!("https://localhost:{web_port}");
        github
            .set_webhook(&format!("{url}/webhooks/github"), Some(&certificate))
            .map_err(|error| DemoError::part("the simulated GitHub cannot deliver webhooks", error))?;
        let config = root.path().join("flyci.toml");
        let settings = Settings { root: root.path(), github: &github, github_port: port, web_port, image: &image };
        write_private(&config, settings.toml(args.hypervisor).as_bytes())?;
        let (socket, log) = (data_dir.join("admin.sock"), root.path().join("daemon.log"));
        Ok(Self { github, config, data_dir, socket, log, label: label(), root })
    }
}

async fn github(hypervisor: DemoHypervisor) -> Result<(FakeGitHub, u16), DemoError> {
    let port = free_port()?;
    let options = Options {
        listen: (Ipv4Addr::LOCALHOST, port).into(),
        names: vec![GUESTS_WAY_OUT.to_owned()],
        runner_url: (hypervisor == DemoHypervisor::Qemu).then(|| format!("https://{GUESTS_WAY_OUT}:{port}")),
        ..Options::https()
    };
    let github = FakeGitHub::start(options)
        .await
        .map_err(|error| DemoError::part("the simulated GitHub did not start", error))?;
    Ok((github, port))
}

/// A port of loopback that nobody has now.
fn free_port() -> Result<u16, DemoError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(io("find a free port"))?;
    Ok(listener.local_addr().map_err(io("find a free port"))?.port())
}

/// Writes the App's secrets and a certificate for the webhook's address. Gives the certificate.
fn secrets(root: &Path, github: &FakeGitHub) -> Result<String, DemoError> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])
        .map_err(|error| DemoError::part("no certificate could be made", error))?;
    write_private(&root.join("tls.key"), made.signing_key.serialize_pem().as_bytes())?;
    write_private(&root.join("tls.pem"), made.cert.pem().as_bytes())?;
    write_private(&root.join("app.pem"), github.private_key_pem().as_bytes())?;
    write_private(&root.join("webhook-secret"), github.webhook_secret().as_bytes())?;
    write_private(&root.join("github-ca.pem"), github.ca_pem().unwrap_or_default().as_bytes())?;
    Ok(made.cert.pem())
}

/// Writes a file that only its owner may read.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), DemoError> {
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content));
    written.map_err(io(&format!("write {}", path.display())))
}

/// Names what was being done when the file system failed.
pub fn io(doing: &str) -> impl FnOnce(std::io::Error) -> DemoError {
    let doing = doing.to_owned();
    move |source| DemoError::Io { doing, source }
}

const fn label() -> &'static str {
    if cfg!(target_arch = "aarch64") { "flyci-linux-arm64" } else { "flyci-linux-x64" }
}

/// What the configuration is made of.
struct Settings<'a> {
    root: &'a Path,
    github: &'a FakeGitHub,
    github_port: u16,
    web_port: u16,
    image: &'a str,
}

impl Settings<'_> {
    fn toml(&self, hypervisor: DemoHypervisor) -> String {
        let Self { root, github, github_port, web_port, image } = self;
        let root = root.display();
        let (hypervisor, fake) = match hypervisor {
            DemoHypervisor::Qemu => ("qemu", ""),
            DemoHypervisor::Fake => ("fake", PRETENDED_BOOT),
        };
        let fake = if fake.is_empty() { String::new() } else { format!("[host.fake]\nboot = \"{fake}\"\n") };
        format!(
            r#"# Made by `flyci demo`.
data_dir = "{root}/data"
roles = ["gateway", "host"]

[web]
listen = "127.0.0.1:{web_port}"
public_url = "https://localhost:{web_port}"
[web.tls]
mode = "files"
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
admission = "approve"

[host]
name = "demo"
hypervisor = "{hypervisor}"
slots = {SLOTS}
reserve_memory = "0B"
cpu_overcommit = 4.0
{fake}[host.qemu]
allow_host_ports = [{github_port}]

[[profiles]]
label = "{label}"
cpus = 1
memory = "512MB"
disk_free = "128MB"
image = "{image}"
"#,
            api = github.url(),
            app_id = github.app_id(),
            label = label(),
        )
    }
}
