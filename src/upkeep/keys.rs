//! The rotation of the master key, while everything goes on.
//!
//! A rotation is in the source of the master keys and in the rows alone, so it is begun once and goes on
//! after any restart: the newest key of the source wraps as soon as every gateway has it; what older keys
//! wrap is wrapped anew, row by row; a key that nothing needs any more is destroyed.

use crate::domain::ids::TenantId;
use crate::errors::chain;
use crate::points::effect;
use crate::secrets::{Column, KeyId, KeyRing, SecretsError};
use crate::store::StoreError;
use crate::store::audit::{self, Act, Trail};
use crate::store::keys::{self, Gateway, MasterKeyRow, ToRewrap};
use crate::store::tenants;
use chrono::{DateTime, Duration, Utc};
use sqlx::PgPool;
use std::sync::Arc;
use uuid::Uuid;

/// Tenants that are read at once.
const BATCH: i64 = 100;
/// Batches of one pass: a pass is short.
const BATCHES: usize = 10;

/// What the configuration says of keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyPlan {
    /// How old the newest master key becomes before a new one is made; `None`: only when asked.
    pub rotate_every: Option<Duration>,
    /// How long backups are kept: an erasure is final only when those of before are gone.
    pub backups: Duration,
}

/// Rotates the master key.
pub struct Keeper {
    /// Acts as the gateway.
    pub pool: PgPool,
    /// The keys.
    pub ring: Arc<KeyRing>,
    /// Where each step is written down.
    pub trail: Trail,
    /// Names this gateway, also after a restart.
    pub gateway: Uuid,
    /// This machine.
    pub name: String,
    /// What the configuration says.
    pub plan: KeyPlan,
}

/// Why a rotation was not begun, or a pass did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The database is away.
    #[error("the rows of the keys could not be read or written")]
    Store(#[from] StoreError),
    /// The source of the master keys does not do it.
    #[error("the master keys are not as they should be")]
    Secrets(#[from] SecretsError),
}

impl From<sqlx::Error> for KeysError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// What one pass did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct KeysReport {
    /// Tenants whose keys were wrapped anew.
    pub rewrapped: u64,
    /// Tenants whose keys do not open: they keep their master key from being destroyed.
    pub stuck: u64,
    /// Master keys that were destroyed.
    pub destroyed: u64,
    /// There is more to be wrapped.
    pub is_partial: bool,
}

/// How far a rotation is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rotation {
    /// One master key, and everything is wrapped by it.
    None,
    /// Gateways that run do not have the newest key yet.
    WaitsFor(Vec<String>),
    /// Rows are wrapped anew.
    Rewrapping,
    /// Nothing needs the old keys: the operator must take them out of their source.
    Removable,
}

impl Keeper {
    /// One round.
    ///
    /// # Errors
    /// When the database is away, or the source of the keys lost one that is needed.
    pub async fn pass(&self) -> Result<KeysReport, KeysError> {
        let told = self.announce().await?;
        let known = keys::master_keys(&self.pool).await?;
        let needed: Vec<KeyId> = known.iter().filter(|key| key.is_needed()).map(|key| key.id).collect();
        if self.ring.look_again(&needed)? {
            tracing::info!(keys = ?self.ring.master_key_ids(), "the source of the master keys has changed");
        }
        self.rotate_if_due(&known).await?;
        let told = self.announce_change(told).await?;
        let mut report = KeysReport::default();
        let gateways = keys::gateways(&self.pool).await?;
        if self.lacking(&gateways).is_empty() {
            self.ring.wrap_with_newest();
            self.announce_change(told).await?;
            self.rewrap_all(&mut report).await?;
            if !report.is_partial {
                report.destroyed += self.destroy_unneeded().await?;
            }
        }
        self.settle().await?;
        Ok(report)
    }

    /// Begins a rotation, and does its first pass. One that goes on already is gone on with.
    ///
    /// # Errors
    /// When the source is not ours to write and holds no new key, or the database is away.
    pub async fn rotate(&self, actor: &str) -> Result<Rotation, KeysError> {
        if self.ring.master_key_ids().len() == 1 && !self.ring.look_again(&[self.ring.master_key_id()])? {
            self.begin(actor).await?;
        }
        self.pass().await?;
        self.rotation().await
    }

    /// How far the rotation is.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn rotation(&self) -> Result<Rotation, KeysError> {
        let ids = self.ring.master_key_ids();
        let known = keys::master_keys(&self.pool).await?;
        let lacking = self.lacking(&keys::gateways(&self.pool).await?);
        let old_is_needed = known.iter().any(|key| key.is_needed() && ids.first() != Some(&key.id));
        Ok(match (ids.len(), old_is_needed) {
            _ if !lacking.is_empty() => Rotation::WaitsFor(lacking),
            (_, true) => Rotation::Rewrapping,
            (1, false) => Rotation::None,
            (_, false) => Rotation::Removable,
        })
    }

    async fn begin(&self, actor: &str) -> Result<(), KeysError> {
        let old = self.ring.master_key_id();
        let new = effect!("upkeep.keys_made", self.ring.begin_rotation())?;
        let (subject, detail) = (new.to_string(), format!("after {old}"));
        let act = Act { actor, action: "key.rotate", subject: &subject, detail: Some(&detail) };
        effect!("upkeep.keys_begun", self.trail.append(&self.pool, &act).await)?;
        tracing::info!(key = %new, "a new master key is made; everything is wrapped by it now");
        Ok(())
    }

    async fn rotate_if_due(&self, known: &[MasterKeyRow]) -> Result<(), KeysError> {
        let Some(every) = self.plan.rotate_every else { return Ok(()) };
        let ids = self.ring.master_key_ids();
        let age = known.iter().find(|key| ids == [key.id]).map(|key| Utc::now() - key.first_at);
        if self.ring.source().is_ours() && age.is_some_and(|age| age >= every) {
            self.begin("gateway").await?;
        }
        Ok(())
    }

    /// Tells the other gateways which keys this one has, and that it runs.
    async fn announce(&self) -> Result<Vec<KeyId>, KeysError> {
        let ids = self.at_hand();
        effect!("upkeep.keys_told", keys::announce(&self.pool, self.gateway, &self.name, &ids).await)?;
        Ok(ids)
    }

    /// The same, if it is not what was told already.
    async fn announce_change(&self, told: Vec<KeyId>) -> Result<Vec<KeyId>, KeysError> {
        if self.at_hand() == told { Ok(told) } else { self.announce().await }
    }

    /// The keys of this gateway, the one that it wraps with first.
    fn at_hand(&self) -> Vec<KeyId> {
        let wraps = self.ring.master_key_id();
        let others = self.ring.master_key_ids().into_iter().filter(|id| *id != wraps);
        std::iter::once(wraps).chain(others).collect()
    }

    /// The gateways that run and do not have the newest key.
    fn lacking(&self, gateways: &[Gateway]) -> Vec<String> {
        let newest = self.ring.master_key_ids().first().copied();
        let lacks = |gateway: &&Gateway| gateway.runs && newest.is_some_and(|newest| !gateway.keys.contains(&newest));
        gateways.iter().filter(lacks).map(|gateway| gateway.name.clone()).collect()
    }

    async fn rewrap_all(&self, report: &mut KeysReport) -> Result<(), KeysError> {
        let current = self.ring.master_key_id();
        if let Some((id, wrapped)) = audit::find_key(&self.pool).await?
            && crate::secrets::wrapped_by(&wrapped) != Some(current)
        {
            let anew = self.ring.rewrap_audit_key(id, &wrapped)?;
            effect!("upkeep.keys_trail", audit::rewrap_key(&self.pool, id, &wrapped, &anew).await)?;
        }
        let mut after = TenantId(Uuid::nil());
        for _ in 0..BATCHES {
            let batch = keys::to_rewrap(&self.pool, current, after, BATCH).await?;
            let Some(last) = batch.last() else { return Ok(()) };
            after = last.id;
            for tenant in &batch {
                match self.rewrap(tenant).await {
                    Ok(()) => report.rewrapped += 1,
                    Err(KeysError::Secrets(error)) => {
                        tracing::error!(tenant.id = %tenant.id, error = %chain(&error), "the tenant's keys cannot be wrapped anew");
                        report.stuck += 1;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        report.is_partial = true;
        Ok(())
    }

    /// One row, one statement: a reader sees it before or after, and both open.
    async fn rewrap(&self, tenant: &ToRewrap) -> Result<(), KeysError> {
        let opened = self.ring.unwrap(tenant.id, &tenant.wrapped_keys)?;
        let id = tenant.id.0;
        let installation = opened.open_id(Column::TenantInstallationId, id, &tenant.installation_id)?;
        let account = opened.open_id(Column::TenantAccountId, id, &tenant.account_id)?;
        let wrapped = self.ring.rewrap(tenant.id, &tenant.wrapped_keys)?;
        let by_installation = self.ring.installation_lookup(installation);
        let by_account = self.ring.account_lookup(account);
        Ok(effect!(
            "upkeep.keys_tenant",
            keys::rewrap(&self.pool, tenant, &wrapped, by_installation, by_account).await
        )?)
    }

    /// Destroys the master keys of before, if nothing needs them and no gateway wraps with one.
    async fn destroy_unneeded(&self) -> Result<u64, KeysError> {
        let ids = self.ring.master_key_ids();
        let [newest, old @ ..] = ids.as_slice() else { return Ok(0) };
        if old.is_empty() {
            return Ok(0);
        }
        let wraps_with_it = |gateway: &Gateway| gateway.keys.first() == Some(newest);
        if !keys::gateways(&self.pool).await?.iter().filter(|gateway| gateway.runs).all(wraps_with_it) {
            return Ok(0);
        }
        // A tenant that is being made with an old key is waited for: its row is in these counts.
        let mut tx = self.pool.begin().await?;
        tenants::lock_making(&mut *tx).await?;
        let needed = keys::master_keys(&mut *tx).await?;
        let is_needed = |id: &&KeyId| needed.iter().any(|key| key.id == **id && key.is_needed());
        let gone: Vec<KeyId> = old.iter().filter(|id| !is_needed(id)).copied().collect();
        let is_destroyed = !gone.is_empty() && effect!("upkeep.keys_destroy", self.ring.destroy(&gone))?;
        effect!("upkeep.keys_unlock", tx.commit().await)?;
        if !is_destroyed {
            return Ok(0);
        }
        self.announce().await?;
        Ok(u64::try_from(gone.len()).unwrap_or(u64::MAX))
    }

    /// Writes down which keys no gateway has any more, and which erasures are final by that.
    async fn settle(&self) -> Result<(), KeysError> {
        let gateways = keys::gateways(&self.pool).await?;
        let is_held = |id: KeyId| gateways.iter().any(|gateway| gateway.keys.contains(&id));
        for key in keys::master_keys(&self.pool).await? {
            if key.destroyed_at.is_some() || key.is_needed() || is_held(key.id) {
                continue;
            }
            let final_from = Utc::now() + self.plan.backups;
            let mut tx = self.pool.begin().await?;
            let Some(tenants) = keys::mark_destroyed(&mut tx, key.id, final_from).await? else { continue };
            let (subject, day) = (key.id.to_string(), shown(final_from));
            let act = Act { actor: "gateway", action: "key.destroy", subject: &subject, detail: None };
            self.trail.append_within(&mut tx, &act).await?;
            for tenant in tenants {
                let subject = tenant.to_string();
                let act =
                    Act { actor: "gateway", action: "tenant.erasure_final", subject: &subject, detail: Some(&day) };
                self.trail.append_within(&mut tx, &act).await?;
            }
            effect!("upkeep.keys_settle", tx.commit().await)?;
            tracing::info!(key = %key.id, "the master key is destroyed: no gateway has it any more");
        }
        Ok(())
    }
}

/// A moment as people are told it.
#[must_use]
pub fn shown(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M UTC").to_string()
}
