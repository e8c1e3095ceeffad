//! The releases of GitHub's runner program, which tell how long GitHub still serves an older one.
//! <https://docs.github.com/en/rest/releases/releases#list-releases>

use super::GitHub;
use super::error::Result;
use super::exchange::Idempotent;
use super::governor::Principal;
use super::request::Request;
use crate::domain::runner_version::RunnerRelease;
use chrono::{DateTime, Utc};
use secrecy::SecretString;
use serde::Deserialize;

/// Releases that are asked for: more than a year of them.
const WANTED: usize = 30;
/// Whose budget is drawn on: nobody's, since the list is public and no token is needed. No installation has this id.
const NOBODY: Principal = Some(0);

#[derive(Deserialize)]
struct WireRelease {
    tag_name: String,
    #[serde(default)]
    draft: bool,
    #[serde(default)]
    prerelease: bool,
    published_at: Option<DateTime<Utc>>,
}

impl GitHub {
    /// The newest releases of the runner. A GitHub Enterprise Server has no such repository unless somebody
    /// copied it there: [`super::GitHubError::NotFound`].
    ///
    /// # Errors
    /// When GitHub does not answer with a list.
    pub async fn runner_releases(&self) -> Result<Vec<RunnerRelease>> {
        let request = Request::get("/repos/{owner}/{repo}/releases", &["actions", "runner"])
            .query("per_page", WANTED)
            .anonymous();
        let nothing = SecretString::default();
        let call = || -> futures_util::future::BoxFuture<'_, Result<_>> {
            Box::pin(self.exchange(NOBODY, &request, &nothing))
        };
        let answer = self.retry(&request, Idempotent::Yes, call).await?;
        let listed: Vec<WireRelease> = answer.json()?;
        let of_ours = |release: WireRelease| {
            let usable = !release.draft && !release.prerelease;
            Some(RunnerRelease {
                version: release.tag_name.parse().ok().filter(|_| usable)?,
                published_at: release.published_at?,
            })
        };
        Ok(listed.into_iter().filter_map(of_ours).collect())
    }
}
