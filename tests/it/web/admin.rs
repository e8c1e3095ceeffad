//! The admin API, as the operator meets it.

use crate::support::payload::{CANARY, Job};
use crate::support::site::Site;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use flyci::web::Peer;
use flyci::web::admin::{ROUTES, router};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tower::ServiceExt;

fn items(body: &Value) -> &Vec<Value> {
    body["items"].as_array().expect("it is a page")
}

#[tokio::test]
async fn every_route_of_the_list_is_there_and_described() {
    let site = Site::open().await;
    for (method, path) in ROUTES {
        let path = path.strip_prefix("/api/v1").expect("all are there").replace(['{', '}'], "");
        let answer = match method {
            "GET" => site.get(&path).await,
            _ => site.change(&path, json!({})).await,
        };
        let missing = answer.status == StatusCode::NOT_FOUND && answer.body["title"] == "there is nothing here";
        assert!(!missing && answer.status != StatusCode::METHOD_NOT_ALLOWED, "{method} {path}: {answer:?}");
        assert!(!answer.status.is_server_error(), "{method} {path}: {answer:?}");
    }
    let description = site.get("/openapi.json").await.body;
    assert_eq!(description["openapi"], "3.1.0");
}

#[tokio::test]
async fn who_asks_decides_what_they_may() {
    let site = Site::open().await;
    let us = nix::unistd::geteuid().as_raw();
    let ask = async |peer: Option<Peer>, method: Method, host: &str| {
        let mut request = Request::builder()
            .method(&method)
            .uri(if method == Method::GET { "/api/v1/hosts" } else { "/api/v1/hosts/drain" })
            .header("host", host)
            .body(Body::empty())
            .expect("a request");
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        router(site.admin.clone()).oneshot(request).await.expect("it is answered").status().as_u16()
    };
    assert_eq!(ask(Some(Peer::User(us)), Method::POST, "localhost").await, 200);
    assert_eq!(ask(Some(Peer::User(0)), Method::POST, "localhost").await, 200, "root may");
    assert_eq!(ask(Some(Peer::User(us + 1)), Method::GET, "localhost").await, 403, "another user may not even read");
    assert_eq!(ask(None, Method::GET, "localhost").await, 403, "who is not known may nothing");
    assert_eq!(ask(Some(Peer::Network), Method::GET, "localhost:9465").await, 200);
    assert_eq!(ask(Some(Peer::Network), Method::POST, "localhost:9465").await, 403, "over TCP there is no uid");
    assert_eq!(ask(Some(Peer::Network), Method::GET, "evil.example").await, 403, "a name made to point here");
}

#[tokio::test]
async fn every_change_is_in_the_audit_trail_with_who_made_it() {
    let site = Site::with(|policy| policy.open_admission = false).await;
    site.deliver(&Job::queued(1)).await;
    let vm = site.vm(site.host("mini-1", 2, 16_000_000_000).await, 0).await;
    let kill = format!("/vms/{vm}/kill");
    for (path, body) in [
        ("/tenants/ACME/approve", json!({})),
        ("/tenants/acme/limit", json!({"vms": 7})),
        ("/tenants/acme/suspend", json!({})),
        ("/hosts/mini-1/drain", json!({"reason": "new disk"})),
        ("/hosts/mini-1/resume", json!({})),
        ("/hosts/drain", json!({})),
        ("/hosts/resume", json!(null)),
        (&kill, json!({"reason": "it hangs"})),
    ] {
        let done = site.change(path, body).await;
        assert_eq!((done.status, &done.body["changed"]), (StatusCode::OK, &json!(1)), "{path}: {done:?}");
    }
    let trail = site.get("/audit").await.body;
    let acts: Vec<&str> = items(&trail).iter().filter_map(|act| act["action"].as_str()).collect();
    assert_eq!(
        acts,
        [
            "audit.begin",
            "tenant.approve",
            "tenant.limit",
            "tenant.suspend",
            "host.drain",
            "host.resume",
            "host.drain",
            "host.resume",
            "vm.kill"
        ]
    );
    let operator = format!("operator:{}", nix::unistd::geteuid());
    assert!(items(&trail)[1..].iter().all(|act| act["actor"] == operator), "{trail}");
    for act in items(&trail) {
        // Stored is our id of an account; its login is opened for who asks.
        let kept = format!("{} {}", act["subject"], act["detail"]).to_lowercase();
        assert!(!kept.contains("acme"), "{act}");
        let is_of_tenant = act["action"].as_str().is_some_and(|action| action.starts_with("tenant."));
        assert_eq!(act["account"], if is_of_tenant { json!("acme") } else { json!(null) }, "{act}");
    }
    assert_eq!(items(&site.get("/vms").await.body)[0]["kill_asked"], "killed");

    let verdict = site.get("/audit/verify").await.body;
    assert_eq!((&verdict["intact"], &verdict["entries"]), (&json!(true), &json!(9)), "{verdict}");
    site.sql("UPDATE audit SET detail = 'nothing' WHERE action = 'vm.kill'").await;
    let verdict = site.get("/audit/verify").await.body;
    assert_eq!((&verdict["intact"], &verdict["broken_at"]), (&json!(false), &json!(9)), "{verdict}");
}

#[tokio::test]
async fn a_change_that_cannot_be_made_leaves_no_trace() {
    let site = Site::open().await;
    let vm = site.vm(site.host("mini-1", 2, 16_000_000_000).await, 0).await;
    let unknown = flyci::domain::ids::VmId::random();
    for (path, body, status) in [
        ("/hosts/mini-2/drain".to_owned(), json!({}), StatusCode::NOT_FOUND),
        ("/tenants/nobody/approve".to_owned(), json!({}), StatusCode::NOT_FOUND),
        (format!("/vms/{unknown}/kill"), json!({"reason": "x"}), StatusCode::NOT_FOUND),
        (format!("/vms/{vm}/kill"), json!({}), StatusCode::BAD_REQUEST),
        (format!("/vms/{vm}/kill"), json!({"reason": "two\nlines"}), StatusCode::BAD_REQUEST),
        ("/hosts/mini-1/drain".to_owned(), json!({"raeson": "x"}), StatusCode::BAD_REQUEST),
    ] {
        let refused = site.change(&path, body).await;
        assert_eq!(refused.status, status, "{path}: {refused:?}");
        assert!(refused.body["detail"].is_string(), "it says what to do: {refused:?}");
    }
    assert_eq!(items(&site.get("/audit").await.body).len(), 0);
}

#[tokio::test]
async fn a_job_is_shown_in_the_contracts_shape() {
    let site = Site::open().await;
    site.deliver(&Job::queued(71)).await;
    let vm = site.vm(site.host("mini-1", 2, 16_000_000_000).await, 0).await;
    let jobs = site.get("/jobs").await.body;
    let job = &items(&jobs)[0];
    let keys = |value: &Value| -> BTreeSet<String> { value.as_object().expect("an object").keys().cloned().collect() };
    let expected = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(
        keys(job),
        expected(&[
            "id",
            "run_id",
            "run_attempt",
            "repository",
            "initiator",
            "profile",
            "hardware",
            "state",
            "conclusion",
            "reason",
            "received_at",
            "github",
            "vm"
        ])
    );
    assert_eq!(keys(&job["github"]), expected(&["created_at", "started_at", "completed_at"]));
    assert_eq!(
        keys(&job["vm"]),
        expected(&[
            "id",
            "host",
            "image",
            "runner_name",
            "planned_at",
            "cloned_at",
            "booted_at",
            "ready_at",
            "bound_at",
            "minted_at",
            "delivering_at",
            "serving_at",
            "gone_at"
        ])
    );
    assert_eq!((&job["id"], &job["run_id"]), (&json!("71"), &json!("1000071")), "ids are texts");
    assert_eq!((&job["state"], &job["reason"]), (&json!("claimed"), &json!("being_served")), "a blank vm is for it");
    assert_eq!((&job["vm"]["id"], &job["vm"]["host"]), (&json!(vm.to_string()), &json!("mini-1")));
    assert_eq!(job["repository"], format!("acme/{CANARY}"));
}

#[tokio::test]
async fn jobs_come_in_pages_and_by_state() {
    let site = Site::open().await;
    for id in 1..=5 {
        site.deliver(&Job::queued(id)).await;
    }
    site.deliver(&Job::cancelled(5)).await;
    site.vm(site.host("mini-1", 2, 16_000_000_000).await, 0).await;
    let ids = |body: &Value| -> Vec<String> {
        items(body).iter().map(|job| job["id"].as_str().expect("a text").to_owned()).collect()
    };
    let (mut path, mut seen) = ("/jobs?limit=2".to_owned(), Vec::new());
    loop {
        let page = site.get(&path).await.body;
        seen.extend(ids(&page));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/jobs?limit=2&after={next}");
    }
    assert_eq!(seen, ["5", "4", "3", "2", "1"]);
    for (state, expected) in [("claimed", vec!["1"]), ("queued", vec!["4", "3", "2"]), ("cancelled", vec!["5"])] {
        assert_eq!(ids(&site.get(&format!("/jobs?state={state}")).await.body), expected, "{state}");
    }
    assert_eq!(ids(&site.get("/jobs?since=2999-01-01T00:00:00Z").await.body), [""; 0]);
    for wrong in ["/jobs?state=failed", "/jobs?since=soon", "/jobs?limit=0", "/jobs?after=x", "/jobs?sort=up"] {
        assert_eq!(site.get(wrong).await.status, StatusCode::BAD_REQUEST, "{wrong}");
    }
}

#[tokio::test]
async fn usage_is_whole_seconds_on_the_day_they_were_used() {
    let site = Site::open().await;
    for id in 1..=4 {
        site.deliver(&Job::queued(id)).await;
    }
    // One over midnight, one that was cancelled in the queue, one that was lost, one of another month.
    site.sql(
        "UPDATE jobs SET state = 'done', github_started_at = '2026-11-25T23:59:30Z',
                  github_completed_at = '2026-11-26T00:00:45Z'",
    )
    .await;
    let ids: Vec<uuid::Uuid> =
        sqlx::query_scalar("SELECT id FROM jobs ORDER BY received_at").fetch_all(&site.db.owner).await.expect("jobs");
    for (id, change) in [
        (ids[1], "state = 'cancelled', github_started_at = NULL"),
        (ids[2], "state = 'lost', reason = 'vm_vanished'"),
        (ids[3], "github_started_at = '2026-12-01T00:00:00Z', github_completed_at = '2026-12-01T00:00:10Z'"),
    ] {
        let statement = format!("UPDATE jobs SET {change} WHERE id = '{id}'");
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&site.db.owner).await.expect("it is arranged");
    }
    let row = |day: &str, seconds: u64| json!({"day": day, "account": "acme", "profile": "flyci-test", "jobs": 1, "seconds": seconds});
    let november = site.get("/usage?month=2026-11").await.body;
    assert_eq!(november["items"], json!([row("2026-11-25", 30), row("2026-11-26", 45)]));
    let one_day = site.get("/usage?day=2026-11-26").await.body;
    assert_eq!(one_day["items"], json!([row("2026-11-26", 45)]));
    assert_eq!(site.get("/usage?month=2026-11&day=2026-11-26").await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn status_says_first_what_is_wrong() {
    let site = Site::with(|policy| policy.open_admission = false).await;
    site.readiness.set_github(true);
    site.deliver(&Job::queued(1)).await;
    site.deliver(&Job::queued(2).labels(&["flyci-tset"])).await;
    let fence = site.host("mini-1", 2, 16_000_000_000).await;
    site.vm(fence, 0).await;
    site.sql("UPDATE vms SET state = 'stopping', reason = 'killed', stopping_at = now() - interval '10 minutes'").await;
    site.sql("UPDATE hosts SET beat_at = now() - interval '5 minutes'").await;
    site.sql("INSERT INTO host_images SELECT id, 'any', 4, 'boot_failed', now() + interval '1 hour' FROM hosts").await;
    let status = site.get("/status").await.body;
    let what: Vec<&str> =
        status["problems"].as_array().expect("a list").iter().filter_map(|trouble| trouble["what"].as_str()).collect();
    for expected in [
        "host mini-1 is silent",
        "image any does not boot on mini-1",
        "on mini-1 is not gone",
        "no profile serves `flyci-tset`",
        "1 account waits for your approval",
    ] {
        assert!(what.iter().any(|what| what.contains(expected)), "{expected}: {what:?}");
    }
    assert_eq!(status["hosts"][0]["state"], "silent");
    assert_eq!(status["intake"], "webhook");
}

#[tokio::test]
async fn deliveries_images_and_metrics_are_shown() {
    let site = Site::open().await;
    site.deliver(&Job::queued(1)).await;
    let body = br#"{"action": 7}"#.to_vec();
    let signature = crate::support::site::sign(&body);
    site.post(&[("x-github-event", "workflow_job"), ("x-hub-signature-256", &signature)], body).await;
    assert_eq!(items(&site.get("/deliveries").await.body).len(), 2);
    let failed = site.get("/deliveries?failed=true").await.body;
    assert_eq!((items(&failed).len(), &failed["items"][0]["outcome"]), (1, &json!("not_understood")), "{failed}");
    let images = site.get("/images").await.body;
    assert_eq!(images["items"][0]["profiles"], json!(["flyci-test"]), "{images}");
    let metrics = site.get("/metrics").await.body;
    assert!(metrics.as_str().is_some_and(|text| text.contains("flyci_deliveries_total")), "{metrics}");
}
