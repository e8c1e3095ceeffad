//! The master key and the tenants' keys that it wraps.

use super::envelope::{CipherKey, KEY_LENGTH, Place, open, seal};
use super::files::{self, PrivateFileError};
use super::tenant::{TenantKeys, keyed_lookup};
use super::{KeyId, Lookup, SecretsError, random};
use crate::domain::ids::TenantId;
use hkdf::Hkdf;
use sha2::Sha256;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use zeroize::Zeroizing;

/// What a master key file begins with; the rest is the key in hexadecimal digits.
const FILE_HEADER: &str = "flyci-master-key-1:";
/// As errors name it.
const WHAT: &str = "master key";
/// Where wrapped keys are stored.
const WRAPPED: &str = "tenants.wrapped_keys";
/// What to do when a tenant's keys are wrapped by another master key.
const OTHER_MASTER_KEY: &str = "put the master key file back that belongs to this database";
/// Tenants whose keys are kept open in memory at once.
const MAX_CACHED: usize = 4_096;
/// Purposes for which keys are derived from the master key.
const PURPOSE_ID: &[u8] = b"flyci master key id v1";
const PURPOSE_WRAPPING: &[u8] = b"flyci wrapping of tenant keys v1";
const PURPOSE_INDEX: &[u8] = b"flyci index of tenants v1";

/// The key that wraps all others. Only the gateway has it; without it the stored names and ids are
/// lost, and nothing else.
pub struct MasterKey(Zeroizing<[u8; KEY_LENGTH]>);

impl MasterKey {
    /// Makes a key and writes it to a file that only its owner may read. A file that is there stays.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn create(path: &Path) -> Result<(), SecretsError> {
        let content =
            Zeroizing::new(format!("{FILE_HEADER}{}\n", *Zeroizing::new(hex::encode(random::<KEY_LENGTH>()))));
        files::create_private(path, content.as_bytes()).map_err(file_error)?;
        Ok(())
    }

    /// Reads a key from its file.
    ///
    /// # Errors
    /// When the file is missing, is no master key, belongs to somebody else, or others may read it.
    pub fn read(path: &Path) -> Result<Self, SecretsError> {
        let content = files::read_private(path).map_err(file_error)?;
        let not_a_key = || SecretsError::NotAKey { what: WHAT, path: path.to_owned() };
        let text = std::str::from_utf8(&content).map_err(|_| not_a_key())?;
        let digits = text.trim_end().strip_prefix(FILE_HEADER).ok_or_else(not_a_key)?;
        let mut key = Zeroizing::new([0; KEY_LENGTH]);
        hex::decode_to_slice(digits, key.as_mut()).map_err(|_| not_a_key())?;
        Ok(Self(key))
    }

    fn derive<const N: usize>(&self, purpose: &[u8]) -> Zeroizing<[u8; N]> {
        let mut derived = Zeroizing::new([0; N]);
        Hkdf::<Sha256>::new(None, self.0.as_slice())
            .expand(purpose, derived.as_mut())
            .expect("HKDF gives keys of up to 8,160 bytes");
        derived
    }
}

fn file_error(source: PrivateFileError) -> SecretsError {
    SecretsError::File { what: WHAT, source }
}

struct Cached {
    wrapped: Vec<u8>,
    keys: Arc<TenantKeys>,
}

/// Opens and makes tenants' keys. Cheap to share: one per process, behind an `Arc`.
pub struct KeyRing {
    wrapping: CipherKey,
    index: Zeroizing<[u8; KEY_LENGTH]>,
    cache: Mutex<HashMap<TenantId, Cached>>,
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyRing").field("master_key", &self.wrapping.id).finish_non_exhaustive()
    }
}

impl KeyRing {
    /// The ring of the master key in this file.
    ///
    /// # Errors
    /// As [`MasterKey::read`].
    pub fn open(path: &Path) -> Result<Self, SecretsError> {
        MasterKey::read(path).map(|master| Self::new(&master))
    }

    /// The ring of the master key in this file, which is made when there is none: for the first start.
    /// Once the database holds a tenant, use [`open`](Self::open): a new key opens nothing of it.
    ///
    /// # Errors
    /// As [`MasterKey::create`] and [`MasterKey::read`].
    pub fn open_or_create(path: &Path) -> Result<Self, SecretsError> {
        match Self::open(path) {
            Err(SecretsError::File { source: PrivateFileError::Missing { .. }, .. }) => {
                MasterKey::create(path)?;
                Self::open(path)
            }
            outcome => outcome,
        }
    }

    /// The ring of a master key.
    #[must_use]
    pub fn new(master: &MasterKey) -> Self {
        let wrapping = CipherKey { id: KeyId(*master.derive(PURPOSE_ID)), key: master.derive(PURPOSE_WRAPPING) };
        Self { wrapping, index: master.derive(PURPOSE_INDEX), cache: Mutex::default() }
    }

    /// Names the master key: safe to show, and to compare with what a backup says.
    #[must_use]
    pub fn master_key_id(&self) -> KeyId {
        self.wrapping.id
    }

    /// Makes the keys of a new tenant, and wraps them for the database.
    #[must_use]
    pub fn new_tenant(&self, tenant: TenantId) -> (Arc<TenantKeys>, Vec<u8>) {
        let keys = TenantKeys::generate(tenant);
        let wrapped = seal(&self.wrapping, wrapped_place(tenant), &keys.pack());
        (Arc::new(keys), wrapped)
    }

    /// Opens the keys of a tenant from what the database holds.
    ///
    /// # Errors
    /// When they were wrapped by another master key, for another tenant, or were changed.
    pub fn unwrap(&self, tenant: TenantId, wrapped: &[u8]) -> Result<Arc<TenantKeys>, SecretsError> {
        if let Some(keys) = self.cached(tenant, wrapped) {
            return Ok(keys);
        }
        let bytes = open(&self.wrapping, wrapped_place(tenant), wrapped)?;
        let keys = TenantKeys::unpack(tenant, &bytes)
            .map(Arc::new)
            .ok_or(SecretsError::Malformed { place: WRAPPED, expected: "set of keys" })?;
        self.remember(tenant, Cached { wrapped: wrapped.to_owned(), keys: keys.clone() });
        Ok(keys)
    }

    /// Drops a tenant's keys from memory: it was erased.
    pub fn forget(&self, tenant: TenantId) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).remove(&tenant);
    }

    /// Finds a tenant by GitHub's id of its installation. One key for all: the tenant is not known yet.
    #[must_use]
    pub fn installation_lookup(&self, installation: u64) -> Lookup {
        keyed_lookup(&self.index, "tenants.installation_lookup", &installation.to_be_bytes())
    }

    /// Finds a tenant by GitHub's id of its account.
    #[must_use]
    pub fn account_lookup(&self, account: u64) -> Lookup {
        keyed_lookup(&self.index, "tenants.account_lookup", &account.to_be_bytes())
    }

    fn cached(&self, tenant: TenantId, wrapped: &[u8]) -> Option<Arc<TenantKeys>> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        // A row that was changed since must be refused, not served from memory.
        cache.get(&tenant).filter(|entry| entry.wrapped == wrapped).map(|entry| entry.keys.clone())
    }

    fn remember(&self, tenant: TenantId, entry: Cached) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= MAX_CACHED
            && let Some(some) = cache.keys().next().copied()
        {
            cache.remove(&some);
        }
        cache.insert(tenant, entry);
    }
}

fn wrapped_place(tenant: TenantId) -> Place {
    Place { name: WRAPPED, tenant: tenant.0, row: tenant.0, fix: OTHER_MASTER_KEY }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::Column;
    use uuid::Uuid;

    fn ring() -> KeyRing {
        KeyRing::new(&MasterKey(random()))
    }

    #[test]
    fn the_key_is_made_once_and_read_ever_after() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("master.key");
        assert!(matches!(KeyRing::open(&path), Err(SecretsError::File { .. })), "a lost key is not made anew");
        let first = KeyRing::open_or_create(&path).expect("it can be made");
        let again = KeyRing::open_or_create(&path).expect("it is there");
        assert_eq!(first.installation_lookup(1), again.installation_lookup(1));
        assert_eq!(first.master_key_id(), again.master_key_id());
        let (keys, wrapped) = first.new_tenant(TenantId::random());
        let sealed = keys.seal_text(Column::TenantAccount, Uuid::nil(), "octo-org");
        let opened = again.unwrap(keys.tenant(), &wrapped).expect("it is the same master key");
        assert_eq!(opened.open_text(Column::TenantAccount, Uuid::nil(), &sealed).expect("the same keys"), "octo-org");
    }

    #[test]
    fn what_is_no_master_key_is_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (name, content) in [("empty", ""), ("pem", "-----BEGIN"), ("short", "flyci-master-key-1:abcd")] {
            let path = directory.path().join(name);
            files::create_private(&path, content.as_bytes()).expect("it can be written");
            assert!(matches!(KeyRing::open_or_create(&path), Err(SecretsError::NotAKey { .. })), "{name}");
        }
    }

    #[test]
    fn wrapped_keys_open_for_their_tenant_and_their_master_key_alone() {
        let (ring, tenant) = (ring(), TenantId::random());
        let (_, wrapped) = ring.new_tenant(tenant);
        ring.unwrap(tenant, &wrapped).expect("they are its keys");
        assert!(matches!(ring.unwrap(TenantId::random(), &wrapped), Err(SecretsError::Refused { .. })));
        let error = self::ring().unwrap(tenant, &wrapped).expect_err("it is another master key");
        assert!(error.to_string().contains("put the master key file back"), "{error}");
    }

    #[test]
    fn a_changed_row_is_refused_although_its_keys_are_in_memory() {
        let (ring, tenant) = (ring(), TenantId::random());
        let (_, mut wrapped) = ring.new_tenant(tenant);
        ring.unwrap(tenant, &wrapped).expect("they are its keys");
        let last = wrapped.len() - 1;
        wrapped[last] ^= 1;
        assert!(matches!(ring.unwrap(tenant, &wrapped), Err(SecretsError::Refused { .. })));
    }

    #[test]
    fn memory_for_keys_is_bounded() {
        let ring = ring();
        for _ in 0..MAX_CACHED + 5 {
            let tenant = TenantId::random();
            let (_, wrapped) = ring.new_tenant(tenant);
            ring.unwrap(tenant, &wrapped).expect("they are its keys");
        }
        assert_eq!(ring.cache.lock().expect("no test panicked").len(), MAX_CACHED);
    }

    #[test]
    fn installations_and_accounts_are_found_by_different_hmacs() {
        let ring = ring();
        assert_ne!(ring.installation_lookup(7), ring.account_lookup(7));
        assert_ne!(ring.installation_lookup(7), self::ring().installation_lookup(7));
    }
}
