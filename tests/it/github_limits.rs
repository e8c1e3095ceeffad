//! GitHub's limits: told once, obeyed by all calls of the installation.

use crate::github_stub::{APP_7, INSTALLATION, Reply, Stub, full_name, labels};
use chrono::{TimeDelta, Utc};
use flyci::github::{GitHub, GitHubError, HeldBudget, Hold, InstallationId, RepositoryRef, Scope};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

async fn mint(github: &GitHub, name: &str) -> Result<u64, GitHubError> {
    let minted = github.mint(INSTALLATION, APP_7, Scope::Repository, name, &labels()).await?;
    Ok(minted.runner_id)
}

#[tokio::test]
async fn retry_after_is_obeyed_without_asking_again() {
    let stub = Stub::start(|seen, _| {
        (seen.is("POST", "/generate-jitconfig") && seen.path.contains("app-7"))
            .then(|| Reply::message(403, "You have exceeded a secondary rate limit").header("retry-after", 90))
    })
    .await;
    let github = stub.client();
    let error = mint(&github, "one").await.expect_err("limited");
    let GitHubError::RateLimited { until, .. } = &error else { panic!("{error:?}") };
    let wait = *until - Utc::now();
    assert!(wait > TimeDelta::seconds(60) && wait <= TimeDelta::seconds(90), "{wait}");
    assert!(error.is_transient() && !error.may_have_happened());

    for name in ["two", "three"] {
        assert!(matches!(mint(&github, name).await, Err(GitHubError::RateLimited { .. })));
    }
    assert_eq!(stub.mints().len(), 1, "GitHub was left alone");
    assert_eq!(github.holds().iter().map(|hold| hold.installation).collect::<Vec<_>>(), [Some(INSTALLATION)]);

    // Another installation goes on, until another gateway tells that it is limited too.
    let (other, name) = (InstallationId(12), full_name(8));
    let repository = RepositoryRef { id: 8, full_name: &name };
    let mint_other = async |name| github.mint(other, repository, Scope::Repository, name, &labels()).await;
    mint_other("one").await.expect("minted");
    github.hold(&Hold { installation: Some(other), budget: HeldBudget::All, wait: Duration::from_secs(300) });
    assert!(matches!(mint_other("two").await, Err(GitHubError::RateLimited { .. })));
}

#[tokio::test]
async fn a_spent_hourly_budget_is_a_limit_and_no_missing_permission() {
    let stub = Stub::start(|seen, _| {
        let reset = Utc::now().timestamp() + 1800;
        seen.is("POST", "/generate-jitconfig").then(|| {
            Reply::message(403, "API rate limit exceeded")
                .header("x-ratelimit-remaining", 0)
                .header("x-ratelimit-reset", reset)
        })
    })
    .await;
    let github = stub.client();
    for name in ["one", "two"] {
        let error = mint(&github, name).await.expect_err("limited");
        assert!(matches!(error, GitHubError::RateLimited { .. }), "{error:?}");
    }
    assert_eq!(stub.mints().len(), 1);
    // Runners are registered from a budget of their own.
    github.list_runners(INSTALLATION, APP_7, Scope::Repository).await.expect("listed");
}

#[tokio::test]
async fn more_mints_than_a_minute_allows_are_not_sent() {
    let stub = Stub::well_behaved().await;
    let github = stub.client();
    let names: Vec<String> = (0..300).map(|number| format!("runner-{number}")).collect();
    let minted = futures_util::future::join_all(names.iter().map(|name| mint(&github, name))).await;
    let limited = minted.iter().filter(|answer| matches!(answer, Err(GitHubError::RateLimited { .. }))).count();
    assert_eq!((minted.iter().flatten().count(), limited), (180, 120));
    assert_eq!(stub.mints().len(), 180);
}

#[tokio::test]
async fn a_short_limit_is_waited_for_inside_the_call() {
    let refused = AtomicU32::new(0);
    let stub = Stub::start(move |seen, _| {
        (seen.is("POST", "/generate-jitconfig") && refused.fetch_add(1, Ordering::Relaxed) == 0)
            .then(|| Reply::message(429, "Too Many Requests").header("retry-after", 1))
    })
    .await;
    let github = stub.client();
    assert!(matches!(mint(&github, "one").await, Err(GitHubError::RateLimited { .. })));
    mint(&github, "two").await.expect("minted after a second");
}
