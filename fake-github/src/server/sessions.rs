//! The server's side of the runner protocol ([`crate::protocol`]).

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::time::Instant;

use crate::hub::Hub;
use crate::protocol::{Complete, DEPRECATED, Heartbeat, LogLines, OpenSession, Refusal, Session, StepReport};
use crate::world::World;
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
    headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer ")).unwrap_or_default()
}

fn refusal(status: StatusCode, message: &str) -> Response {
    (status, Json(Refusal { message: message.into() })).into_response()
}

/// The session is not known (any more).
struct Gone;

/// What a runner is told then.
const GONE: &str = "The runner registration has been deleted from the server, please re-configure.";

impl IntoResponse for Gone {
    fn into_response(self) -> Response {
        refusal(StatusCode::NOT_FOUND, GONE)
    }
}

type Answer = Result<Response, Gone>;

fn no_content() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

/// The runner of the session, heard of now.
fn runner(hub: &Hub, headers: &HeaderMap) -> Result<u64, Gone> {
    hub.count(|w| w.heard(bearer(headers))).ok_or(Gone)
}

async fn open(State(hub): State<Arc<Hub>>, headers: HeaderMap, Json(asked): Json<OpenSession>) -> Response {
    const USED: &str = "The JIT configuration was already used; each is good for one runner. Ask for a new one.";
    let opened = hub.change(|w| {
        let heartbeat_ms = (w.switches.silence_ms / HEARTBEATS).max(1);
        let opened = w.open_session(bearer(&headers), &asked.version, &asked.os);
        opened.map(|token| Session { token, heartbeat_ms })
    });
    match opened {
        Ok(session) => (StatusCode::CREATED, Json(session)).into_response(),
        Err(SessionRefusal::Used) => refusal(StatusCode::CONFLICT, USED),
        Err(SessionRefusal::Gone) => Gone.into_response(),
        Err(SessionRefusal::Deprecated) => {
            let message = format!("Runner version v{} {DEPRECATED}", asked.version);
            refusal(StatusCode::FORBIDDEN, &message)
        }
    }
}

async fn close(State(hub): State<Arc<Hub>>, headers: HeaderMap) -> Answer {
    let id = runner(&hub, &headers)?;
    hub.change(|w| w.end_session(id));
    Ok(no_content())
}

async fn message(State(hub): State<Arc<Hub>>, headers: HeaderMap) -> Answer {
    let id = runner(&hub, &headers)?;
    let _poll = Poll { hub: &hub, runner: id };
    let until = Instant::now() + POLL;
    while Instant::now() < until {
        let (wake, job) = hub.change(|w| w.ready(id).map(|wake| (wake, w.fetch(id)))).ok_or(Gone)?;
        if let Some(job) = job {
            return Ok(Json(job).into_response());
        }
        let next = (Instant::now() + ALIVE).min(until);
        // Woken or not, the next turn looks again.
        tokio::time::timeout_at(next, wake.notified()).await.ok();
        runner(&hub, &headers)?;
    }
    Ok(no_content())
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

async fn heartbeat(State(hub): State<Arc<Hub>>, headers: HeaderMap) -> Answer {
    let id = runner(&hub, &headers)?;
    let cancelled = hub.read(|w| {
        let job = w.runners.get(&id).and_then(|r| r.job);
        job.is_some_and(|job| w.jobs[&job].cancel_at.is_some())
    });
    Ok(Json(Heartbeat { cancelled }).into_response())
}

/// Does something to the runner's job, if it has one.
fn with_job(hub: &Hub, headers: &HeaderMap, act: impl FnOnce(&mut World, u64)) -> Answer {
    let id = runner(hub, headers)?;
    let had_job = hub.change(|w| {
        let job = w.runners.get(&id).and_then(|r| r.job);
        job.map(|job| act(w, job)).is_some()
    });
    Ok(done(had_job))
}

fn done(had_job: bool) -> Response {
    match had_job {
        true => no_content(),
        false => refusal(StatusCode::CONFLICT, "The runner has no job."),
    }
}

async fn log(State(hub): State<Arc<Hub>>, headers: HeaderMap, Json(log): Json<LogLines>) -> Answer {
    with_job(&hub, &headers, |w, job| w.append_log(job, log.lines))
}

async fn step(State(hub): State<Arc<Hub>>, headers: HeaderMap, Json(report): Json<StepReport>) -> Answer {
    with_job(&hub, &headers, |w, job| w.report_step(job, &report))
}

async fn complete(State(hub): State<Arc<Hub>>, headers: HeaderMap, Json(complete): Json<Complete>) -> Answer {
    let id = runner(&hub, &headers)?;
    Ok(done(hub.change(|w| w.complete(id, complete))))
}
