//! The demo's image: `linux-minimal` with a small runner, built once and kept in the user's cache.

use super::DemoError;
use super::stage::{io, write_private};
use crate::cli::progress::Line;
use crate::images::ImageStore;
use crate::images::build::{self, BuildOptions};
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// The runner's program for guests.
const RUNNER: &str = "fake-runner";
/// What the host starts in a runner's directory.
const RUN: &str = "#!/bin/sh\nexec \"$(dirname \"$0\")/fake-runner\" \"$@\"\n";

/// Puts the image into the data directory, built if it is not in the cache. Gives the reference for the profile.
pub async fn provide(data_dir: &Path, root: &Path, runner: Option<&Path>, line: &Line) -> Result<String, DemoError> {
    let cannot = |error| DemoError::part("the image cannot be kept", error);
    let source = match runner {
        Some(directory) => directory.join("run.sh"),
        None => find_runner()?,
    };
    let cache = cache().unwrap_or_else(|| root.join("cache"));
    let options = BuildOptions::usual(&cache).map_err(|error| DemoError::part("the image cannot be built", error))?;
    let home = cache.join("demo").join(fingerprint(&options.agent, &source)?);
    fs::create_dir_all(&home).map_err(io(&format!("make the directory {}", home.display())))?;
    let store = ImageStore::open(&home).map_err(cannot)?;
    let image = match store.find(build::LINUX_MINIMAL) {
        Ok(image) => image,
        Err(_) => {
            forget_others(&home);
            let runner = match runner {
                Some(directory) => directory.to_owned(),
                None => small_runner(root, &source)?,
            };
            let options = BuildOptions { runner: Some(runner), ..options };
            build::linux_minimal(&options, &store, &mut |step| line.say(&format!("image: {step}")))
                .await
                .map_err(|error| DemoError::part("the image was not built", error))?
        }
    };
    line.say("image: putting it into the data directory");
    let own = ImageStore::open(data_dir).and_then(|own| own.import(&image.path)).map_err(cannot)?;
    Ok(format!("{}@{}", own.manifest.name, own.digest))
}

/// Where what can be made again is kept; none if the user has no such place.
fn cache() -> Option<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
        Some(base) => PathBuf::from(base),
        None => PathBuf::from(std::env::var_os("HOME").filter(|path| !path.is_empty())?).join(".cache"),
    };
    let cache = base.join("flyci");
    fs::create_dir_all(&cache).ok()?;
    Some(cache)
}

/// What the image is made of: this program with its recipe, the agent, the runner.
fn fingerprint(agent: &Path, runner: &Path) -> Result<String, DemoError> {
    let program = std::env::current_exe().map_err(io("find this program"))?;
    let mut hash = Sha256::new();
    for path in [program.as_path(), agent, runner] {
        let known = fs::metadata(path).and_then(|found| Ok((found.len(), found.modified()?)));
        let (length, modified) = known.map_err(io(&format!("read {}", path.display())))?;
        hash.update(path.as_os_str().as_encoded_bytes());
        hash.update(length.to_le_bytes());
        hash.update(modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_le_bytes());
    }
    Ok(hex::encode(&hash.finalize()[..8]))
}

/// Images of earlier programs are of no use any more.
fn forget_others(home: &Path) {
    let Some(others) = home.parent().and_then(|parent| fs::read_dir(parent).ok()) else { return };
    for other in others.flatten().filter(|entry| entry.path() != home) {
        let _ = super::stage::remove_tree(&other.path());
    }
}

/// A runner's directory with our own small runner in it.
fn small_runner(root: &Path, program: &Path) -> Result<PathBuf, DemoError> {
    let directory = root.join("runner");
    fs::create_dir(&directory).map_err(io("make the runner's directory"))?;
    fs::copy(program, directory.join(RUNNER)).map_err(io(&format!("copy {}", program.display())))?;
    write_private(&directory.join("run.sh"), RUN.as_bytes())?;
    for name in [RUNNER, "run.sh"] {
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o755))
            .map_err(io("make the runner executable"))?;
    }
    Ok(directory)
}

/// Finds the static runner: beside this program, then where cargo leaves it.
fn find_runner() -> Result<PathBuf, DemoError> {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let here = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.to_owned())).unwrap_or_default();
    let mut candidates = vec![here.join(format!("{RUNNER}-{target}"))];
    for up in here.ancestors().take(4) {
        candidates.extend(["agent", "release", "debug"].map(|profile| up.join(&target).join(profile).join(RUNNER)));
    }
    let found = candidates.iter().find(|path| path.is_file()).cloned();
    found.ok_or_else(|| DemoError::NoRunner { looked_at: candidates.first().cloned().unwrap_or_default(), target })
}
