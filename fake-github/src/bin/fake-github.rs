//! The simulated GitHub as a process: writes what its clients need into a directory, then serves until it is stopped.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Parser;
use fake_github::{FakeGitHub, Options};
use serde_json::json;

/// A stateful GitHub for tests and demonstrations.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Serve HTTPS by a CA made for this run.
    #[arg(long)]
    tls: bool,
    /// A further name or address for the certificate; may be repeated.
    #[arg(long = "name")]
    names: Vec<String>,
    /// Where runners reach this server, if not at the address that it listens on.
    #[arg(long)]
    runner_url: Option<String>,
    /// Where webhooks go.
    #[arg(long)]
    webhook_url: Option<String>,
    /// The CA of the webhook's receiver, PEM.
    #[arg(long)]
    webhook_ca: Option<PathBuf>,
    /// The directory for github.json, app-key.pem, webhook-secret and ca.pem.
    #[arg(long)]
    dir: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let args = Args::parse();
    let ca = args.webhook_ca.as_deref().map(read).transpose()?;
    let options = Options {
        listen: args.listen,
        tls: args.tls,
        names: args.names,
        runner_url: args.runner_url,
        webhook_url: args.webhook_url,
        webhook_ca: ca,
        ..Options::default()
    };
    let github = FakeGitHub::start(options).await?;
    describe(&github, &args.dir)?;
    println!("{}", github.url());
    tokio::signal::ctrl_c().await.context("cannot wait for a signal")
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes the files; `github.json` comes last, so whoever finds it finds the others.
fn describe(github: &FakeGitHub, dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    write(dir, "app-key.pem", github.private_key_pem())?;
    write(dir, "webhook-secret", github.webhook_secret())?;
    if let Some(ca) = github.ca_pem() {
        write(dir, "ca.pem", ca)?;
    }
    let about = json!({
        "url": github.url(),
        "app_id": github.app_id(),
        "client_id": github.client_id(),
        "control_token": github.control_token(),
    });
    write(dir, "github.json.new", &about.to_string())?;
    std::fs::rename(dir.join("github.json.new"), dir.join("github.json")).context("cannot name github.json")
}

fn write(dir: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = dir.join(name);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
