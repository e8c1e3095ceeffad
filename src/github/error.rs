//! Why GitHub did not do what was asked: a closed list that says what to do next.
//!
//! The one redacting boundary for GitHub: an error names the method, the route's template, the
//! status and GitHub's request id. It never holds a URL, a name or a piece of an answer's body.

use chrono::{DateTime, Utc};
use std::fmt;

/// Longest request id that is kept; GitHub's have about 40 characters.
const MAX_REQUEST_ID_CHARS: usize = 64;

/// Where tokens come from: the one POST that leaves nothing behind.
pub(super) const TOKEN_ROUTE: &str = "/app/installations/{installation_id}/access_tokens";

/// Which call an error is about, in words that identify no customer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// The HTTP method.
    pub method: &'static str,
    /// The route as GitHub's documentation writes it, with its placeholders.
    pub route: &'static str,
    /// The answer's status, when there was an answer.
    pub status: Option<u16>,
    /// What GitHub's support asks for, when there was an answer.
    pub request_id: Option<String>,
}

impl Call {
    /// A call without an answer (yet).
    pub(super) const fn new(method: &'static str, route: &'static str) -> Self {
        Self { method, route, status: None, request_id: None }
    }

    /// The same call, answered. An id that is not of the usual shape is dropped: it is input.
    pub(super) fn answered(mut self, status: u16, request_id: Option<&str>) -> Self {
        let usual = |id: &&str| {
            id.len() <= MAX_REQUEST_ID_CHARS && id.chars().all(|c| c.is_ascii_hexdigit() || c == ':' || c == '-')
        };
        self.status = Some(status);
        self.request_id = request_id.filter(usual).map(str::to_owned);
        self
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.route)?;
        match (self.status, &self.request_id) {
            (Some(status), Some(id)) => write!(f, " (status {status}, GitHub's request {id})"),
            (Some(status), None) => write!(f, " (status {status})"),
            (None, _) => Ok(()),
        }
    }
}

/// What is wrong with a credential.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Credential {
    /// This machine's clock is off, so that GitHub takes our JWT for expired or for not yet valid.
    /// Seconds by which this machine is ahead of GitHub (negative: behind).
    ClockSkew { ahead_s: i64 },
    /// The App's key is not (any more) one that GitHub knows for this App.
    AppKey,
    /// An installation token, and the fresh one after it.
    Token,
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClockSkew { ahead_s } if *ahead_s >= 0 => {
                write!(f, "this machine's clock is {ahead_s} s ahead of GitHub's: set it right (NTP)")
            }
            Self::ClockSkew { ahead_s } => {
                write!(f, "this machine's clock is {} s behind GitHub's: set it right (NTP)", ahead_s.unsigned_abs())
            }
            Self::AppKey => f.write_str("check that github.app_id and github.private_key_file are of one App"),
            Self::Token => f.write_str("a fresh installation token was refused too: is the App still installed?"),
        }
    }
}

/// Why GitHub forbade a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Denial {
    /// The organisation's policy forbids runners on single repositories.
    OrgForbidsRepoRunners,
    /// The App lacks a permission, or the account has not accepted the App's newer permissions.
    MissingPermission,
    /// The organisation only admits listed IP addresses.
    IpNotAllowed,
    /// The runner group that is ours by its name holds not exactly the one repository.
    GroupNotExclusive,
    /// GitHub gave no reason that we know.
    Other,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OrgForbidsRepoRunners => {
                "the organisation's Actions policy disables runners on repositories: its owner can allow them, \
                 or set github.runner_scope to \"organization-group\""
            }
            Self::MissingPermission => {
                "the App lacks a permission for it: add it in the App's settings, and have the account accept it"
            }
            Self::IpNotAllowed => "the organisation's IP allow list does not hold this gateway's address",
            Self::GroupNotExclusive => {
                "the repository's runner group does not hold exactly that one repository: delete the group"
            }
            Self::Other => "GitHub gave no reason that flyci knows",
        })
    }
}

/// What GitHub found wrong with what was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The runner group or repository holds as many runners as GitHub allows.
    TooManyRunners,
    /// Anything else; on the removal of a runner: it has a job.
    Other,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooManyRunners => "it has as many runners as GitHub allows",
            Self::Other => "GitHub found the request invalid",
        })
    }
}

/// Why an answer could not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreadable {
    /// More bytes than an answer of this route may have.
    TooLarge { limit_bytes: usize },
    /// Not JSON, or cut off.
    Syntax { line: usize, column: usize },
    /// JSON of another shape than GitHub documents.
    Shape { line: usize, column: usize },
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { limit_bytes } => write!(f, "it has more than {limit_bytes} bytes"),
            Self::Syntax { line, column } => write!(f, "it is not JSON at line {line}, column {column}"),
            Self::Shape { line, column } => {
                write!(f, "it is not of the documented shape at line {line}, column {column}")
            }
        }
    }
}

/// Where a connection failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NetworkFault {
    /// No connection: name resolution, TCP, proxy or TLS. GitHub saw nothing of the call.
    Connect,
    /// The deadline passed; GitHub may have done what was asked.
    Timeout,
    /// The connection broke; GitHub may have done what was asked.
    Broken,
}

impl fmt::Display for NetworkFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "GitHub cannot be reached",
            Self::Timeout => "GitHub did not answer in time",
            Self::Broken => "the connection to GitHub broke",
        })
    }
}

/// Why a call did not do what it was for.
///
/// `Clone`, since one failed token request fails all who waited for it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GitHubError {
    /// A limit of GitHub's holds calls of this installation back. Nothing was sent, or GitHub did nothing.
    #[error("GitHub's rate limit holds {call} back until {}", until.format("%Y-%m-%dT%H:%M:%SZ"))]
    RateLimited { call: Call, until: DateTime<Utc> },
    /// 401.
    #[error("GitHub did not accept flyci's credential for {call}: {cause}")]
    Unauthorized { call: Call, cause: Credential },
    /// 403.
    #[error("GitHub forbids {call}: {reason}")]
    Forbidden { call: Call, reason: Denial },
    /// The account suspended the App.
    #[error("the installation is suspended, so GitHub refused {call}: the account's owner can lift that")]
    InstallationSuspended { call: Call },
    /// 404: gone, or not within reach of the installation.
    #[error("GitHub knows nothing under {call}, or the installation does not reach it")]
    NotFound { call: Call },
    /// A redirect to where the token must not be sent: the repository moved to another account or
    /// the API to another server.
    #[error(
        "GitHub says that what {call} is about moved out of reach: is github.api_url right, is the App installed there?"
    )]
    Moved { call: Call },
    /// 409: a registration of this name exists, perhaps from a call whose answer was lost.
    #[error("GitHub has the name already: {call}")]
    NameTaken { call: Call },
    /// 422.
    #[error("GitHub refused {call}: {reason}")]
    Invalid { call: Call, reason: Refusal },
    /// 5xx: GitHub may have done what was asked.
    #[error("GitHub failed at {call}")]
    Server { call: Call },
    /// No whole answer.
    #[error("{fault} for {call}: {detail}")]
    Network { call: Call, fault: NetworkFault, detail: String },
    /// An answer that is not what GitHub documents.
    #[error("the answer to {call} cannot be used: {what}")]
    Decode { call: Call, what: Unreadable },
    /// Nothing was sent: what was given cannot be part of a request.
    #[error("{call} was not sent: {what}")]
    Input { call: Call, what: &'static str },
}

impl GitHubError {
    /// True when the same call may succeed later with nobody doing anything. It says nothing on
    /// whether GitHub did the work already: a POST is looked up before it is made again.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Server { .. } | Self::Network { .. } => true,
            Self::Unauthorized { .. }
            | Self::Forbidden { .. }
            | Self::InstallationSuspended { .. }
            | Self::NotFound { .. }
            | Self::Moved { .. }
            | Self::NameTaken { .. }
            | Self::Invalid { .. }
            | Self::Decode { .. }
            | Self::Input { .. } => false,
        }
    }

    /// True when GitHub may have done what was asked although the call failed: a mint's name must
    /// then be looked up before anything else. False when only the token for it was not to be had.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        let call = self.call();
        if call.method == "GET" || call.route == TOKEN_ROUTE {
            return false;
        }
        match self {
            Self::Server { .. } | Self::Decode { .. } | Self::NameTaken { .. } => true,
            Self::Network { fault, .. } => !matches!(fault, NetworkFault::Connect),
            Self::RateLimited { .. }
            | Self::Unauthorized { .. }
            | Self::Forbidden { .. }
            | Self::InstallationSuspended { .. }
            | Self::NotFound { .. }
            | Self::Moved { .. }
            | Self::Invalid { .. }
            | Self::Input { .. } => false,
        }
    }

    /// The call that failed.
    #[must_use]
    pub const fn call(&self) -> &Call {
        match self {
            Self::RateLimited { call, .. }
            | Self::Unauthorized { call, .. }
            | Self::Forbidden { call, .. }
            | Self::InstallationSuspended { call }
            | Self::NotFound { call }
            | Self::Moved { call }
            | Self::NameTaken { call }
            | Self::Invalid { call, .. }
            | Self::Server { call }
            | Self::Network { call, .. }
            | Self::Decode { call, .. }
            | Self::Input { call, .. } => call,
        }
    }
}

/// What every call answers with.
pub type Result<T> = std::result::Result<T, GitHubError>;

/// What is wrong with the options of a client.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// Not a URL that a token may be sent to.
    #[error("github.api_url must be an https:// URL (http:// only on this machine's loopback)")]
    ApiUrl,
    /// Not an RSA key.
    #[error("{which} is no RSA private key in PEM form: download a new one from the App's settings")]
    PrivateKey { which: &'static str },
    /// Not certificates.
    #[error("github.ca_file holds no certificate in PEM form that can be used")]
    Ca,
    /// The machine's own certificates could not be loaded.
    #[error("the system's root certificates cannot be loaded: install them (ca-certificates), or set github.ca_file")]
    SystemRoots(#[source] std::io::Error),
    /// Not a proxy that can be used.
    #[error("github.proxy_url must be like http://[USER:PASSWORD@]HOST:PORT")]
    Proxy,
    /// Not a header value.
    #[error("the user agent has characters that HTTP does not allow")]
    UserAgent,
}
