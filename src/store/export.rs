//! All that is stored of a tenant, row by row as JSON, whatever columns there are: a new column cannot be
//! forgotten here. Sealed values are as stored (`\x…`); whoever asks opens them.

use super::Result;
use crate::domain::ids::TenantId;
use serde_json::Value;
use sqlx::PgPool;

/// The tables that hold rows of a tenant, each with the column that orders its rows, and where its tenant is.
pub const TABLES: [(&str, &str, &str); 8] = [
    ("tenants", "id", "id"),
    ("repositories", "id", "tenant_id"),
    ("jobs", "id", "tenant_id"),
    ("runners", "id", "tenant_id"),
    ("runner_names", "lookup", "tenant_id"),
    ("refusals", "id", "tenant_id"),
    ("lanes", "profile", "tenant_id"),
    ("vms", "id", "tenant_id"),
];
/// The acts about a tenant.
pub const AUDIT: (&str, &str, &str) = ("audit", "seq", "subject");

/// Up to `limit` rows of a table (of [`TABLES`] or [`AUDIT`]) that belong to a tenant, from the row number `offset` on.
pub async fn rows(
    pool: &PgPool,
    (table, order, owner): (&'static str, &'static str, &'static str),
    tenant: TenantId,
    offset: i64,
    limit: i64,
) -> Result<Vec<Value>> {
    let is = if owner == AUDIT.2 { "$1::text" } else { "$1" };
    let query =
        format!("SELECT to_jsonb(t)::text FROM {table} t WHERE {owner} = {is} ORDER BY {order} OFFSET $2 LIMIT $3");
    let rows: Vec<String> =
        sqlx::query_scalar(sqlx::AssertSqlSafe(query)).bind(tenant.0).bind(offset).bind(limit).fetch_all(pool).await?;
    Ok(rows.iter().filter_map(|row| serde_json::from_str(row).ok()).collect())
}
