//! A bounded cache whose values are fetched once, however many wait for them.

use super::error::{GitHubError, Result};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Entries kept at most, as long as none is being waited for.
const MAX_ENTRIES: usize = 10_000;

/// Values by key, each with its time to live.
pub(super) struct Once<K, V> {
    entries: Mutex<HashMap<K, Arc<tokio::sync::Mutex<Slot<V>>>>>,
}

struct Slot<V> {
    value: Option<(V, Instant)>,
    failed: Option<(Instant, GitHubError)>,
}

impl<V> Slot<V> {
    const EMPTY: Self = Self { value: None, failed: None };

    fn is_fresh(&self) -> bool {
        self.value.as_ref().is_some_and(|(_, until)| *until > Instant::now())
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Once<K, V> {
    pub(super) fn new() -> Self {
        Self { entries: Mutex::new(HashMap::new()) }
    }

    /// The value under `key`; if there is none that is fresh, `fetch` gets it and tells how long it
    /// is good. Whoever comes meanwhile waits, and shares the outcome, a failure included. When the
    /// fetching caller is cancelled, the next in line fetches.
    pub(super) async fn get(&self, key: &K, fetch: impl AsyncFnOnce() -> Result<(V, Duration)>) -> Result<V> {
        let arrived = Instant::now();
        let entry = self.entry(key);
        let mut slot = entry.lock().await;
        if let Some((value, until)) = &slot.value
            && *until > Instant::now()
        {
            return Ok(value.clone());
        }
        if let Some((at, error)) = &slot.failed
            && *at >= arrived
        {
            return Err(error.clone());
        }
        match fetch().await {
            Ok((value, good_for)) => {
                *slot = Slot { value: Some((value.clone(), Instant::now() + good_for)), failed: None };
                Ok(value)
            }
            Err(error) => {
                *slot = Slot { value: None, failed: Some((Instant::now(), error.clone())) };
                Err(error)
            }
        }
    }

    /// Forgets the value under `key` if `stale` says so of it.
    pub(super) async fn forget(&self, key: &K, stale: impl FnOnce(&V) -> bool) {
        let entry = self.entry(key);
        let mut slot = entry.lock().await;
        if slot.value.as_ref().is_some_and(|(value, _)| stale(value)) {
            slot.value = None;
        }
    }

    fn entry(&self, key: &K) -> Arc<tokio::sync::Mutex<Slot<V>>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(key) {
            return Arc::clone(entry);
        }
        if entries.len() >= MAX_ENTRIES {
            entries
                .retain(|_, entry| Arc::strong_count(entry) > 1 || entry.try_lock().is_ok_and(|slot| slot.is_fresh()));
        }
        if entries.len() >= MAX_ENTRIES {
            entries.retain(|_, entry| Arc::strong_count(entry) > 1);
        }
        Arc::clone(entries.entry(key.clone()).or_insert_with(|| Arc::new(tokio::sync::Mutex::new(Slot::EMPTY))))
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::Call;
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    const HOUR: Duration = Duration::from_secs(3600);

    fn failure() -> GitHubError {
        GitHubError::Server { call: Call::new("POST", "/x") }
    }

    #[tokio::test]
    async fn a_thousand_wait_for_one_fetch_and_share_its_failure() {
        let once: Once<u8, u8> = Once::new();
        for outcome in [Err(failure()), Ok((7, HOUR))] {
            let fetches = AtomicU32::new(0);
            let ask = || {
                once.get(&1, async || {
                    fetches.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                    outcome.clone()
                })
            };
            let answers = futures_util::future::join_all((0..1000).map(|_| ask())).await;
            assert!(answers.iter().all(|answer| answer.is_ok() == outcome.is_ok()));
            assert_eq!(fetches.load(Ordering::Relaxed), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_value_is_fetched_again_when_its_time_is_over_or_it_was_forgotten() {
        let once: Once<u8, u8> = Once::new();
        assert_eq!(once.get(&1, async || Ok((1, HOUR))).await.expect("a value"), 1);
        assert_eq!(once.get(&1, async || Ok((2, HOUR))).await.expect("a value"), 1);
        tokio::time::advance(HOUR).await;
        assert_eq!(once.get(&1, async || Ok((2, HOUR))).await.expect("a value"), 2);
        once.forget(&1, |value| *value == 1).await;
        assert_eq!(once.get(&1, async || Ok((3, HOUR))).await.expect("a value"), 2);
        once.forget(&1, |value| *value == 2).await;
        assert_eq!(once.get(&1, async || Ok((3, HOUR))).await.expect("a value"), 3);
    }

    #[tokio::test]
    async fn the_cache_is_bounded() {
        let once: Once<usize, usize> = Once::new();
        for key in 0..=MAX_ENTRIES {
            once.get(&key, async || Ok((key, HOUR))).await.expect("a value");
        }
        assert!(once.entries.lock().expect("not poisoned").len() <= MAX_ENTRIES);
    }
}
