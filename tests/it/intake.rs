//! What becomes of deliveries: whatever comes, in whatever order, is decided on purpose.

use crate::support::gate::Gate;
use crate::support::payload::{CANARY, Job};
use flyci::intake::{Delivery, IntakeError, Receipt};
use serde_json::{Value, json};
use std::sync::Arc;
use uuid::Uuid;

#[tokio::test]
async fn a_queued_job_becomes_a_row_and_the_same_delivery_does_nothing_twice() {
    let gate = Gate::open().await;
    let (guid, body) = (Uuid::new_v4(), serde_json::to_vec(&Job::queued(1).body()).expect("JSON"));
    assert_eq!(gate.intake.apply(guid, "workflow_job", &body).await.expect("taken"), Receipt::Applied);
    assert_eq!(gate.intake.apply(guid, "workflow_job", &body).await.expect("taken"), Receipt::Repeated);
    assert_eq!(gate.take(&Job::queued(1)).await, Receipt::Applied, "with a new GUID it is judged again");
    assert_eq!(gate.states().await, ["queued"]);
}

#[tokio::test]
async fn a_completed_before_its_queued_makes_an_ended_job() {
    let gate = Gate::open().await;
    gate.take(&Job::cancelled(1)).await;
    assert_eq!(gate.take(&Job::queued(1)).await, Receipt::Ignored("old_news"));
    gate.take(&Job::completed(2, 5, "somebody")).await;
    gate.take(&Job::in_progress(2, 5, "somebody")).await;
    gate.take(&Job::queued(2)).await;
    assert_eq!(gate.states().await, ["cancelled", "done"]);
}

#[tokio::test]
async fn a_gate_holds_a_job_back_until_it_opens() {
    let gate = Gate::open().await;
    let held = Job { status: "waiting", ..Job::queued(1) };
    gate.take(&held).await;
    assert_eq!(gate.states().await, ["waiting"], "`queued` with the status `waiting` is no demand");
    gate.take(&Job::queued(1)).await;
    assert_eq!(gate.states().await, ["queued"]);
    gate.take(&Job::waiting(1)).await;
    assert_eq!(gate.states().await, ["waiting"], "the gate may close again");
}

#[tokio::test]
async fn a_job_that_another_runner_has_is_no_demand() {
    let gate = Gate::open().await;
    gate.take(&Job { runner: Some((5, "GitHub Actions 5".into())), ..Job::queued(1) }).await;
    gate.take(&Job::queued(2)).await;
    gate.take(&Job::in_progress(2, 6, "somebody")).await;
    assert_eq!(gate.states().await, ["running", "running"]);
}

#[tokio::test]
async fn what_is_not_ours_to_run_leaves_a_refusal_without_its_labels() {
    let gate = Gate::open().await;
    gate.take(&Job::queued(1).labels(&["ubuntu-latest", CANARY])).await;
    gate.take(&Job::queued(2).labels(&["flyci-tset"])).await;
    gate.take(&Job::queued(3).labels(&["flyci-test", "gpu"])).await;
    gate.take(&Job { private: false, ..Job::queued(4) }).await;
    let expected = |reason: &str, nearest: Option<&str>, label: Option<&str>| {
        (reason.to_owned(), nearest.map(str::to_owned), label.map(str::to_owned))
    };
    assert_eq!(
        gate.refusals().await,
        [
            expected("label_unknown", None, None),
            expected("label_unknown", Some("flyci-test"), Some("flyci-tset")),
            expected("label_unknown", Some("flyci-test"), Some("flyci-test")),
            expected("public_repository", Some("flyci-test"), Some("flyci-test")),
        ]
    );
    assert!(gate.states().await.is_empty());
}

#[tokio::test]
async fn an_account_is_served_only_once_it_is_approved() {
    let gate = Gate::with(|policy| policy.open_admission = false).await;
    assert_eq!(gate.take(&Job::queued(1)).await, Receipt::Ignored("tenant_not_approved"));
    sqlx::query("UPDATE tenants SET admission = 'approved'").execute(&gate.db.owner).await.expect("approved");
    assert_eq!(gate.take(&Job::queued(1)).await, Receipt::Applied, "the same job is judged again");
    assert!(gate.refusals().await.is_empty(), "and nothing says any more that it was refused");
}

#[tokio::test]
async fn a_repository_of_another_account_is_not_served() {
    let gate = Gate::open().await;
    gate.take(&Job::queued(1)).await;
    assert_eq!(gate.take(&Job { owner: 101, ..Job::queued(2) }).await, Receipt::Ignored("owner_mismatch"));
    assert_eq!(gate.states().await.len(), 1);
}

#[tokio::test]
async fn odd_deliveries_are_acknowledged_and_change_nothing() {
    let gate = Gate::open().await;
    let mut no_installation = Job::queued(1).body();
    no_installation.as_object_mut().expect("an object").remove("installation");
    let mut no_job = Job::queued(1).body();
    no_job["workflow_job"] = Value::Null;
    let unknown = Job { action: "reticulated", ..Job::queued(1) }.body();
    let cases = [
        ("workflow_job", no_installation, Receipt::Ignored("no_installation")),
        ("workflow_job", no_job, Receipt::NotUnderstood("no_job")),
        ("workflow_job", unknown, Receipt::NotUnderstood("unknown_action")),
        ("workflow_job", json!([1, 2]), Receipt::NotUnderstood("unexpected_shape")),
        ("workflow_job", json!({"workflow_job": {"id": "x"}}), Receipt::NotUnderstood("unexpected_shape")),
        ("ping", json!({"zen": CANARY}), Receipt::Ignored("ping")),
        ("push", json!({"ref": CANARY}), Receipt::Ignored("event_not_used")),
        ("installation", json!({}), Receipt::NotUnderstood("no_installation")),
    ];
    for (event, body, receipt) in cases {
        assert_eq!(gate.take_event(event, &body).await, receipt, "{event} {body}");
    }
    assert!(gate.states().await.is_empty());
}

#[tokio::test]
async fn what_is_not_githubs_is_refused() {
    let gate = Gate::open().await;
    let body = serde_json::to_vec(&Job::queued(1).body()).expect("JSON");
    let forged = Delivery {
        guid: Some("72d3162e-cc78-11e3-81ab-4c9367dc0958"),
        event: Some("workflow_job"),
        signature: Some("sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"),
        body: &body,
    };
    assert!(matches!(gate.intake.receive(&forged).await, Err(IntakeError::Signature)));
    let not_json = gate.intake.apply(Uuid::new_v4(), "workflow_job", b"{").await;
    assert!(matches!(not_json, Err(IntakeError::Malformed(_))));
    assert!(gate.states().await.is_empty());
}

#[tokio::test]
async fn nothing_of_a_payload_but_the_metadata_is_kept() {
    let gate = Gate::open().await;
    for job in [Job::queued(1), Job::completed(1, 5, "runner-canary"), Job::queued(2).labels(&["x", CANARY])] {
        gate.take(&job).await;
    }
    let tables: Vec<String> = sqlx::query_scalar("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'")
        .fetch_all(&gate.db.owner)
        .await
        .expect("tables");
    assert!(tables.len() > 10, "the look went through the whole schema");
    for table in tables {
        let dump = format!("SELECT coalesce(string_agg(t::text, ' '), '') FROM {table} t");
        let text: String = sqlx::query_scalar(sqlx::AssertSqlSafe(dump)).fetch_one(&gate.db.owner).await.expect("rows");
        let hex = hex::encode(CANARY);
        assert!(!text.contains(CANARY) && !text.contains(&hex) && !text.contains("acme"), "{table} holds {text}");
    }
}

#[tokio::test]
async fn a_burst_of_the_same_jobs_from_many_gateways_makes_each_row_once() {
    let gate = Arc::new(Gate::open().await);
    let mut tasks = tokio::task::JoinSet::new();
    for round in 0..4 {
        for id in 0..20 {
            let gate = Arc::clone(&gate);
            tasks.spawn(async move {
                let job = if round == 3 { Job::cancelled(id) } else { Job::queued(id) };
                gate.take(&job).await
            });
        }
    }
    tasks.join_all().await;
    let states = gate.states().await;
    assert_eq!(states.len(), 20);
    assert!(states.iter().all(|state| state == "cancelled"), "{states:?}");
}
