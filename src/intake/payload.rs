//! The parts of GitHub's payloads that flyci reads, and nothing else: no branch, commit, workflow or
//! step is ever parsed.
//!
//! Our own lenient structs, because payloads have been seen with every optional field missing, null
//! or empty; <https://docs.github.com/webhooks/webhook-events-and-payloads>.

use crate::domain::job::Said;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer};

/// What every event may carry.
#[derive(Deserialize, Debug)]
pub struct Envelope {
    /// What happened.
    #[serde(default)]
    pub action: Option<String>,
    /// The installation that the event is of; absent in a webhook that is not an App's.
    #[serde(default)]
    pub installation: Option<Installation>,
    /// Whose doing it was.
    #[serde(default)]
    pub sender: Option<Account>,
    /// Where.
    #[serde(default)]
    pub repository: Option<Repository>,
    /// The job; has been seen as `null`.
    #[serde(default)]
    pub workflow_job: Option<WorkflowJob>,
    /// Repositories taken from the installation.
    #[serde(default)]
    pub repositories_removed: Vec<RepositoryName>,
}

/// An account: organisation or user.
#[derive(Deserialize, Debug)]
pub struct Account {
    /// GitHub's id.
    pub id: u64,
    /// Its name.
    pub login: String,
    /// `Organization` or `User`.
    #[serde(rename = "type", default)]
    pub kind: Option<String>,
}

/// An installation; most events carry its id alone.
#[derive(Deserialize, Debug)]
pub struct Installation {
    /// GitHub's id.
    pub id: u64,
    /// Who installed the App.
    #[serde(default)]
    pub account: Option<Account>,
}

/// A repository.
#[derive(Deserialize, Debug)]
pub struct Repository {
    /// GitHub's id.
    pub id: u64,
    /// `owner/name`.
    pub full_name: String,
    /// False when everybody can see it. What is not said is taken for public.
    #[serde(default)]
    pub private: bool,
    /// Whose it is.
    pub owner: Account,
}

/// A repository in a list.
#[derive(Deserialize, Debug)]
pub struct RepositoryName {
    /// GitHub's id.
    pub id: u64,
}

/// A job.
#[derive(Deserialize, Debug)]
pub struct WorkflowJob {
    /// GitHub's id.
    pub id: u64,
    /// GitHub's id of the run.
    pub run_id: u64,
    /// Which attempt of the run.
    #[serde(default)]
    pub run_attempt: Option<i32>,
    /// `queued`, `waiting`, `in_progress`, `completed`.
    #[serde(default)]
    pub status: Option<String>,
    /// How it ended.
    #[serde(default)]
    pub conclusion: Option<String>,
    /// What it asks for.
    #[serde(default)]
    pub labels: Vec<String>,
    /// The runner that has it. GitHub has sent 0 for none.
    #[serde(default)]
    pub runner_id: Option<u64>,
    /// That runner's name.
    #[serde(default)]
    pub runner_name: Option<String>,
    /// When the run made it.
    #[serde(default, deserialize_with = "lenient_time")]
    pub created_at: Option<DateTime<Utc>>,
    /// When it was queued, later when its runner began.
    #[serde(default, deserialize_with = "lenient_time")]
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    #[serde(default, deserialize_with = "lenient_time")]
    pub completed_at: Option<DateTime<Utc>>,
}

/// A time, or nothing where GitHub sent an empty text or something else.
fn lenient_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    let value = Option::<serde_json::Value>::deserialize(deserializer)?;
    Ok(value.as_ref().and_then(serde_json::Value::as_str).and_then(|text| text.parse().ok()))
}

impl WorkflowJob {
    /// The runner that has the job, if one has.
    #[must_use]
    pub fn runner(&self) -> Option<u64> {
        self.runner_id.filter(|id| *id > 0)
    }

    /// What the event says of the job; `None` for an action that is not known.
    #[must_use]
    pub fn said(&self, action: &str) -> Option<Said> {
        let waits = self.status.as_deref() == Some("waiting");
        match action {
            // Sent as `queued` while an environment's gate is closed: no demand yet.
            "queued" if waits => Some(Said::Waiting),
            // A runner was found before the delivery was made.
            "queued" if self.runner().is_some() => Some(Said::InProgress),
            "queued" => Some(Said::Queued),
            "waiting" => Some(Said::Waiting),
            "in_progress" => Some(Said::InProgress),
            "completed" if self.runner().is_some() => Some(Said::CompletedByRunner),
            "completed" => Some(Said::CompletedUnserved),
            _ => None,
        }
    }

    /// When its runner began: `started_at` of a job that no runner has is when it was queued.
    #[must_use]
    pub fn began_at(&self, said: Said) -> Option<DateTime<Utc>> {
        match said {
            Said::InProgress | Said::CompletedByRunner => self.started_at,
            Said::Waiting | Said::Queued | Said::CompletedUnserved => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(extra: &str) -> WorkflowJob {
        serde_json::from_str(&format!(r#"{{"id": 1, "run_id": 2{extra}}}"#)).expect("it is a job")
    }

    #[test]
    fn what_github_says_is_decided_on_purpose() {
        let cases = [
            ("queued", "", Some(Said::Queued)),
            ("queued", r#", "status": "waiting", "runner_id": null"#, Some(Said::Waiting)),
            ("queued", r#", "status": "queued", "runner_id": 5"#, Some(Said::InProgress)),
            ("waiting", r#", "status": "waiting""#, Some(Said::Waiting)),
            ("in_progress", r#", "runner_id": 5"#, Some(Said::InProgress)),
            ("completed", r#", "runner_id": 5"#, Some(Said::CompletedByRunner)),
            ("completed", r#", "runner_id": 0, "runner_name": """#, Some(Said::CompletedUnserved)),
            ("completed", r#", "runner_id": null"#, Some(Said::CompletedUnserved)),
            ("requeued", "", None),
        ];
        for (action, extra, said) in cases {
            assert_eq!(job(extra).said(action), said, "{action} {extra}");
        }
    }

    #[test]
    fn a_poor_payload_is_read_all_the_same() {
        let poor = job(r#", "completed_at": "", "created_at": null, "started_at": 7, "conclusion": "new_word""#);
        assert_eq!((poor.completed_at, poor.created_at, poor.started_at), (None, None, None));
        assert_eq!(poor.conclusion.as_deref(), Some("new_word"));
        assert!(serde_json::from_str::<Envelope>(r#"{"workflow_job": null}"#).is_ok_and(|e| e.workflow_job.is_none()));
    }
}
