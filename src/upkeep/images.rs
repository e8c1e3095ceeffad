//! Images of a host: how they are fetched, as the configuration says.

use crate::config;
use crate::images::PullOptions;
use crate::images::registry::{Keyring, Options};
use std::io;
use std::path::PathBuf;

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
    })
}
