//! The machines that run VMs, and how images do on them.

use super::{Applied, Result};
use crate::domain::ids::{HostId, TenantId};
use crate::domain::reason::VmEnd;
use chrono::{DateTime, Utc};
use sqlx::PgExecutor;

/// What a host says of itself when its daemon starts.
pub struct Introduction<'a> {
    /// Our id, if the host is new.
    pub id: HostId,
    /// Its unique label.
    pub name: &'a str,
    /// The public key that JIT configs are sealed to.
    pub public_key: &'a [u8],
    /// `vz`, `qemu` or `fake`.
    pub hypervisor: &'a str,
    /// The chip, as profiles name it.
    pub hardware: &'a str,
    /// Its operating system.
    pub os: &'a str,
    /// Its instruction set.
    pub architecture: &'a str,
    /// Vms at once.
    pub slots: u32,
    /// CPUs of the machine.
    pub cpus: u32,
    /// Memory of the machine in bytes.
    pub memory: u64,
    /// The daemon's version.
    pub version: &'a str,
    /// The oldest version of GitHub's runner that its guests get, if it is known.
    pub runner_version: Option<&'a str>,
    /// In which world its daemon runs: images are booted to ready in it once before work. `None`: they are not.
    pub world: Option<&'a str>,
    /// It serves some tenants only: none, until [`dedicate`] names them.
    pub is_dedicated: bool,
}

/// Makes the host, or writes what it is now, and begins a new session: the fence of all its writes.
pub async fn introduce(db: impl PgExecutor<'_>, host: &Introduction<'_>) -> Result<(HostId, i64)> {
    let row = sqlx::query!(
        r#"INSERT INTO hosts (id, name, public_key, hypervisor, hardware, os, architecture, slots, cpus, memory, version,
                              runner_version, session, seq, world, dedicated_to)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 1, 1, $13,
                   CASE WHEN $14::bool THEN '{}'::uuid[] END)
           ON CONFLICT (name) DO UPDATE SET
               public_key = EXCLUDED.public_key, hypervisor = EXCLUDED.hypervisor, hardware = EXCLUDED.hardware,
               os = EXCLUDED.os, architecture = EXCLUDED.architecture, slots = EXCLUDED.slots, cpus = EXCLUDED.cpus,
               memory = EXCLUDED.memory, version = EXCLUDED.version, runner_version = EXCLUDED.runner_version,
               session = hosts.session + 1, seq = hosts.seq + 1, beat_at = clock_timestamp(), world = EXCLUDED.world,
               dedicated_to = CASE WHEN $14 THEN coalesce(hosts.dedicated_to, EXCLUDED.dedicated_to) END
           RETURNING id AS "id: HostId", session"#,
        host.id.0,
        host.name,
        host.public_key,
        host.hypervisor,
        host.hardware,
        host.os,
        host.architecture,
        i32::try_from(host.slots).unwrap_or(i32::MAX),
        i32::try_from(host.cpus).unwrap_or(i32::MAX),
        i64::try_from(host.memory).unwrap_or(i64::MAX),
        host.version,
        host.runner_version,
        host.world,
        host.is_dedicated
    )
    .fetch_one(db)
    .await?;
    Ok((row.id, row.session))
}

/// Says whom a dedicated host serves.
pub async fn dedicate(db: impl PgExecutor<'_>, id: HostId, tenants: &[TenantId]) -> Result<()> {
    let tenants: Vec<uuid::Uuid> = tenants.iter().map(|tenant| tenant.0).collect();
    sqlx::query!(
        "UPDATE hosts SET dedicated_to = $2
         WHERE id = $1 AND dedicated_to IS NOT NULL AND dedicated_to IS DISTINCT FROM $2::uuid[]",
        id.0,
        &tenants
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The heartbeat: a number that moves as long as the host lives. Stale when a newer session began.
pub async fn beat(db: impl PgExecutor<'_>, id: HostId, session: i64) -> Result<Applied> {
    let rows = sqlx::query!(
        "UPDATE hosts SET seq = seq + 1, beat_at = clock_timestamp() WHERE id = $1 AND session = $2",
        id.0,
        session
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// Writes what a host can boot, and in which profiles its configuration differs. Stale when that is known, or a newer
/// session began.
pub async fn set_offer(
    db: impl PgExecutor<'_>,
    id: HostId,
    session: i64,
    can_boot: &[String],
    differs: &[String],
) -> Result<Applied> {
    let rows = sqlx::query!(
        "UPDATE hosts SET can_boot = $3, differs = $4
         WHERE id = $1 AND session = $2 AND (can_boot, differs) IS DISTINCT FROM ($3, $4)",
        id.0,
        session,
        can_boot,
        differs
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// True while the host is to take no new work.
pub async fn is_draining(db: impl PgExecutor<'_>, id: HostId) -> Result<bool> {
    Ok(sqlx::query_scalar!("SELECT draining FROM hosts WHERE id = $1", id.0).fetch_optional(db).await?.unwrap_or(false))
}

/// Who drains a host, and why.
pub struct Drain<'a> {
    /// The host's name; `None`: every host.
    pub host: Option<&'a str>,
    /// Why, in the operator's words.
    pub reason: Option<&'a str>,
    /// Who said so.
    pub by: &'a str,
}

/// Stops new work on hosts. Answers how many there are of that name.
pub async fn drain(db: impl PgExecutor<'_>, drain: &Drain<'_>) -> Result<u64> {
    Ok(sqlx::query!(
        "UPDATE hosts SET draining = true, drain_reason = CASE WHEN draining THEN COALESCE($2, drain_reason) ELSE $2 END,
                drained_by = CASE WHEN draining THEN drained_by ELSE $3 END,
                drained_at = CASE WHEN draining THEN drained_at ELSE clock_timestamp() END
         WHERE $1::text IS NULL OR name = $1",
        drain.host,
        drain.reason,
        drain.by
    )
    .execute(db)
    .await?
    .rows_affected())
}

/// Lets hosts take work again. Answers how many there are of that name.
pub async fn resume(db: impl PgExecutor<'_>, host: Option<&str>) -> Result<u64> {
    Ok(sqlx::query!(
        "UPDATE hosts SET draining = false, drain_reason = NULL, drained_by = NULL, drained_at = NULL
         WHERE $1::text IS NULL OR name = $1",
        host
    )
    .execute(db)
    .await?
    .rows_affected())
}

/// One host, as the operator sees it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Host {
    /// Our id.
    pub id: HostId,
    /// Its unique label.
    pub name: String,
    /// `vz`, `qemu` or `fake`.
    pub hypervisor: String,
    /// The chip.
    pub hardware: String,
    /// Its operating system.
    pub os: String,
    /// Its instruction set.
    pub architecture: String,
    /// Vms at once.
    pub slots: i32,
    /// CPUs of the machine.
    pub cpus: i32,
    /// Memory in bytes.
    pub memory: i64,
    /// The daemon's version.
    pub version: String,
    /// The oldest version of GitHub's runner that its guests get, if it is known.
    pub runner_version: Option<String>,
    /// When it was last heard of.
    pub beat_at: DateTime<Utc>,
    /// How long ago that was, in seconds of the database's clock.
    pub silent_for_s: f64,
    /// It takes no new work.
    pub draining: bool,
    /// Why.
    pub drain_reason: Option<String>,
    /// Who said so.
    pub drained_by: Option<String>,
    /// Since when.
    pub drained_at: Option<DateTime<Utc>>,
    /// Vms that hold a slot.
    pub vms: i64,
    /// Profiles that it can boot; `None`: it has not said yet.
    pub can_boot: Option<Vec<String>>,
    /// Profiles that its configuration has otherwise than the gateway.
    pub differs: Option<Vec<String>>,
    /// No image was booted to ready since it, its system or its flyci changed.
    pub untested: bool,
    /// The only tenants that it serves; `None`: all.
    pub dedicated_to: Option<Vec<uuid::Uuid>>,
}

impl Host {
    /// True when it may serve this tenant.
    #[must_use]
    pub fn serves(&self, tenant: TenantId) -> bool {
        self.dedicated_to.as_ref().is_none_or(|only| only.contains(&tenant.0))
    }
}

/// Every host, by name.
pub async fn all(db: impl PgExecutor<'_>) -> Result<Vec<Host>> {
    Ok(sqlx::query_as!(
        Host,
        r#"SELECT h.id AS "id: HostId", h.name, h.hypervisor, h.hardware, h.os, h.architecture, h.slots, h.cpus, h.memory,
                  h.version, h.runner_version, h.beat_at,
                  extract(epoch FROM clock_timestamp() - h.beat_at)::float8 AS "silent_for_s!",
                  h.draining, h.drain_reason, h.drained_by, h.drained_at, h.can_boot, h.differs,
                  (SELECT count(*) FROM vms v WHERE v.host_id = h.id AND v.state <> 'gone') AS "vms!",
                  (h.world IS NOT NULL AND NOT EXISTS (SELECT 1 FROM host_images i
                       WHERE i.host_id = h.id AND i.proven_in = h.world)) AS "untested!", h.dedicated_to
           FROM hosts h ORDER BY h.name"#
    )
    .fetch_all(db)
    .await?)
}

/// An image that failed on a host.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ImageHealth {
    /// The host's name.
    pub host: String,
    /// The image's digest.
    pub image: String,
    /// Failures in a row.
    pub failures: i32,
    /// The reason of the last one.
    pub last_failure: Option<String>,
    /// No vm of it is made here before then, if that is still to come.
    pub quarantined_until: Option<DateTime<Utc>>,
}

/// Every pair of host and image whose last boot failed.
pub async fn failing_images(db: impl PgExecutor<'_>) -> Result<Vec<ImageHealth>> {
    Ok(sqlx::query_as!(
        ImageHealth,
        "SELECT h.name AS host, i.image, i.failures, i.last_failure, i.quarantined_until
         FROM host_images i JOIN hosts h ON h.id = i.host_id WHERE i.failures > 0 ORDER BY h.name, i.image"
    )
    .fetch_all(db)
    .await?)
}

/// Whether vms of an image may be made on a host now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// As many as fit.
    Good,
    /// One at a time: it failed too often, and the wait is over.
    Canary,
    /// One, even where none is wanted: it did not boot yet since the host, its system or its flyci changed.
    Untested,
    /// None yet.
    Quarantined,
}

/// How an image does on a host.
pub async fn health(db: impl PgExecutor<'_>, host: HostId, image: &str) -> Result<Health> {
    let row = sqlx::query!(
        r#"SELECT coalesce(i.failures, 0) AS "failures!", i.quarantined_until > clock_timestamp() AS "waiting?",
                  i.quarantined_until IS NOT NULL AS "was!",
                  (h.world IS NOT NULL AND i.proven_in IS DISTINCT FROM h.world) AS "untested!"
           FROM hosts h LEFT JOIN host_images i ON i.host_id = h.id AND i.image = $2 WHERE h.id = $1"#,
        host.0,
        image
    )
    .fetch_optional(db)
    .await?;
    Ok(match row {
        Some(row) if row.waiting == Some(true) => Health::Quarantined,
        Some(row) if row.untested => Health::Untested,
        Some(row) if row.was && row.failures > 0 => Health::Canary,
        Some(_) | None => Health::Good,
    })
}

/// How much a failure weighs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weight {
    /// The third in a row quarantines the pair.
    Once,
    /// The pair is quarantined at once: it cannot get better by itself.
    Final,
}

/// Failures in a row that quarantine a pair.
const QUARANTINE_AFTER: i32 = 3;

/// Charges a failure to the pair of host and image. A quarantine lasts 1 minute, then twice as long
/// each time, up to an hour.
pub async fn image_failed(
    db: impl PgExecutor<'_>,
    host: HostId,
    image: &str,
    reason: VmEnd,
    weight: Weight,
) -> Result<()> {
    let first = match weight {
        Weight::Once => 1,
        Weight::Final => QUARANTINE_AFTER,
    };
    sqlx::query!(
        "INSERT INTO host_images AS i (host_id, image, failures, last_failure, quarantined_until)
         VALUES ($1, $2, $4::int, $3, CASE WHEN $4::int >= $5::int THEN clock_timestamp() + interval '1 minute' END)
         ON CONFLICT (host_id, image) DO UPDATE SET
            failures = greatest(i.failures + 1, $4::int), last_failure = EXCLUDED.last_failure,
            quarantined_until = CASE WHEN greatest(i.failures + 1, $4::int) >= $5::int
                THEN clock_timestamp() + least(power(2, least(greatest(i.failures + 1, $4::int) - $5::int, 6)), 60) * interval '1 minute'
                END",
        host.0,
        image,
        reason.as_str(),
        first,
        QUARANTINE_AFTER
    )
    .execute(db)
    .await?;
    Ok(())
}

/// An image booted to ready on a host: its failures to boot are forgotten. That its runner is too old is not.
pub async fn image_booted(db: impl PgExecutor<'_>, host: HostId, image: &str) -> Result<()> {
    sqlx::query!(
        "UPDATE host_images SET failures = 0, last_failure = NULL, quarantined_until = NULL
         WHERE host_id = $1 AND image = $2 AND failures > 0 AND last_failure <> $3",
        host.0,
        image,
        VmEnd::RunnerTooOld.as_str()
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Forgets how an image did on a host: a trial begins anew.
pub async fn forget_image(db: impl PgExecutor<'_>, host: HostId, image: &str) -> Result<()> {
    sqlx::query!("DELETE FROM host_images WHERE host_id = $1 AND image = $2", host.0, image).execute(db).await?;
    Ok(())
}

/// Whether the host tests images, and this one was not ready yet in its world.
pub async fn is_untested(db: impl PgExecutor<'_>, host: HostId, image: &str) -> Result<bool> {
    Ok(sqlx::query_scalar!(
        r#"SELECT (h.world IS NOT NULL AND i.proven_in IS DISTINCT FROM h.world) AS "is_untested!"
           FROM hosts h LEFT JOIN host_images i ON i.host_id = h.id AND i.image = $2 WHERE h.id = $1"#,
        host.0,
        image
    )
    .fetch_one(db)
    .await?)
}

/// The world of a host is another now: what was proven must be proven anew.
pub async fn renew_world(db: impl PgExecutor<'_>, host: HostId, world: &str) -> Result<()> {
    sqlx::query!("UPDATE hosts SET world = $2 WHERE id = $1 AND world IS DISTINCT FROM $2", host.0, world)
        .execute(db)
        .await?;
    Ok(())
}

/// An image booted to ready in the world in which the host runs now: vms of it may be made.
pub async fn image_proven(db: impl PgExecutor<'_>, host: HostId, image: &str) -> Result<()> {
    sqlx::query!(
        "INSERT INTO host_images AS i (host_id, image, proven_in)
         SELECT id, $2, world FROM hosts WHERE id = $1 AND world IS NOT NULL
         ON CONFLICT (host_id, image) DO UPDATE SET proven_in = EXCLUDED.proven_in
         WHERE i.proven_in IS DISTINCT FROM EXCLUDED.proven_in",
        host.0,
        image
    )
    .execute(db)
    .await?;
    Ok(())
}

/// A job was served from an image on a host: nothing is wrong with the pair.
pub async fn image_served(db: impl PgExecutor<'_>, host: HostId, image: &str) -> Result<()> {
    sqlx::query!(
        "UPDATE host_images SET failures = 0, last_failure = NULL, quarantined_until = NULL
         WHERE host_id = $1 AND image = $2 AND failures > 0",
        host.0,
        image
    )
    .execute(db)
    .await?;
    Ok(())
}
