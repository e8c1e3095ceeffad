//! Who sends, by address, and what is known of each: how many connections it has, how often its
//! signatures were wrong, whether one was right.
//!
//! A stranger gets a share of what there is. Whoever signed rightly, and GitHub's published addresses,
//! are *known*, and nothing here limits them: GitHub sends in bursts from few addresses, and does not
//! send again by itself. All tables are bounded. Where a proxy stands in front, all come from its
//! address, and the proxy has to tell them apart: then there is no source, and no limit of one.

use crate::config::Allow;
use ipnet::IpNet;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Wrong signatures of one source within [`WINDOW`]; from then on it is a suspect.
const FAILURES: u32 = 20;
/// How long wrong signatures are counted together, and a suspect is one at most.
pub const WINDOW: Duration = Duration::from_secs(60);
/// How long a source is known after its last right signature.
const PROVEN: Duration = Duration::from_secs(24 * 60 * 60);
/// Connections of one stranger at once.
const CONNECTIONS: usize = 32;
/// Sources that a table remembers.
const REMEMBERED: usize = 4096;
/// GitHub's list is believed so long after it was read. An older one shuts nobody out.
const LIST_LIFE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Bits of an IPv6 address that name a network: within it, anybody picks addresses at will.
const NETWORK_BITS: u32 = 64;

/// The address of who sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Self(address.to_canonical())
    }
}

impl Source {
    /// What is counted as one.
    fn key(self) -> IpAddr {
        match self.0 {
            IpAddr::V4(_) => self.0,
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> NETWORK_BITS << NETWORK_BITS)),
        }
    }
}

/// What is known of all sources. One for the public listener.
pub struct Sources {
    allow: Allow,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connections: HashMap<IpAddr, usize>,
    failures: HashMap<IpAddr, Failures>,
    /// When each last signed rightly.
    proven: HashMap<IpAddr, Instant>,
    github: Option<Published>,
}

#[derive(Clone, Copy)]
struct Failures {
    since: Instant,
    count: u32,
}

/// GitHub's list, and when it was read.
struct Published {
    ranges: Vec<IpNet>,
    read: Instant,
}

impl Sources {
    /// Nothing is known yet; `allow` says who may deliver.
    #[must_use]
    pub fn new(allow: Allow) -> Self {
        Self { allow, state: Mutex::default() }
    }

    /// GitHub published these ranges as those that its deliveries come from. None at all is no list: it would
    /// shut GitHub itself out.
    pub fn set_github(&self, ranges: Vec<IpNet>, now: Instant) {
        if !ranges.is_empty() {
            self.lock().github = Some(Published { ranges, read: now });
        }
    }

    /// Whether GitHub's list is what decides, and there is none to be believed.
    #[must_use]
    pub fn lacks_list(&self, now: Instant) -> bool {
        self.allow == Allow::Github && self.lock().list(now).is_none()
    }

    /// Whether it may deliver at all. Without a list to be believed everybody may: a delivery that is
    /// turned away is lost until somebody notices, and a signature is needed anyhow.
    #[must_use]
    pub fn may_deliver(&self, source: Source, now: Instant) -> bool {
        match self.allow {
            Allow::Anyone => true,
            Allow::Github => self.lock().list(now).is_none_or(|list| list.holds(source)),
        }
    }

    /// Whether it signed wrongly too often. Never one that is known.
    #[must_use]
    pub fn is_suspect(&self, source: Source, now: Instant) -> bool {
        let state = self.lock();
        let failures = state.failures.get(&source.key()).filter(|failures| !is_over(failures.since, WINDOW, now));
        failures.is_some_and(|failures| failures.count >= FAILURES) && !state.knows(source, now)
    }

    /// It signed rightly.
    pub fn proved(&self, source: Source, now: Instant) {
        let mut state = self.lock();
        state.failures.remove(&source.key());
        make_room(&mut state.proven, source.key(), |at| is_over(*at, PROVEN, now), |at| *at);
        state.proven.insert(source.key(), now);
    }

    /// Its signature was wrong.
    pub fn failed(&self, source: Source, now: Instant) {
        let mut state = self.lock();
        let over = |failures: &Failures| is_over(failures.since, WINDOW, now);
        make_room(&mut state.failures, source.key(), over, |failures| failures.count);
        let failures = state.failures.entry(source.key()).or_insert(Failures { since: now, count: 0 });
        if over(failures) {
            *failures = Failures { since: now, count: 0 };
        }
        failures.count = failures.count.saturating_add(1);
    }

    /// Lets a connection of it in, until the [`Entry`] is dropped; `None`: it has as many as it may.
    pub(super) fn enter(self: &Arc<Self>, source: Source, now: Instant) -> Option<Entry> {
        let mut state = self.lock();
        let known = state.knows(source, now);
        let connections = state.connections.entry(source.key()).or_insert(0);
        if *connections >= CONNECTIONS && !known {
            return None;
        }
        *connections += 1;
        Some(Entry { sources: Arc::clone(self), source, known })
    }

    fn leave(&self, source: Source) {
        let mut state = self.lock();
        if let Some(connections) = state.connections.get_mut(&source.key()) {
            *connections -= 1;
            if *connections == 0 {
                state.connections.remove(&source.key());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn list(&self, now: Instant) -> Option<&Published> {
        self.github.as_ref().filter(|list| !is_over(list.read, LIST_LIFE, now))
    }

    fn knows(&self, source: Source, now: Instant) -> bool {
        let proven = self.proven.get(&source.key()).is_some_and(|at| !is_over(*at, PROVEN, now));
        proven || self.list(now).is_some_and(|list| list.holds(source))
    }
}

impl Published {
    fn holds(&self, source: Source) -> bool {
        self.ranges.iter().any(|range| range.contains(&source.0))
    }
}

/// One connection that was let in.
pub(super) struct Entry {
    sources: Arc<Sources>,
    source: Source,
    known: bool,
}

impl Entry {
    /// Whether it was known when it came.
    pub const fn is_known(&self) -> bool {
        self.known
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.sources.leave(self.source);
    }
}

fn is_over(since: Instant, length: Duration, now: Instant) -> bool {
    now.saturating_duration_since(since) >= length
}

/// Makes room for `new` in a full table: what is over goes, else the least of the others.
fn make_room<K: Copy + Eq + Hash, V, O: Ord>(
    table: &mut HashMap<K, V>,
    new: K,
    is_over: impl Fn(&V) -> bool,
    worth: impl Fn(&V) -> O,
) {
    if table.len() < REMEMBERED || table.contains_key(&new) {
        return;
    }
    table.retain(|_, value| !is_over(value));
    let least = table.iter().min_by_key(|(_, value)| worth(value)).map(|(key, _)| *key);
    if let Some(least) = least.filter(|_| table.len() >= REMEMBERED) {
        table.remove(&least);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        text.parse::<IpAddr>().expect("an address").into()
    }

    fn fail(sources: &Sources, source: Source, times: u32, now: Instant) {
        (0..times).for_each(|_| sources.failed(source, now));
    }

    #[test]
    fn who_signs_wrongly_too_often_is_a_suspect_for_a_while() {
        let (sources, now) = (Sources::new(Allow::Anyone), Instant::now());
        let (stranger, other) = (source("203.0.113.7"), source("203.0.113.8"));
        fail(&sources, stranger, FAILURES - 1, now);
        assert!(!sources.is_suspect(stranger, now));
        fail(&sources, stranger, 1, now);
        assert!(sources.is_suspect(stranger, now) && !sources.is_suspect(other, now));
        assert!(!sources.is_suspect(stranger, now + WINDOW));
        fail(&sources, stranger, 1, now + WINDOW);
        assert!(!sources.is_suspect(stranger, now + WINDOW), "it begins anew");
    }

    #[test]
    fn who_signs_rightly_is_never_limited() {
        let (sources, now) = (Arc::new(Sources::new(Allow::Anyone)), Instant::now());
        let friend = source("192.0.2.1");
        fail(&sources, friend, 10 * FAILURES, now);
        sources.proved(friend, now);
        fail(&sources, friend, 10 * FAILURES, now);
        assert!(!sources.is_suspect(friend, now));
        let many: Vec<_> = (0..10 * CONNECTIONS).map_while(|_| sources.enter(friend, now)).collect();
        assert_eq!(many.len(), 10 * CONNECTIONS);
    }

    #[test]
    fn github_is_known_before_it_ever_signed() {
        let (sources, now) = (Sources::new(Allow::Anyone), Instant::now());
        sources.set_github(vec!["192.30.252.0/22".parse().expect("a range")], now);
        let github = source("::ffff:192.30.253.9");
        fail(&sources, github, 10 * FAILURES, now);
        assert!(!sources.is_suspect(github, now));
        fail(&sources, github, FAILURES, now + LIST_LIFE);
        assert!(sources.is_suspect(github, now + LIST_LIFE), "a stale list vouches for nobody");
    }

    #[test]
    fn connections_of_a_stranger_are_few_and_an_ipv6_network_is_one() {
        let (sources, now) = (Arc::new(Sources::new(Allow::Anyone)), Instant::now());
        let enter = |last: usize| sources.enter(source(&format!("2001:db8::{last:x}")), now);
        let mut entries: Vec<_> = (0..2 * CONNECTIONS).map_while(enter).collect();
        assert_eq!(entries.len(), CONNECTIONS);
        assert!(sources.enter(source("2001:db8:0:1::1"), now).is_some(), "another network has its own");
        entries.pop();
        assert!(enter(0).is_some(), "what is closed makes room");
        entries.clear();
        assert!(sources.lock().connections.is_empty());
    }

    #[test]
    fn with_an_allow_list_only_github_may_deliver_as_long_as_the_list_is_to_be_believed() {
        let (sources, now) = (Sources::new(Allow::Github), Instant::now());
        let (github, stranger) = (source("140.82.112.1"), source("203.0.113.7"));
        assert!(sources.may_deliver(stranger, now), "without a list nobody is shut out");
        sources.set_github(vec!["140.82.112.0/20".parse().expect("a range")], now);
        assert!(sources.may_deliver(github, now) && !sources.may_deliver(stranger, now));
        sources.set_github(Vec::new(), now);
        assert!(sources.may_deliver(github, now), "an empty list is none");
        assert!(!sources.lacks_list(now) && sources.lacks_list(now + LIST_LIFE));
        assert!(sources.may_deliver(stranger, now + LIST_LIFE), "a stale one shuts nobody out");
    }

    #[test]
    fn the_tables_are_bounded_and_keep_the_worst() {
        let (sources, now) = (Sources::new(Allow::Anyone), Instant::now());
        let worst = source("203.0.113.7");
        fail(&sources, worst, FAILURES, now);
        for last in 0..2 * REMEMBERED {
            let [.., high, low] = last.to_be_bytes();
            let other = Source::from(IpAddr::from([10, 0, high, low]));
            sources.failed(other, now);
            sources.proved(Source::from(IpAddr::from([10, 1, high, low])), now);
        }
        let state = sources.lock();
        assert_eq!((state.failures.len(), state.proven.len()), (REMEMBERED, REMEMBERED));
        drop(state);
        assert!(sources.is_suspect(worst, now));
    }
}
