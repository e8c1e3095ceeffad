//! Webhooks: how they look and how they get lost.

use fake_github::{AccountKind, FakeGitHub, JobScript, Options, Visibility};

use crate::client::{DEADLINE, Receiver};

#[tokio::test]
async fn a_delivery_has_githubs_headers() {
    let github = FakeGitHub::start(Options::default()).await.unwrap();
    let receiver = Receiver::of(&github).await;
    let acme = github.install("acme", AccountKind::User);
    let repo = github.repository(&acme, "app", Visibility::Private);
    github.queue_job(&repo, &["flyci"], JobScript::new());
    github.deliveries_settled(DEADLINE).await.unwrap();

    let hooks = receiver.hooks();
    let queued = hooks
        .iter()
        .find(|h| h.title() == "workflow_job queued")
        .unwrap();
    assert!(queued.header("user-agent").starts_with("GitHub-Hookshot/"));
    assert_eq!(
        queued.header("x-github-hook-installation-target-id"),
        github.app_id().to_string()
    );
    assert_eq!(
        queued.header("x-github-hook-installation-target-type"),
        "integration"
    );
    assert_eq!(queued.body["installation"]["id"], acme.id);
}
