//! The key that makes the audit trail's MACs: whoever can write the table and has not this key can
//! neither change a row nor compute a chain anew. It is random, and wrapped by the master key like a
//! tenant's keys, so that the rows of before a rotation can still be checked.

use super::envelope::{KEY_LENGTH, Place, mac_over};
use super::random;
use hmac::Mac;
use uuid::Uuid;
use zeroize::Zeroizing;

/// Where it is stored.
pub(super) const WRAPPED: &str = "audit_key.wrapped";

/// Makes and checks the MACs of the audit trail.
pub struct AuditKey(Zeroizing<[u8; KEY_LENGTH]>);

impl std::fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AuditKey").finish_non_exhaustive()
    }
}

impl AuditKey {
    /// The MAC over the parts of a row, each with its length before it.
    #[must_use]
    pub fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        mac_over(self.0.as_slice(), parts).finalize().into_bytes().into()
    }

    /// True when `mac` is the MAC over these parts.
    #[must_use]
    pub fn verify(&self, parts: &[&[u8]], mac: &[u8]) -> bool {
        mac_over(self.0.as_slice(), parts).verify_slice(mac).is_ok()
    }

    pub(super) fn generate() -> Self {
        Self(random())
    }

    pub(super) fn pack(&self) -> &[u8] {
        self.0.as_slice()
    }

    pub(super) fn unpack(bytes: &[u8]) -> Option<Self> {
        Some(Self(Zeroizing::new(bytes.try_into().ok()?)))
    }
}

pub(super) fn place(row: Uuid) -> Place {
    Place { name: WRAPPED, tenant: Uuid::nil(), row, fix: super::ring::OTHER_MASTER_KEY }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_of_its_key_and_its_parts() {
        let key = AuditKey::generate();
        let mac = key.mac(&[b"ab", b"c"]);
        assert!(key.verify(&[b"ab", b"c"], &mac));
        assert!(!key.verify(&[b"a", b"bc"], &mac), "parts do not run into each other");
        assert!(!AuditKey::generate().verify(&[b"ab", b"c"], &mac), "another key");
        assert!(!key.verify(&[b"ab", b"c"], &mac[..31]), "cut");
    }
}
