//! Which images a host has for its profiles, as dispatch and drivers ask for them.

use super::{Digest, ImageStore};
use std::path::PathBuf;

/// Where the images of a host come from.
#[derive(Clone)]
pub enum Images {
    /// The host's own store.
    Store(ImageStore),
    /// Every name is an image: the fake hypervisor needs none.
    Any,
}

impl Images {
    /// The digest of the image that a profile names, if it is on this host.
    #[must_use]
    pub fn digest(&self, reference: &str) -> Option<String> {
        match self {
            Self::Store(store) => store.find(reference).ok().map(|image| image.digest.to_string()),
            Self::Any => Some(reference.to_owned()),
        }
    }

    /// The directory of the image with this digest, if it is on this host.
    #[must_use]
    pub fn directory(&self, digest: &str) -> Option<PathBuf> {
        match self {
            Self::Store(store) => {
                let digest: Digest = digest.parse().ok()?;
                store.find(&digest.to_string()).ok().map(|image| image.path)
            }
            Self::Any => Some(PathBuf::from(digest)),
        }
    }
}
