//! The audit trail against somebody who can write to the database, as its owner, and has no key.

use crate::support::payload::Job;
use crate::support::site::Site;
use axum::http::{Request, StatusCode};
use flyci::secrets::KeyRing;
use flyci::store::audit::{Act, Head, Trail};
use flyci::upkeep::trail::{self, Auditor, TrailFault, Verdict};
use flyci::web::Peer;
use flyci::web::admin::router;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha2::Sha256;
use sqlx::{AssertSqlSafe, Row};
use tower::ServiceExt;

const ACTS: i64 = 9;

/// A site with acts in its trail; one more row begins the chain.
async fn acted() -> Site {
    let site = Site::open().await;
    for number in 1..=ACTS {
        act(&site, number).await;
    }
    site
}

async fn act(site: &Site, number: i64) -> Head {
    let subject = number.to_string();
    let act = Act { actor: "operator:1", action: "test.act", subject: &subject, detail: None };
    site.admin.trail.append(&site.db.gateway, &act).await.expect("it is appended")
}

async fn verdict(site: &Site) -> Verdict {
    site.admin.auditor.verify(&[]).await.expect("the trail is read")
}

async fn fault(site: &Site) -> Option<(i64, &'static str)> {
    verdict(site).await.fault.map(|TrailFault { position, what, .. }| (position, what))
}

#[tokio::test]
async fn whatever_is_done_to_the_trail_shows() {
    let edited = "is not what was written";
    let missing = "is not the next one: rows are missing";
    for (what, statement, expected) in [
        ("an edit", "UPDATE audit SET detail = 'nothing' WHERE position = 5", (5, edited)),
        ("another time", "UPDATE audit SET at = at - interval '1 day' WHERE position = 5", (5, edited)),
        ("an empty detail", "UPDATE audit SET detail = '' WHERE position = 5", (5, edited)),
        ("a removal", "DELETE FROM audit WHERE position = 5", (6, missing)),
        (
            "the removal of the beginning",
            "DELETE FROM audit WHERE position <= 2",
            (3, "is not the chain's first: rows before it are missing"),
        ),
        (
            "a copy put in",
            "UPDATE audit SET position = position + 100 WHERE position > 5;
          INSERT INTO audit (chain, position, at, actor, action, subject, detail, previous, hash)
          SELECT chain, 6, at, actor, action, subject, detail, previous, hash FROM audit WHERE position = 5;
          UPDATE audit SET position = position - 99 WHERE position > 100",
            (6, edited),
        ),
        (
            "two rows in another order",
            "UPDATE audit SET position = -position WHERE position IN (5, 6);
          UPDATE audit SET position = 11 + position WHERE position < 0",
            (5, edited),
        ),
        (
            "a chain in another order in lists",
            "ALTER TABLE audit ALTER COLUMN seq DROP IDENTITY;
          UPDATE audit SET seq = seq + 1000 WHERE position = 5",
            (6, "is not where it was written"),
        ),
        ("a row of another chain", "UPDATE audit SET chain = 'gateway:other' WHERE position = 5", (5, edited)),
        (
            "rows without a key",
            "INSERT INTO audit (chain, position, at, actor, action, subject, previous, hash)
          VALUES ('', 1, now(), 'operator:1', 'tenant.approve', 'x', '', '')",
            (1, edited),
        ),
    ] {
        let site = acted().await;
        assert_eq!(fault(&site).await, None, "before {what}");
        sqlx::raw_sql(statement).execute(&site.db.owner).await.expect(what);
        assert_eq!(fault(&site).await, Some(expected), "{what}");
    }
}

#[tokio::test]
async fn a_cut_tail_shows_to_whoever_kept_the_head() {
    let site = acted().await;
    let head = act(&site, 100).await;
    act(&site, 101).await;
    let kept = format!("/audit/verify?heads={head}");
    assert_eq!(site.get(&kept).await.body["intact"], true);
    assert_eq!(site.get("/audit/head").await.body["heads"].as_array().map(Vec::len), Some(1));

    site.sql("DELETE FROM audit WHERE position > 8").await;
    assert_eq!(site.get("/audit/verify").await.body["intact"], true, "without the head nothing shows");
    let told = site.get(&kept).await.body;
    assert_eq!((&told["intact"], &told["broken_at"]), (&json!(false), &json!(head.position)), "{told}");
    // Others are written in their place.
    for number in 200..205 {
        act(&site, number).await;
    }
    let told = site.get(&kept).await.body;
    assert_eq!(told["fault"], "is not the one whose head was kept", "{told}");
    assert_eq!(site.get("/audit/verify?heads=nonsense").await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_chain_computed_anew_without_the_key_shows() {
    let site = acted().await;
    // All that a row's MAC is over is known; the key of the MAC is not. An attacker takes one of their own.
    let rows = sqlx::query("SELECT seq, chain, position, at, actor, action, subject FROM audit ORDER BY position")
        .fetch_all(&site.db.owner)
        .await
        .expect("the owner reads all");
    let mut previous: Vec<u8> = Vec::new();
    for row in rows {
        let (position, at): (i64, chrono::DateTime<chrono::Utc>) = (row.get("position"), row.get("at"));
        let subject = if position == 5 { "forged".to_owned() } else { row.get::<String, _>("subject") };
        let (chain, actor, action): (String, String, String) = (row.get("chain"), row.get("actor"), row.get("action"));
        let mut mac = Hmac::<Sha256>::new_from_slice(b"a key of the attacker's").expect("any length does");
        let (number, time) = (position.to_be_bytes(), at.timestamp_micros().to_be_bytes());
        let parts: [&[u8]; 9] = [
            chain.as_bytes(),
            &number,
            &previous,
            &time,
            actor.as_bytes(),
            action.as_bytes(),
            subject.as_bytes(),
            b"-",
            b"",
        ];
        for part in parts {
            mac.update(&u32::try_from(part.len()).expect("short").to_be_bytes());
            mac.update(part);
        }
        let hash = mac.finalize().into_bytes().to_vec();
        sqlx::query("UPDATE audit SET subject = $2, previous = $3, hash = $4 WHERE seq = $1")
            .bind(row.get::<i64, _>("seq"))
            .bind(subject)
            .bind(&previous)
            .bind(&hash)
            .execute(&site.db.owner)
            .await
            .expect("the owner may");
        previous = hash;
    }
    assert_eq!(fault(&site).await, Some((1, "is not what was written")));
}

#[tokio::test]
async fn who_serves_can_add_to_the_trail_and_nothing_else() {
    let site = acted().await;
    for pool in [&site.db.gateway, &site.db.host] {
        for statement in [
            "UPDATE audit SET detail = 'x'",
            "DELETE FROM audit",
            "TRUNCATE audit",
            "ALTER TABLE audit DISABLE ROW LEVEL SECURITY",
            "DROP TABLE audit",
            "INSERT INTO audit (chain, position, actor, action, subject, previous, hash) VALUES ('', 1, 'a', 'b', 'c', '', '')",
        ] {
            let refused = sqlx::query(statement).execute(pool).await.expect_err(statement);
            let code = refused.as_database_error().and_then(|error| error.code().map(|code| code.into_owned()));
            assert_eq!(code.as_deref(), Some("42501"), "{statement}: {refused}");
        }
    }
    // The one function that removes keeps what is young, whoever calls it.
    let removed: i64 = sqlx::query_scalar("SELECT audit_prune('gateway:site', 100)")
        .fetch_one(&site.db.gateway)
        .await
        .expect("the gateway may call it");
    assert_eq!(removed, 0);
    let refused = sqlx::query("SELECT audit_prune('gateway:site', 100)").execute(&site.db.host).await;
    assert!(refused.is_err(), "a host may not");
    assert_eq!(fault(&site).await, None);
}

#[tokio::test]
async fn what_is_beyond_the_retention_goes_and_the_rest_is_still_a_chain() {
    let site = acted().await;
    let first = act(&site, 100).await;
    let auditor = Auditor::new(site.db.gateway.clone(), site.admin.trail.clone(), chrono::Duration::days(31));
    assert_eq!(auditor.pass(chrono::Utc::now()).await.expect("it reads"), 0, "nothing is old");
    // The database itself keeps rows of 30 days: for the test it forgets that.
    site.sql("CREATE OR REPLACE FUNCTION audit_prune(of_chain text, up_to bigint) RETURNS bigint LANGUAGE sql SECURITY DEFINER
              AS 'WITH gone AS (DELETE FROM audit WHERE chain = of_chain AND position <= up_to RETURNING 1) SELECT count(*) FROM gone'")
        .await;
    let later = chrono::Utc::now() + chrono::Duration::days(31);
    assert_eq!(auditor.pass(later).await.expect("it removes"), ACTS + 1, "the last row stays");
    act(&site, 101).await;
    let verdict = auditor.verify(std::slice::from_ref(&first)).await.expect("it reads");
    assert_eq!((verdict.fault, verdict.entries, verdict.too_old), (None, 3, Vec::new()));
    // A removal without a checkpoint shows.
    site.sql("DELETE FROM audit WHERE position >= (SELECT position FROM audit WHERE action = 'audit.checkpoint')")
        .await;
    let fault = auditor.verify(&[]).await.expect("it reads").fault.expect("its checkpoint is gone");
    assert_eq!(fault.what, "is not the chain's first: rows before it are missing");
}

#[tokio::test]
async fn what_was_written_before_there_was_a_key_is_vouched_for() {
    let site = Site::open().await;
    let hash = |previous: &[u8], at: i64, subject: &str| -> Vec<u8> {
        use sha2::Digest;
        let mut hash = Sha256::new();
        for part in [previous, &at.to_be_bytes(), b"operator:1", b"tenant.approve", subject.as_bytes(), b""] {
            hash.update(u64::try_from(part.len()).expect("short").to_be_bytes());
            hash.update(part);
        }
        hash.finalize().to_vec()
    };
    let write = async |subjects: [&str; 2]| {
        let mut previous = Vec::new();
        sqlx::query("DELETE FROM audit WHERE chain = ''").execute(&site.db.owner).await.expect("the owner may");
        for (position, subject) in (1_i64..).zip(subjects) {
            let this = hash(&previous, position * 1_000_000, subject);
            let at = chrono::DateTime::from_timestamp(position, 0).expect("a time");
            sqlx::query(
                "INSERT INTO audit (chain, position, at, actor, action, subject, previous, hash)
                 VALUES ('', $1, $2, 'operator:1', 'tenant.approve', $3, $4, $5)",
            )
            .bind(position)
            .bind(at)
            .bind(subject)
            .bind(&previous)
            .bind(&this)
            .execute(&site.db.owner)
            .await
            .expect("the owner may");
            previous = this;
        }
    };
    write(["a", "b"]).await;
    act(&site, 1).await;
    assert_eq!(fault(&site).await, None);
    // Without a key a chain is computed anew by whoever can write; what the first keyed row says of it cannot.
    write(["a", "forged"]).await;
    assert_eq!(fault(&site).await, Some((2, "is not the last one before the trail had a key")));
}

#[tokio::test]
async fn two_gateways_have_a_chain_each_and_one_key() {
    let site = acted().await;
    let other: Trail = trail::open(&site.db.gateway, &site.admin.ring, "other").await.expect("the key is there");
    let act = Act { actor: "gateway", action: "test.act", subject: "x", detail: Some("of the other") };
    let heads = futures_util::future::join_all((0..20).map(|_| other.append(&site.db.gateway, &act))).await;
    assert!(heads.iter().all(Result::is_ok), "writers of a chain wait for one another");
    let verdict = verdict(&site).await;
    assert_eq!((verdict.fault, verdict.heads.len(), verdict.entries), (None, 2, 31));
    // A key of another database opens nothing here.
    let elsewhere = tempfile::tempdir().expect("a folder");
    let ring = KeyRing::open_or_create(&elsewhere.path().join("master.key")).expect("a new key");
    assert!(trail::open(&site.db.gateway, &ring, "third").await.is_err());
}

#[tokio::test]
async fn who_is_refused_is_in_the_trail() {
    let site = Site::open().await;
    site.deliver(&Job::queued(1)).await;
    let stranger = nix::unistd::geteuid().as_raw() + 1;
    for (peer, method, path) in
        [(Peer::User(stranger), "GET", "/api/v1/jobs"), (Peer::Network, "POST", "/api/v1/tenants/acme/approve")]
    {
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        request.extensions_mut().expect("a request").insert(peer);
        let request = request.body(axum::body::Body::empty()).expect("a request");
        let answer = router(site.admin.clone()).oneshot(request).await.expect("it is answered");
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    }
    let rows: Vec<(String, String)> = sqlx::query_as(AssertSqlSafe(
        "SELECT actor, subject FROM audit WHERE action = 'admin.refused' ORDER BY seq".to_owned(),
    ))
    .fetch_all(&site.db.owner)
    .await
    .expect("the owner reads all");
    let expected = [(format!("user:{stranger}"), "read jobs"), ("network".to_owned(), "change tenants")];
    assert_eq!(rows, expected.map(|(actor, subject)| (actor, subject.to_owned())));
}
