//! The metrics listener: one route, for Prometheus.

use super::failure::finish;
use crate::metrics::{CONTENT_TYPE, Metrics};
use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sqlx::PgPool;
use std::sync::Arc;

/// What the metrics route needs.
#[derive(Clone)]
pub struct MetricsState {
    /// What this process counts.
    pub metrics: Arc<Metrics>,
    /// What the tables are read with: as the gateway, or as a host.
    pub pool: PgPool,
}

/// The metrics router.
pub fn router(state: MetricsState) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(state).layer(from_fn(finish))
}

async fn metrics(State(state): State<MetricsState>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], state.metrics.render(&state.pool).await).into_response()
}
