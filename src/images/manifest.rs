//! What an image says of itself, and the digest that names it.

use crate::domain::admission::MacosVersion;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

/// The manifest's format that this version writes, and the only one that it reads.
pub const FORMAT: u32 = 1;

/// The manifest's file in an image's directory.
pub const MANIFEST_FILE: &str = "image.json";

/// Most files that an image has.
const FILES_LIMIT: usize = 64;

/// The guest's operating system.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Os {
    /// Linux.
    Linux,
    /// macOS.
    Macos,
}

/// The guest's processor architecture.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// 64-bit Intel and AMD.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Architecture {
    /// This machine's; none on architectures that flyci has no guests for.
    #[must_use]
    pub fn of_this_machine() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// Its name, as compilers and QEMU write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }
}

/// What the files of an image are, and so which backend boots it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// QEMU with a kernel given directly: `kernel`, `initrd` and `disk.qcow2`.
    QemuDirect,
    /// Virtualization.framework on macOS: disk, auxiliary storage and hardware model.
    Vz,
}

/// The kernel's file in an image of kind [`Kind::QemuDirect`].
pub const KERNEL: &str = "kernel";
/// The initial file system's.
pub const INITRD: &str = "initrd";
/// The disk's.
pub const DISK: &str = "disk.qcow2";

/// One file of an image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageFile {
    /// Its name in the image's directory.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256 of its content, in hexadecimal; of a file in pieces, that of the [list](Piece::list) of them.
    pub sha256: String,
    /// Its pieces from its beginning to its end, where it is so large that it is proved, fetched and shared in pieces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pieces: Vec<Piece>,
}

impl ImageFile {
    /// A file that is proved as a whole.
    #[must_use]
    pub fn whole(name: &str, content: &[u8]) -> Self {
        let sha256 = Digest::of(content).0;
        Self { name: name.to_owned(), size: content.len() as u64, sha256, pieces: Vec::new() }
    }

    /// A file that is proved piece by piece.
    #[must_use]
    pub fn of_pieces(name: &str, pieces: Vec<Piece>) -> Self {
        let size = pieces.iter().map(|piece| piece.size).sum();
        Self { name: name.to_owned(), size, sha256: Piece::list(&pieces).0, pieces }
    }

    /// True when its pieces, if it has any, are the whole of it.
    fn is_consistent(&self) -> bool {
        let sum = self.pieces.iter().try_fold(0_u64, |sum, piece| sum.checked_add(piece.size));
        self.pieces.is_empty() || (sum == Some(self.size) && Piece::list(&self.pieces).0 == self.sha256)
    }
}

/// A part of a file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256 of its content, in hexadecimal.
    pub sha256: String,
}

impl Piece {
    /// The digest of a list of pieces: of their digests in hexadecimal, each with a newline.
    #[must_use]
    pub fn list(pieces: &[Self]) -> Digest {
        let mut hash = Sha256::new();
        for piece in pieces {
            hash.update(&piece.sha256);
            hash.update("\n");
        }
        Digest(hex::encode(hash.finalize()))
    }
}

/// What an image says of itself: `image.json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The name that profiles refer to.
    pub name: String,
    /// The guest's operating system.
    pub os: Os,
    /// The guest's architecture.
    pub architecture: Architecture,
    /// What the files are.
    pub kind: Kind,
    /// The disk's virtual size in bytes. A clone's disk is larger by the space its profile promises.
    pub disk_size: u64,
    /// What the image needs on the kernel's command line, besides what the backend says there.
    pub command_line: String,
    /// Version of the agent inside.
    pub agent_version: String,
    /// Version of the runner inside, if there is one and it says.
    pub runner_version: Option<String>,
    /// When it was made, RFC 3339. Not part of the digest: the same content has the same name.
    pub created: String,
    /// The files, by name.
    pub files: Vec<ImageFile>,
    /// The digest of the registry's manifest that it was pulled by: it names the image here too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<Digest>,
    /// The oldest macOS that a Mac must run to boot it; macOS guests only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_macos: Option<MacosVersion>,
}

impl Manifest {
    /// The image's name. One that was pulled has the registry's; others have the SHA-256 over the manifest (less the
    /// time) as compact JSON, in the order of the fields above.
    #[must_use]
    pub fn digest(&self) -> Digest {
        if let Some(digest) = &self.registry {
            return digest.clone();
        }
        let timeless = Self { created: String::new(), ..self.clone() };
        let canonical = serde_json::to_vec(&timeless).expect("a manifest of strings and numbers is JSON");
        Digest(hex::encode(Sha256::digest(canonical)))
    }

    /// Says what is wrong with a manifest that was read.
    pub(super) fn fault(&self) -> Option<String> {
        if self.format != FORMAT {
            return Some(format!("its format is {}, and this flyci reads format {FORMAT}", self.format));
        }
        if self.files.len() > FILES_LIMIT {
            return Some(format!("it names {} files; an image has at most {FILES_LIMIT}", self.files.len()));
        }
        let plain = |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        if let Some(file) = self.files.iter().find(|file| !plain(&file.name) || file.name == MANIFEST_FILE) {
            return Some(format!("`{}` is no name of a file in an image", file.name));
        }
        if let Some(file) = self.files.iter().find(|file| !file.is_consistent()) {
            return Some(format!("the pieces of `{}` are not the whole of it", file.name));
        }
        let needed: &[&str] = match self.kind {
            Kind::QemuDirect => &[DISK, INITRD, KERNEL],
            Kind::Vz => &[],
        };
        let missing = needed.iter().find(|name| !self.files.iter().any(|file| file.name == **name));
        missing.map(|name| format!("the file `{name}` is not in its list"))
    }
}

/// A SHA-256, as images and the blobs of registries are named by. Shown as `sha256:HEX`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

/// Hexadecimal digits of a digest.
const DIGEST_LENGTH: usize = 64;

impl Digest {
    /// The digest of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(hex::encode(Sha256::digest(bytes)))
    }

    /// The digest that a hash came to.
    #[must_use]
    pub fn finish(hash: Sha256) -> Self {
        Self(hex::encode(hash.finalize()))
    }

    /// The digits alone: the name of the image's directory.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no digest.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is not a digest: write `sha256:` and {DIGEST_LENGTH} hexadecimal digits")]
pub struct ParseDigestError(String);

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let good = digits.len() == DIGEST_LENGTH && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if good { Ok(Self(digits.to_owned())) } else { Err(ParseDigestError(text.to_owned())) }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::images) fn sample() -> Manifest {
        Manifest {
            format: FORMAT,
            name: "linux-minimal".into(),
            os: Os::Linux,
            architecture: Architecture::X86_64,
            kind: Kind::Vz,
            disk_size: 1 << 30,
            command_line: String::new(),
            agent_version: "0.1.0".into(),
            runner_version: None,
            created: "2026-01-01T00:00:00Z".into(),
            files: Vec::new(),
            registry: None,
            minimum_macos: None,
        }
    }

    #[test]
    fn the_digest_names_the_content_and_not_the_time() {
        let made = sample();
        let again = Manifest { created: "2027-01-01T00:00:00Z".into(), ..made.clone() };
        assert_eq!(made.digest(), again.digest());
        let other = Manifest { disk_size: 2 << 30, ..made.clone() };
        assert_ne!(made.digest(), other.digest());
    }

    #[test]
    fn a_digest_is_read_back() {
        let digest = sample().digest();
        assert_eq!(digest.to_string().parse(), Ok(digest.clone()));
        assert_eq!(digest.hex().parse(), Ok(digest));
        for bad in ["", "sha256:", "sha256:12", "../../etc"] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_manifest_that_reaches_out_of_its_directory_is_refused() {
        for name in ["../disk", "/etc/passwd", ".hidden", "", "image.json"] {
            let file = ImageFile { name: name.into(), size: 0, sha256: String::new(), pieces: Vec::new() };
            let bad = Manifest { files: vec![file], ..sample() };
            assert!(bad.fault().is_some(), "{name}");
        }
        assert_eq!(sample().fault(), None);
        assert!(Manifest { kind: Kind::QemuDirect, ..sample() }.fault().is_some(), "a kernel is needed");
        assert!(Manifest { format: 2, ..sample() }.fault().is_some());
    }
}
