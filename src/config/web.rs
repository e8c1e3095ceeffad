//! `[web]`: the public listener, its certificate, and whom it tells of holes.

use super::sections::TlsMode;
use super::setting::{ContactUri, HttpUrl, choices};
use super::table::Table;
use crate::domain::reason::words;
use chrono::NaiveDate;
use serde::Serialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

words! {
    /// Who may deliver.
    Allow {
        /// Whoever signs rightly.
        Anyone = "anyone",
        /// Of those, only who comes from an address that GitHub publishes.
        Github = "github",
    }
}

choices!(Allow);

/// `[web]`: the public listener.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Web {
    /// Where webhooks are taken.
    pub listen: SocketAddr,
    /// Under which name GitHub and people reach it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_url: Option<HttpUrl>,
    /// Who may deliver.
    pub allow: Allow,
    /// Its certificate.
    pub tls: Tls,
    /// Whom to tell of a hole, at `/.well-known/security.txt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security_txt: Option<SecurityTxt>,
}

/// `[web.security_txt]`: [RFC 9116](https://www.rfc-editor.org/rfc/rfc9116).
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct SecurityTxt {
    /// Where to write to, the preferred one first.
    pub contact: Vec<ContactUri>,
    /// The last day on which the text is to be believed.
    pub expires: NaiveDate,
    /// Where the operator's policy is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<ContactUri>,
}

impl SecurityTxt {
    /// None without a `contact`.
    fn read(mut table: Table<'_>) -> Option<Self> {
        let why = "a security.txt without it is not valid (RFC 9116)";
        let contact: Vec<ContactUri> = table.or("contact", Vec::new());
        let expires = if contact.is_empty() { table.maybe("expires") } else { table.need("expires", why) };
        let policy = table.maybe("policy");
        table.finish();
        (!contact.is_empty()).then_some(Self { contact, expires: expires?, policy })
    }
}

/// `[web.tls]`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Tls {
    /// Where the certificate comes from.
    pub mode: TlsMode,
    /// The certificate and its chain, PEM: there in mode `files`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Its private key, PEM: there in mode `files`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

impl Web {
    pub(super) fn read(mut table: Table<'_>, is_public: bool) -> Self {
        let listen = table.or("listen", SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8443)));
        let public_url = table.maybe("public_url");
        let allow = table.or("allow", Allow::Anyone);
        let tls = Tls::read(table.table("tls"), is_public);
        let security_txt = SecurityTxt::read(table.table("security_txt"));
        table.finish();
        Self { listen, public_url, allow, tls, security_txt }
    }
}

impl Tls {
    fn read(mut table: Table<'_>, is_public: bool) -> Self {
        let mode = table.or("mode", TlsMode::Files);
        let why = "mode `files` needs it (`self-signed` is for a demo, `off` for loopback behind a proxy)";
        table.follow(&["roles", "github.intake", "web.tls.mode"]);
        let (cert_file, key_file) = if is_public && mode == TlsMode::Files {
            (table.need_path("cert_file", why), table.need_path("key_file", why))
        } else {
            (table.path("cert_file"), table.path("key_file"))
        };
        table.finish();
        Self { mode, cert_file, key_file }
    }
}
