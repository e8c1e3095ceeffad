//! Whom to tell of a hole: `/.well-known/security.txt`, RFC 9116.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

/// How long the text may be believed without being read again, in days. RFC 9116 wants less than a
/// year; a daemon that answers still has a configuration that says so.
const VALID_DAYS: i64 = 90;

/// What the operator's configuration says.
pub struct SecurityTxt {
    /// Where to write to: `mailto:` or `https:` URIs, the preferred one first.
    contacts: Vec<String>,
    /// Where the operator's policy is.
    policy: Option<String>,
    /// Where this text is: at `public_url`.
    canonical: Option<String>,
}

/// Why there can be no such text.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SecurityTxtError {
    /// Nobody to write to.
    #[error("security.txt needs a contact: give one URI, like `mailto:security@example.com`")]
    NoContact,
    /// A value that is no URI on one line.
    #[error(
        "`{0}` is not a URI on one line: write it like `mailto:security@example.com` or `https://example.com/security`"
    )]
    NotAUri(String),
}

impl SecurityTxt {
    /// A text with these contacts and policy. `public_url` is where the public listener is reached.
    ///
    /// # Errors
    /// When there is no contact, or something is no URI.
    pub fn new(
        contacts: Vec<String>,
        policy: Option<String>,
        public_url: Option<&str>,
    ) -> Result<Self, SecurityTxtError> {
        if contacts.is_empty() {
            return Err(SecurityTxtError::NoContact);
        }
        if let Some(wrong) = contacts.iter().chain(&policy).find(|text| !is_uri(text)) {
            return Err(SecurityTxtError::NotAUri(wrong.clone()));
        }
        let canonical = public_url.map(|url| format!("{}/.well-known/security.txt", url.trim_end_matches('/')));
        Ok(Self { contacts, policy, canonical })
    }

    /// The text, as of `now`.
    #[must_use]
    pub fn render(&self, now: DateTime<Utc>) -> String {
        let expires = now + TimeDelta::days(VALID_DAYS);
        let mut lines: Vec<String> = self.contacts.iter().map(|contact| format!("Contact: {contact}")).collect();
        lines.push(format!("Expires: {}", expires.to_rfc3339_opts(SecondsFormat::Secs, true)));
        lines.extend(self.policy.iter().map(|policy| format!("Policy: {policy}")));
        lines.extend(self.canonical.iter().map(|canonical| format!("Canonical: {canonical}")));
        lines.join("\n") + "\n"
    }
}

fn is_uri(text: &str) -> bool {
    let scheme = ["mailto:", "https://", "tel:"].iter().any(|scheme| text.starts_with(scheme));
    scheme && text.chars().all(|c| c.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_rfc_9116_asks_for() {
        let text = SecurityTxt::new(vec!["mailto:security@example.com".into()], None, Some("https://ci.example.com/"))
            .expect("it is one URI");
        let now = "2026-11-25T01:02:03.456Z".parse().expect("it is a time");
        assert_eq!(
            text.render(now),
            "Contact: mailto:security@example.com\nExpires: 2027-02-23T01:02:03Z\n\
             Canonical: https://ci.example.com/.well-known/security.txt\n"
        );
    }

    #[test]
    fn a_value_cannot_bring_lines_of_its_own() {
        let forged = "mailto:a@example.com\nContact: mailto:evil@example.com".to_owned();
        assert_eq!(SecurityTxt::new(vec![forged.clone()], None, None).err(), Some(SecurityTxtError::NotAUri(forged)));
        assert_eq!(SecurityTxt::new(Vec::new(), None, None).err(), Some(SecurityTxtError::NoContact));
    }
}
