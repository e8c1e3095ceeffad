//! Forgets tenants: those that the operator asks to forget, and those that uninstalled the App longer
//! ago than the configured grace.
//!
//! What runs for a tenant ends first. Then its rows go batch by batch, and its own row last, with the
//! wrapped keys: from then on nothing of it that is left in a file of the database can be read by who has
//! the database alone. What is still readable with the master key of before, from a backup of before, is
//! final when that key is destroyed and those backups are gone (`keys`).

use super::keys::{KeyPlan, shown};
use crate::domain::ids::TenantId;
use crate::errors::chain;
use crate::points::effect;
use crate::secrets::KeyRing;
use crate::store::audit::{Act, Trail};
use crate::store::erasure::{self, Due};
use crate::store::{Maintenance, StoreError, keys};
use crate::wake::Wakes;
use chrono::{DateTime, Duration, Utc};
use sqlx::PgPool;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Tenants of one pass.
const TENANTS: i64 = 10;
/// Rows of a kind that go in one statement.
const BATCH: i64 = 1_000;
/// Statements of each kind in one pass: a pass is short.
const BATCHES: usize = 50;
/// How long GitHub may take to let go of a tenant's registrations: it drops them by itself within a day.
const REMOVAL_PATIENCE: Duration = Duration::minutes(10);

/// Forgets tenants.
pub struct Eraser {
    /// Acts as the gateway.
    pub pool: PgPool,
    /// Cleans up as the tables' owner.
    pub maintenance: Maintenance,
    /// Holds tenants' keys in memory.
    pub ring: Arc<KeyRing>,
    /// Where each erasure is written down.
    pub trail: Trail,
    /// What the configuration says of keys.
    pub plan: KeyPlan,
    /// How long after its uninstallation a tenant is kept.
    pub grace: Duration,
    /// Wakes the drivers of the vms that are to end.
    pub wakes: Arc<Wakes>,
    /// Rows were removed and are in the files of the database.
    pub unclean: AtomicBool,
}

/// What one pass did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct EraseReport {
    /// Tenants that are forgotten.
    pub erased: u64,
    /// Tenants whose vms or registrations must end first, or that have more rows.
    pub waiting: u64,
}

impl Eraser {
    /// One round.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn pass(&self, now: DateTime<Utc>) -> Result<EraseReport, StoreError> {
        for tenant in erasure::forgotten_by_github(&self.pool, now - self.grace, TENANTS).await? {
            self.ask(tenant, "gateway", Some("it uninstalled the App")).await?;
        }
        let mut report = EraseReport::default();
        for due in erasure::due(&self.pool, TENANTS).await? {
            if self.erase(&due, now).await? {
                report.erased += 1;
            } else {
                report.waiting += 1;
            }
        }
        self.clean().await;
        Ok(report)
    }

    /// Asks for a tenant to be forgotten.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn ask(&self, tenant: TenantId, actor: &str, detail: Option<&str>) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        erasure::ask(&mut *tx, tenant).await?;
        let subject = tenant.to_string();
        self.trail.append_within(&mut tx, &Act { actor, action: "tenant.erase", subject: &subject, detail }).await?;
        effect!("upkeep.erase_ask", tx.commit().await)?;
        self.wakes.demand.notify_one();
        self.wakes.erase.notify_one();
        Ok(())
    }

    /// From when on an erasure of now is final, in a sentence.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn finality(&self, now: DateTime<Utc>) -> Result<String, StoreError> {
        let current = self.ring.master_key_id();
        let known = keys::master_keys(&self.pool).await?;
        let made = known.iter().find(|key| key.id == current).map_or(now, |key| key.first_at);
        let scheduled = self.plan.rotate_every.filter(|_| self.ring.source().is_ours());
        Ok(match scheduled {
            Some(every) => {
                let rotated = (made + every).max(now);
                format!(
                    "final from {}: master key {current} is rotated on {}, and backups of before are kept for {} days",
                    shown(rotated + self.plan.backups),
                    shown(rotated),
                    self.plan.backups.num_days()
                )
            }
            None => format!(
                "final {} days after master key {current} is destroyed (backups of before are kept so long): that needs \
                 `flyci keys rotate`, since no rotation is scheduled; run now it is final from {}",
                self.plan.backups.num_days(),
                shown(now + self.plan.backups)
            ),
        })
    }

    async fn erase(&self, due: &Due, now: DateTime<Utc>) -> Result<bool, StoreError> {
        for vm in effect!("upkeep.erase_vms", erasure::kill_vms(&self.pool, due.id).await)? {
            self.wakes.vm(vm);
        }
        if due.vms > 0 || (due.runners > 0 && now - due.asked_at < REMOVAL_PATIENCE) {
            self.wakes.removal.notify_one();
            return Ok(false);
        }
        for _ in 0..BATCHES {
            if effect!("upkeep.erase_rows", erasure::remove_rows(&self.pool, due.id, BATCH).await)? == 0 {
                return self.finish(due.id, now).await;
            }
            self.unclean.store(true, Ordering::SeqCst);
        }
        Ok(false)
    }

    async fn finish(&self, tenant: TenantId, now: DateTime<Utc>) -> Result<bool, StoreError> {
        let (subject, detail) = (tenant.to_string(), self.finality(now).await?);
        let mut tx = self.pool.begin().await?;
        if erasure::finish(&mut tx, tenant, self.ring.master_key_id()).await? {
            let act = Act { actor: "gateway", action: "tenant.erased", subject: &subject, detail: Some(&detail) };
            self.trail.append_within(&mut tx, &act).await?;
        }
        effect!("upkeep.erase_finish", tx.commit().await)?;
        self.ring.forget(tenant);
        self.unclean.store(true, Ordering::SeqCst);
        tracing::info!(tenant.id = %tenant, "the tenant is erased: {detail}");
        Ok(true)
    }

    /// Takes the removed rows out of the files; tried again at the next pass when somebody is in the way.
    async fn clean(&self) {
        if !self.unclean.load(Ordering::SeqCst) {
            return;
        }
        match self.maintenance.vacuum().await {
            Ok(()) => self.unclean.store(false, Ordering::SeqCst),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "erased rows could not be taken out of the database's files; it is tried again");
            }
        }
    }
}
