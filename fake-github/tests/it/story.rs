//! The life of jobs and runners.

use std::time::Duration;

use fake_github::runner::{self, Behaviour, Work};
use fake_github::{AccountKind, Conclusion, FakeGitHub, Installation, JobScript, Options, Repo, Status, Visibility};

use crate::client::{App, DEADLINE, Receiver};

async fn stage() -> (FakeGitHub, Installation, Repo) {
    let github = FakeGitHub::start(Options::default()).await.unwrap();
    let acme = github.install("acme", AccountKind::Organization);
    let repo = github.repository(&acme, "app", Visibility::Private);
    (github, acme, repo)
}

#[tokio::test]
async fn a_job_is_queued_served_by_a_jit_runner_and_told_by_webhooks() {
    let github = FakeGitHub::start(Options::https()).await.unwrap();
    let receiver = Receiver::of(&github).await;
    let acme = github.install("acme", AccountKind::Organization);
    let repo = github.repository(&acme, "app", Visibility::Private);
    let job = github.queue_job(&repo, &["flyci", "self-hosted"], JobScript::new().step("echo hello"));

    let app = App::of(&github);
    let token = app.token(acme.id).await;
    let (id, jit) = app.runner(&token, &repo, "flyci-1", &["FlyCI", "Self-Hosted", "extra"]).await;
    assert_eq!(runner::run(&jit, Behaviour::default()).await, 0);

    let job = github.job_completed(job.id, DEADLINE).await.unwrap();
    assert_eq!(job.conclusion, Some(Conclusion::Success));
    assert_eq!(job.runner.unwrap().id, id);
    assert!(github.runners(&repo).is_empty(), "an ephemeral runner is gone after its job");
    assert_eq!(github.deliveries_settled(DEADLINE).await.unwrap(), 0);
    let jobs: Vec<String> = receiver.titles().into_iter().filter(|t| t.starts_with("workflow_job")).collect();
    assert_eq!(jobs, ["workflow_job queued", "workflow_job in_progress", "workflow_job completed"]);
}

#[tokio::test]
async fn a_runner_takes_whatever_job_of_its_repository_its_labels_cover() {
    let (github, acme, repo) = stage().await;
    let other = github.repository(&acme, "other", Visibility::Private);
    let elsewhere = github.queue_job(&other, &["flyci"], JobScript::new());
    let too_much = github.queue_job(&repo, &["flyci", "gpu"], JobScript::new());
    let fits = github.queue_job(&repo, &["FLYCI"], JobScript::new());
    let app = App::of(&github);
    let token = app.token(acme.id).await;
    let (_, jit) = app.runner(&token, &repo, "one", &["flyci"]).await;
    assert_eq!(runner::run(&jit, Behaviour::default()).await, 0);
    assert_eq!(github.job(fits.id).unwrap().status, Status::Completed);
    assert_eq!(github.job(elsewhere.id).unwrap().status, Status::Queued);
    assert_eq!(github.job(too_much.id).unwrap().status, Status::Queued);
}

#[tokio::test]
async fn an_organisations_group_serves_its_repositories_only() {
    let (github, acme, repo) = stage().await;
    let outside = github.repository(&acme, "outside", Visibility::Private);
    let group = github.runner_group(&acme, "macs", &[&repo]);
    let not_served = github.queue_job(&outside, &["flyci"], JobScript::new());
    let served = github.queue_job(&repo, &["flyci"], JobScript::new());
    let app = App::of(&github);
    let token = app.token(acme.id).await;
    let body = serde_json::json!({ "name": "one", "runner_group_id": group, "labels": ["flyci"] });
    let path = "/orgs/acme/actions/runners/generate-jitconfig";
    let answer = app.call(reqwest::Method::POST, path, &token, Some(body)).await;
    let answer: serde_json::Value = answer.json().await.unwrap();
    let jit = answer["encoded_jit_config"].as_str().unwrap();
    assert_eq!(runner::run(jit, Behaviour::default()).await, 0);
    assert_eq!(github.job(served.id).unwrap().runner.unwrap().group_id, group);
    assert_eq!(github.job(not_served.id).unwrap().status, Status::Queued);
}

#[tokio::test]
async fn a_jit_configuration_opens_one_session() {
    let (github, acme, repo) = stage().await;
    let app = App::of(&github);
    let token = app.token(acme.id).await;
    let (_, jit) = app.runner(&token, &repo, "one", &["flyci"]).await;
    let first = tokio::spawn({
        let jit = jit.clone();
        async move { runner::run(&jit, Behaviour::default()).await }
    });
    github
        .wait_for("the runner online", DEADLINE, |w| w.runners.values().any(|r| r.online()).then_some(()))
        .await
        .unwrap();
    assert_eq!(runner::run(&jit, Behaviour::default()).await, 1);
    github.queue_job(&repo, &["flyci"], JobScript::new());
    assert_eq!(first.await.unwrap(), 0);
}

#[tokio::test]
async fn a_cancelled_running_job_ends_cancelled() {
    let (github, acme, repo) = stage().await;
    github.switch(|s| s.silence_ms = 500);
    let app = App::of(&github);
    let token = app.token(acme.id).await;
    let (_, jit) = app.runner(&token, &repo, "one", &["flyci"]).await;
    let work = Work::For(Duration::from_secs(3_600), Conclusion::Success);
    let running = tokio::spawn(async move { runner::run(&jit, Behaviour::working(work)).await });
    let job = github.queue_job(&repo, &["flyci"], JobScript::new());
    github.job_reached(job.id, Status::InProgress, DEADLINE).await.unwrap();
    github.cancel(job);
    let view = github.job_completed(job.id, DEADLINE).await.unwrap();
    assert_eq!(view.conclusion, Some(Conclusion::Cancelled));
    assert_eq!(running.await.unwrap(), 0);
}

#[tokio::test]
async fn a_runner_cut_off_before_it_took_a_job_loses_no_job() {
    let (github, acme, repo) = stage().await;
    let app = App::of(&github);
    let token = app.token(acme.id).await;
    let (_, jit) = app.runner(&token, &repo, "one", &["flyci"]).await;
    let polling = tokio::spawn(async move { runner::run(&jit, Behaviour::default()).await });
    let ready = |w: &fake_github::world::World| {
        w.runners.values().any(|r| r.session.as_ref().is_some_and(|s| s.ready)).then_some(())
    };
    github.wait_for("the runner polls", DEADLINE, ready).await.unwrap();
    polling.abort();
    let idle = |w: &fake_github::world::World| {
        w.runners.values().all(|r| r.session.as_ref().is_some_and(|s| !s.ready)).then_some(())
    };
    github.wait_for("the poll is cut", DEADLINE, idle).await.unwrap();
    let job = github.queue_job(&repo, &["flyci"], JobScript::new());
    assert_eq!(github.job(job.id).unwrap().status, Status::Queued);
    let (_, jit) = app.runner(&token, &repo, "two", &["flyci"]).await;
    assert_eq!(runner::run(&jit, Behaviour::default()).await, 0);
    assert_eq!(github.job(job.id).unwrap().runner.unwrap().name, "two");
}

#[tokio::test]
async fn a_machine_that_dies_with_its_job_loses_it_after_a_while() {
    let (github, acme, repo) = stage().await;
    github.switch(|s| (s.silence_ms, s.lost_after_ms) = (200, 0));
    let app = App::of(&github);
    let token = app.token(acme.id).await;
    let (_, jit) = app.runner(&token, &repo, "one", &["flyci"]).await;
    let job = github.queue_job(&repo, &["flyci"], JobScript::new());
    assert_eq!(runner::run(&jit, Behaviour::working(Work::Die(137))).await, 137);
    let view = github.job_completed(job.id, DEADLINE).await.unwrap();
    assert_eq!(view.conclusion, Some(Conclusion::Failure));
    github.no_runners(DEADLINE).await.unwrap();
}

#[tokio::test]
async fn many_jobs_and_runners_pair_up_one_to_one() {
    let (github, acme, repo) = stage().await;
    let app = App::of(&github);
    let token = app.token(acme.id).await;
    let mut running = tokio::task::JoinSet::new();
    let mut jobs = Vec::new();
    for n in 0..40 {
        let (_, jit) = app.runner(&token, &repo, &format!("runner-{n}"), &["flyci"]).await;
        running.spawn(async move { runner::run(&jit, Behaviour::default()).await });
        jobs.push(github.queue_job(&repo, &["flyci"], JobScript::new()));
    }
    assert!(running.join_all().await.iter().all(|status| *status == 0));
    let mut served: Vec<u64> = jobs.iter().map(|j| github.job(j.id).unwrap().runner.unwrap().id).collect();
    served.sort_unstable();
    served.dedup();
    assert_eq!(served.len(), 40);
}
