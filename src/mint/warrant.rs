//! Whether a runner may be minted at all: whoever can write the database must not be able to have one made for a
//! repository that asked for none, or sealed to a key that is no host's.
//!
//! Checked before each call: that a gateway vouched for the host's key, and the host was not revoked; that vm, host,
//! slot, session, profile and runner fit each other; and that enough of the class's queued jobs are ones that intake
//! took in. A job's row that intake did not write is removed: if GitHub has the job, it is found again.

use super::{MintError, Minter};
use crate::domain::class::Class;
use crate::domain::labels::LabelSet;
use crate::domain::vm::VmState;
use crate::place::Place;
use crate::secrets::vouch::HostFacts;
use crate::store::audit::Act;
use crate::store::runners::Runner;
use crate::store::vouched::{self, Claim, Queued};
use crate::store::{StoreError, demand};

/// So many rows more than are needed are read: those that intake did not write do not count.
const SPARE: i64 = 64;

/// Whether there is to be a runner.
pub(super) enum Standing {
    /// For this key.
    Stands(Vec<u8>),
    /// Its vm does not wait for it any more, or there are fewer queued jobs of its class than vms before its own.
    DemandGone,
}

impl Minter {
    /// Looks whether a runner may, and should, be minted.
    pub(super) async fn standing(&self, runner: &Runner, place: &Place) -> Result<Standing, MintError> {
        let Some(claim) = vouched::claim(&self.pool, runner.vm).await? else { return Err(MintError::HostGone) };
        if claim.state != VmState::Bound {
            return Ok(Standing::DemandGone);
        }
        self.fits(runner, &claim).map_err(MintError::Forged)?;
        let Some(rank) = demand::rank(&self.pool, runner.vm).await? else { return Ok(Standing::DemandGone) };
        let queued = vouched::queued(&self.pool, runner.class, &claim.profile, rank.saturating_add(SPARE)).await?;
        let mut genuine = 0;
        for job in &queued {
            let stands = job.mac.as_deref().is_some_and(|mac| place.keys.stands_for_job(&job.facts(), mac));
            if !stands {
                self.remove_forged(job).await?;
            } else if job.is_of(runner.tenant, runner.repository, &runner.labels) {
                genuine += 1;
            }
        }
        Ok(if genuine >= rank { Standing::Stands(claim.public_key) } else { Standing::DemandGone })
    }

    /// What does not fit, in a word for the audit trail.
    fn fits(&self, runner: &Runner, claim: &Claim) -> Result<(), &'static str> {
        let host = HostFacts {
            fleet: self.fleet,
            id: claim.host,
            name: &claim.host_name,
            login: &claim.host_login,
            public_key: &claim.public_key,
        };
        let vouched = claim.mac.as_deref().is_some_and(|mac| self.warrant.stands_for(&host, mac));
        let labels: LabelSet = runner.labels.iter().collect();
        let is_on_offer = |label: &str| {
            self.profiles.iter().find(|(profile, _)| profile.label == label).is_some_and(|(profile, guest)| {
                profile.serves(&labels, *guest)
                    && profile.hardware.as_ref().is_none_or(|wanted| wanted.is_met_by(&claim.hardware))
            })
        };
        let vm_is_its = (claim.tenant, claim.repository, claim.class)
            == (Some(runner.tenant), Some(runner.repository), Some(runner.class));
        for (good, word) in [
            (!claim.is_revoked, "the host was revoked"),
            (vouched, "no gateway vouches for the host's key"),
            (runner.host == claim.host, "the runner is of another host than its vm"),
            (claim.session == claim.host_session, "the vm is of another session than its host"),
            ((0..claim.slots).contains(&claim.slot), "the host has no such slot"),
            (vm_is_its, "the runner is for another than its vm"),
            (runner.class == Class::new(runner.repository, &labels), "the labels are not those of its class"),
            (is_on_offer(&claim.profile), "no such profile is on offer for these labels on this host"),
        ] {
            if !good {
                return Err(word);
            }
        }
        Ok(())
    }

    /// Removes a job's row that intake did not write, and writes that down.
    async fn remove_forged(&self, job: &Queued) -> Result<(), StoreError> {
        let subject = job.id.to_string();
        // A version before this one gave no word: not a sign of anything.
        let action = if job.mac.is_some() { "job.forged" } else { "job.unsigned" };
        tracing::error!(job.id = %job.id, action, "the job's row is not one that intake wrote: it is removed");
        let mut tx = self.pool.begin().await?;
        vouched::remove(&mut *tx, job.id).await?;
        let act = Act { actor: "gateway", action, subject: &subject, detail: None };
        self.trail.append_within(&mut tx, &act).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Writes down that a runner was refused.
    pub(super) async fn record_refusal(&self, runner: &Runner, why: &str) -> Result<(), StoreError> {
        let (subject, detail) = (runner.id.to_string(), format!("host {}, vm {}: {why}", runner.host, runner.vm));
        let act = Act { actor: "gateway", action: "runner.refused", subject: &subject, detail: Some(&detail) };
        self.trail.append(&self.pool, &act).await.map(|_| ())
    }
}
