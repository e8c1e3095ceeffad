//! Webhooks: how they look, how they get lost, and how they are sent again.

use axum::http::StatusCode;
use fake_github::{AccountKind, FakeGitHub, Installation, JobScript, Options, Repo, Visibility};
use reqwest::Method;
use serde_json::Value;

use crate::client::{App, DEADLINE, Receiver, next_page, signed};

async fn stage() -> (FakeGitHub, Receiver, Installation, Repo) {
    let github = FakeGitHub::start(Options::default()).await.unwrap();
    let receiver = Receiver::of(&github).await;
    let acme = github.install("acme", AccountKind::User);
    let repo = github.repository(&acme, "app", Visibility::Private);
    github.deliveries_settled(DEADLINE).await.unwrap();
    (github, receiver, acme, repo)
}

fn jobs(receiver: &Receiver) -> Vec<String> {
    receiver.titles().into_iter().filter(|t| t.starts_with("workflow_job")).collect()
}

#[tokio::test]
async fn a_delivery_is_signed_and_has_githubs_headers() {
    let (github, receiver, acme, repo) = stage().await;
    github.queue_job(&repo, &["flyci"], JobScript::new());
    github.deliveries_settled(DEADLINE).await.unwrap();

    let hooks = receiver.hooks();
    let queued = hooks.iter().find(|h| h.title() == "workflow_job queued").unwrap();
    assert_eq!(queued.header("x-hub-signature-256"), signed(github.webhook_secret(), &queued.raw));
    assert!(queued.header("user-agent").starts_with("GitHub-Hookshot/"));
    assert_eq!(queued.header("content-type"), "application/json");
    assert_eq!(queued.header("x-github-hook-installation-target-id"), github.app_id().to_string());
    assert_eq!(queued.header("x-github-hook-installation-target-type"), "integration");
    assert_eq!(queued.body["installation"]["id"], acme.id);
    assert_eq!(queued.header("x-github-delivery"), github.deliveries().last().unwrap().guid);
}

#[tokio::test]
async fn a_job_at_a_gate_is_told_queued_waiting_and_queued_again() {
    let (github, receiver, _, repo) = stage().await;
    let job = github.queue_job(&repo, &["flyci"], JobScript::new().gated());
    assert!(github.approve(job));
    assert!(!github.approve(job), "once");
    github.deliveries_settled(DEADLINE).await.unwrap();
    assert_eq!(jobs(&receiver), ["workflow_job queued", "workflow_job waiting", "workflow_job queued"]);
    let status = |n: usize| {
        receiver
            .hooks()
            .into_iter()
            .filter(|h| h.title().starts_with("workflow_job"))
            .nth(n)
            .unwrap()
            .body["workflow_job"]["status"]
            .clone()
    };
    assert_eq!([status(0), status(1), status(2)], ["waiting", "waiting", "queued"]);
}

#[tokio::test]
async fn a_job_cancelled_in_the_queue_names_no_runner_and_a_rerun_has_a_new_id() {
    let (github, receiver, _, repo) = stage().await;
    let job = github.queue_job(&repo, &["flyci"], JobScript::new());
    assert!(github.cancel(job));
    let again = github.rerun(job);
    assert_eq!(again.run_id, job.run_id);
    assert_ne!(again.id, job.id);
    assert_eq!(github.job(again.id).unwrap().attempt, 2);
    github.deliveries_settled(DEADLINE).await.unwrap();
    let completed = receiver.hooks().into_iter().find(|h| h.title() == "workflow_job completed").unwrap();
    let told = &completed.body["workflow_job"];
    assert_eq!((&told["conclusion"], &told["runner_id"]), (&"cancelled".into(), &Value::Null));
}

#[tokio::test]
async fn a_dropped_delivery_is_in_the_log_and_is_sent_again_with_its_guid() {
    let (github, receiver, _, repo) = stage().await;
    github.switch(|s| s.deliveries.drop_next = 1);
    github.queue_job(&repo, &["flyci"], JobScript::new());
    assert_eq!(github.deliveries_settled(DEADLINE).await.unwrap(), 1);
    assert!(jobs(&receiver).is_empty());

    let app = App::of(&github);
    let log: Value = app.app(Method::GET, "/app/hook/deliveries?per_page=1").await.json().await.unwrap();
    assert_eq!((&log[0]["status_code"], &log[0]["event"]), (&504.into(), &"workflow_job".into()));
    let attempts = format!("/app/hook/deliveries/{}/attempts", log[0]["id"]);
    assert_eq!(app.app(Method::POST, &attempts).await.status(), 202);
    let again = |w: &fake_github::world::World| {
        w.log.back().filter(|r| r.redelivery && r.ok()).map(|r| r.delivery.guid.clone())
    };
    let guid = github.wait_for("the second attempt", DEADLINE, again).await.unwrap();
    assert_eq!(log[0]["guid"], guid);
    assert_eq!(receiver.hooks().last().unwrap().header("x-github-delivery"), guid);
}

#[tokio::test]
async fn a_delivery_can_vanish_without_trace() {
    let (github, receiver, _, repo) = stage().await;
    let before = github.deliveries().len();
    github.switch(|s| (s.deliveries.drop_next, s.deliveries.drop_without_trace) = (1, true));
    github.queue_job(&repo, &["flyci"], JobScript::new());
    github.deliveries_settled(DEADLINE).await.unwrap();
    assert_eq!(github.deliveries().len(), before);
    assert!(jobs(&receiver).is_empty());
}

#[tokio::test]
async fn deliveries_are_repeated_with_one_guid() {
    let (github, receiver, _, repo) = stage().await;
    github.switch(|s| s.deliveries.repeat = 2);
    github.queue_job(&repo, &["flyci"], JobScript::new());
    github.deliveries_settled(DEADLINE).await.unwrap();
    let hooks = receiver.hooks();
    let guids: Vec<&str> = hooks.iter().rev().take(3).map(|h| h.header("x-github-delivery")).collect();
    assert_eq!(jobs(&receiver).len(), 3);
    assert!(guids.iter().all(|g| *g == guids[0]));
}

#[tokio::test]
async fn deliveries_are_shuffled_the_same_way_for_the_same_seed() {
    let mut orders = Vec::new();
    for _ in 0..2 {
        let (github, receiver, _, repo) = stage().await;
        github.switch(|s| (s.deliveries.reorder, s.deliveries.seed) = (8, 42));
        for n in 0..8 {
            github.queue_job(&repo, &["flyci"], JobScript::new().named(format!("job {n}")));
        }
        github.deliveries_settled(DEADLINE).await.unwrap();
        let names = |h: &crate::client::Hook| h.body["workflow_job"]["name"].as_str().map(str::to_owned);
        orders.push(receiver.hooks().iter().filter_map(names).collect::<Vec<_>>());
    }
    assert_eq!(orders[0], orders[1]);
    assert_ne!(orders[0], (0..8).map(|n| format!("job {n}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_log_has_pages_by_cursor_newest_first_and_tells_failures() {
    let (github, receiver, _, repo) = stage().await;
    receiver.answer(Some(StatusCode::INTERNAL_SERVER_ERROR));
    for _ in 0..5 {
        github.queue_job(&repo, &["flyci"], JobScript::new());
    }
    assert_eq!(github.deliveries_settled(DEADLINE).await.unwrap(), 5);
    let app = App::of(&github);
    let mut next = Some("/app/hook/deliveries?per_page=3".to_owned());
    let mut seen: Vec<(u64, u64)> = Vec::new();
    while let Some(path) = next {
        let page = app.app(Method::GET, &path).await;
        next = next_page(&page);
        let items: Vec<Value> = page.json().await.unwrap();
        seen.extend(items.iter().map(|i| (i["id"].as_u64().unwrap(), i["status_code"].as_u64().unwrap())));
    }
    assert_eq!(seen.len(), github.deliveries().len());
    assert!(seen.is_sorted_by(|a, b| a.0 > b.0), "newest first, none twice: {seen:?}");
    assert!(seen[..5].iter().all(|(_, status)| *status == 500));
    let full = app.app(Method::GET, &format!("/app/hook/deliveries/{}", seen[0].0)).await;
    let full: Value = full.json().await.unwrap();
    assert_eq!(full["request"]["payload"]["action"], "queued");
    assert_eq!(full["request"]["headers"]["X-GitHub-Event"], "workflow_job");
}

#[tokio::test]
async fn a_suspended_installation_is_told_nothing_of_its_jobs() {
    let (github, receiver, acme, repo) = stage().await;
    github.suspend(&acme);
    github.queue_job(&repo, &["flyci"], JobScript::new());
    github.deliveries_settled(DEADLINE).await.unwrap();
    assert!(jobs(&receiver).is_empty());
}
