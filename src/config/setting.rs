//! The kinds of value that a key can have: how each is read, and what it accepts, in words.

use crate::domain::profile::{Display, HardwareNeed};
use crate::domain::units::{Bytes, Span};
use chrono::NaiveDate;
use figment::value::Value;
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, Serializer};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A value that a key can have. Environment variables are texts: each kind reads itself from one too.
pub(super) trait Setting: Sized {
    /// What is accepted, as the second half of "write …".
    fn accepts() -> String;
    /// The value, if it is of this kind.
    fn read(value: &Value) -> Option<Self>;
}

/// Kinds that are written as text and read by `FromStr`.
macro_rules! read_by_from_str {
    ($($kind:ty: $accepts:literal),+ $(,)?) => {$(
        impl Setting for $kind {
            fn accepts() -> String {
                $accepts.to_owned()
            }
            fn read(value: &Value) -> Option<Self> {
                value.as_str()?.parse().ok()
            }
        }
    )+};
}

read_by_from_str! {
    Bytes: "a size with its unit, like `7GB`, `512MB` or `4GiB`",
    Span: "a length of time with its unit, like `250ms`, `30s`, `6h15m` or `400d`",
    SocketAddr: "an address and a port, like `0.0.0.0:8443` or `127.0.0.1:9464`",
    HardwareNeed: "one word like `m2` (exactly that) or `m2+` (that or later)",
    NaiveDate: "a day in quotes, like `\"2027-06-30\"`",
}

/// Whole numbers.
macro_rules! read_whole_number {
    ($($kind:ty: $accepts:literal),+ $(,)?) => {$(
        impl Setting for $kind {
            fn accepts() -> String {
                $accepts.to_owned()
            }
            fn read(value: &Value) -> Option<Self> {
                match value.as_str() {
                    Some(text) => text.trim().parse().ok(),
                    None => whole(value).and_then(|number| number.try_into().ok()),
                }
            }
        }
    )+};
}

read_whole_number! {
    u16: "a whole number from 0 to 65535",
    u32: "a whole number, 0 or more",
    u64: "a whole number, 0 or more",
}

/// The whole number that a value is: what TOML reads is signed.
fn whole(value: &Value) -> Option<i128> {
    value.to_i128().or_else(|| value.to_u128()?.try_into().ok())
}

/// Closed lists of words.
macro_rules! choices {
    ($($kind:ty),+ $(,)?) => {$(
        impl $crate::config::setting::Setting for $kind {
            fn accepts() -> String {
                let words: Vec<_> = Self::ALL.iter().map(|word| format!("`{word}`")).collect();
                words.join(" or ")
            }
            fn read(value: &figment::value::Value) -> Option<Self> {
                Self::parse(value.as_str()?)
            }
        }
    )+};
}
pub(super) use choices;

impl Setting for f64 {
    fn accepts() -> String {
        "a number, like `1.5`".to_owned()
    }
    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::String(_, text) => text.trim().parse().ok(),
            Value::Num(_, number) => {
                number.to_f64().or_else(|| whole(value).and_then(|number| i32::try_from(number).ok()).map(Self::from))
            }
            _ => None,
        }
    }
}

impl Setting for bool {
    fn accepts() -> String {
        "`true` or `false`".to_owned()
    }
    fn read(value: &Value) -> Option<Self> {
        match value.as_str() {
            Some(text) => text.trim().parse().ok(),
            None => value.to_bool(),
        }
    }
}

impl Setting for String {
    fn accepts() -> String {
        "a text in quotes".to_owned()
    }
    fn read(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
}

impl Setting for PathBuf {
    fn accepts() -> String {
        "the path of a file, in quotes".to_owned()
    }
    fn read(value: &Value) -> Option<Self> {
        value.as_str().filter(|text| !text.is_empty()).map(Self::from)
    }
}

impl Setting for Display {
    fn accepts() -> String {
        "a size in pixels, like `1920x1080`".to_owned()
    }
    fn read(value: &Value) -> Option<Self> {
        value.deserialize().ok()
    }
}

impl<T: Setting> Setting for Vec<T> {
    fn accepts() -> String {
        format!("a list, each of it {}", T::accepts())
    }
    /// From the environment: items with commas between them.
    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Array(_, items) => items.iter().map(T::read).collect(),
            Value::String(_, text) => text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| T::read(&item.into()))
                .collect(),
            _ => None,
        }
    }
}

/// An address that is served, or `off`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listener(pub Option<SocketAddr>);

impl Setting for Listener {
    fn accepts() -> String {
        format!("{}, or `off`", SocketAddr::accepts())
    }
    fn read(value: &Value) -> Option<Self> {
        match value.as_str()? {
            "off" => Some(Self(None)),
            text => text.parse().ok().map(|address| Self(Some(address))),
        }
    }
}

impl Serialize for Listener {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(address) => serializer.collect_str(&address),
            None => serializer.serialize_str("off"),
        }
    }
}

/// An `http` or `https` URL without credentials, query and final slash.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(transparent)]
pub struct HttpUrl(String);

impl HttpUrl {
    /// The URL, without a slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True when nobody on the way can read along: TLS, or the machine itself.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.0.starts_with("https://") || self.is_loopback()
    }

    /// True when it names this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.0.parse::<hyper::Uri>().is_ok_and(|uri| uri.host().is_some_and(is_loopback_name))
    }
}

fn is_loopback_name(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || address.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Setting for HttpUrl {
    fn accepts() -> String {
        "a URL without user, password and query, like `https://ci.example.com`".to_owned()
    }
    fn read(value: &Value) -> Option<Self> {
        let text = value.as_str()?.trim_end_matches('/');
        let uri: hyper::Uri = text.parse().ok()?;
        let scheme = uri.scheme_str().is_some_and(|scheme| scheme == "https" || scheme == "http");
        let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@')) && uri.query().is_none();
        (scheme && plain).then(|| Self(text.to_owned()))
    }
}

/// Where somebody can be reached or something be read: a `mailto:`, `https:` or `tel:` URI on one line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(transparent)]
pub struct ContactUri(String);

impl fmt::Display for ContactUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Setting for ContactUri {
    fn accepts() -> String {
        "a URI, like `mailto:security@example.com` or `https://example.com/security`".to_owned()
    }
    /// Anything that could begin a line of its own is refused.
    fn read(value: &Value) -> Option<Self> {
        let text = value.as_str()?;
        let scheme =
            ["mailto:", "https://", "tel:"].iter().any(|scheme| text.len() > scheme.len() && text.starts_with(scheme));
        (scheme && text.chars().all(|c| c.is_ascii_graphic())).then(|| Self(text.to_owned()))
    }
}

/// A URL that may hold a password: shown with the password masked.
#[derive(Clone)]
pub struct SecretUrl(SecretString);

impl SecretUrl {
    /// The URL with its password.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The URL without its password.
    #[must_use]
    pub fn masked(&self) -> String {
        match self.password() {
            Some((before, _, after)) => format!("{before}***{after}"),
            None => self.expose().to_owned(),
        }
    }

    /// True when there is a password in it.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.password().is_some()
    }

    /// What is before the password, the password, and what is after it.
    fn password(&self) -> Option<(&str, &str, &str)> {
        let text = self.expose();
        let start = text.find("://")? + 3;
        let end = text[start..].find(['/', '?', '#']).map_or(text.len(), |length| start + length);
        if let Some((user, _)) = text[start..end].rsplit_once('@')
            && let Some(colon) = user.find(':')
        {
            let (from, to) = (start + colon + 1, start + user.len());
            return Some((&text[..from], &text[from..to], &text[to..]));
        }
        let from = text.find("password=")? + "password=".len();
        let to = text[from..].find('&').map_or(text.len(), |length| from + length);
        Some((&text[..from], &text[from..to], &text[to..]))
    }
}

impl PartialEq for SecretUrl {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl Serialize for SecretUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.masked())
    }
}

impl Setting for SecretUrl {
    fn accepts() -> String {
        "a URL, like `postgres://flyci@db.example.com/flyci` or `http://proxy.example.com:3128`".to_owned()
    }
    fn read(value: &Value) -> Option<Self> {
        let text = value.as_str()?;
        let (scheme, rest) = text.split_once("://")?;
        let known = matches!(scheme, "postgres" | "postgresql" | "http" | "https" | "socks5");
        (known && !rest.is_empty()).then(|| Self(SecretString::from(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> SecretUrl {
        SecretUrl::read(&text.into()).expect("it is a URL")
    }

    #[test]
    fn a_password_is_never_shown() {
        for (text, masked) in [
            ("postgres://flyci:s3cret@db/flyci", "postgres://flyci:***@db/flyci"),
            ("postgres://flyci:s3:c@ret@db/flyci?sslmode=require", "postgres://flyci:***@db/flyci?sslmode=require"),
            ("postgres://flyci@db/flyci?password=s3cret&x=1", "postgres://flyci@db/flyci?password=***&x=1"),
            ("http://me:s3cret@proxy:3128", "http://me:***@proxy:3128"),
        ] {
            assert_eq!(format!("{:?}", url(text)), masked);
            assert!(url(text).has_password());
        }
        assert!(!url("postgres://flyci@[::1]:5432/flyci").has_password());
    }

    #[test]
    fn a_contact_cannot_bring_lines_of_its_own() {
        let read = |text: &str| ContactUri::read(&text.into());
        assert!(read("mailto:security@example.com").is_some());
        for wrong in [
            "mailto:a@example.com\nContact: mailto:evil@example.com",
            "security@example.com",
            "http://example.com",
            "tel:",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_url_is_http_and_carries_nothing_beside() {
        for text in ["https://ci.example.com", "https://ci.example.com/", "http://127.0.0.1:3000/api/v3"] {
            let url = HttpUrl::read(&text.into()).expect(text);
            assert!(url.is_protected() && !url.as_str().ends_with('/'), "{url}");
        }
        for text in ["ci.example.com", "ftp://x", "https://user:pass@x", "https://x?token=1", "https://", ""] {
            assert!(HttpUrl::read(&text.into()).is_none(), "{text}");
        }
        let open = HttpUrl::read(&"http://ci.example.com".into()).expect("a URL");
        assert!(!open.is_protected());
    }

    #[test]
    fn the_environment_gives_texts_and_the_file_gives_values() {
        assert_eq!(u32::read(&"2".into()), Some(2));
        assert_eq!(u32::read(&2_u32.into()), Some(2));
        assert_eq!(u16::read(&70_000_u32.into()), None);
        assert_eq!(u32::read(&(-1_i32).into()), None);
        assert_eq!(f64::read(&"1.5".into()), Some(1.5));
        assert_eq!(f64::read(&2_u32.into()), Some(2.0));
        assert_eq!(bool::read(&"true".into()), Some(true));
        assert_eq!(Vec::<u16>::read(&"80, 443".into()), Some(vec![80, 443]));
        assert_eq!(Vec::<u16>::read(&"80,x".into()), None);
    }
}
