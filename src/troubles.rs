//! What the roles of this process found wrong and no table tells: the App's set-up at GitHub, an image that is not on
//! this host. Shown by `flyci status`, and told in the log once when it comes and once when it goes.
//! Does not: hold what can be read from the tables (`web/admin/problems.rs`).

use crate::api::Trouble;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The troubles of one process. Who finds one names it by a key of its own.
#[derive(Debug, Default)]
pub struct Troubles(Mutex<BTreeMap<String, Trouble>>);

impl Troubles {
    /// Says how it is with `key` now; `None`: all is well.
    pub fn set(&self, key: &str, trouble: Option<Trouble>) {
        let mut all = self.lock();
        match trouble {
            Some(trouble) if all.get(key) == Some(&trouble) => {}
            Some(trouble) => {
                tracing::warn!(evidence = trouble.evidence, fix = trouble.fix, "{}", trouble.what);
                all.insert(key.to_owned(), trouble);
            }
            None => {
                if let Some(gone) = all.remove(key) {
                    tracing::info!("well again: {}", gone.what);
                }
            }
        }
    }

    /// How it is with `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Trouble> {
        self.lock().get(key).cloned()
    }

    /// All of them, by their keys.
    #[must_use]
    pub fn all(&self) -> Vec<Trouble> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Trouble>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key of a machine without a session to run VMs in.
pub const SESSION: &str = "session";

/// The key of guests that reach what they must not.
pub const NOT_ISOLATED: &str = "not-isolated";

/// The key of slots that the platform keeps although no VM holds them.
pub const LOST_SLOTS: &str = "lost-slots";

/// The key of a profile's missing image.
#[must_use]
pub fn missing_image(profile: &str) -> String {
    format!("image:{profile}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_stays_until_all_is_well() {
        let troubles = Troubles::default();
        let trouble = Trouble { what: "no image".into(), evidence: "looked".into(), fix: "build it".into() };
        troubles.set("image:a", Some(trouble.clone()));
        troubles.set("image:a", Some(trouble.clone()));
        assert_eq!((troubles.get("image:a"), troubles.all().len()), (Some(trouble), 1));
        troubles.set("image:a", None);
        assert!(troubles.all().is_empty());
    }
}
