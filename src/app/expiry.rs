//! Looks at what runs out by itself and has to be renewed by the operator: tells in time.

use crate::api::Trouble;
use crate::troubles::Troubles;
use crate::web::SecurityTxt;
use chrono::{DateTime, TimeDelta, Utc};
use std::time::Duration;

/// The key of what is wrong with `security.txt`.
const SECURITY_TXT: &str = "expiry:security_txt";
/// How often it is looked.
pub const PERIOD: Duration = Duration::from_secs(60 * 60);
/// How long before its end a thing is told of, in days.
const NOTICE_DAYS: i64 = 14;
/// The longest that a `security.txt` may be believed (RFC 9116, section 2.5.5), in days.
const YEAR_DAYS: i64 = 366;

/// Looks once.
pub fn pass(security_txt: &SecurityTxt, troubles: &Troubles, now: DateTime<Utc>) {
    troubles.set(SECURITY_TXT, stale(security_txt.expires(), now));
}

fn stale(expires: DateTime<Utc>, now: DateTime<Utc>) -> Option<Trouble> {
    let (what, fix) = if expires < now {
        (
            "security.txt has expired: who finds a hole will not believe its contact",
            "check the contact, then write a later",
        )
    } else if expires < now + TimeDelta::days(NOTICE_DAYS) {
        ("security.txt expires soon", "check that the contact still reads its mail, then write a later")
    } else if expires > now + TimeDelta::days(YEAR_DAYS) {
        ("security.txt claims to be right for more than a year", "write an earlier")
    } else {
        return None;
    };
    Some(Trouble {
        what: what.to_owned(),
        evidence: format!("[web.security_txt] expires = \"{}\"", expires.date_naive()),
        fix: format!("{fix} day into [web.security_txt] expires, and start flyci again"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_in_time_and_when_it_is_over() {
        let now: DateTime<Utc> = "2026-11-25T12:00:00Z".parse().expect("a time");
        let told = |days| stale(now + TimeDelta::days(days), now).map(|trouble| trouble.what);
        assert_eq!(told(30), None);
        assert_eq!(told(13).as_deref(), Some("security.txt expires soon"));
        assert!(told(-1).is_some_and(|what| what.contains("has expired")));
        assert!(told(400).is_some_and(|what| what.contains("more than a year")));
    }
}
