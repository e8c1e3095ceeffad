//! What the internet can reach: GitHub's deliveries, two health words, and whom to tell of a hole.
//!
//! Nothing else, until there is a sign-in. The names of the routes are [`ROUTES`]; a test holds the
//! router to the list.

use super::body::Purse;
use super::failure::{Failure, finish};
use super::readiness::Readiness;
use super::security_txt::SecurityTxt;
use super::throttle::Throttle;
use crate::intake::{Delivery, Intake, IntakeError, Receipt};
use crate::metrics::{DeliveryOutcome, Metrics};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Every public route, with its method.
pub const ROUTES: [(&str, &str); 4] =
    [("POST", "/webhooks/github"), ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/.well-known/security.txt")];

/// A delivery is stored, or refused, by then: GitHub gives up after ten seconds.
const STORE_DEADLINE: Duration = Duration::from_secs(8);

/// What the public routes need.
#[derive(Clone)]
pub struct PublicState {
    /// Takes deliveries in.
    pub intake: Arc<Intake>,
    /// What `/readyz` says.
    pub readiness: Arc<Readiness>,
    /// Counts deliveries.
    pub metrics: Arc<Metrics>,
    /// Bounds the memory of bodies. One for the process.
    pub purse: Arc<Purse>,
    /// Whom to tell of a hole, if the operator says so.
    pub security_txt: Option<Arc<SecurityTxt>>,
}

/// A wrong signature is told so often: it may be a wrong secret, or a stranger who tries.
const SIGNATURE_WARNING_PERIOD: Duration = Duration::from_secs(60);

/// What the public routes share.
struct Shared {
    state: PublicState,
    forged: Throttle,
}

/// The public router.
pub fn router(state: PublicState) -> Router {
    let shared = Arc::new(Shared { state, forged: Throttle::new(SIGNATURE_WARNING_PERIOD) });
    Router::new()
        .route("/webhooks/github", post(webhook))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/.well-known/security.txt", get(security_txt))
        .with_state(shared)
        .layer(from_fn(finish))
}

/// What GitHub shows in the App's delivery log.
#[derive(Serialize)]
struct Accepted {
    status: &'static str,
    reason: Option<&'static str>,
}

impl From<Receipt> for Accepted {
    fn from(receipt: Receipt) -> Self {
        let reason = match receipt {
            Receipt::Applied | Receipt::Repeated => None,
            Receipt::Ignored(reason) | Receipt::NotUnderstood(reason) => Some(reason),
        };
        Self { status: receipt.as_str(), reason }
    }
}

async fn webhook(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Body) -> Result<Response, Failure> {
    let (outcome, answer) = match receive(&shared.state, &headers, body).await {
        Ok(receipt) => {
            tell(receipt, &headers);
            (outcome_of(receipt), Ok((StatusCode::ACCEPTED, Json(Accepted::from(receipt))).into_response()))
        }
        Err((outcome, failure)) => (outcome, Err(failure)),
    };
    if outcome == DeliveryOutcome::BadSignature
        && let Some(count) = shared.forged.count(Instant::now())
    {
        tracing::warn!(
            count,
            "deliveries without our signature were refused: if they are GitHub's, the App's webhook secret is not the configured one"
        );
    }
    shared.state.metrics.delivery(outcome);
    answer
}

async fn receive(state: &PublicState, headers: &HeaderMap, body: Body) -> Result<Receipt, (DeliveryOutcome, Failure)> {
    let paid = state.purse.read(headers, body).await.map_err(|failure| (DeliveryOutcome::Unread, failure))?;
    let delivery = Delivery {
        guid: text(headers, "x-github-delivery"),
        event: text(headers, "x-github-event"),
        signature: text(headers, "x-hub-signature-256"),
        body: &paid.bytes,
    };
    let deadline = tokio::time::timeout(STORE_DEADLINE, state.intake.receive(&delivery));
    match deadline.await {
        Ok(outcome) => outcome.map_err(refusal),
        Err(_) => {
            Err((DeliveryOutcome::Unavailable, Failure::unavailable().detail("the delivery was not stored in time")))
        }
    }
}

/// What an intake's error is to the world.
fn refusal(error: IntakeError) -> (DeliveryOutcome, Failure) {
    let (outcome, failure) = match &error {
        IntakeError::Signature => {
            let refused = Failure::new(StatusCode::UNAUTHORIZED, "the signature is missing or wrong");
            (DeliveryOutcome::BadSignature, refused)
        }
        // Said only to who signed it.
        IntakeError::Malformed(what) => (DeliveryOutcome::Malformed, Failure::bad_request(*what)),
        IntakeError::Store(_) | IntakeError::Secrets(_) | IntakeError::Contended => {
            (DeliveryOutcome::Unavailable, Failure::unavailable())
        }
    };
    (outcome, failure.because(&error))
}

const fn outcome_of(receipt: Receipt) -> DeliveryOutcome {
    match receipt {
        Receipt::Applied => DeliveryOutcome::Applied,
        Receipt::Repeated => DeliveryOutcome::Repeated,
        Receipt::Ignored(_) => DeliveryOutcome::Ignored,
        Receipt::NotUnderstood(_) => DeliveryOutcome::NotUnderstood,
    }
}

/// One line for what was signed and not understood. Headers are told only where they are what they
/// should be: anybody can send anything.
fn tell(receipt: Receipt, headers: &HeaderMap) {
    if let Receipt::NotUnderstood(reason) = receipt {
        let guid = text(headers, "x-github-delivery").and_then(|guid| guid.parse::<uuid::Uuid>().ok());
        tracing::warn!(delivery.id = guid.map(tracing::field::display), reason, "a delivery was not understood");
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

async fn readyz(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    let status = if shared.state.readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{}\n", shared.state.readiness.word()))
}

async fn security_txt(State(shared): State<Arc<Shared>>) -> Result<Response, Failure> {
    let Some(contact) = &shared.state.security_txt else {
        return Err(Failure::new(StatusCode::NOT_FOUND, "there is nothing here"));
    };
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], contact.text().to_owned()).into_response())
}
