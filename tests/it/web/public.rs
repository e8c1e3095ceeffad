//! The public listener, as GitHub and strangers meet it.

use crate::support::payload::{CANARY, Job};
use crate::support::site::{Site, client, sign};
use flyci::web::PUBLIC_ROUTES;
use hyper::StatusCode;
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// No step of a test takes longer.
const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn nothing_but_the_list_is_public() {
    let site = Site::open().await;
    let listed = PUBLIC_ROUTES.map(|(method, path)| format!("{method} {path}"));
    assert_eq!(
        listed,
        ["POST /webhooks/github", "GET /healthz", "GET /readyz", "GET /.well-known/security.txt"],
        "a public route is a decision"
    );
    for (method, path) in PUBLIC_ROUTES {
        let other = if method == "GET" { "DELETE" } else { "GET" };
        let ask = async |method: &str| {
            let method = method.parse().expect("a method");
            let url = format!("http://{}{path}", site.public);
            client().request(method, url).send().await.expect("it is answered").status().as_u16()
        };
        assert_ne!(ask(method).await, 404, "{method} {path}");
        assert_eq!(ask(other).await, 405, "{other} {path}");
    }
    for path in ["/", "/metrics", "/api/v1/status", "/api/v1/openapi.json", "/webhooks", "/webhooks/github/x", "/j/1"] {
        let (status, body) = site.read(site.public, path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}: {body}");
    }
}

#[tokio::test]
async fn a_delivery_is_answered_by_what_became_of_it() {
    let site = Site::open().await;
    let taken = site.deliver(&Job::queued(1)).await;
    assert_eq!((taken.status, taken.body), (StatusCode::ACCEPTED, json!({"status": "applied", "reason": null})));
    let refused = site.deliver(&Job::queued(2).labels(&["ubuntu-latest"])).await;
    assert_eq!(refused.status, StatusCode::ACCEPTED);
    assert_eq!(refused.body, json!({"status": "ignored", "reason": "label_unknown"}));

    let body = b"not JSON".to_vec();
    let malformed = site.post(&[("x-github-event", "push"), ("x-hub-signature-256", &sign(&body))], body).await;
    assert_eq!(malformed.status, StatusCode::BAD_REQUEST, "{malformed:?}");
    assert_eq!(malformed.body["detail"], "the body is not JSON");
    for signature in [&sign(b"another body")[..], "sha256=", "sha1=00", ""] {
        let headers = [("x-github-event", "workflow_job"), ("x-hub-signature-256", signature)];
        let forged = site.post(&headers, serde_json::to_vec(&Job::queued(3).body()).expect("JSON")).await;
        assert_eq!(forged.status, StatusCode::UNAUTHORIZED, "{signature}");
        assert!(!forged.body.to_string().contains(CANARY), "{forged:?}");
    }
    let jobs = site.get("/jobs").await;
    assert_eq!(jobs.body["items"].as_array().map(Vec::len), Some(1), "{jobs:?}");
}

#[tokio::test]
async fn without_a_database_github_is_told_to_come_back() {
    let site = Site::open().await;
    site.readiness.set_github(true);
    let url = std::env::var("FLYCI_TEST_DATABASE_URL").expect("script/test sets it");
    let mut server = PgConnection::connect(&url).await.expect("the cluster answers");
    let name: String =
        sqlx::query_scalar("SELECT current_database()").fetch_one(&site.db.owner).await.expect("its name");
    set_reachable(&mut server, &name, false).await;
    let refused = site.deliver(&Job::queued(1)).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{refused:?}");
    assert_eq!(refused.body["title"], "not available now: try again later");
    readiness_becomes(&site, "database").await;
    set_reachable(&mut server, &name, true).await;
    readiness_becomes(&site, "ready").await;
    let taken = site.deliver(&Job::queued(1)).await;
    assert_eq!(taken.status, StatusCode::ACCEPTED, "{taken:?}");
}

/// Lets nobody connect to the database, and cuts off who is there; or lets them in again.
async fn set_reachable(server: &mut PgConnection, database: &str, reachable: bool) {
    let alter = format!("ALTER DATABASE {database} ALLOW_CONNECTIONS {reachable}");
    server.execute(sqlx::AssertSqlSafe(alter)).await.expect("the owner may");
    if !reachable {
        sqlx::query("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = $1")
            .bind(database)
            .execute(server)
            .await
            .expect("the owner may");
    }
}

async fn readiness_becomes(site: &Site, word: &str) {
    let wait = async {
        loop {
            let (status, body) = site.read(site.public, "/readyz").await;
            if body.trim() == word {
                return status;
            }
            tokio::task::yield_now().await;
        }
    };
    let status = tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("readiness never becomes {word}"));
    assert_eq!(status == StatusCode::OK, word == "ready");
}

#[tokio::test]
async fn large_bodies_of_strangers_are_bounded_and_leave_room_for_deliveries() {
    /// One stranger sends so much and then stalls.
    const SENT: usize = 10 << 20;
    let site = Site::open().await;
    let mut strangers = Vec::new();
    for _ in 0..4 {
        let mut stranger = TcpStream::connect(site.public).await.expect("it is let in");
        stranger.write_all(head(24 << 20).as_bytes()).await.expect("it is read");
        stranger.write_all(&vec![b'x'; SENT]).await.expect("it is read");
        strangers.push(stranger);
    }
    let mut one_too_many = TcpStream::connect(site.public).await.expect("it is let in");
    one_too_many.write_all(head(24 << 20).as_bytes()).await.expect("it is read");
    let mut answer = [0; 12];
    let (mut reader, mut writer) = one_too_many.split();
    let junk = vec![b'x'; SENT];
    tokio::select! {
        read = tokio::time::timeout(SOON, reader.read_exact(&mut answer)) => {
            read.expect("it is answered in time").expect("it is answered");
        }
        // The answer comes before the end, or with the connection's.
        () = async { let _ = writer.write_all(&junk).await; std::future::pending::<()>().await } => {}
    }
    assert_eq!(&answer, b"HTTP/1.1 503");
    let ordinary = site.deliver(&Job::queued(1)).await;
    assert_eq!(ordinary.status, StatusCode::ACCEPTED, "{ordinary:?}");
    let signature = sign(b"");
    let too_large = site.post(&[("x-hub-signature-256", &signature)], vec![b'x'; (25 << 20) + 1]).await;
    assert_eq!(too_large.status, StatusCode::PAYLOAD_TOO_LARGE, "{too_large:?}");
}

fn head(length: usize) -> String {
    format!(
        "POST /webhooks/github HTTP/1.1\r\nhost: localhost\r\nx-hub-signature-256: {}\r\ncontent-length: {length}\r\n\r\n",
        sign(b"what they do not send")
    )
}

#[tokio::test]
async fn who_is_slow_is_cut_off() {
    let site = Site::open().await;
    let begun = async |bytes: &str| {
        let mut slow = TcpStream::connect(site.public).await.expect("it is let in");
        slow.write_all(bytes.as_bytes()).await.expect("it is read");
        let mut answer = String::new();
        tokio::time::timeout(SOON, slow.read_to_string(&mut answer)).await.expect("it is cut off").ok();
        answer
    };
    let body_begun = head(100) + "half";
    let (silent, half_a_head, half_a_body) =
        tokio::join!(begun(""), begun("POST /webhooks/github HTTP/1.1\r\n"), begun(&body_begun));
    assert_eq!(silent, "");
    assert!(half_a_head.is_empty() || half_a_head.starts_with("HTTP/1.1 408"), "{half_a_head}");
    assert!(half_a_body.starts_with("HTTP/1.1 408"), "{half_a_body}");
}

#[tokio::test]
async fn the_contact_for_holes_is_told() {
    let site = Site::open().await;
    let (status, text) = site.read(site.public, "/.well-known/security.txt").await;
    assert_eq!(status, StatusCode::OK);
    assert!(text.starts_with("Contact: mailto:security@example.com\nExpires: 2099-12-31T23:59:59Z\n"), "{text}");
}
