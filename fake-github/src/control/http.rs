//! The control verbs over HTTP, for other processes: `POST /_control/do` takes a verb as JSON, `GET /_control/…` answers
//! questions. Every call needs the control token as a bearer, since the jobs inside guests can reach this listener too.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use subtle::ConstantTimeEq as _;

use super::verb::Verb;
use super::views::{DeliveryView, JobView, RunnerView};
use crate::hub::Hub;
use crate::webhooks::sender::{Redelivery, Target};
use crate::world::model::Status;

/// Longest wait of one call.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// Why a verb was not done.
const NOT_DONE: &str = "there is no such thing, or its state does not allow this";

/// The routes under `/_control`.
pub fn router(hub: Arc<Hub>) -> Router<Arc<Hub>> {
    Router::new()
        .route("/_control/do", post(act))
        .route("/_control/webhook", put(webhook))
        .route("/_control/deliveries/{id}/redeliver", post(redeliver))
        .route("/_control/switches", get(switches).patch(turn))
        .route("/_control/jobs", get(jobs))
        .route("/_control/jobs/{id}", get(job))
        .route("/_control/jobs/{id}/log", get(log))
        .route("/_control/jobs/{id}/wait", get(wait))
        .route("/_control/settled", get(settled))
        .route("/_control/runners", get(runners))
        .route("/_control/deliveries", get(deliveries))
        .route("/_control/requests", get(requests))
        .route_layer(from_fn_with_state(hub, authorise))
}

async fn authorise(State(hub): State<Arc<Hub>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(AUTHORIZATION).map(|v| v.as_bytes()).unwrap_or_default();
    let wanted = format!("Bearer {}", hub.wiring.control_token);
    if bool::from(given.ct_eq(wanted.as_bytes())) {
        next.run(request).await
    } else {
        failed(StatusCode::UNAUTHORIZED, "/_control needs the control token as a bearer")
    }
}

fn failed(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "message": message }))).into_response()
}

async fn act(State(hub): State<Arc<Hub>>, Json(verb): Json<Verb>) -> Response {
    match hub.change(|w| verb.act(w)) {
        Some(answer) => Json(answer).into_response(),
        None => failed(StatusCode::CONFLICT, NOT_DONE),
    }
}

#[derive(Deserialize)]
struct Webhook {
    url: String,
    ca_pem: Option<String>,
}

/// Sends webhooks elsewhere.
async fn webhook(State(hub): State<Arc<Hub>>, Json(to): Json<Webhook>) -> Response {
    match Target::new(&to.url, to.ca_pem.as_deref()) {
        Ok(target) => {
            *hub.wiring.target.lock().unwrap_or_else(PoisonError::into_inner) = Some(target);
            StatusCode::NO_CONTENT.into_response()
        }
        Err(e) => failed(StatusCode::UNPROCESSABLE_ENTITY, &e.to_string()),
    }
}

/// Sends a delivery again.
async fn redeliver(State(hub): State<Arc<Hub>>, Path(id): Path<u64>) -> Response {
    let found = hub.read(|w| w.attempt(id).map(|r| r.delivery.clone()));
    let Some(delivery) = found else {
        return failed(StatusCode::NOT_FOUND, NOT_DONE);
    };
    // Fails only when the sender has stopped with the server.
    hub.wiring.redeliveries.send(Redelivery { delivery }).ok();
    StatusCode::NO_CONTENT.into_response()
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
    let jobs: Vec<JobView> = hub.read(|w| w.jobs.keys().filter_map(|id| JobView::of(w, *id)).collect());
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
async fn wait(State(hub): State<Arc<Hub>>, Path(id): Path<u64>, Query(wait): Query<Wait>) -> Response {
    let within = Duration::from_millis(wait.within_ms).min(LONGEST_WAIT);
    let what = format!("job {id} {}", wait.status.word());
    match hub.wait(&what, within, |w| JobView::of(w, id).filter(|j| j.status == wait.status)).await {
        Ok(job) => Json(job).into_response(),
        Err(late) => failed(StatusCode::REQUEST_TIMEOUT, &late.to_string()),
    }
}

#[derive(Deserialize)]
struct Within {
    within_ms: u64,
}

/// Answers when every event was sent or dropped: how many attempts of the log failed.
async fn settled(State(hub): State<Arc<Hub>>, Query(wait): Query<Within>) -> Response {
    let within = Duration::from_millis(wait.within_ms).min(LONGEST_WAIT);
    match hub.settled(within).await {
        Ok(failed) => Json(json!({ "failed": failed })).into_response(),
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
