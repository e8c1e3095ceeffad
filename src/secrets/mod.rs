//! Encryption of stored values, keyed look-ups, sealing of JIT configs, and the files keys live in.
//!
//! A master key (at the gateway, a 0600 file or what else is configured) wraps a data key and an index key
//! per tenant. The data
//! key encrypts what identifies a person, an account or a repository; the index key makes the HMACs by
//! which such a value is found without being readable. A JIT config is sealed to the public key of the
//! host that will use it. What is *not* here: where the bytes are stored (`store`), and GitHub's keys
//! (`github`).

mod audit;
mod envelope;
pub mod files;
mod master;
pub mod package;
mod ring;
pub mod sealing;
mod source;
mod tenant;
pub mod vouch;

pub use audit::AuditKey;
pub use ring::{KeyRing, create_master_key, wrapped_by};
pub use source::{MasterSource, SourceError};
pub use tenant::{Column, TenantKeys};

use files::PrivateFileError;
use std::path::PathBuf;

/// A stored value that only its tenant's key opens.
#[derive(Clone, PartialEq, Eq, Debug, sqlx::Type)]
#[sqlx(transparent)]
pub struct Sealed(pub Vec<u8>);

/// The keyed HMAC by which a value is found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Lookup(pub [u8; 32]);

impl Lookup {
    /// The bytes as stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Why a key or a value cannot be used. No variant carries anything secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// The file of a key is missing, unreadable, or readable by others.
    #[error("the {what} cannot be used")]
    File {
        /// `master key` or `host key`.
        what: &'static str,
        /// What is wrong with the file.
        #[source]
        source: PrivateFileError,
    },
    /// The source of the master key cannot be read.
    #[error("the master key cannot be read from {place}")]
    Source {
        /// What the configuration names.
        place: String,
        /// Why not.
        #[source]
        source: SourceError,
    },
    /// The source holds no master key.
    #[error("{0} holds no flyci master key: put the right one there, or restore it from where it is kept")]
    NoMasterKey(String),
    /// The master key is not in a file that flyci may write.
    #[error(
        "flyci cannot make a master key in {0}: make one with `flyci keys new FILE`, put its line before the lines that are there, then rotate again"
    )]
    NotOurs(String),
    /// The source has lost a key that is in use.
    #[error("{place} does not hold master key {key} any more, which stored values still need: put its line back")]
    StillNeeded {
        /// The key.
        key: KeyId,
        /// What the configuration names.
        place: String,
    },
    /// Earlier rotations did not come to their end.
    #[error(
        "so many master keys are in use that no more is made: `flyci keys list` shows what keeps earlier rotations from their end"
    )]
    TooManyMasterKeys,
    /// The file is there, and is no key of this kind.
    #[error("{path} holds no flyci {what}: put the right file there, or restore it from where it is kept")]
    NotAKey {
        /// `master key` or `host key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The value was changed, or is in another place than the one it was encrypted for.
    #[error("a stored value of {place} does not open: it was changed, or moved from another row, column or tenant")]
    Refused {
        /// Table and column.
        place: &'static str,
    },
    /// The value is of a format that this version does not know.
    #[error("a stored value of {place} has format {version}, which this flyci does not know: install a later one")]
    UnknownVersion {
        /// Table and column.
        place: &'static str,
        /// The format's number.
        version: u8,
    },
    /// The value was made with another key.
    #[error("a stored value of {place} was made with key {found}, and the key at hand is {ours}: {fix}")]
    OtherKey {
        /// Table and column.
        place: &'static str,
        /// Id of the key that made it.
        found: KeyId,
        /// Id of the key that should open it.
        ours: KeyId,
        /// What to do.
        fix: &'static str,
    },
    /// The opened value is not of the kind that its column holds.
    #[error("a stored value of {place} opened to something that is no {expected}")]
    Malformed {
        /// Table and column.
        place: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// What should be a token is none.
    #[error("this is no token to join with: `flyci host invite NAME` on a gateway shows one, once")]
    NotAToken,
    /// The public key of a host is not one.
    #[error("the host's public key is none (32 bytes of X25519 are needed): let the host start again to publish it")]
    HostPublicKey,
    /// The JIT config is longer than any that GitHub makes.
    #[error("a JIT config of {length} bytes is longer than the {limit} that are accepted")]
    JitTooLong {
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
}

/// Names a key without telling anything of it: values carry the id of the key that made them, so that
/// the right one is picked and never tried in turn.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; KeyId::LENGTH]);

impl KeyId {
    /// Bytes of an id.
    const LENGTH: usize = 4;

    /// The bytes as stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// An id as stored; `None` when these bytes are none.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl std::fmt::Debug for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// Fresh bytes from the operating system, wiped when dropped.
///
/// # Panics
/// When the operating system has no randomness to give: no key may be made then.
fn random<const N: usize>() -> zeroize::Zeroizing<[u8; N]> {
    let mut bytes = zeroize::Zeroizing::new([0; N]);
    rand::TryRng::try_fill_bytes(&mut rand::rngs::SysRng, bytes.as_mut())
        .expect("the operating system gives randomness");
    bytes
}
