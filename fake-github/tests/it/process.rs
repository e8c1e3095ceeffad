//! The server as a process: what it writes for others, and a job from the control verbs to the runner's program.

use std::process::Stdio;

use fake_github::protocol::JIT_ENV;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::client::{self, DEADLINE};

struct Process {
    _child: Child,
    dir: TempDir,
    http: Client,
    about: Value,
}

impl Process {
    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_fake-github"))
            .args(["--tls", "--dir"])
            .arg(dir.path())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = tokio::time::timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap().unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let about: Value = serde_json::from_str(&read("github.json")).unwrap();
        assert_eq!(about["url"], url);
        let http = client::http(Some(&read("ca.pem")));
        Self { _child: child, dir, http, about }
    }

    async fn call(&self, method: Method, path: &str, bearer: &str, body: Value) -> Value {
        let url = format!("{}{path}", self.about["url"].as_str().unwrap());
        let request = self.http.request(method, url).bearer_auth(bearer).json(&body);
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        answer.json().await.unwrap()
    }

    async fn act(&self, verb: Value) -> Value {
        let control = self.about["control_token"].as_str().unwrap();
        self.call(Method::POST, "/_control/do", control, verb).await
    }
}

#[tokio::test]
async fn another_process_finds_all_it_needs_in_the_directory() {
    let github = Process::start().await;
    let acme = github.act(json!({ "do": "install", "account": "acme", "kind": "user" })).await;
    let repo = json!({ "do": "repository", "installation": acme["id"], "name": "app", "visibility": "private" });
    let repo = github.act(repo).await;
    let script = json!({ "steps": [{ "name": "Say", "run": "echo said" }] });
    let job = json!({ "do": "queue_job", "repository": repo["id"], "labels": ["flyci"], "script": script });
    let job = github.act(job).await;

    let key = std::fs::read(github.dir.path().join("app-key.pem")).unwrap();
    let jwt = client::jwt(&key, -60, 540, &github.about["app_id"]);
    let path = format!("/app/installations/{}/access_tokens", acme["id"]);
    let token = github.call(Method::POST, &path, &jwt, json!({})).await;
    let path = "/repos/acme/app/actions/runners/generate-jitconfig";
    let asked = json!({ "name": "one", "runner_group_id": 1, "labels": ["flyci"] });
    let made = github.call(Method::POST, path, token["token"].as_str().unwrap(), asked).await;
    let runner = Command::new(env!("CARGO_BIN_EXE_fake-runner"))
        .arg("--dir")
        .arg(github.dir.path())
        .env(JIT_ENV, made["encoded_jit_config"].as_str().unwrap())
        .kill_on_drop(true)
        .output();
    let runner = tokio::time::timeout(DEADLINE, runner).await.unwrap().unwrap();
    assert_eq!(runner.status.code(), Some(0), "{runner:?}");

    let control = github.about["control_token"].as_str().unwrap();
    let log = format!("/_control/jobs/{}/log", job["id"]);
    let log = github.call(Method::GET, &log, control, json!({})).await;
    assert!(log.as_array().unwrap().contains(&json!("said")), "{log}");
}

#[tokio::test]
async fn secrets_are_written_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let github = Process::start().await;
    for name in ["app-key.pem", "webhook-secret", "github.json"] {
        let mode = std::fs::metadata(github.dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name}");
    }
}
