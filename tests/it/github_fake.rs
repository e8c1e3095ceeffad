//! The client against the simulated GitHub: its rules, its state, its clock, over TLS.

use crate::github_stub::labels;
use fake_github::{AccountKind, FakeGitHub, Installation, JobScript, Repo, Visibility};
use flyci::github::{
    Denial, GitHub, GitHubError, InstallationId, Options, Removal, RepositoryRef, Result, Scope, missing_events,
    missing_permissions,
};
use secrecy::SecretString;

const JIT: &str = "POST /repos/{owner}/{repo}/actions/runners/generate-jitconfig";

/// An organisation with a repository, and our client.
struct Story {
    fake: FakeGitHub,
    acme: Installation,
    app: Repo,
    github: GitHub,
}

impl Story {
    async fn begin() -> Self {
        let fake = FakeGitHub::start(fake_github::Options::https()).await.expect("starts");
        let acme = fake.install("acme", AccountKind::Organization);
        let app = fake.repository(&acme, "app", Visibility::Private);
        let options = Options {
            api_url: fake.url().to_owned(),
            app_id: fake.app_id(),
            private_key: SecretString::from(fake.private_key_pem()),
            previous_private_key: None,
            ca_pem: fake.ca_pem().map(|pem| pem.as_bytes().to_vec()),
            proxy_url: None,
            user_agent: "flyci/test".to_owned(),
            public_repositories: false,
            on_call: None,
        };
        let github = GitHub::new(&options).expect("options");
        Self { fake, acme, app, github }
    }

    fn installation(&self) -> InstallationId {
        InstallationId(self.acme.id)
    }

    fn repository(&self) -> RepositoryRef<'_> {
        RepositoryRef { id: self.app.id, full_name: &self.app.full_name }
    }

    async fn mint(&self, name: &str) -> Result<u64> {
        let minted =
            self.github.mint(self.installation(), self.repository(), Scope::Repository, name, &labels()).await?;
        Ok(minted.runner_id)
    }

    async fn remove(&self, runner: u64) -> Result<Removal> {
        self.github.remove_runner(self.installation(), self.repository(), Scope::Repository, runner).await
    }

    async fn find(&self, name: &str) -> Option<u64> {
        let found = self.github.find_runner(self.installation(), self.repository(), Scope::Repository, name).await;
        found.expect("asked").map(|runner| runner.id)
    }
}

#[tokio::test]
async fn the_app_has_all_that_it_needs() {
    let story = Story::begin().await;
    let app = story.github.app().await.expect("asked");
    assert!(missing_permissions(&app.permissions, Scope::Repository).is_empty());
    assert!(missing_events(&app.events).is_empty());
    let known = story.github.installation(story.installation()).await.expect("asked").expect("known");
    assert_eq!((known.account_id, known.login.as_str(), known.suspended), (story.acme.account_id, "acme", false));
    assert_eq!(known.kind, "Organization");
    story.fake.suspend(&story.acme);
    let known = story.github.installation(story.installation()).await.expect("asked").expect("known");
    assert!(known.suspended);
}

#[tokio::test]
async fn a_runner_is_minted_found_listed_and_removed() {
    let story = Story::begin().await;
    let runner = story.mint("flyci-1").await.expect("minted");
    assert_eq!(story.find("flyci-1").await, Some(runner));
    let listed = story.github.list_runners(story.installation(), story.repository(), Scope::Repository).await;
    let listed = listed.expect("asked");
    assert!(listed.complete && listed.runners[0].labels == labels());
    assert_eq!(story.remove(runner).await.expect("asked"), Removal::Gone);
    assert_eq!(story.remove(runner).await.expect("asked"), Removal::Gone, "twice is once");
    assert!(story.fake.runners(&story.app).is_empty());
}

#[tokio::test]
async fn a_mint_whose_answer_was_lost_heals_by_its_name() {
    let story = Story::begin().await;
    story.fake.fail_next(JIT, 502, 1, true);
    assert!(story.mint("flyci-1").await.expect_err("lost").may_have_happened());
    assert_eq!(story.fake.requests(JIT), 1);
    assert!(matches!(story.mint("flyci-1").await, Err(GitHubError::NameTaken { .. })));
    let left = story.find("flyci-1").await.expect("the lost one");
    assert_eq!(story.remove(left).await.expect("asked"), Removal::Gone);
    story.mint("flyci-2").await.expect("minted");
    assert_eq!(story.fake.runners(&story.app).len(), 1);
}

#[tokio::test]
async fn a_spent_hour_is_told_by_github_and_then_left_alone() {
    let story = Story::begin().await;
    let runner = story.mint("flyci-1").await.expect("minted");
    story.fake.exhaust(&story.acme);
    let route = "DELETE /repos/{owner}/{repo}/actions/runners/{runner_id}";
    for _ in 0..3 {
        assert!(matches!(story.remove(runner).await, Err(GitHubError::RateLimited { .. })));
    }
    assert_eq!(story.fake.requests(route), 1);
}

#[tokio::test]
async fn what_the_account_forbids_is_told_apart() {
    let story = Story::begin().await;
    story.fake.forbid_repository_runners(&story.acme, true);
    let error = story.mint("flyci-1").await.expect_err("forbidden");
    assert!(matches!(error, GitHubError::Forbidden { reason: Denial::OrgForbidsRepoRunners, .. }), "{error:?}");
    story.fake.forbid_repository_runners(&story.acme, false);

    let other = story.fake.repository(&story.acme, "other", Visibility::Private);
    story.fake.grant(&story.acme, "administration", Some("read"));
    let repository = RepositoryRef { id: other.id, full_name: &other.full_name };
    let mint =
        async || story.github.mint(story.installation(), repository, Scope::Repository, "flyci-2", &labels()).await;
    let error = mint().await.expect_err("no permission");
    assert!(matches!(error, GitHubError::Forbidden { reason: Denial::MissingPermission, .. }), "{error:?}");
    story.fake.suspend(&story.acme);
    assert!(matches!(mint().await, Err(GitHubError::InstallationSuspended { .. })));
    story.fake.uninstall(&story.acme);
    assert!(matches!(mint().await, Err(GitHubError::NotFound { .. })));
}

#[tokio::test]
async fn the_secondary_limit_is_met_once() {
    let story = Story::begin().await;
    story.mint("flyci-1").await.expect("minted");
    story.fake.switch(|switches| {
        switches.secondary = Some(fake_github::Secondary { times: 1, retry_after_s: 120 });
    });
    let sent = story.fake.requests(JIT);
    for name in ["flyci-2", "flyci-3"] {
        assert!(matches!(story.mint(name).await, Err(GitHubError::RateLimited { .. })));
    }
    assert_eq!(story.fake.requests(JIT), sent + 1);
}

#[tokio::test]
async fn queued_jobs_are_seen_and_the_webhook_for_one_is_asked_for_again() {
    let story = Story::begin().await;
    let job = story.fake.queue_job(&story.app, &["flyci-macos-large", "self-hosted"], JobScript::default());
    let found = story.github.open_jobs(story.installation(), story.repository(), None).await.expect("asked");
    assert_eq!(found.jobs.iter().map(|one| (one.id, one.run_id)).collect::<Vec<_>>(), [(job.id, job.run_id)]);
    assert_eq!(found.jobs[0].labels, labels());
    let one = story.github.job(story.installation(), story.repository(), job.id).await.expect("asked").expect("known");
    assert_eq!((one.status.as_str(), one.runner_id), ("queued", None));

    story.fake.cancel(job);
    let run =
        story.github.run(story.installation(), story.repository(), job.run_id).await.expect("asked").expect("known");
    assert_eq!(run.status.as_deref(), Some("completed"));

    // Nobody listens: GitHub's log says that the deliveries failed.
    story.fake.set_webhook("http://127.0.0.1:9/", None).expect("a target");
    story.fake.queue_job(&story.app, &["flyci-macos-large"], JobScript::default());
    story.fake.deliveries_settled(std::time::Duration::from_secs(20)).await.expect("settled");
    let log = story.github.deliveries(None, None).await.expect("asked").deliveries;
    let failed = log.iter().find(|one| one.event == "workflow_job" && !one.succeeded()).expect("a failed delivery");
    assert_eq!((failed.installation_id, failed.repository_id), (Some(story.acme.id), Some(story.app.id)));
    let detail = story.github.delivery(failed.id).await.expect("asked").expect("kept");
    assert!(String::from_utf8_lossy(&detail.payload.to_bytes()).contains("\"workflow_job\""));
    story.github.redeliver(failed.id).await.expect("asked");
}

#[tokio::test]
async fn an_organisation_s_group_takes_the_runner() {
    let story = Story::begin().await;
    story.fake.grant(&story.acme, "organization_self_hosted_runners", Some("write"));
    story.fake.runner_group(&story.acme, &format!("flyci-{}", story.app.id), &[&story.app]);
    let scope = Scope::OrganizationGroup;
    let (installation, repository) = (story.installation(), story.repository());
    let minted = story.github.mint(installation, repository, scope, "flyci-1", &labels()).await.expect("minted");
    let found = story.github.find_runner(installation, repository, scope, "flyci-1").await.expect("asked");
    assert_eq!(found.map(|runner| runner.id), Some(minted.runner_id));
    let removed = story.github.remove_runner(installation, repository, scope, minted.runner_id).await;
    assert_eq!(removed.expect("asked"), Removal::Gone);
}
