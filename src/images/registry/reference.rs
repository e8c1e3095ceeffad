//! Names of images in registries: `ghcr.io/cirruslabs/macos-tahoe-xcode:latest`, `…@sha256:HEX`.

use super::super::manifest::Digest;
use std::fmt;
use std::str::FromStr;

/// Most characters of a repository's name (the distribution specification's limit).
const REPOSITORY_LENGTH: usize = 255;
/// Most characters of a tag.
const TAG_LENGTH: usize = 128;
/// The tag that is meant when there is neither tag nor digest.
const USUAL_TAG: &str = "latest";

/// An image in a registry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reference {
    /// The registry's host, with its port if that is not the usual one.
    pub registry: String,
    /// The repository.
    pub repository: String,
    /// Which image of the repository.
    pub version: Version,
}

/// Which image of a repository.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Version {
    /// The one that the tag points to now.
    Tag(String),
    /// Always the same one.
    Digest(Digest),
}

impl Reference {
    /// Registry and repository, without tag and digest: the name of the image here.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same repository's image with this digest.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Self { version: Version::Digest(digest), ..self.clone() }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.version {
            Version::Tag(_) => ':',
            Version::Digest(_) => '@',
        };
        write!(f, "{}{mark}{}", self.name(), self.version)
    }
}

/// The text names no image in a registry.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` names no image in a registry: write `HOST/REPOSITORY:TAG` or `HOST/REPOSITORY@sha256:…`")]
pub struct ParseReferenceError(String);

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParseReferenceError(text.chars().filter(|c| !c.is_control()).collect()))
    }
}

fn parse(text: &str) -> Option<Reference> {
    let (registry, rest) = text.split_once('/')?;
    let (rest, digest) = match rest.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.strip_prefix("sha256:").and_then(|_| digest.parse().ok())?)),
        None => (rest, None),
    };
    let (repository, tag) = match rest.split_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (rest, None),
    };
    let version = match (digest, tag) {
        // With both, the digest says which: the tag may have moved.
        (Some(digest), _) => Version::Digest(digest),
        (None, tag) => Version::Tag(tag.unwrap_or(USUAL_TAG).to_owned()),
    };
    let good = is_registry(registry) && is_repository(repository) && tag.is_none_or(is_tag);
    good.then(|| Reference { registry: registry.to_owned(), repository: repository.to_owned(), version })
}

/// A host's name or address with an optional port; what has neither dot nor port is no host, except `localhost`.
pub(super) fn is_registry(text: &str) -> bool {
    let is_host = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.[]:".contains(c);
    (text.contains(['.', ':']) || text == "localhost")
        && text.chars().all(is_host)
        && format!("https://{text}/").parse::<reqwest::Url>().is_ok_and(|url| url.path() == "/" && url.has_host())
}

pub(super) fn is_repository(text: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    let is_part = |part: &str| {
        part.chars().all(is_inner)
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    text.len() <= REPOSITORY_LENGTH && text.split('/').all(is_part)
}

fn is_tag(text: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=TAG_LENGTH).contains(&text.len()) && text.chars().all(is_inner) && !text.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        let hex = "0123456789abcdef".repeat(4);
        for (text, written) in [
            (
                "ghcr.io/cirruslabs/macos-tahoe-xcode:26.1".to_owned(),
                "ghcr.io/cirruslabs/macos-tahoe-xcode:26.1".to_owned(),
            ),
            ("127.0.0.1:5000/mac".into(), "127.0.0.1:5000/mac:latest".into()),
            ("localhost/mac".into(), "localhost/mac:latest".into()),
            ("[::1]:5000/mac:x".into(), "[::1]:5000/mac:x".into()),
            (format!("ghcr.io/a/b@sha256:{hex}"), format!("ghcr.io/a/b@sha256:{hex}")),
            (format!("ghcr.io/a/b:old@sha256:{hex}"), format!("ghcr.io/a/b@sha256:{hex}")),
        ] {
            let reference: Reference = text.parse().expect(&text);
            assert_eq!(reference.to_string(), written);
        }
    }

    #[test]
    fn what_names_no_registry_is_refused() {
        for text in [
            "linux-minimal",
            "ubuntu:22.04",
            "cirruslabs/macos",
            "ghcr.io/",
            "ghcr.io/A/b",
            "ghcr.io/a/../b",
            "ghcr.io/a//b",
            "ghcr.io/a:",
            "ghcr.io/a:-x",
            "ghcr.io/a@sha256:12",
            "ghcr.io/a@md5:12",
            "user@ghcr.io/a",
            "ghcr.io/a?x",
            "ghcr.io:x/a",
            "https://ghcr.io/a",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
