//! Times and sizes as people read them; counts are the domain's.

pub use crate::domain::counted::{are, count, plural, times};

use chrono::{DateTime, Utc};
use std::time::Duration;

const MINUTE: u64 = 60;
const TEN_MINUTES: u64 = 10 * MINUTE;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// A length of time, with two units at most: `412 ms`, `2.3 s`, `19 s`, `2m10s`, `14m`, `3h05m`, `2d4h`.
#[must_use]
pub fn span(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0 if length.subsec_millis() > 0 => format!("{} ms", length.subsec_millis()),
        0..10 if length.subsec_millis() >= 100 => format!("{}.{} s", seconds, length.subsec_millis() / 100),
        0..MINUTE => format!("{seconds} s"),
        MINUTE..TEN_MINUTES => format!("{}m{:02}s", seconds / MINUTE, seconds % MINUTE),
        TEN_MINUTES..HOUR => format!("{}m", seconds / MINUTE),
        HOUR..DAY => format!("{}h{:02}m", seconds / HOUR, seconds % HOUR / MINUTE),
        _ => format!("{}d{}h", seconds / DAY, seconds % DAY / HOUR),
    }
}

/// The time from one moment to another; clocks that disagree make it 0.
#[must_use]
pub fn between(from: DateTime<Utc>, to: DateTime<Utc>) -> Duration {
    (to - from).to_std().unwrap_or(Duration::ZERO)
}

/// How long ago: `3 s ago`.
#[must_use]
pub fn ago(now: DateTime<Utc>, then: DateTime<Utc>) -> String {
    let length = between(then, now);
    if length < Duration::from_secs(1) {
        return "just now".to_owned();
    }
    format!("{} ago", span(Duration::from_secs(length.as_secs())))
}

/// Whole gigabytes, as memory is sold: `16`. Rounded to the nearest.
#[must_use]
pub const fn gigabytes(bytes: u64) -> u64 {
    const GIB: u64 = 1 << 30;
    (bytes + GIB / 2) / GIB
}

/// A size: `812 MB`, `1.4 GB`. Decimal units, as disk makers use them.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1_000)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        None => format!("{bytes} B"),
        Some((name, unit)) if bytes >= 10 * unit => format!("{} {name}", bytes / unit),
        Some((name, unit)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        for (millis, text) in [
            (0, "0 s"),
            (62, "62 ms"),
            (2_350, "2.3 s"),
            (9_040, "9 s"),
            (59_900, "59 s"),
            (130_000, "2m10s"),
            (3_599_000, "59m"),
            (11_100_000, "3h05m"),
            (187_200_000, "2d4h"),
        ] {
            assert_eq!(span(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn clocks_that_disagree_do_no_harm() {
        let now = DateTime::from_timestamp(1_000, 0).expect("a time");
        let later = DateTime::from_timestamp(2_000, 0).expect("a time");
        assert_eq!(ago(now, later), "just now");
        assert_eq!(ago(later, now), "16m ago");
        let three = DateTime::from_timestamp(1_003, 400_000_000).expect("a time");
        assert_eq!(ago(three, now), "3 s ago");
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!([512, 812_000_000, 1_440_000_000].map(size), ["512 B", "812 MB", "1.4 GB"]);
        assert_eq!(gigabytes(16_000_000_000), 15);
        assert_eq!(gigabytes(16 << 30), 16);
    }
}
