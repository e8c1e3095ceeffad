//! Updates of images: what the canary has shown of a candidate decides whether every host takes it. Gateway.
//!
//! An update is begun by an operator (`flyci image update`) and by nothing else. Does not: pull or boot anything;
//! hosts follow the pins by themselves ([`super::follow`]).

use crate::domain::rollout::Verdict;
use crate::store::audit::{Act, Trail};
use crate::store::image_pins::{self, UpdateRow};
use crate::store::{Applied, StoreError};
use sqlx::PgPool;

/// What writes the decisions down.
const ACTOR: &str = "gateway";

/// What one pass did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RolloutReport {
    /// Candidates that every host takes now.
    pub promoted: u32,
    /// Candidates that were given up.
    pub rejected: u32,
}

/// One round over the updates under way.
///
/// # Errors
/// When the database is away.
pub async fn pass(pool: &PgPool, trail: &Trail) -> Result<RolloutReport, StoreError> {
    let mut report = RolloutReport::default();
    for pin in image_pins::all(pool).await? {
        let Some(update) = pin.update else { continue };
        match update.trial.verdict() {
            Verdict::Wait => {}
            Verdict::Promote => report.promoted += promote(pool, trail, &pin.reference, &update).await?,
            Verdict::Reject(why) => report.rejected += reject(pool, trail, &pin.reference, &update, &why).await?,
        }
    }
    Ok(report)
}

async fn promote(pool: &PgPool, trail: &Trail, reference: &str, update: &UpdateRow) -> Result<u32, StoreError> {
    let mut tx = pool.begin().await?;
    if image_pins::promote(&mut *tx, reference, &update.candidate).await? == Applied::Stale {
        return Ok(0);
    }
    let detail = format!("{} after {} jobs", update.candidate, update.trial.passed);
    let act = Act { actor: ACTOR, action: "image.promote", subject: reference, detail: Some(&detail) };
    trail.append_within(&mut tx, &act).await?;
    tx.commit().await?;
    tracing::info!(image.reference = reference, image.digest = update.candidate, "every host takes the image now");
    Ok(1)
}

async fn reject(
    pool: &PgPool,
    trail: &Trail,
    reference: &str,
    update: &UpdateRow,
    why: &str,
) -> Result<u32, StoreError> {
    let mut tx = pool.begin().await?;
    if image_pins::reject(&mut *tx, reference, &update.candidate, why).await? == Applied::Stale {
        return Ok(0);
    }
    let detail = format!("{}: {why}", update.candidate);
    let act = Act { actor: ACTOR, action: "image.reject", subject: reference, detail: Some(&detail) };
    trail.append_within(&mut tx, &act).await?;
    tx.commit().await?;
    tracing::warn!(image.reference = reference, image.digest = update.candidate, why, "the update is given up");
    Ok(1)
}
