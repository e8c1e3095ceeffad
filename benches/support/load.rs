//! Deliveries, as many at once as asked for, signed as GitHub does.

use super::daemon::Child;
use super::stats::Samples;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

pub struct Outcome {
    pub per_second: f64,
    pub latency: Samples,
    pub refused: usize,
}

/// Sends `count` deliveries of new queued jobs, `at_once` under way; job ids begin at `first`.
pub async fn run(daemon: &Child, at_once: usize, count: usize, first: u64) -> Outcome {
    let (client, secret) = (daemon.client(), daemon.github.webhook_secret().to_owned());
    let url: Arc<str> = format!("https://localhost:{}/webhooks/github", daemon.port).into();
    let bodies: Arc<Vec<(Vec<u8>, String)>> =
        Arc::new((0..count).map(|index| signed(&secret, first + index as u64)).collect());
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..at_once {
        let (client, url, bodies, next) = (client.clone(), Arc::clone(&url), Arc::clone(&bodies), Arc::clone(&next));
        senders.spawn(async move {
            let (mut times, mut refused) = (Vec::new(), 0);
            while let Some((body, signature)) = bodies.get(next.fetch_add(1, Ordering::Relaxed)) {
                let sent = Instant::now();
                let answer = client
                    .post(&*url)
                    .header("x-github-event", "workflow_job")
                    .header("x-github-delivery", uuid::Uuid::new_v4().to_string())
                    .header("x-hub-signature-256", signature)
                    .body(body.clone())
                    .send()
                    .await;
                times.push(sent.elapsed().as_secs_f64() * 1000.0);
                refused += usize::from(!answer.is_ok_and(|answer| answer.status() == 202));
            }
            (times, refused)
        });
    }
    let outcomes = senders.join_all().await;
    let seconds = began.elapsed().as_secs_f64();
    let refused = outcomes.iter().map(|(_, refused)| refused).sum();
    let latency = Samples::new(outcomes.into_iter().flat_map(|(times, _)| times).collect());
    Outcome { per_second: (count - refused) as f64 / seconds, latency, refused }
}

fn signed(secret: &str, id: u64) -> (Vec<u8>, String) {
    let repository = id % 50;
    let body = serde_json::json!({
        "action": "queued",
        "workflow_job": {
            "id": id, "run_id": id, "run_attempt": 1, "status": "queued", "conclusion": null,
            "created_at": chrono::Utc::now(), "started_at": chrono::Utc::now(), "completed_at": null,
            "name": "build", "steps": [], "labels": ["flyci-test"], "runner_id": null, "runner_name": null,
            "workflow_name": "CI", "head_branch": "main", "head_sha": "0".repeat(40), "node_id": "x",
            "url": "https://api.github.com/repos/acme/app/actions/jobs/1", "html_url": "https://github.com/acme/app",
        },
        "repository": {
            "id": 1_000 + repository, "full_name": format!("acme/app-{repository}"), "private": true,
            "owner": {"id": 77, "login": "acme", "type": "Organization"},
        },
        "sender": {"id": 7, "login": "octocat", "type": "User"},
        "installation": {"id": 4242},
    });
    let body = serde_json::to_vec(&body).expect("JSON");
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key of any length");
    mac.update(&body);
    let signature = format!("sha256={}", hex::encode(mac.finalize().into_bytes()));
    (body, signature)
}
