//! Reading what GitHub sends without falling over what it might send: null, "" and 0 are absence.

use crate::domain::labels::LabelSet;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::fmt;

/// A name out of GitHub's answers: an account's, or a runner's that may be anybody's. Kept out of
/// `Debug`, so that no log line shows it by accident.
#[derive(Clone, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    /// The name itself: to be compared or encrypted, not to be logged.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Name(…)")
    }
}

/// An id; anything but a positive number is none.
pub(super) fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(value.as_u64().filter(|id| *id > 0))
}

/// A moment; anything but RFC 3339 is none.
pub(super) fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(value.as_str().and_then(|text| DateTime::parse_from_rfc3339(text).ok()).map(|time| time.to_utc()))
}

/// A word; null and "" are none.
pub(super) fn word<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) if !text.is_empty() => Ok(Some(text)),
        _ => Ok(None),
    }
}

/// A name; null and "" are none.
pub(super) fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Name>, D::Error> {
    word(deserializer).map(|name| name.map(Name))
}

/// Labels as GitHub spells them, in the form that is compared.
pub(super) fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LabelSet, D::Error> {
    Vec::<String>::deserialize(deserializer).map(|labels| labels.iter().collect())
}
