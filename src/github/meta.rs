//! What GitHub publishes about itself: the addresses that its deliveries come from.
//! <https://docs.github.com/en/rest/meta/meta#get-github-meta-information>

use super::GitHub;
use super::error::Result;
use super::exchange::Idempotent;
use super::governor::Principal;
use super::request::Request;
use ipnet::IpNet;
use secrecy::SecretString;
use serde::Deserialize;

/// Ranges that are taken: GitHub publishes six.
const MAX_RANGES: usize = 256;
/// Whose budget is drawn on: nobody's, since no token is needed. No installation has this id.
const NOBODY: Principal = Some(0);

#[derive(Deserialize)]
struct WireMeta {
    #[serde(default)]
    hooks: Vec<String>,
}

impl GitHub {
    /// The addresses that deliveries come from; none where GitHub does not tell (GitHub Enterprise Server).
    ///
    /// # Errors
    /// When GitHub does not answer.
    pub async fn hook_ranges(&self) -> Result<Vec<IpNet>> {
        let request = Request::get("/meta", &[]).anonymous();
        let nothing = SecretString::default();
        let call = || -> futures_util::future::BoxFuture<'_, Result<_>> {
            Box::pin(self.exchange(NOBODY, &request, &nothing))
        };
        let answer = self.retry(&request, Idempotent::Yes, call).await?;
        let meta: WireMeta = answer.json()?;
        Ok(meta.hooks.iter().filter_map(|range| range.parse().ok()).take(MAX_RANGES).collect())
    }
}
