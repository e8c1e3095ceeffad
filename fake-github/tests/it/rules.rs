//! Who may call what: JWTs, tokens, permissions, limits; and the rules of runners.

use fake_github::runner::{self, Behaviour, Work};
use fake_github::{AccountKind, FakeGitHub, Installation, JobScript, Options, Repo, Secondary, Visibility};
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::client::{App, DEADLINE};

async fn stage() -> (FakeGitHub, Installation, Repo) {
    let github = FakeGitHub::start(Options::default()).await.unwrap();
    let acme = github.install("acme", AccountKind::Organization);
    let repo = github.repository(&acme, "app", Visibility::Private);
    (github, acme, repo)
}

async fn refusal(answer: Response) -> (u16, String) {
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["status"], status.to_string());
    (status, body["message"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_jwt_must_be_signed_by_the_app_in_time_and_for_ten_minutes_at_most() {
    let (github, _, _) = stage().await;
    let app = App::of(&github);
    let id = json!(github.app_id());
    for good in [app.jwt(-60, 540, id.clone()), app.jwt(0, 60, json!(github.client_id()))] {
        assert_eq!(app.call(Method::GET, "/app", &good, None).await.status(), 200);
    }
    for (bad, status, word) in [
        (app.jwt(-60, 660, id.clone()), 401, "too far in the future"),
        (app.jwt(-900, -10, id.clone()), 401, "'exp'"),
        (app.jwt(300, 500, id.clone()), 401, "'iat'"),
        (app.jwt(-60, 540, json!(4711)), 404, "Integration not found"),
        ("a.b.c".into(), 401, "could not be decoded"),
        ("ghs_nobody".into(), 401, "Bad credentials"),
    ] {
        let (got, message) = refusal(app.call(Method::GET, "/app", &bad, None).await).await;
        assert_eq!(got, status, "{message}");
        assert!(message.contains(word), "{message}");
    }
}

#[tokio::test]
async fn a_clock_that_is_off_shows_as_a_refused_jwt() {
    let (github, _, _) = stage().await;
    github.move_clock(-600);
    let (status, message) = refusal(App::of(&github).app(Method::GET, "/app").await).await;
    assert_eq!((status, message.contains("'iat'")), (401, true), "{message}");
}

#[tokio::test]
async fn a_token_reaches_what_it_was_narrowed_to_and_ends_after_an_hour() {
    let (github, acme, repo) = stage().await;
    let other = github.repository(&acme, "other", Visibility::Private);
    let app = App::of(&github);
    let jwt = app.jwt(-60, 540, json!(github.app_id()));
    let path = format!("/app/installations/{}/access_tokens", acme.id);
    let ask = |body: Value| app.call(Method::POST, &path, &jwt, Some(body));

    let narrowed = json!({ "repository_ids": [repo.id], "permissions": { "administration": "write" } });
    let answer: Value = ask(narrowed).await.json().await.unwrap();
    assert_eq!(answer["permissions"], json!({ "administration": "write", "metadata": "read" }));
    assert_eq!(answer["repositories"][0]["id"], repo.id);
    let token = answer["token"].as_str().unwrap();
    assert_eq!(app.jit(token, &repo, "one", &["x"]).await.status(), 201);
    assert_eq!(app.jit(token, &other, "one", &["x"]).await.status(), 404);
    let runs = app.call(Method::GET, "/repos/acme/app/actions/runs", token, None).await;
    assert_eq!(refusal(runs).await, (403, "Resource not accessible by integration".into()));
    assert_eq!(app.call(Method::GET, "/app", token, None).await.status(), 401, "a token is no JWT");

    for too_much in [
        json!({ "repository_ids": [4711] }),
        json!({ "permissions": { "administration": "admin" } }),
        json!({ "permissions": { "secrets": "read" } }),
    ] {
        assert_eq!(ask(too_much).await.status(), 422);
    }
    github.move_clock(3_601);
    let expired = app.jit(token, &repo, "two", &["x"]).await;
    assert_eq!(refusal(expired).await, (401, "Bad credentials".into()));
}

#[tokio::test]
async fn a_suspended_installation_gets_no_token_and_its_tokens_rest() {
    let (github, acme, repo) = stage().await;
    let app = App::of(&github);
    let token = app.token(acme.id).await;
    github.suspend(&acme);
    let path = format!("/app/installations/{}/access_tokens", acme.id);
    let suspended = (403, "This installation has been suspended".to_owned());
    assert_eq!(refusal(app.app(Method::POST, &path).await).await, suspended);
    assert_eq!(refusal(app.jit(&token, &repo, "one", &["x"]).await).await, suspended);
    github.unsuspend(&acme);
    assert_eq!(app.jit(&token, &repo, "one", &["x"]).await.status(), 201);
    github.uninstall(&acme);
    assert_eq!(app.app(Method::POST, &path).await.status(), 404);
    assert_eq!(app.jit(&token, &repo, "two", &["x"]).await.status(), 401);
}

#[tokio::test]
async fn jit_configurations_are_checked_as_documented() {
    let (github, acme, _) = stage().await;
    let app = App::of(&github);
    let token = app.token(acme.id).await;
    let path = "/repos/acme/app/actions/runners/generate-jitconfig";
    let ask = |body: Value| app.call(Method::POST, path, &token, Some(body));
    for (body, status) in [
        (json!({ "name": "one", "labels": ["x"] }), 422),
        (json!({ "name": "one", "runner_group_id": "1", "labels": ["x"] }), 422),
        (json!({ "name": "one", "runner_group_id": 1, "labels": [] }), 422),
        (json!({ "name": "one", "runner_group_id": 1, "labels": vec!["x"; 101] }), 422),
        (json!({ "name": "one", "runner_group_id": 2, "labels": ["x"] }), 403),
        (json!({ "name": "one", "runner_group_id": 9, "labels": ["x"] }), 404),
        (json!({ "name": "one", "runner_group_id": 1, "labels": ["x"] }), 201),
        (json!({ "name": "one", "runner_group_id": 1, "labels": ["x"] }), 409),
    ] {
        assert_eq!(ask(body.clone()).await.status(), status, "{body}");
    }
    github.forbid_repository_runners(&acme, true);
    assert_eq!(ask(json!({ "name": "two", "runner_group_id": 1, "labels": ["x"] })).await.status(), 403);
}

#[tokio::test]
async fn a_busy_runner_is_not_removed_and_an_idle_one_is_once() {
    let (github, acme, repo) = stage().await;
    let app = App::of(&github);
    let token = app.token(acme.id).await;
    let (idle, _) = app.runner(&token, &repo, "idle", &["none"]).await;
    let (busy, jit) = app.runner(&token, &repo, "busy", &["flyci"]).await;
    let (tell, told) = tokio::sync::watch::channel(None);
    let running = tokio::spawn(async move { runner::run(&jit, Behaviour::working(Work::Told(told))).await });
    let job = github.queue_job(&repo, &["flyci"], JobScript::new());
    github.job_reached(job.id, fake_github::Status::InProgress, DEADLINE).await.unwrap();

    let delete = async |id: u64| {
        let path = format!("/repos/acme/app/actions/runners/{id}");
        app.call(Method::DELETE, &path, &token, None).await.status().as_u16()
    };
    assert_eq!(delete(busy).await, 422);
    assert_eq!((delete(idle).await, delete(idle).await), (204, 404));
    tell.send(Some(fake_github::Conclusion::Success)).unwrap();
    assert_eq!(running.await.unwrap(), 0);
    assert_eq!(delete(busy).await, 404);
}

#[tokio::test]
async fn a_runner_can_look_busy_for_a_while_after_its_job() {
    let (github, acme, repo) = stage().await;
    github.switch(|s| s.linger_ms = 3_600_000);
    let app = App::of(&github);
    let token = app.token(acme.id).await;
    let (id, jit) = app.runner(&token, &repo, "one", &["flyci"]).await;
    github.queue_job(&repo, &["flyci"], JobScript::new());
    assert_eq!(runner::run(&jit, Behaviour::default()).await, 0);
    let path = format!("/repos/acme/app/actions/runners/{id}");
    assert_eq!(app.call(Method::DELETE, &path, &token, None).await.status(), 422);
    assert_eq!(app.jit(&token, &repo, "one", &["x"]).await.status(), 409, "its name is still taken");
}

#[tokio::test]
async fn an_idle_jit_runner_is_dropped_after_a_time() {
    let (github, acme, repo) = stage().await;
    github.switch(|s| s.idle_runner_ms = 0);
    let app = App::of(&github);
    let token = app.token(acme.id).await;
    let (_, jit) = app.runner(&token, &repo, "one", &["flyci"]).await;
    github.no_runners(DEADLINE).await.unwrap();
    assert_eq!(runner::run(&jit, Behaviour::default()).await, 1);
}

#[tokio::test]
async fn lists_come_in_pages_with_links_and_can_be_searched_by_name() {
    let (github, acme, repo) = stage().await;
    let app = App::of(&github);
    let token = app.token(acme.id).await;
    for n in 0..5 {
        app.runner(&token, &repo, &format!("runner-{n}"), &["x"]).await;
    }
    let mut next = Some("/repos/acme/app/actions/runners?per_page=2".to_owned());
    let mut names = Vec::new();
    while let Some(path) = next {
        let page = app.call(Method::GET, &path, &token, None).await;
        next = crate::client::next_page(&page);
        let body: Value = page.json().await.unwrap();
        assert_eq!(body["total_count"], 5);
        names.extend(body["runners"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap().to_owned()));
    }
    assert_eq!(names, ["runner-0", "runner-1", "runner-2", "runner-3", "runner-4"]);
    let found = app.call(Method::GET, "/repos/acme/app/actions/runners?name=runner-3", &token, None).await;
    assert_eq!(found.json::<Value>().await.unwrap()["total_count"], 1);
}

#[tokio::test]
async fn limits_are_told_on_each_answer_and_refused_when_used_up() {
    let (github, acme, repo) = stage().await;
    let app = App::of(&github);
    let token = app.token(acme.id).await;
    let runs = || app.call(Method::GET, "/repos/acme/app/actions/runs", &token, None);
    let header = |answer: &Response, name: &str| answer.headers()[name].to_str().unwrap().to_owned();

    let answer = runs().await;
    assert_eq!(header(&answer, "x-ratelimit-limit"), "5000");
    assert_eq!(header(&answer, "x-ratelimit-remaining"), "4999");
    let jit = app.jit(&token, &repo, "one", &["x"]).await;
    assert_eq!(header(&jit, "x-ratelimit-resource"), "actions_runner_registration");

    github.switch(|s| s.secondary = Some(Secondary { times: 1, retry_after_s: 7 }));
    let slow = runs().await;
    assert_eq!((slow.status().as_u16(), header(&slow, "retry-after")), (403, "7".into()));
    assert_eq!(runs().await.status(), 200);

    github.exhaust(&acme);
    let over = runs().await;
    assert_eq!(header(&over, "x-ratelimit-remaining"), "0");
    assert!(refusal(over).await.1.starts_with("API rate limit exceeded"));
    github.move_clock(3_500);
    assert_eq!(runs().await.status(), 403);
    github.move_clock(200);
    let jwt = app.jwt(3_640, 4_240, json!(github.app_id()));
    let path = format!("/app/installations/{}/access_tokens", acme.id);
    let answer: Value = app.call(Method::POST, &path, &jwt, None).await.json().await.unwrap();
    let fresh = answer["token"].as_str().unwrap();
    assert_eq!(app.call(Method::GET, "/repos/acme/app/actions/runs", fresh, None).await.status(), 200);
}

#[tokio::test]
async fn an_answer_that_the_caller_has_already_costs_nothing() {
    let (github, acme, repo) = stage().await;
    let app = App::of(&github);
    let token = app.token(acme.id).await;
    let url = format!("{}/repos/acme/app/actions/runs?status=queued", github.url());
    let http = crate::client::http(None);
    let runs = async |tag: &str| {
        let request = http.get(&url).bearer_auth(&token).header("if-none-match", tag);
        request.send().await.unwrap()
    };
    let header = |answer: &Response, name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    let first = runs("none").await;
    let tag = header(&first, "etag");
    let same = runs(&tag).await;
    assert_eq!(same.status(), 304);
    assert_eq!(header(&same, "x-ratelimit-used"), header(&first, "x-ratelimit-used"));
    github.queue_job(&repo, &["flyci"], JobScript::new());
    assert_eq!(runs(&tag).await.status(), 200);
}

#[tokio::test]
async fn an_app_without_the_subscription_hears_of_no_job() {
    let (github, _, repo) = stage().await;
    github.change_app(&[("metadata", "read")], &["repository"]);
    github.queue_job(&repo, &["flyci"], JobScript::new());
    github.deliveries_settled(DEADLINE).await.unwrap();
    assert!(github.deliveries().iter().all(|d| d.event != "workflow_job"));
    let app: Value = App::of(&github).app(Method::GET, "/app").await.json().await.unwrap();
    assert_eq!(app["events"], json!(["repository"]));
}

#[tokio::test]
async fn calls_fail_before_or_after_their_effect_and_are_counted() {
    let (github, acme, repo) = stage().await;
    let app = App::of(&github);
    let token = app.token(acme.id).await;
    let route = "POST /repos/{owner}/{repo}/actions/runners/generate-jitconfig";
    github.fail_next(route, 502, 1, false);
    assert_eq!(app.jit(&token, &repo, "one", &["x"]).await.status(), 502);
    assert!(github.runners(&repo).is_empty());
    github.fail_next(route, 502, 1, true);
    assert_eq!(app.jit(&token, &repo, "one", &["x"]).await.status(), 502);
    assert_eq!(github.runners(&repo).len(), 1, "the runner was made, its answer was lost");
    assert_eq!(app.jit(&token, &repo, "one", &["x"]).await.status(), 409);
    assert_eq!(github.requests(route), 3);

    github.switch(|s| s.outage = true);
    assert_eq!(app.app(Method::GET, "/app").await.status(), 503);
    github.switch(|s| s.outage = false);
    assert_eq!(app.app(Method::GET, "/app").await.status(), 200);
}

#[tokio::test]
async fn the_verbs_work_over_http_for_who_has_the_control_token() {
    let github = FakeGitHub::start(Options::default()).await.unwrap();
    let app = App::of(&github);
    let control = github.control_token().to_owned();
    let act = async |body: Value| {
        let answer = app.call(Method::POST, "/_control/do", &control, Some(body)).await;
        assert_eq!(answer.status(), 200);
        answer.json::<Value>().await.unwrap()
    };
    let acme = act(json!({ "do": "install", "account": "acme", "kind": "organization" })).await;
    let repo =
        act(json!({ "do": "repository", "installation": acme["id"], "name": "app", "visibility": "private" })).await;
    let script = json!({ "steps": [{ "name": "Say", "run": "echo hi" }], "secrets": { "A": "b" } });
    let job = act(json!({ "do": "queue_job", "repository": repo["id"], "labels": ["flyci"], "script": script })).await;
    act(json!({ "do": "cancel", "job": job["id"] })).await;
    let wait = format!("/_control/jobs/{}/wait?status=completed&within_ms=10000", job["id"]);
    let ended: Value = app.call(Method::GET, &wait, &control, None).await.json().await.unwrap();
    assert_eq!(ended["conclusion"], "cancelled");

    let patch = json!({ "deliveries": { "repeat": 2 }, "outage": true });
    let switches = app.call(Method::PATCH, "/_control/switches", &control, Some(patch)).await;
    let switches: Value = switches.json().await.unwrap();
    assert_eq!((&switches["deliveries"]["repeat"], &switches["primary_limit"]), (&json!(2), &json!(5000)));
    let unknown = app.call(Method::PATCH, "/_control/switches", &control, Some(json!({ "x": 1 }))).await;
    assert_eq!(unknown.status(), 422);
    let nobody = app.call(Method::GET, "/_control/jobs", "guessed", None).await;
    assert_eq!(nobody.status(), 401);
}
