//! Metadata only: what a customer's job is made of is found nowhere after a whole story, in no file, log, process or
//! answer, with the log as talkative as can be. And a secret that leaks on purpose is found by the same search.
//!
//! The daemon is a process of its own, with its private Postgres, so the tests need an unprivileged user.

use crate::support::payload::{CANARY, Job};
use crate::support::program::{Place, Serving, edit, free_port};
use crate::support::site::client;
use fake_github::{AccountKind, Conclusion, FakeGitHub, JobScript, Options, Visibility};
use flyci::cli::search::{self, Needle};
use std::os::unix::fs::DirBuilderExt;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
/// The names and contents of a job that must stay nowhere. Owner and repository are apart, as names may be.
const ACCOUNT: &str = "canary-account-1b9d";
const REPOSITORY: &str = "canary-repository-77c2";
const JOB: &str = "canary-job-e01f";
const STEP: &str = "canary-step-5a3c";
const SECRET: &str = "canary-secret-9c41e7d2";
/// What the second test leaks; another, since both look at every process and may run at once.
const LEAKED: &str = "canary-leaked-83b6f0c5";
/// A part of every JIT config of the story: its server's URL has it as a folder that is left again.
const JIT: &str = "canary-jit-40aa8e";

fn needles(github: &FakeGitHub) -> Vec<Needle> {
    let key = github.private_key_pem().lines().nth(1).expect("a line of the key");
    vec![
        Needle::new("the account", ACCOUNT),
        Needle::new("the repository", REPOSITORY),
        Needle::new("the job's name", JOB),
        Needle::new("a step", STEP),
        Needle::new("the job's secret", SECRET),
        Needle::new("the JIT config", JIT),
        Needle::new("branch, commit, workflow, step or initiator", CANARY),
        Needle::new("the webhook's secret", github.webhook_secret()),
        Needle::new("the App's key", key),
    ]
}

/// A simulated GitHub whose JIT configs can be recognised.
async fn github() -> FakeGitHub {
    let port = free_port();
    let runner_url = Some(format!("http://127.0.0.1:{port}/{JIT}/.."));
    let options = Options { listen: ([127, 0, 0, 1], port).into(), runner_url, ..Options::default() };
    FakeGitHub::start(options).await.expect("it starts")
}

/// What the listeners answer to whoever asks, right or wrong.
async fn answers(place: &Place) -> String {
    let mut texts = String::new();
    for url in [
        format!("http://127.0.0.1:{}/metrics", place.metrics),
        format!("http://127.0.0.1:{}/readyz", place.public),
        format!("http://127.0.0.1:{}/{REPOSITORY}?{SECRET}", place.public),
    ] {
        texts += &client().get(url).send().await.expect("it is answered").text().await.expect("it is text");
    }
    let forged = serde_json::to_vec(&Job::queued(1).body()).expect("JSON");
    let post = client().post(format!("http://127.0.0.1:{}/webhooks/github", place.public)).body(forged);
    texts + &post.send().await.expect("it is answered").text().await.expect("it is text")
}

/// Everywhere that one of the texts is: the daemon's files and log, every process, every answer.
async fn leaks(place: &Place, serving: &Serving, needles: &[Needle]) -> Vec<(String, String)> {
    std::fs::write(place.path("answers"), answers(place).await).expect("it is writable");
    let processes = search::processes();
    let daemon = processes.iter().find(|process| process.pid == serving.pid()).expect("the daemon is seen");
    // Its environment it shows to nobody; its children show theirs.
    assert!(!daemon.arguments.is_empty() && daemon.environment.is_empty(), "its memory is private");
    let child = |process: &search::Process| process.name == "postgres" && process.names(place.root.path());
    assert!(processes.iter().any(|process| child(process) && !process.environment.is_empty()), "its database is seen");
    let mut found = search::in_processes(&processes, needles).found;
    found.extend(in_files(place, needles));
    found
}

fn in_files(place: &Place, needles: &[Needle]) -> Vec<(String, String)> {
    let findings = search::in_files(place.root.path(), needles).expect("everything can be read");
    let data = std::fs::read_dir(place.root.path()).expect("it is readable").count();
    assert!(data > 3 && findings.looked_at > 500, "a database was among it: {findings:?}");
    // The secrets that the operator gave are where the operator put them.
    let own = [place.path("app.pem"), place.path("webhook.secret")].map(|path| path.display().to_string());
    findings.found.into_iter().filter(|(_, place)| !own.contains(place)).collect()
}

#[tokio::test]
async fn nothing_of_a_job_but_its_metadata_is_anywhere() {
    let github = github().await;
    let place = Place::new(&github, None, "fake", "");
    let needles = needles(&github);
    let mut serving = place.serve("--pretend", "trace").await;
    place.until(&mut serving, |status| status.readiness == "ready").await;

    let account = github.install(ACCOUNT, AccountKind::Organization);
    let repository = github.repository(&account, REPOSITORY, Visibility::Private);
    let script = JobScript::new().named(JOB).step(format!("echo {STEP}")).secret("TOKEN", SECRET);
    let job = github.queue_job(&repository, &["flyci-test"], script);
    // Deliveries as GitHub sends them, with texts in every field; of an account that GitHub knows nothing of.
    github.send_event("workflow_job", Job::queued(4_000_001).labels(&[CANARY]).body());
    github.send_event("workflow_job", Job::waiting(4_000_002).body());
    place.until(&mut serving, |status| status.hosts.iter().any(|host| host.vms > 0)).await;
    assert_eq!(leaks(&place, &serving, &needles).await, [], "while a vm works");

    let done = github.job_completed(job.id, SOON).await.expect("the job is completed");
    assert_eq!(done.conclusion, Some(Conclusion::Success));
    place.until(&mut serving, |status| status.day.done == 1 && status.hosts[0].vms == 0).await;
    let shown = place.run("jobs --json").await;
    shown.expect(0, &[ACCOUNT, REPOSITORY, "\"done\""]);
    assert_eq!(leaks(&place, &serving, &needles).await, [], "after the job");
    let log = serving.log();
    assert!(log.contains("the vm is gone") && log.contains("\"debug\""), "the log is talkative: {log}");

    assert!(serving.stop().success());
    assert_eq!(in_files(&place, &needles), [], "after the daemon");
}

#[tokio::test]
async fn a_secret_that_leaks_on_purpose_is_found_wherever_it_leaks() {
    let github = github().await;
    let place = Place::new(&github, None, "fake", &format!("name = \"{LEAKED}\""));
    // A folder that is open to others: the daemon closes it and tells its path in the log.
    let data = place.path(LEAKED);
    std::fs::DirBuilder::new().mode(0o755).create(&data).expect("it is made");
    edit(&place.path("flyci.toml"), &format!("{}/data", place.root.path().display()), &data.display().to_string());
    let serving = place.serve("--pretend", "trace").await;

    let needles = [Needle::new("the secret", LEAKED)];
    let is_in = |found: &[(String, String)], part: &str| found.iter().any(|(_, place)| place.contains(part));
    let found = leaks(&place, &serving, &needles).await;
    let (log, answers) = (place.path("log"), place.path("answers"));
    for part in [log.to_str(), answers.to_str(), Some("/pg_wal/"), Some("(postgres)")] {
        let part = part.expect("it is text");
        assert!(is_in(&found, part), "{part}: {found:#?}");
    }
    assert!(serving.stop().success());
    // Postgres writes its tables when it stops.
    let found = in_files(&place, &needles);
    assert!(is_in(&found, "/base/"), "{found:#?}");
}
