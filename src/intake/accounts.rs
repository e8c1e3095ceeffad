//! Deliveries about installations and repositories.
//!
//! An act that grants or destroys is never done on a delivery's word, since its event name is not
//! signed and an old body can be sent again: the installation is put in doubt, and `upkeep` asks GitHub
//! how it stands. What only restricts is done at once.

use super::payload::{Account, Envelope};
use super::{Intake, IntakeError, Receipt};
use crate::domain::ids::{RepositoryId, TenantId};
use crate::points::effect;
use crate::secrets::{Column, TenantKeys};
use crate::store::deliveries::{self, Outcome};
use crate::store::jobs;
use crate::store::repositories::{self, Visibility};
use crate::store::tenants::{self, Admission, NewTenant, Tenant};
use sqlx::PgConnection;
use std::sync::Arc;
use uuid::Uuid;

/// A tenant with the keys that open its values.
pub(super) struct Known {
    pub tenant: Tenant,
    pub keys: Arc<TenantKeys>,
}

impl Intake {
    /// The tenant of an installation, if it is known.
    pub(super) async fn find_tenant(
        &self,
        db: &mut PgConnection,
        installation: u64,
    ) -> Result<Option<Known>, IntakeError> {
        let Some(tenant) = tenants::find(db, &self.ring.installation_lookups(installation)).await? else {
            return Ok(None);
        };
        let keys = self.ring.unwrap(tenant.id, &tenant.wrapped_keys)?;
        Ok(Some(Known { tenant, keys }))
    }

    /// The tenant of an installation; a new one is served only once the operator approves it, unless
    /// admission is open.
    pub(super) async fn find_or_make_tenant(
        &self,
        db: &mut PgConnection,
        installation: u64,
        account: &Account,
    ) -> Result<Known, IntakeError> {
        if let Some(known) = self.find_tenant(db, installation).await? {
            return Ok(known);
        }
        // Of several gateways one makes it, also while they do not have the same master key in front.
        tenants::lock_making(&mut *db).await?;
        if let Some(known) = self.find_tenant(db, installation).await? {
            return Ok(known);
        }
        let id = TenantId::random();
        let (keys, wrapped_keys) = self.ring.new_tenant(id);
        tenants::insert(
            &mut *db,
            &NewTenant {
                id,
                installation_lookup: self.ring.installation_lookup(installation),
                account_lookup: self.ring.account_lookup(account.id),
                wrapped_keys: &wrapped_keys,
                installation_id: &keys.seal_id(Column::TenantInstallationId, id.0, installation),
                account_id: &keys.seal_id(Column::TenantAccountId, id.0, account.id),
                account: &keys.seal_text(Column::TenantAccount, id.0, &account.login),
                account_kind: account_kind(account),
                admission: if self.policy.open_admission { Admission::Approved } else { Admission::Pending },
            },
        )
        .await?;
        self.find_tenant(db, installation).await?.ok_or_else(|| IntakeError::Store(sqlx::Error::RowNotFound.into()))
    }

    /// `installation`: GitHub is asked how it stands now.
    pub(super) async fn installation(&self, guid: Uuid, envelope: &Envelope) -> Result<Receipt, IntakeError> {
        let Some(installation) = &envelope.installation else {
            return self.note(guid, "installation", Some(envelope), Receipt::NotUnderstood("no_installation")).await;
        };
        let mut tx = self.pool.begin().await?;
        if !record(&mut tx, guid, "installation", envelope).await? {
            return Ok(Receipt::Repeated);
        }
        let known = match &installation.account {
            Some(account) => Some(self.find_or_make_tenant(&mut tx, installation.id, account).await?),
            None => self.find_tenant(&mut tx, installation.id).await?,
        };
        if let Some(known) = known {
            tenants::doubt(&mut *tx, known.tenant.id).await?;
        }
        effect!("intake.installation", tx.commit().await)?;
        self.wakes.doubt.notify_one();
        Ok(Receipt::Applied)
    }

    /// `installation_target`: the account was renamed; GitHub is asked for its present name.
    pub(super) async fn installation_target(&self, guid: Uuid, envelope: &Envelope) -> Result<Receipt, IntakeError> {
        let Some(installation) = &envelope.installation else {
            return self.note(guid, "installation_target", Some(envelope), Receipt::Ignored("no_installation")).await;
        };
        let mut tx = self.pool.begin().await?;
        if !record(&mut tx, guid, "installation_target", envelope).await? {
            return Ok(Receipt::Repeated);
        }
        if let Some(known) = self.find_tenant(&mut tx, installation.id).await? {
            tenants::doubt(&mut *tx, known.tenant.id).await?;
        }
        effect!("intake.account_renamed", tx.commit().await)?;
        self.wakes.doubt.notify_one();
        Ok(Receipt::Applied)
    }

    /// `installation_repositories`: those taken away are not served any more.
    pub(super) async fn installation_repositories(
        &self,
        guid: Uuid,
        envelope: &Envelope,
    ) -> Result<Receipt, IntakeError> {
        let event = "installation_repositories";
        let Some(installation) = &envelope.installation else {
            return self.note(guid, event, Some(envelope), Receipt::NotUnderstood("no_installation")).await;
        };
        let mut tx = self.pool.begin().await?;
        if !record(&mut tx, guid, event, envelope).await? {
            return Ok(Receipt::Repeated);
        }
        if let Some(known) = self.find_tenant(&mut tx, installation.id).await? {
            for removed in &envelope.repositories_removed {
                let lookup = known.keys.lookup_id(Column::RepositoryGithubId, removed.id);
                if let Some(repository) = repositories::find(&mut *tx, known.tenant.id, lookup).await? {
                    remove(&mut tx, repository.id).await?;
                }
            }
        }
        effect!("intake.repositories_removed", tx.commit().await)?;
        self.wakes.doubt.notify_one();
        Ok(Receipt::Applied)
    }

    /// `repository`: its present name and visibility are written; one that went away is not served.
    pub(super) async fn repository(&self, guid: Uuid, envelope: &Envelope) -> Result<Receipt, IntakeError> {
        let (Some(installation), Some(told)) = (&envelope.installation, &envelope.repository) else {
            return self.note(guid, "repository", Some(envelope), Receipt::Ignored("no_installation")).await;
        };
        let mut tx = self.pool.begin().await?;
        if !record(&mut tx, guid, "repository", envelope).await? {
            return Ok(Receipt::Repeated);
        }
        if let Some(known) = self.find_tenant(&mut tx, installation.id).await? {
            let lookup = known.keys.lookup_id(Column::RepositoryGithubId, told.id);
            if let Some(repository) = repositories::find(&mut *tx, known.tenant.id, lookup).await? {
                match envelope.action.as_deref() {
                    Some("deleted" | "transferred") => remove(&mut tx, repository.id).await?,
                    Some("publicized") => {
                        repositories::set_visibility(&mut *tx, repository.id, Visibility::Public).await?;
                    }
                    // GitHub is asked for its present name and openness.
                    _ => repositories::doubt(&mut *tx, repository.id).await?,
                }
            }
        }
        effect!("intake.repository", tx.commit().await)?;
        self.wakes.doubt.notify_one();
        Ok(Receipt::Applied)
    }
}

/// A repository is gone, or not ours to serve: its jobs are no demand any more.
async fn remove(db: &mut PgConnection, repository: RepositoryId) -> Result<(), IntakeError> {
    repositories::mark_removed(&mut *db, repository).await?;
    Ok(jobs::doubt_repository(db, repository).await?)
}

/// Remembers a delivery as applied. `false` when it was applied before.
pub(super) async fn record(
    db: &mut PgConnection,
    guid: Uuid,
    event: &'static str,
    envelope: &Envelope,
) -> Result<bool, IntakeError> {
    Ok(deliveries::record(db, guid, event, super::known_action(envelope), Outcome::Applied, None).await?)
}

fn account_kind(account: &Account) -> &'static str {
    match account.kind.as_deref() {
        Some("Organization") => "organization",
        _ => "user",
    }
}
