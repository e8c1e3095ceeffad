//! Which key is which host's: invitations, hosts that ask to join, and what gateways vouched for.

use super::{Applied, Result};
use crate::domain::ids::HostId;
use chrono::{DateTime, Utc};
use sqlx::PgExecutor;

/// Who may join, by which login, and until when.
#[derive(Clone, Debug)]
pub struct Invitation {
    /// The host's name.
    pub name: String,
    /// The database login that it joins with.
    pub login: String,
    /// Makes the token.
    pub nonce: Vec<u8>,
    /// When it ends.
    pub until: DateTime<Utc>,
}

/// Invites a host for `minutes`, in the place of an earlier invitation; one that was revoked may come back by it.
/// Answers when it ends.
pub async fn invite(
    db: &mut sqlx::PgConnection,
    name: &str,
    login: &str,
    nonce: &[u8],
    minutes: i32,
) -> Result<DateTime<Utc>> {
    sqlx::query!("UPDATE hosts SET revoked_at = NULL WHERE name = $1 AND login = $2", name, login)
        .execute(&mut *db)
        .await?;
    Ok(sqlx::query_scalar!(
        "INSERT INTO invitations (name, login, nonce, until)
         VALUES ($1, $2, $3, clock_timestamp() + make_interval(mins => $4))
         ON CONFLICT (name) DO UPDATE SET login = EXCLUDED.login, nonce = EXCLUDED.nonce, until = EXCLUDED.until
         RETURNING until",
        name,
        login,
        nonce,
        minutes
    )
    .fetch_one(db)
    .await?)
}

/// Takes the invitation that fits an applicant, so that nobody uses it again.
pub async fn take(db: impl PgExecutor<'_>, name: &str, login: &str) -> Result<Option<Invitation>> {
    Ok(sqlx::query_as!(
        Invitation,
        "DELETE FROM invitations WHERE name = $1 AND login = $2 AND until > clock_timestamp()
         RETURNING name, login, nonce, until",
        name,
        login
    )
    .fetch_optional(db)
    .await?)
}

/// Forgets invitations that nobody took in time.
pub async fn expire(db: impl PgExecutor<'_>) -> Result<()> {
    sqlx::query!("DELETE FROM invitations WHERE until <= clock_timestamp()").execute(db).await?;
    Ok(())
}

/// A host that says that a key is its own.
#[derive(Clone, Debug)]
pub struct Applicant {
    /// The host.
    pub id: HostId,
    /// Its unique name.
    pub name: String,
    /// The login that its row belongs to.
    pub login: String,
    /// The key.
    pub public_key: Vec<u8>,
    /// Its proof by the token.
    pub proof: Vec<u8>,
}

/// Up to `limit` hosts that wait for a gateway's word.
pub async fn applicants(db: impl PgExecutor<'_>, limit: i64) -> Result<Vec<Applicant>> {
    Ok(sqlx::query_as!(
        Applicant,
        r#"SELECT id AS "id: HostId", name, login, public_key, join_proof AS "proof!" FROM hosts
           WHERE join_proof IS NOT NULL ORDER BY name LIMIT $1"#,
        limit
    )
    .fetch_all(db)
    .await?)
}

/// Gives a gateway's word on an application: a MAC, or none. Stale when the host wrote another key meanwhile. One that
/// was revoked in the meantime stays out.
pub async fn settle(db: impl PgExecutor<'_>, applicant: &Applicant, mac: Option<&[u8]>) -> Result<Applied> {
    let rows = sqlx::query!(
        "UPDATE hosts SET join_proof = NULL, mac = CASE WHEN revoked_at IS NULL THEN $4::bytea END
         WHERE id = $1 AND public_key = $2 AND join_proof = $3",
        applicant.id.0,
        applicant.public_key,
        applicant.proof,
        mac
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// Which key is a host's, and who says so.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The host.
    pub id: HostId,
    /// Its unique name.
    pub name: String,
    /// The login that its row belongs to.
    pub login: String,
    /// The key.
    pub public_key: Vec<u8>,
    /// A gateway's word; `None`: it has not joined.
    pub mac: Option<Vec<u8>>,
    /// It waits for a gateway's word.
    pub is_waiting: bool,
    /// It was thrown out.
    pub is_revoked: bool,
}

/// The identity of the host of this name, if the caller may see it.
pub async fn identity(db: impl PgExecutor<'_>, name: &str) -> Result<Option<Identity>> {
    Ok(sqlx::query_as!(
        Identity,
        r#"SELECT id AS "id: HostId", name, login, public_key, mac, join_proof IS NOT NULL AS "is_waiting!",
                  revoked_at IS NOT NULL AS "is_revoked!"
           FROM hosts WHERE name = $1"#,
        name
    )
    .fetch_optional(db)
    .await?)
}

/// Writes a gateway's word for the host of its own process, if the key is still this one.
pub async fn vouch(db: impl PgExecutor<'_>, id: HostId, public_key: &[u8], mac: &[u8]) -> Result<Applied> {
    let rows = sqlx::query!(
        "UPDATE hosts SET mac = $3, join_proof = NULL WHERE id = $1 AND public_key = $2 AND revoked_at IS NULL",
        id.0,
        public_key,
        mac
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// Throws a host out: its login writes nothing any more, and nothing is sealed to it. `None`: there is none of that name.
pub async fn revoke(db: &mut sqlx::PgConnection, name: &str) -> Result<Option<(HostId, String)>> {
    sqlx::query!("DELETE FROM invitations WHERE name = $1", name).execute(&mut *db).await?;
    let row = sqlx::query!(
        r#"UPDATE hosts SET revoked_at = coalesce(revoked_at, clock_timestamp()), mac = NULL, join_proof = NULL
           WHERE name = $1 RETURNING id AS "id: HostId", login"#,
        name
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| (row.id, row.login)))
}

/// The login that this connection belongs to, whatever role it acts as.
pub async fn login(db: impl PgExecutor<'_>) -> Result<String> {
    Ok(sqlx::query_scalar!(r#"SELECT session_user::text AS "login!""#).fetch_one(db).await?)
}

/// Asks to join as the host.
pub async fn apply(db: impl PgExecutor<'_>, id: HostId, name: &str, public_key: &[u8], proof: &[u8]) -> Result<()> {
    // What the machine is, its daemon writes when it starts.
    sqlx::query!(
        "INSERT INTO hosts (id, name, public_key, join_proof, hypervisor, hardware, os, architecture, slots, cpus,
                            memory, version)
         VALUES ($1, $2, $3, $4, '', '', '', '', 0, 0, 0, '')
         ON CONFLICT (name) DO UPDATE SET public_key = EXCLUDED.public_key, join_proof = EXCLUDED.join_proof",
        id.0,
        name,
        public_key,
        proof
    )
    .execute(db)
    .await?;
    Ok(())
}
