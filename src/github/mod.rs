//! The only code that speaks to GitHub.
//!
//! Owns: the App's key and the tokens made with it, the limits, what an answer means. Does not own:
//! what is done about it (mint, intake, upkeep), nor anything stored.
//!
//! Built on octocrab for signing and for carrying requests. Its typed calls are not used: they
//! refuse answers that GitHub documents (a job without `run_attempt`), fetch a token per waiting
//! call, send a POST again after a 5xx, and their errors quote URLs and bodies, which hold
//! customers' names. What stands in their place, from the wire up:
//!
//! | file | owns |
//! |---|---|
//! | `request` | a request as a value, with the route's template beside the filled path |
//! | `transport` | connections, TLS, proxy, deadlines, size bounds |
//! | `governor` | GitHub's limits, shared by all calls |
//! | `exchange` | a status becomes a typed error; retries; renames |
//! | `auth`, `once` | JWTs and installation tokens, each fetched once however many wait |
//! | `permission` | what the App asks for, and why |
//! | `app`, `runners`, `groups`, `jobs`, `releases`, `meta` | the calls |

mod app;
mod auth;
mod error;
mod exchange;
mod governor;
mod groups;
mod jobs;
mod lenient;
mod meta;
mod once;
mod permission;
mod releases;
mod request;
mod runners;
mod transport;

pub use app::{App, Deliveries, Delivery, DeliveryDetail, Installation, Payload, Repository};
pub use auth::is_app_key;
pub use error::{Call, Credential, Denial, GitHubError, NetworkFault, OptionsError, Refusal, Result, Unreadable};
pub use governor::HeldBudget;
pub use jobs::{JobInfo, OpenJobs, RunInfo};
pub use lenient::Name;
pub use permission::{Access, EVENTS, PERMISSIONS, Permission, Scope, missing_events, missing_permissions};
pub use request::RepositoryRef;
pub use runners::{Minted, Removal, RunnerInfo, Runners};

use secrecy::SecretString;
use std::sync::Arc;
use std::time::Duration;

/// GitHub's id of an installation.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct InstallationId(pub u64);

impl std::fmt::Debug for InstallationId {
    /// Anyone can resolve the id to an account: it stays out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InstallationId(…)")
    }
}

/// Calls that GitHub holds back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hold {
    /// Whose; `None`: the App's own.
    pub installation: Option<InstallationId>,
    /// Which.
    pub budget: HeldBudget,
    /// For how long from now.
    pub wait: Duration,
}

/// How to reach GitHub, and as whom.
pub struct Options {
    /// `https://api.github.com`, or `https://HOST/api/v3` of an Enterprise Server.
    pub api_url: String,
    /// The App's id.
    pub app_id: u64,
    /// The App's RSA key, PEM.
    pub private_key: SecretString,
    /// The key before it, tried when GitHub does not know the current one (yet).
    pub previous_private_key: Option<SecretString>,
    /// Certificates (PEM) that GitHub's must be signed by; `None`: the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// `http://[USER:PASSWORD@]HOST:PORT` of a proxy that knows CONNECT.
    pub proxy_url: Option<SecretString>,
    /// What GitHub sees as the client, for example `flyci/0.1.0`.
    pub user_agent: String,
    /// Whether runner groups that are made serve public repositories; decided for new groups only.
    pub public_repositories: bool,
    /// Told of every call, for the metrics.
    pub on_call: Option<OnCall>,
}

/// Is told of a call: its route template, the status (0: no answer), and how long it took.
pub type OnCall = Arc<dyn Fn(&'static str, u16, Duration) + Send + Sync>;

/// GitHub, as the App sees it. Cheap to clone; all clones share tokens, connections and limits.
#[derive(Clone)]
pub struct GitHub {
    inner: Arc<Inner>,
}

struct Inner {
    transport: transport::Transport,
    keys: auth::AppKeys,
    tokens: auth::Tokens,
    groups: groups::Groups,
    governor: governor::Governor,
    clock: exchange::GitHubClock,
    on_call: Option<OnCall>,
    public_repositories: bool,
}

impl std::fmt::Debug for GitHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GitHub(…)")
    }
}

impl GitHub {
    /// A client. Sends nothing yet. Call it inside a Tokio runtime: octocrab starts a task.
    ///
    /// # Errors
    /// When an option cannot be used; the message names the configuration key.
    pub fn new(options: &Options) -> std::result::Result<Self, OptionsError> {
        let wire = transport::Wire {
            api_url: &options.api_url,
            ca_pem: options.ca_pem.as_deref(),
            proxy_url: options.proxy_url.as_ref(),
            user_agent: &options.user_agent,
        };
        let inner = Inner {
            transport: transport::Transport::new(&wire)?,
            keys: auth::AppKeys::new(options.app_id, &options.private_key, options.previous_private_key.as_ref())?,
            tokens: auth::Tokens::new(),
            groups: groups::Groups::new(),
            governor: governor::Governor::new(),
            clock: exchange::GitHubClock::new(),
            on_call: options.on_call.clone(),
            public_repositories: options.public_repositories,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What GitHub holds back now, and for how long: for the other gateways to know.
    #[must_use]
    pub fn holds(&self) -> Vec<Hold> {
        let now = tokio::time::Instant::now();
        let all = self.inner.governor.holds().into_iter().map(|held| Hold {
            installation: held.who.map(InstallationId),
            budget: held.what,
            wait: held.until.saturating_duration_since(now),
        });
        all.collect()
    }

    /// Holds calls back, as another gateway was told to.
    pub fn hold(&self, hold: &Hold) {
        self.inner.governor.hold(hold.installation.map(|id| id.0), hold.budget, hold.wait);
    }

    /// Seconds that this machine's clock is ahead of GitHub's (negative: behind), by the last
    /// answer; 0 before the first.
    #[must_use]
    pub fn clock_ahead_s(&self) -> i64 {
        self.inner.clock.ahead().num_seconds()
    }
}
