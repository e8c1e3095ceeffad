//! Whether a delivery is GitHub's: its HMAC over the raw bytes.
//!
//! The signature covers the body alone. The event's name and the GUID are unsigned headers.

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

/// GitHub's header: `sha256=` and 64 hex digits.
/// <https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries>
const PREFIX: &str = "sha256=";

/// Hex digits of a signature.
const DIGITS: usize = 64;

/// Whether a header may be a signature at all: nothing else is worth reading a body for.
#[must_use]
pub fn is_well_formed(header: Option<&str>) -> bool {
    header
        .and_then(|text| text.strip_prefix(PREFIX))
        .is_some_and(|digits| digits.len() == DIGITS && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// The secrets that deliveries may be signed with: the current one and, during a rotation, the one before.
#[derive(Clone)]
pub struct WebhookSecrets {
    current: SecretString,
    previous: Option<SecretString>,
}

impl WebhookSecrets {
    /// The secrets in force.
    #[must_use]
    pub const fn new(current: SecretString, previous: Option<SecretString>) -> Self {
        Self { current, previous }
    }

    /// True when `header` is the signature of `body` under one of the secrets. Takes the same time
    /// whatever is wrong with it.
    #[must_use]
    pub fn verify(&self, header: Option<&str>, body: &[u8]) -> bool {
        let Some(signature) = header.and_then(|text| text.strip_prefix(PREFIX)).and_then(|text| hex::decode(text).ok())
        else {
            return false;
        };
        let current = signed_with(&self.current, body, &signature);
        let previous = self.previous.as_ref().is_some_and(|secret| signed_with(secret, body, &signature));
        current | previous
    }
}

fn signed_with(secret: &SecretString, body: &[u8], signature: &[u8]) -> bool {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()).expect("an HMAC takes a key of any length");
    mac.update(body);
    mac.verify_slice(signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of GitHub's documentation.
    const SECRET: &str = "It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    const SIGNATURE: &str = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    #[test]
    fn githubs_own_example_is_accepted() {
        let secrets = WebhookSecrets::new(SECRET.into(), None);
        assert!(secrets.verify(Some(SIGNATURE), BODY));
    }

    #[test]
    fn during_a_rotation_both_secrets_count() {
        let secrets = WebhookSecrets::new("new".into(), Some(SECRET.into()));
        assert!(secrets.verify(Some(SIGNATURE), BODY));
    }

    #[test]
    fn everything_else_is_refused() {
        let secrets = WebhookSecrets::new(SECRET.into(), None);
        let sha1 = SIGNATURE.replace("sha256", "sha1");
        let short = &SIGNATURE[..SIGNATURE.len() - 2];
        for (header, body) in [
            (None, BODY),
            (Some(""), BODY),
            (Some("sha256="), BODY),
            (Some("sha256=zz"), BODY),
            (Some(sha1.as_str()), BODY),
            (Some(short), BODY),
            (Some(SIGNATURE), &b"Hello, World?"[..]),
        ] {
            assert!(!secrets.verify(header, body), "{header:?}");
            assert_eq!(is_well_formed(header), header == Some(SIGNATURE), "{header:?}");
        }
    }
}
