//! The server's side of the runner protocol ([`crate::protocol`]).

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};

use crate::hub::Hub;
use crate::protocol::{
    Complete, DEPRECATED, Heartbeat, LogLines, OpenSession, Refusal, Session, StepReport,
};
use crate::world::runners::SessionRefusal;

/// How long a poll waits for a job; the client's own timeout is longer.
const POLL: Duration = Duration::from_secs(20);
/// How often an open poll counts as a sign of life.
const ALIVE: Duration = Duration::from_secs(1);
/// Heartbeats that fit into the time after which a runner counts as silent.
const HEARTBEATS: u64 = 5;

/// The routes of the protocol.
pub fn router() -> Router<Arc<Hub>> {
    Router::new()
        .route("/_runner/sessions", post(open).delete(close))
        .route("/_runner/message", get(message))
        .route("/_runner/heartbeat", post(heartbeat))
        .route("/_runner/log", post(log))
        .route("/_runner/steps", post(step))
        .route("/_runner/complete", post(complete))
}

fn bearer(headers: &HeaderMap) -> &str {
    headers
        .get(AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "))
        .unwrap_or_default()
}

fn refusal(status: StatusCode, message: &str) -> Response {
    (
        status,
        Json(Refusal {
            message: message.into(),
        }),
    )
        .into_response()
}

/// The runner of the session, heard of now.
fn runner(hub: &Hub, headers: &HeaderMap) -> Result<u64, Response> {
    let gone = "The runner registration has been deleted from the server, please re-configure.";
    hub.count(|w| w.heard(bearer(headers)))
        .ok_or_else(|| refusal(StatusCode::NOT_FOUND, gone))
}

async fn open(
    State(hub): State<Arc<Hub>>,
    headers: HeaderMap,
    Json(asked): Json<OpenSession>,
) -> Response {
    let opened = hub.change(|w| {
        let heartbeat_ms = (w.switches.silence_ms / HEARTBEATS).max(1);
        w.open_session(bearer(&headers), &asked.version, &asked.os)
            .map(|token| Session {
                token,
                heartbeat_ms,
            })
    });
    match opened {
        Ok(session) => (StatusCode::CREATED, Json(session)).into_response(),
        Err(SessionRefusal::Used) => refusal(
            StatusCode::CONFLICT,
            "The JIT configuration was already used; each is good for one runner. Ask for a new one.",
        ),
        Err(SessionRefusal::Gone) => refusal(
            StatusCode::NOT_FOUND,
            "The runner registration has been deleted from the server, please re-configure.",
        ),
        Err(SessionRefusal::Deprecated) => refusal(
            StatusCode::FORBIDDEN,
            &format!("Runner version v{} {DEPRECATED}", asked.version),
        ),
    }
}

async fn close(State(hub): State<Arc<Hub>>, headers: HeaderMap) -> Response {
    match runner(&hub, &headers) {
        Ok(id) => {
            hub.change(|w| w.end_session(id));
            StatusCode::NO_CONTENT.into_response()
        }
        Err(gone) => gone,
    }
}

async fn message(State(hub): State<Arc<Hub>>, headers: HeaderMap) -> Response {
    let id = match runner(&hub, &headers) {
        Ok(id) => id,
        Err(gone) => return gone,
    };
    let _poll = Poll {
        hub: &hub,
        runner: id,
    };
    let until = tokio::time::Instant::now() + POLL;
    while tokio::time::Instant::now() < until {
        let turn = hub.change(|w| w.ready(id).map(|wake| (wake, w.fetch(id))));
        match turn {
            None => break,
            Some((_, Some(job))) => return Json(job).into_response(),
            Some((wake, None)) => {
                let next = (tokio::time::Instant::now() + ALIVE).min(until);
                // Woken or not, the next turn looks again.
                tokio::time::timeout_at(next, wake.notified()).await.ok();
                if let Err(gone) = runner(&hub, &headers) {
                    return gone;
                }
            }
        }
    }
    StatusCode::NO_CONTENT.into_response()
}

/// A poll under way; its end, also by a lost connection, makes the runner unready.
struct Poll<'a> {
    hub: &'a Hub,
    runner: u64,
}

impl Drop for Poll<'_> {
    fn drop(&mut self) {
        self.hub.change(|w| w.unready(self.runner));
    }
}

async fn heartbeat(State(hub): State<Arc<Hub>>, headers: HeaderMap) -> Response {
    match runner(&hub, &headers) {
        Ok(id) => {
            let cancelled = hub.read(|w| {
                let job = w.runners.get(&id).and_then(|r| r.job);
                job.is_some_and(|job| w.jobs[&job].cancel_at.is_some())
            });
            Json(Heartbeat { cancelled }).into_response()
        }
        Err(gone) => gone,
    }
}

/// Does something to the runner's job, if it has one.
fn with_job(
    hub: &Hub,
    headers: &HeaderMap,
    act: impl FnOnce(&mut crate::world::World, u64),
) -> Response {
    let id = match runner(hub, headers) {
        Ok(id) => id,
        Err(gone) => return gone,
    };
    hub.change(|w| match w.runners.get(&id).and_then(|r| r.job) {
        Some(job) => {
            act(w, job);
            StatusCode::NO_CONTENT.into_response()
        }
        None => refusal(StatusCode::CONFLICT, "The runner has no job."),
    })
}

async fn log(
    State(hub): State<Arc<Hub>>,
    headers: HeaderMap,
    Json(lines): Json<LogLines>,
) -> Response {
    with_job(&hub, &headers, |w, job| w.append_log(job, lines.lines))
}

async fn step(
    State(hub): State<Arc<Hub>>,
    headers: HeaderMap,
    Json(report): Json<StepReport>,
) -> Response {
    with_job(&hub, &headers, |w, job| w.report_step(job, &report))
}

async fn complete(
    State(hub): State<Arc<Hub>>,
    headers: HeaderMap,
    Json(complete): Json<Complete>,
) -> Response {
    let id = match runner(&hub, &headers) {
        Ok(id) => id,
        Err(gone) => return gone,
    };
    match hub.change(|w| w.complete(id, complete)) {
        true => StatusCode::NO_CONTENT.into_response(),
        false => refusal(StatusCode::CONFLICT, "The runner has no job."),
    }
}
