//! Jobs that GitHub tells of when it is asked, and that no delivery told us of.

use super::accounts::Known;
use super::jobs::{About, DECISION_TRIES, PREFIX, advance, named_runner};
use super::payload::WorkflowJob;
use super::{Intake, IntakeError, Receipt};
use crate::domain::ids::RepositoryId;
use crate::domain::job::{JobState, Source};
use crate::domain::labels::LabelSet;
use crate::domain::reason::JobEnd;
use crate::github::JobInfo;
use crate::place::Place;
use crate::points::effect;
use crate::secrets::Column;
use crate::store::jobs;
use std::sync::Arc;

impl Intake {
    /// True when a job with these labels is served, or was meant to be.
    #[must_use]
    pub fn concerns(&self, labels: &LabelSet) -> bool {
        labels.iter().any(|label| label.starts_with(PREFIX))
            || self.policy.profiles.iter().any(|(profile, guest)| profile.serves(labels, *guest))
    }

    /// Takes an open job in that GitHub listed, as its delivery would have been. Who started it is not known.
    /// [`Receipt::Repeated`]: we know it.
    ///
    /// # Errors
    /// When it cannot be stored now.
    pub async fn found(&self, place: &Place, repository: RepositoryId, info: &JobInfo) -> Result<Receipt, IntakeError> {
        let job = told(info);
        let Some(said) = job.said(&info.status) else { return Ok(Receipt::NotUnderstood("unknown_status")) };
        let known = Known { tenant: place.tenant.clone(), keys: Arc::clone(&place.keys) };
        for _ in 0..DECISION_TRIES {
            let mut tx = self.pool.begin().await?;
            let about = About {
                known: &known,
                repository,
                public: place.is_public,
                initiator: None,
                job: &job,
                lookup: known.keys.lookup_id(Column::JobGithubId, info.id),
                said,
                runner: named_runner(&mut tx, &known, repository, &job).await?,
            };
            let effect = match jobs::find_for_update(&mut tx, known.tenant.id, about.lookup).await? {
                Some(row) if is_contradicted(row.state) => Some(advance(&mut tx, &about, row, Source::Api).await?),
                // The list may be older than the row: what is open is asked about by itself.
                Some(_) => return Ok(Receipt::Repeated),
                None => self.first(&mut tx, &about).await?,
            };
            let Some(effect) = effect else { continue };
            effect!("intake.found", tx.commit().await)?;
            self.after(&effect).await?;
            return Ok(effect.receipt);
        }
        Err(IntakeError::Store(sqlx::Error::PoolTimedOut.into()))
    }
}

/// An end of ours that GitHub contradicts by having the job in its list.
const fn is_contradicted(state: JobState) -> bool {
    matches!(state, JobState::Unserved(JobEnd::RepositoryGone | JobEnd::UnknownToGithub | JobEnd::RunOver))
}

fn told(info: &JobInfo) -> WorkflowJob {
    WorkflowJob {
        id: info.id,
        run_id: info.run_id,
        run_attempt: info.run_attempt.and_then(|attempt| i32::try_from(attempt).ok()),
        status: Some(info.status.clone()),
        conclusion: info.conclusion.clone(),
        labels: info.labels.iter().map(str::to_owned).collect(),
        runner_id: info.runner_id,
        runner_name: info.runner_name.as_ref().map(|name| name.as_str().to_owned()),
        created_at: info.created_at,
        started_at: info.started_at,
        completed_at: info.completed_at,
    }
}
