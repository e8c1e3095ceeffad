//! `/tenants`: who is served, and with how much. An account is named by its login, which is stored
//! sealed: each tenant's is opened and compared.

use super::guard::Operator;
use super::input::{Body, whole};
use super::names::{Names, account};
use super::vms::count;
use super::{AdminState, record};
use crate::api;
use crate::domain::counted::plural;
use crate::secrets::Column;
use crate::store::StoreError;
use crate::store::tenants::{self, Admission, Tenant};
use crate::store::views::{self, TenantRow};
use crate::web::failure::Failure;
use axum::Json;
use axum::extract::{Path, State};

/// More vms than any fleet gives to one account.
const MAX_LIMIT: u32 = 10_000;

/// `GET /tenants`
pub async fn list(State(state): State<AdminState>) -> Result<Json<api::Page<api::Tenant>>, Failure> {
    let used = views::tenants(&state.pool).await?;
    let rows = tenants::all(&state.pool).await?;
    Ok(Json(whole(rows.iter().map(|tenant| show(&state, tenant, &used)).collect())))
}

/// `POST /tenants/{account}/approve`
pub async fn approve(
    state: State<AdminState>,
    operator: Operator,
    Path(login): Path<String>,
) -> Result<Json<api::Done>, Failure> {
    let tenant = find(&state, &login).await?;
    decide(&state, &operator, &tenant, Admission::Approved, "tenant.approve").await?;
    let message = format!("{login} is served. Jobs that were refused before must be run again");
    Ok(Json(api::Done { message, changed: 1 }))
}

/// `POST /tenants/{account}/suspend`
pub async fn suspend(
    state: State<AdminState>,
    operator: Operator,
    Path(login): Path<String>,
) -> Result<Json<api::Done>, Failure> {
    let tenant = find(&state, &login).await?;
    decide(&state, &operator, &tenant, Admission::Suspended, "tenant.suspend").await?;
    let message = format!("{login} is not served any more. Jobs that run come to their end");
    Ok(Json(api::Done { message, changed: 1 }))
}

/// `POST /tenants/{account}/limit`
pub async fn limit(
    state: State<AdminState>,
    operator: Operator,
    Path(login): Path<String>,
    Body(limit): Body<api::Limit>,
) -> Result<Json<api::Done>, Failure> {
    if limit.vms.is_some_and(|vms| vms > MAX_LIMIT) {
        return Err(Failure::bad_request(format!("vms must be at most {MAX_LIMIT}, or null for the configured limit")));
    }
    let tenant = find(&state, &login).await?;
    let vms = limit.vms.map(|vms| i32::try_from(vms).expect("the limit is small"));
    let mut tx = state.pool.begin().await.map_err(StoreError::from)?;
    tenants::set_vm_limit(&mut *tx, tenant.id, vms).await?;
    let detail = limit.vms.map_or_else(|| "the configured limit".to_owned(), |vms| plural(vms, "vm"));
    record(&mut tx, &state, &operator, "tenant.limit", &tenant.id.to_string(), Some(&detail)).await?;
    tx.commit().await.map_err(StoreError::from)?;
    state.wakes.demand.notify_one();
    Ok(Json(api::Done { message: format!("{login} may have {detail} at once"), changed: 1 }))
}

async fn decide(
    state: &AdminState,
    operator: &Operator,
    tenant: &Tenant,
    admission: Admission,
    action: &str,
) -> Result<(), Failure> {
    let mut tx = state.pool.begin().await.map_err(StoreError::from)?;
    tenants::set_admission(&mut *tx, tenant.id, admission).await?;
    record(&mut tx, state, operator, action, &tenant.id.to_string(), None).await?;
    tx.commit().await.map_err(StoreError::from)?;
    state.wakes.demand.notify_one();
    Ok(())
}

/// The tenant with this login. Of several (one that was removed and installed again) the one that stands.
pub(super) async fn find(state: &AdminState, login: &str) -> Result<Tenant, Failure> {
    let mut found: Vec<Tenant> = tenants::all(&state.pool)
        .await?
        .into_iter()
        .filter(|tenant| account(&state.ring, tenant).is_some_and(|name| name.eq_ignore_ascii_case(login)))
        .collect();
    found.sort_by_key(|tenant| (tenant.uninstalled_at.is_some(), std::cmp::Reverse(tenant.created_at)));
    found.into_iter().next().ok_or_else(|| {
        Failure::not_found(format!("no account `{login}` has installed the App: `flyci tenants` lists those that have"))
    })
}

fn show(state: &AdminState, tenant: &Tenant, used: &[TenantRow]) -> api::Tenant {
    let used = used.iter().find(|row| row.id == tenant.id);
    let names = Names::of(&state.ring, tenant.id, &tenant.wrapped_keys);
    let standing = match (tenant.uninstalled_at, tenant.suspended_at) {
        (Some(_), _) => "uninstalled",
        (None, Some(_)) => "suspended",
        (None, None) => "active",
    };
    api::Tenant {
        id: tenant.id.to_string(),
        account: names.text(Column::TenantAccount, tenant.id.0, &tenant.account),
        account_kind: tenant.account_kind.clone(),
        installation_id: names.id(Column::TenantInstallationId, tenant.id.0, &tenant.installation_id),
        admission: tenant.admission.clone(),
        standing: standing.to_owned(),
        vm_limit: tenant.vm_limit.map(count),
        vms: used.map_or(0, |row| count(row.vms)),
        queued: used.map_or(0, |row| count(row.queued)),
        running: used.map_or(0, |row| count(row.running)),
        created_at: tenant.created_at,
    }
}
