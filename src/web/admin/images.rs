//! `/images`: what the tables know of them, what their tags stand for, and updates.

use super::guard::Operator;
use super::hosts::{SILENT_AFTER_S, show_failing};
use super::input::{Body, whole};
use super::vms::count;
use super::{AdminState, record};
use crate::api;
use crate::domain::profile::Profile;
use crate::images::Digest;
use crate::images::registry::{Reference, Version};
use crate::store::hosts::{self, Host};
use crate::store::image_pins::{self, PinRow, Update};
use crate::store::image_pulls::PullRow;
use crate::store::{Applied, StoreError, views};
use crate::web::failure::Failure;
use axum::Json;
use axum::extract::State;
use std::collections::BTreeMap;

/// Jobs that succeed on the canary before every host takes an image, if not said.
const USUAL_JOBS: u32 = 3;
/// The most that may be asked for.
const MAX_JOBS: u32 = 1_000;

/// `GET /images`
pub async fn images(State(state): State<AdminState>) -> Result<Json<api::Page<api::Image>>, Failure> {
    let newest = views::newest_images(&state.pool).await?;
    let mut images: BTreeMap<String, api::Image> = BTreeMap::new();
    for row in views::images(&state.pool).await? {
        let image = entry(&mut images, &row.image);
        (image.vms, image.last_ready_at) = (count(row.vms), row.last_ready_at);
    }
    for health in hosts::failing_images(&state.pool).await? {
        entry(&mut images, &health.image).failing.push(show_failing(&health));
    }
    for profile in &state.about.profiles {
        // A profile may name its image otherwise than by the digest that its vms have.
        let digest = newest.iter().find(|(label, _)| *label == profile.label).map(|(_, digest)| digest.as_str());
        entry(&mut images, digest.unwrap_or(&profile.image)).profiles.push(profile.label.clone());
    }
    Ok(Json(whole(images.into_values().collect())))
}

fn entry<'a>(images: &'a mut BTreeMap<String, api::Image>, name: &str) -> &'a mut api::Image {
    images.entry(name.to_owned()).or_insert_with(|| api::Image {
        image: name.to_owned(),
        profiles: Vec::new(),
        vms: 0,
        last_ready_at: None,
        failing: Vec::new(),
    })
}

/// `GET /images/pins`
pub async fn pins(State(state): State<AdminState>) -> Result<Json<api::Page<api::Pin>>, Failure> {
    let pins = image_pins::all(&state.pool).await?;
    Ok(Json(whole(pins.into_iter().map(|pin| show_pin(pin, &state.about.profiles)).collect())))
}

/// `POST /images/update`
pub async fn update(
    State(state): State<AdminState>,
    operator: Operator,
    body: Body<api::UpdateImage>,
) -> Result<Json<api::Done>, Failure> {
    let reference = tag(&body.0.reference)?;
    let digest: Digest = body.0.digest.parse().map_err(|_| Failure::bad_request("digest is no sha256:HEX"))?;
    let jobs = body.0.jobs.unwrap_or(USUAL_JOBS);
    if jobs > MAX_JOBS {
        return Err(Failure::bad_request(format!("jobs must be at most {MAX_JOBS}")));
    }
    let Some(pin) = image_pins::find(&state.pool, &reference).await? else { return Err(not_pinned(&reference)) };
    let digest = digest.to_string();
    if pin.digest == digest {
        return Ok(done(format!("{reference} stands for {digest} already"), 0));
    }
    let hosts = hosts::all(&state.pool).await?;
    let canary = canary(&hosts, body.0.canary.as_deref(), &naming(&reference, &state.about.profiles))?;
    let by = operator.to_string();
    let asked = Update { reference: &reference, digest: &digest, canary: canary.id, jobs, by: &by };
    let mut tx = state.pool.begin().await.map_err(StoreError::from)?;
    if image_pins::begin_update(&mut *tx, &asked).await? == Applied::Stale {
        return Err(Failure::conflict(format!("{reference} was changed meanwhile: look at `flyci image pins`")));
    }
    hosts::forget_image(&mut *tx, canary.id, &digest).await?;
    let detail = format!("{digest} on {} first", canary.name);
    record(&mut tx, &state, &operator, "image.update", &reference, Some(&detail)).await?;
    tx.commit().await.map_err(StoreError::from)?;
    let after = if jobs == 0 { "a boot".to_owned() } else { format!("a boot and {jobs} jobs that succeed") };
    Ok(done(format!("{} tries {digest}; every host takes it after {after} there", canary.name), 1))
}

/// `POST /images/rollback`
pub async fn rollback(
    State(state): State<AdminState>,
    operator: Operator,
    body: Body<api::RollbackImage>,
) -> Result<Json<api::Done>, Failure> {
    let reference = tag(&body.0.reference)?;
    let Some(pin) = image_pins::find(&state.pool, &reference).await? else { return Err(not_pinned(&reference)) };
    let by = operator.to_string();
    let mut tx = state.pool.begin().await.map_err(StoreError::from)?;
    let (applied, detail, message) = match &pin.candidate {
        Some((candidate, _)) => {
            let why = format!("{by} rolled it back");
            let applied = image_pins::reject(&mut *tx, &reference, candidate, &why).await?;
            let message = format!("the update is given up; {reference} stands for {} everywhere", pin.digest);
            (applied, format!("gave up {candidate}"), message)
        }
        None => {
            let applied = image_pins::roll_back(&mut *tx, &reference, &by).await?;
            let message =
                format!("{reference} stands for the image before again; hosts that have it not any more pull it");
            (applied, format!("left {}", pin.digest), message)
        }
    };
    if applied == Applied::Stale {
        return Err(Failure::conflict(format!("{reference} stood for no other image before: `flyci image pins`")));
    }
    record(&mut tx, &state, &operator, "image.rollback", &reference, Some(&detail)).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(done(message, 1))
}

const fn done(message: String, changed: u64) -> Json<api::Done> {
    Json(api::Done { message, changed })
}

/// A tag, as pins name it.
fn tag(text: &str) -> Result<String, Failure> {
    match text.parse::<Reference>() {
        Ok(Reference { version: Version::Digest(_), .. }) => {
            Err(Failure::bad_request("a digest always stands for the same image: write HOST/REPOSITORY:TAG"))
        }
        Ok(reference) => Ok(reference.to_string()),
        Err(error) => Err(Failure::bad_request(error.to_string())),
    }
}

fn not_pinned(reference: &str) -> Failure {
    Failure::not_found(format!(
        "{reference} is not pinned: the first host that needs it does so; `flyci image pins` shows those that are"
    ))
}

/// The profiles that name a reference.
fn naming(reference: &str, profiles: &[Profile]) -> Vec<String> {
    let names = |profile: &&Profile| profile.image.parse::<Reference>().is_ok_and(|it| it.to_string() == reference);
    profiles.iter().filter(names).map(|profile| profile.label.clone()).collect()
}

/// The host that tries an image: the one that is named, else one that has its tag now and takes work, the one with the
/// fewest vms.
fn canary<'a>(hosts: &'a [Host], named: Option<&str>, labels: &[String]) -> Result<&'a Host, Failure> {
    if let Some(name) = named {
        let found = hosts.iter().find(|host| host.name == name);
        return found
            .ok_or_else(|| Failure::not_found(format!("no host is called `{name}`: `flyci hosts` lists them")));
    }
    let can = |host: &Host| host.can_boot.iter().flatten().any(|label| labels.contains(label));
    let fit = hosts.iter().filter(|host| !host.draining && host.silent_for_s <= SILENT_AFTER_S && can(host));
    fit.min_by_key(|host| host.vms).ok_or_else(|| {
        Failure::conflict("no host that takes work has this image: name one with --canary HOST".to_owned())
    })
}

fn show_pin(pin: PinRow, profiles: &[Profile]) -> api::Pin {
    let update = pin.update.map(|update| api::PinUpdate {
        candidate: update.candidate,
        canary: update.canary,
        booted: update.trial.booted,
        passed: update.trial.passed,
        failed: update.failed,
        wanted: update.trial.wanted,
        since: update.since,
        by: update.by,
    });
    let rejected = pin.rejected.map(|it| api::RejectedUpdate { candidate: it.candidate, why: it.why, at: it.at });
    api::Pin {
        profiles: naming(&pin.reference, profiles),
        reference: pin.reference,
        digest: pin.digest,
        previous: pin.previous,
        pinned_at: pin.pinned_at,
        pinned_by: pin.pinned_by,
        update,
        rejected,
    }
}

/// A pull, as the API shows it.
pub fn show_pull(pull: &PullRow) -> api::Pull {
    api::Pull {
        reference: pull.reference.clone(),
        image: pull.image.clone(),
        total_bytes: u64::try_from(pull.total).unwrap_or(0),
        done_bytes: u64::try_from(pull.done).unwrap_or(0),
        replaces: pull.replaces,
        trouble: pull.trouble.clone(),
        begun_at: pull.begun_at,
        updated_at: pull.updated_at,
    }
}
