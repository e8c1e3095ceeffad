//! One tenant's keys: they encrypt its values and make the HMACs by which these are found.

use super::envelope::{CipherKey, KEY_LENGTH, Place, mac_over, open, seal};
use super::{KeyId, Lookup, Sealed, SecretsError, random};
use crate::domain::ids::TenantId;
use hmac::Mac;
use uuid::Uuid;
use zeroize::Zeroizing;

/// Texts are filled up to a multiple of this many bytes: the length of a name does not tell the name.
const TEXT_STEP: usize = 64;
/// Bytes of the length before a text.
const TEXT_PREFIX: usize = 4;
/// Key id, data key and index key, one after the other.
const PACKED_LENGTH: usize = KeyId::LENGTH + 2 * KEY_LENGTH;
/// What to do when a value is of another data key.
const OTHER_DATA_KEY: &str = "the row belongs to another tenant, or the tenant was made anew; restore a backup";

macro_rules! columns {
    ($($(#[$doc:meta])* $variant:ident = $place:literal),+ $(,)?) => {
        /// The columns that hold encrypted values: the closed list. A value opens in its own column only.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Column { $($(#[$doc])* $variant),+ }

        impl Column {
            /// Every column.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The column of this table and name.
            #[must_use]
            pub fn find(table: &str, name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|column| column.place().split_once('.') == Some((table, name)))
            }

            /// Table and column as in the schema: `jobs.run_id`.
            #[must_use]
            pub const fn place(self) -> &'static str {
                match self { $(Self::$variant => $place),+ }
            }
        }
    };
}

columns! {
    /// GitHub's id of an installation (`row`: the tenant's id).
    TenantInstallationId = "tenants.installation_id",
    /// GitHub's id of the account.
    TenantAccountId = "tenants.account_id",
    /// The account's login.
    TenantAccount = "tenants.account",
    /// GitHub's id of a repository. Its look-up is `repositories.github_lookup`.
    RepositoryGithubId = "repositories.github_id",
    /// The repository's full name.
    RepositoryName = "repositories.name",
    /// GitHub's id of a job. Its look-up is `jobs.github_lookup` and `refusals.github_lookup`.
    JobGithubId = "jobs.github_id",
    /// GitHub's id of the workflow run.
    JobRunId = "jobs.run_id",
    /// The login of who started the job.
    JobInitiator = "jobs.initiator",
    /// The runner's name at GitHub. Its look-up is `runner_names.lookup`.
    RunnerName = "runners.name",
    /// GitHub's id of a runner. Its look-up is `runners.github_lookup`.
    RunnerGithubId = "runners.github_id",
}

impl Column {
    /// True when it holds names, false when it holds numbers of GitHub's.
    #[must_use]
    pub const fn holds_text(self) -> bool {
        match self {
            Self::TenantAccount | Self::RepositoryName | Self::JobInitiator | Self::RunnerName => true,
            Self::TenantInstallationId
            | Self::TenantAccountId
            | Self::RepositoryGithubId
            | Self::JobGithubId
            | Self::JobRunId
            | Self::RunnerGithubId => false,
        }
    }
}

/// The keys of one tenant. Wiped from memory when dropped.
pub struct TenantKeys {
    tenant: TenantId,
    data: CipherKey,
    index: Zeroizing<[u8; KEY_LENGTH]>,
}

impl std::fmt::Debug for TenantKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TenantKeys").field("tenant", &self.tenant).field("data", &self.data.id).finish_non_exhaustive()
    }
}

impl TenantKeys {
    /// Whose keys these are.
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// Encrypts a value for one cell. `row` is the row's own id, known before the row is written.
    #[must_use]
    pub fn seal(&self, column: Column, row: Uuid, value: &[u8]) -> Sealed {
        Sealed(seal(&self.data, self.place(column, row), value))
    }

    /// Decrypts the value of one cell.
    ///
    /// # Errors
    /// When the value was changed, or is from another cell or tenant.
    pub fn open(&self, column: Column, row: Uuid, value: &Sealed) -> Result<Zeroizing<Vec<u8>>, SecretsError> {
        open(&self.data, self.place(column, row), &value.0)
    }

    /// Encrypts one of GitHub's numbers.
    #[must_use]
    pub fn seal_id(&self, column: Column, row: Uuid, id: u64) -> Sealed {
        self.seal(column, row, &id.to_be_bytes())
    }

    /// Decrypts one of GitHub's numbers.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when the value is no number.
    pub fn open_id(&self, column: Column, row: Uuid, value: &Sealed) -> Result<u64, SecretsError> {
        let bytes = self.open(column, row, value)?;
        let id = bytes.as_slice().try_into().map_err(|_| malformed(column, "number"))?;
        Ok(u64::from_be_bytes(id))
    }

    /// Encrypts a name, filled up so that its length tells little.
    #[must_use]
    pub fn seal_text(&self, column: Column, row: Uuid, text: &str) -> Sealed {
        let length = u32::try_from(text.len()).expect("names are short");
        let mut padded = Zeroizing::new(vec![0; (TEXT_PREFIX + text.len()).next_multiple_of(TEXT_STEP)]);
        padded[..TEXT_PREFIX].copy_from_slice(&length.to_be_bytes());
        padded[TEXT_PREFIX..][..text.len()].copy_from_slice(text.as_bytes());
        self.seal(column, row, &padded)
    }

    /// Decrypts a name.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when the value is no text.
    pub fn open_text(&self, column: Column, row: Uuid, value: &Sealed) -> Result<String, SecretsError> {
        let padded = self.open(column, row, value)?;
        let text = || {
            let (length, rest) = padded.split_first_chunk::<TEXT_PREFIX>()?;
            let bytes = rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
            std::str::from_utf8(bytes).ok().map(str::to_owned)
        };
        text().ok_or_else(|| malformed(column, "text"))
    }

    /// The HMAC by which a value of this column is found: the same for the same value, and worth
    /// nothing without the tenant's key.
    #[must_use]
    pub fn lookup(&self, column: Column, value: &[u8]) -> Lookup {
        keyed_lookup(&self.index, column.place(), value)
    }

    /// [`lookup`](Self::lookup) of one of GitHub's numbers.
    #[must_use]
    pub fn lookup_id(&self, column: Column, id: u64) -> Lookup {
        self.lookup(column, &id.to_be_bytes())
    }

    pub(super) fn index_key(&self) -> &[u8] {
        self.index.as_slice()
    }

    /// Makes the keys of a new tenant.
    pub(super) fn generate(tenant: TenantId) -> Self {
        let data = CipherKey { id: KeyId(*random()), key: random() };
        Self { tenant, data, index: random() }
    }

    /// The keys as bytes, to be wrapped.
    pub(super) fn pack(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(PACKED_LENGTH));
        bytes.extend_from_slice(&self.data.id.0);
        bytes.extend_from_slice(self.data.key.as_slice());
        bytes.extend_from_slice(self.index.as_slice());
        bytes
    }

    /// The keys from the bytes of [`pack`](Self::pack).
    pub(super) fn unpack(tenant: TenantId, bytes: &[u8]) -> Option<Self> {
        let (id, rest) = bytes.split_first_chunk::<{ KeyId::LENGTH }>()?;
        let (data, rest) = rest.split_first_chunk::<KEY_LENGTH>()?;
        let index: [u8; KEY_LENGTH] = rest.try_into().ok()?;
        let data = CipherKey { id: KeyId(*id), key: Zeroizing::new(*data) };
        Some(Self { tenant, data, index: Zeroizing::new(index) })
    }

    fn place(&self, column: Column, row: Uuid) -> Place {
        Place { name: column.place(), tenant: self.tenant.0, row, fix: OTHER_DATA_KEY }
    }
}

fn malformed(column: Column, expected: &'static str) -> SecretsError {
    SecretsError::Malformed { place: column.place(), expected }
}

/// HMAC-SHA256 over what is looked up and where.
pub(super) fn keyed_lookup(key: &[u8; KEY_LENGTH], place: &str, value: &[u8]) -> Lookup {
    Lookup(mac_over(key, &[place.as_bytes(), value]).finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> TenantKeys {
        TenantKeys::generate(TenantId::random())
    }

    fn refused(outcome: Result<Zeroizing<Vec<u8>>, SecretsError>) -> bool {
        matches!(outcome, Err(SecretsError::Refused { .. }))
    }

    #[test]
    fn a_value_opens_in_its_own_cell_alone() {
        let (keys, row, other_row) = (keys(), Uuid::new_v4(), Uuid::new_v4());
        let sealed = keys.seal(Column::JobRunId, row, b"42");
        assert_eq!(*keys.open(Column::JobRunId, row, &sealed).expect("it is in its cell"), b"42");
        assert!(refused(keys.open(Column::JobRunId, other_row, &sealed)), "another row");
        assert!(refused(keys.open(Column::JobGithubId, row, &sealed)), "another column");
        assert!(refused(keys.open(Column::RunnerName, row, &sealed)), "another table");
    }

    #[test]
    fn a_value_opens_for_its_own_tenant_alone() {
        let (mine, theirs, row) = (keys(), keys(), Uuid::new_v4());
        let sealed = mine.seal(Column::TenantAccount, row, b"octo-org");
        assert!(matches!(theirs.open(Column::TenantAccount, row, &sealed), Err(SecretsError::OtherKey { .. })));
        // Even with the same keys under another tenant's id.
        let moved = TenantKeys::unpack(TenantId::random(), &mine.pack()).expect("they are keys");
        assert!(refused(moved.open(Column::TenantAccount, row, &sealed)));
    }

    #[test]
    fn numbers_and_names_come_back() {
        let (keys, row) = (keys(), Uuid::new_v4());
        for id in [0, 1, u64::MAX] {
            let sealed = keys.seal_id(Column::JobGithubId, row, id);
            assert_eq!(keys.open_id(Column::JobGithubId, row, &sealed).expect("a number"), id);
        }
        for name in ["", "octo-org/hello", "żółć", &"x".repeat(61)] {
            let sealed = keys.seal_text(Column::RepositoryName, row, name);
            assert_eq!(keys.open_text(Column::RepositoryName, row, &sealed).expect("a name"), name);
        }
        let text = keys.seal_text(Column::RepositoryName, row, "octo");
        assert!(matches!(keys.open_id(Column::RepositoryName, row, &text), Err(SecretsError::Malformed { .. })));
        let number = keys.seal_id(Column::RepositoryName, row, u64::MAX);
        assert!(matches!(keys.open_text(Column::RepositoryName, row, &number), Err(SecretsError::Malformed { .. })));
    }

    #[test]
    fn the_length_of_a_name_does_not_tell_the_name() {
        let (keys, row) = (keys(), Uuid::new_v4());
        let length = |name: &str| keys.seal_text(Column::JobInitiator, row, name).0.len();
        assert_eq!(length("a"), length(&"a".repeat(60)));
        assert_eq!(length(&"a".repeat(61)), length("a") + TEXT_STEP);
    }

    #[test]
    fn a_value_is_found_by_an_hmac_of_its_tenant_and_its_kind() {
        let (mine, theirs) = (keys(), keys());
        let lookup = mine.lookup_id(Column::JobGithubId, 7);
        assert_eq!(lookup, mine.lookup_id(Column::JobGithubId, 7));
        assert_ne!(lookup, mine.lookup_id(Column::JobGithubId, 8));
        assert_ne!(lookup, mine.lookup_id(Column::RunnerGithubId, 7));
        assert_ne!(lookup, theirs.lookup_id(Column::JobGithubId, 7));
    }

    #[test]
    fn equal_values_do_not_look_equal() {
        let (keys, row) = (keys(), Uuid::new_v4());
        assert_ne!(keys.seal(Column::JobRunId, row, b"42"), keys.seal(Column::JobRunId, row, b"42"));
    }

    #[test]
    fn nothing_of_a_key_is_shown() {
        let keys = keys();
        let shown = format!("{keys:?}");
        assert!(!shown.contains(&hex::encode(keys.index.as_slice())) && !shown.contains("index"), "{shown}");
    }

    #[test]
    fn every_column_is_in_the_schema() {
        let schema = include_str!("../../migrations/0001_initial.sql");
        for column in Column::ALL {
            let (table, name) = column.place().split_once('.').expect("table and column");
            let start = schema.find(&format!("CREATE TABLE {table} (")).expect(table);
            let body = &schema[start..]
                [..schema[start..].find("\n);").or_else(|| schema[start..].find("\n) WITH")).expect("its end")];
            let line = body.lines().find(|line| line.trim_start().starts_with(&format!("{name} ")));
            assert!(line.is_some_and(|line| line.contains("bytea")), "{table}.{name} holds encrypted bytes");
        }
    }
}
