//! Runs and jobs: what is queued, what became of one, ask for one again.
//! <https://docs.github.com/en/rest/actions/workflow-jobs>
//!
//! Only what flyci stores is read: no step, workflow, branch or job names.

use super::auth::TokenKey;
use super::error::{Call, GitHubError, Result};
use super::exchange::Idempotent;
use super::lenient::{self, Name};
use super::permission::PermissionSet;
use super::request::{RepositoryRef, Request};
use super::{GitHub, InstallationId};
use crate::domain::labels::LabelSet;
use chrono::{DateTime, Utc};
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde::Deserialize;

/// Runs or jobs per page: GitHub's most.
const PAGE: usize = 100;
/// Pages of runs in one state that a scan reads at most.
const MAX_RUN_PAGES: usize = 3;
/// Pages of jobs of one run that a scan reads at most; a matrix has up to 256 jobs.
const MAX_JOB_PAGES: usize = 5;
/// Runs whose jobs are read at once.
const RUNS_AT_ONCE: usize = 4;

/// A job, as far as flyci looks at it.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct JobInfo {
    /// GitHub's id of the job: of one attempt.
    pub id: u64,
    /// GitHub's id of its run.
    pub run_id: u64,
    /// Which attempt of the run, from 1; GitHub may leave it out.
    #[serde(default)]
    pub run_attempt: Option<u32>,
    /// `queued`, `in_progress`, `completed`, `waiting`, …: an open list.
    #[serde(default)]
    pub status: String,
    /// `success`, `failure`, `cancelled`, …: an open list.
    #[serde(default, deserialize_with = "lenient::word")]
    pub conclusion: Option<String>,
    /// What it asks for in `runs-on`.
    #[serde(default, deserialize_with = "lenient::labels")]
    pub labels: LabelSet,
    /// The runner that has or had it.
    #[serde(default, deserialize_with = "lenient::id")]
    pub runner_id: Option<u64>,
    /// That runner's name.
    #[serde(default, deserialize_with = "lenient::name")]
    pub runner_name: Option<Name>,
    /// When it came to be (GitHub's clock).
    #[serde(default, deserialize_with = "lenient::time")]
    pub created_at: Option<DateTime<Utc>>,
    /// When a runner took it; for a queued one GitHub repeats `created_at`.
    #[serde(default, deserialize_with = "lenient::time")]
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    #[serde(default, deserialize_with = "lenient::time")]
    pub completed_at: Option<DateTime<Utc>>,
}

/// A run's state.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct RunInfo {
    /// GitHub's id.
    pub id: u64,
    /// Which attempt is the newest, from 1.
    #[serde(default)]
    pub run_attempt: Option<u32>,
    /// `queued`, `in_progress`, `completed`, …: an open list.
    #[serde(default, deserialize_with = "lenient::word")]
    pub status: Option<String>,
    /// `success`, `failure`, `startup_failure`, …: an open list.
    #[serde(default, deserialize_with = "lenient::word")]
    pub conclusion: Option<String>,
}

/// What a scan for open jobs found.
#[derive(Clone, Debug)]
pub struct OpenJobs {
    /// Jobs that are not completed, of runs that are queued or under way; of the latter alone when
    /// the scan is `unchanged`.
    pub jobs: Vec<JobInfo>,
    /// For the next scan. Keep it only once the jobs are stored.
    pub etag: Option<String>,
    /// The list of queued runs is still the one of the given `etag`.
    pub unchanged: bool,
    /// False when there was more than one scan reads.
    pub complete: bool,
    /// Requests that count against the hourly budget.
    pub requests: u32,
}

#[derive(Deserialize)]
struct WireRuns {
    workflow_runs: Vec<RunInfo>,
}

#[derive(Deserialize)]
struct WireJobs {
    jobs: Vec<JobInfo>,
}

struct Place<'a> {
    owner: &'a str,
    name: &'a str,
    key: TokenKey,
}

impl<'a> Place<'a> {
    fn new(installation: InstallationId, repository: RepositoryRef<'a>, permissions: PermissionSet) -> Result<Self> {
        let (owner, name) = repository.split(Call::new("GET", "/repos/{owner}/{repo}/actions"))?;
        let key = TokenKey { installation: installation.0, repository: Some(repository.id), permissions };
        Ok(Self { owner, name, key })
    }
}

impl GitHub {
    /// What GitHub knows of a job; `None`: nothing (any more).
    ///
    /// # Errors
    /// When GitHub could not be asked.
    pub async fn job(
        &self,
        installation: InstallationId,
        repository: RepositoryRef<'_>,
        job: u64,
    ) -> Result<Option<JobInfo>> {
        let at = Place::new(installation, repository, PermissionSet::ReadActions)?;
        let request =
            Request::get("/repos/{owner}/{repo}/actions/jobs/{job_id}", &[at.owner, at.name, &job.to_string()]);
        self.find(&at, &request).await
    }

    /// What GitHub knows of a run; `None`: nothing (any more).
    ///
    /// # Errors
    /// When GitHub could not be asked.
    pub async fn run(
        &self,
        installation: InstallationId,
        repository: RepositoryRef<'_>,
        run: u64,
    ) -> Result<Option<RunInfo>> {
        let at = Place::new(installation, repository, PermissionSet::ReadActions)?;
        let request =
            Request::get("/repos/{owner}/{repo}/actions/runs/{run_id}", &[at.owner, at.name, &run.to_string()]);
        self.find(&at, &request).await
    }

    /// Asks for one completed job of a run again, and for what depends on it, as a new attempt. Sent once.
    ///
    /// # Errors
    /// [`GitHubError::Forbidden`]: the run is under way, or too old, or the App may not.
    pub async fn rerun_job(&self, installation: InstallationId, repository: RepositoryRef<'_>, job: u64) -> Result<()> {
        let at = Place::new(installation, repository, PermissionSet::RerunActions)?;
        let template = "/repos/{owner}/{repo}/actions/jobs/{job_id}/rerun";
        let request = Request::post(template, &[at.owner, at.name, &job.to_string()]);
        self.as_installation(at.key, &request, Idempotent::No).await.map(drop)
    }

    /// The open jobs of a repository: those of queued runs, and those of runs under way, whose later
    /// jobs are queued while the run's own state is `in_progress`.
    ///
    /// # Errors
    /// When GitHub could not be asked.
    pub async fn open_jobs(
        &self,
        installation: InstallationId,
        repository: RepositoryRef<'_>,
        etag: Option<&str>,
    ) -> Result<OpenJobs> {
        let at = Place::new(installation, repository, PermissionSet::ReadActions)?;
        let queued = self.runs(&at, "queued", etag).await?;
        let under_way = self.runs(&at, "in_progress", None).await?;
        let runs: Vec<u64> = queued.runs.iter().chain(&under_way.runs).copied().collect();
        let at = &at;
        let found: Vec<FoundJobs> = futures_util::stream::iter(runs)
            .map(|run| async move { self.jobs_of_run(at, run).await })
            .buffer_unordered(RUNS_AT_ONCE)
            .try_collect()
            .await?;
        let complete = queued.complete && under_way.complete && found.iter().all(|found| found.complete);
        let requests = queued.requests + under_way.requests + found.iter().map(|found| found.requests).sum::<u32>();
        let jobs = found.into_iter().flat_map(|found| found.jobs).filter(|job| job.status != "completed").collect();
        Ok(OpenJobs { jobs, etag: queued.etag, unchanged: queued.unchanged, complete, requests })
    }

    async fn find<T: serde::de::DeserializeOwned>(&self, at: &Place<'_>, request: &Request) -> Result<Option<T>> {
        match self.as_installation(at.key, request, Idempotent::Yes).await {
            Ok(answer) => answer.json().map(Some),
            Err(GitHubError::NotFound { call }) if call.route == request.template => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn runs(&self, at: &Place<'_>, status: &str, etag: Option<&str>) -> Result<FoundRuns> {
        let etag_given = etag.map(str::to_owned);
        let mut found =
            FoundRuns { runs: Vec::new(), etag: etag_given, unchanged: false, complete: false, requests: 0 };
        for page in 1..=MAX_RUN_PAGES {
            let request = Request::get("/repos/{owner}/{repo}/actions/runs", &[at.owner, at.name])
                .query("status", status)
                .query("per_page", PAGE)
                .query("page", page)
                .etag(etag.filter(|_| page == 1));
            let answer = self.as_installation(at.key, &request, Idempotent::Yes).await?;
            if answer.status == 304 {
                (found.complete, found.unchanged) = (true, true);
                return Ok(found);
            }
            found.requests += 1;
            if page == 1 {
                found.etag = answer.header("etag").map(str::to_owned);
            }
            let runs = answer.json::<WireRuns>()?.workflow_runs;
            found.runs.extend(runs.iter().map(|run| run.id));
            if runs.len() < PAGE {
                found.complete = true;
                break;
            }
        }
        if !found.complete {
            // The first page says nothing of what was not read.
            found.etag = None;
        }
        Ok(found)
    }

    async fn jobs_of_run(&self, at: &Place<'_>, run: u64) -> Result<FoundJobs> {
        let mut found = FoundJobs { jobs: Vec::new(), complete: false, requests: 0 };
        for page in 1..=MAX_JOB_PAGES {
            let template = "/repos/{owner}/{repo}/actions/runs/{run_id}/jobs";
            let request = Request::get(template, &[at.owner, at.name, &run.to_string()])
                .query("filter", "latest")
                .query("per_page", PAGE)
                .query("page", page);
            found.requests += 1;
            let jobs = match self.as_installation(at.key, &request, Idempotent::Yes).await {
                Ok(answer) => answer.json::<WireJobs>()?.jobs,
                // Deleted since it was listed.
                Err(GitHubError::NotFound { call }) if call.route == template => Vec::new(),
                Err(error) => return Err(error),
            };
            found.complete = jobs.len() < PAGE;
            found.jobs.extend(jobs);
            if found.complete {
                break;
            }
        }
        Ok(found)
    }
}

struct FoundRuns {
    runs: Vec<u64>,
    etag: Option<String>,
    unchanged: bool,
    complete: bool,
    requests: u32,
}

struct FoundJobs {
    jobs: Vec<JobInfo>,
    complete: bool,
    requests: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_read_whatever_is_missing_in_it() {
        let least: JobInfo = serde_json::from_str(r#"{"id": 1, "run_id": 2}"#).expect("a job");
        assert_eq!((least.id, least.run_attempt, least.runner_id), (1, None, None));
        let odd = r#"{"id": 5000000000, "run_id": 2, "run_attempt": 3, "status": "queued", "conclusion": null,
            "labels": ["macOS", "self-hosted"], "runner_id": 0, "runner_name": "", "created_at": "",
            "started_at": null, "completed_at": "2026-01-02T03:04:05Z", "steps": [], "head_branch": null}"#;
        let odd: JobInfo = serde_json::from_str(odd).expect("a job");
        assert_eq!((odd.runner_id, odd.runner_name, odd.created_at, odd.conclusion), (None, None, None, None));
        assert!(odd.completed_at.is_some());
        assert!(odd.labels.contains("macos"));
    }
}
