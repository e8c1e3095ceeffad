//! `/meta`, `/rate_limit`, and the releases of its runner: what GitHub tells about itself.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::{Answer, ok};
use super::caller::Caller;
use crate::hub::Hub;
use crate::world::limits::{Budget, Resource};
use crate::world::tokens::Refused;

/// `GET /meta`
pub async fn meta() -> Response {
    let loopback = ["127.0.0.1/32", "::1/128"];
    ok(json!({
        "verifiable_password_authentication": false,
        "hooks": loopback, "web": loopback, "api": loopback, "git": loopback, "actions": loopback,
    }))
}

/// The releases of the runner: version, and days since.
const RUNNER_RELEASES: [(&str, i64); 3] = [("2.331.0", 5), ("2.330.0", 25), ("2.329.0", 70)];

/// `GET /repos/actions/runner/releases`: public, asked for without a token.
pub async fn releases(Path((owner, repository)): Path<(String, String)>) -> Answer {
    if (owner.as_str(), repository.as_str()) != ("actions", "runner") {
        return Err(Refused::not_found());
    }
    let now = chrono::Utc::now();
    Ok(ok(json!(RUNNER_RELEASES.map(|(version, days)| json!({
        "tag_name": format!("v{version}"),
        "name": format!("v{version}"),
        "draft": false,
        "prerelease": false,
        "published_at": (now - chrono::TimeDelta::days(days)).to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
    })))))
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
