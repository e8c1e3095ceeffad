//! The one row that says which fleet this database is of.

use super::Result;
use crate::domain::ids::FleetId;
use sqlx::{PgExecutor, PgPool};

/// Which versions can work with the database.
pub struct Schema {
    /// Its schema.
    pub schema: i32,
    /// The oldest schema version whose programs may read it.
    pub min_reader: i32,
}

/// The schema of a database, `None` when it is empty. Checked at run time, since the table may
/// not be there.
pub async fn find_schema(pool: &PgPool) -> Result<Option<Schema>> {
    let there: bool = sqlx::query_scalar("SELECT to_regclass('public.fleet') IS NOT NULL").fetch_one(pool).await?;
    if !there {
        return Ok(None);
    }
    let (schema, min_reader) = sqlx::query_as("SELECT schema, min_reader FROM fleet").fetch_one(pool).await?;
    Ok(Some(Schema { schema, min_reader }))
}

/// The fleet's id.
pub async fn id(db: impl PgExecutor<'_>) -> Result<FleetId> {
    Ok(sqlx::query_scalar!(r#"SELECT id AS "id: FleetId" FROM fleet"#).fetch_one(db).await?)
}
