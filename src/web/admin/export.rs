//! `/tenants/{account}/export` and `…/erase`: what is stored of an account, given out or forgotten.

use super::guard::Operator;
use super::input::Body;
use super::tenants::find;
use super::{AdminState, record};
use crate::api;
use crate::secrets::{Column, Sealed, TenantKeys};
use crate::store::tenants::Tenant;
use crate::store::{StoreError, erasure, export};
use crate::upkeep::keys::shown;
use crate::web::failure::Failure;
use axum::Json;
use axum::extract::{Path, State};
use chrono::Utc;
use serde_json::{Map, Value};
use uuid::Uuid;

/// Rows of a part.
const PART: i64 = 500;
/// Values that say nothing of the account, and help whoever has the keys: left out.
const LEFT_OUT: [&str; 6] = ["wrapped_keys", "sealed_jit", "lookup", "mac", "previous", "hash"];

/// `POST /tenants/{account}/export`
pub async fn export(
    State(state): State<AdminState>,
    operator: Operator,
    Path(login): Path<String>,
    Body(from): Body<api::ExportFrom>,
) -> Result<Json<api::Export>, Failure> {
    let tenant = find(&state, &login).await?;
    let (number, offset) = match from.after.as_deref() {
        None => (0, 0),
        Some(text) => place(text).ok_or_else(|| Failure::bad_request("after is not the `next` of a part"))?,
    };
    if from.after.is_none() {
        let mut tx = state.pool.begin().await.map_err(StoreError::from)?;
        record(&mut tx, &state, &operator, "tenant.export", &tenant.id.to_string(), None).await?;
        tx.commit().await.map_err(StoreError::from)?;
    }
    let keys = state.ring.unwrap(tenant.id, &tenant.wrapped_keys).map_err(|error| {
        tracing::error!(tenant.id = %tenant.id, error = %crate::errors::chain(&error), "the account cannot be exported");
        Failure::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "the account's values cannot be opened")
    })?;
    let sections = || export::TABLES.iter().chain([&export::AUDIT]);
    let section = *sections().nth(number).ok_or_else(|| Failure::bad_request("after is not the `next` of a part"))?;
    let rows = export::rows(&state.pool, section, tenant.id, offset, PART).await?;
    let is_full = i64::try_from(rows.len()).is_ok_and(|length| length == PART);
    let next = match (is_full, number + 1 < sections().count()) {
        (true, _) => Some(format!("{number}.{}", offset + PART)),
        (false, true) => Some(format!("{}.0", number + 1)),
        (false, false) => None,
    };
    let rows = rows.into_iter().map(|row| opened(&keys, section.0, row)).collect();
    Ok(Json(api::Export { table: section.0.to_owned(), rows, next }))
}

/// The number of a section, and of the row in it.
fn place(text: &str) -> Option<(usize, i64)> {
    let (number, offset) = text.split_once('.')?;
    Some((number.parse().ok()?, offset.parse().ok().filter(|offset| *offset >= 0)?))
}

/// A row with its sealed values opened.
fn opened(keys: &TenantKeys, table: &str, row: Value) -> Value {
    let Value::Object(row) = row else { return row };
    let id = row.get("id").and_then(Value::as_str).and_then(|id| Uuid::try_parse(id).ok()).unwrap_or_default();
    let mut shown = Map::new();
    for (name, value) in row {
        if LEFT_OUT.contains(&name.as_str()) || name.ends_with("_lookup") {
            continue;
        }
        let value = match (Column::find(table, &name), value.as_str().and_then(|text| text.strip_prefix("\\x"))) {
            (Some(column), Some(digits)) => {
                hex::decode(digits).map_or(Value::Null, |bytes| open(keys, column, id, bytes))
            }
            _ => value,
        };
        shown.insert(name, value);
    }
    Value::Object(shown)
}

/// A value that does not open is null, and does not hide the others.
fn open(keys: &TenantKeys, column: Column, row: Uuid, bytes: Vec<u8>) -> Value {
    let sealed = Sealed(bytes);
    let text = if column.holds_text() {
        keys.open_text(column, row, &sealed)
    } else {
        keys.open_id(column, row, &sealed).map(|id| id.to_string())
    };
    text.map_or(Value::Null, Value::String)
}

/// `POST /tenants/{account}/erase`
pub async fn erase(
    State(state): State<AdminState>,
    operator: Operator,
    Path(login): Path<String>,
) -> Result<Json<api::Erasure>, Failure> {
    let tenant = find(&state, &login).await?;
    state.eraser.ask(tenant.id, &operator.to_string(), None).await?;
    state.eraser.pass(Utc::now()).await?;
    let finality = state.eraser.finality(Utc::now()).await?;
    Ok(Json(told(&state, &login, &tenant, finality).await?))
}

async fn told(state: &AdminState, login: &str, tenant: &Tenant, finality: String) -> Result<api::Erasure, Failure> {
    let erased = erasure::erased(&state.pool, tenant.id).await?;
    let message = match erased {
        Some((at, _)) => {
            format!("{login} is erased since {}: its rows, look-ups and keys are gone. That is {finality}", shown(at))
        }
        None => format!(
            "{login} is served no more. What runs for it is being destroyed; then it is erased. That will be {finality}"
        ),
    };
    Ok(api::Erasure { message, erased: erased.is_some(), id: tenant.id.to_string(), finality })
}
