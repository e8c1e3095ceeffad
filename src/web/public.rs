//! What the internet can reach: GitHub's deliveries, two health words, and whom to tell of a hole.
//!
//! Nothing else, until there is a sign-in. The names of the routes are [`ROUTES`]; a test holds the
//! router to the list.

use super::body::{Purse, Sender, too_often};
use super::connections::Peer;
use super::failure::{Failure, finish};
use super::readiness::Readiness;
use super::security_txt::SecurityTxt;
use super::sources::{Source, Sources, WINDOW};
use super::throttle::Throttle;
use crate::intake::signature::is_well_formed;
use crate::intake::{Delivery, Intake, IntakeError, Receipt};
use crate::metrics::{DeliveryOutcome, Metrics};
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
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

/// GitHub's header of the signature.
const SIGNATURE: &str = "x-hub-signature-256";
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
    /// What is known of who sends.
    pub sources: Arc<Sources>,
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

async fn webhook(
    State(shared): State<Arc<Shared>>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let source = match peer {
        Some(Extension(Peer::Source(source))) => Some(source),
        Some(Extension(Peer::Network | Peer::User(_))) | None => None,
    };
    let (outcome, answer) = match receive(&shared.state, source, &headers, body).await {
        Ok(receipt) => {
            tell(receipt, &headers);
            let answer = (StatusCode::ACCEPTED, Json(Accepted::from(receipt))).into_response();
            (outcome_of(receipt), answer)
        }
        Err((outcome, failure)) => (outcome, refuse(outcome, failure)),
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

/// A stranger's connection is closed with the answer: each further try costs it a handshake.
fn refuse(outcome: DeliveryOutcome, failure: Failure) -> Response {
    let mut answer = failure.into_response();
    if matches!(outcome, DeliveryOutcome::BadSignature | DeliveryOutcome::Limited | DeliveryOutcome::NotAllowed) {
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if outcome == DeliveryOutcome::Limited {
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(WINDOW.as_secs()));
    }
    answer
}

type Refused = (DeliveryOutcome, Failure);

async fn receive(
    state: &PublicState,
    source: Option<Source>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Receipt, Refused> {
    let sender = admit(state, source, headers)?;
    let unread = if sender == Sender::Suspect { DeliveryOutcome::Limited } else { DeliveryOutcome::Unread };
    let paid = state.purse.read(sender, headers, body).await.map_err(|failure| (unread, failure))?;
    let delivery = Delivery {
        guid: text(headers, "x-github-delivery"),
        event: text(headers, "x-github-event"),
        signature: text(headers, SIGNATURE),
        body: &paid.bytes,
    };
    let answer = match tokio::time::timeout(STORE_DEADLINE, state.intake.receive(&delivery)).await {
        Ok(outcome) => outcome.map_err(refusal),
        Err(_) => {
            Err((DeliveryOutcome::Unavailable, Failure::unavailable().detail("the delivery was not stored in time")))
        }
    };
    let is_forged = matches!(answer, Err((DeliveryOutcome::BadSignature, _)));
    match source {
        Some(source) if is_forged => state.sources.failed(source, Instant::now()),
        Some(source) => state.sources.proved(source, Instant::now()),
        None => {}
    }
    if is_forged && sender == Sender::Suspect { Err(limited()) } else { answer }
}

/// What can be said before the body is read: whether this may be a delivery, and how far its sender is trusted.
fn admit(state: &PublicState, source: Option<Source>, headers: &HeaderMap) -> Result<Sender, Refused> {
    let now = Instant::now();
    if source.is_some_and(|source| !state.sources.may_deliver(source, now)) {
        let refused = Failure::new(StatusCode::FORBIDDEN, "deliveries are taken from GitHub's own addresses alone");
        return Err((DeliveryOutcome::NotAllowed, refused));
    }
    let suspect = source.filter(|source| state.sources.is_suspect(*source, now));
    if !is_well_formed(text(headers, SIGNATURE)) {
        if let Some(source) = source {
            state.sources.failed(source, now);
        }
        return Err(if suspect.is_some() { limited() } else { refusal(IntakeError::Signature) });
    }
    Ok(if suspect.is_some() { Sender::Suspect } else { Sender::Anyone })
}

const fn limited() -> Refused {
    (DeliveryOutcome::Limited, too_often())
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
