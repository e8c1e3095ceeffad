//! Which images a host has for its profiles, as dispatch and drivers ask for them.

use super::{Image, ImageStore};
use crate::domain::admission::MacosVersion;
use std::path::PathBuf;

/// Where the images of a host come from.
#[derive(Clone, Debug)]
pub enum Images {
    /// Every name is an image: the fake hypervisor needs none.
    Any,
    /// Those on this host's disk.
    Store(ImageStore),
}

impl Images {
    /// The digest of the image that a profile names, if it is on this host.
    #[must_use]
    pub fn digest(&self, reference: &str) -> Option<String> {
        match self {
            Self::Any => Some(reference.to_owned()),
            Self::Store(store) => match store.find(reference) {
                Ok(image) => Some(image.digest.to_string()),
                Err(error) => {
                    tracing::debug!(reference, %error, "no such image here");
                    None
                }
            },
        }
    }

    /// The version of the runner inside the image that a profile names, if there is one and it says.
    #[must_use]
    pub fn runner_version(&self, reference: &str) -> Option<String> {
        match self {
            Self::Any => None,
            Self::Store(store) => store.find(reference).ok()?.manifest.runner_version,
        }
    }

    /// The directory of the image with this digest, if it is on this host.
    #[must_use]
    pub fn directory(&self, digest: &str) -> Option<PathBuf> {
        match self {
            Self::Any => Some(PathBuf::from(digest)),
            Self::Store(store) => store.directory(&digest.parse().ok()?),
        }
    }

    /// The oldest macOS that boots the image with this digest; none where any machine does.
    #[must_use]
    pub fn minimum_macos(&self, digest: &str) -> Option<MacosVersion> {
        match self {
            Self::Any => None,
            Self::Store(_) => Image::read(&self.directory(digest)?).ok()?.manifest.minimum_macos,
        }
    }
}
