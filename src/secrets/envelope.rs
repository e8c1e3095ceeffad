//! The format of an encrypted value: version, key id, nonce, ciphertext with its tag.
//!
//! AES-256-GCM-SIV (RFC 8452): a nonce that comes twice, as after a restored snapshot of the machine,
//! tells no more than that two values of one cell are equal. The associated data says where the value
//! belongs, each part with its length before it, so that no two places spell the same bytes.

use super::{KeyId, SecretsError, random};
use aes_gcm_siv::aead::{Aead, Payload};
use aes_gcm_siv::{Aes256GcmSiv, KeyInit, Nonce};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use uuid::Uuid;
use zeroize::Zeroizing;

/// The format that is written.
const VERSION: u8 = 1;
/// Bytes of a nonce (RFC 8452).
const NONCE_LENGTH: usize = 12;
/// Bytes before the ciphertext.
const HEADER_LENGTH: usize = 1 + KeyId::LENGTH + NONCE_LENGTH;
/// Bytes of a key.
pub(super) const KEY_LENGTH: usize = 32;

/// A key that encrypts, with its name.
pub(super) struct CipherKey {
    pub id: KeyId,
    pub key: Zeroizing<[u8; KEY_LENGTH]>,
}

impl CipherKey {
    fn cipher(&self) -> Aes256GcmSiv {
        Aes256GcmSiv::new_from_slice(self.key.as_slice()).expect("a key of 32 bytes")
    }
}

/// Where a value belongs.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Table and column, as errors name it.
    pub name: &'static str,
    /// Whose value it is.
    pub tenant: Uuid,
    /// The row's own id.
    pub row: Uuid,
    /// What to do when another key is at hand.
    pub fix: &'static str,
}

impl Place {
    fn associated_data(self, key: KeyId) -> Vec<u8> {
        let parts: [&[u8]; 5] = [&[VERSION], self.name.as_bytes(), self.tenant.as_bytes(), self.row.as_bytes(), &key.0];
        length_prefixed(&parts)
    }
}

/// The parts one after the other, each with its length (4 bytes, big endian) before it.
pub(super) fn length_prefixed(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len() + 4).sum());
    for part in parts {
        let length = u32::try_from(part.len()).expect("parts are names, ids and short values");
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

/// An HMAC over the parts, each with its length before it: to be finished, or compared.
pub(super) fn mac_over(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(&length_prefixed(parts));
    mac
}

/// Encrypts a value for its place.
pub(super) fn seal(key: &CipherKey, place: Place, value: &[u8]) -> Vec<u8> {
    let nonce = random::<NONCE_LENGTH>();
    let aad = place.associated_data(key.id);
    let ciphertext = key
        .cipher()
        .encrypt(&Nonce::from(*nonce), Payload { msg: value, aad: &aad })
        .expect("values are shorter than RFC 8452's limit of 64 GiB");
    let mut envelope = Vec::with_capacity(HEADER_LENGTH + ciphertext.len());
    envelope.push(VERSION);
    envelope.extend_from_slice(&key.id.0);
    envelope.extend_from_slice(nonce.as_slice());
    envelope.extend_from_slice(&ciphertext);
    envelope
}

/// Decrypts a value, if it is of this key and was encrypted for this place.
pub(super) fn open(key: &CipherKey, place: Place, envelope: &[u8]) -> Result<Zeroizing<Vec<u8>>, SecretsError> {
    let refused = SecretsError::Refused { place: place.name };
    let Some((&version, rest)) = envelope.split_first() else { return Err(refused) };
    if version != VERSION {
        return Err(SecretsError::UnknownVersion { place: place.name, version });
    }
    let Some((id, rest)) = rest.split_first_chunk::<{ KeyId::LENGTH }>() else { return Err(refused) };
    let Some((nonce, ciphertext)) = rest.split_first_chunk::<NONCE_LENGTH>() else { return Err(refused) };
    let found = KeyId(*id);
    if found != key.id {
        return Err(SecretsError::OtherKey { place: place.name, found, ours: key.id, fix: place.fix });
    }
    let aad = place.associated_data(found);
    let payload = Payload { msg: ciphertext, aad: &aad };
    key.cipher().decrypt(&Nonce::from(*nonce), payload).map(Zeroizing::new).map_err(|_| refused)
}

/// The id of the key that made a value; `None` when it is no value of ours.
pub(super) fn key_of(envelope: &[u8]) -> Option<KeyId> {
    let (&version, rest) = envelope.split_first()?;
    let (id, _) = rest.split_first_chunk::<{ KeyId::LENGTH }>()?;
    (version == VERSION).then_some(KeyId(*id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> CipherKey {
        CipherKey { id: KeyId([byte; 4]), key: Zeroizing::new([byte; KEY_LENGTH]) }
    }

    fn place() -> Place {
        Place { name: "jobs.run_id", tenant: Uuid::from_u128(1), row: Uuid::from_u128(2), fix: "…" }
    }

    #[test]
    fn no_two_places_spell_the_same_bytes() {
        assert_ne!(length_prefixed(&[b"ab", b"c"]), length_prefixed(&[b"a", b"bc"]));
        assert_ne!(length_prefixed(&[b"a", b""]), length_prefixed(&[b"", b"a"]));
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let sealed = seal(&key(1), place(), b"octo-org");
        assert_eq!(*open(&key(1), place(), &sealed).expect("nothing was changed"), b"octo-org");
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&key(1), place(), &changed).is_err(), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(open(&key(1), place(), &sealed[..length]).is_err(), "cut to {length}");
        }
    }

    #[test]
    fn a_value_tells_which_key_made_it_and_in_which_format() {
        let sealed = seal(&key(1), place(), b"octo-org");
        assert!(matches!(open(&key(2), place(), &sealed), Err(SecretsError::OtherKey { .. })));
        let mut later = sealed;
        later[0] = 9;
        assert!(matches!(open(&key(1), place(), &later), Err(SecretsError::UnknownVersion { version: 9, .. })));
    }
}
