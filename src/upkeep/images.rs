//! Images of a host: how they are fetched, as the configuration says, and those that nothing needs any more.
//!
//! Does not: fetch anything by itself, or touch an image that a vm or a profile uses.

use crate::config;
use crate::images::registry::{Keyring, Options, Reference};
use crate::images::{Digest, ImageError, Images, Keep, PullOptions};
use crate::lifecycle::Machine;
use crate::store::{StoreError, image_pins, vms};
use std::collections::HashSet;
use std::io;
use std::path::PathBuf;

/// Why a pass could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The database is away.
    #[error("the vms' rows could not be read")]
    Store(#[from] StoreError),
    /// The disk fails.
    #[error("the images could not be pruned")]
    Images(#[from] ImageError),
}

/// One round: what vms and profiles use is marked as used now, and what nothing used for long is removed. Answers how
/// many images went.
///
/// # Errors
/// When the database or the disk fails.
pub async fn pass(machine: &Machine, keep: Keep) -> Result<usize, PruneError> {
    let Images::Store(store) = machine.images.clone() else { return Ok(0) };
    let live = vms::live(&machine.pool, machine.fence.host).await?;
    let profiles: Vec<String> = machine.profiles.iter().map(|profile| profile.image.clone()).collect();
    // On a canary too, which goes back to it if its candidate is given up.
    let mut pinned = HashSet::new();
    for reference in profiles.iter().filter_map(|image| image.parse::<Reference>().ok()) {
        let pin = image_pins::find(&machine.pool, &reference.to_string()).await?;
        pinned.extend(pin.and_then(|pin| pin.digest.parse::<Digest>().ok()));
    }
    let pruned = tokio::task::spawn_blocking(move || {
        // A vm is only made of a profile's image: none of these can begin to be used meanwhile.
        let mut used = store.named(profiles.iter().map(String::as_str))?;
        used.extend(pinned);
        used.extend(live.iter().filter_map(|vm| vm.image.parse().ok()));
        store.mark_used(&used)?;
        store.prune(&keep, &used, false)
    });
    let pruned = pruned.await.expect("pruning does not panic")?;
    for image in &pruned.images {
        tracing::info!(image.name = image.manifest.name, image.digest = %image.digest, "an image that nothing used was removed");
    }
    Ok(pruned.images.len())
}

/// Why the configuration of images cannot be used now. What is wrong with its texts was told when it was read.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// The certificates cannot be read.
    #[error("`images.ca_file` cannot be read ({path})")]
    Ca {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// How registries are reached.
///
/// # Errors
/// The certificates cannot be read.
pub fn registry_options(section: &config::Images) -> Result<Options, OptionsError> {
    let read = |path: &PathBuf| std::fs::read(path).map_err(|source| OptionsError::Ca { path: path.clone(), source });
    Ok(Options {
        keyring: Keyring::usual(section.credentials_file.clone()),
        mirrors: section.mirrors.iter().filter_map(|text| text.parse().ok()).collect(),
        ca_pem: section.ca_file.as_ref().map(read).transpose()?,
        plain_loopback: section.plain_loopback,
        ..Options::default()
    })
}

/// How images are pulled.
///
/// # Errors
/// As [`registry_options`].
pub fn pull_options(section: &config::Images) -> Result<PullOptions, OptionsError> {
    Ok(PullOptions {
        registry: registry_options(section)?,
        concurrency: section.concurrency as usize,
        reserve: section.keep_free,
        macos: None,
    })
}
