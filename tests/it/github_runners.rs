//! Runners: a mint is sent once, its lost answer is found by the name, a removal says what is known.

use crate::github_stub::{APP_7, INSTALLATION, Reply, Stub, labels, wire_runner};
use axum::body::Body;
use flyci::github::{Denial, GitHub, GitHubError, Minted, Refusal, Removal, Result, Scope};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};

async fn mint(github: &GitHub, name: &str) -> Result<Minted> {
    github.mint(INSTALLATION, APP_7, Scope::Repository, name, &labels()).await
}

async fn remove(github: &GitHub, runner: u64) -> Result<Removal> {
    github.remove_runner(INSTALLATION, APP_7, Scope::Repository, runner).await
}

#[tokio::test]
async fn a_mint_says_what_github_documents() {
    let stub = Stub::well_behaved().await;
    mint(&stub.client(), "flyci-a-1").await.expect("minted");
    let sent = &stub.mints()[0];
    let body = json!({ "name": "flyci-a-1", "runner_group_id": 1, "labels": ["flyci-macos-large", "self-hosted"],
                       "work_folder": "_work" });
    assert_eq!(sent.body, body);
    assert_eq!(sent.path, "/repos/acme/app-7/actions/runners/generate-jitconfig");
    assert_eq!(sent.headers["x-github-api-version"], "2022-11-28");
    assert_eq!(sent.headers["user-agent"], "flyci/test");
}

#[tokio::test]
async fn a_mint_that_fails_at_github_is_sent_once() {
    for status in [500, 502, 503, 504] {
        let stub = Stub::start(move |seen, _| {
            seen.is("POST", "/generate-jitconfig").then(|| Reply::message(status, "Server Error"))
        })
        .await;
        let error = mint(&stub.client(), "one").await.expect_err("failed");
        assert!(matches!(error, GitHubError::Server { .. }), "{error:?}");
        assert!(error.is_transient() && error.may_have_happened());
        assert_eq!(stub.mints().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_mint_whose_answer_breaks_off_is_sent_once() {
    let stub = Stub::start(|seen, _| {
        let broken = futures_util::stream::iter([Ok("{\"runner\":"), Err(std::io::Error::other("gone"))]);
        seen.is("POST", "/generate-jitconfig").then(|| Reply::new(201, Body::from_stream(broken)))
    })
    .await;
    let error = mint(&stub.client(), "one").await.expect_err("no whole answer");
    assert!(matches!(error, GitHubError::Network { .. }), "{error:?}");
    assert!(error.may_have_happened());
    assert_eq!(stub.mints().len(), 1);
}

#[tokio::test]
async fn a_mint_whose_answer_was_lost_is_found_removed_and_made_anew() {
    // GitHub does the work, and answers 502 the first time.
    let lost = AtomicU32::new(0);
    let stub = Stub::start(move |seen, world| {
        if !seen.is("POST", "/generate-jitconfig") || lost.fetch_add(1, Ordering::Relaxed) > 0 {
            return None;
        }
        world.answer(seen);
        Some(Reply::message(502, "Server Error"))
    })
    .await;
    let github = stub.client();
    assert!(mint(&github, "one").await.expect_err("lost").may_have_happened());
    let error = mint(&github, "one").await.expect_err("taken");
    assert!(matches!(error, GitHubError::NameTaken { .. }), "{error:?}");

    let found = github.find_runner(INSTALLATION, APP_7, Scope::Repository, "one").await.expect("asked");
    let found = found.expect("the runner of the lost answer");
    assert!(!found.online && !found.busy && found.labels.contains("macos"));
    assert_eq!(remove(&github, found.id).await.expect("asked"), Removal::Gone);
    assert_eq!(github.find_runner(INSTALLATION, APP_7, Scope::Repository, "one").await.expect("asked"), None);
    mint(&github, "two").await.expect("minted");
}

#[tokio::test]
async fn each_refusal_of_a_mint_has_its_own_error() {
    let disabled =
        r#"{"message":"Forbidden","errors":"Repository level self-hosted runners are disabled on this repository"}"#;
    let refused = async |status: u16, body: &'static str| {
        let stub =
            Stub::start(move |seen, _| seen.is("POST", "/generate-jitconfig").then(|| Reply::new(status, body))).await;
        let error = mint(&stub.client(), "one").await.expect_err("refused");
        assert!(!error.is_transient(), "{error:?}");
        assert_eq!(error.call().request_id.as_deref(), Some("C0DE:1:2:3:ABC"));
        error
    };
    let reason = async |body| match refused(403, body).await {
        GitHubError::Forbidden { reason, .. } => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(disabled).await, Denial::OrgForbidsRepoRunners);
    assert_eq!(reason(r#"{"message":"Resource not accessible by integration"}"#).await, Denial::MissingPermission);
    assert_eq!(reason("{}").await, Denial::Other);
    assert!(matches!(refused(404, "{}").await, GitHubError::NotFound { .. }));
    assert!(matches!(refused(409, "{}").await, GitHubError::NameTaken { .. }));
    let full = "{\"message\":\"Invalid Argument - Runner group 1 has reached max limit of 10000 runners.\"}";
    assert!(matches!(refused(422, full).await, GitHubError::Invalid { reason: Refusal::TooManyRunners, .. }));
    assert!(matches!(refused(201, "{\"runner\":{}}").await, GitHubError::Decode { .. }));
}

#[tokio::test]
async fn what_cannot_be_sent_is_not_sent() {
    let stub = Stub::well_behaved().await;
    let github = stub.client();
    assert!(matches!(mint(&github, "a/b").await, Err(GitHubError::Input { .. })));
    let none = [""; 0].iter().collect();
    let answer = github.mint(INSTALLATION, APP_7, Scope::Repository, "one", &none).await;
    assert!(matches!(answer, Err(GitHubError::Input { .. })));
    assert!(stub.all_seen().is_empty());
}

#[tokio::test]
async fn a_removal_knows_gone_from_busy_from_unknown() {
    let answers = async |status: u16| {
        let stub = Stub::start(move |seen, _| {
            (seen.method == "DELETE").then(|| Reply::new(status, "").header("location", "https://elsewhere.example/"))
        })
        .await;
        (remove(&stub.client(), 5).await, stub.seen("DELETE", "/5").len())
    };
    assert!(matches!(answers(204).await, (Ok(Removal::Gone), 1)));
    assert!(matches!(answers(404).await, (Ok(Removal::Gone), 1)));
    assert!(matches!(answers(422).await, (Ok(Removal::Busy), 1)));
    assert!(matches!(answers(400).await, (Err(GitHubError::Invalid { .. }), 1)));
    assert!(matches!(answers(403).await, (Err(GitHubError::Forbidden { .. }), 1)));
    assert!(matches!(answers(301).await, (Err(GitHubError::Moved { .. }), 1)));
    assert!(matches!(answers(502).await, (Err(GitHubError::Server { .. }), 3)));
}

#[tokio::test]
async fn a_removal_whose_answer_was_lost_ends_as_gone() {
    let lost = AtomicU32::new(0);
    let stub = Stub::start(move |seen, world| {
        if seen.method != "DELETE" || lost.fetch_add(1, Ordering::Relaxed) > 0 {
            return None;
        }
        world.answer(seen);
        Some(Reply::message(504, "Gateway Timeout"))
    })
    .await;
    let github = stub.client();
    let minted = mint(&github, "one").await.expect("minted");
    assert_eq!(remove(&github, minted.runner_id).await.expect("asked"), Removal::Gone);
}

/// A repository with so many runners, in pages, whatever name is asked for.
async fn crowded(total: u64) -> Stub {
    Stub::start(move |seen, _| {
        if !seen.is("GET", "/actions/runners") {
            return None;
        }
        let page: u64 = seen.query.rsplit_once("page=").expect("a page").1.parse().expect("a number");
        let ids = (page - 1) * 100 + 1..=(page * 100).min(total);
        let runners: Vec<Value> = ids.map(|id| wire_runner(id, &format!("runner-{id}"))).collect();
        Some(Reply::json(200, &json!({ "total_count": total, "runners": runners })))
    })
    .await
}

#[tokio::test]
async fn a_runner_is_found_on_any_page_and_a_listing_has_a_bound() {
    let stub = crowded(250).await;
    let github = stub.client();
    let find = async |name| github.find_runner(INSTALLATION, APP_7, Scope::Repository, name).await.expect("asked");
    assert_eq!(find("runner-201").await.map(|runner| runner.id), Some(201));
    assert_eq!(find("runner-2").await.map(|runner| runner.id), Some(2));
    assert_eq!(find("runner-251").await, None);
    assert!(stub.seen("GET", "/actions/runners")[0].query.contains("name=runner-201"), "GitHub may filter");

    let stub = crowded(5_000).await;
    let github = stub.client();
    let listed = github.list_runners(INSTALLATION, APP_7, Scope::Repository).await.expect("asked");
    assert_eq!((listed.runners.len(), listed.complete), (2_000, false));
    let absent = github.find_runner(INSTALLATION, APP_7, Scope::Repository, "runner-x").await;
    assert!(absent.is_err(), "what was not read may hold it");
}

/// An organisation with runner groups, where `repositories` is what the group of `acme/app-7` holds.
async fn organisation(repositories: &'static [u64]) -> Stub {
    let made = AtomicU32::new(0);
    Stub::start(move |seen, _| {
        let group = json!({ "id": 30, "name": "flyci-7", "visibility": "selected" });
        let reply = match (seen.method.as_str(), seen.path.as_str()) {
            ("GET", "/orgs/acme/actions/runner-groups") => {
                let mut groups = vec![json!({ "id": 1, "name": "Default", "visibility": "all" })];
                if made.load(Ordering::Relaxed) > 0 {
                    groups.push(group);
                }
                Reply::json(200, &json!({ "total_count": groups.len(), "runner_groups": groups }))
            }
            ("POST", "/orgs/acme/actions/runner-groups") => {
                made.fetch_add(1, Ordering::Relaxed);
                Reply::json(201, &group)
            }
            ("GET", "/orgs/acme/actions/runner-groups/30/repositories") => {
                let held: Vec<Value> = repositories.iter().map(|id| json!({ "id": id })).collect();
                Reply::json(200, &json!({ "total_count": held.len(), "repositories": held }))
            }
            ("POST", "/orgs/acme/actions/runners/generate-jitconfig") => {
                Reply::json(201, &json!({ "runner": { "id": 9 }, "encoded_jit_config": "jit" }))
            }
            _ => return None,
        };
        Some(reply)
    })
    .await
}

#[tokio::test]
async fn an_organisation_s_runner_is_in_a_group_of_its_own_repository() {
    let stub = organisation(&[7]).await;
    let github = stub.client();
    let mint = async |name| github.mint(INSTALLATION, APP_7, Scope::OrganizationGroup, name, &labels()).await;
    assert_eq!(mint("one").await.expect("minted").runner_id, 9);
    mint("two").await.expect("minted");
    let made = stub.seen("POST", "/runner-groups");
    assert_eq!(made.len(), 1, "made once");
    let body = json!({ "name": "flyci-7", "visibility": "selected", "selected_repository_ids": [7],
                       "allows_public_repositories": false });
    assert_eq!(made[0].body, body);
    assert_eq!(stub.mints()[1].body["runner_group_id"], 30);
    for token in stub.token_requests() {
        let permissions = json!({ "organization_self_hosted_runners": "write", "metadata": "read" });
        assert_eq!(token.body["permissions"], permissions, "no permission on the repository");
    }
}

#[tokio::test]
async fn a_group_that_others_can_use_is_refused() {
    for repositories in [&[7, 8][..], &[8], &[]] {
        let stub = organisation(repositories).await;
        let answer = stub.client().mint(INSTALLATION, APP_7, Scope::OrganizationGroup, "one", &labels()).await;
        assert!(matches!(answer, Err(GitHubError::Forbidden { reason: Denial::GroupNotExclusive, .. })), "{answer:?}");
        assert!(stub.mints().is_empty());
    }
}

#[tokio::test]
async fn a_renamed_repository_is_followed_by_its_id() {
    let stub = Stub::start(|seen, world| {
        if let Some(rest) = seen.path.strip_prefix("/repositories/7") {
            let mut here = seen.clone();
            here.path = format!("/repos/acme/app-7{rest}");
            return Some(world.answer(&here));
        }
        let rest = seen.path.strip_prefix("/repos/acme/old-name")?;
        let status = if seen.method == "GET" { 301 } else { 307 };
        Some(Reply::new(status, "").header("location", format!("/repositories/7{rest}")))
    })
    .await;
    let github = stub.client();
    let old = flyci::github::RepositoryRef { id: 7, full_name: "acme/old-name" };
    let minted = github.mint(INSTALLATION, old, Scope::Repository, "one", &labels()).await.expect("minted");
    let found = github.find_runner(INSTALLATION, old, Scope::Repository, "one").await.expect("asked");
    assert_eq!(found.map(|runner| runner.id), Some(minted.runner_id));
    let removed = github.remove_runner(INSTALLATION, old, Scope::Repository, minted.runner_id).await;
    assert_eq!(removed.expect("asked"), Removal::Gone);
}

#[tokio::test]
async fn a_token_does_not_follow_a_redirect_to_another_server() {
    let other = Stub::well_behaved().await;
    let location = format!("{}/repositories/7/actions/runners", other.url);
    let stub = Stub::start(move |seen, _| {
        seen.is("GET", "/actions/runners").then(|| Reply::new(301, "").header("location", &location))
    })
    .await;
    let answer = stub.client().list_runners(INSTALLATION, APP_7, Scope::Repository).await;
    assert!(matches!(answer, Err(GitHubError::Moved { .. })), "{answer:?}");
    assert!(other.all_seen().is_empty());
}

#[tokio::test]
async fn an_answer_has_a_bound() {
    let stub = Stub::start(|seen, _| {
        let endless = futures_util::stream::repeat_with(|| Ok::<_, Infallible>(vec![b' '; 64 << 10]));
        seen.is("GET", "/actions/runners").then(|| Reply::new(200, Body::from_stream(endless)))
    })
    .await;
    let answer = stub.client().list_runners(INSTALLATION, APP_7, Scope::Repository).await;
    let error = answer.expect_err("too large");
    assert!(error.to_string().contains("4194304 bytes"), "{error}");
}
