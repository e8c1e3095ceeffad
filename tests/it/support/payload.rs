//! Deliveries as GitHub sends them, with the parts that flyci must not keep in them as canaries.

use serde_json::{Value, json};

/// Text that must be found nowhere after a delivery was taken.
pub const CANARY: &str = "canary-7f3a";

/// What a `workflow_job` delivery tells.
#[derive(Clone)]
pub struct Job {
    pub id: u64,
    pub action: &'static str,
    pub status: &'static str,
    pub labels: Vec<&'static str>,
    pub conclusion: Option<&'static str>,
    pub runner: Option<(u64, String)>,
    pub repository: u64,
    pub private: bool,
    pub installation: u64,
    pub owner: u64,
    pub created_at: String,
}

impl Job {
    /// A queued job of the repository 10 of the installation 1.
    pub fn queued(id: u64) -> Self {
        Self {
            id,
            action: "queued",
            status: "queued",
            labels: vec!["flyci-test"],
            conclusion: None,
            runner: None,
            repository: 10,
            private: true,
            installation: 1,
            owner: 100,
            created_at: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        }
    }

    pub fn waiting(id: u64) -> Self {
        Self { action: "waiting", status: "waiting", ..Self::queued(id) }
    }

    pub fn in_progress(id: u64, runner: u64, name: &str) -> Self {
        let runner = Some((runner, name.to_owned()));
        Self { action: "in_progress", status: "in_progress", runner, ..Self::queued(id) }
    }

    pub fn completed(id: u64, runner: u64, name: &str) -> Self {
        let runner = Some((runner, name.to_owned()));
        Self { action: "completed", status: "completed", conclusion: Some("success"), runner, ..Self::queued(id) }
    }

    pub fn cancelled(id: u64) -> Self {
        Self { action: "completed", status: "completed", conclusion: Some("cancelled"), ..Self::queued(id) }
    }

    pub fn labels(mut self, labels: &[&'static str]) -> Self {
        self.labels = labels.to_vec();
        self
    }

    pub fn body(&self) -> Value {
        let (runner_id, runner_name) = match &self.runner {
            Some((id, name)) => (json!(id), json!(name)),
            None => (Value::Null, Value::Null),
        };
        json!({
            "action": self.action,
            "workflow_job": {
                "id": self.id, "run_id": self.id + 1_000_000, "run_attempt": 1, "node_id": CANARY,
                "run_url": CANARY, "head_sha": CANARY, "url": CANARY, "html_url": CANARY, "status": self.status,
                "conclusion": self.conclusion, "created_at": self.created_at, "started_at": self.created_at,
                "completed_at": self.conclusion.map(|_| self.created_at.clone()), "name": CANARY,
                "steps": [{"name": CANARY, "status": "completed", "conclusion": null, "number": 1}],
                "check_run_url": CANARY, "labels": self.labels, "runner_id": runner_id, "runner_name": runner_name,
                "runner_group_id": null, "runner_group_name": null, "workflow_name": CANARY, "head_branch": CANARY,
            },
            "repository": {
                "id": self.repository, "full_name": format!("acme/{CANARY}"), "private": self.private,
                "owner": {"id": self.owner, "login": "acme", "type": "Organization"},
            },
            "sender": {"id": 7, "login": format!("{CANARY}-person"), "type": "User"},
            "installation": {"id": self.installation},
        })
    }
}
