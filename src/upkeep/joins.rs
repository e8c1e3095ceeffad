//! Hosts that ask to join are let in, or not.
//!
//! Definition: a host's row with a proof is an application. It is let in if there is an invitation for its name and
//! its login that has not ended, and the proof is by that invitation's token and about the key in its row. An
//! invitation is used up by the first application that fits it, whether or not its proof is good.
//!
//! Does not: make logins of the database (its administrator does), or throw hosts out (`web/admin`).

use crate::domain::ids::FleetId;
use crate::secrets::vouch::{HostFacts, Warrant, fingerprint};
use crate::store::audit::{Act, Trail};
use crate::store::joins::{self, Applicant, Invitation};
use crate::store::{Applied, StoreError};
use sqlx::PgPool;
use std::sync::Arc;

/// Applications of one pass.
const BATCH: i64 = 32;

/// Lets hosts in.
pub struct Joins {
    /// Acts as the gateway.
    pub pool: PgPool,
    /// Vouches for hosts.
    pub warrant: Arc<Warrant>,
    /// Where it is written down.
    pub trail: Trail,
    /// The fleet that they join.
    pub fleet: FleetId,
}

/// What one pass did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct JoinsReport {
    /// Hosts that were let in.
    pub joined: u32,
    /// Applications without an invitation, or with a wrong proof.
    pub refused: u32,
}

impl Joins {
    /// One round.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn pass(&self) -> Result<JoinsReport, StoreError> {
        let mut report = JoinsReport::default();
        joins::expire(&self.pool).await?;
        for applicant in joins::applicants(&self.pool, BATCH).await? {
            match self.decide(&applicant).await? {
                Some(true) => report.joined += 1,
                Some(false) => report.refused += 1,
                None => {}
            }
        }
        Ok(report)
    }

    /// `None`: the application changed meanwhile, or another gateway decided.
    async fn decide(&self, applicant: &Applicant) -> Result<Option<bool>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let invitation = joins::take(&mut *tx, &applicant.name, &applicant.login).await?;
        let mac = invitation.filter(|invitation| self.is_proved(invitation, applicant)).map(|_| {
            self.warrant.vouch(&HostFacts {
                fleet: self.fleet,
                id: applicant.id,
                name: &applicant.name,
                login: &applicant.login,
                public_key: &applicant.public_key,
            })
        });
        if joins::settle(&mut *tx, applicant, mac.as_ref().map(<[u8; 32]>::as_slice)).await? == Applied::Stale {
            return Ok(None);
        }
        let action = if mac.is_some() { "host.join" } else { "host.join_refused" };
        let detail = format!("login {}, key {}", applicant.login, fingerprint(&applicant.public_key));
        let actor = format!("host:{}", applicant.name);
        let act = Act { actor: &actor, action, subject: &applicant.id.to_string(), detail: Some(&detail) };
        self.trail.append_within(&mut tx, &act).await?;
        tx.commit().await?;
        tracing::info!(host.id = %applicant.id, action, "a host asked to join");
        Ok(Some(mac.is_some()))
    }

    fn is_proved(&self, invitation: &Invitation, applicant: &Applicant) -> bool {
        self.warrant.token(&invitation.name, &invitation.login, &invitation.nonce, invitation.until).is_proved(
            self.fleet,
            &applicant.name,
            &applicant.login,
            &applicant.public_key,
            &applicant.proof,
        )
    }
}
