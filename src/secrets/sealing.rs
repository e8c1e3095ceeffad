//! JIT configs on their way from the gateway to one host: sealed by HPKE (RFC 9180) to that host's key.
//!
//! Suite: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305, base mode. Where the JIT config
//! belongs (fleet, host, vm, runner, repository) is bound from outside (`info`) and repeated inside, so
//! that a sealed config moved to another row opens for nobody.

use super::envelope::length_prefixed;
use super::files::{self, PrivateFileError};
use super::{KeyId, SecretsError};
use crate::domain::ids::{FleetId, HostId, RepositoryId, RunnerId, VmId};
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable, single_shot_open, single_shot_seal_with_rng};
use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use std::path::Path;
use zeroize::{Zeroize, Zeroizing};

/// The format that is written.
const VERSION: u8 = 1;
/// What a host key file begins with; the rest is the key in hexadecimal digits.
const FILE_HEADER: &str = "flyci-host-key-1:";
/// As errors name it.
const WHAT: &str = "host key";
/// Where sealed JIT configs are stored.
const PLACE: &str = "runners.sealed_jit";
/// Bytes of an X25519 key, private, public or encapsulated.
const KEY_LENGTH: usize = 32;
/// No JIT config is longer, in bytes: GitHub's have 4 to 6 KB.
pub const MAX_JIT_LENGTH: usize = 64 * 1024;
/// What to do when a JIT config is sealed to another key.
const OTHER_HOST_KEY: &str = "the host's key changed since; the runner is to be minted again";

type PrivateKey = <X25519HkdfSha256 as Kem>::PrivateKey;
type PublicKey = <X25519HkdfSha256 as Kem>::PublicKey;
type EncappedKey = <X25519HkdfSha256 as Kem>::EncappedKey;

/// Where a JIT config belongs: it opens there and nowhere else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JitContext {
    /// The fleet.
    pub fleet: FleetId,
    /// The host that may open it.
    pub host: HostId,
    /// The vm that it is for.
    pub vm: VmId,
    /// The runner that it registers.
    pub runner: RunnerId,
    /// The one repository whose job it may run.
    pub repository: RepositoryId,
}

impl JitContext {
    fn encode(&self, key: KeyId) -> Vec<u8> {
        length_prefixed(&[
            b"flyci jit config",
            &[VERSION],
            &key.0,
            self.fleet.0.as_bytes(),
            self.host.0.as_bytes(),
            self.vm.0.as_bytes(),
            self.runner.0.as_bytes(),
            self.repository.0.as_bytes(),
        ])
    }
}

/// Seals a JIT config to a host's public key.
///
/// # Errors
/// When the public key is none, or the JIT config is longer than [`MAX_JIT_LENGTH`].
pub fn seal_jit(host_public: &[u8], context: &JitContext, jit: &SecretString) -> Result<Vec<u8>, SecretsError> {
    let secret = jit.expose_secret().as_bytes();
    if secret.len() > MAX_JIT_LENGTH {
        return Err(SecretsError::JitTooLong { length: secret.len(), limit: MAX_JIT_LENGTH });
    }
    let public = PublicKey::from_bytes(host_public).map_err(|_| SecretsError::HostPublicKey)?;
    let id = key_id(host_public);
    let bound = context.encode(id);
    let plaintext = Zeroizing::new([bound.as_slice(), secret].concat());
    let (encapped, ciphertext) = single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &public,
        &bound,
        &plaintext,
        &[],
        &mut UnwrapErr(SysRng),
    )
    .map_err(|_| SecretsError::HostPublicKey)?;
    Ok([[VERSION].as_slice(), &id.0, &encapped.to_bytes(), &ciphertext].concat())
}

/// Names a public key.
fn key_id(public: &[u8]) -> KeyId {
    let digest: [u8; 32] = Sha256::digest(public).into();
    let (id, _) = digest.split_first_chunk().expect("a digest is longer than an id");
    KeyId(*id)
}

/// A host's key pair: what is sealed to it, this host alone opens.
pub struct HostKey {
    private: PrivateKey,
    public: [u8; KEY_LENGTH],
}

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostKey").field("public", &hex::encode(self.public)).finish_non_exhaustive()
    }
}

impl HostKey {
    /// The key in this file, which is made when there is none. A lost key costs the JIT configs that
    /// are on their way, no more: they are minted again.
    ///
    /// # Errors
    /// When the file is no host key, belongs to somebody else, is readable by others, or cannot be
    /// written.
    pub fn open_or_create(path: &Path) -> Result<Self, SecretsError> {
        match Self::read(path) {
            Err(SecretsError::File { source: PrivateFileError::Missing { .. }, .. }) => {
                Self::create(path)?;
                Self::read(path)
            }
            outcome => outcome,
        }
    }

    /// The public key, for the host's row.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// Opens a JIT config that was sealed to this host for this very context.
    ///
    /// # Errors
    /// When it was sealed to another key or for another context, or was changed.
    pub fn open_jit(&self, context: &JitContext, sealed: &[u8]) -> Result<SecretString, SecretsError> {
        let refused = || SecretsError::Refused { place: PLACE };
        let (&version, rest) = sealed.split_first().ok_or_else(refused)?;
        if version != VERSION {
            return Err(SecretsError::UnknownVersion { place: PLACE, version });
        }
        let (id, rest) = rest.split_first_chunk::<{ KeyId::LENGTH }>().ok_or_else(refused)?;
        let (found, ours) = (KeyId(*id), key_id(&self.public));
        if found != ours {
            return Err(SecretsError::OtherKey { place: PLACE, found, ours, fix: OTHER_HOST_KEY });
        }
        let (encapped, ciphertext) = rest.split_first_chunk::<KEY_LENGTH>().ok_or_else(refused)?;
        let bound = context.encode(ours);
        let plaintext = self.decrypt(encapped, &bound, ciphertext).ok_or_else(refused)?;
        let secret = plaintext.strip_prefix(bound.as_slice()).ok_or_else(refused)?;
        let text = std::str::from_utf8(secret)
            .map_err(|_| SecretsError::Malformed { place: PLACE, expected: "JIT config" })?;
        Ok(SecretString::from(text))
    }

    fn decrypt(&self, encapped: &[u8], info: &[u8], ciphertext: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let encapped = EncappedKey::from_bytes(encapped).ok()?;
        single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &self.private,
            &encapped,
            info,
            ciphertext,
            &[],
        )
        .map(Zeroizing::new)
        .ok()
    }

    fn create(path: &Path) -> Result<(), SecretsError> {
        let (private, _) = X25519HkdfSha256::gen_keypair_with_rng(&mut UnwrapErr(SysRng));
        let mut bytes = private.to_bytes();
        let digits = Zeroizing::new(hex::encode(bytes.as_slice()));
        bytes.as_mut_slice().zeroize();
        let content = Zeroizing::new(format!("{FILE_HEADER}{}\n", *digits));
        files::create_private(path, content.as_bytes()).map_err(file_error)?;
        Ok(())
    }

    fn read(path: &Path) -> Result<Self, SecretsError> {
        let content = files::read_private(path).map_err(file_error)?;
        let not_a_key = || SecretsError::NotAKey { what: WHAT, path: path.to_owned() };
        let text = std::str::from_utf8(&content).map_err(|_| not_a_key())?;
        let digits = text.trim_end().strip_prefix(FILE_HEADER).ok_or_else(not_a_key)?;
        let mut bytes = Zeroizing::new([0; KEY_LENGTH]);
        hex::decode_to_slice(digits, bytes.as_mut()).map_err(|_| not_a_key())?;
        let private = PrivateKey::from_bytes(bytes.as_slice()).map_err(|_| not_a_key())?;
        let public = X25519HkdfSha256::sk_to_pk(&private).to_bytes().into();
        Ok(Self { private, public })
    }
}

fn file_error(source: PrivateFileError) -> SecretsError {
    SecretsError::File { what: WHAT, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JIT: &str = "eyJydW5uZXIiOiJvbmUgdXNlIn0=";

    fn host(directory: &Path, name: &str) -> HostKey {
        HostKey::open_or_create(&directory.join(name)).expect("it can be made")
    }

    fn context() -> JitContext {
        JitContext {
            fleet: FleetId::random(),
            host: HostId::random(),
            vm: VmId::random(),
            runner: RunnerId::random(),
            repository: RepositoryId::random(),
        }
    }

    #[test]
    fn a_jit_config_reaches_its_host_also_after_a_restart() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (before, context) = (host(directory.path(), "host.key"), context());
        let sealed = seal_jit(before.public(), &context, &JIT.into()).expect("it can be sealed");
        assert!(!sealed.windows(8).any(|part| JIT.as_bytes().windows(8).any(|clear| clear == part)));
        let after = host(directory.path(), "host.key");
        assert_eq!(after.open_jit(&context, &sealed).expect("it is its host").expose_secret(), JIT);
    }

    #[test]
    fn it_opens_for_no_other_context() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (host, context) = (host(directory.path(), "host.key"), context());
        let sealed = seal_jit(host.public(), &context, &JIT.into()).expect("it can be sealed");
        let others = [
            JitContext { fleet: FleetId::random(), ..context },
            JitContext { host: HostId::random(), ..context },
            JitContext { vm: VmId::random(), ..context },
            JitContext { runner: RunnerId::random(), ..context },
            JitContext { repository: RepositoryId::random(), ..context },
        ];
        for other in others {
            assert!(matches!(host.open_jit(&other, &sealed), Err(SecretsError::Refused { .. })), "{other:?}");
        }
    }

    #[test]
    fn another_host_is_told_that_it_is_not_for_it() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (mine, theirs, context) = (host(directory.path(), "a"), host(directory.path(), "b"), context());
        let sealed = seal_jit(mine.public(), &context, &JIT.into()).expect("it can be sealed");
        assert!(matches!(theirs.open_jit(&context, &sealed), Err(SecretsError::OtherKey { .. })));
        // Even when the id was forged.
        let mut forged = sealed;
        forged[1..=KeyId::LENGTH].copy_from_slice(&key_id(theirs.public()).0);
        assert!(matches!(theirs.open_jit(&context, &forged), Err(SecretsError::Refused { .. })));
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (host, context) = (host(directory.path(), "host.key"), context());
        let sealed = seal_jit(host.public(), &context, &JIT.into()).expect("it can be sealed");
        for position in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[position] ^= 1;
            assert!(host.open_jit(&context, &changed).is_err(), "byte {position}");
            assert!(host.open_jit(&context, &sealed[..position]).is_err(), "cut to {position}");
        }
    }

    #[test]
    fn what_cannot_be_sealed_is_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let host = host(directory.path(), "host.key");
        for public in [&[][..], &[1; 31], &[1; 33], &[0; 32]] {
            assert!(matches!(seal_jit(public, &context(), &JIT.into()), Err(SecretsError::HostPublicKey)));
        }
        let long = "x".repeat(MAX_JIT_LENGTH + 1).into();
        assert!(matches!(seal_jit(host.public(), &context(), &long), Err(SecretsError::JitTooLong { .. })));
    }
}
