//! What every API call goes through: counting, switched latency and failures, who calls, rate limits and their headers.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::answer::error;
use super::caller::Caller;
use super::conditional::Condition;
use crate::hub::Hub;
use crate::world::limits::{Budget, Limited, Resource};
use crate::world::switches::Failure;

/// Governs one call.
pub async fn govern(State(hub): State<Arc<Hub>>, path: MatchedPath, request: Request, next: Next) -> Response {
    let route = format!("{} {}", request.method(), path.as_str());
    let (latency, outage) = hub.change(|w| {
        *w.requests.entry(route.clone()).or_default() += 1;
        (w.switches.latency_ms.get(&route).copied(), w.switches.outage)
    });
    if let Some(ms) = latency {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    if outage {
        return stamped(
            &hub,
            error(StatusCode::SERVICE_UNAVAILABLE, "No server is currently available to service your request."),
        );
    }
    let failure = hub.count(|w| take_failure(&mut w.switches.failures, &route));
    if let Some(failure) = failure.as_ref().filter(|f| !f.after_effect) {
        return stamped(&hub, failed(failure));
    }
    let caller = match Caller::of(&hub, request.headers()) {
        Ok(caller) => caller,
        Err(refused) => return stamped(&hub, refused.into_response()),
    };
    let response = metered(&hub, caller, path.as_str(), request, next).await;
    match failure {
        // The call had its effect; only its answer is lost.
        Some(failure) => stamped(&hub, failed(&failure)),
        None => stamped(&hub, response),
    }
}

/// Runs a call within the caller's limits.
async fn metered(hub: &Hub, caller: Caller, path: &str, mut request: Request, next: Next) -> Response {
    let jit = path.ends_with("/generate-jitconfig");
    let resource = if jit { Resource::Registration } else { Resource::Core };
    let points = if request.method() == Method::GET { 1 } else { 5 };
    let who = caller.budget_key();
    let (mut budget, limited) = match path {
        // GitHub does not count the question for the limits.
        "/rate_limit" => (hub.count(|w| w.budget(&who, resource)), None),
        _ => hub.count(|w| w.spend(&who, resource, points)),
    };
    let mut response = match limited {
        Some(limited) => over_limit(limited, &caller),
        None => {
            request.extensions_mut().insert(caller);
            let condition = Condition::of(request.method(), request.headers());
            condition.apply(next.run(request).await).await
        }
    };
    if response.status() == StatusCode::NOT_MODIFIED {
        budget = hub.count(|w| w.refund(&who, resource));
    }
    limit_headers(&mut response, budget, resource);
    response
}

fn take_failure(failures: &mut Vec<Failure>, route: &str) -> Option<Failure> {
    let at = failures.iter().position(|f| f.route == route && f.times > 0)?;
    failures[at].times -= 1;
    let failure = failures[at].clone();
    if failure.times == 0 {
        failures.remove(at);
    }
    Some(failure)
}

fn failed(failure: &Failure) -> Response {
    let status = StatusCode::from_u16(failure.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = error(status, status.canonical_reason().unwrap_or("Server Error"));
    if let Some(seconds) = failure.retry_after_s {
        set(&mut response, "retry-after", seconds);
    }
    response
}

fn over_limit(limited: Limited, caller: &Caller) -> Response {
    match limited {
        Limited::Primary => {
            let message = format!("API rate limit exceeded for installation ID {}.", caller.budget_key());
            error(StatusCode::FORBIDDEN, &message)
        }
        Limited::Secondary(seconds) => {
            let message = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.";
            let mut response = error(StatusCode::FORBIDDEN, message);
            set(&mut response, "retry-after", seconds);
            response
        }
    }
}

fn limit_headers(response: &mut Response, budget: Budget, resource: Resource) {
    set(response, "x-ratelimit-limit", budget.limit);
    set(response, "x-ratelimit-used", budget.used);
    set(response, "x-ratelimit-remaining", budget.limit.saturating_sub(budget.used));
    set(response, "x-ratelimit-reset", budget.reset.timestamp());
    set(response, "x-ratelimit-resource", resource.word());
}

fn stamped(hub: &Hub, mut response: Response) -> Response {
    set(
        &mut response,
        "x-github-request-id",
        format_args!("{:08X}:{:04X}", rand::random::<u32>(), rand::random::<u16>()),
    );
    // By GitHub's clock, which a test may move.
    set(&mut response, "date", hub.count(|w| w.now()).format("%a, %d %b %Y %H:%M:%S GMT"));
    set(&mut response, "x-github-media-type", "github.v3; format=json");
    response
}

fn set(response: &mut Response, name: &'static str, value: impl ToString) {
    let value = HeaderValue::from_str(&value.to_string()).expect("numbers and words of ours fit a header");
    response.headers_mut().insert(HeaderName::from_static(name), value);
}
