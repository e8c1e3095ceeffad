//! What Prometheus reads.

use crate::support::payload::{CANARY, Job};
use crate::support::site::Site;
use flyci::metrics::Metrics;
use hyper::StatusCode;
use serde_json::json;
use std::time::Duration;

#[tokio::test]
async fn no_name_gets_into_what_machines_read() {
    let site = Site::open().await;
    site.deliver(&Job::queued(1)).await;
    site.deliver(&Job::queued(2).labels(&[CANARY])).await;
    let jobs = site.get("/jobs").await;
    assert!(jobs.body.to_string().contains(CANARY), "the operator may see names: {jobs:?}");

    let (status, metrics) = site.read(site.metrics, "/metrics").await;
    assert_eq!(status, StatusCode::OK);
    for line in [
        r#"flyci_deliveries_total{outcome="applied"} 1"#,
        r#"flyci_deliveries_total{outcome="ignored"} 1"#,
        r#"flyci_jobs{profile="flyci-test",state="queued"} 1"#,
        "flyci_database_up 1",
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
    let (_, ready) = site.read(site.public, "/readyz").await;
    let errors = [
        site.get("/jobs?state=none").await.body,
        site.change("/tenants/nobody/approve", json!({})).await.body,
        site.post(&[], b"{}".to_vec()).await.body,
    ];
    for text in [metrics, ready, json!(errors).to_string()] {
        assert!(!text.contains(CANARY) && !text.contains("acme"), "{text}");
    }
}

#[tokio::test]
async fn each_vm_that_ended_is_told_once() {
    let site = Site::open().await;
    let fence = site.host("mini-1", 2, 16_000_000_000).await;
    site.vm(fence, 0).await;
    site.vm(fence, 1).await;
    // It ended a minute ago: what ended just now may still be joined by a slower transaction.
    site.sql(
        "UPDATE vms SET state = 'gone', reason = 'job_done', planned_at = now() - interval '5 minutes',
            cloned_at = now() - interval '4 minutes', stopping_at = now() - interval '61 seconds',
            gone_at = now() - interval '60 seconds' WHERE slot = 0",
    )
    .await;
    let metrics = Metrics::new(chrono::Utc::now() - chrono::Duration::hours(1));
    for _ in 0..2 {
        let text = metrics.render(&site.db.gateway).await;
        for line in [
            r#"flyci_vm_step_seconds_count{step="planned_to_cloned",profile="flyci-test"} 1"#,
            r#"flyci_vm_step_seconds_bucket{le="60.0",step="planned_to_cloned",profile="flyci-test"} 1"#,
            r#"flyci_vm_step_seconds_count{step="stopping_to_gone",profile="flyci-test"} 1"#,
            r#"flyci_vms_ended_total{host="mini-1",profile="flyci-test",reason="job_done"} 1"#,
            r#"flyci_vms{host="mini-1",state="planned"} 1"#,
            r#"flyci_host_slots{host="mini-1"} 2"#,
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}

#[tokio::test]
async fn without_a_database_the_rest_is_told() {
    let site = Site::open().await;
    let metrics = Metrics::new(chrono::Utc::now());
    metrics.github_call("POST /repos/{owner}/{repo}/actions/runners/generate-jitconfig", 201, Duration::from_millis(7));
    metrics.pass("mint", Duration::from_millis(2), false);
    site.db.gateway.close().await;
    let text = metrics.render(&site.db.gateway).await;
    for line in ["flyci_database_up 0", r#"flyci_pass_errors_total{pass="mint"} 1"#, r#"status="201"} 1"#] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
}
