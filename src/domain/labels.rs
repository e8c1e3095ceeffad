//! Labels of `runs-on`, compared as GitHub does: case and order do not matter.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// The labels that a job asks for, or a runner has: lower case, sorted, without repeats.
/// Two jobs of one repository with equal sets are of one class.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LabelSet(BTreeSet<String>);

impl LabelSet {
    /// True when every label of `self` is in `other`: a runner with `other` may run a job with `self`.
    #[must_use]
    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }

    /// True when `label` is in the set, whatever its case.
    #[must_use]
    pub fn contains(&self, label: &str) -> bool {
        self.0.contains(&label.to_lowercase())
    }

    /// The labels in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// True when there is no label.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<S: AsRef<str>> FromIterator<S> for LabelSet {
    fn from_iter<I: IntoIterator<Item = S>>(labels: I) -> Self {
        Self(labels.into_iter().map(|label| label.as_ref().trim().to_lowercase()).collect())
    }
}

impl fmt::Display for LabelSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, label) in self.iter().enumerate() {
            if position > 0 {
                f.write_str(",")?;
            }
            f.write_str(label)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_order_and_repeats_do_not_matter() {
        let one: LabelSet = ["self-hosted", "macOS"].iter().collect();
        let other: LabelSet = ["MACOS", "Self-Hosted", "macos"].iter().collect();
        assert_eq!(one, other);
        assert_eq!(one.to_string(), "macos,self-hosted");
    }
}
