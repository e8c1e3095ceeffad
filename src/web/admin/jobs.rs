//! `/jobs` and `/jobs/{id}/why`.

use super::AdminState;
use super::explain::{self, Facts};
use super::input::{Query, cursor, page, page_size, since};
use super::names::{Names, account, accounts};
use crate::api;
use crate::domain::ids::JobId;
use crate::domain::job::JobState;
use crate::secrets::{Column, Lookup};
use crate::store::refusals::{self, Refusal};
use crate::store::tenants::{self, Tenant};
use crate::store::views::{self, Claim, JobFilter, JobRow, JobVmRow, SpentVm};
use crate::web::failure::Failure;
use axum::Json;
use axum::extract::{Path, State};
use uuid::Uuid;

/// The most claims that are derived: vms at once of a large fleet.
pub const MAX_CLAIMS: i64 = 5_000;
/// Since when refusals are told of, if not said.
const REFUSALS_SINCE: &str = "1d";
/// The most vms that are told of which a job has had in vain.
const EARLIER_VMS: i64 = 20;
/// The states that a list can be narrowed to.
const STATES: [&str; 8] = ["waiting", "queued", "claimed", "running", "done", "cancelled", "unserved", "lost"];

/// `GET /jobs`
pub async fn list(
    State(state): State<AdminState>,
    Query(query): Query<api::JobsQuery>,
) -> Result<Json<api::Page<api::Job>>, Failure> {
    let limit = page_size(query.limit)?;
    let claims = views::claims(&state.pool, state.about.vms_per_tenant, MAX_CLAIMS).await?;
    let claimed: Vec<Uuid> = claims.iter().map(|claim| claim.job.0).collect();
    let mut filter = JobFilter {
        since: since(query.since.as_deref())?,
        after: cursor(query.after.as_deref())?,
        limit: i64::from(limit) + 1,
        ..JobFilter::default()
    };
    match query.state.as_deref() {
        None => {}
        Some("claimed") => filter.only = Some(&claimed),
        Some("queued") => (filter.state, filter.except) = (Some("queued"), &claimed),
        Some(word) if STATES.contains(&word) => filter.state = Some(word),
        Some(word) => {
            return Err(Failure::bad_request(format!("state is `{word}`; it is one of {}", STATES.join(", "))));
        }
    }
    let rows = views::jobs(&state.pool, &filter, &claims).await?;
    let facts = if rows.iter().any(is_open) { Some(Facts::read(&state).await?) } else { None };
    let end = |row: &JobRow| (row.received_at, row.id.0);
    Ok(Json(page(rows, limit, end, |row| {
        let reason = match &facts {
            Some(facts) if is_open(&row) => {
                explain::reasons(&row, facts).into_iter().next().map(|reason| reason.reason)
            }
            _ => row.reason.clone(),
        };
        show(&state, &row, reason)
    })))
}

/// True of a job that waits.
fn is_open(row: &JobRow) -> bool {
    matches!(JobState::decode(&row.state, row.reason.as_deref()), JobState::Waiting | JobState::Queued)
}

/// `GET /refusals`
pub async fn refusals(
    State(state): State<AdminState>,
    Query(query): Query<api::RefusalsQuery>,
) -> Result<Json<api::Refusals>, Failure> {
    let limit = page_size(query.limit)?;
    let since = since(Some(query.since.as_deref().unwrap_or(REFUSALS_SINCE)))?.unwrap_or_default();
    let counts = refusals::count_by_reason(&state.pool, since).await?;
    let rows = views::refusals(&state.pool, since, i64::from(limit)).await?;
    let accounts = accounts(&state).await?;
    Ok(Json(api::Refusals {
        items: rows.into_iter().map(|(tenant, row)| refused(row, accounts.get(&tenant).cloned())).collect(),
        total: counts.iter().filter_map(|(_, count)| u64::try_from(*count).ok()).sum(),
    }))
}

fn refused(refusal: Refusal, account: Option<String>) -> api::Refused {
    api::Refused {
        reason: refusal.reason,
        account,
        nearest_profile: refusal.nearest_profile,
        label: refusal.label,
        refused_at: refusal.refused_at,
    }
}

/// The vms that a job has had in vain, if it was tried.
async fn earlier_vms(state: &AdminState, job: &JobRow) -> Result<Vec<api::EarlierVm>, Failure> {
    if job.attempts == 0 {
        return Ok(Vec::new());
    }
    let rows = views::spent_vms(&state.pool, job.id, EARLIER_VMS).await?;
    let show =
        |vm: SpentVm| api::EarlierVm { id: vm.id.to_string(), host: vm.host, reason: vm.reason, ended_at: vm.ended_at };
    Ok(rows.into_iter().map(show).collect())
}

/// `GET /jobs/{id}/why`
pub async fn why(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    Query(query): Query<api::WhyQuery>,
) -> Result<Json<api::Why>, Failure> {
    let asked = match (Uuid::try_parse(&id), id.parse::<u64>()) {
        (_, Ok(github)) => Asked::ByGithub(github),
        (Ok(ours), _) => Asked::ByUs(JobId(ours)),
        _ => {
            return Err(Failure::bad_request(
                "the job's id is a number, the last part of its page's address at GitHub",
            ));
        }
    };
    let tenants = tenants::all(&state.pool).await?;
    let tenants = narrowed(&state, tenants, query.account.as_deref());
    let lookups = match asked {
        Asked::ByUs(_) => Vec::new(),
        Asked::ByGithub(github) => lookups(&state, &tenants, github),
    };
    let found = match asked {
        Asked::ByUs(ours) => vec![ours],
        Asked::ByGithub(_) => views::find_jobs(&state.pool, &lookups).await?,
    };
    if let Some(row) = read(&state, &found).await? {
        let reasons = explain::reasons(&row, &Facts::of(&state, &row).await?);
        let first = reasons.first().filter(|_| is_open(&row)).map(|reason| reason.reason.clone());
        let reason = first.or_else(|| row.reason.clone());
        let job = show(&state, &row, reason);
        let earlier_vms = earlier_vms(&state, &row).await?;
        return Ok(Json(api::Why { id: job.id.clone(), job: Some(job), refusal: None, reasons, earlier_vms }));
    }
    if let Some((tenant, refusal)) = views::find_refusals(&state.pool, &lookups).await? {
        let account = tenants.iter().find(|known| known.id == tenant).and_then(|known| account(&state.ring, known));
        let reasons = vec![explain::refusal(&refusal, account.as_deref())];
        let refusal = Some(refused(refusal, account));
        return Ok(Json(api::Why { id, job: None, refusal, reasons, earlier_vms: Vec::new() }));
    }
    Err(Failure::not_found(match query.account {
        Some(account) if tenants.is_empty() => format!("{account} has not installed the App"),
        _ => "no delivery told us of this job: did GitHub deliver it (App settings, Advanced), and is the App installed for its repository?".to_owned(),
    }))
}

#[derive(Clone, Copy)]
enum Asked {
    ByUs(JobId),
    ByGithub(u64),
}

/// The tenants to search: all, or the one with this account.
fn narrowed(state: &AdminState, tenants: Vec<Tenant>, login: Option<&str>) -> Vec<Tenant> {
    let Some(login) = login else { return tenants };
    let is_it = |tenant: &Tenant| account(&state.ring, tenant).is_some_and(|name| name.eq_ignore_ascii_case(login));
    tenants.into_iter().filter(is_it).collect()
}

/// How each tenant's keys would find the job. One whose keys do not open cannot have it found.
fn lookups(state: &AdminState, tenants: &[Tenant], github: u64) -> Vec<(crate::domain::ids::TenantId, Lookup)> {
    let keyed = |tenant: &Tenant| {
        let keys = state.ring.unwrap(tenant.id, &tenant.wrapped_keys).ok()?;
        Some((tenant.id, keys.lookup_id(Column::JobGithubId, github)))
    };
    tenants.iter().filter_map(keyed).collect()
}

async fn read(state: &AdminState, ids: &[JobId]) -> Result<Option<JobRow>, Failure> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let claims: Vec<Claim> = views::claims(&state.pool, state.about.vms_per_tenant, MAX_CLAIMS).await?;
    let filter = JobFilter { only: Some(&ids), limit: 1, ..JobFilter::default() };
    Ok(views::jobs(&state.pool, &filter, &claims).await?.into_iter().next())
}

/// A job as the API shows it.
fn show(state: &AdminState, row: &JobRow, reason: Option<String>) -> api::Job {
    let names = Names::of(&state.ring, row.tenant, &row.wrapped_keys);
    let claimed = row.state == "queued" && row.vm.is_some();
    api::Job {
        id: names.id(Column::JobGithubId, row.id.0, &row.github_id).unwrap_or_default(),
        run_id: names.id(Column::JobRunId, row.id.0, &row.run_id).unwrap_or_default(),
        run_attempt: u32::try_from(row.run_attempt).unwrap_or(0),
        repository: names.name(Column::RepositoryName, &row.repository),
        initiator: row.initiator.as_ref().and_then(|login| names.text(Column::JobInitiator, row.id.0, login)),
        profile: row.profile.clone(),
        hardware: row.vm.as_ref().map(|vm| vm.hardware.clone()),
        state: if claimed { "claimed".to_owned() } else { row.state.clone() },
        conclusion: row.conclusion.clone(),
        reason,
        received_at: row.received_at,
        github: api::JobTimes {
            created_at: row.github_created_at,
            started_at: row.github_started_at,
            completed_at: row.github_completed_at,
        },
        vm: row.vm.as_ref().map(|vm| show_vm(&names, vm)),
    }
}

fn show_vm(names: &Names, vm: &JobVmRow) -> api::JobVm {
    api::JobVm {
        id: vm.id.to_string(),
        host: vm.host.clone(),
        image: vm.image.clone(),
        runner_name: vm.runner_name.as_ref().and_then(|name| names.name(Column::RunnerName, name)),
        times: super::vms::times(&vm.times),
    }
}
