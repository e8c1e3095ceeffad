//! Demand and supply: how many vms a profile wants, and which class a ready vm takes.
//!
//! Demand is counted, never paired with a vm: GitHub gives a queued job to any idle runner of its
//! class. A class's *deficit* is its queued jobs less its vms that have no job and are not stopping.
//! Whoever changes a class's supply holds that class's lock, and counts again under it, because a
//! statement's snapshot is older than the lock that it waited for.

use super::runners::{self, NewRunner};
use super::vms::{self, Fence};
use super::{Applied, Result};
use crate::domain::class::Class;
use crate::domain::ids::{HostId, RepositoryId, RunnerId, TenantId, VmId};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgExecutor, PgPool};

/// The kinds of advisory locks, in the order in which they are taken.
#[derive(Clone, Copy)]
enum Lock<'a> {
    Profile(&'a str),
    Class(Class),
    Tenant(TenantId),
}

/// Holds a lock until the transaction ends. Two things of one 32-bit key merely wait for each other.
async fn lock(db: &mut PgConnection, lock: Lock<'_>) -> Result<()> {
    let (kind, bytes) = match lock {
        Lock::Profile(label) => (1, label.as_bytes().to_vec()),
        Lock::Class(class) => (2, class.0.to_be_bytes().to_vec()),
        Lock::Tenant(tenant) => (3, tenant.0.as_bytes().to_vec()),
    };
    let digest = Sha256::digest(&bytes);
    let key = i32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    sqlx::query!("SELECT pg_advisory_xact_lock($1, $2)", kind, key).execute(db).await?;
    Ok(())
}

/// Takes the profile's lock: of the hosts that want to plan vms for it, one counts at a time.
pub async fn lock_profile(db: &mut PgConnection, profile: &str) -> Result<()> {
    lock(db, Lock::Profile(profile)).await
}

/// How many more vms of a profile are wanted: the deficits of its classes, as far as their tenants
/// may have more vms, and the warm ones, less the blank vms there are. Of a dedicated host only its own tenants' count.
pub async fn wanted(
    db: impl PgExecutor<'_>,
    host: HostId,
    profile: &str,
    vms_per_tenant: u32,
    warm: u32,
) -> Result<i64> {
    Ok(sqlx::query_scalar!(
        r#"WITH supply AS (
               SELECT v.class, count(*) AS jobless FROM vms v
               WHERE v.class IS NOT NULL AND v.profile = $1 AND v.state NOT IN ('stopping', 'gone', 'abandoned')
                 AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.vm_id = v.id)
               GROUP BY v.class),
           demand AS (
               SELECT class, tenant_id, count(*) AS queued FROM jobs
               WHERE state = 'queued' AND profile = $1 AND verify_since IS NULL
                 AND (not_before IS NULL OR not_before <= clock_timestamp())
               GROUP BY class, tenant_id),
           deficit AS (
               SELECT d.tenant_id, sum(greatest(d.queued - coalesce(s.jobless, 0), 0)) AS vms
               FROM demand d LEFT JOIN supply s ON s.class = d.class GROUP BY d.tenant_id)
           SELECT (
               (SELECT coalesce(sum(least(f.vms, greatest(coalesce(t.vm_limit, $2)
                       - (SELECT count(*) FROM vms v WHERE v.tenant_id = t.id
                          AND v.state NOT IN ('stopping', 'gone', 'abandoned')), 0))), 0)
                FROM deficit f JOIN tenants t ON t.id = f.tenant_id
                WHERE t.admission = 'approved' AND t.suspended_at IS NULL AND t.uninstalled_at IS NULL
                  AND coalesce((SELECT h.dedicated_to IS NULL OR t.id = ANY (h.dedicated_to)
                                FROM hosts h WHERE h.id = $4), true))
               + $3::bigint
               - (SELECT count(*) FROM vms WHERE profile = $1 AND class IS NULL
                  AND state IN ('planned', 'cloning', 'cloned', 'booting', 'ready'))
           )::bigint AS "wanted!""#,
        profile,
        i32::try_from(vms_per_tenant).unwrap_or(i32::MAX),
        i64::from(warm),
        host.0
    )
    .fetch_one(db)
    .await?)
}

/// A class that wants a vm.
struct Candidate {
    class: Class,
    tenant: TenantId,
    repository: RepositoryId,
    labels: Vec<String>,
}

/// What a ready vm found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Binding {
    /// It took a class, and a runner is requested for it.
    Bound(RunnerId),
    /// No class wants a vm of its profile.
    NoDemand,
    /// Others were faster each time: try again soon.
    Contended,
}

/// How often a vm that lost a class to another looks for the next.
const BIND_TRIES: u32 = 4;

/// Binds a ready vm to the fairest class of its profile that has a deficit: the tenant that was served
/// longest ago, then its oldest job. Requests a runner in the same transaction.
pub async fn bind(pool: &PgPool, fence: Fence, vm: VmId, profile: &str, vms_per_tenant: u32) -> Result<Binding> {
    for _ in 0..BIND_TRIES {
        let mut tx = pool.begin().await?;
        let Some(candidate) = fairest(&mut *tx, fence.host, profile, vms_per_tenant).await? else {
            return Ok(Binding::NoDemand);
        };
        lock(&mut tx, Lock::Class(candidate.class)).await?;
        lock(&mut tx, Lock::Tenant(candidate.tenant)).await?;
        if !still_wants(&mut *tx, &candidate, profile, vms_per_tenant).await? {
            tx.rollback().await?;
            continue;
        }
        let bound = vms::bind(&mut *tx, fence, vm, candidate.tenant, candidate.repository, candidate.class).await?;
        if bound == Applied::Stale {
            return Ok(Binding::Contended);
        }
        let runner = RunnerId::random();
        runners::request(
            &mut *tx,
            &NewRunner {
                id: runner,
                vm,
                host: fence.host,
                tenant: candidate.tenant,
                repository: candidate.repository,
                labels: &candidate.labels,
                class: candidate.class,
            },
        )
        .await?;
        remember_claim(&mut *tx, candidate.tenant, profile).await?;
        tx.commit().await?;
        return Ok(Binding::Bound(runner));
    }
    Ok(Binding::Contended)
}

async fn fairest(
    db: impl PgExecutor<'_>,
    host: HostId,
    profile: &str,
    vms_per_tenant: u32,
) -> Result<Option<Candidate>> {
    Ok(sqlx::query_as!(
        Candidate,
        r#"WITH demand AS (
               SELECT class, tenant_id, repository_id, min(labels) AS labels, count(*) AS queued, min(queued_at) AS oldest
               FROM jobs
               WHERE state = 'queued' AND profile = $1 AND verify_since IS NULL
                 AND (not_before IS NULL OR not_before <= clock_timestamp())
               GROUP BY class, tenant_id, repository_id)
           SELECT d.class AS "class: Class", d.tenant_id AS "tenant: TenantId",
                  d.repository_id AS "repository: RepositoryId", d.labels AS "labels!"
           FROM demand d JOIN tenants t ON t.id = d.tenant_id
           LEFT JOIN lanes l ON l.tenant_id = d.tenant_id AND l.profile = $1
           WHERE t.admission = 'approved' AND t.suspended_at IS NULL AND t.uninstalled_at IS NULL
             AND coalesce((SELECT h.dedicated_to IS NULL OR t.id = ANY (h.dedicated_to)
                           FROM hosts h WHERE h.id = $3), true)
             AND d.queued > (SELECT count(*) FROM vms v WHERE v.class = d.class
                             AND v.state NOT IN ('stopping', 'gone', 'abandoned')
                             AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.vm_id = v.id))
             AND coalesce(t.vm_limit, $2) > (SELECT count(*) FROM vms v WHERE v.tenant_id = t.id
                                             AND v.state NOT IN ('stopping', 'gone', 'abandoned'))
           ORDER BY l.last_claim NULLS FIRST, d.oldest LIMIT 1"#,
        profile,
        i32::try_from(vms_per_tenant).unwrap_or(i32::MAX),
        host.0
    )
    .fetch_optional(db)
    .await?)
}

async fn still_wants(
    db: impl PgExecutor<'_>,
    candidate: &Candidate,
    profile: &str,
    vms_per_tenant: u32,
) -> Result<bool> {
    Ok(sqlx::query_scalar!(
        r#"SELECT (
             (SELECT count(*) FROM jobs WHERE class = $1 AND profile = $4 AND state = 'queued' AND verify_since IS NULL
               AND (not_before IS NULL OR not_before <= clock_timestamp()))
             > (SELECT count(*) FROM vms v WHERE v.class = $1 AND v.state NOT IN ('stopping', 'gone', 'abandoned')
                AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.vm_id = v.id))
             AND (SELECT coalesce(vm_limit, $3) FROM tenants WHERE id = $2)
             > (SELECT count(*) FROM vms v WHERE v.tenant_id = $2 AND v.state NOT IN ('stopping', 'gone', 'abandoned'))
           ) AS "wants!""#,
        candidate.class.0,
        candidate.tenant.0,
        i32::try_from(vms_per_tenant).unwrap_or(i32::MAX),
        profile
    )
    .fetch_one(db)
    .await?)
}

async fn remember_claim(db: impl PgExecutor<'_>, tenant: TenantId, profile: &str) -> Result<()> {
    sqlx::query!("SELECT lane_served($1, $2)", tenant.0, profile).execute(db).await?;
    Ok(())
}

/// How many of its class's vms without a job are no younger than this one, itself among them; `None`: it has no class.
pub async fn rank(db: impl PgExecutor<'_>, vm: VmId) -> Result<Option<i64>> {
    Ok(sqlx::query_scalar!(
        r#"SELECT (SELECT count(*) FROM vms o
                   WHERE o.class = v.class AND o.state NOT IN ('stopping', 'gone', 'abandoned')
                     AND (o.bound_at, o.id) <= (v.bound_at, v.id)
                     AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.vm_id = o.id)) AS "rank!"
           FROM vms v WHERE v.id = $1 AND v.class IS NOT NULL"#,
        vm.0
    )
    .fetch_optional(db)
    .await?)
}

/// True while a vm that has no job is covered by a queued job of its class: of more vms than queued
/// jobs, the youngest are not. Jobs in doubt count here, so that a doubt costs no vm.
pub async fn stands(db: impl PgExecutor<'_>, vm: VmId) -> Result<bool> {
    Ok(sqlx::query_scalar!(
        r#"SELECT (SELECT count(*) FROM vms o
                   WHERE o.class = v.class AND o.state NOT IN ('stopping', 'gone', 'abandoned')
                     AND (o.bound_at, o.id) <= (v.bound_at, v.id)
                     AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.vm_id = o.id))
                  <= (SELECT count(*) FROM jobs j WHERE j.class = v.class AND j.profile = v.profile AND j.state = 'queued')
                  AS "stands!"
           FROM vms v
           WHERE v.id = $1 AND v.class IS NOT NULL AND v.state NOT IN ('stopping', 'gone', 'abandoned')"#,
        vm.0
    )
    .fetch_optional(db)
    .await?
    .unwrap_or(false))
}
