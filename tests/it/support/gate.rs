//! An intake to give deliveries to, and to look behind.

use super::database::TestDatabase;
use super::payload::Job;
use flyci::domain::profile::Profile;
use flyci::intake::signature::WebhookSecrets;
use flyci::intake::{Intake, Policy, Receipt};
use flyci::secrets::KeyRing;
use flyci::wake::Wakes;
use serde_json::{Value, json};
use std::sync::Arc;
use uuid::Uuid;

/// An intake on a database of its own.
pub struct Gate {
    pub db: TestDatabase,
    pub intake: Intake,
}

impl Gate {
    pub async fn open() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Policy)) -> Self {
        let db = TestDatabase::new().await;
        let profile: Profile = serde_json::from_value(json!({
            "label": "flyci-test", "cpus": 1, "memory": "128MB", "disk_free": "1GB", "image": "any",
        }))
        .expect("it is a profile");
        let mut policy = Policy {
            profiles: vec![(profile, None)],
            open_admission: true,
            public_repositories: false,
            queue_timeout: chrono::Duration::hours(48),
        };
        change(&mut policy);
        let keys = tempfile::tempdir().expect("a folder for the key");
        let ring = Arc::new(KeyRing::open_or_create(&keys.path().join("master.key")).expect("a new key"));
        let secrets = WebhookSecrets::new("secret".to_owned().into(), None);
        let trail = flyci::upkeep::trail::open(&db.gateway, &ring, "gate").await.expect("the trail has a key");
        let intake = Intake::new(db.gateway.clone(), ring, trail, secrets, policy, Arc::new(Wakes::default()));
        Self { db, intake }
    }

    pub async fn take(&self, job: &Job) -> Receipt {
        self.take_event("workflow_job", &job.body()).await
    }

    pub async fn take_event(&self, event: &str, body: &Value) -> Receipt {
        let body = serde_json::to_vec(body).expect("JSON");
        self.intake.apply(Uuid::new_v4(), event, &body).await.expect("the delivery is taken")
    }

    /// State and conclusion of every job.
    pub async fn jobs(&self) -> Vec<(String, Option<String>)> {
        sqlx::query_as("SELECT state, conclusion FROM jobs ORDER BY received_at")
            .fetch_all(&self.db.owner)
            .await
            .expect("jobs can be read")
    }

    pub async fn states(&self) -> Vec<String> {
        self.jobs().await.into_iter().map(|(state, _)| state).collect()
    }

    pub async fn refusals(&self) -> Vec<(String, Option<String>, Option<String>)> {
        sqlx::query_as("SELECT reason, nearest_profile, label FROM refusals ORDER BY id")
            .fetch_all(&self.db.owner)
            .await
            .expect("refusals can be read")
    }
}
