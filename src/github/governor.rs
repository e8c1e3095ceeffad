//! GitHub's limits, obeyed in one place by all calls.
//!
//! Three kinds (<https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api>):
//! the hourly budgets of each installation, told in `x-ratelimit-*`; the secondary limits, told by
//! 403 or 429 with `retry-after`; and two that are told nowhere before they strike, concurrency and
//! points per minute and route, which are kept to here. A short wait is waited here; a long one is
//! the caller's, as [`GitHubError::RateLimited`].

use super::error::{GitHubError, Result};
use super::request::{Budget, Request};
use crate::domain::reason::words;
use chrono::{DateTime, TimeDelta, Utc};
use hyper::http::HeaderMap;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Calls at once; GitHub allows 100 over all of an App's processes.
const MAX_CONCURRENT_CALLS: usize = 50;
/// Longest wait for one of them to end.
const MAX_SLOT_WAIT: Duration = Duration::from_secs(30);
/// Longest wait for a limit inside a call.
const MAX_INSIDE_WAIT: Duration = Duration::from_millis(1500);
/// Points per minute for one route and one installation; a mint costs 5.
const POINTS_PER_MINUTE: u32 = 900;
/// What GitHub counts the points over.
const POINTS_WINDOW: Duration = Duration::from_secs(60);
/// What GitHub asks for when it names no time, doubled while it goes on.
const UNTOLD_WAIT: Duration = Duration::from_secs(60);
/// Doublings of [`UNTOLD_WAIT`] at most: 16 minutes.
const MAX_DOUBLINGS: u32 = 4;
/// Longest that an answer's header may hold calls back: an hourly budget is new by then.
const MAX_HOLD: Duration = Duration::from_secs(65 * 60);
/// Keys kept before those that hold nothing back are dropped.
const MAX_KEYS: usize = 10_000;

/// Whose limits: an installation's (GitHub's id), or the App's own (`None`).
pub(super) type Principal = Option<u64>;

words! {
    /// What is held back.
    HeldBudget {
        /// Every call: a secondary limit.
        All = "all",
        /// Calls of the ordinary hourly budget.
        Core = "core",
        /// Registrations of runners.
        RunnerRegistration = "runner_registration",
    }
}

/// What holds calls back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Held {
    pub who: Principal,
    pub what: HeldBudget,
    pub until: Instant,
}

/// Permission to make one call; given back when dropped.
pub(super) struct Permit {
    _slot: OwnedSemaphorePermit,
}

pub(super) struct Governor {
    slots: Arc<Semaphore>,
    limits: Mutex<Limits>,
}

#[derive(Default)]
struct Limits {
    /// Secondary limits: nothing at all before this moment.
    held: HashMap<Principal, Hold>,
    /// Hourly budgets that are used up.
    spent: HashMap<(Principal, Budget), Instant>,
    /// What was sent in the last minute.
    sent: HashMap<(Principal, &'static str), Window>,
}

struct Hold {
    until: Instant,
    /// Times in a row that GitHub named no time.
    untold: u32,
}

#[derive(Default)]
struct Window {
    calls: VecDeque<(Instant, u32)>,
    points: u32,
}

impl Window {
    /// When `points` more fit.
    fn room_for(&mut self, points: u32, now: Instant) -> Instant {
        while let Some((at, old)) = self.calls.front().copied()
            && at + POINTS_WINDOW <= now
        {
            self.points -= old;
            self.calls.pop_front();
        }
        let mut excess = (self.points + points).saturating_sub(POINTS_PER_MINUTE);
        let mut room = now;
        for (at, old) in &self.calls {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(*old);
            room = *at + POINTS_WINDOW;
        }
        room
    }

    fn add(&mut self, points: u32, at: Instant) {
        self.calls.push_back((at, points));
        self.points += points;
    }
}

impl Limits {
    fn free_at(&mut self, principal: Principal, request: &Request, now: Instant) -> Instant {
        let held = self.held.get(&principal).map_or(now, |hold| hold.until);
        let spent = self.spent.get(&(principal, request.budget)).copied().unwrap_or(now);
        let window = self.sent.entry((principal, request.template)).or_default();
        held.max(spent).max(window.room_for(request.method.points(), now))
    }

    fn prune(&mut self, now: Instant) {
        if self.held.len() > MAX_KEYS {
            self.held.retain(|_, hold| hold.until > now);
        }
        if self.spent.len() > MAX_KEYS {
            self.spent.retain(|_, until| *until > now);
        }
        if self.sent.len() > MAX_KEYS {
            self.sent.retain(|_, window| window.calls.back().is_some_and(|(at, _)| *at + POINTS_WINDOW > now));
        }
    }

    /// GitHub said to hold back: for how long, or without saying.
    fn hold(&mut self, principal: Principal, told: Option<Duration>, now: Instant) -> Instant {
        let hold = self.held.entry(principal).or_insert(Hold { until: now, untold: 0 });
        let wait = match told {
            Some(wait) => wait.min(MAX_HOLD),
            // Calls that were under way together count as one time.
            None if hold.until > now => return hold.until,
            None => {
                let wait = UNTOLD_WAIT * 2_u32.pow(hold.untold.min(MAX_DOUBLINGS));
                hold.untold = hold.untold.saturating_add(1);
                wait
            }
        };
        hold.until = hold.until.max(now + wait);
        hold.until
    }
}

impl Governor {
    pub(super) fn new() -> Self {
        Self { slots: Arc::new(Semaphore::new(MAX_CONCURRENT_CALLS)), limits: Mutex::default() }
    }

    /// Says whether a call would be admitted, without using anything up.
    pub(super) fn check(&self, principal: Principal, request: &Request) -> Result<()> {
        let now = Instant::now();
        let free = self.limits().free_at(principal, request, now);
        if free > now + MAX_INSIDE_WAIT { Err(limited(request, free)) } else { Ok(()) }
    }

    /// Admits one call, after a short wait if need be.
    pub(super) async fn admit(&self, principal: Principal, request: &Request) -> Result<Permit> {
        let deadline = Instant::now() + MAX_INSIDE_WAIT;
        loop {
            let free = match self.charge(principal, request) {
                Ok(()) => break,
                Err(free) if free > deadline => return Err(limited(request, free)),
                Err(free) => free,
            };
            tokio::time::sleep_until(free).await;
        }
        let slot = tokio::time::timeout(MAX_SLOT_WAIT, Arc::clone(&self.slots).acquire_owned()).await;
        match slot {
            Ok(permit) => Ok(Permit { _slot: permit.expect("the semaphore is never closed") }),
            Err(_) => Err(limited(request, Instant::now() + MAX_INSIDE_WAIT)),
        }
    }

    fn charge(&self, principal: Principal, request: &Request) -> std::result::Result<(), Instant> {
        let now = Instant::now();
        let mut limits = self.limits();
        let free = limits.free_at(principal, request, now);
        if free > now {
            return Err(free);
        }
        limits.sent.entry((principal, request.template)).or_default().add(request.method.points(), now);
        limits.prune(now);
        Ok(())
    }

    /// Takes note of what an answer's headers say. `Some`: the answer is itself a refusal by a
    /// limit, and this is when to come again.
    pub(super) fn observe(&self, principal: Principal, request: &Request, answer: &Limit<'_>) -> Option<DateTime<Utc>> {
        let now = Instant::now();
        let mut limits = self.limits();
        let spent = answer.spent_for();
        if let Some(wait) = spent {
            limits.spent.insert((principal, request.budget), now + wait);
        }
        if !answer.is_limit() {
            if answer.status < 400
                && let Some(hold) = limits.held.get_mut(&principal)
            {
                hold.untold = 0;
            }
            return None;
        }
        let until = match (answer.retry_after(), spent) {
            (None, Some(wait)) => now + wait,
            (told, _) => limits.hold(principal, told, now),
        };
        Some(wall_clock(until))
    }

    /// All that holds calls back now.
    pub(super) fn holds(&self) -> Vec<Held> {
        let now = Instant::now();
        let limits = self.limits();
        let held = limits.held.iter().map(|(who, hold)| Held { who: *who, what: HeldBudget::All, until: hold.until });
        let spent = limits.spent.iter().map(|((who, budget), until)| {
            let what = match budget {
                Budget::Core => HeldBudget::Core,
                Budget::RunnerRegistration => HeldBudget::RunnerRegistration,
            };
            Held { who: *who, what, until: *until }
        });
        held.chain(spent).filter(|hold| hold.until > now).collect()
    }

    /// Holds calls back for `wait` at least, as another process was told to.
    pub(super) fn hold(&self, who: Principal, what: HeldBudget, wait: Duration) {
        let (now, mut limits) = (Instant::now(), self.limits());
        let until = now + wait.min(MAX_HOLD);
        let budget = match what {
            HeldBudget::All => {
                let hold = limits.held.entry(who).or_insert(Hold { until, untold: 0 });
                hold.until = hold.until.max(until);
                return;
            }
            HeldBudget::Core => Budget::Core,
            HeldBudget::RunnerRegistration => Budget::RunnerRegistration,
        };
        let spent = limits.spent.entry((who, budget)).or_insert(until);
        *spent = (*spent).max(until);
    }

    fn limits(&self) -> std::sync::MutexGuard<'_, Limits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn limited(request: &Request, until: Instant) -> GitHubError {
    GitHubError::RateLimited { call: request.call(), until: wall_clock(until) }
}

fn wall_clock(at: Instant) -> DateTime<Utc> {
    Utc::now() + TimeDelta::from_std(at.saturating_duration_since(Instant::now())).unwrap_or(TimeDelta::MAX)
}

/// An answer, as far as limits go.
pub(super) struct Limit<'a> {
    pub status: u16,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
    /// GitHub's clock at the answer.
    pub github_now: DateTime<Utc>,
}

impl Limit<'_> {
    fn number(&self, name: &str) -> Option<u64> {
        self.headers.get(name)?.to_str().ok()?.trim().parse().ok()
    }

    fn retry_after(&self) -> Option<Duration> {
        self.number("retry-after").map(Duration::from_secs)
    }

    /// How long the hourly budget stays used up, when this call used the last of it.
    fn spent_for(&self) -> Option<Duration> {
        if self.number("x-ratelimit-remaining")? != 0 {
            return None;
        }
        let reset = i64::try_from(self.number("x-ratelimit-reset")?).ok()?;
        let wait = reset.saturating_sub(self.github_now.timestamp()).max(1);
        Some(Duration::from_secs(wait.unsigned_abs()).min(MAX_HOLD))
    }

    fn is_limit(&self) -> bool {
        match self.status {
            429 => true,
            403 => self.retry_after().is_some() || self.spent_for().is_some() || self.says_secondary(),
            _ => false,
        }
    }

    fn says_secondary(&self) -> bool {
        let text = String::from_utf8_lossy(self.body).to_lowercase();
        text.contains("secondary rate limit") || text.contains("abuse detection")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINT: &str = "/repos/{owner}/{repo}/actions/runners/generate-jitconfig";
    const ACME: Principal = Some(1);
    const OTHER: Principal = Some(2);

    fn mint() -> Request {
        Request::post(MINT, &["acme", "app"]).budget(Budget::RunnerRegistration)
    }

    fn headers(pairs: &[(&'static str, String)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value"))).collect()
    }

    fn observe(governor: &Governor, status: u16, pairs: &[(&'static str, String)], body: &[u8]) -> bool {
        let headers = headers(pairs);
        let answer = Limit { status, headers: &headers, body, github_now: Utc::now() };
        governor.observe(ACME, &mint(), &answer).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn a_minute_has_room_for_180_mints_of_an_installation() {
        let governor = Governor::new();
        for _ in 0..180 {
            drop(governor.admit(ACME, &mint()).await.expect("within the limit"));
        }
        assert!(governor.admit(ACME, &mint()).await.is_err());
        assert!(governor.admit(OTHER, &mint()).await.is_ok(), "another installation has its own minute");
        assert!(governor.admit(ACME, &Request::get("/x", &[])).await.is_ok(), "another route has its own points");
        tokio::time::advance(POINTS_WINDOW).await;
        assert!(governor.admit(ACME, &mint()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn retry_after_is_obeyed_for_all_routes_of_the_installation() {
        let governor = Governor::new();
        assert!(observe(&governor, 403, &[("retry-after", "30".into())], b""));
        assert!(governor.admit(ACME, &Request::get("/x", &[])).await.is_err());
        assert!(governor.admit(OTHER, &mint()).await.is_ok());
        let held = governor.holds();
        assert_eq!(held.iter().map(|hold| (hold.who, hold.what)).collect::<Vec<_>>(), [(ACME, HeldBudget::All)]);
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(governor.admit(ACME, &mint()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_untold_limit_waits_a_minute_then_two() {
        let governor = Governor::new();
        for minutes in [1, 2, 4] {
            assert!(observe(&governor, 403, &[], b"{\"message\":\"You have exceeded a secondary rate limit\"}"));
            assert!(observe(&governor, 429, &[], b""), "one that was under way with it does not count again");
            tokio::time::advance(Duration::from_secs(minutes * 60) - Duration::from_secs(5)).await;
            assert!(governor.check(ACME, &mint()).is_err(), "{minutes}");
            tokio::time::advance(Duration::from_secs(5)).await;
            assert!(governor.check(ACME, &mint()).is_ok(), "{minutes}");
        }
        assert!(!observe(&governor, 201, &[], b""));
        assert!(observe(&governor, 429, &[], b""));
        tokio::time::advance(UNTOLD_WAIT).await;
        assert!(governor.check(ACME, &mint()).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_spent_budget_holds_back_its_own_calls_only() {
        let governor = Governor::new();
        let reset = (Utc::now().timestamp() + 600).to_string();
        let spent = [("x-ratelimit-remaining", "0".to_owned()), ("x-ratelimit-reset", reset)];
        assert!(!observe(&governor, 201, &spent, b""), "the last call of the budget succeeded");
        assert!(governor.admit(ACME, &mint()).await.is_err());
        assert!(governor.admit(ACME, &Request::get("/x", &[])).await.is_ok());
        assert!(observe(&governor, 403, &spent, b""), "one too many is a limit, not a missing permission");
        tokio::time::advance(Duration::from_secs(601)).await;
        assert!(governor.admit(ACME, &mint()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_gateway_was_told_is_obeyed_and_never_shortens_a_hold() {
        let governor = Governor::new();
        governor.hold(ACME, HeldBudget::RunnerRegistration, Duration::from_secs(600));
        governor.hold(ACME, HeldBudget::RunnerRegistration, Duration::from_secs(10));
        tokio::time::advance(Duration::from_secs(500)).await;
        assert!(governor.check(ACME, &mint()).is_err());
        assert!(governor.check(ACME, &Request::get("/x", &[])).is_ok(), "another budget");
        governor.hold(OTHER, HeldBudget::All, Duration::from_secs(10));
        assert!(governor.check(OTHER, &Request::get("/x", &[])).is_err());
        assert_eq!(governor.holds().len(), 2);
        tokio::time::advance(Duration::from_secs(100)).await;
        assert!(governor.holds().is_empty() && governor.check(ACME, &mint()).is_ok());
    }

    #[tokio::test]
    async fn a_plain_403_is_no_limit() {
        assert!(!observe(&Governor::new(), 403, &[("x-ratelimit-remaining", "4999".into())], b"forbidden"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_wait_is_waited_inside() {
        let governor = Governor::new();
        assert!(observe(&governor, 429, &[("retry-after", "1".into())], b""));
        let before = Instant::now();
        assert!(governor.admit(ACME, &mint()).await.is_ok());
        assert!(before.elapsed() >= Duration::from_secs(1));
    }
}
