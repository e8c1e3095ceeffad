//! Keeps GitHub's published list of the addresses that its deliveries come from, and tells when `[web] allow`
//! wants it and there is none.

use crate::api::Trouble;
use crate::errors::chain;
use crate::github::{GitHub, GitHubError};
use crate::troubles::Troubles;
use crate::web::Sources;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the list is read. GitHub says of a change a week before.
pub const PERIOD: Duration = Duration::from_secs(60 * 60);
/// The key of a list that is wanted and not there.
const NO_LIST: &str = "github:hooks";

/// The look at GitHub's list.
pub struct HookList {
    /// GitHub.
    pub github: GitHub,
    /// What uses the list.
    pub sources: Arc<Sources>,
    /// What `status` shows.
    pub troubles: Arc<Troubles>,
}

impl HookList {
    /// Reads the list once.
    ///
    /// # Errors
    /// When GitHub does not tell it; the one before is used until it is too old.
    pub async fn pass(&self) -> Result<(), GitHubError> {
        let answer = self.github.hook_ranges().await;
        let now = Instant::now();
        if let Ok(ranges) = &answer {
            self.sources.set_github(ranges.clone(), now);
        }
        let missing = self.sources.lacks_list(now);
        self.troubles.set(NO_LIST, missing.then(|| no_list(answer.as_ref().err())));
        answer.map(|_| ())
    }
}

fn no_list(error: Option<&GitHubError>) -> Trouble {
    Trouble {
        what: "[web] allow = \"github\" keeps nobody out: GitHub's addresses are not known".to_owned(),
        evidence: error.map_or_else(|| "its list has no `hooks`".to_owned(), |error| chain(error).to_string()),
        fix: "is there a way from here to [github] api_url? An Enterprise Server publishes no list: keep strangers out by a firewall there, and remove the key".to_owned(),
    }
}
