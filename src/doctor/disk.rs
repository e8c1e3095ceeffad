//! The data directory, its volume, the images and what fits on this machine.

use super::probe::Probe;
use super::{Check, Subject};
use crate::config::HypervisorKind;
use crate::domain::admission::{Capacity, Need};
use crate::domain::profile::Profile;
use crate::domain::runner_version::RunnerVersion;
use crate::images::ImageStore;
use crate::images::runner::version_of;
use std::path::Path;

/// What group and others must not have of the data directory.
const OTHERS: u32 = 0o077;
/// Free space that the host keeps for its database and logs.
const RESERVE: u64 = 5_000_000_000;
/// The oldest runner that GitHub registers: <https://github.blog/changelog/> of the minimum version enforcement.
const OLDEST_RUNNER: RunnerVersion = RunnerVersion::new(2, 329, 0);

/// The check of what version of GitHub's runner guests get.
const RUNNER: &str = "runner version";

/// Every check of what is on the disk.
pub fn checks(subject: &Subject<'_>, probe: &dyn Probe) -> Vec<Check> {
    let config = subject.config;
    let mut checks = vec![data_dir(&config.data_dir, probe)];
    if !config.is_host() {
        return checks;
    }
    let needed = config.profiles.iter().map(|profile| profile.disk_free.0).max().unwrap_or(0);
    checks.push(space(&config.data_dir, probe, needed.saturating_mul(u64::from(config.host.slots))));
    checks.push(same_volume(&config.data_dir, probe));
    if config.host.hypervisor != HypervisorKind::Fake {
        checks.push(fits(subject));
        checks.push(images(subject, probe));
        checks.push(runner(subject, probe));
    }
    checks
}

/// Bytes, for people.
fn size(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "one digit is shown")]
    let gigabytes = bytes as f64 / 1e9;
    format!("{gigabytes:.1} GB")
}

fn data_dir(path: &Path, probe: &dyn Probe) -> Check {
    const NAME: &str = "data directory";
    let shown = path.display();
    match probe.about(path) {
        Ok(about) if !about.is_directory => Check::bad(NAME, format!("{shown} is no directory")).fix("change data_dir"),
        Ok(about) if about.mode & OTHERS != 0 => {
            Check::bad(NAME, format!("{shown} is open to others (mode {:04o}): keys and VMs are in it", about.mode))
                .mended_by(&[&["chmod", "700", &path.to_string_lossy()]])
        }
        Ok(about) => Check::good(NAME, format!("{shown}, of user {} alone", about.uid)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Check::warning(NAME, format!("there is no {shown} yet"))
                .fix("flyci service install makes it; so does flyci serve, where it may")
        }
        Err(error) => Check::unknown(NAME, format!("{shown}: {error}")).fix("run doctor as its owner, or as root"),
    }
}

fn space(path: &Path, probe: &dyn Probe, needed: u64) -> Check {
    const NAME: &str = "free space";
    let Ok(about) = probe.about(path) else { return Check::unknown(NAME, "the data directory cannot be looked at") };
    let wanted = needed.saturating_add(RESERVE);
    let free = size(about.free);
    let fix = "flyci image list, flyci image remove DIGEST; on a Mac also: tmutil listlocalsnapshots /";
    if about.free < RESERVE {
        Check::bad(NAME, format!("{free} free, and {} are kept for the host itself: no VM is made", size(RESERVE)))
            .fix(fix)
    } else if about.free < wanted {
        Check::warning(NAME, format!("{free} free; all slots at once may need {}", size(wanted))).fix(fix)
    } else {
        Check::good(NAME, format!("{free} free; all slots at once need at most {}", size(wanted)))
    }
}

/// Clones are made without copying, which only works on one volume.
fn same_volume(data_dir: &Path, probe: &dyn Probe) -> Check {
    const NAME: &str = "one volume";
    let device = |name: &str| probe.about(&data_dir.join(name)).ok().map(|about| about.device);
    match (device("images"), device("vms")) {
        (Some(images), Some(vms)) if images != vms => {
            Check::bad(NAME, "images and vms are on different volumes: a clone would be a full copy")
                .fix("remove the mount or link below data_dir, so that both are on one volume")
        }
        (Some(_), Some(_)) => Check::good(NAME, "images and vms are on the same one"),
        _ => Check::good(NAME, "neither images nor vms have a place of their own"),
    }
}

/// What profiles ask for, against what the machine has.
fn fits(subject: &Subject<'_>) -> Check {
    let (machine, host) = (crate::machine::detect(), &subject.config.host);
    let capacity = host.capacity(machine.cpus, machine.memory, crate::machine::macos());
    let hardware = host.hardware.as_deref().unwrap_or(&machine.hardware);
    judge_fit(&subject.config.profiles, &capacity, hardware)
}

fn judge_fit(profiles: &[Profile], capacity: &Capacity, hardware: &str) -> Check {
    const NAME: &str = "profiles fit";
    let need = |profile: &Profile| Need { memory: profile.memory, cpus: profile.cpus };
    let ours: Vec<&Profile> = profiles
        .iter()
        .filter(|profile| profile.hardware.as_ref().is_none_or(|need| need.is_met_by(hardware)))
        .collect();
    let too_big: Vec<&str> = ours
        .iter()
        .filter(|profile| capacity.could_ever_admit(need(profile)).is_err())
        .map(|profile| profile.label.as_str())
        .collect();
    if profiles.is_empty() {
        return Check::warning(NAME, "there is no profile here to compare with").fix("write [[profiles]]");
    }
    let (memory, reserve) = (size(capacity.memory.0), size(capacity.reserve_memory.0));
    let room = format!("{memory} less {reserve} for the host, {} CPUs, {} slots", capacity.cpus, capacity.slots);
    if ours.len() == too_big.len() {
        return Check::bad(NAME, format!("no profile can run here ({room}, {hardware})"))
            .fix("flyci config check says why of each; lower memory or cpus, or [host] reserve_memory");
    }
    if !too_big.is_empty() {
        return Check::warning(NAME, format!("never here: {} ({room})", too_big.join(", ")))
            .fix("other hosts may run them; flyci config check says what each lacks");
    }
    // As many of the smallest as there are slots.
    let smallest = ours.iter().min_by_key(|profile| profile.memory).map(|profile| need(profile));
    let taken = smallest.map_or(0, |smallest| {
        let mut taken = Vec::new();
        while taken.len() < capacity.slots as usize && capacity.admit(&taken, smallest).is_ok() {
            taken.push(smallest);
        }
        taken.len()
    });
    if taken < capacity.slots as usize {
        return Check::warning(NAME, format!("only {taken} of {} slots can be used at once ({room})", capacity.slots))
            .fix("offer a profile with less memory or fewer cpus, or lower [host] slots");
    }
    Check::good(NAME, room)
}

fn images(subject: &Subject<'_>, probe: &dyn Probe) -> Check {
    const NAME: &str = "images";
    let Some(store) = store(subject, probe) else { return Check::warning(NAME, "there is none yet").fix(GET_IMAGE) };
    let mut missing: Vec<&str> = subject
        .config
        .profiles
        .iter()
        .filter(|profile| store.find(&profile.image).is_err())
        .map(|profile| profile.image.as_str())
        .collect();
    missing.sort_unstable();
    missing.dedup();
    match missing.as_slice() {
        [] => Check::good(NAME, "every profile's image is here"),
        _ => Check::bad(NAME, format!("not on this host: {}", missing.join(", "))).fix(GET_IMAGE),
    }
}

/// What brings an image to a host.
pub const GET_IMAGE: &str = "flyci image pull REF, or flyci image build linux-minimal";

/// The images, unless there are none: looking makes no directory.
fn store(subject: &Subject<'_>, probe: &dyn Probe) -> Option<ImageStore> {
    probe.about(&subject.config.data_dir.join("images")).ok()?;
    ImageStore::open(&subject.config.data_dir).ok()
}

/// What GitHub does with old ones.
const REFUSES: &str = "GitHub refuses one a month after a newer came out";

/// GitHub refuses runners that are too old, and serves none that is a month behind the newest.
fn runner(subject: &Subject<'_>, probe: &dyn Probe) -> Check {
    let section = &subject.config.runner;
    match (&section.archive, &section.directory) {
        (Some(archive), _) => given(archive, archive, section.version.clone(), probe),
        (None, Some(directory)) => {
            let version = section.version.clone().or_else(|| version_of(directory));
            given(directory, &directory.join("run.sh"), version, probe)
        }
        (None, None) => {
            let images = store(subject, probe).and_then(|store| store.list().ok()).unwrap_or_default();
            let versions = images.into_iter().filter_map(|image| image.manifest.runner_version);
            judge_runners(versions.collect(), "in the images", "[runner] gives guests another, or rebuild the image")
        }
    }
}

/// The runner that the configuration names: `proof` is there where it is one.
fn given(place: &Path, proof: &Path, version: Option<String>, probe: &dyn Probe) -> Check {
    if probe.about(proof).is_err() {
        return Check::bad(RUNNER, format!("there is no {}, which [runner] names", proof.display()))
            .fix("put GitHub's runner there: https://github.com/actions/runner/releases");
    }
    let place = format!("in {}", place.display());
    judge_runners(version.into_iter().collect(), &place, "put a newer one there, and change [runner] version with it")
}

fn judge_runners(mut versions: Vec<String>, place: &str, fix: &str) -> Check {
    versions.sort();
    versions.dedup();
    let is_old = |version: &&String| version.parse::<RunnerVersion>().is_ok_and(|version| version < OLDEST_RUNNER);
    let old: Vec<&str> = versions.iter().filter(is_old).map(String::as_str).collect();
    if !old.is_empty() {
        let found = format!("{} {place}; GitHub registers none before {OLDEST_RUNNER}", old.join(", "));
        return Check::bad(RUNNER, found).fix(fix);
    }
    if versions.is_empty() {
        return Check::unknown(RUNNER, format!("the one {place} does not tell its version; {REFUSES}"))
            .fix("say which it is by [runner] version");
    }
    Check::good(RUNNER, format!("{} {place}; {REFUSES}", versions.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::doctor::System;
    use crate::doctor::probe::About;
    use crate::doctor::probe::recorded::Recorded;
    use crate::domain::units::Bytes;

    const HOME: &str = "/var/db/flyci";
    const GB: u64 = 1_000_000_000;

    fn path() -> &'static Path {
        Path::new(HOME)
    }

    #[test]
    fn a_data_directory_that_others_read_is_bad() {
        let open = About { uid: 501, mode: 0o755, device: 1, free: 0, is_directory: true };
        let check = data_dir(path(), &Recorded::default().has(HOME, open));
        assert_eq!((check.verdict, check.fix.as_deref()), (Verdict::Bad, Some("chmod 700 /var/db/flyci")));
        assert_eq!(data_dir(path(), &Recorded::default().directory(HOME, 501, 0)).verdict, Verdict::Good);
        assert_eq!(data_dir(path(), &Recorded::default()).verdict, Verdict::Warning);
    }

    #[test]
    fn room_is_counted_for_all_slots() {
        let with = |free| space(path(), &Recorded::default().directory(HOME, 501, free), 56 * GB).verdict;
        assert_eq!((with(100 * GB), with(40 * GB), with(GB)), (Verdict::Good, Verdict::Warning, Verdict::Bad));
    }

    #[test]
    fn clones_across_volumes_are_found() {
        let at = |device| About { uid: 501, mode: 0o700, device, free: 0, is_directory: true };
        let there = Recorded::default().has("/var/db/flyci/images", at(1));
        assert_eq!(same_volume(path(), &there.clone().has("/var/db/flyci/vms", at(1))).verdict, Verdict::Good);
        assert_eq!(same_volume(path(), &there.has("/var/db/flyci/vms", at(2))).verdict, Verdict::Bad);
    }

    #[test]
    fn an_old_runner_is_bad_and_an_untold_one_unknown() {
        let judge = |versions: &[&str]| {
            judge_runners(versions.iter().map(|&one| one.to_owned()).collect(), "in the images", "mend it").verdict
        };
        assert_eq!(judge(&["2.331.0"]), Verdict::Good);
        assert_eq!(judge(&["2.331.0", "2.319.1"]), Verdict::Bad);
        assert_eq!(judge(&["v2.99.0"]), Verdict::Bad, "versions are compared by number");
        assert_eq!(judge(&[]), Verdict::Unknown);
    }

    #[test]
    fn the_runner_that_is_given_to_guests_is_judged_where_it_is() {
        let judge = |more: &str, probe: &Recorded| {
            let text = format!(
                "roles = [\"host\"]\n[database]\nurl = \"postgres://db/flyci\"\n[host]\nname = \"m\"\nhypervisor = \"fake\"\n[runner]\n{more}"
            );
            let config = crate::config::Config::from_toml(&text, Path::new("/etc/flyci")).expect("it is right");
            let (system, program, now) = (System::Linux, "/usr/local/bin/flyci".into(), chrono::Utc::now());
            let subject = Subject { system, config: &config, program, now };
            runner(&subject, probe)
        };
        let folder = tempfile::tempdir().expect("a directory");
        let archive = folder.path().join("runner.tar.gz").display().to_string();
        std::fs::write(&archive, "").expect("written");
        let pinned = |version: &str| {
            format!("archive = \"{archive}\"\nversion = \"{version}\"\nsha256 = \"{}\"\n", "0".repeat(64))
        };
        let there = Recorded::default().directory(&archive, 501, GB);
        assert_eq!(judge(&pinned("2.331.0"), &there).verdict, Verdict::Good);
        assert_eq!(judge(&pinned("2.319.1"), &there).verdict, Verdict::Bad);
        assert_eq!(judge(&pinned("2.331.0"), &Recorded::default()).verdict, Verdict::Bad, "it is not there");
        // The configuration's own check wants a runner there; what the probe sees is what is judged.
        let script = folder.path().join("run.sh").display().to_string();
        std::fs::write(&script, "").expect("written");
        let directory = format!("directory = \"{}\"\n", folder.path().display());
        assert_eq!(judge(&directory, &Recorded::default()).verdict, Verdict::Bad, "it has no run.sh");
        let unpacked = Recorded::default().directory(&script, 501, GB);
        assert_eq!(judge(&directory, &unpacked).verdict, Verdict::Unknown, "it does not tell its version");
    }

    #[test]
    fn profiles_are_compared_with_the_machine() {
        let config = crate::config::Config::from_toml(
            "roles = [\"host\"]\n[database]\nurl = \"postgres://db/flyci\"\n[host]\nname = \"m\"\nhypervisor = \"fake\"\n\
             [[profiles]]\nlabel = \"flyci-a\"\ncpus = 4\nmemory = \"7GB\"\ndisk_free = \"28GB\"\nimage = \"i\"\n",
            Path::new("/etc/flyci"),
        )
        .expect("it is right");
        let capacity = |memory| Capacity {
            slots: 2,
            memory: Bytes(memory * GB),
            cpus: 8,
            reserve_memory: Bytes(4 * GB),
            reserve_cpus: 0,
            cpu_overcommit: 1.0,
            macos: None,
        };
        let judge = |memory| judge_fit(&config.profiles, &capacity(memory), "m4").verdict;
        assert_eq!((judge(24), judge(16), judge(8)), (Verdict::Good, Verdict::Warning, Verdict::Bad));
    }
}
