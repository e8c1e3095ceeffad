//! Our answers and webhooks against GitHub's own OpenAPI description, fetched by `contract/fetch.sh`.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use fake_github::runner::{self, Behaviour};
use fake_github::{AccountKind, FakeGitHub, JobScript, Options, Visibility};
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{App, DEADLINE, Hook, Receiver};

/// GitHub's schemas: of answers by method, route and status; of webhooks by event and action.
struct Description {
    schemas: Value,
}

impl Description {
    fn fetch() -> Self {
        let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let dir = here.parent().unwrap().join("target/contract");
        let fetched = Command::new(here.join("contract/fetch.sh")).arg(&dir).output().unwrap();
        assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
        let text = std::fs::read(dir.join("schemas.json")).unwrap();
        Self { schemas: serde_json::from_slice(&text).unwrap() }
    }

    /// Fetched once, however many tests run at the same time.
    fn get() -> &'static Self {
        static FETCHED: OnceLock<Description> = OnceLock::new();
        FETCHED.get_or_init(Self::fetch)
    }

    fn check(&self, kind: &str, name: &str, value: &Value) {
        let mut schema = self.schemas[kind][name].clone();
        assert!(schema.is_object(), "GitHub describes no {kind} {name}");
        schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
        // A reference beside other keywords counts for nothing in draft 7.
        let schema = json!({ "allOf": [schema], "definitions": self.schemas["definitions"] });
        let schema = jsonschema::draft7::new(&schema).unwrap();
        let faults: Vec<String> = schema.iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(faults.is_empty(), "{kind} {name}:\n{}\n{value:#}", faults.join("\n"));
    }

    /// Checks an answer, and gives its body.
    async fn answer(&self, route: &str, status: u16, answer: reqwest::Response) -> Value {
        assert_eq!(answer.status(), status, "{route}");
        let body: Value = answer.json().await.unwrap();
        self.check("answers", &format!("{route} {status}"), &body);
        body
    }

    fn hook(&self, hook: &Hook) {
        self.check("webhooks", &hook.title().replace([' ', '_'], "-"), &hook.body);
    }
}

#[tokio::test]
async fn answers_to_the_app_are_as_github_describes_them() {
    let described = Description::get();
    let github = FakeGitHub::start(Options::default()).await.unwrap();
    let _receiver = Receiver::of(&github).await;
    let acme = github.install("acme", AccountKind::Organization);
    github.repository(&acme, "app", Visibility::Private);
    github.deliveries_settled(DEADLINE).await.unwrap();
    let app = App::of(&github);

    let tokens = format!("/app/installations/{}/access_tokens", acme.id);
    let one = format!("/app/installations/{}", acme.id);
    for (route, path) in [
        ("/app", "/app"),
        ("/app/installations", "/app/installations"),
        ("/app/installations/{installation_id}", &one),
        ("/repos/{owner}/{repo}/installation", "/repos/acme/app/installation"),
        ("/orgs/{org}/installation", "/orgs/acme/installation"),
        ("/app/hook/config", "/app/hook/config"),
        ("/app/hook/deliveries", "/app/hook/deliveries"),
        ("/meta", "/meta"),
        ("/rate_limit", "/rate_limit"),
    ] {
        described.answer(&format!("GET {route}"), 200, app.app(Method::GET, path).await).await;
    }
    let route = "POST /app/installations/{installation_id}/access_tokens";
    described.answer(route, 201, app.app(Method::POST, &tokens).await).await;
    let missing = app.app(Method::POST, "/app/installations/7/access_tokens").await;
    described.answer(route, 404, missing).await;

    let attempt = github.deliveries()[0].id;
    let path = format!("/app/hook/deliveries/{attempt}");
    let route = "GET /app/hook/deliveries/{delivery_id}";
    described.answer(route, 200, app.app(Method::GET, &path).await).await;
    let route = "POST /app/hook/deliveries/{delivery_id}/attempts";
    let again = app.app(Method::POST, &format!("{path}/attempts")).await;
    described.answer(route, 202, again).await;
}

/// An installation that calls the API and has every answer checked.
struct Caller<'a> {
    app: App<'a>,
    token: String,
}

impl<'a> Caller<'a> {
    async fn of(github: &'a FakeGitHub, installation: u64) -> Self {
        let app = App::of(github);
        let token = app.token(installation).await;
        Self { app, token }
    }

    /// Calls `path`, which fills in GitHub's `route`.
    async fn call(&self, route: &str, status: u16, path: &str, body: Option<Value>) -> Value {
        let method: Method = route.split(' ').next().unwrap().parse().unwrap();
        let answer = self.app.call(method, path, &self.token, body).await;
        Description::get().answer(route, status, answer).await
    }

    async fn get(&self, template: &str, path: &str) -> Value {
        self.call(&format!("GET {template}"), 200, path, None).await
    }
}

#[tokio::test]
async fn answers_about_runners_are_as_github_describes_them() {
    let github = FakeGitHub::start(Options::default()).await.unwrap();
    let acme = github.install("acme", AccountKind::Organization);
    let repo = github.repository(&acme, "app", Visibility::Private);
    let group = github.runner_group(&acme, "macs", &[&repo]);
    let caller = Caller::of(&github, acme.id).await;

    let runners = "/repos/{owner}/{repo}/actions/runners";
    let jit = format!("POST {runners}/generate-jitconfig");
    let here = "/repos/acme/app/actions/runners";
    let path = format!("{here}/generate-jitconfig");
    let body = json!({ "name": "one", "runner_group_id": 1, "labels": ["x"] });
    let made = caller.call(&jit, 201, &path, Some(body.clone())).await;
    caller.call(&jit, 409, &path, Some(body)).await;
    caller.call(&jit, 422, &path, Some(json!({ "name": "two" }))).await;
    caller.get(runners, here).await;
    let one = format!("{here}/{}", made["runner"]["id"]);
    caller.get(&format!("{runners}/{{runner_id}}"), &one).await;

    let runners = "/orgs/{org}/actions/runners";
    let jit = format!("POST {runners}/generate-jitconfig");
    let here = "/orgs/acme/actions/runners";
    let body = json!({ "name": "three", "runner_group_id": group, "labels": ["x"] });
    let made = caller.call(&jit, 201, &format!("{here}/generate-jitconfig"), Some(body)).await;
    caller.get(runners, here).await;
    let one = format!("{here}/{}", made["runner"]["id"]);
    caller.get(&format!("{runners}/{{runner_id}}"), &one).await;

    let groups = "/orgs/{org}/actions/runner-groups";
    let here = format!("/orgs/acme/actions/runner-groups/{group}");
    caller.get(groups, "/orgs/acme/actions/runner-groups").await;
    caller.get(&format!("{groups}/{{runner_group_id}}"), &here).await;
    let repositories = format!("{groups}/{{runner_group_id}}/repositories");
    caller.get(&repositories, &format!("{here}/repositories")).await;
}

#[tokio::test]
async fn answers_about_runs_and_jobs_are_as_github_describes_them() {
    let github = FakeGitHub::start(Options::default()).await.unwrap();
    let acme = github.install("acme", AccountKind::Organization);
    let repo = github.repository(&acme, "app", Visibility::Private);
    let ended = github.queue_job(&repo, &["other"], JobScript::new());
    github.cancel(ended);
    let job = github.queue_job(&repo, &["flyci"], JobScript::new());
    let caller = Caller::of(&github, acme.id).await;

    let actions = "/repos/{owner}/{repo}/actions";
    let here = "/repos/acme/app/actions";
    caller.get("/installation/repositories", "/installation/repositories").await;
    caller.get("/repos/{owner}/{repo}", "/repos/acme/app").await;
    caller.get(&format!("{actions}/runs"), &format!("{here}/runs?status=queued")).await;
    let run = format!("{here}/runs/{}", job.run_id);
    caller.get(&format!("{actions}/runs/{{run_id}}"), &run).await;
    let jobs = format!("{here}/runs/{}/jobs", ended.run_id);
    caller.get(&format!("{actions}/runs/{{run_id}}/jobs"), &jobs).await;
    let one = format!("{here}/jobs/{}", job.id);
    caller.get(&format!("{actions}/jobs/{{job_id}}"), &one).await;

    let rerun = format!("POST {actions}/jobs/{{job_id}}/rerun");
    caller.call(&rerun, 201, &format!("{here}/jobs/{}/rerun", ended.id), None).await;
    let cancel = format!("POST {actions}/runs/{{run_id}}/cancel");
    caller.call(&cancel, 202, &format!("{run}/cancel"), None).await;
}

#[tokio::test]
async fn webhooks_are_as_github_describes_them() {
    let described = Description::get();
    let github = FakeGitHub::start(Options::default()).await.unwrap();
    let receiver = Receiver::of(&github).await;
    github.ping();
    let acme = github.install("acme", AccountKind::Organization);
    let other = github.install("dev", AccountKind::User);
    let repo = github.repository(&acme, "app", Visibility::Private);
    let gated = github.queue_job(&repo, &["flyci"], JobScript::new().step("deploy").gated());
    github.approve(gated);
    let cancelled = github.queue_job(&repo, &["none"], JobScript::new());
    github.cancel(cancelled);
    let app = App::of(&github);
    let token = app.token(acme.id).await;
    let (_, jit) = app.runner(&token, &repo, "one", &["flyci"]).await;
    runner::run(&jit, Behaviour::default()).await;
    github.publicize(&repo);
    github.privatize(&repo);
    github.rename(&repo, "app2");
    github.transfer(&repo, &other);
    github.rename_account(&other, "dev2");
    github.delete_repository(&repo);
    let last = github.repository(&acme, "last", Visibility::Private);
    github.select(&last, false);
    github.grant(&acme, "actions", Some("read"));
    github.suspend(&acme);
    github.unsuspend(&acme);
    github.uninstall(&acme);
    assert_eq!(github.deliveries_settled(DEADLINE).await.unwrap(), 0);

    let hooks = receiver.hooks();
    hooks.iter().for_each(|hook| described.hook(hook));
    let told: std::collections::BTreeSet<String> = receiver.titles().into_iter().collect();
    let all: std::collections::BTreeSet<String> =
        described.schemas["webhooks"].as_object().unwrap().keys().cloned().collect();
    let told: std::collections::BTreeSet<String> = told.iter().map(|t| t.replace([' ', '_'], "-")).collect();
    assert_eq!(told, all, "every event that is described was sent");
}
