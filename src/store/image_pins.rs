//! Which image a tag stands for in the whole fleet, and the update that is under way.
//!
//! A tag that nobody has pinned is pinned by the first host that needs it; afterwards it moves by an operator's word.

use super::{Applied, Result};
use crate::domain::ids::HostId;
use crate::domain::rollout::Trial;
use chrono::{DateTime, Utc};
use sqlx::PgExecutor;

/// What a tag stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pin {
    /// The image that every host has, or is to have.
    pub digest: String,
    /// The one that the canary tries instead, and which host that is.
    pub candidate: Option<(String, Option<HostId>)>,
}

impl Pin {
    /// The image that a host is to make vms of.
    #[must_use]
    pub fn wanted_on(&self, host: HostId) -> &str {
        match &self.candidate {
            Some((candidate, Some(canary))) if *canary == host => candidate,
            Some(_) | None => &self.digest,
        }
    }
}

/// What a tag stands for, if somebody has pinned it.
pub async fn find(db: impl PgExecutor<'_>, reference: &str) -> Result<Option<Pin>> {
    let row = sqlx::query!(
        r#"SELECT digest, candidate, canary AS "canary: HostId" FROM image_pins WHERE reference = $1"#,
        reference
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Pin { digest: row.digest, candidate: row.candidate.map(|digest| (digest, row.canary)) }))
}

/// Pins a tag that nobody has pinned. Stale when somebody has.
pub async fn pin_first(db: impl PgExecutor<'_>, reference: &str, digest: &str, by: &str) -> Result<Applied> {
    let rows = sqlx::query!(
        "INSERT INTO image_pins (reference, digest, pinned_by) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        reference,
        digest,
        by
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// What an operator asks for.
pub struct Update<'a> {
    /// The tag.
    pub reference: &'a str,
    /// The image that it shall stand for.
    pub digest: &'a str,
    /// The host that tries it first.
    pub canary: HostId,
    /// Jobs that shall succeed there before the others take it.
    pub jobs: u32,
    /// Who asked.
    pub by: &'a str,
}

/// Begins an update. Stale when the tag is not pinned, or stands for that image already.
pub async fn begin_update(db: impl PgExecutor<'_>, update: &Update<'_>) -> Result<Applied> {
    let rows = sqlx::query!(
        "UPDATE image_pins SET candidate = $2, canary = $3, jobs_wanted = $4, candidate_at = clock_timestamp(),
                candidate_by = $5, rejected = NULL, rejected_why = NULL, rejected_at = NULL
         WHERE reference = $1 AND digest <> $2",
        update.reference,
        update.digest,
        update.canary.0,
        i32::try_from(update.jobs).unwrap_or(i32::MAX),
        update.by
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// Every host takes the candidate. Stale when another one, or none, is tried meanwhile.
pub async fn promote(db: impl PgExecutor<'_>, reference: &str, candidate: &str) -> Result<Applied> {
    let rows = sqlx::query!(
        "UPDATE image_pins SET digest = candidate, previous = digest, pinned_at = clock_timestamp(),
                pinned_by = candidate_by, candidate = NULL, canary = NULL, candidate_at = NULL, candidate_by = NULL
         WHERE reference = $1 AND candidate = $2",
        reference,
        candidate
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// No host takes the candidate, and the canary goes back. Stale when another one, or none, is tried meanwhile.
pub async fn reject(db: impl PgExecutor<'_>, reference: &str, candidate: &str, why: &str) -> Result<Applied> {
    let rows = sqlx::query!(
        "UPDATE image_pins SET rejected = candidate, rejected_why = $3, rejected_at = clock_timestamp(), candidate = NULL, canary = NULL,
                candidate_at = NULL, candidate_by = NULL
         WHERE reference = $1 AND candidate = $2",
        reference,
        candidate,
        why
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// The tag stands for the image before again, and the present one becomes the one before. Stale when there is none
/// before, or an update is under way.
pub async fn roll_back(db: impl PgExecutor<'_>, reference: &str, by: &str) -> Result<Applied> {
    let rows = sqlx::query!(
        "UPDATE image_pins SET digest = previous, previous = digest, pinned_at = clock_timestamp(), pinned_by = $2
         WHERE reference = $1 AND previous IS NOT NULL AND candidate IS NULL",
        reference,
        by
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Applied::from_rows(rows))
}

/// A pin as people see it.
#[derive(Clone, Debug)]
pub struct PinRow {
    /// The tag.
    pub reference: String,
    /// What it stands for.
    pub digest: String,
    /// What it stood for before.
    pub previous: Option<String>,
    /// Since when.
    pub pinned_at: DateTime<Utc>,
    /// Who said so.
    pub pinned_by: String,
    /// The update under way.
    pub update: Option<UpdateRow>,
    /// The last update, if it was given up.
    pub rejected: Option<RejectedRow>,
}

/// An update that was given up.
#[derive(Clone, Debug)]
pub struct RejectedRow {
    /// The image that was tried.
    pub candidate: String,
    /// Why.
    pub why: String,
    /// When.
    pub at: DateTime<Utc>,
}

/// An update under way.
#[derive(Clone, Debug)]
pub struct UpdateRow {
    /// The image that is tried.
    pub candidate: String,
    /// The canary's name; none when it has left the fleet.
    pub canary: Option<String>,
    /// Since when.
    pub since: DateTime<Utc>,
    /// Who asked.
    pub by: String,
    /// What it has shown.
    pub trial: Trial,
    /// Jobs that ended otherwise than well in vms of it there.
    pub failed: u32,
}

/// Every pin, by its tag.
pub async fn all(db: impl PgExecutor<'_>) -> Result<Vec<PinRow>> {
    let rows = sqlx::query!(
        r#"SELECT p.reference, p.digest, p.previous, p.pinned_at, p.pinned_by, p.candidate, p.jobs_wanted,
                  p.candidate_at, p.candidate_by, p.rejected, p.rejected_why, p.rejected_at, h.name AS "canary?",
                  EXISTS (SELECT 1 FROM vms v WHERE v.host_id = p.canary AND v.image = p.candidate
                          AND v.ready_at >= p.candidate_at) AS "booted!",
                  (SELECT i.last_failure FROM host_images i WHERE i.host_id = p.canary AND i.image = p.candidate
                          AND i.quarantined_until IS NOT NULL) AS quarantined,
                  (SELECT count(*) FROM vms v JOIN jobs j ON j.vm_id = v.id WHERE v.host_id = p.canary
                          AND v.image = p.candidate AND v.planned_at >= p.candidate_at
                          AND j.conclusion = 'success') AS "passed!",
                  (SELECT count(*) FROM vms v JOIN jobs j ON j.vm_id = v.id WHERE v.host_id = p.canary
                          AND v.image = p.candidate AND v.planned_at >= p.candidate_at
                          AND j.conclusion <> 'success') AS "failed!"
           FROM image_pins p LEFT JOIN hosts h ON h.id = p.canary ORDER BY p.reference"#
    )
    .fetch_all(db)
    .await?;
    let count = |number: i64| u32::try_from(number).unwrap_or(u32::MAX);
    Ok(rows
        .into_iter()
        .map(|row| {
            let trial = Trial {
                has_canary: row.canary.is_some(),
                booted: row.booted,
                quarantined: row.quarantined,
                passed: count(row.passed),
                wanted: u32::try_from(row.jobs_wanted).unwrap_or(0),
            };
            let update = row.candidate.zip(row.candidate_at).map(|(candidate, since)| UpdateRow {
                candidate,
                canary: row.canary,
                since,
                by: row.candidate_by.unwrap_or_default(),
                trial,
                failed: count(row.failed),
            });
            let rejected = row.rejected.zip(row.rejected_why).zip(row.rejected_at);
            PinRow {
                reference: row.reference,
                digest: row.digest,
                previous: row.previous,
                pinned_at: row.pinned_at,
                pinned_by: row.pinned_by,
                update,
                rejected: rejected.map(|((candidate, why), at)| RejectedRow { candidate, why, at }),
            }
        })
        .collect())
}
