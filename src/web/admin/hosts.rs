//! `/hosts`.

use super::guard::Operator;
use super::images::show_pull;
use super::input::{Body, reason, whole};
use super::vms::count;
use super::{AdminState, RunnerReleases, record};
use crate::api;
use crate::domain::counted::plural;
use crate::store::hosts::{self, Drain, Host, ImageHealth};
use crate::store::views::{self, Load};
use crate::store::{StoreError, image_pulls};
use crate::web::failure::Failure;
use axum::Json;
use axum::extract::{Path, State};

/// A host that was not heard of for so many seconds is silent: it speaks every five.
pub const SILENT_AFTER_S: f64 = 30.0;
/// What stands in the audit trail for every host.
const ALL: &str = "all";

/// `GET /hosts`
pub async fn list(State(state): State<AdminState>) -> Result<Json<api::Page<api::Host>>, Failure> {
    Ok(Json(whole(read(&state).await?)))
}

/// Every host as the API shows it.
pub async fn read(state: &AdminState) -> Result<Vec<api::Host>, Failure> {
    let (load, _) = views::load(&state.pool).await?;
    let failing = hosts::failing_images(&state.pool).await?;
    let pulls = image_pulls::all(&state.pool).await?;
    let rows = hosts::all(&state.pool).await?;
    let shown = rows.into_iter().map(|host| {
        let pulls = pulls.iter().filter(|pull| pull.host == host.name).map(show_pull).collect();
        api::Host { pulls, ..show(host, &load, &failing, &state.releases) }
    });
    Ok(shown.collect())
}

/// `POST /hosts/drain`
pub async fn drain_all(
    state: State<AdminState>,
    operator: Operator,
    body: Body<api::Drain>,
) -> Result<Json<api::Done>, Failure> {
    start_drain(&state, &operator, None, &body.0).await
}

/// `POST /hosts/{name}/drain`
pub async fn drain(
    state: State<AdminState>,
    operator: Operator,
    Path(name): Path<String>,
    body: Body<api::Drain>,
) -> Result<Json<api::Done>, Failure> {
    start_drain(&state, &operator, Some(&name), &body.0).await
}

/// `POST /hosts/resume`
pub async fn resume_all(state: State<AdminState>, operator: Operator) -> Result<Json<api::Done>, Failure> {
    end_drain(&state, &operator, None).await
}

/// `POST /hosts/{name}/resume`
pub async fn resume(
    state: State<AdminState>,
    operator: Operator,
    Path(name): Path<String>,
) -> Result<Json<api::Done>, Failure> {
    end_drain(&state, &operator, Some(&name)).await
}

async fn start_drain(
    state: &AdminState,
    operator: &Operator,
    host: Option<&str>,
    drain: &api::Drain,
) -> Result<Json<api::Done>, Failure> {
    let why = drain.reason.as_deref().map(reason).transpose()?;
    let by = operator.to_string();
    let mut tx = state.pool.begin().await.map_err(StoreError::from)?;
    let changed = hosts::drain(&mut *tx, &Drain { host, reason: why, by: &by }).await?;
    require_known(host, changed)?;
    record(&mut tx, state, operator, "host.drain", host.unwrap_or(ALL), why).await?;
    tx.commit().await.map_err(StoreError::from)?;
    state.wakes.demand.notify_one();
    let message = match host {
        Some(name) => format!("{name} takes no new work; what runs comes to its end"),
        None => format!("{} no new work; what runs comes to its end", take(changed)),
    };
    Ok(Json(api::Done { message, changed }))
}

/// `1 host takes`, `2 hosts take`.
fn take(hosts: u64) -> String {
    format!("{} {}", plural(hosts, "host"), if hosts == 1 { "takes" } else { "take" })
}

async fn end_drain(state: &AdminState, operator: &Operator, host: Option<&str>) -> Result<Json<api::Done>, Failure> {
    let mut tx = state.pool.begin().await.map_err(StoreError::from)?;
    let changed = hosts::resume(&mut *tx, host).await?;
    require_known(host, changed)?;
    record(&mut tx, state, operator, "host.resume", host.unwrap_or(ALL), None).await?;
    tx.commit().await.map_err(StoreError::from)?;
    state.wakes.demand.notify_one();
    let message = match host {
        Some(name) => format!("{name} takes work again"),
        None => format!("{} work again", take(changed)),
    };
    Ok(Json(api::Done { message, changed }))
}

/// One host that is not there is a mistake; a fleet without hosts has nothing to drain.
fn require_known(host: Option<&str>, changed: u64) -> Result<(), Failure> {
    match host {
        Some(name) if changed == 0 => {
            Err(Failure::not_found(format!("no host is called `{name}`: `flyci hosts` lists them")))
        }
        _ => Ok(()),
    }
}

fn show(host: Host, load: &[Load], failing: &[ImageHealth], releases: &RunnerReleases) -> api::Host {
    let used = load.iter().find(|load| load.host == host.name).map_or(0, |load| load.memory);
    let state = match (host.silent_for_s > SILENT_AFTER_S, host.draining, host.vms) {
        (true, _, _) => "silent",
        (false, true, 0) => "drained",
        (false, true, _) => "draining",
        (false, false, _) if host.untested => "untested",
        (false, false, _) => "ready",
    };
    api::Host {
        state: state.to_owned(),
        failing_images: failing.iter().filter(|health| health.host == host.name).map(show_failing).collect(),
        runner_cut_off_at: host.runner_version.as_deref().and_then(|version| releases.cut_off(version)),
        runner_version: host.runner_version,
        name: host.name,
        hypervisor: host.hypervisor,
        hardware: host.hardware,
        os: host.os,
        architecture: host.architecture,
        slots: count(host.slots),
        vms: count(host.vms),
        cpus: count(host.cpus),
        memory_bytes: u64::try_from(host.memory).unwrap_or(0),
        memory_used_bytes: u64::try_from(used).unwrap_or(0),
        version: host.version,
        beat_at: host.beat_at,
        silent_for_s: host.silent_for_s,
        drain_reason: host.drain_reason,
        drained_by: host.drained_by,
        drained_at: host.drained_at,
        pulls: Vec::new(),
        can_boot: host.can_boot,
        differs: host.differs.unwrap_or_default(),
    }
}

pub(super) fn show_failing(health: &ImageHealth) -> api::FailingImage {
    api::FailingImage {
        host: health.host.clone(),
        image: health.image.clone(),
        failures: count(health.failures),
        last_failure: health.last_failure.clone(),
        quarantined_until: health.quarantined_until,
    }
}
