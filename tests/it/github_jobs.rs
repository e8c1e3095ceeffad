//! Jobs, runs, deliveries, the App: what is read, and that odd answers do not break it.

use crate::github_stub::{APP_7, INSTALLATION, Reply, Seen, Stub, options};
use flyci::github::{GitHub, GitHubError, InstallationId};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

fn job(id: u64, status: &str) -> Value {
    json!({ "id": id, "run_id": id / 10, "status": status, "labels": ["flyci-macos-large"], "name": "build",
            "runner_id": null, "steps": [], "head_branch": null })
}

#[tokio::test]
async fn a_job_without_its_attempt_is_read_and_an_unknown_one_is_none() {
    let stub = Stub::start(|seen, _| {
        seen.is("GET", "/repos/acme/app-7/actions/jobs/21").then(|| Reply::json(200, &job(21, "in_progress")))
    })
    .await;
    let github = stub.client();
    let known = github.job(INSTALLATION, APP_7, 21).await.expect("asked").expect("known");
    assert_eq!((known.run_id, known.run_attempt, known.status.as_str()), (2, None, "in_progress"));
    assert_eq!(github.job(INSTALLATION, APP_7, 22).await.expect("asked"), None);
    assert_eq!(github.run(INSTALLATION, APP_7, 2).await.expect("asked"), None);
}

/// Run 1 is queued (jobs 11 queued, 12 completed), run 2 under way (jobs 21 queued, 22 in progress).
fn runs(seen: &Seen) -> Option<Reply> {
    let list = |runs: Value| Reply::json(200, &json!({ "total_count": 1, "workflow_runs": runs }));
    let reply = match seen.path.strip_prefix("/repos/acme/app-7/actions/runs")? {
        "" if seen.query.contains("status=queued") => match seen.headers.get("if-none-match") {
            Some(etag) if etag == "\"v1\"" => Reply::new(304, ""),
            _ => list(json!([{ "id": 1, "status": "queued" }])).header("etag", "\"v1\""),
        },
        "" => list(json!([{ "id": 2, "status": "in_progress" }])),
        "/1/jobs" => Reply::json(200, &json!({ "jobs": [job(11, "queued"), job(12, "completed")] })),
        "/2/jobs" => Reply::json(200, &json!({ "jobs": [job(21, "queued"), job(22, "in_progress")] })),
        _ => return None,
    };
    Some(reply)
}

#[tokio::test]
async fn open_jobs_are_found_in_queued_runs_and_in_runs_under_way() {
    let stub = Stub::start(|seen, _| runs(seen)).await;
    let github = stub.client();
    let ids = |found: &flyci::github::OpenJobs| {
        let mut ids: Vec<u64> = found.jobs.iter().map(|job| job.id).collect();
        ids.sort_unstable();
        ids
    };
    let first = github.open_jobs(INSTALLATION, APP_7, None).await.expect("asked");
    assert_eq!((ids(&first), first.complete), (vec![11, 21, 22], true));
    let again = github.open_jobs(INSTALLATION, APP_7, first.etag.as_deref()).await.expect("asked");
    assert_eq!((first.requests, again.requests), (4, 2));
    assert_eq!(
        (ids(&again), again.unchanged, again.etag),
        (vec![21, 22], true, first.etag),
        "an unchanged queue costs no budget"
    );
}

#[tokio::test]
async fn a_job_is_asked_for_again_once_with_the_permission_for_it() {
    let stub = Stub::start(|seen, _| seen.is("POST", "/jobs/2/rerun").then(|| Reply::new(201, "{}"))).await;
    let github = stub.client();
    github.rerun_job(INSTALLATION, APP_7, 2).await.expect("asked");
    assert_eq!(stub.token_requests()[0].body["permissions"], json!({ "actions": "write", "metadata": "read" }));
    assert!(matches!(github.rerun_job(INSTALLATION, APP_7, 3).await, Err(GitHubError::NotFound { .. })));
}

#[tokio::test]
async fn deliveries_are_read_page_by_page_and_sent_again() {
    let attempt = |id: u64, status: u16| {
        json!({ "id": id, "guid": "0b989ba4", "delivered_at": "2026-01-02T03:04:05Z", "redelivery": false,
                "duration": 0.03, "status": "x", "status_code": status, "event": "workflow_job", "action": "queued",
                "installation_id": 11, "repository_id": 7 })
    };
    let stub = Stub::start(move |seen, _| {
        let reply = match (seen.method.as_str(), seen.path.as_str()) {
            ("GET", "/app/hook/deliveries") if seen.query.contains("cursor=v1_9") => {
                Reply::json(200, &json!([attempt(1, 200)]))
            }
            ("GET", "/app/hook/deliveries") => Reply::json(200, &json!([attempt(2, 503)]))
                .header("link", "<https://api.github.com/app/hook/deliveries?cursor=v1_9>; rel=\"next\""),
            ("GET", "/app/hook/deliveries/2") => {
                let mut detail = attempt(2, 503);
                detail["request"] = json!({ "headers": {}, "payload": { "action": "queued" } });
                Reply::json(200, &detail)
            }
            ("POST", "/app/hook/deliveries/2/attempts") => Reply::new(202, "{}"),
            _ => return None,
        };
        Some(reply)
    })
    .await;
    let github = stub.client();
    let newest = github.deliveries(None, None).await.expect("asked");
    assert!(!newest.deliveries[0].succeeded());
    assert_eq!(newest.next.as_deref(), Some("v1_9"));
    let older = github.deliveries(newest.next.as_deref(), None).await.expect("asked");
    assert!(older.deliveries[0].succeeded() && older.next.is_none());

    let detail = github.delivery(2).await.expect("asked").expect("kept");
    assert_eq!(detail.delivery.installation_id, Some(11));
    assert_eq!(detail.payload.to_bytes(), br#"{"action":"queued"}"#);
    assert!(github.delivery(3).await.expect("asked").is_none());
    github.redeliver(2).await.expect("asked");
    assert!(stub.token_requests().is_empty(), "all of it is asked as the App");
}

#[tokio::test]
async fn the_runners_releases_are_read_without_a_token() {
    let stub = Stub::start(|seen, _| {
        let asked = seen.is("GET", "/repos/actions/runner/releases") && !seen.headers.contains_key("authorization");
        let release = |tag: &str, prerelease: bool| {
            json!({ "tag_name": tag, "draft": false, "prerelease": prerelease, "published_at": "2026-11-20T08:00:00Z" })
        };
        asked.then(|| Reply::json(200, &json!([release("v2.331.0", false), release("v3.0.0", true), release("odd", false)])))
    })
    .await;
    let read = stub.client().runner_releases().await.expect("read");
    let told: Vec<String> =
        read.iter().map(|release| format!("{} {}", release.version, release.published_at.date_naive())).collect();
    assert_eq!(told, ["2.331.0 2026-11-20"]);
}

#[tokio::test]
async fn the_app_and_its_installations_are_read() {
    let tries = AtomicU32::new(0);
    let stub = Stub::start(move |seen, _| {
        let reply = match seen.path.as_str() {
            "/app" if tries.fetch_add(1, Ordering::Relaxed) == 0 => Reply::message(503, "Unavailable"),
            "/app" => Reply::json(
                200,
                &json!({ "id": 4242, "slug": "flyci", "name": "flyci", "events": ["workflow_job"],
                                                "permissions": { "metadata": "read" } }),
            ),
            "/app/installations/11" => Reply::json(
                200,
                &json!({
                "id": 11, "account": { "id": 5, "login": "acme", "type": "Organization" }, "suspended_at": null,
                "repository_selection": "selected", "permissions": { "actions": "write" } }),
            ),
            _ => return None,
        };
        Some(reply)
    })
    .await;
    let github = stub.client();
    let app = github.app().await.expect("read at the second try");
    assert_eq!((app.slug.as_str(), app.events.len()), ("flyci", 1));
    let known = github.installation(INSTALLATION).await.expect("asked").expect("known");
    assert_eq!((known.account_id, known.login.as_str(), known.suspended), (5, "acme", false));
    assert_eq!(github.installation(InstallationId(12)).await.expect("asked"), None);
}

#[tokio::test]
async fn every_call_is_told_by_its_template_and_status() {
    let stub = Stub::start(|_, _| None).await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let teller = Arc::clone(&told);
    let mut options = options(&stub.url);
    options.on_call = Some(Arc::new(move |route, status, _| teller.lock().expect("unpoisoned").push((route, status))));
    let github = GitHub::new(&options).expect("options");
    assert_eq!(github.job(INSTALLATION, APP_7, 22).await.expect("asked"), None);
    let told = told.lock().expect("unpoisoned").clone();
    assert!(told.contains(&("/repos/{owner}/{repo}/actions/jobs/{job_id}", 404)), "{told:?}");
    assert!(told.contains(&("/app/installations/{installation_id}/access_tokens", 201)), "{told:?}");
}
