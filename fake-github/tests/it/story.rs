//! The life of jobs and runners.

use fake_github::runner::{self, Behaviour};
use fake_github::{AccountKind, Conclusion, FakeGitHub, JobScript, Options, Visibility};

use crate::client::{App, DEADLINE, Receiver};

#[tokio::test]
async fn a_job_is_queued_served_by_a_jit_runner_and_told_by_webhooks() {
    let github = FakeGitHub::start(Options::https()).await.unwrap();
    let receiver = Receiver::of(&github).await;
    let acme = github.install("acme", AccountKind::Organization);
    let repo = github.repository(&acme, "app", Visibility::Private);
    let job = github.queue_job(
        &repo,
        &["flyci", "self-hosted"],
        JobScript::new().step("echo hello"),
    );

    let app = App::of(&github);
    let token = app.token(acme.id).await;
    let (id, jit) = app
        .runner(&token, &repo, "flyci-1", &["FlyCI", "Self-Hosted", "extra"])
        .await;
    assert_eq!(runner::run(&jit, Behaviour::default()).await, 0);

    let job = github.job_completed(job.id, DEADLINE).await.unwrap();
    assert_eq!(job.conclusion, Some(Conclusion::Success));
    assert_eq!(job.runner.unwrap().id, id);
    assert!(
        github.runners(&repo).is_empty(),
        "an ephemeral runner is gone after its job"
    );
    assert_eq!(github.deliveries_settled(DEADLINE).await.unwrap(), 0);
    let jobs: Vec<String> = receiver
        .titles()
        .into_iter()
        .filter(|t| t.starts_with("workflow_job"))
        .collect();
    assert_eq!(
        jobs,
        [
            "workflow_job queued",
            "workflow_job in_progress",
            "workflow_job completed"
        ]
    );
}
