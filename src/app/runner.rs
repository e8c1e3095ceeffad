//! The runner program that this host gives to its guests: `[runner]`.

#[cfg(target_os = "linux")]
use super::AppError;
use crate::config::Config;
use crate::domain::profile::Profile;
use crate::domain::runner_version::RunnerVersion;
use crate::images::Images;
use crate::images::runner;
#[cfg(target_os = "linux")]
use crate::images::runner::Pinned;
#[cfg(target_os = "linux")]
use std::path::PathBuf;

/// The directory that guests of QEMU get, if the configuration names one: unpacked first, where it is an archive. Blocks on
/// the disk.
#[cfg(target_os = "linux")]
pub fn directory(config: &Config) -> Result<Option<PathBuf>, AppError> {
    let section = &config.runner;
    match (&section.archive, &section.version, &section.sha256) {
        (Some(archive), Some(version), Some(sha256)) => {
            let sha256 = sha256.parse().expect("the configuration was checked");
            Ok(Some(runner::unpack(&Pinned { archive, version, sha256: &sha256 }, &config.data_dir)?))
        }
        _ => Ok(section.directory.clone()),
    }
}

/// The version of what guests get: the pinned one, what the directory says, or the oldest of the profiles' images.
pub fn version(config: &Config, images: &Images) -> Option<String> {
    let section = &config.runner;
    if section.archive.is_some() || section.directory.is_some() {
        return section.version.clone().or_else(|| runner::version_of(section.directory.as_ref()?));
    }
    let of_image = |profile: &Profile| images.runner_version(&profile.image)?.parse::<RunnerVersion>().ok();
    config.profiles.iter().filter_map(of_image).min().map(|version| version.to_string())
}
