//! What a gateway vouches for, so that whoever writes the database alone can make it mint for nobody: that a job's row
//! is one that it took in, and that a public key is a host's. Each is a MAC under a key that the database holds only
//! wrapped, over all that minting relies on.
//!
//! A host joins by a token of 128 bits. The database holds the token's nonce and its end; the token is an HMAC over
//! them under a gateway's key, and proves to the gateway that the public key in the host's row is its own. It goes from
//! the operator's hand to the host, and nowhere else.

use super::audit::AuditKey;
use super::envelope::{KEY_LENGTH, mac_over};
use super::tenant::TenantKeys;
use super::{SecretsError, random};
use crate::domain::class::Class;
use crate::domain::ids::{FleetId, HostId, JobId, RepositoryId, TenantId};
use chrono::{DateTime, Utc};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Purposes for which MACs are made.
const PURPOSE_JOB: &[u8] = b"flyci job v1";
const PURPOSE_HOST: &[u8] = b"flyci host v1";
const PURPOSE_TOKEN: &[u8] = b"flyci join token v1";
const PURPOSE_PROOF: &[u8] = b"flyci join proof v1";
/// For what the key of hosts is derived.
const DERIVED_FOR: &[u8] = b"flyci hosts v1";
/// What a token begins with; the rest is hexadecimal digits.
const TOKEN_HEADER: &str = "flyci-join-1:";
/// Bytes of a token.
const TOKEN_LENGTH: usize = 16;
/// Bytes of what makes one token different from the next.
pub const NONCE_LENGTH: usize = 16;

/// What of a job's row minting relies on.
#[derive(Clone, Copy, Debug)]
pub struct JobFacts<'a> {
    /// Our id.
    pub id: JobId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Of which repository.
    pub repository: RepositoryId,
    /// Finds it by GitHub's id.
    pub lookup: &'a [u8],
    /// The profile that serves it.
    pub profile: &'a str,
    /// Its labels, sorted and lower case.
    pub labels: &'a [String],
    /// Its class.
    pub class: Class,
    /// How it became a row.
    pub origin: &'a str,
}

impl TenantKeys {
    /// The MAC that says that the tenant's job was taken in so.
    #[must_use]
    pub fn vouch_for_job(&self, job: &JobFacts<'_>) -> [u8; 32] {
        self.over_job(job).finalize().into_bytes().into()
    }

    /// True when the job was taken in so.
    #[must_use]
    pub fn stands_for_job(&self, job: &JobFacts<'_>, mac: &[u8]) -> bool {
        self.over_job(job).verify_slice(mac).is_ok()
    }

    fn over_job(&self, job: &JobFacts<'_>) -> Hmac<Sha256> {
        let class = job.class.0.to_be_bytes();
        let mut parts: Vec<&[u8]> = vec![
            PURPOSE_JOB,
            job.tenant.0.as_bytes(),
            job.repository.0.as_bytes(),
            job.id.0.as_bytes(),
            job.lookup,
            job.profile.as_bytes(),
            &class,
            job.origin.as_bytes(),
        ];
        parts.extend(job.labels.iter().map(String::as_bytes));
        mac_over(self.index_key(), &parts)
    }
}

/// What of a host's row minting relies on.
#[derive(Clone, Copy, Debug)]
pub struct HostFacts<'a> {
    /// The fleet.
    pub fleet: FleetId,
    /// Our id.
    pub id: HostId,
    /// Its unique name.
    pub name: &'a str,
    /// The database login that its rows belong to.
    pub login: &'a str,
    /// The key that JIT configs are sealed to.
    pub public_key: &'a [u8],
}

/// Vouches for hosts: a gateway's. Wiped from memory when dropped.
pub struct Warrant(Zeroizing<[u8; KEY_LENGTH]>);

impl std::fmt::Debug for Warrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Warrant").finish_non_exhaustive()
    }
}

impl Warrant {
    /// The same for every gateway of a fleet: derived from the key of the audit trail, which they share.
    #[must_use]
    pub fn of(key: &AuditKey) -> Self {
        let mut derived = Zeroizing::new([0; KEY_LENGTH]);
        Hkdf::<Sha256>::new(None, key.pack())
            .expand(DERIVED_FOR, derived.as_mut())
            .expect("HKDF gives keys of up to 8,160 bytes");
        Self(derived)
    }

    /// The MAC that says that the key is this host's.
    #[must_use]
    pub fn vouch(&self, host: &HostFacts<'_>) -> [u8; 32] {
        self.over_host(host).finalize().into_bytes().into()
    }

    /// True when a gateway has vouched for the host so.
    #[must_use]
    pub fn stands_for(&self, host: &HostFacts<'_>, mac: &[u8]) -> bool {
        self.over_host(host).verify_slice(mac).is_ok()
    }

    fn over_host(&self, host: &HostFacts<'_>) -> Hmac<Sha256> {
        let parts: [&[u8]; 6] = [
            PURPOSE_HOST,
            host.fleet.0.as_bytes(),
            host.id.0.as_bytes(),
            host.name.as_bytes(),
            host.login.as_bytes(),
            host.public_key,
        ];
        mac_over(self.0.as_slice(), &parts)
    }

    /// The token of an invitation: the same each time it is made out of the same row.
    #[must_use]
    pub fn token(&self, name: &str, login: &str, nonce: &[u8], until: DateTime<Utc>) -> JoinToken {
        let until = until.timestamp_micros().to_be_bytes();
        let parts: [&[u8]; 5] = [PURPOSE_TOKEN, name.as_bytes(), login.as_bytes(), nonce, &until];
        let mac: [u8; 32] = mac_over(self.0.as_slice(), &parts).finalize().into_bytes().into();
        let (token, _) = mac.split_first_chunk::<TOKEN_LENGTH>().expect("an HMAC is longer than a token");
        JoinToken(Zeroizing::new(*token))
    }
}

/// What makes one invitation different from the next.
#[must_use]
pub fn nonce() -> [u8; NONCE_LENGTH] {
    *random()
}

/// What a host that is invited proves itself by, once. Wiped from memory when dropped.
pub struct JoinToken(Zeroizing<[u8; TOKEN_LENGTH]>);

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("JoinToken").finish_non_exhaustive()
    }
}

impl JoinToken {
    /// The text that the operator carries to the host.
    #[must_use]
    pub fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{TOKEN_HEADER}{}", *Zeroizing::new(hex::encode(self.0.as_slice()))))
    }

    /// Reads the text.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Self, SecretsError> {
        let digits = text.trim().strip_prefix(TOKEN_HEADER);
        let mut token = Zeroizing::new([0; TOKEN_LENGTH]);
        digits
            .and_then(|digits| hex::decode_to_slice(digits, token.as_mut()).ok())
            .map(|()| Self(token))
            .ok_or(SecretsError::NotAToken)
    }

    /// The host's word that the key is its own.
    #[must_use]
    pub fn prove(&self, fleet: FleetId, name: &str, login: &str, public_key: &[u8]) -> [u8; 32] {
        self.over(fleet, name, login, public_key).finalize().into_bytes().into()
    }

    /// True when who has this token has said so.
    #[must_use]
    pub fn is_proved(&self, fleet: FleetId, name: &str, login: &str, public_key: &[u8], proof: &[u8]) -> bool {
        self.over(fleet, name, login, public_key).verify_slice(proof).is_ok()
    }

    fn over(&self, fleet: FleetId, name: &str, login: &str, public_key: &[u8]) -> Hmac<Sha256> {
        let parts: [&[u8]; 5] = [PURPOSE_PROOF, fleet.0.as_bytes(), name.as_bytes(), login.as_bytes(), public_key];
        mac_over(self.0.as_slice(), &parts)
    }
}

/// Names a host's public key for people who compare it: 16 hexadecimal digits.
#[must_use]
pub fn fingerprint(public_key: &[u8]) -> String {
    hex::encode(&Sha256::digest(public_key)[..8])
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_job_is_vouched_for_in_every_part() {
        let keys = TenantKeys::generate(TenantId::random());
        let labels = vec!["a".to_owned(), "b".to_owned()];
        let job = JobFacts {
            id: JobId::random(),
            tenant: keys.tenant(),
            repository: RepositoryId::random(),
            lookup: b"lookup",
            profile: "p",
            labels: &labels,
            class: Class(7),
            origin: "matched",
        };
        let mac = keys.vouch_for_job(&job);
        assert!(keys.stands_for_job(&job, &mac));
        let other_labels = vec!["ab".to_owned()];
        for other in [
            JobFacts { id: JobId::random(), ..job },
            JobFacts { tenant: TenantId::random(), ..job },
            JobFacts { repository: RepositoryId::random(), ..job },
            JobFacts { lookup: b"other", ..job },
            JobFacts { profile: "q", ..job },
            JobFacts { labels: &other_labels, ..job },
            JobFacts { class: Class(8), ..job },
            JobFacts { origin: "foreign", ..job },
        ] {
            assert!(!keys.stands_for_job(&other, &mac), "{other:?}");
        }
        assert!(!TenantKeys::generate(keys.tenant()).stands_for_job(&job, &mac), "another key");
    }

    #[test]
    fn a_host_is_vouched_for_in_every_part() {
        let warrant = Warrant::of(&AuditKey::generate());
        let host = HostFacts {
            fleet: FleetId(Uuid::new_v4()),
            id: HostId::random(),
            name: "mini-1",
            login: "flyci_host_mini_1",
            public_key: &[1; 32],
        };
        let mac = warrant.vouch(&host);
        assert!(warrant.stands_for(&host, &mac));
        for other in [
            HostFacts { fleet: FleetId(Uuid::new_v4()), ..host },
            HostFacts { id: HostId::random(), ..host },
            HostFacts { name: "mini-2", ..host },
            HostFacts { login: "flyci_host_mini_2", ..host },
            HostFacts { public_key: &[2; 32], ..host },
        ] {
            assert!(!warrant.stands_for(&other, &mac), "{other:?}");
        }
        assert!(!Warrant::of(&AuditKey::generate()).stands_for(&host, &mac), "another key");
    }

    #[test]
    fn a_token_is_of_its_invitation_and_proves_one_key() {
        let (warrant, until, fleet) = (Warrant::of(&AuditKey::generate()), Utc::now(), FleetId(Uuid::new_v4()));
        let token = warrant.token("mini-1", "login", &[3; NONCE_LENGTH], until);
        let carried = JoinToken::parse(&token.text()).expect("it is a token");
        let proof = carried.prove(fleet, "mini-1", "login", &[1; 32]);
        assert!(token.is_proved(fleet, "mini-1", "login", &[1; 32], &proof));
        assert!(!token.is_proved(fleet, "mini-1", "login", &[2; 32], &proof), "another key");
        assert!(!token.is_proved(fleet, "mini-2", "login", &[1; 32], &proof), "another host");
        for other in [
            warrant.token("mini-1", "login", &[4; NONCE_LENGTH], until),
            warrant.token("mini-1", "login", &[3; NONCE_LENGTH], until + chrono::Duration::minutes(1)),
            warrant.token("mini-1", "other", &[3; NONCE_LENGTH], until),
        ] {
            assert!(!other.is_proved(fleet, "mini-1", "login", &[1; 32], &proof));
        }
        for wrong in ["", "flyci-join-1:", "flyci-join-1:abcd", "0123456789abcdef0123456789abcdef"] {
            assert!(JoinToken::parse(wrong).is_err(), "{wrong}");
        }
    }
}
