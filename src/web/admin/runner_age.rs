//! How long GitHub still serves the runners that hosts give to their guests.

use crate::api::{Host, Trouble};
use crate::domain::runner_version::{RunnerRelease, cut_off};
use chrono::{DateTime, TimeDelta, Utc};
use std::sync::{PoisonError, RwLock};

/// How long before GitHub cuts a version off it is told of, in days.
const NOTICE_DAYS: i64 = 10;

/// The releases of GitHub's runner, as this gateway last read them; none before the first time, and none where
/// GitHub has no list of them (GitHub Enterprise Server).
#[derive(Debug, Default)]
pub struct RunnerReleases(RwLock<Vec<RunnerRelease>>);

impl RunnerReleases {
    /// Takes what was read.
    pub fn set(&self, releases: Vec<RunnerRelease>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = releases;
    }

    /// When GitHub stops serving a version, if that is known and to come.
    #[must_use]
    pub fn cut_off(&self, version: &str) -> Option<DateTime<Utc>> {
        cut_off(version.parse().ok()?, &self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The hosts whose runner GitHub refuses soon, or does already.
pub fn troubles(hosts: &[Host], now: DateTime<Utc>) -> impl Iterator<Item = Trouble> {
    hosts.iter().filter_map(move |host| {
        let (version, until) = (host.runner_version.as_deref()?, host.runner_cut_off_at?);
        if until > now + TimeDelta::days(NOTICE_DAYS) {
            return None;
        }
        let days = (until - now).num_days();
        let what = if until <= now {
            format!("GitHub does not serve the runner of {} any more", host.name)
        } else {
            format!("GitHub cuts off the runner of {} in {days} days", host.name)
        };
        Some(Trouble {
            what,
            evidence: format!("it is {version}; newer ones are out, and GitHub serves it until {}", until.date_naive()),
            fix: "pin a newer one ([runner] archive, version, sha256), or update the image".to_owned(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(day: &str) -> DateTime<Utc> {
        format!("{day}T12:00:00Z").parse().expect("a time")
    }

    #[test]
    fn a_version_without_a_newer_one_is_not_cut_off() {
        let releases = RunnerReleases::default();
        assert_eq!(releases.cut_off("2.330.0"), None);
        let published_at = time("2026-11-01");
        releases.set(vec![RunnerRelease { version: "2.330.0".parse().expect("a version"), published_at }]);
        assert_eq!(releases.cut_off("2.330.0"), None);
        assert_eq!(releases.cut_off("2.329.1"), Some(time("2026-12-01")));
        assert_eq!(releases.cut_off("my own"), None);
    }
}
