//! One canary vm: cloned, booted to ready by the configured backend, destroyed.

use super::Check;
use super::disk::GET_IMAGE;
use crate::app;
use crate::config::{Config, HypervisorKind};
use crate::data_dir::{DataDir, DataDirError};
use crate::domain::ids::VmId;
use crate::domain::profile::Profile;
use crate::errors::chain;
use crate::hypervisor::{Hypervisor, VmSpec};
use crate::images::ImageStore;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const NAME: &str = "canary vm";
/// The longest that a clone, or the end of the vm, may take.
const STEP: Duration = Duration::from_secs(120);
/// How often the guest's agent is tried.
const READY_INTERVAL: Duration = Duration::from_millis(250);

/// Boots one vm to ready, and destroys it. Only while no daemon has the data directory: the daemon boots canaries of
/// its own, and would take this one for a stray.
pub async fn canary(config: &Config) -> Check {
    if !config.is_host() {
        return Check::good(NAME, "this is no host: it boots no vm");
    }
    if !config.data_dir.is_dir() {
        return Check::bad(NAME, "there is no data directory, and so no image").fix(GET_IMAGE);
    }
    let _alone = match DataDir::lock(&config.data_dir) {
        Ok(lock) => lock,
        Err(DataDirError::InUse { .. }) => {
            return Check::unknown(
                NAME,
                "a daemon runs here; with [host] self_test it boots a canary of each image itself",
            )
            .fix(
                "flyci hosts shows how that went; by hand: flyci drain --wait, stop the service, flyci doctor --boot",
            );
        }
        Err(error) => return Check::bad(NAME, chain(&error).to_string()),
    };
    let (profile, image) = match template(config) {
        Ok(found) => found,
        Err(why) => return Check::bad(NAME, why).fix(GET_IMAGE),
    };
    let hypervisor = match app::hypervisor(config) {
        Ok(hypervisor) => hypervisor,
        Err(error) => return Check::bad(NAME, chain(&error).to_string()),
    };
    let spec = VmSpec {
        id: VmId::random(),
        slot: 0,
        image,
        cpus: profile.cpus,
        memory: profile.memory,
        disk_free: profile.disk_free,
        display: profile.display,
    };
    let outcome = boot(&*hypervisor, &spec, config.limits.boot_timeout.0).await;
    let begun = Instant::now();
    let destroyed = tokio::time::timeout(STEP, hypervisor.destroy(spec.id)).await;
    let end = match destroyed {
        Ok(Ok(())) => format!("destroyed in {}", seconds(begun.elapsed())),
        Ok(Err(error)) => return Check::bad(NAME, format!("it could not be destroyed: {}", chain(&error))),
        Err(_) => return Check::bad(NAME, "it could not be destroyed in time"),
    };
    match outcome {
        Ok(steps) => Check::good(NAME, format!("{} · {steps} · {end}", profile.label)),
        Err(why) => {
            Check::bad(NAME, format!("{} · {why} · {end}", profile.label)).fix("flyci doctor tells of known causes")
        }
    }
}

/// The smallest profile whose image is here.
fn template(config: &Config) -> Result<(&Profile, PathBuf), String> {
    let mut profiles: Vec<&Profile> = config.profiles.iter().collect();
    profiles.sort_by_key(|profile| profile.memory);
    if config.host.hypervisor == HypervisorKind::Fake {
        return profiles
            .first()
            .map(|profile| (*profile, PathBuf::new()))
            .ok_or_else(|| "there is no profile".to_owned());
    }
    let store = ImageStore::open(&config.data_dir).map_err(|error| chain(&error).to_string())?;
    profiles
        .into_iter()
        .find_map(|profile| store.find(&profile.image).ok().map(|image| (profile, image.path)))
        .ok_or_else(|| "no profile's image is on this host".to_owned())
}

async fn boot(hypervisor: &dyn Hypervisor, spec: &VmSpec, boot_timeout: Duration) -> Result<String, String> {
    let begun = Instant::now();
    let late = |what: &str| format!("{what} took too long");
    let cloned = tokio::time::timeout(STEP, hypervisor.clone_vm(spec)).await.map_err(|_| late("the clone"))?;
    cloned.map_err(|error| format!("no clone: {}", chain(&error)))?;
    let clone = begun.elapsed();
    let begun = Instant::now();
    let up = async {
        hypervisor.boot(spec).await.map_err(|error| format!("no boot: {}", chain(&error)))?;
        let guest = hypervisor.guest(spec.id);
        tokio::select! {
            () = hypervisor.ended(spec.id) => Err("its process ended while the guest booted".to_owned()),
            () = async { while guest.ready().await.is_err() { tokio::time::sleep(READY_INTERVAL).await } } => Ok(()),
        }
    };
    tokio::time::timeout(boot_timeout, up).await.map_err(|_| late("the boot"))??;
    Ok(format!("clone {} · ready in {}", seconds(clone), seconds(begun.elapsed())))
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
