//! `/status` and `/metrics`.

use super::jobs::MAX_CLAIMS;
use super::{AdminState, hosts, problems};
use crate::api;
use crate::metrics::CONTENT_TYPE;
use crate::store::{delivery_log, views};
use crate::web::failure::Failure;
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

/// `GET /status`
pub async fn status(State(state): State<AdminState>) -> Result<Json<api::Status>, Failure> {
    let claims = views::claims(&state.pool, state.about.vms_per_tenant, MAX_CLAIMS).await?;
    let queue = views::queue(&state.pool).await?;
    let day = views::day(&state.pool).await?;
    let log = delivery_log::health(&state.pool).await?;
    let hosts = hosts::read(&state).await?;
    let problems = problems::read(&state, &hosts, &log).await?;
    let claimed = u64::try_from(claims.len()).unwrap_or(u64::MAX);
    Ok(Json(api::Status {
        fleet_id: state.about.fleet.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: state.about.started_at,
        now: views::now(&state.pool).await?,
        roles: state.about.roles.clone(),
        intake: state.about.intake.clone(),
        readiness: state.readiness.word().to_owned(),
        last_delivery_at: views::last_delivery(&state.pool).await?,
        deliveries: api::DeliveryHealth {
            good_at: log.good_at,
            log_read_at: log.read_at,
            missed: total(log.missed),
            given_up: total(log.given_up),
        },
        queue: api::Queue {
            waiting: total(queue.waiting),
            queued: total(queue.queued).saturating_sub(claimed),
            claimed,
            running: total(queue.running),
            oldest_queued_at: queue.oldest_queued_at,
        },
        day: api::Day {
            done: total(day.done),
            cancelled: total(day.cancelled),
            unserved: total(day.unserved),
            lost: total(day.lost),
            wait_p50_s: day.wait_p50_s,
            wait_p99_s: day.wait_p99_s,
        },
        hosts,
        problems,
    }))
}

fn total(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// `GET /metrics`: what the metrics listener tells, too.
pub async fn metrics(State(state): State<AdminState>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], state.metrics.render(&state.pool).await).into_response()
}
