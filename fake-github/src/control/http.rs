//! The control verbs over HTTP, for other processes: `POST /_control/do` takes a verb as JSON, `GET /_control/…` answers
//! questions. Every call needs the control token as a bearer, since the jobs inside guests can reach this listener too.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use subtle::ConstantTimeEq as _;

use super::views::{DeliveryView, JobView, RunnerView};
use crate::hub::Hub;
use crate::webhooks::sender::Target;
use crate::world::World;
use crate::world::model::{AccountKind, JobScript, Status, Visibility};

/// Longest wait of one call.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// The routes under `/_control`.
pub fn router(hub: Arc<Hub>) -> Router<Arc<Hub>> {
    Router::new()
        .route("/_control/do", post(act))
        .route("/_control/switches", get(switches).patch(turn))
        .route("/_control/jobs", get(jobs))
        .route("/_control/jobs/{id}", get(job))
        .route("/_control/jobs/{id}/log", get(log))
        .route("/_control/jobs/{id}/wait", get(wait))
        .route("/_control/runners", get(runners))
        .route("/_control/deliveries", get(deliveries))
        .route("/_control/requests", get(requests))
        .route_layer(from_fn_with_state(hub, authorise))
}

async fn authorise(State(hub): State<Arc<Hub>>, request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get(AUTHORIZATION)
        .map(|v| v.as_bytes())
        .unwrap_or_default();
    let wanted = format!("Bearer {}", hub.wiring.control_token);
    if bool::from(given.ct_eq(wanted.as_bytes())) {
        next.run(request).await
    } else {
        failed(
            StatusCode::UNAUTHORIZED,
            "/_control needs the control token as a bearer",
        )
    }
}

fn failed(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "message": message }))).into_response()
}

/// A verb: what somebody does.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Verb {
    /// Answers an installation.
    Install { account: String, kind: AccountKind },
    /// Answers a repository.
    Repository {
        installation: u64,
        name: String,
        visibility: Visibility,
    },
    /// Answers a job handle.
    QueueJob {
        repository: u64,
        labels: Vec<String>,
        script: JobScript,
    },
    /// Cancels a job.
    Cancel { job: u64 },
    /// Puts a job before a gate.
    WaitGate { job: u64 },
    /// Lets it through.
    Approve { job: u64 },
    /// Answers the new job's id.
    Rerun { job: u64 },
    /// Takes a running job back into the queue.
    Requeue { job: u64 },
    /// Suspends an installation.
    Suspend { installation: u64 },
    /// Lifts the suspension.
    Unsuspend { installation: u64 },
    /// Removes the App.
    Uninstall { installation: u64 },
    /// Changes a granted permission; without a level it is taken away.
    Grant {
        installation: u64,
        permission: String,
        level: Option<String>,
    },
    /// Allows or forbids runners on single repositories.
    ForbidRepositoryRunners { installation: u64, forbid: bool },
    /// Answers the group's id.
    RunnerGroup {
        account: u64,
        name: String,
        repositories: BTreeSet<u64>,
    },
    /// Renames an account.
    RenameAccount { installation: u64, login: String },
    /// Renames a repository.
    Rename { repository: u64, name: String },
    /// Makes it public or private.
    SetVisibility {
        repository: u64,
        visibility: Visibility,
    },
    /// Moves it to another account.
    Transfer { repository: u64, installation: u64 },
    /// Deletes it.
    DeleteRepository { repository: u64 },
    /// Takes it out of, or into, the installation.
    Select { repository: u64, selected: bool },
    /// Removes a runner.
    RemoveRunner { runner: u64 },
    /// Sends `ping`.
    Ping,
    /// Sends an event with any payload.
    SendEvent { event: String, payload: Value },
    /// Moves GitHub's clock.
    MoveClock { seconds: i64 },
    /// Uses up an installation's hourly budget.
    Exhaust { installation: u64 },
    /// Sends webhooks elsewhere.
    SetWebhook { url: String, ca_pem: Option<String> },
    /// Sends a delivery again.
    Redeliver { delivery: u64 },
}

async fn act(State(hub): State<Arc<Hub>>, Json(verb): Json<Verb>) -> Response {
    let done = match verb {
        Verb::SetWebhook { url, ca_pem } => match Target::new(&url, ca_pem.as_deref()) {
            Ok(target) => {
                *hub.wiring
                    .target
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = Some(target);
                Some(Value::Null)
            }
            Err(e) => return failed(StatusCode::UNPROCESSABLE_ENTITY, &e.to_string()),
        },
        Verb::Redeliver { delivery } => hub
            .read(|w| w.attempt(delivery).map(|r| r.delivery.clone()))
            .map(|delivery| {
                // Fails only when the sender has stopped with the server.
                hub.wiring
                    .redeliveries
                    .send(crate::webhooks::sender::Redelivery { delivery })
                    .ok();
                Value::Null
            }),
        verb => hub.change(|w| in_world(w, verb)),
    };
    match done {
        Some(answer) => Json(answer).into_response(),
        None => failed(
            StatusCode::CONFLICT,
            "there is no such thing, or its state does not allow this",
        ),
    }
}

fn in_world(w: &mut World, verb: Verb) -> Option<Value> {
    let yes = |done: bool| done.then_some(Value::Null);
    match verb {
        Verb::Install { account, kind } => Some(json!(w.installed(&account, kind))),
        Verb::Repository {
            installation,
            name,
            visibility,
        } => w
            .repository_handle(installation, &name, visibility)
            .map(|r| json!(r)),
        Verb::QueueJob {
            repository,
            labels,
            script,
        } => w.job_handle(repository, labels, script).map(|j| json!(j)),
        Verb::Cancel { job } => yes(w.cancel(job)),
        Verb::WaitGate { job } => yes(w.wait_gate(job)),
        Verb::Approve { job } => yes(w.approve(job)),
        Verb::Rerun { job } => w.rerun(&[job]).map(|ids| json!(ids[0])),
        Verb::Requeue { job } => yes(w.requeue(job)),
        Verb::Suspend { installation } => yes(w.suspend(installation)),
        Verb::Unsuspend { installation } => yes(w.unsuspend(installation)),
        Verb::Uninstall { installation } => yes(w.uninstall(installation)),
        Verb::Grant {
            installation,
            permission,
            level,
        } => yes(w.grant(installation, &permission, level.as_deref())),
        Verb::ForbidRepositoryRunners {
            installation,
            forbid,
        } => yes(w.forbid_repository_runners(installation, forbid)),
        Verb::RunnerGroup {
            account,
            name,
            repositories,
        } => w
            .accounts
            .contains_key(&account)
            .then(|| json!(w.add_group(account, &name, Some(repositories)))),
        Verb::RenameAccount {
            installation,
            login,
        } => yes(w.rename_account(installation, &login)),
        Verb::Rename { repository, name } => yes(w.rename(repository, &name)),
        Verb::SetVisibility {
            repository,
            visibility,
        } => yes(w.set_visibility(repository, visibility)),
        Verb::Transfer {
            repository,
            installation,
        } => yes(w.transfer(repository, installation)),
        Verb::DeleteRepository { repository } => yes(w.delete_repository(repository)),
        Verb::Select {
            repository,
            selected,
        } => yes(w.select(repository, selected)),
        Verb::RemoveRunner { runner } => Some(json!(w.remove_runner(runner))),
        Verb::SendEvent { event, payload } => Some(json!(w.send_event(event, payload))),
        Verb::Ping => Some(json!(w.ping())),
        Verb::MoveClock { seconds } => {
            Some(json!(w.move_clock(chrono::Duration::seconds(seconds))))
        }
        Verb::Exhaust { installation } => Some(json!(w.exhaust(&installation.to_string()))),
        Verb::SetWebhook { .. } | Verb::Redeliver { .. } => {
            unreachable!("done by the caller, outside the world")
        }
    }
}

async fn switches(State(hub): State<Arc<Hub>>) -> Response {
    Json(hub.read(|w| w.switches.clone())).into_response()
}

/// Changes the switches that the body names; objects inside are merged too.
async fn turn(State(hub): State<Arc<Hub>>, Json(patch): Json<Value>) -> Response {
    let turned = hub.change(|w| {
        let mut now = serde_json::to_value(&w.switches)?;
        merge(&mut now, patch);
        w.switches = serde_json::from_value(now)?;
        Ok::<_, serde_json::Error>(w.switches.clone())
    });
    match turned {
        Ok(switches) => Json(switches).into_response(),
        Err(e) => failed(StatusCode::UNPROCESSABLE_ENTITY, &e.to_string()),
    }
}

fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (name, value) in patch {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch,
    }
}

async fn jobs(State(hub): State<Arc<Hub>>) -> Response {
    let jobs: Vec<JobView> =
        hub.read(|w| w.jobs.keys().filter_map(|id| JobView::of(w, *id)).collect());
    Json(jobs).into_response()
}

async fn job(State(hub): State<Arc<Hub>>, Path(id): Path<u64>) -> Response {
    match hub.read(|w| JobView::of(w, id)) {
        Some(job) => Json(job).into_response(),
        None => failed(StatusCode::NOT_FOUND, "no such job"),
    }
}

async fn log(State(hub): State<Arc<Hub>>, Path(id): Path<u64>) -> Response {
    match hub.read(|w| w.jobs.get(&id).map(|j| j.log.clone())) {
        Some(lines) => Json(lines).into_response(),
        None => failed(StatusCode::NOT_FOUND, "no such job"),
    }
}

#[derive(Deserialize)]
struct Wait {
    status: Status,
    within_ms: u64,
}

/// Answers the job when it is where it is awaited; 408 when that took too long.
async fn wait(
    State(hub): State<Arc<Hub>>,
    Path(id): Path<u64>,
    Query(wait): Query<Wait>,
) -> Response {
    let within = Duration::from_millis(wait.within_ms).min(LONGEST_WAIT);
    let what = format!("job {id} {}", wait.status.word());
    match hub
        .wait(&what, within, |w| {
            JobView::of(w, id).filter(|j| j.status == wait.status)
        })
        .await
    {
        Ok(job) => Json(job).into_response(),
        Err(late) => failed(StatusCode::REQUEST_TIMEOUT, &late.to_string()),
    }
}

async fn runners(State(hub): State<Arc<Hub>>) -> Response {
    let runners: Vec<RunnerView> = hub.read(|w| w.runners.values().map(RunnerView::of).collect());
    Json(runners).into_response()
}

async fn deliveries(State(hub): State<Arc<Hub>>) -> Response {
    let deliveries: Vec<DeliveryView> = hub.read(|w| w.log.iter().map(DeliveryView::of).collect());
    Json(deliveries).into_response()
}

async fn requests(State(hub): State<Arc<Hub>>) -> Response {
    Json(hub.read(|w| w.requests.clone())).into_response()
}
