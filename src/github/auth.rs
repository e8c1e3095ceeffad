//! Who we are to GitHub: the App by a signed JWT, an installation by a token of an hour.
//!
//! A token is asked for one repository and one kind of call, with no more permissions than that
//! takes, and lives in this process's memory only.

use super::GitHub;
use super::error::{Credential, GitHubError, OptionsError, Result, TOKEN_ROUTE};
use super::exchange::Idempotent;
use super::once::Once;
use super::permission::PermissionSet;
use super::request::Request;
use super::transport::Answer;
use chrono::{DateTime, Utc};
use octocrab::auth::create_jwt;
use octocrab::jsonwebtoken::EncodingKey;
use octocrab::models::AppId;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use std::time::Duration;

/// A token is not used in its last minutes: a call made with it may take a while.
const MAX_TOKEN_MARGIN: Duration = Duration::from_secs(120);

/// The App's key, and the one before it while a rotation lasts.
pub(super) struct AppKeys {
    app: AppId,
    current: EncodingKey,
    previous: Option<EncodingKey>,
}

/// True when a text is a key that the App can sign with: RSA, in PEM.
#[must_use]
pub fn is_app_key(pem: &str) -> bool {
    EncodingKey::from_rsa_pem(pem.as_bytes()).is_ok()
}

impl AppKeys {
    pub(super) fn new(
        app_id: u64,
        current: &SecretString,
        previous: Option<&SecretString>,
    ) -> std::result::Result<Self, OptionsError> {
        let read = |pem: &SecretString, which| {
            EncodingKey::from_rsa_pem(pem.expose_secret().as_bytes()).map_err(|_| OptionsError::PrivateKey { which })
        };
        Ok(Self {
            app: AppId(app_id),
            current: read(current, "github.private_key_file")?,
            previous: previous.map(|pem| read(pem, "github.previous_private_key_file")).transpose()?,
        })
    }

    /// A JWT that is valid from a minute ago for ten minutes: octocrab's, as GitHub advises
    /// (<https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/generating-a-json-web-token-jwt-for-a-github-app>).
    fn sign(&self, key: &EncodingKey, request: &Request) -> Result<SecretString> {
        create_jwt(self.app, key)
            .map(SecretString::from)
            .map_err(|_| GitHubError::Input { call: request.call(), what: "the App's private key cannot sign" })
    }
}

/// What a token is for: who, on what, to do what.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    pub installation: u64,
    /// `None`: no repository is named, for calls on the organisation alone.
    pub repository: Option<u64>,
    pub permissions: PermissionSet,
}

/// Installation tokens.
pub(super) type Tokens = Once<TokenKey, SecretString>;

#[derive(Deserialize)]
struct TokenAnswer {
    token: String,
    expires_at: DateTime<Utc>,
}

impl GitHub {
    /// A call as the App, retried if it may be.
    pub(super) async fn as_app(&self, request: &Request, idempotent: Idempotent) -> Result<Answer> {
        self.retry(request, idempotent, || Box::pin(self.as_app_once(request))).await
    }

    async fn as_app_once(&self, request: &Request) -> Result<Answer> {
        let keys = &self.inner.keys;
        self.inner.governor.check(None, request)?;
        let jwt = keys.sign(&keys.current, request)?;
        let answer = self.exchange(None, request, &jwt).await;
        match (&answer, &keys.previous) {
            (Err(GitHubError::Unauthorized { cause: Credential::AppKey, .. }), Some(previous)) => {
                let jwt = keys.sign(previous, request)?;
                self.exchange(None, request, &jwt).await
            }
            _ => answer,
        }
    }

    /// A call as an installation, retried if it may be. A refused token is replaced once: GitHub
    /// did nothing with the refused call, so that even a mint may be sent again.
    pub(super) async fn as_installation(
        &self,
        key: TokenKey,
        request: &Request,
        idempotent: Idempotent,
    ) -> Result<Answer> {
        self.retry(request, idempotent, || Box::pin(self.as_installation_once(key, request))).await
    }

    async fn as_installation_once(&self, key: TokenKey, request: &Request) -> Result<Answer> {
        self.inner.governor.check(Some(key.installation), request)?;
        let token = self.token(key).await?;
        let answer = self.exchange(Some(key.installation), request, &token).await;
        if !matches!(answer, Err(GitHubError::Unauthorized { .. })) {
            return answer;
        }
        let refused = token.expose_secret();
        self.inner.tokens.forget(&key, |cached| cached.expose_secret() == refused).await;
        let fresh = self.token(key).await?;
        self.exchange(Some(key.installation), request, &fresh).await
    }

    async fn token(&self, key: TokenKey) -> Result<SecretString> {
        self.inner.tokens.get(&key, async || self.request_token(key).await).await
    }

    async fn request_token(&self, key: TokenKey) -> Result<(SecretString, Duration)> {
        let grants = key.permissions.grants().iter();
        let permissions: serde_json::Map<_, _> =
            grants.map(|(name, access)| ((*name).to_owned(), access.as_str().into())).collect();
        let mut body = serde_json::json!({ "permissions": permissions });
        if let Some(repository) = key.repository {
            body["repository_ids"] = serde_json::json!([repository]);
        }
        let installation = key.installation.to_string();
        let request = Request::post(TOKEN_ROUTE, &[&installation]).json(&body);
        // Asked twice, GitHub makes two tokens: the first is never used, and expires.
        let answer = self.as_app(&request, Idempotent::Yes).await?;
        let made: TokenAnswer = answer.json()?;
        // Counted by GitHub's clock, then by a clock that nobody sets.
        let life = (made.expires_at - self.inner.clock.github_now()).to_std().unwrap_or_default();
        Ok((made.token.into(), life - MAX_TOKEN_MARGIN.min(life / 10)))
    }
}
