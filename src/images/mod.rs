//! The read-only templates VMs are cloned from.

use std::path::PathBuf;

/// Where the templates of a host come from.
#[derive(Clone)]
pub enum Images {
    /// Every name is a template: the fake hypervisor needs none.
    Any,
}

impl Images {
    /// The digest of the image that a profile names, if it is on this host.
    #[must_use]
    pub fn digest(&self, reference: &str) -> Option<String> {
        match self {
            Self::Any => Some(reference.to_owned()),
        }
    }

    /// The directory of the image with this digest, if it is on this host.
    #[must_use]
    pub fn directory(&self, digest: &str) -> Option<PathBuf> {
        match self {
            Self::Any => Some(PathBuf::from(digest)),
        }
    }
}
