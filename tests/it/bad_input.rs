//! What an operator can get wrong: each gives one clear message that says what to do, and the documented exit code.
//! The program itself is run. A full disk and a missing KVM are in the hypervisor's own tests.

use crate::support::database::TestDatabase;
use crate::support::program::{Place, edit, free_port};
use fake_github::{AccountKind, FakeGitHub, JobScript, Options, Visibility};
use std::net::TcpListener;

/// A place with a database of its own.
async fn place() -> (FakeGitHub, TestDatabase, Place) {
    let (github, db) = (FakeGitHub::start(Options::default()).await.expect("it starts"), TestDatabase::new().await);
    let place = Place::new(&github, Some(&db.url), "fake", "");
    (github, db, place)
}

#[tokio::test]
async fn a_wrong_key_file() {
    let (_github, _db, place) = place().await;
    place.write_private("app.pem", "this is no key");
    place.run("serve").await.expect(78, &["private_key_file", "no RSA private key in PEM form", "download a new one"]);
}

#[tokio::test]
async fn a_secret_that_others_can_read_or_nobody() {
    let (_github, _db, place) = place().await;
    place.set_mode("webhook.secret", 0o644);
    place.run("serve").await.expect(78, &["github.webhook_secret_file", "can be read", "mode 0644", "chmod 600"]);
    std::fs::remove_file(place.path("webhook.secret")).expect("it is there");
    place.run("serve").await.expect(78, &["github.webhook_secret_file", "does not exist"]);
}

#[tokio::test]
async fn a_port_in_use() {
    let (_github, _db, place) = place().await;
    let _other = TcpListener::bind(("127.0.0.1", place.public)).expect("it is free");
    let port = place.public.to_string();
    place.run("serve").await.expect(1, &["[web] listen", &port, "the port is in use", "lsof", "choose another port"]);
}

#[tokio::test]
async fn a_database_that_is_away() {
    let (_github, db, place) = place().await;
    let nobody = free_port();
    edit(&place.path("flyci.toml"), &db.url, &format!("postgres://flyci:passw0rd@127.0.0.1:{nobody}/flyci"));
    let ended = place.run("serve").await;
    let at = format!("127.0.0.1:{nobody}");
    ended.expect(1, &["no connection to the database", &at, "connection refused", "`database.url`"]);
    assert!(!ended.said.contains("passw0rd"), "{}", ended.said);
}

#[tokio::test]
async fn a_database_of_a_later_version() {
    let (_github, db, place) = place().await;
    sqlx::query("UPDATE fleet SET schema = 9, min_reader = 8").execute(&db.owner).await.expect("it is ours");
    place.run("serve").await.expect(1, &["schema 9", "install the flyci that migrated it, or a later one"]);
    let left: i32 = sqlx::query_scalar("SELECT schema FROM fleet").fetch_one(&db.owner).await.expect("a row");
    assert_eq!(left, 9, "nothing was changed");
}

#[tokio::test]
async fn an_app_that_may_too_little_an_image_that_is_missing_and_an_unknown_label() {
    let (github, db) = (FakeGitHub::start(Options::default()).await.expect("it starts"), TestDatabase::new().await);
    github.change_app(&[("metadata", "read"), ("administration", "read"), ("actions", "write")], &["push"]);
    let place = Place::new(&github, Some(&db.url), "qemu", "[host.qemu]\naccel = \"tcg\"");
    let mut serving = place.serve("", "info").await;
    let status = place.until(&mut serving, |status| status.problems.len() >= 3).await;
    let told: Vec<String> =
        status.problems.iter().map(|one| format!("{}: {} -> {}", one.what, one.evidence, one.fix)).collect();
    for words in [
        ["the GitHub App lacks permissions", "Administration: write", "settings"],
        ["the GitHub App is not told of jobs", "workflow_job", "Workflow job"],
        ["there is no image for `flyci-test`", "linux-none", "flyci image build"],
    ] {
        assert!(told.iter().any(|told| words.iter().all(|word| told.contains(word))), "{words:?}: {told:#?}");
        assert!(serving.log().contains(words[0]), "the log says it, too");
    }
    place.run("status").await.expect(4, &["lacks permissions"]);

    github.change_app(&[("metadata", "read"), ("administration", "write"), ("actions", "write")], &["workflow_job"]);
    let acme = github.install("acme", AccountKind::Organization);
    let repo = github.repository(&acme, "app", Visibility::Private);
    let wanted = github.queue_job(&repo, &["flyci-test"], JobScript::new());
    let mistyped = github.queue_job(&repo, &["flyci-tset"], JobScript::new());
    github.deliveries_settled(std::time::Duration::from_secs(20)).await.expect("they were taken");
    let why = place.run(&format!("jobs why {}", wanted.id)).await;
    why.expect(0, &["no_host_for_profile", "linux-none", "image build"]);
    let why = place.run(&format!("jobs why {}", mistyped.id)).await;
    why.expect(0, &["label_unknown", "flyci-tset", "flyci-test"]);
    assert!(serving.stop().success());
}

#[tokio::test]
async fn a_clock_that_is_off() {
    let (github, _db, place) = place().await;
    github.move_clock(3_600);
    let mut serving = place.serve("", "info").await;
    let status = place.until(&mut serving, |status| !status.problems.is_empty()).await;
    let evidence = &status.problems[0].evidence;
    assert!(evidence.contains("s behind GitHub's: set it right (NTP)"), "{status:#?}");
    assert!(serving.log().contains("set it right (NTP)"), "{}", serving.log());
    place.run("status").await.expect(4, &["clock", "NTP"]);
}
