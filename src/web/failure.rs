//! How a request fails: `application/problem+json` with a request id, and one log line with the rest.
//!
//! A handler answers with a [`Failure`]; [`finish`], the outermost layer of every router, gives it its
//! body. What the world reads are fixed sentences. The cause goes to the log alone, through
//! [`crate::errors::chain`], with the route's template in place of its path.

use super::headers::harden;
use crate::api::{PROBLEM_JSON, Problem};
use crate::errors::chain;
use crate::secrets::SecretsError;
use crate::store::StoreError;
use axum::Json;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use std::error::Error;
use std::panic::AssertUnwindSafe;
use std::time::Duration;
use uuid::Uuid;

/// Carries the id that answer and log line share. Always ours, never the client's.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// When to try again what failed because something is away for now.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// What a failure's answer keeps of the headers that were chosen for it.
const KEPT: [HeaderName; 3] = [header::ALLOW, header::CONNECTION, header::RETRY_AFTER];

/// Why a request is not answered as asked.
#[derive(Clone, Debug)]
pub struct Failure {
    status: StatusCode,
    title: &'static str,
    detail: Option<String>,
    /// For the log alone.
    cause: Option<String>,
}

impl Failure {
    /// A failure with its fixed sentence.
    #[must_use]
    pub const fn new(status: StatusCode, title: &'static str) -> Self {
        Self { status, title, detail: None, cause: None }
    }

    /// The client's mistake.
    #[must_use]
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "the request is malformed").detail(detail)
    }

    /// There is no such thing.
    #[must_use]
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "there is no such thing").detail(detail)
    }

    /// What is asked does not go with how things are.
    #[must_use]
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "it cannot be done as things are").detail(detail)
    }

    /// Something we need is away for now.
    #[must_use]
    pub const fn unavailable() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "not available now: try again later")
    }

    /// Says more, to the client too.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Keeps the cause for the log.
    #[must_use]
    pub fn because(mut self, cause: &(dyn Error + 'static)) -> Self {
        self.cause = Some(chain(cause).to_string());
        self
    }

    fn respond(self, request_id: Uuid) -> Response {
        let problem = Problem {
            kind: "about:blank".to_owned(),
            title: self.title.to_owned(),
            status: self.status.as_u16(),
            detail: self.detail,
            request_id: request_id.to_string(),
        };
        let mut response = (self.status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER.as_secs()));
        }
        response
    }

    fn log(&self, request_id: Uuid, method: &str, route: &str) {
        let (status, cause) = (self.status.as_u16(), self.cause.as_deref().unwrap_or(self.title));
        if self.status.is_server_error() {
            tracing::error!(request.id = %request_id, method, route, status, "request failed: {cause}");
        } else {
            // Strangers can cause as many of these as they like.
            tracing::debug!(request.id = %request_id, method, route, status, "request refused: {cause}");
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let failure = if error.is_transient() { Self::unavailable() } else { internal() };
        failure.because(&error)
    }
}

impl From<SecretsError> for Failure {
    fn from(error: SecretsError) -> Self {
        internal().because(&error)
    }
}

const fn internal() -> Failure {
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "flyci failed: its log has a line with this request id")
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// The outermost layer: gives each request an id, each failure its body and its log line, and
/// answers a panic with 500.
pub async fn finish(request: Request, next: Next) -> Response {
    let request_id = Uuid::new_v4();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        // The panic's own words are in the log already, by the panic hook.
        Err(_) => internal().into_response(),
    };
    let told = response.extensions_mut().remove::<Failure>();
    if let Some(failure) = told.or_else(|| unexplained(response.status())) {
        let kept = KEPT.map(|name| (response.headers_mut().remove(&name), name));
        failure.log(request_id, method.as_str(), route.as_ref().map_or("-", MatchedPath::as_str));
        response = failure.respond(request_id);
        for (value, name) in kept {
            if let Some(value) = value {
                response.headers_mut().insert(name, value);
            }
        }
    }
    let id = HeaderValue::from_str(&request_id.to_string()).expect("a UUID is a header value");
    response.headers_mut().insert(REQUEST_ID, id);
    harden(&mut response);
    response
}

/// A failure that the framework made: no such route, a wrong method. It makes no other than the
/// client's; what a handler says by itself (`/readyz`: 503 and its word) is said as it is.
fn unexplained(status: StatusCode) -> Option<Failure> {
    status.is_client_error().then(|| match status {
        StatusCode::NOT_FOUND => Failure::new(status, "there is nothing here"),
        StatusCode::METHOD_NOT_ALLOWED => Failure::new(status, "this method does not work here"),
        _ => Failure::new(status, status.canonical_reason().unwrap_or("the request failed")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::body::{Body, to_bytes};
    use axum::routing::get;
    use tower::ServiceExt;

    const LIMIT: usize = 4096;

    async fn problem(path: &'static str) -> (StatusCode, Problem, bool) {
        let router = Router::new()
            .route("/panics", get(async || -> StatusCode { panic!("a canary") }))
            .route("/broken", get(async || Failure::from(StoreError::from(sqlx::Error::Protocol("a canary".into())))))
            .route("/away", get(async || Failure::from(StoreError::from(sqlx::Error::PoolTimedOut))))
            .layer(axum::middleware::from_fn(finish));
        let request = Request::get(path).body(Body::empty()).expect("it is a request");
        let response = router.oneshot(request).await.expect("it is answered");
        let (status, retry) = (response.status(), response.headers().contains_key(header::RETRY_AFTER));
        assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
        let id = response.headers()[REQUEST_ID].to_str().expect("text").to_owned();
        let body = to_bytes(response.into_body(), LIMIT).await.expect("it is short");
        assert!(!String::from_utf8_lossy(&body).contains("canary"));
        let problem: Problem = serde_json::from_slice(&body).expect("it is a problem");
        assert_eq!((problem.status, &problem.request_id), (status.as_u16(), &id));
        (status, problem, retry)
    }

    #[tokio::test]
    async fn whatever_fails_is_a_problem_without_its_cause() {
        for (path, status, retry) in [
            ("/panics", StatusCode::INTERNAL_SERVER_ERROR, false),
            ("/broken", StatusCode::INTERNAL_SERVER_ERROR, false),
            ("/away", StatusCode::SERVICE_UNAVAILABLE, true),
            ("/nowhere", StatusCode::NOT_FOUND, false),
        ] {
            let answer = problem(path).await;
            assert_eq!((answer.0, answer.2), (status, retry), "{path}: {:?}", answer.1);
        }
    }
}
