//! GitHub's rate limits: the hourly budget per caller and resource, the points of a minute, and the secondary limit.

use chrono::{DateTime, Duration, Utc};

use super::World;

/// A counted window.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Calls allowed in the window.
    pub limit: u32,
    /// Calls (or points) made in it.
    pub used: u32,
    /// When the next window begins.
    pub reset: DateTime<Utc>,
}

/// What GitHub counts a call as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Most of the API.
    Core,
    /// JIT configurations.
    Registration,
}

impl Resource {
    /// The word in `x-ratelimit-resource`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Registration => "actions_runner_registration",
        }
    }
}

/// A call that is over a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    /// The hourly budget is used up.
    Primary,
    /// Too fast; wait for so many seconds.
    Secondary(u64),
}

impl World {
    /// Counts a call. The budget is told in either case.
    pub fn spend(&mut self, who: &str, resource: Resource, points: u32) -> (Budget, Option<Limited>) {
        let limit = match resource {
            Resource::Core => self.switches.primary_limit,
            Resource::Registration => self.switches.registration_limit,
        };
        let budget = self.window(who, resource.word(), limit, Duration::hours(1));
        if budget.used >= budget.limit {
            return (*budget, Some(Limited::Primary));
        }
        budget.used += 1;
        let budget = *budget;
        let limited = self.secondary().or_else(|| self.over_points(who, points));
        (budget, limited)
    }

    /// Takes back a call that is not counted after all.
    pub fn refund(&mut self, who: &str, resource: Resource) -> Budget {
        let limit = self.budget(who, resource).limit;
        let budget = self.window(who, resource.word(), limit, Duration::hours(1));
        budget.used = budget.used.saturating_sub(1);
        *budget
    }

    /// A caller's budget as it is, without counting a call.
    pub fn budget(&mut self, who: &str, resource: Resource) -> Budget {
        let limit = match resource {
            Resource::Core => self.switches.primary_limit,
            Resource::Registration => self.switches.registration_limit,
        };
        *self.window(who, resource.word(), limit, Duration::hours(1))
    }

    /// Uses up a caller's hourly budgets.
    pub fn exhaust(&mut self, who: &str) {
        for resource in [Resource::Core, Resource::Registration] {
            let limit = self.budget(who, resource).limit;
            self.window(who, resource.word(), limit, Duration::hours(1)).used = limit;
        }
    }

    fn window(&mut self, who: &str, what: &'static str, limit: u32, length: Duration) -> &mut Budget {
        let now = self.now();
        let fresh = Budget { limit, used: 0, reset: now + length };
        let budget = self.budgets.entry((who.to_owned(), what)).or_insert(fresh);
        if budget.reset <= now {
            *budget = fresh;
        }
        budget.limit = limit;
        budget
    }

    fn secondary(&mut self) -> Option<Limited> {
        let secondary = self.switches.secondary.as_mut()?;
        secondary.times = secondary.times.checked_sub(1)?;
        Some(Limited::Secondary(secondary.retry_after_s))
    }

    fn over_points(&mut self, who: &str, points: u32) -> Option<Limited> {
        let limit = self.switches.points_per_minute?;
        let now = self.now();
        let budget = self.window(who, "points", limit, Duration::minutes(1));
        budget.used = budget.used.saturating_add(points);
        let wait = u64::try_from((budget.reset - now).num_seconds().max(1)).unwrap_or(1);
        (budget.used > budget.limit).then_some(Limited::Secondary(wait))
    }
}
