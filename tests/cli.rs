//! The program as people and scripts meet it: `--help`, exit codes, messages. The daemon behind the admin socket is
//! played by the test.

use axum::extract::Path;
use axum::routing::{get, post};
use axum::{Json, Router};
use rsa::pkcs1::{EncodeRsaPrivateKey as _, LineEnding};
use serde_json::{Value, json};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;
use tokio::net::UnixListener;

/// Bits of the App's key: few, since making one takes a while.
const KEY_BITS: usize = 1024;

/// Every command, as its `--help` is asked for.
const COMMANDS: [&str; 51] = [
    "",
    "serve",
    "status",
    "drain",
    "resume",
    "hosts",
    "host",
    "host invite",
    "host join",
    "host revoke",
    "jobs",
    "jobs why",
    "vms",
    "vms kill",
    "tenants",
    "tenants approve",
    "tenants suspend",
    "tenants limit",
    "tenants export",
    "tenants erase",
    "deliveries",
    "image",
    "image build",
    "image import",
    "image list",
    "image prune",
    "image pull",
    "image push",
    "image remove",
    "image rollback",
    "image verify",
    "config",
    "config check",
    "config show",
    "audit",
    "audit verify",
    "audit head",
    "keys",
    "keys list",
    "keys rotate",
    "keys new",
    "usage",
    "backup",
    "restore",
    "database upgrade",
    "doctor",
    "service install",
    "service uninstall",
    "service status",
    "demo",
    "completions",
];

/// A directory with a configuration, where a daemon may be.
struct Operator {
    home: TempDir,
}

impl Operator {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let config = format!("data_dir = \"{}\"\n{GATEWAY}", home.path().display());
        std::fs::write(home.path().join("flyci.toml"), config).expect("it is writable");
        for (name, content) in [("app.pem", app_key()), ("webhook-secret", "s3cret")] {
            use std::os::unix::fs::PermissionsExt;
            let path = home.path().join(name);
            std::fs::write(&path, content).expect("it is writable");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
        }
        Self { home }
    }

    fn run(&self, line: &str) -> Output {
        flyci(line).arg("--config").arg(self.home.path().join("flyci.toml")).output().expect("it starts")
    }

    /// A daemon that answers with this.
    fn with_daemon(&self, routes: Router) -> tokio::task::JoinHandle<()> {
        let socket = UnixListener::bind(self.home.path().join("admin.sock")).expect("a socket");
        tokio::spawn(
            async move { axum::serve(socket, Router::new().nest("/api/v1", routes)).await.expect("it serves") },
        )
    }

    async fn ask(&self, line: &'static str) -> Output {
        let config = self.home.path().join("flyci.toml");
        let run = move || flyci(line).arg("--config").arg(config).output().expect("it starts");
        tokio::task::spawn_blocking(run).await.expect("it does not panic")
    }
}

/// A private key as GitHub gives an App one, made once.
fn app_key() -> &'static str {
    static KEY: OnceLock<String> = OnceLock::new();
    KEY.get_or_init(|| {
        let key = rsa::PrivateKey::new(&mut rand::rng(), KEY_BITS).expect("a key");
        key.to_pkcs1_pem(LineEnding::LF).expect("it is PEM").to_string()
    })
}

const GATEWAY: &str = "[github]\napp_id = 1\nprivate_key_file = \"app.pem\"\nwebhook_secret_file = \"webhook-secret\"\n\
                       [web.tls]\nmode = \"self-signed\"\n[host]\nhypervisor = \"fake\"\n";

fn flyci(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flyci"));
    command.args(line.split_whitespace()).stdin(Stdio::null());
    for name in ["COLUMNS", "FLYCI_CONFIG", "FLYCI_LOG", "RUST_LOG"] {
        command.env_remove(name);
    }
    command
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it was not killed")
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("messages are UTF-8")
}

fn shown(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("output is UTF-8")
}

#[test]
fn every_command_explains_itself() {
    for command in COMMANDS {
        let output = flyci(&format!("{command} --help")).output().expect("it starts");
        assert_eq!(code(&output), 0, "{command}");
        let name = if command.is_empty() { "flyci".to_owned() } else { command.replace(' ', "_") };
        insta::assert_snapshot!(format!("help_{name}"), shown(&output));
    }
}

#[test]
fn no_command_is_missing_from_the_snapshots() {
    let help = shown(&flyci("--help").output().expect("it starts"));
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = listed.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    for name in names {
        assert!(COMMANDS.iter().any(|command| command.split(' ').next() == Some(name)), "{name}");
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    for line in ["", "setup", "jobs --state asleep", "drain mini-1 --all", "status --json --watch"] {
        let output = flyci(line).output().expect("it starts");
        assert_eq!(code(&output), 2, "{line}: {}", said(&output));
    }
}

#[test]
fn without_a_daemon_it_ends_with_3_and_says_what_to_do() {
    let operator = Operator::new();
    for line in ["status", "--status", "--drain", "jobs", "vms"] {
        let output = operator.run(line);
        assert_eq!(code(&output), 3, "{line}: {}", said(&output));
        let message = said(&output);
        assert!(
            message.starts_with("flyci: the daemon is not running")
                && message
                    .contains(&format!("flyci --config {} serve", operator.home.path().join("flyci.toml").display())),
            "{message}"
        );
    }
}

#[test]
fn a_wrong_configuration_ends_with_78_and_tells_all_faults() {
    let operator = Operator::new();
    let wrong = format!("data_dir = \"/tmp\"\nrols = [\"host\"]\n{GATEWAY}slots = \"many\"\n");
    std::fs::write(operator.home.path().join("flyci.toml"), wrong).expect("it is writable");
    for line in ["image list", "config show", "config check", "serve"] {
        let output = operator.run(line);
        let message = format!("{}{}", shown(&output), said(&output));
        assert_eq!(code(&output), 78, "{line}: {message}");
        assert!(message.contains("rols") && message.contains("host.slots"), "{line}: {message}");
    }
}

#[test]
fn a_daemon_can_be_asked_while_its_configuration_is_wrong() {
    let operator = Operator::new();
    let wrong = format!("data_dir = \"{}\"\nrols = [\"host\"]\n", operator.home.path().display());
    std::fs::write(operator.home.path().join("flyci.toml"), wrong).expect("it is writable");
    assert_eq!(code(&operator.run("status")), 3);
}

#[test]
fn a_socket_of_another_user_says_which_user_to_be() {
    use std::os::unix::fs::PermissionsExt;
    assert!(!nix::unistd::geteuid().is_root(), "root may do everything: run the tests by script/test");
    let operator = Operator::new();
    let closed = operator.home.path().join("closed");
    std::fs::create_dir(&closed).expect("it is writable");
    let config = format!(
        "data_dir = \"{}\"\n{GATEWAY}[admin]\nsocket = \"closed/admin.sock\"\n",
        operator.home.path().display()
    );
    std::fs::write(operator.home.path().join("flyci.toml"), config).expect("it is writable");
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).expect("it is ours");
    let output = operator.run("status");
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).expect("it is ours");
    assert_eq!(code(&output), 1, "{}", said(&output));
    assert!(said(&output).contains("sudo -u"), "{}", said(&output));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = flyci("completions bash").stdout(Stdio::piped()).spawn().expect("it starts");
    drop(child.stdout.take());
    assert!(child.wait().expect("it ends").success());
}

fn status(problems: &Value) -> Value {
    json!({
        "fleet_id": "6e2f", "version": "0.1.0", "started_at": "2026-11-25T01:00:00Z", "now": "2026-11-25T03:00:00Z",
        "roles": ["gateway", "host"], "intake": "webhook", "readiness": "ready", "last_delivery_at": null,
        "queue": {"waiting": 0, "queued": 0, "claimed": 0, "running": 0, "oldest_queued_at": null},
        "day": {"done": 0, "cancelled": 0, "unserved": 0, "lost": 0, "wait_p50_s": null, "wait_p99_s": null},
        "hosts": [], "problems": problems,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_degraded_daemon_ends_with_4_and_says_what_is_wrong() {
    let operator = Operator::new();
    let trouble = json!([{"what": "no host", "evidence": "none has joined", "fix": "flyci serve on a host"}]);
    let daemon = operator.with_daemon(Router::new().route("/status", get(async move || Json(status(&trouble)))));
    let output = operator.ask("status").await;
    assert_eq!(code(&output), 4, "{}", said(&output));
    let page = shown(&output);
    assert!(page.starts_with("flyci: 1 problem ") && page.contains("! no host") && !page.contains('\u{1b}'), "{page}");
    let output = operator.ask("--status --json").await;
    let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((code(&output), &value["problems"][0]["what"]), (4, &json!("no host")));
    daemon.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_takes_too_long_ends_with_5() {
    let operator = Operator::new();
    let done =
        |Path(host): Path<String>| async move { Json(json!({"message": format!("{host} drains"), "changed": 1})) };
    let vm = json!({
        "id": "3f0c9a4e-1111-4222-8333-444455556666", "host": "mini-1", "slot": 0, "profile": "p", "image": "i",
        "cpus": 1, "memory_bytes": 1, "state": "serving", "reason": null, "kill_asked": null, "repository": "acme/app",
        "job_id": "4711", "runner_name": null, "runner_status": null, "stopping_at": null,
        "planned_at": "2026-11-25T03:00:00Z", "cloned_at": null, "booted_at": null, "ready_at": null, "bound_at": null,
        "minted_at": null, "delivering_at": null, "serving_at": null, "gone_at": null,
    });
    let vms = json!({"items": [vm], "next": null});
    let routes = Router::new().route("/hosts/{host}/drain", post(done)).route("/vms", get(async move || Json(vms)));
    let daemon = operator.with_daemon(routes);
    let output = operator.ask("drain mini-1 --wait --timeout 1s").await;
    assert_eq!(code(&output), 5, "{}", said(&output));
    assert_eq!(shown(&output), "mini-1 drains\n");
    let message = said(&output);
    assert!(message.contains("job 4711 of acme/app") && message.contains("the drain goes on"), "{message}");
    daemon.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_daemon_refuses_is_told_in_its_words() {
    let operator = Operator::new();
    let refusal = json!({"type": "about:blank", "title": "no such account", "status": 404, "request_id": "1"});
    let routes = Router::new()
        .route("/tenants/{account}/approve", post(async move || (axum::http::StatusCode::NOT_FOUND, Json(refusal))));
    let daemon = operator.with_daemon(routes);
    let output = operator.ask("tenants approve umbrella").await;
    assert_eq!((code(&output), said(&output).as_str()), (1, "flyci: no such account\n"));
    daemon.abort();
}
