//! `/meta` and `/rate_limit`: what GitHub tells about itself.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::ok;
use super::caller::Caller;
use crate::hub::Hub;
use crate::world::limits::{Budget, Resource};

/// `GET /meta`
pub async fn meta() -> Response {
    let loopback = ["127.0.0.0/8", "::1/128"];
    ok(json!({
        "verifiable_password_authentication": false,
        "hooks": loopback, "web": loopback, "api": loopback, "git": loopback, "actions": loopback,
    }))
}

/// `GET /rate_limit`
pub async fn rate_limit(State(hub): State<Arc<Hub>>, Extension(caller): Extension<Caller>) -> Response {
    let who = caller.budget_key();
    let (core, registration) = hub.count(|w| (w.budget(&who, Resource::Core), w.budget(&who, Resource::Registration)));
    let (core, registration) = (shape(core), shape(registration));
    let search = json!({ "limit": 30, "used": 0, "remaining": 30, "reset": core["reset"] });
    ok(json!({
        "resources": { "core": core, "search": search, "actions_runner_registration": registration },
        "rate": core,
    }))
}

fn shape(budget: Budget) -> Value {
    json!({
        "limit": budget.limit,
        "used": budget.used,
        "remaining": budget.limit.saturating_sub(budget.used),
        "reset": budget.reset.timestamp(),
    })
}
