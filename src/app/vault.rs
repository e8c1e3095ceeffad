//! The gateway's keys and what is written down of their use: the ring, the audit trail, and the tasks that
//! look after both.

use super::AppError;
use super::database::Databases;
use super::loops::{By, Loops, More, Never};
use crate::config::Config;
use crate::domain::units::Span;
use crate::lifecycle::Machine;
use crate::secrets::KeyRing;
use crate::secrets::vouch::{HostFacts, Warrant};
use crate::store::audit::Trail;
use crate::store::{Applied, joins, keys};
use crate::upkeep::erase::Eraser;
use crate::upkeep::joins::Joins;
use crate::upkeep::keys::{Keeper, KeyPlan, KeysError};
use crate::upkeep::trail::{self, Auditor};
use crate::wake::Wakes;
use chrono::Utc;
use sqlx::PgPool;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use uuid::Uuid;

/// How often the keys are looked at: another gateway waits for this one to have the newest.
const KEYS_PERIOD: Duration = Duration::from_secs(5);
/// How often hosts that ask to join are looked for: somebody waits at a terminal.
const JOINS_PERIOD: Duration = Duration::from_secs(2);
/// How often erasures are looked at although nobody woke them.
const ERASE_PERIOD: Duration = Duration::from_secs(10);
/// How often the trail's heads are told.
const TRAIL_PERIOD: Duration = Duration::from_secs(600);

/// What holds and guards the keys. Cheap to clone.
#[derive(Clone)]
pub struct Vault {
    /// Opens what is stored of tenants.
    pub ring: Arc<KeyRing>,
    /// Where acts are written down.
    pub trail: Trail,
    /// Vouches for hosts.
    pub warrant: Arc<Warrant>,
    /// Lets hosts in.
    pub joins: Arc<Joins>,
    /// Rotates the master key.
    pub keeper: Arc<Keeper>,
    /// Forgets tenants.
    pub eraser: Arc<Eraser>,
    /// Verifies the trail.
    pub auditor: Arc<Auditor>,
    /// Wakes loops and drivers.
    pub wakes: Arc<Wakes>,
}

impl Vault {
    /// Makes sure that what is stored can be opened, and goes on with a rotation that was begun. `id` names this
    /// gateway among several, a killed daemon's like its successor's.
    ///
    /// # Errors
    /// When a master key is missing that something stored needs, or the database is away.
    pub async fn open(
        config: &Config,
        databases: &Databases,
        ring: Arc<KeyRing>,
        id: Uuid,
        wakes: &Arc<Wakes>,
    ) -> Result<Self, AppError> {
        let pool = databases.gateway();
        check(config, pool, &ring).await?;
        let days = |span: Span| chrono::Duration::from_std(span.0).unwrap_or(chrono::Duration::MAX);
        let trail = trail::open(pool, &ring, &config.host.name).await?;
        let warrant = Arc::new(trail.warrant());
        let fleet = databases.fleet().await?;
        let joins = Joins { pool: pool.clone(), warrant: Arc::clone(&warrant), trail: trail.clone(), fleet };
        let plan =
            KeyPlan { rotate_every: config.keys.rotate_every.map(days), backups: days(config.retention.backups) };
        let keeper = Keeper {
            pool: pool.clone(),
            ring: Arc::clone(&ring),
            trail: trail.clone(),
            gateway: id,
            name: config.host.name.clone(),
            plan,
        };
        let eraser = Eraser {
            pool: pool.clone(),
            maintenance: databases.maintenance.clone(),
            ring: Arc::clone(&ring),
            trail: trail.clone(),
            plan,
            grace: days(config.retention.uninstalled),
            wakes: Arc::clone(wakes),
            unclean: AtomicBool::new(false),
        };
        let auditor = Auditor::new(pool.clone(), trail.clone(), days(config.retention.audit));
        keeper.pass().await?;
        let (keeper, eraser, auditor) = (Arc::new(keeper), Arc::new(eraser), Arc::new(auditor));
        Ok(Self { ring, trail, warrant, joins: Arc::new(joins), keeper, eraser, auditor, wakes: Arc::clone(wakes) })
    }

    /// Vouches for the host of this very process.
    ///
    /// # Errors
    /// When the database is away, or its row is not as the host wrote it.
    pub async fn vouch(&self, pool: &PgPool, machine: &Machine) -> Result<(), AppError> {
        let own = joins::identity(pool, &machine.name).await?.filter(|row| row.id == machine.fence.host);
        let Some(row) = own else { return Err(AppError::NotThisHost(machine.name.clone())) };
        let facts = HostFacts {
            fleet: machine.fleet,
            id: row.id,
            name: &row.name,
            login: &row.login,
            public_key: machine.key.public(),
        };
        match joins::vouch(pool, row.id, machine.key.public(), &self.warrant.vouch(&facts)).await? {
            Applied::Yes => Ok(()),
            Applied::Stale => Err(AppError::NotThisHost(machine.name.clone())),
        }
    }

    /// Starts what looks after the keys, the erasures and the trail.
    pub fn start(&self, loops: &Loops) {
        let joins = Arc::clone(&self.joins);
        loops.spawn("joins", JOINS_PERIOD, Never, move || {
            let joins = Arc::clone(&joins);
            async move { joins.pass().await.map(|_| More::No) }
        });
        let keeper = Arc::clone(&self.keeper);
        loops.spawn("keys", KEYS_PERIOD, Never, move || {
            let keeper = Arc::clone(&keeper);
            async move {
                let report = keeper.pass().await?;
                Ok::<_, KeysError>(if report.is_partial { More::Now } else { More::No })
            }
        });
        let eraser = Arc::clone(&self.eraser);
        loops.spawn("erase", ERASE_PERIOD, By(Arc::clone(&self.wakes), |wakes| &wakes.erase), move || {
            let eraser = Arc::clone(&eraser);
            async move { eraser.pass(Utc::now()).await.map(|_| More::No) }
        });
        let auditor = Arc::clone(&self.auditor);
        loops.spawn("audit", TRAIL_PERIOD, Never, move || {
            let auditor = Arc::clone(&auditor);
            async move { auditor.pass(Utc::now()).await.map(|removed| if removed > 0 { More::Now } else { More::No }) }
        });
    }
}

/// A key that was lost is made anew when the daemon starts, and would seal new values beside old ones that
/// nobody can read.
async fn check(config: &Config, pool: &PgPool, ring: &KeyRing) -> Result<(), AppError> {
    let at_hand = ring.master_key_ids();
    let known = keys::master_keys(pool).await?;
    match known.iter().find(|key| key.is_needed() && !at_hand.contains(&key.id)) {
        Some(missing) => Err(AppError::OtherMasterKey { place: config.keys.master.to_string(), missing: missing.id }),
        None => Ok(()),
    }
}
