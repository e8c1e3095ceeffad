//! The admin API, for the operator alone: on the admin socket, and read-only on loopback if configured.
//!
//! The only place where stored names are opened ([`names`]). Every change is written into the audit
//! trail in the same transaction, with the uid of who asked. The types are [`crate::api`]'s.

mod explain;
mod export;
mod guard;
mod hosts;
mod images;
mod input;
mod jobs;
mod joins;
mod keys;
mod ledger;
mod names;
pub mod openapi;
mod problems;
mod runner_age;
mod status;
mod tenants;
mod vms;

pub use runner_age::RunnerReleases;

use super::failure::{Failure, finish};
use super::readiness::Readiness;
use crate::domain::ids::FleetId;
use crate::domain::profile::Profile;
use crate::metrics::Metrics;
use crate::secrets::KeyRing;
use crate::secrets::vouch::Warrant;
use crate::store::audit::{Act, Trail};
use crate::troubles::Troubles;
use crate::upkeep::erase::Eraser;
use crate::upkeep::keys::Keeper;
use crate::upkeep::trail::Auditor;
use crate::wake::Wakes;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use chrono::{DateTime, Utc};
use guard::{Operator, Refusals};
use sqlx::{PgConnection, PgPool};
use std::sync::Arc;
use std::time::Duration;

/// A request's body, in bytes: all of them are short.
const MAX_BODY: usize = 16 * 1024;
/// A request is answered by then.
const DEADLINE: Duration = Duration::from_secs(20);

/// What the daemon that answers is.
#[derive(Clone, Debug)]
pub struct About {
    /// Which fleet.
    pub fleet: FleetId,
    /// What it does: `gateway`, `host`.
    pub roles: Vec<String>,
    /// How deliveries come: `webhook` or `pull`.
    pub intake: String,
    /// Since when it runs.
    pub started_at: DateTime<Utc>,
    /// Vms that a tenant may have at once, if nothing else is said of it.
    pub vms_per_tenant: u32,
    /// What is on offer.
    pub profiles: Vec<Profile>,
}

/// What the admin API needs.
#[derive(Clone)]
pub struct AdminState {
    /// Acts as the gateway.
    pub pool: PgPool,
    /// Opens stored names.
    pub ring: Arc<KeyRing>,
    /// Where changes are written down.
    pub trail: Trail,
    /// Makes the tokens by which hosts join.
    pub warrant: Arc<Warrant>,
    /// Rotates the master key.
    pub keeper: Arc<Keeper>,
    /// Forgets tenants.
    pub eraser: Arc<Eraser>,
    /// Verifies the audit trail.
    pub auditor: Arc<Auditor>,
    /// Wakes the loops that a change concerns.
    pub wakes: Arc<Wakes>,
    /// What `/readyz` says.
    pub readiness: Arc<Readiness>,
    /// What this process found wrong.
    pub troubles: Arc<Troubles>,
    /// What Prometheus reads.
    pub metrics: Arc<Metrics>,
    /// The releases of GitHub's runner.
    pub releases: Arc<RunnerReleases>,
    /// What the daemon is.
    pub about: Arc<About>,
}

/// Every route of the API, with its methods; `{}` is a path parameter's place.
pub const ROUTES: [(&str, &str); 32] = [
    ("GET", "/api/v1/status"),
    ("GET", "/api/v1/jobs"),
    ("GET", "/api/v1/jobs/{id}/why"),
    ("GET", "/api/v1/refusals"),
    ("GET", "/api/v1/vms"),
    ("POST", "/api/v1/vms/{id}/kill"),
    ("GET", "/api/v1/hosts"),
    ("POST", "/api/v1/hosts/drain"),
    ("POST", "/api/v1/hosts/resume"),
    ("POST", "/api/v1/hosts/{name}/drain"),
    ("POST", "/api/v1/hosts/{name}/resume"),
    ("POST", "/api/v1/hosts/{name}/invite"),
    ("POST", "/api/v1/hosts/{name}/revoke"),
    ("GET", "/api/v1/tenants"),
    ("POST", "/api/v1/tenants/{account}/approve"),
    ("POST", "/api/v1/tenants/{account}/suspend"),
    ("POST", "/api/v1/tenants/{account}/limit"),
    ("POST", "/api/v1/tenants/{account}/export"),
    ("POST", "/api/v1/tenants/{account}/erase"),
    ("GET", "/api/v1/keys"),
    ("POST", "/api/v1/keys/rotate"),
    ("GET", "/api/v1/deliveries"),
    ("GET", "/api/v1/audit"),
    ("GET", "/api/v1/audit/head"),
    ("GET", "/api/v1/audit/verify"),
    ("GET", "/api/v1/usage"),
    ("GET", "/api/v1/images"),
    ("GET", "/api/v1/images/pins"),
    ("POST", "/api/v1/images/update"),
    ("POST", "/api/v1/images/rollback"),
    ("GET", "/api/v1/metrics"),
    ("GET", "/api/v1/openapi.json"),
];

/// The admin router, for the socket and for loopback: who asked decides what they may.
pub fn router(state: AdminState) -> Router {
    let refusals = Arc::new(Refusals::new(state.pool.clone(), state.trail.clone()));
    let v1 = Router::new()
        .route("/status", get(status::status))
        .route("/jobs", get(jobs::list))
        .route("/jobs/{id}/why", get(jobs::why))
        .route("/refusals", get(jobs::refusals))
        .route("/vms", get(vms::list))
        .route("/vms/{id}/kill", post(vms::kill))
        .route("/hosts", get(hosts::list))
        .route("/hosts/drain", post(hosts::drain_all))
        .route("/hosts/resume", post(hosts::resume_all))
        .route("/hosts/{name}/drain", post(hosts::drain))
        .route("/hosts/{name}/resume", post(hosts::resume))
        .route("/hosts/{name}/invite", post(joins::invite))
        .route("/hosts/{name}/revoke", post(joins::revoke))
        .route("/tenants", get(tenants::list))
        .route("/tenants/{account}/approve", post(tenants::approve))
        .route("/tenants/{account}/suspend", post(tenants::suspend))
        .route("/tenants/{account}/limit", post(tenants::limit))
        .route("/tenants/{account}/export", post(export::export))
        .route("/tenants/{account}/erase", post(export::erase))
        .route("/keys", get(keys::list))
        .route("/keys/rotate", post(keys::rotate))
        .route("/deliveries", get(ledger::deliveries))
        .route("/audit", get(ledger::audit))
        .route("/audit/head", get(ledger::heads))
        .route("/audit/verify", get(ledger::verify))
        .route("/usage", get(ledger::usage))
        .route("/images", get(images::images))
        .route("/images/pins", get(images::pins))
        .route("/images/update", post(images::update))
        .route("/images/rollback", post(images::rollback))
        .route("/metrics", get(status::metrics))
        .route("/openapi.json", get(openapi::serve))
        .with_state(state);
    Router::new()
        .nest(crate::api::BASE, v1)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn(within_deadline))
        .layer(from_fn_with_state(refusals, guard::guard))
        .layer(from_fn(finish))
}

async fn within_deadline(request: axum::extract::Request, next: axum::middleware::Next) -> axum::response::Response {
    use axum::response::IntoResponse;
    match tokio::time::timeout(DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            Failure::new(StatusCode::GATEWAY_TIMEOUT, "the database did not answer in time: try again").into_response()
        }
    }
}

/// Writes a change into the audit trail, in the change's own transaction.
async fn record(
    tx: &mut PgConnection,
    state: &AdminState,
    operator: &Operator,
    action: &str,
    subject: &str,
    detail: Option<&str>,
) -> Result<(), Failure> {
    let act = Act { actor: &operator.to_string(), action, subject, detail };
    state.trail.append_within(tx, &act).await?;
    Ok(())
}
