//! Workflow runs and their jobs.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Answer, accepted, created, ok};
use super::caller::Caller;
use super::paging::Page;
use crate::hub::Hub;
use crate::protocol::Conclusion;
use crate::shapes;
use crate::world::World;
use crate::world::model::{Job, Run, Status};
use crate::world::tokens::Refused;

const READ: (&str, &str) = ("actions", "read");
const WRITE: (&str, &str) = ("actions", "write");

/// What `status` may be: GitHub takes statuses and conclusions.
const STATUSES: [&str; 14] = [
    "completed",
    "action_required",
    "cancelled",
    "failure",
    "neutral",
    "skipped",
    "stale",
    "success",
    "timed_out",
    "in_progress",
    "queued",
    "requested",
    "waiting",
    "pending",
];

/// Parameters of the lists.
#[derive(Deserialize)]
pub struct Listing {
    status: Option<String>,
    filter: Option<String>,
    page: Option<usize>,
    per_page: Option<usize>,
}

/// `GET /repos/{owner}/{repo}/actions/runs`
pub async fn list(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path((owner, name)): Path<(String, String)>,
    Query(listing): Query<Listing>,
) -> Answer {
    let token = caller.installation()?;
    let page = Page::new(listing.page, listing.per_page);
    if listing.status.as_deref().is_some_and(|s| !STATUSES.contains(&s)) {
        return Err(Refused::new(422, "Validation Failed: status is not one that runs have."));
    }
    hub.read(|w| {
        let repository = w.reach(token, &owner, &name, READ)?;
        let fits = |run: &&Run| {
            let (status, conclusion) = shapes::run_state(w, run);
            listing.status.as_deref().is_none_or(|want| want == status.word() || Some(want) == conclusion)
        };
        let runs: Vec<&Run> = w.runs.values().rev().filter(|r| r.repository == repository.id).filter(fits).collect();
        let shown: Vec<Value> = page.cut(runs.iter()).into_iter().map(|r| shapes::run(w, r)).collect();
        let status = listing.status.as_ref().map(|s| format!("?status={s}")).unwrap_or_default();
        let url = format!("{}/repos/{}/actions/runs{status}", w.api_url, w.full_name(repository));
        Ok(page.link(ok(json!({ "total_count": runs.len(), "workflow_runs": shown })), &url, runs.len()))
    })
}

fn run_of(w: &World, repository: u64, id: u64) -> Result<&Run, Refused> {
    w.runs.get(&id).filter(|r| r.repository == repository).ok_or_else(Refused::not_found)
}

fn job_of(w: &World, repository: u64, id: u64) -> Result<&Job, Refused> {
    w.jobs.get(&id).filter(|j| j.repository == repository).ok_or_else(Refused::not_found)
}

/// `GET /repos/{owner}/{repo}/actions/runs/{run_id}`
pub async fn one(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path((owner, name, id)): Path<(String, String, u64)>,
) -> Answer {
    let token = caller.installation()?;
    hub.read(|w| {
        let repository = w.reach(token, &owner, &name, READ)?.id;
        Ok(ok(shapes::run(w, run_of(w, repository, id)?)))
    })
}

/// `GET /repos/{owner}/{repo}/actions/runs/{run_id}/jobs`
pub async fn jobs(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path((owner, name, id)): Path<(String, String, u64)>,
    Query(listing): Query<Listing>,
) -> Answer {
    let token = caller.installation()?;
    let page = Page::new(listing.page, listing.per_page);
    hub.read(|w| {
        let repository = w.reach(token, &owner, &name, READ)?;
        let run = run_of(w, repository.id, id)?;
        let every = listing.filter.as_deref() == Some("all");
        let jobs = run.jobs.iter().filter_map(|id| w.jobs.get(id));
        let jobs: Vec<&Job> = jobs.filter(|j| every || j.attempt == run.attempt).collect();
        let shown: Vec<Value> = page.cut(jobs.iter()).into_iter().map(|j| shapes::job(w, j)).collect();
        let url = format!("{}/repos/{}/actions/runs/{id}/jobs", w.api_url, w.full_name(repository));
        Ok(page.link(ok(json!({ "total_count": jobs.len(), "jobs": shown })), &url, jobs.len()))
    })
}

/// `GET /repos/{owner}/{repo}/actions/jobs/{job_id}`
pub async fn job(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path((owner, name, id)): Path<(String, String, u64)>,
) -> Answer {
    let token = caller.installation()?;
    hub.read(|w| {
        let repository = w.reach(token, &owner, &name, READ)?.id;
        Ok(ok(shapes::job(w, job_of(w, repository, id)?)))
    })
}

/// `POST /repos/{owner}/{repo}/actions/jobs/{job_id}/rerun`
pub async fn rerun_job(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path((owner, name, id)): Path<(String, String, u64)>,
) -> Answer {
    let token = caller.installation()?;
    hub.change(|w| {
        let repository = w.reach(token, &owner, &name, WRITE)?.id;
        job_of(w, repository, id)?;
        match w.rerun(&[id]).is_some() {
            true => Ok(created(json!({}))),
            false => Err(Refused::new(403, "The workflow run containing this job is already running")),
        }
    })
}

/// `POST /repos/{owner}/{repo}/actions/runs/{run_id}/rerun`
pub async fn rerun(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path(path): Path<(String, String, u64)>,
) -> Answer {
    rerun_run(&hub, &caller, &path, |_| true)
}

/// `POST /repos/{owner}/{repo}/actions/runs/{run_id}/rerun-failed-jobs`
pub async fn rerun_failed(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path(path): Path<(String, String, u64)>,
) -> Answer {
    rerun_run(&hub, &caller, &path, |job| matches!(job.conclusion, Some(Conclusion::Failure | Conclusion::Cancelled)))
}

fn rerun_run(hub: &Hub, caller: &Caller, path: &(String, String, u64), pick: impl Fn(&Job) -> bool) -> Answer {
    let token = caller.installation()?;
    let (owner, name, id) = path;
    hub.change(|w| {
        let repository = w.reach(token, owner, name, WRITE)?.id;
        let run = run_of(w, repository, *id)?;
        let latest = shapes::latest_jobs(w, run);
        let jobs: Vec<u64> = latest.filter(|j| pick(j)).map(|j| j.id).collect();
        match w.rerun(&jobs).is_some() {
            true => Ok(created(json!({}))),
            false => Err(Refused::new(403, "This workflow run cannot be retried")),
        }
    })
}

/// `POST /repos/{owner}/{repo}/actions/runs/{run_id}/cancel`
pub async fn cancel(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path((owner, name, id)): Path<(String, String, u64)>,
) -> Answer {
    let token = caller.installation()?;
    hub.change(|w| {
        let repository = w.reach(token, &owner, &name, WRITE)?.id;
        let latest = shapes::latest_jobs(w, run_of(w, repository, id)?);
        let running = latest.filter(|j| j.status != Status::Completed);
        let jobs: Vec<u64> = running.map(|j| j.id).collect();
        if jobs.is_empty() {
            return Err(Refused::new(409, "Cannot cancel a workflow run that is completed."));
        }
        for job in jobs {
            w.cancel(job);
        }
        Ok(accepted())
    })
}
