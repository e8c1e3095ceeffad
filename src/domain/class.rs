//! The unit in which demand is counted: GitHub gives a queued job to any idle runner of its
//! repository whose labels match, so jobs of one repository and one label set are alike.

use super::ids::RepositoryId;
use super::labels::LabelSet;
use sha2::{Digest, Sha256};

/// A class, as a number that fits a Postgres advisory lock: 64 bits of a hash over the repository's
/// own random id and the sorted labels. Two classes of one number would merely be counted as one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, sqlx::Type)]
#[sqlx(transparent)]
pub struct Class(pub i64);

impl Class {
    /// The class of the jobs of `repository` that ask for `labels`.
    #[must_use]
    pub fn new(repository: RepositoryId, labels: &LabelSet) -> Self {
        let mut hash = Sha256::new();
        hash.update(repository.0.as_bytes());
        for label in labels.iter() {
            hash.update([0]);
            hash.update(label.as_bytes());
        }
        let digest = hash.finalize();
        let head: [u8; 8] = digest[..8].try_into().expect("a SHA-256 has 32 bytes");
        Self(i64::from_be_bytes(head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_and_the_labels_make_the_class() {
        let (one, other) = (RepositoryId::random(), RepositoryId::random());
        let labels: LabelSet = ["flyci-x", "self-hosted"].iter().collect();
        let fewer: LabelSet = ["flyci-x"].iter().collect();
        assert_eq!(Class::new(one, &labels), Class::new(one, &labels));
        assert_ne!(Class::new(one, &labels), Class::new(other, &labels));
        assert_ne!(Class::new(one, &labels), Class::new(one, &fewer));
    }
}
