//! `flyci image update`, `rollback` and `pins`: what tags stand for in the whole fleet. Asks the daemon; the registry is
//! asked from here, since its logins are the operator's.

use super::args::UpdateArgs;
use super::registry::parse;
use crate::api::{Done, Page, Pin, RollbackImage, UpdateImage};
use crate::cli::client::Admin;
use crate::cli::exit::{CliError, DONE};
use crate::cli::human::{ago, plural};
use crate::cli::out::{self, Look, harmless};
use crate::cli::status::short;
use crate::cli::table::{Column, Table};
use crate::config::Config;
use crate::images::registry::{Reference, Version};
use crate::images::{Digest, resolve};
use crate::upkeep::images::registry_options;
use chrono::{DateTime, Utc};

fn admin(config: &Config) -> Admin {
    Admin::new(config.admin.socket.clone())
}

/// The image that a tag is pinned to, if a daemon runs here and knows of it.
pub(super) async fn digest_of(reference: &Reference, config: &Config) -> Result<Option<Digest>, CliError> {
    let Version::Tag(_) = reference.version else { return Ok(None) };
    let page: Page<Pin> = match admin(config).get("/images/pins", &()).await {
        Ok(page) => page,
        Err(CliError::NotRunning { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let name = reference.to_string();
    Ok(page.items.into_iter().find(|pin| pin.reference == name).and_then(|pin| pin.digest.parse().ok()))
}

/// `flyci image update`.
pub(super) async fn update(args: &UpdateArgs, config: &Config) -> Result<u8, CliError> {
    let reference = parse(&args.reference)?;
    let failed = |error| CliError::part("the tag stays where it is", error);
    let options = registry_options(&config.images).map_err(|error| CliError::part("nothing was done", error))?;
    let digest = resolve(&reference, &options).await.map_err(failed)?;
    let body = UpdateImage {
        reference: reference.to_string(),
        digest: digest.to_string(),
        canary: args.canary.clone(),
        jobs: args.jobs,
    };
    say(admin(config).post("/images/update", &body).await?)
}

/// `flyci image rollback`.
pub(super) async fn rollback(reference: &str, config: &Config) -> Result<u8, CliError> {
    let reference = parse(reference)?.to_string();
    say(admin(config).post("/images/rollback", &RollbackImage { reference }).await?)
}

fn say(done: Done) -> Result<u8, CliError> {
    out::print(&format!("{}\n", harmless(&done.message)))?;
    Ok(DONE)
}

/// `flyci image pins`.
pub(super) async fn list(json: bool, config: &Config, look: &Look) -> Result<u8, CliError> {
    let body = admin(config).read("/images/pins", &()).await?;
    if json {
        crate::cli::print_json(&body)?;
        return Ok(DONE);
    }
    let page: Page<Pin> = crate::cli::read_json("/images/pins", &body)?;
    if page.items.is_empty() {
        out::print("No tag is pinned yet: the first host that needs one does so.\n")?;
    } else {
        out::print(&render(&page.items, Utc::now(), look))?;
    }
    Ok(DONE)
}

fn render(pins: &[Pin], now: DateTime<Utc>, look: &Look) -> String {
    let mut table = Table::new([
        Column::left("TAG").shrinks_to(24),
        Column::left("STANDS FOR"),
        Column::left("BEFORE").leaves_at(1),
        Column::right("SINCE").leaves_at(2),
    ]);
    for pin in pins {
        table.row([
            pin.reference.as_str().into(),
            short(&pin.digest).into(),
            pin.previous.as_deref().map(short).unwrap_or_default().into(),
            ago(now, pin.pinned_at).into(),
        ]);
    }
    let updates = pins.iter().filter_map(|pin| Some(format!("  {}: {}\n", harmless(&pin.reference), progress(pin)?)));
    updates.fold(table.render(look), |text, line| text + &line)
}

/// How far an update is: `923c98d3aabb on mini-1 has not booted yet`.
fn progress(pin: &Pin) -> Option<String> {
    let Some(update) = &pin.update else {
        let rejected = pin.rejected.as_ref()?;
        return Some(harmless(&format!("{} was given up: {}", short(&rejected.candidate), rejected.why)));
    };
    let canary = update.canary.as_deref().unwrap_or("a host that has left the fleet");
    let jobs = plural(u64::from(update.wanted), "job");
    let state = match (update.booted, update.failed) {
        (false, _) => "has not booted yet".to_owned(),
        (true, 0) => format!("booted, {} of {jobs} succeeded", update.passed),
        (true, failed) => format!("booted, {} of {jobs} succeeded, {failed} did not", update.passed),
    };
    Some(harmless(&format!("{} on {canary} {state}", short(&update.candidate))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{PinUpdate, RejectedUpdate};
    use crate::cli::out::tests::look;
    use crate::cli::samples;

    fn pin(update: Option<PinUpdate>, rejected: Option<RejectedUpdate>) -> Pin {
        let digest =
            |first: char| format!("sha256:{first}23c98d3aabbccddeeff00112233445566778899aabbccddeeff001122334455");
        Pin {
            reference: "ghcr.io/cirruslabs/macos-tahoe-xcode:latest".into(),
            digest: digest('1'),
            previous: Some(digest('0')),
            pinned_at: samples::before(7_200.0),
            pinned_by: "host:mini-1".into(),
            profiles: vec!["flyci-macos-large".into()],
            update,
            rejected,
        }
    }

    #[test]
    fn pins_tell_what_they_stand_for_and_how_far_an_update_is() {
        let update = PinUpdate {
            candidate: "sha256:923c98d3aabbccddeeff00112233445566778899aabbccddeeff001122334455".into(),
            canary: Some("mini-1".into()),
            booted: true,
            passed: 1,
            failed: 1,
            wanted: 3,
            since: samples::before(600.0),
            by: "operator:501".into(),
        };
        let rejected = RejectedUpdate {
            candidate: update.candidate.clone(),
            why: "its vms do not come up (boot_timeout)".into(),
            at: samples::before(60.0),
        };
        let early = PinUpdate { booted: false, ..update.clone() };
        let pins = [pin(None, None), pin(Some(update), None), pin(Some(early), None), pin(None, Some(rejected))];
        insta::assert_snapshot!("pins_120", render(&pins, samples::now(), &look(120)));
        insta::assert_snapshot!("pins_80", render(&pins, samples::now(), &look(80)));
    }
}
