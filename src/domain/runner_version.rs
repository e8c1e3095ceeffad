//! How long GitHub still serves a version of its runner: it cuts off those that lag behind.
//! <https://docs.github.com/en/actions/reference/runners/self-hosted-runners#runner-software-updates-on-self-hosted-runners>

use chrono::{DateTime, TimeDelta, Utc};
use std::fmt;
use std::str::FromStr;

/// A runner must be brought up to date so long after a newer version came out, in days.
const GRACE_DAYS: i64 = 30;

/// A version of GitHub's runner: `2.330.0`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RunnerVersion {
    major: u32,
    minor: u32,
    patch: u32,
}

impl RunnerVersion {
    /// The version of three numbers.
    #[must_use]
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }
}

/// A text that is no version of a runner.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a runner's version is three numbers, like 2.330.0")]
pub struct NoRunnerVersion;

impl FromStr for RunnerVersion {
    type Err = NoRunnerVersion;

    /// With or without the `v` of release names.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.strip_prefix('v').unwrap_or(text).split('.').map(|part| part.parse().ok());
        match (parts.next().flatten(), parts.next().flatten(), parts.next().flatten(), parts.next()) {
            (Some(major), Some(minor), Some(patch), None) => Ok(Self { major, minor, patch }),
            _ => Err(NoRunnerVersion),
        }
    }
}

impl fmt::Display for RunnerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}.{}", self.major, self.minor, self.patch))
    }
}

/// A version that GitHub published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunnerRelease {
    /// Which.
    pub version: RunnerVersion,
    /// When.
    pub published_at: DateTime<Utc>,
}

/// When GitHub stops serving `version`: so many days after the first newer one came out. `None`: it is the newest.
#[must_use]
pub fn cut_off(version: RunnerVersion, releases: &[RunnerRelease]) -> Option<DateTime<Utc>> {
    let newer = releases.iter().filter(|release| release.version > version);
    newer.map(|release| release.published_at).min().map(|first| first + TimeDelta::days(GRACE_DAYS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> RunnerVersion {
        text.parse().expect("a version")
    }

    #[test]
    fn versions_are_compared_by_number() {
        assert!(version("2.99.1") < version("v2.100.0"));
        assert_eq!(version("2.330.0").to_string(), "2.330.0");
        for wrong in ["", "2.330", "2.330.0.1", "2.x.0", "latest"] {
            assert_eq!(wrong.parse::<RunnerVersion>(), Err(NoRunnerVersion), "{wrong}");
        }
    }

    #[test]
    fn the_first_newer_release_starts_the_clock() {
        let release = |text, day: &str| RunnerRelease {
            version: version(text),
            published_at: format!("{day}T00:00:00Z").parse().expect("a time"),
        };
        let releases =
            [release("2.331.0", "2026-11-20"), release("2.330.0", "2026-11-01"), release("2.329.0", "2026-10-01")];
        let day = |text| cut_off(version(text), &releases).map(|at| at.date_naive().to_string());
        assert_eq!(day("2.331.0"), None);
        assert_eq!(day("2.330.0").as_deref(), Some("2026-12-20"));
        assert_eq!(day("2.329.0").as_deref(), Some("2026-12-01"));
        assert_eq!(day("2.100.0").as_deref(), Some("2026-10-31"));
    }
}
