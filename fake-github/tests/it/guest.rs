//! The runner's program, as it runs inside a guest, over HTTPS.

use std::path::Path;
use std::process::{Output, Stdio};

use fake_github::protocol::JIT_ENV;
use fake_github::{AccountKind, Conclusion, FakeGitHub, Installation, JobScript, Options, Repo, Status, Visibility};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::client::{App, DEADLINE};

struct Stage {
    github: FakeGitHub,
    acme: Installation,
    repo: Repo,
    dir: TempDir,
}

impl Stage {
    async fn set() -> Self {
        let github = FakeGitHub::start(Options::https()).await.unwrap();
        let acme = github.install("acme", AccountKind::Organization);
        let repo = github.repository(&acme, "app", Visibility::Private);
        Self { github, acme, repo, dir: TempDir::new().unwrap() }
    }

    async fn jit(&self, name: &str) -> String {
        let app = App::of(&self.github);
        let token = app.token(self.acme.id).await;
        app.runner(&token, &self.repo, name, &["flyci"]).await.1
    }

    fn queue(&self, script: JobScript) -> fake_github::JobHandle {
        self.github.queue_job(&self.repo, &["flyci"], script)
    }
}

fn start(jit: &str, dir: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_fake-runner"))
        .arg("--dir")
        .arg(dir)
        .env(JIT_ENV, jit)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn ended(runner: Child) -> Output {
    tokio::time::timeout(DEADLINE, runner.wait_with_output()).await.expect("the runner ends").unwrap()
}

#[tokio::test]
async fn steps_run_for_real_and_their_output_is_streamed_with_secrets_masked() {
    let stage = Stage::set().await;
    let setup = r#"[{"group":"flyci","detail":"vm 1\nhost mini-1"}]"#;
    std::fs::write(stage.dir.path().join(".setup_info"), setup).unwrap();
    let script = JobScript::new()
        .step("echo made > file; echo \"the token is $TOKEN\" >&2")
        .step("cat file; pwd")
        .secret("TOKEN", "s3cret-canary");
    let job = stage.queue(script);

    let out = ended(start(&stage.jit("one").await, stage.dir.path())).await;
    assert_eq!(out.status.code(), Some(0), "{out:?}");

    let view = stage.github.job_completed(job.id, DEADLINE).await.unwrap();
    assert_eq!(view.conclusion, Some(Conclusion::Success));
    assert_eq!(view.steps.len(), 3, "the set-up and two steps: {:?}", view.steps);
    let log = stage.github.logs(job).join("\n");
    assert!(log.starts_with("##[group]Set up job\n"), "{log}");
    assert!(log.contains("##[group]flyci\nvm 1\nhost mini-1\n##[endgroup]"), "{log}");
    assert!(log.contains("the token is ***") && log.contains("\nmade\n"), "{log}");
    assert!(!log.contains("s3cret-canary"), "{log}");
    assert!(!stage.dir.path().join("_work").join(job.id.to_string()).exists(), "the work directory is gone");
}

#[tokio::test]
async fn a_failing_step_fails_the_job_skips_the_rest_and_the_runner_exits_0() {
    let stage = Stage::set().await;
    let job = stage.queue(JobScript::new().step("echo before; false; echo after").step("echo never"));
    let out = ended(start(&stage.jit("one").await, stage.dir.path())).await;
    assert_eq!(out.status.code(), Some(0), "{out:?}");

    let view = stage.github.job_completed(job.id, DEADLINE).await.unwrap();
    assert_eq!(view.conclusion, Some(Conclusion::Failure));
    let ends: Vec<_> = view.steps.iter().map(|(_, end)| end.unwrap()).collect();
    assert_eq!(ends, [Conclusion::Success, Conclusion::Failure, Conclusion::Skipped]);
    let log = stage.github.logs(job);
    assert!(log.iter().any(|l| l == "##[error]Process completed with exit code 1."), "{log:?}");
    assert!(!log.iter().any(|l| l == "after" || l == "never"), "{log:?}");
}

#[tokio::test]
async fn the_jit_configuration_is_in_no_environment_that_a_job_can_read() {
    let stage = Stage::set().await;
    // The step reads its own environment and its parent's.
    let job = stage.queue(JobScript::new().step("cat /proc/self/environ /proc/$PPID/environ | tr '\\0' '\\n'"));
    let out = ended(start(&stage.jit("one").await, stage.dir.path())).await;
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let log = stage.github.logs(job).join("\n");
    assert!(log.contains("PATH="), "the step saw environments: {log}");
    assert!(!log.contains(JIT_ENV), "{log}");
}

#[tokio::test]
async fn a_cancelled_job_is_killed_with_all_that_it_started() {
    let stage = Stage::set().await;
    stage.github.switch(|s| s.silence_ms = 1_000);
    let job = stage.queue(JobScript::new().step("echo started; sleep 1000 & sleep 1000"));
    let runner = start(&stage.jit("one").await, stage.dir.path());
    let started = |w: &fake_github::world::World| w.jobs[&job.id].log.iter().any(|l| l == "started").then_some(());
    stage.github.wait_for("the step to start", DEADLINE, started).await.unwrap();

    assert!(stage.github.cancel(job));
    assert_eq!(ended(runner).await.status.code(), Some(0));
    let view = stage.github.job_completed(job.id, DEADLINE).await.unwrap();
    assert_eq!(view.conclusion, Some(Conclusion::Cancelled));
}

#[tokio::test]
async fn a_second_use_of_a_jit_configuration_is_refused() {
    let stage = Stage::set().await;
    let jit = stage.jit("one").await;
    let first = start(&jit, stage.dir.path());
    let online = |w: &fake_github::world::World| w.runners.values().any(|r| r.online()).then_some(());
    stage.github.wait_for("the runner online", DEADLINE, online).await.unwrap();

    let second = ended(start(&jit, stage.dir.path())).await;
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stdout).contains("already used"), "{second:?}");

    let job = stage.queue(JobScript::new());
    stage.github.job_completed(job.id, DEADLINE).await.unwrap();
    assert_eq!(ended(first).await.status.code(), Some(0));
}

#[tokio::test]
async fn a_deprecated_runner_says_so_in_githubs_words() {
    let stage = Stage::set().await;
    stage.github.switch(|s| s.deprecated_runners = true);
    let out = ended(start(&stage.jit("one").await, stage.dir.path())).await;
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        said.contains("Runner version v2.") && said.contains("is deprecated and cannot receive messages."),
        "{said}"
    );
    assert_eq!(out.status.code(), Some(0), "as run.sh of the real runner");
}

#[tokio::test]
async fn a_runner_whose_registration_is_removed_exits() {
    let stage = Stage::set().await;
    let runner = start(&stage.jit("one").await, stage.dir.path());
    let online = |w: &fake_github::world::World| w.runners.values().find(|r| r.online()).map(|r| r.id);
    let id = stage.github.wait_for("the runner online", DEADLINE, online).await.unwrap();
    stage.github.remove_runner(id);
    let out = ended(runner).await;
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stdout).contains("registration has been deleted"), "{out:?}");
}

#[tokio::test]
async fn a_killed_runner_leaves_a_busy_offline_registration_until_its_job_is_lost() {
    let stage = Stage::set().await;
    stage.github.switch(|s| (s.silence_ms, s.lost_after_ms) = (500, 60_000));
    let job = stage.queue(JobScript::new().step("while kill -0 $PPID; do sleep 0.1; done"));
    let mut runner = start(&stage.jit("one").await, stage.dir.path());
    stage.github.job_reached(job.id, Status::InProgress, DEADLINE).await.unwrap();
    runner.kill().await.unwrap();

    let ghost = |w: &fake_github::world::World| w.runners.values().any(|r| r.busy() && !r.online()).then_some(());
    stage.github.wait_for("busy and offline", DEADLINE, ghost).await.unwrap();
    stage.github.switch(|s| s.lost_after_ms = 0);
    let view = stage.github.job_completed(job.id, DEADLINE).await.unwrap();
    assert_eq!(view.conclusion, Some(Conclusion::Failure));
    assert!(view.note.unwrap().contains("lost communication"));
}

#[tokio::test]
async fn without_a_configuration_the_program_says_what_is_missing() {
    let runner = Command::new(env!("CARGO_BIN_EXE_fake-runner")).env_remove(JIT_ENV).output().await.unwrap();
    assert_eq!(runner.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&runner.stderr).contains(JIT_ENV));
}
