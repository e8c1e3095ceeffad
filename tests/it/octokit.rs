//! Every webhook example that GitHub's Octokit publishes, signed, sent to the public router: each gets 2xx and the
//! right decision. The examples come by npm (fake-github/contract/fetch.sh) and are not committed.

use crate::support::site::{Site, sign};
use flyci::domain::profile::Profile;
use serde_json::{Value, json};
use std::path::PathBuf;
use tokio::process::Command;

/// What is to be done with the `workflow_job` examples, in their order, by a fleet that offers their labels to public
/// repositories, too: the decision with its reason, and the job's state if it has a row.
const DECISIONS: [(&str, Option<&str>, Option<&str>); 8] = [
    // Not an App's delivery: it names no installation.
    ("ignored", Some("no_installation"), None),
    ("ignored", Some("no_installation"), None),
    ("ignored", Some("no_installation"), None),
    // On a runner that is not ours.
    ("applied", None, Some("running")),
    ("applied", None, Some("running")),
    // `queued`, and names the runner that took it: nothing may boot for it.
    ("applied", None, Some("running")),
    // `queued` with the status `waiting`: an environment's gate is closed, so it is no demand.
    ("applied", None, Some("waiting")),
    ("applied", None, Some("waiting")),
];

/// The examples of each event.
async fn examples() -> serde_json::Map<String, Value> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let directory = root.join("target/contract");
    let fetched = Command::new(root.join("fake-github/contract/fetch.sh")).arg(&directory).output().await;
    let fetched = fetched.expect("fetch.sh runs");
    assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
    let text = std::fs::read(directory.join("examples.json")).expect("fetch.sh wrote it");
    serde_json::from_slice(&text).expect("it is an object")
}

fn of<'a>(examples: &'a serde_json::Map<String, Value>, event: &str) -> &'a Vec<Value> {
    examples[event].as_array().expect("a list of examples")
}

/// A fleet that offers what the examples ask for.
async fn generous() -> Site {
    let offer = |label: &str| -> Profile {
        let profile = json!({"label": label, "cpus": 1, "memory": "128MB", "disk_free": "1GB", "image": "any"});
        serde_json::from_value(profile).expect("it is a profile")
    };
    Site::with(|policy| {
        policy.public_repositories = true;
        policy.profiles = ["ubuntu-latest", "k8s"].map(|label| (offer(label), None)).to_vec();
    })
    .await
}

/// Sends one. Answers the decision and its reason.
async fn send(site: &Site, event: &str, example: &Value) -> (String, Option<String>) {
    let body = serde_json::to_vec(example).expect("JSON");
    let signature = sign(&body);
    let answer = site.post(&[("x-github-event", event), ("x-hub-signature-256", &signature)], body).await;
    assert!(answer.status.is_success(), "{event}: {answer:?}");
    let word = |name: &str| answer.body[name].as_str().map(str::to_owned);
    (word("status").expect("a decision"), word("reason"))
}

#[tokio::test]
async fn every_example_gets_2xx() {
    let (examples, site) = (examples().await, Site::open().await);
    assert!(examples.len() > 50, "all events are there");
    for (event, list) in &examples {
        for (number, example) in list.as_array().expect("a list of examples").iter().enumerate() {
            let (decision, reason) = send(&site, event, example).await;
            let known = match event.as_str() {
                "workflow_job" | "repository" => {
                    decision == "applied" || reason.as_deref().is_some_and(|reason| reason != "event_not_used")
                }
                "installation" | "installation_repositories" | "installation_target" => decision == "applied",
                "ping" => reason.as_deref() == Some("ping"),
                _ => (decision.as_str(), reason.as_deref()) == ("ignored", Some("event_not_used")),
            };
            assert!(known && decision != "not_understood", "{event} {number}: {decision} {reason:?}");
        }
    }
    let states: Vec<String> =
        sqlx::query_scalar("SELECT state FROM jobs").fetch_all(&site.db.owner).await.expect("jobs can be read");
    assert!(states.is_empty(), "none of them asks for what is on offer: {states:?}");
}

#[tokio::test]
async fn each_job_example_is_decided_on_purpose() {
    let examples = examples().await;
    let jobs = of(&examples, "workflow_job");
    assert_eq!(jobs.len(), DECISIONS.len(), "GitHub's list changed: decide on what is new");
    for (number, (example, expected)) in jobs.iter().zip(DECISIONS).enumerate() {
        // Each for itself: two of them may tell of one job.
        let site = generous().await;
        let (decision, reason) = send(&site, "workflow_job", example).await;
        let states: Vec<String> =
            sqlx::query_scalar("SELECT state FROM jobs").fetch_all(&site.db.owner).await.expect("jobs can be read");
        let state = states.first().map(String::as_str);
        assert_eq!((decision.as_str(), reason.as_deref(), state), expected, "example {number}");
        let demand: Vec<String> = sqlx::query_scalar("SELECT state FROM jobs WHERE state = 'queued'")
            .fetch_all(&site.db.owner)
            .await
            .expect("jobs can be read");
        assert!(demand.is_empty(), "nothing boots for example {number}");
    }
}

#[tokio::test]
async fn an_example_that_is_not_for_us_is_refused_with_its_reason() {
    let (examples, site) = (examples().await, Site::open().await);
    for (number, reason) in [(3, "label_unknown"), (5, "label_unknown"), (6, "label_unknown")] {
        let told = send(&site, "workflow_job", &of(&examples, "workflow_job")[number]).await;
        assert_eq!(told, ("ignored".to_owned(), Some(reason.to_owned())), "example {number}");
    }
    let closed = Site::with(|policy| {
        let profile = json!({"label": "k8s", "cpus": 1, "memory": "128MB", "disk_free": "1GB", "image": "any"});
        policy.profiles = vec![(serde_json::from_value(profile).expect("it is a profile"), None)];
    })
    .await;
    let told = send(&closed, "workflow_job", &of(&examples, "workflow_job")[6]).await;
    assert_eq!(told, ("ignored".to_owned(), Some("public_repository".to_owned())), "anybody's code");
}
