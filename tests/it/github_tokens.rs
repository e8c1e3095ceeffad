//! Tokens: one per repository however many wait, narrow, replaced when refused or spent.

use crate::github_stub::{APP_7, APP_ID, INSTALLATION, KEY, NEXT_KEY, Reply, Seen, Stub, full_name, labels, options};
use chrono::{TimeDelta, Utc};
use flyci::github::{Credential, Denial, GitHub, GitHubError, InstallationId, RepositoryRef, Scope};
use octocrab::jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};

async fn mint(github: &GitHub, name: &str) -> flyci::github::Result<flyci::github::Minted> {
    github.mint(INSTALLATION, APP_7, Scope::Repository, name, &labels()).await
}

#[tokio::test]
async fn a_thousand_mints_on_a_cold_start_ask_for_one_token_per_repository() {
    let stub = Stub::well_behaved().await;
    let github = stub.client();
    // Ten installations, since GitHub allows 180 mints a minute of each.
    let mint = |number: u64| {
        let github = github.clone();
        async move {
            let id = 1 + number % 20;
            let full_name = full_name(id);
            let repository = RepositoryRef { id, full_name: &full_name };
            let name = format!("runner-{number}");
            let installation = InstallationId(100 + id / 2);
            github.mint(installation, repository, Scope::Repository, &name, &labels()).await
        }
    };
    let minted = futures_util::future::join_all((0..1000).map(mint)).await;
    for answer in minted {
        answer.expect("minted");
    }
    assert_eq!(stub.mints().len(), 1000);
    assert_eq!(stub.token_requests().len(), 20);
}

#[tokio::test]
async fn a_token_is_for_one_repository_and_one_kind_of_call() {
    let stub = Stub::start(|seen, _| {
        seen.path.contains("/actions/jobs/").then(|| Reply::json(200, &json!({ "id": 1, "run_id": 2 })))
    })
    .await;
    let github = stub.client();
    let minted = mint(&github, "one").await.expect("minted");
    assert_eq!(minted.jit_config.expose_secret(), "jit-of-one");
    github.job(INSTALLATION, APP_7, 1).await.expect("asked").expect("known");
    let asked: Vec<Value> = stub.token_requests().into_iter().map(|seen| seen.body).collect();
    let runners = json!({ "repository_ids": [7], "permissions": { "administration": "write", "metadata": "read" } });
    let reading = json!({ "repository_ids": [7], "permissions": { "actions": "read", "metadata": "read" } });
    assert_eq!(asked, [runners, reading]);
}

#[tokio::test]
async fn the_app_signs_with_its_key_for_less_than_ten_minutes() {
    let stub = Stub::well_behaved().await;
    mint(&stub.client(), "one").await.expect("minted");
    let claims = verify(&stub.token_requests()[0], &KEY.public).expect("signed with the App's key");
    let (issued, expires) = (claims["iat"].as_i64().expect("iat"), claims["exp"].as_i64().expect("exp"));
    assert_eq!(claims["iss"], APP_ID);
    assert!(expires - issued <= 600, "GitHub takes ten minutes at most");
    assert!(issued < Utc::now().timestamp(), "a clock that is a little ahead does no harm");
}

#[tokio::test]
async fn a_token_of_one_repository_does_not_reach_another() {
    let stub = Stub::well_behaved().await;
    // The name went to another repository since we heard of it.
    let renamed = RepositoryRef { id: 7, full_name: "acme/app-8" };
    let answer = stub.client().mint(INSTALLATION, renamed, Scope::Repository, "one", &labels()).await;
    assert!(matches!(answer, Err(GitHubError::NotFound { .. })), "{answer:?}");
}

#[tokio::test]
async fn a_token_near_its_end_is_not_used_again() {
    let stub =
        Stub::start(|seen, world| seen.is("POST", "/access_tokens").then(|| world.token(seen, TimeDelta::seconds(-1))))
            .await;
    let github = stub.client();
    mint(&github, "one").await.expect("minted");
    mint(&github, "two").await.expect("minted");
    assert_eq!(stub.token_requests().len(), 2);
}

#[tokio::test]
async fn a_refused_token_is_replaced_once_for_all_who_use_it() {
    let stub = Stub::start(|seen, _| {
        (seen.is("POST", "/generate-jitconfig") && seen.bearer() == "ghs_7_1")
            .then(|| Reply::message(401, "Bad credentials"))
    })
    .await;
    let github = stub.client();
    let names: Vec<String> = (0..20).map(|number| format!("runner-{number}")).collect();
    let minted = futures_util::future::join_all(names.iter().map(|name| mint(&github, name))).await;
    assert!(minted.iter().all(Result::is_ok), "{minted:?}");
    assert_eq!(stub.token_requests().len(), 2);
}

#[tokio::test]
async fn a_fresh_token_that_is_refused_too_is_an_error() {
    let stub =
        Stub::start(|seen, _| seen.is("POST", "/generate-jitconfig").then(|| Reply::message(401, "Bad credentials")))
            .await;
    let error = mint(&stub.client(), "one").await.expect_err("refused");
    assert!(matches!(error, GitHubError::Unauthorized { cause: Credential::Token, .. }), "{error:?}");
    assert!(!error.is_transient() && !error.may_have_happened());
    assert_eq!((stub.mints().len(), stub.token_requests().len()), (2, 2));
}

#[tokio::test]
async fn a_failing_token_request_is_tried_again() {
    let stub = Stub::start(|seen, world| {
        (seen.is("POST", "/access_tokens")
            && world.runners.insert((0, world.runners.len() as u64), String::new()).is_none()
            && world.runners.len() < 3)
            .then(|| Reply::message(502, "Server Error"))
    })
    .await;
    mint(&stub.client(), "one").await.expect("minted at last");
    assert_eq!(stub.token_requests().len(), 3);
}

#[tokio::test]
async fn retries_of_a_token_and_of_its_call_do_not_multiply() {
    let stub =
        Stub::start(|seen, _| seen.is("POST", "/access_tokens").then(|| Reply::message(502, "Server Error"))).await;
    let github = stub.client();
    github.list_runners(INSTALLATION, APP_7, Scope::Repository).await.expect_err("no token");
    assert_eq!(stub.token_requests().len(), 3);
    let error = mint(&github, "one").await.expect_err("no token");
    assert!(error.is_transient() && !error.may_have_happened(), "the mint itself was never sent");
}

#[tokio::test]
async fn each_refusal_of_a_token_says_what_to_do() {
    let cases = [
        (403, "This installation has been suspended", "suspended"),
        (422, "The permissions requested are not granted to this installation.", "permission"),
        (
            422,
            "There is at least one repository that does not exist or is not accessible to the parent installation.",
            "does not reach it",
        ),
        (404, "Not Found", "does not reach it"),
    ];
    for (status, message, words) in cases {
        let stub =
            Stub::start(move |seen, _| seen.is("POST", "/access_tokens").then(|| Reply::message(status, message)))
                .await;
        let github = stub.client();
        let error = mint(&github, "one").await.expect_err("refused");
        assert!(error.to_string().contains(words), "{error}");
        assert!(!error.is_transient());
        assert_eq!(stub.token_requests().len(), 1);
        // What is wrong with the installation says nothing on a runner.
        assert!(github.remove_runner(INSTALLATION, APP_7, Scope::Repository, 1).await.is_err(), "{message}");
        match status {
            403 => assert!(matches!(error, GitHubError::InstallationSuspended { .. })),
            422 if words == "permission" => {
                assert!(matches!(error, GitHubError::Forbidden { reason: Denial::MissingPermission, .. }));
            }
            _ => assert!(matches!(error, GitHubError::NotFound { .. })),
        }
    }
}

#[tokio::test]
async fn the_key_before_serves_until_github_knows_the_new_one() {
    let stub = Stub::start(|seen, _| {
        (seen.is("POST", "/access_tokens") && verify(seen, &KEY.public).is_none())
            .then(|| Reply::message(401, "A JSON web token could not be decoded"))
    })
    .await;
    let mut rotating = options(&stub.url);
    rotating.private_key = SecretString::from(NEXT_KEY.private.as_str());
    let error = mint(&GitHub::new(&rotating).expect("options"), "one").await.expect_err("an unknown key");
    assert!(matches!(error, GitHubError::Unauthorized { cause: Credential::AppKey, .. }), "{error:?}");
    assert!(error.to_string().contains("private_key_file"), "{error}");

    rotating.previous_private_key = Some(SecretString::from(KEY.private.as_str()));
    mint(&GitHub::new(&rotating).expect("options"), "two").await.expect("minted");
}

#[tokio::test]
async fn a_clock_that_is_off_is_told_by_how_much() {
    let stub = Stub::start(|_, _| {
        let date = (Utc::now() - TimeDelta::minutes(20)).format("%a, %d %b %Y %H:%M:%S GMT");
        let message = "'Expiration time' claim ('exp') is too far in the future";
        Some(Reply::message(401, message).header("date", date))
    })
    .await;
    let github = stub.client();
    let error = github.app().await.expect_err("refused");
    let GitHubError::Unauthorized { cause: Credential::ClockSkew { ahead_s }, .. } = error else {
        panic!("{error:?}");
    };
    assert!((1195..=1260).contains(&ahead_s), "{ahead_s}");
    assert!(error.to_string().contains("ahead of GitHub's"), "{error}");
    assert!(github.clock_ahead_s() >= 1195);
}

/// The claims of a call's JWT, if it was signed with the other half of `public`.
fn verify(seen: &Seen, public: &str) -> Option<Value> {
    let key = DecodingKey::from_rsa_pem(public.as_bytes()).expect("a key");
    let mut rules = Validation::new(Algorithm::RS256);
    rules.validate_aud = false;
    decode::<Value>(seen.bearer(), &key, &rules).ok().map(|token| token.claims)
}
