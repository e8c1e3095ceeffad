//! Which images a host has for its profiles, as dispatch and drivers ask for them.

use super::ImageStore;
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

/// What placement asks of an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Its digest.
    pub digest: String,
    /// The oldest macOS that boots it; none where any machine does.
    pub minimum_macos: Option<MacosVersion>,
}

impl Images {
    /// The image that a profile names, if it is on this host.
    #[must_use]
    pub fn find(&self, reference: &str) -> Option<Found> {
        match self {
            Self::Any => Some(Found { digest: reference.to_owned(), minimum_macos: None }),
            Self::Store(store) => match store.find(reference) {
                Ok(image) => {
                    Some(Found { digest: image.digest.to_string(), minimum_macos: image.manifest.minimum_macos })
                }
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
}
