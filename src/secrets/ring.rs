//! The master keys at hand, and the tenants' keys that they wrap.

use super::audit::{self, AuditKey};
use super::envelope::{Place, key_of, open, seal};
use super::files::{self, PrivateFileError};
use super::master::{MasterKey, MasterKeys};
use super::source::{MasterSource, WHAT};
use super::tenant::{TenantKeys, keyed_lookup};
use super::{KeyId, Lookup, SecretsError};
use crate::domain::ids::TenantId;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use uuid::Uuid;

/// Where wrapped keys are stored.
const WRAPPED: &str = "tenants.wrapped_keys";
/// What to do when a tenant's keys are wrapped by another master key.
pub(super) const OTHER_MASTER_KEY: &str = "put the master key back that belongs to this database";
/// Tenants whose keys are kept open in memory at once.
const MAX_CACHED: usize = 4_096;

struct Cached {
    wrapped: Vec<u8>,
    keys: Arc<TenantKeys>,
}

/// Opens and makes tenants' keys. Cheap to share: one per process, behind an `Arc`.
///
/// It holds one master key, and during a rotation those of before too: each value says which one it
/// needs. What is new is wrapped by the current one.
pub struct KeyRing {
    source: MasterSource,
    masters: RwLock<Arc<MasterKeys>>,
    /// Held by who changes the keys: each change is made out of what the one before left, in memory and in the file.
    changing: Mutex<()>,
    cache: Mutex<HashMap<TenantId, Cached>>,
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyRing").field("master_keys", &self.master_key_ids()).finish_non_exhaustive()
    }
}

impl KeyRing {
    /// The ring of the master keys in this file.
    ///
    /// # Errors
    /// When the file is missing, holds no master key, belongs to somebody else, or others may read it.
    pub fn open(path: &Path) -> Result<Self, SecretsError> {
        Self::load(MasterSource::File(path.to_owned()))
    }

    /// The ring of the master keys in this file, which is made when there is none: for the first start.
    /// Once the database holds a tenant, a new key opens nothing of it.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when the file cannot be made.
    pub fn open_or_create(path: &Path) -> Result<Self, SecretsError> {
        match Self::open(path) {
            Err(SecretsError::File { source: PrivateFileError::Missing { .. }, .. }) => {
                create_master_key(path)?;
                Self::open(path)
            }
            outcome => outcome,
        }
    }

    /// The ring of the master keys of a source.
    ///
    /// # Errors
    /// When the source cannot be read, or holds no master key.
    pub fn load(source: MasterSource) -> Result<Self, SecretsError> {
        let masters = source.read()?;
        Ok(Self {
            source,
            masters: RwLock::new(Arc::new(masters)),
            changing: Mutex::default(),
            cache: Mutex::default(),
        })
    }

    /// Names the master key that wraps what is new: safe to show, and to compare with what a backup says.
    #[must_use]
    pub fn master_key_id(&self) -> KeyId {
        self.masters().current().id()
    }

    /// Names all master keys at hand, the newest first.
    #[must_use]
    pub fn master_key_ids(&self) -> Vec<KeyId> {
        self.masters().ids()
    }

    /// Where the master keys are.
    #[must_use]
    pub const fn source(&self) -> &MasterSource {
        &self.source
    }

    /// Makes the keys of a new tenant, and wraps them for the database.
    #[must_use]
    pub fn new_tenant(&self, tenant: TenantId) -> (Arc<TenantKeys>, Vec<u8>) {
        let keys = TenantKeys::generate(tenant);
        let wrapped = seal(&self.masters().current().wrapping, wrapped_place(tenant), &keys.pack());
        (Arc::new(keys), wrapped)
    }

    /// Opens the keys of a tenant from what the database holds.
    ///
    /// # Errors
    /// When they were wrapped by a master key that is not at hand, for another tenant, or were changed.
    pub fn unwrap(&self, tenant: TenantId, wrapped: &[u8]) -> Result<Arc<TenantKeys>, SecretsError> {
        if let Some(keys) = self.cached(tenant, wrapped) {
            return Ok(keys);
        }
        let masters = self.masters();
        let bytes = open(&pick(&masters, wrapped).wrapping, wrapped_place(tenant), wrapped)?;
        let keys = TenantKeys::unpack(tenant, &bytes)
            .map(Arc::new)
            .ok_or(SecretsError::Malformed { place: WRAPPED, expected: "set of keys" })?;
        self.remember(tenant, Cached { wrapped: wrapped.to_owned(), keys: keys.clone() });
        Ok(keys)
    }

    /// The keys of a tenant, wrapped by the current master key.
    ///
    /// # Errors
    /// As [`unwrap`](Self::unwrap).
    pub fn rewrap(&self, tenant: TenantId, wrapped: &[u8]) -> Result<Vec<u8>, SecretsError> {
        let keys = self.unwrap(tenant, wrapped)?;
        Ok(seal(&self.masters().current().wrapping, wrapped_place(tenant), &keys.pack()))
    }

    /// Makes the key of the audit trail, and wraps it for the database under this row's id.
    #[must_use]
    pub fn new_audit_key(&self, row: Uuid) -> Vec<u8> {
        seal(&self.masters().current().wrapping, audit::place(row), AuditKey::generate().pack())
    }

    /// Opens the key of the audit trail from what the database holds.
    ///
    /// # Errors
    /// As [`unwrap`](Self::unwrap).
    pub fn open_audit_key(&self, row: Uuid, wrapped: &[u8]) -> Result<AuditKey, SecretsError> {
        let bytes = open(&pick(&self.masters(), wrapped).wrapping, audit::place(row), wrapped)?;
        AuditKey::unpack(&bytes).ok_or(SecretsError::Malformed { place: audit::WRAPPED, expected: "key" })
    }

    /// The key of the audit trail, wrapped by the current master key.
    ///
    /// # Errors
    /// As [`unwrap`](Self::unwrap).
    pub fn rewrap_audit_key(&self, row: Uuid, wrapped: &[u8]) -> Result<Vec<u8>, SecretsError> {
        let key = self.open_audit_key(row, wrapped)?;
        Ok(seal(&self.masters().current().wrapping, audit::place(row), key.pack()))
    }

    /// Drops a tenant's keys from memory: it was erased.
    pub fn forget(&self, tenant: TenantId) {
        self.cache().remove(&tenant);
    }

    /// Finds a tenant by GitHub's id of its installation: what is stored of a new one.
    #[must_use]
    pub fn installation_lookup(&self, installation: u64) -> Lookup {
        installation_lookup(self.masters().current(), installation)
    }

    /// All under which a tenant may be stored: during a rotation one for each master key.
    #[must_use]
    pub fn installation_lookups(&self, installation: u64) -> Vec<Lookup> {
        self.masters().iter().map(|master| installation_lookup(master, installation)).collect()
    }

    /// Finds a tenant by GitHub's id of its account.
    #[must_use]
    pub fn account_lookup(&self, account: u64) -> Lookup {
        keyed_lookup(&self.masters().current().index, "tenants.account_lookup", &account.to_be_bytes())
    }

    /// Makes a new master key, and writes it to the file. It wraps once [`wrap_with_newest`](Self::wrap_with_newest)
    /// says so: when every other gateway has it too.
    ///
    /// # Errors
    /// When the source is no file of ours, the file system refuses, or too many rotations go on.
    pub fn begin_rotation(&self) -> Result<KeyId, SecretsError> {
        let MasterSource::File(path) = &self.source else { return Err(SecretsError::NotOurs(self.source.to_string())) };
        let _turn = self.turn();
        let next = self.masters().with_new().ok_or(SecretsError::TooManyMasterKeys)?;
        files::replace_private(path, next.text().as_bytes()).map_err(file_error)?;
        let id = next.newest();
        self.adopt(next);
        Ok(id)
    }

    /// What is new is wrapped by the newest master key from now on.
    pub fn wrap_with_newest(&self) {
        let _turn = self.turn();
        let masters = self.masters();
        if masters.current().id() != masters.newest() {
            self.adopt(masters.newest_wraps());
        }
    }

    /// Reads the source again, if it can be, and takes what it holds, unless a key of `needed` is missing
    /// there. Answers whether anything changed.
    ///
    /// # Errors
    /// When the source cannot be read, or a key that is needed is not there any more: nothing is changed then.
    pub fn look_again(&self, needed: &[KeyId]) -> Result<bool, SecretsError> {
        if !self.source.can_be_read_again() {
            return Ok(false);
        }
        let _turn = self.turn();
        let found = self.source.read()?;
        if found.ids() == self.master_key_ids() {
            return Ok(false);
        }
        if let Some(missing) = needed.iter().find(|id| found.find(**id).is_none()) {
            return Err(SecretsError::StillNeeded { key: *missing, place: self.source.to_string() });
        }
        self.adopt(found);
        Ok(true)
    }

    /// Destroys these master keys: in memory, and in the file if it is ours. The newest stays, and the one
    /// that wraps.
    /// Answers whether the source is ours: else the operator must take them out of it.
    ///
    /// # Errors
    /// When the file system refuses: nothing is changed then.
    pub fn destroy(&self, gone: &[KeyId]) -> Result<bool, SecretsError> {
        let MasterSource::File(path) = &self.source else { return Ok(false) };
        let _turn = self.turn();
        let rest = self.masters().without(gone);
        files::replace_private(path, rest.text().as_bytes()).map_err(file_error)?;
        self.adopt(rest);
        Ok(true)
    }

    fn adopt(&self, masters: MasterKeys) {
        *self.masters.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(masters);
        // What a destroyed key wrapped must not open from memory.
        self.cache().clear();
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn masters(&self) -> Arc<MasterKeys> {
        self.masters.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn cache(&self) -> MutexGuard<'_, HashMap<TenantId, Cached>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cached(&self, tenant: TenantId, wrapped: &[u8]) -> Option<Arc<TenantKeys>> {
        // A row that was changed since must be refused, not served from memory.
        self.cache().get(&tenant).filter(|entry| entry.wrapped == wrapped).map(|entry| entry.keys.clone())
    }

    fn remember(&self, tenant: TenantId, entry: Cached) {
        let mut cache = self.cache();
        if cache.len() >= MAX_CACHED
            && let Some(some) = cache.keys().next().copied()
        {
            cache.remove(&some);
        }
        cache.insert(tenant, entry);
    }
}

/// Makes a master key in a new file that only its owner may read. A file that is there stays: `false`.
///
/// # Errors
/// When the file system refuses.
pub fn create_master_key(path: &Path) -> Result<bool, SecretsError> {
    files::create_private(path, MasterKeys::one(MasterKey::generate()).text().as_bytes()).map_err(file_error)
}

/// Names the master key that wrapped this.
#[must_use]
pub fn wrapped_by(wrapped: &[u8]) -> Option<KeyId> {
    key_of(wrapped)
}

/// The key that made a value; when it is not at hand the current one, which then says so.
fn pick<'a>(masters: &'a MasterKeys, wrapped: &[u8]) -> &'a MasterKey {
    key_of(wrapped).and_then(|id| masters.find(id)).unwrap_or_else(|| masters.current())
}

fn installation_lookup(master: &MasterKey, installation: u64) -> Lookup {
    keyed_lookup(&master.index, "tenants.installation_lookup", &installation.to_be_bytes())
}

fn file_error(source: PrivateFileError) -> SecretsError {
    SecretsError::File { what: WHAT, source }
}

fn wrapped_place(tenant: TenantId) -> Place {
    Place { name: WRAPPED, tenant: tenant.0, row: tenant.0, fix: OTHER_MASTER_KEY }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::Column;
    use uuid::Uuid;

    /// A ring with a master key of its own, and where its file is.
    fn ring() -> (KeyRing, tempfile::TempDir) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        (KeyRing::open_or_create(&directory.path().join("master.key")).expect("it is made"), directory)
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
        let ((ring, _folder), tenant) = (ring(), TenantId::random());
        let (_, wrapped) = ring.new_tenant(tenant);
        ring.unwrap(tenant, &wrapped).expect("they are its keys");
        assert!(matches!(ring.unwrap(TenantId::random(), &wrapped), Err(SecretsError::Refused { .. })));
        let error = self::ring().0.unwrap(tenant, &wrapped).expect_err("it is another master key");
        assert!(error.to_string().contains("put the master key back"), "{error}");
    }

    #[test]
    fn a_changed_row_is_refused_although_its_keys_are_in_memory() {
        let ((ring, _folder), tenant) = (ring(), TenantId::random());
        let (_, mut wrapped) = ring.new_tenant(tenant);
        ring.unwrap(tenant, &wrapped).expect("they are its keys");
        let last = wrapped.len() - 1;
        wrapped[last] ^= 1;
        assert!(matches!(ring.unwrap(tenant, &wrapped), Err(SecretsError::Refused { .. })));
    }

    #[test]
    fn memory_for_keys_is_bounded() {
        let (ring, _folder) = ring();
        for _ in 0..MAX_CACHED + 5 {
            let tenant = TenantId::random();
            let (_, wrapped) = ring.new_tenant(tenant);
            ring.unwrap(tenant, &wrapped).expect("they are its keys");
        }
        assert_eq!(ring.cache.lock().expect("no test panicked").len(), MAX_CACHED);
    }

    #[test]
    fn installations_and_accounts_are_found_by_different_hmacs() {
        let (ring, _folder) = ring();
        assert_ne!(ring.installation_lookup(7), ring.account_lookup(7));
        assert_ne!(ring.installation_lookup(7), self::ring().0.installation_lookup(7));
    }

    #[test]
    fn during_a_rotation_old_and_new_are_opened_and_found() {
        let ((ring, folder), tenant) = (ring(), TenantId::random());
        let (keys, wrapped) = ring.new_tenant(tenant);
        let (old, stored) = (ring.master_key_id(), ring.installation_lookup(7));
        let new = ring.begin_rotation().expect("the file is ours");
        assert_eq!((ring.master_key_ids(), ring.master_key_id()), (vec![new, old], old));
        ring.wrap_with_newest();
        ring.unwrap(tenant, &wrapped).expect("the old key is at hand");
        assert!(ring.installation_lookups(7).contains(&stored) && ring.installation_lookup(7) != stored);
        // A daemon that was killed here finds both in the file.
        let restarted = KeyRing::open(&folder.path().join("master.key")).expect("it is whole");
        assert_eq!(restarted.master_key_ids(), [new, old]);
        restarted.wrap_with_newest();

        let rewrapped = restarted.rewrap(tenant, &wrapped).expect("both are at hand");
        assert_eq!((wrapped_by(&wrapped), wrapped_by(&rewrapped)), (Some(old), Some(new)));
        assert!(restarted.destroy(&[old]).expect("the file is ours"));
        let opened = restarted.unwrap(tenant, &rewrapped).expect("the new key is at hand");
        assert_eq!(opened.lookup_id(Column::JobGithubId, 7), keys.lookup_id(Column::JobGithubId, 7));
        let refused = restarted.unwrap(tenant, &wrapped).expect_err("the old key is destroyed");
        assert!(matches!(refused, SecretsError::OtherKey { found, .. } if found == old), "{refused}");
        assert_eq!(KeyRing::open(&folder.path().join("master.key")).expect("it is whole").master_key_ids(), [new]);
    }

    #[test]
    fn keys_that_are_made_at_once_are_all_kept() {
        let (ring, folder) = ring();
        let made: Vec<KeyId> = std::thread::scope(|scope| {
            let makers: Vec<_> =
                (0..5).map(|_| scope.spawn(|| ring.begin_rotation().expect("there is room"))).collect();
            makers.into_iter().map(|maker| maker.join().expect("it does not panic")).collect()
        });
        let kept = KeyRing::open(&folder.path().join("master.key")).expect("it is whole").master_key_ids();
        assert!(made.iter().all(|id| kept.contains(id)) && kept == ring.master_key_ids(), "{made:?} {kept:?}");
    }

    #[test]
    fn a_file_that_lost_a_needed_key_is_not_taken() {
        let (ring, folder) = ring();
        let path = folder.path().join("master.key");
        let (old, before) = (ring.master_key_id(), std::fs::read(&path).expect("it is there"));
        std::fs::remove_file(&path).expect("it is ours");
        create_master_key(&path).expect("another is made");
        let refused = ring.look_again(&[old]).expect_err("the old key is needed");
        assert!(matches!(refused, SecretsError::StillNeeded { key, .. } if key == old), "{refused}");
        assert_eq!(ring.master_key_ids(), [old]);
        let both = [std::fs::read(&path).expect("it is there"), before].concat();
        std::fs::remove_file(&path).expect("it is ours");
        files::create_private(&path, &both).expect("it is written");
        assert!(ring.look_again(&[old]).expect("both are there"));
        assert_eq!(ring.master_key_ids().len(), 2);
    }

    #[test]
    fn the_audit_key_survives_a_rotation() {
        let ((ring, _folder), row) = (ring(), Uuid::new_v4());
        let wrapped = ring.new_audit_key(row);
        let mac = ring.open_audit_key(row, &wrapped).expect("it is its key").mac(&[b"an act"]);
        let old = ring.master_key_id();
        ring.begin_rotation().expect("the file is ours");
        ring.wrap_with_newest();
        let rewrapped = ring.rewrap_audit_key(row, &wrapped).expect("both are at hand");
        ring.destroy(&[old]).expect("the file is ours");
        assert!(ring.open_audit_key(row, &rewrapped).expect("it is rewrapped").verify(&[b"an act"], &mac));
        assert!(ring.open_audit_key(row, &wrapped).is_err(), "its master key is destroyed");
        assert!(ring.open_audit_key(Uuid::new_v4(), &rewrapped).is_err(), "it is of its row");
    }
}
