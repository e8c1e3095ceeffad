//! Whom to tell of a hole: `/.well-known/security.txt`, [RFC 9116](https://www.rfc-editor.org/rfc/rfc9116).

use crate::config;
use chrono::{DateTime, NaiveTime, SecondsFormat, TimeDelta, Utc};

/// The text that is served.
#[derive(Clone, Debug)]
pub struct SecurityTxt {
    text: String,
    expires: DateTime<Utc>,
}

impl SecurityTxt {
    /// What the operator's configuration says. `public_url` is where the public listener is reached.
    #[must_use]
    pub fn new(section: &config::SecurityTxt, public_url: Option<&config::HttpUrl>) -> Self {
        let expires = section.expires.and_time(NaiveTime::MIN).and_utc() + TimeDelta::days(1) - TimeDelta::seconds(1);
        let mut lines: Vec<String> = section.contact.iter().map(|contact| format!("Contact: {contact}")).collect();
        lines.push(format!("Expires: {}", expires.to_rfc3339_opts(SecondsFormat::Secs, true)));
        lines.extend(section.policy.iter().map(|policy| format!("Policy: {policy}")));
        lines.extend(public_url.map(|url| format!("Canonical: {url}/.well-known/security.txt")));
        Self { text: lines.join("\n") + "\n", expires }
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Until when it is to be believed.
    #[must_use]
    pub const fn expires(&self) -> DateTime<Utc> {
        self.expires
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_rfc_9116_asks_for() {
        let config = config::Config::from_toml(
            "roles = [\"host\"]\n[host]\nhypervisor = \"fake\"\n[database]\nurl = \"postgres://localhost/flyci\"\n\
             [web]\npublic_url = \"https://ci.example.com/\"\n\
             [web.security_txt]\ncontact = [\"mailto:security@example.com\", \"https://example.com/report\"]\n\
             expires = \"2027-06-30\"\npolicy = \"https://example.com/policy\"\n",
            std::path::Path::new("/nowhere"),
        )
        .expect("it is valid");
        let section = config.web.security_txt.as_ref().expect("there is a contact");
        assert_eq!(
            SecurityTxt::new(section, config.web.public_url.as_ref()).text(),
            "Contact: mailto:security@example.com\nContact: https://example.com/report\n\
             Expires: 2027-06-30T23:59:59Z\nPolicy: https://example.com/policy\n\
             Canonical: https://ci.example.com/.well-known/security.txt\n"
        );
    }
}
