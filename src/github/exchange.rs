//! One exchange with GitHub: admitted, sent, noted, and its status turned into a typed error.

use super::GitHub;
use super::error::{Credential, Denial, GitHubError, Refusal, Result};
use super::governor::{Limit, Principal};
use super::request::{Method, Request};
use super::transport::Answer;
use backon::{ExponentialBuilder, Retryable as _};
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use hyper::http::Uri;
use hyper::http::header::LOCATION;
use secrecy::SecretString;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

/// Tries after the first, of a call that may be repeated.
const MAX_RETRIES: usize = 2;
/// Before the first of them; jitter comes on top.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(200);
/// Before any of them.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(2);
/// A clock that is off by less is not what a 401 is about: GitHub's `Date` has whole seconds, and
/// a JWT's start lies a minute back.
const TOLERATED_SKEW: TimeDelta = TimeDelta::seconds(30);

/// Whether a call may be sent again when it is not known what became of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Idempotent {
    Yes,
    No,
}

/// How far this machine's clock is from GitHub's, by the last answer.
pub(super) struct GitHubClock {
    /// Milliseconds that this machine is ahead.
    ahead_ms: AtomicI64,
}

impl GitHubClock {
    pub(super) const fn new() -> Self {
        Self { ahead_ms: AtomicI64::new(0) }
    }

    fn observe(&self, answer: &Answer) {
        if let Some(date) = answer.header("date").and_then(|text| DateTime::parse_from_rfc2822(text).ok()) {
            let ahead = Utc::now().signed_duration_since(date);
            self.ahead_ms.store(ahead.num_milliseconds(), Ordering::Relaxed);
        }
    }

    /// This machine's lead.
    pub(super) fn ahead(&self) -> TimeDelta {
        TimeDelta::milliseconds(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// The time at GitHub.
    pub(super) fn github_now(&self) -> DateTime<Utc> {
        Utc::now() - self.ahead()
    }
}

impl GitHub {
    /// Sends a request once, wherever its repository is by now.
    pub(super) async fn exchange(
        &self,
        principal: Principal,
        request: &Request,
        bearer: &SecretString,
    ) -> Result<Answer> {
        let answer = self.send_admitted(principal, request, bearer).await?;
        let Some(moved) = self.moved(request, &answer) else { return self.judge(principal, request, answer) };
        let answer = self.send_admitted(principal, &moved, bearer).await?;
        self.judge(principal, &moved, answer)
    }

    async fn send_admitted(&self, principal: Principal, request: &Request, bearer: &SecretString) -> Result<Answer> {
        let permit = self.inner.governor.admit(principal, request).await?;
        let began = Instant::now();
        let answer = self.inner.transport.send(request, bearer).await;
        drop(permit);
        if let Some(on_call) = &self.inner.on_call {
            on_call(request.template, answer.as_ref().map_or(0, |answer| answer.status), began.elapsed());
        }
        match &answer {
            Ok(answer) => {
                self.inner.clock.observe(answer);
                tracing::debug!(
                    http.method = request.method.as_str(),
                    http.route = request.template,
                    http.status = answer.status,
                    github.request_id = answer.call.request_id.as_deref(),
                    "GitHub answered"
                );
            }
            Err(error) => tracing::debug!(error = %error, "no answer from GitHub"),
        }
        answer
    }

    /// The same request at the place that GitHub redirects to after a rename, if that is the API's
    /// `/repositories/{id}/…` on the server that the token is for. The token is narrowed to one
    /// repository's id, so that a redirect cannot lead to another's.
    fn moved(&self, request: &Request, answer: &Answer) -> Option<Request> {
        let method_stays = matches!(answer.status, 307 | 308);
        let may_follow = method_stays || (matches!(answer.status, 301 | 302) && request.method == Method::Get);
        if !may_follow {
            return None;
        }
        let location: Uri = answer.headers.get(LOCATION)?.to_str().ok()?.parse().ok()?;
        let path = location.path().strip_prefix(self.inner.transport.root())?;
        if !self.inner.transport.is_same_server(&location) || !path.starts_with("/repositories/") {
            return None;
        }
        Some(request.clone().moved_to(path))
    }

    /// An answer below 400 (304 is one), or the error that its status stands for.
    fn judge(&self, principal: Principal, request: &Request, answer: Answer) -> Result<Answer> {
        let limit = Limit {
            status: answer.status,
            headers: &answer.headers,
            body: &answer.body,
            github_now: self.inner.clock.github_now(),
        };
        if let Some(until) = self.inner.governor.observe(principal, request, &limit) {
            return Err(GitHubError::RateLimited { call: answer.call, until });
        }
        if (200..300).contains(&answer.status) || answer.status == 304 {
            return Ok(answer);
        }
        Err(refusal(&answer, principal, self.inner.clock.ahead()))
    }

    /// Runs `call`, again if it may be repeated and another try may help. A token that could not be
    /// had was tried for already.
    ///
    /// Boxed futures, since the compiler cannot tell that those of an async closure are `Send`.
    pub(super) async fn retry<'a>(
        &'a self,
        request: &Request,
        idempotent: Idempotent,
        call: impl Fn() -> BoxFuture<'a, Result<Answer>> + Send,
    ) -> Result<Answer> {
        if idempotent == Idempotent::No {
            return call().await;
        }
        let pauses = ExponentialBuilder::default()
            .with_min_delay(MIN_RETRY_DELAY)
            .with_max_delay(MAX_RETRY_DELAY)
            .with_max_times(MAX_RETRIES)
            .with_jitter();
        let worth_it = |error: &GitHubError| {
            matches!(error, GitHubError::Server { .. } | GitHubError::Network { .. })
                && error.call().route == request.template
        };
        call.retry(pauses).when(worth_it).await
    }
}

/// What a status from 300 on means. The body is looked into for GitHub's fixed phrases, and dropped.
fn refusal(answer: &Answer, principal: Principal, ahead: TimeDelta) -> GitHubError {
    let call = answer.call.clone();
    let text = String::from_utf8_lossy(&answer.body).to_lowercase();
    let says = |phrase: &str| text.contains(phrase);
    match answer.status {
        401 => GitHubError::Unauthorized { call, cause: credential(principal, &text, ahead) },
        403 if says("suspended") => GitHubError::InstallationSuspended { call },
        403 => GitHubError::Forbidden { call, reason: denial(&text) },
        404 | 410 => GitHubError::NotFound { call },
        300..=399 => GitHubError::Moved { call },
        409 => GitHubError::NameTaken { call },
        422 if says("permissions requested") => GitHubError::Forbidden { call, reason: Denial::MissingPermission },
        422 if says("accessible to the parent installation") => GitHubError::NotFound { call },
        422 if says("already exists") => GitHubError::NameTaken { call },
        422 if says("max limit") => GitHubError::Invalid { call, reason: Refusal::TooManyRunners },
        500.. => GitHubError::Server { call },
        _ => GitHubError::Invalid { call, reason: Refusal::Other },
    }
}

fn credential(principal: Principal, text: &str, ahead: TimeDelta) -> Credential {
    if principal.is_some() {
        Credential::Token
    } else if ahead.abs() > TOLERATED_SKEW && !text.contains("could not be decoded") {
        Credential::ClockSkew { ahead_s: ahead.num_seconds() }
    } else {
        Credential::AppKey
    }
}

fn denial(text: &str) -> Denial {
    if text.contains("self-hosted runners are disabled") {
        Denial::OrgForbidsRepoRunners
    } else if text.contains("not accessible by integration") {
        Denial::MissingPermission
    } else if text.contains("ip allow list") {
        Denial::IpNotAllowed
    } else {
        Denial::Other
    }
}
