//! The HTTP side: GitHub's REST API, the runner protocol and the control verbs on one listener.

mod answer;
mod apps;
mod caller;
mod conditional;
mod deliveries;
mod groups;
mod meta;
mod middleware;
mod paging;
mod runners;
mod runs;
mod sessions;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

use crate::hub::Hub;

/// Longest body of a request, in bytes.
const BODY_LIMIT: usize = 4 * 1024 * 1024;

/// Everything that the server answers.
pub fn router(hub: Arc<Hub>) -> Router {
    let api = apps_and_deliveries()
        .merge(actions())
        .route_layer(from_fn_with_state(hub.clone(), middleware::govern))
        .fallback(answer::unknown_route);
    api.merge(sessions::router())
        .merge(crate::control::http::router(hub.clone()))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(hub)
}

fn apps_and_deliveries() -> Router<Arc<Hub>> {
    Router::new()
        .route("/meta", get(meta::meta))
        .route("/rate_limit", get(meta::rate_limit))
        .route("/app", get(apps::app))
        .route("/app/installations", get(apps::list))
        .route("/app/installations/{installation_id}", get(apps::one))
        .route("/app/installations/{installation_id}/access_tokens", post(apps::access_token))
        .route("/app/hook/config", get(deliveries::config))
        .route("/app/hook/deliveries", get(deliveries::list))
        .route("/app/hook/deliveries/{delivery_id}", get(deliveries::one))
        .route("/app/hook/deliveries/{delivery_id}/attempts", post(deliveries::redeliver))
        .route("/installation/repositories", get(apps::repositories))
        .route("/repos/{owner}/{repo}", get(apps::repository))
        .route("/repos/{owner}/{repo}/releases", get(meta::releases))
        .route("/repos/{owner}/{repo}/installation", get(apps::of_repository))
        .route("/orgs/{org}/installation", get(apps::of_account))
        .route("/users/{org}/installation", get(apps::of_account))
}

fn actions() -> Router<Arc<Hub>> {
    const REPO: &str = "/repos/{owner}/{repo}/actions";
    const ORG: &str = "/orgs/{org}/actions";
    Router::new()
        .route(&format!("{REPO}/runners"), get(runners::list_repository))
        .route(&format!("{REPO}/runners/generate-jitconfig"), post(runners::jit_repository))
        .route(
            &format!("{REPO}/runners/{{runner_id}}"),
            get(runners::one_repository).delete(runners::delete_repository),
        )
        .route(&format!("{ORG}/runners"), get(runners::list_org))
        .route(&format!("{ORG}/runners/generate-jitconfig"), post(runners::jit_org))
        .route(&format!("{ORG}/runners/{{runner_id}}"), get(runners::one_org).delete(runners::delete_org))
        .route(&format!("{ORG}/runner-groups"), get(groups::list))
        .route(&format!("{ORG}/runner-groups/{{runner_group_id}}"), get(groups::one))
        .route(&format!("{ORG}/runner-groups/{{runner_group_id}}/repositories"), get(groups::repositories))
        .route(&format!("{REPO}/runs"), get(runs::list))
        .route(&format!("{REPO}/runs/{{run_id}}"), get(runs::one))
        .route(&format!("{REPO}/runs/{{run_id}}/jobs"), get(runs::jobs))
        .route(&format!("{REPO}/runs/{{run_id}}/cancel"), post(runs::cancel))
        .route(&format!("{REPO}/runs/{{run_id}}/rerun"), post(runs::rerun))
        .route(&format!("{REPO}/runs/{{run_id}}/rerun-failed-jobs"), post(runs::rerun_failed))
        .route(&format!("{REPO}/jobs/{{job_id}}"), get(runs::job))
        .route(&format!("{REPO}/jobs/{{job_id}}/rerun"), post(runs::rerun_job))
}
