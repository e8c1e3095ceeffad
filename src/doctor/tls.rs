//! What runs out by itself: the certificate of the public listener, and its security.txt.

use super::probe::{Probe, Said};
use super::{Check, Subject};
use crate::config::{TlsMode, Web};
use crate::web::SecurityTxt;
use chrono::{DateTime, NaiveDateTime, Utc};

/// Days before its end at which a renewal should have come: ACME clients renew a month before.
const RENEWED_BEFORE_DAYS: i64 = 14;

/// The checks of a gateway's certificate, and of what it tells of whom to write to.
pub async fn checks(subject: &Subject<'_>, probe: &dyn Probe) -> Vec<Check> {
    let web = &subject.config.web;
    let mut checks = Vec::new();
    if !subject.config.is_gateway() {
        return checks;
    }
    if let Some(file) = web.tls.cert_file.as_ref().filter(|_| web.tls.mode == TlsMode::Files) {
        let file = file.to_string_lossy();
        let said = probe.run(&["openssl", "x509", "-enddate", "-noout", "-in", &file]).await;
        checks.push(certificate(&said, subject.now));
    }
    checks.extend(security_txt(web, subject.now));
    checks
}

/// What strangers are told of whom to write to.
fn security_txt(web: &Web, now: DateTime<Utc>) -> Option<Check> {
    let end = SecurityTxt::new(web.security_txt.as_ref()?, web.public_url.as_ref()).expires();
    Some(expiry("security.txt", end, now, "look over [web.security_txt], and move `expires`"))
}

/// `openssl x509 -enddate`: `notAfter=Nov 25 04:00:00 2027 GMT`.
fn certificate(said: &Said, now: DateTime<Utc>) -> Check {
    const NAME: &str = "certificate";
    let text = match said {
        Said::Yes(text) => text,
        Said::No(why) => {
            return Check::bad(
                NAME,
                format!("[web.tls] cert_file is no certificate: {}", why.lines().next().unwrap_or_default()),
            )
            .fix("give the chain in PEM form, the server's own certificate first");
        }
        Said::Nothing(why) => return Check::unknown(NAME, why.clone()),
    };
    let end = text.lines().find_map(|line| {
        let text = line.trim().strip_prefix("notAfter=")?.trim_end_matches(" GMT");
        NaiveDateTime::parse_from_str(text, "%b %e %H:%M:%S %Y").ok()
    });
    match end {
        Some(end) => expiry(NAME, end.and_utc(), now, "renew it (your ACME client), then send flyci SIGHUP"),
        None => Check::unknown(NAME, format!("not understood: {}", text.trim())),
    }
}

/// How it is with something that holds until `end`.
pub fn expiry(name: &'static str, end: DateTime<Utc>, now: DateTime<Utc>, fix: &str) -> Check {
    let (days, day) = ((end - now).num_days(), end.format("%Y-%m-%d"));
    if end <= now {
        Check::bad(name, format!("it ended on {day}")).fix(fix)
    } else if days < RENEWED_BEFORE_DAYS {
        Check::warning(name, format!("it ends on {day}, in {days} days")).fix(fix)
    } else {
        Check::good(name, format!("it holds until {day}, {days} days"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_security_txt_is_judged_by_its_end() {
        let config = crate::config::Config::from_toml(
            "roles = [\"host\"]\n[host]\nhypervisor = \"fake\"\n[database]\nurl = \"postgres://localhost/flyci\"\n\
             [web.security_txt]\ncontact = [\"mailto:security@example.com\"]\nexpires = \"2027-06-30\"\n",
            std::path::Path::new("/nowhere"),
        )
        .expect("it is valid");
        let judge = |now: &str| security_txt(&config.web, now.parse().expect("a time")).expect("there is one").verdict;
        assert_eq!(judge("2026-11-25T00:00:00Z"), Verdict::Good);
        assert_eq!(judge("2027-06-20T00:00:00Z"), Verdict::Warning);
        assert_eq!(judge("2027-07-01T00:00:00Z"), Verdict::Bad);
    }

    #[test]
    fn a_certificate_is_judged_by_its_end() {
        let judge = |text: &str, now: &str| certificate(&Said::Yes(text.into()), now.parse().expect("a time")).verdict;
        let text = "notAfter=Feb  3 11:08:29 2027 GMT\n";
        assert_eq!(judge(text, "2026-11-25T00:00:00Z"), Verdict::Good);
        assert_eq!(judge(text, "2027-01-28T00:00:00Z"), Verdict::Warning);
        assert_eq!(judge(text, "2027-02-03T11:08:30Z"), Verdict::Bad);
        assert_eq!(judge("gibberish", "2027-02-03T11:08:30Z"), Verdict::Unknown);
        let refused = Said::No("Could not find certificate from /etc/flyci/tls/fullchain.pem".into());
        assert_eq!(certificate(&refused, Utc::now()).verdict, Verdict::Bad);
    }
}
