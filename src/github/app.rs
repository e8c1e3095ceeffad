//! The App itself: what it is, who installed it, what GitHub delivered to it.
//! <https://docs.github.com/en/rest/apps>

use super::auth::TokenKey;
use super::error::{GitHubError, Result};
use super::exchange::Idempotent;
use super::lenient::{self, Name};
use super::permission::PermissionSet;
use super::request::Request;
use super::{GitHub, InstallationId};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;

/// Deliveries per page: GitHub's most.
const PAGE: usize = 100;
/// Most bytes of one delivery: GitHub sends no payload over 25 MB, and wraps it here.
const MAX_DELIVERY_BYTES: usize = 27 << 20;
/// Longest cursor that is believed.
const MAX_CURSOR_CHARS: usize = 200;

/// The App, as its owner set it up.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct App {
    /// GitHub's id.
    pub id: u64,
    /// Its name in URLs.
    pub slug: String,
    /// What it asks accounts for; compare with [`super::missing_permissions`].
    #[serde(default)]
    pub permissions: BTreeMap<String, String>,
    /// What it is subscribed to; compare with [`super::missing_events`].
    #[serde(default)]
    pub events: Vec<String>,
}

/// An installation: an account that installed the App.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Installation {
    /// GitHub's id of the account.
    pub account_id: u64,
    /// The account's name.
    pub login: Name,
    /// `Organization` or `User`: an open list.
    pub kind: String,
    /// True while the account suspends it.
    pub suspended: bool,
    /// `all` or `selected`.
    pub repository_selection: String,
    /// What the account granted: older than the App's own list until it accepts the newer.
    pub permissions: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct WireInstallation {
    account: WireAccount,
    #[serde(default, deserialize_with = "lenient::word")]
    suspended_at: Option<String>,
    #[serde(default)]
    repository_selection: String,
    #[serde(default)]
    permissions: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct WireAccount {
    id: u64,
    /// An enterprise has a slug instead.
    #[serde(alias = "slug")]
    login: Name,
    #[serde(default, rename = "type")]
    kind: String,
}

/// A repository that an installation reaches.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Repository {
    /// GitHub's id.
    pub id: u64,
    /// `owner/name`, as it is now.
    pub full_name: Name,
    /// False when everybody can see it. What is not said is taken for public.
    #[serde(default)]
    pub private: bool,
}

#[derive(Deserialize)]
struct WireRepositories {
    repositories: Vec<Repository>,
}

/// One attempt of GitHub's to deliver an event.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Delivery {
    /// GitHub's id of the attempt.
    pub id: u64,
    /// Names the event: attempts of one event share it.
    pub guid: String,
    /// When it was tried.
    pub delivered_at: DateTime<Utc>,
    /// True when it was asked for.
    #[serde(default)]
    pub redelivery: bool,
    /// The status that our answer had; 0 when there was none.
    #[serde(default)]
    pub status_code: u16,
    /// The event.
    #[serde(default)]
    pub event: String,
    /// Its action.
    #[serde(default, deserialize_with = "lenient::word")]
    pub action: Option<String>,
    /// GitHub's id of the installation that it concerns.
    #[serde(default, deserialize_with = "lenient::id")]
    pub installation_id: Option<u64>,
    /// GitHub's id of the repository that it concerns.
    #[serde(default, deserialize_with = "lenient::id")]
    pub repository_id: Option<u64>,
}

impl Delivery {
    /// True when it was answered 2xx.
    #[must_use]
    pub const fn succeeded(&self) -> bool {
        self.status_code >= 200 && self.status_code < 300
    }
}

/// A page of attempts, the newest first.
#[derive(Clone, Debug)]
pub struct Deliveries {
    /// The attempts.
    pub deliveries: Vec<Delivery>,
    /// Where the next, older page starts; `None`: this is the last.
    pub next: Option<String>,
    /// For asking for the newest page again.
    pub etag: Option<String>,
    /// The page is still the one of the given `etag`, and nothing of it was sent.
    pub unchanged: bool,
}

/// An attempt with what was sent.
#[derive(Clone, Debug)]
pub struct DeliveryDetail {
    /// The attempt.
    pub delivery: Delivery,
    /// What was sent. GitHub keeps it for three days.
    pub payload: Payload,
}

/// The body of an event. Holds names: never shown.
#[derive(Clone)]
pub struct Payload(serde_json::Value);

impl Payload {
    /// The body as JSON text. Its bytes are not those that GitHub signed.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.to_string().into_bytes()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Payload(…)")
    }
}

#[derive(Deserialize)]
struct WireDelivery {
    #[serde(flatten)]
    delivery: Delivery,
    request: WireRequest,
}

#[derive(Deserialize)]
struct WireRequest {
    #[serde(default)]
    payload: serde_json::Value,
}

impl GitHub {
    /// The App that the key is of.
    ///
    /// # Errors
    /// [`GitHubError::Unauthorized`] says whether the key, the App's id or the clock is wrong.
    pub async fn app(&self) -> Result<App> {
        self.as_app(&Request::get("/app", &[]), Idempotent::Yes).await?.json()
    }

    /// An installation; `None`: it is none of this App's (any more).
    ///
    /// # Errors
    /// When GitHub could not be asked.
    pub async fn installation(&self, installation: InstallationId) -> Result<Option<Installation>> {
        let request = Request::get("/app/installations/{installation_id}", &[&installation.0.to_string()]);
        let wire: WireInstallation = match self.as_app(&request, Idempotent::Yes).await {
            Ok(answer) => answer.json()?,
            Err(GitHubError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(Installation {
            account_id: wire.account.id,
            login: wire.account.login,
            kind: wire.account.kind,
            suspended: wire.suspended_at.is_some(),
            repository_selection: wire.repository_selection,
            permissions: wire.permissions,
        }))
    }

    /// What a repository is called now; `None`: the installation does not reach it (any more), since
    /// it was deleted, transferred, or taken out of the installation. Asked by its id alone, so that
    /// a rename is found out.
    ///
    /// # Errors
    /// When GitHub could not be asked.
    pub async fn repository(&self, installation: InstallationId, repository: u64) -> Result<Option<Repository>> {
        let permissions = PermissionSet::Metadata;
        let key = TokenKey { installation: installation.0, repository: Some(repository), permissions };
        let request = Request::get("/installation/repositories", &[]).query("per_page", PAGE);
        // The token is good for this one repository, and cannot be had for one that is out of reach.
        let found: WireRepositories = match self.as_installation(key, &request, Idempotent::Yes).await {
            Ok(answer) => answer.json()?,
            Err(GitHubError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(found.repositories.into_iter().find(|found| found.id == repository))
    }

    /// A page of GitHub's attempts to deliver events to this App, the newest first. GitHub keeps
    /// three days of them. With the `etag` of an earlier answer an unchanged page costs nothing of
    /// the hourly budget.
    ///
    /// # Errors
    /// When GitHub could not be asked.
    pub async fn deliveries(&self, cursor: Option<&str>, etag: Option<&str>) -> Result<Deliveries> {
        let mut request = Request::get("/app/hook/deliveries", &[]).query("per_page", PAGE).etag(etag);
        if let Some(cursor) = cursor {
            request = request.query("cursor", cursor);
        }
        let answer = self.as_app(&request, Idempotent::Yes).await?;
        if answer.status == 304 {
            let etag = etag.map(str::to_owned);
            return Ok(Deliveries { deliveries: Vec::new(), next: None, etag, unchanged: true });
        }
        let next = answer.header("link").and_then(next_cursor);
        let etag = answer.header("etag").map(str::to_owned);
        Ok(Deliveries { deliveries: answer.json()?, next, etag, unchanged: false })
    }

    /// One attempt with its payload; `None`: GitHub has dropped it.
    ///
    /// # Errors
    /// When GitHub could not be asked.
    pub async fn delivery(&self, delivery: u64) -> Result<Option<DeliveryDetail>> {
        let request = Request::get("/app/hook/deliveries/{delivery_id}", &[&delivery.to_string()])
            .limit_bytes(MAX_DELIVERY_BYTES);
        match self.as_app(&request, Idempotent::Yes).await {
            Ok(answer) => {
                let wire: WireDelivery = answer.json()?;
                Ok(Some(DeliveryDetail { delivery: wire.delivery, payload: Payload(wire.request.payload) }))
            }
            Err(GitHubError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks GitHub to deliver once more what this attempt delivered. It keeps the event's GUID.
    ///
    /// # Errors
    /// [`GitHubError::NotFound`]: GitHub has dropped it. Sent once: ask again when it failed.
    pub async fn redeliver(&self, delivery: u64) -> Result<()> {
        let request = Request::post("/app/hook/deliveries/{delivery_id}/attempts", &[&delivery.to_string()]);
        self.as_app(&request, Idempotent::No).await.map(drop)
    }
}

/// The cursor in a `Link` header's `rel="next"`:
/// <https://docs.github.com/en/rest/using-the-rest-api/using-pagination-in-the-rest-api>.
fn next_cursor(link: &str) -> Option<String> {
    let next = link.split(',').find(|part| part.contains("rel=\"next\""))?;
    let url = next.split_once('<')?.1.split_once('>')?.0;
    let query = url.split_once('?')?.1;
    let cursor = query.split('&').find_map(|pair| pair.strip_prefix("cursor="))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
    (!cursor.is_empty() && cursor.len() <= MAX_CURSOR_CHARS && cursor.chars().all(plain)).then(|| cursor.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_among_links() {
        let link = "<https://api.github.com/app/hook/deliveries?per_page=100&cursor=v1_17323292984>; rel=\"next\"";
        assert_eq!(next_cursor(link).as_deref(), Some("v1_17323292984"));
        assert_eq!(next_cursor("<https://x/?cursor=a>; rel=\"prev\""), None);
        assert_eq!(next_cursor("nonsense"), None);
    }

    #[test]
    fn a_delivery_without_action_or_repository_is_read() {
        let text = r#"{"id": 1, "guid": "g", "delivered_at": "2026-01-02T03:04:05Z", "redelivery": false,
            "status": "OK", "status_code": 200, "event": "ping", "action": null, "installation_id": null,
            "request": {"headers": {}, "payload": {"zen": "x"}}, "response": {}}"#;
        let wire: WireDelivery = serde_json::from_str(text).expect("a delivery");
        assert!(wire.delivery.succeeded());
        assert_eq!(wire.delivery.installation_id, None);
    }
}
