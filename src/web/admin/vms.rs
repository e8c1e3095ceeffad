//! `/vms`.

use super::guard::Operator;
use super::input::{Body, Query, cursor, page, page_size, reason};
use super::names::Names;
use super::{AdminState, record};
use crate::api;
use crate::domain::ids::VmId;
use crate::domain::reason::VmEnd;
use crate::secrets::Column;
use crate::store::Applied;
use crate::store::views::{self, VmFilter, VmRow, VmTimes};
use crate::web::failure::Failure;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;

/// `GET /vms`
pub async fn list(
    State(state): State<AdminState>,
    Query(query): Query<api::VmsQuery>,
) -> Result<Json<api::Page<api::Vm>>, Failure> {
    let limit = page_size(query.limit)?;
    let after = cursor(query.after.as_deref())?;
    let filter = VmFilter { gone: query.all, after, limit: i64::from(limit) + 1 };
    let rows = views::vms(&state.pool, filter).await?;
    let end = |row: &VmRow| (row.times.planned_at, row.id.0);
    Ok(Json(page(rows, limit, end, |row| show(&state, row))))
}

/// `POST /vms/{id}/kill`
pub async fn kill(
    State(state): State<AdminState>,
    operator: Operator,
    Path(id): Path<String>,
    Body(kill): Body<api::Kill>,
) -> Result<Json<api::Done>, Failure> {
    let why = reason(&kill.reason)?;
    let id: VmId = id.parse().map_err(|_| Failure::bad_request("a vm's id is a UUID, as `flyci vms` shows it"))?;
    let mut tx = state.pool.begin().await.map_err(crate::store::StoreError::from)?;
    if crate::store::vms::get(&mut *tx, id).await?.is_none() {
        return Err(Failure::not_found("no vm has this id: `flyci vms` lists them"));
    }
    if crate::store::vms::ask_kill(&mut *tx, id, VmEnd::Killed).await? == Applied::Stale {
        return Err(Failure::new(StatusCode::CONFLICT, "the vm is ending already"));
    }
    record(&mut tx, &state, &operator, "vm.kill", &id.to_string(), Some(why)).await?;
    tx.commit().await.map_err(crate::store::StoreError::from)?;
    state.wakes.vm(id);
    Ok(Json(api::Done { message: format!("vm {id} is to be destroyed by its host"), changed: 1 }))
}

fn show(state: &AdminState, row: VmRow) -> api::Vm {
    let names = row.tenant.as_ref().map(|(tenant, wrapped)| Names::of(&state.ring, *tenant, wrapped));
    let name = |column, value: &Option<views::SealedName>| names.as_ref()?.name(column, value.as_ref()?);
    let job = row.job.as_ref();
    api::Vm {
        id: row.id.to_string(),
        repository: name(Column::RepositoryName, &row.repository),
        job_id: job.and_then(|job| names.as_ref()?.id(Column::JobGithubId, job.row, &job.name)),
        runner_name: name(Column::RunnerName, &row.runner_name),
        host: row.host,
        slot: count(row.slot),
        profile: row.profile,
        image: row.image,
        cpus: count(row.cpus),
        memory_bytes: u64::try_from(row.memory).unwrap_or(0),
        state: row.state,
        reason: row.reason,
        kill_asked: row.kill_asked,
        runner_status: row.runner_status,
        stopping_at: row.times.stopping_at,
        times: times(&row.times),
    }
}

/// A count of the database, which is never negative.
pub fn count(number: impl TryInto<u32>) -> u32 {
    number.try_into().unwrap_or(0)
}

/// A vm's times, as the API shows them.
pub fn times(times: &VmTimes) -> api::VmTimes {
    api::VmTimes {
        planned_at: times.planned_at,
        cloned_at: times.cloned_at,
        booted_at: times.booted_at,
        ready_at: times.ready_at,
        bound_at: times.bound_at,
        minted_at: times.minted_at,
        delivering_at: times.delivering_at,
        serving_at: times.serving_at,
        gone_at: times.gone_at,
    }
}
