//! One request as a value: template, filled path, body, bounds. No I/O.
//!
//! Whatever goes into a path was checked against the characters that GitHub allows in names, so
//! that no name can reach another route.

use super::error::{Call, GitHubError, Result};
use std::fmt;
use std::fmt::Write as _;

/// Most bytes of an answer; a page of a hundred runners has about 60 kB.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// Longest owner or repository name; GitHub's own limits are 39 and 100.
const MAX_NAME_CHARS: usize = 100;

/// The methods that are used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Method {
    Get,
    Post,
    Delete,
}

impl Method {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }

    /// What GitHub's secondary limit counts a call of this method as.
    /// <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#calculating-points-for-the-secondary-rate-limit>
    pub(super) const fn points(self) -> u32 {
        match self {
            Self::Get => 1,
            Self::Post | Self::Delete => 5,
        }
    }
}

/// Which of GitHub's hourly budgets a call draws on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Budget {
    /// `core`.
    Core,
    /// `actions_runner_registration`.
    RunnerRegistration,
}

/// A request that may be sent more than once.
#[derive(Clone)]
pub(super) struct Request {
    pub method: Method,
    /// The route as documented: what errors, logs and limits know it by.
    pub template: &'static str,
    /// The template filled in. Holds names: never shown.
    path: String,
    query: String,
    pub body: Option<Vec<u8>>,
    pub etag: Option<String>,
    pub budget: Budget,
    /// Sent without a token: what it asks for is public.
    pub anonymous: bool,
    /// Most bytes of the answer.
    pub limit_bytes: usize,
}

impl Request {
    /// `template` with its placeholders filled by `arguments` in order.
    pub(super) fn new(method: Method, template: &'static str, arguments: &[&str]) -> Self {
        let mut path = String::with_capacity(template.len() + 64);
        let mut arguments = arguments.iter();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            let (_, after) = after.split_once('}').expect("templates are constants, each brace has its pair");
            path.push_str(before);
            path.push_str(arguments.next().expect("each placeholder has its argument"));
            rest = after;
        }
        path.push_str(rest);
        debug_assert!(arguments.next().is_none(), "each argument has its placeholder");
        Self {
            method,
            template,
            path,
            query: String::new(),
            body: None,
            etag: None,
            budget: Budget::Core,
            anonymous: false,
            limit_bytes: MAX_ANSWER_BYTES,
        }
    }

    pub(super) fn get(template: &'static str, arguments: &[&str]) -> Self {
        Self::new(Method::Get, template, arguments)
    }

    pub(super) fn post(template: &'static str, arguments: &[&str]) -> Self {
        Self::new(Method::Post, template, arguments)
    }

    /// With one more query parameter; the value may be anything.
    pub(super) fn query(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.query.push(if self.query.is_empty() { '?' } else { '&' });
        self.query.push_str(name);
        self.query.push('=');
        percent_encode(&mut self.query, &value.to_string());
        self
    }

    pub(super) fn json(mut self, body: &serde_json::Value) -> Self {
        self.body = Some(body.to_string().into_bytes());
        self
    }

    pub(super) const fn anonymous(mut self) -> Self {
        self.anonymous = true;
        self
    }

    pub(super) fn budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    pub(super) fn etag(mut self, etag: Option<&str>) -> Self {
        self.etag = etag.map(str::to_owned);
        self
    }

    pub(super) fn limit_bytes(mut self, limit: usize) -> Self {
        self.limit_bytes = limit;
        self
    }

    /// The same request at another path.
    pub(super) fn moved_to(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    pub(super) fn path_and_query(&self) -> String {
        format!("{}{}", self.path, self.query)
    }

    /// What an error about this request says of it.
    pub(super) const fn call(&self) -> Call {
        Call::new(self.method.as_str(), self.template)
    }
}

fn percent_encode(into: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            into.push(char::from(byte));
        } else {
            write!(into, "%{byte:02X}").expect("a String takes what is written");
        }
    }
}

/// A repository as GitHub names it: the id that stays, and the name that routes need.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RepositoryRef<'a> {
    /// GitHub's id.
    pub id: u64,
    /// `owner/name`, as last heard of. After a rename GitHub redirects from the old one.
    pub full_name: &'a str,
}

impl fmt::Debug for RepositoryRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RepositoryRef(…)")
    }
}

impl<'a> RepositoryRef<'a> {
    /// Owner and name.
    pub(super) fn split(&self, call: Call) -> Result<(&'a str, &'a str)> {
        self.full_name
            .split_once('/')
            .filter(|(owner, name)| is_name(owner) && is_name(name))
            .ok_or(GitHubError::Input { call, what: "the repository's stored name is not of the form owner/name" })
    }
}

/// True for what can be a segment of a path without being taken for anything else.
pub(super) fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.len() <= MAX_NAME_CHARS && text != "." && text != ".." && text.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_in_order_and_queries_encoded() {
        let request = Request::get("/repos/{owner}/{repo}/actions/runners/{runner_id}", &["acme", "app", "7"])
            .query("name", "a b&c")
            .query("page", 2);
        assert_eq!(request.path_and_query(), "/repos/acme/app/actions/runners/7?name=a%20b%26c&page=2");
    }

    #[test]
    fn a_name_cannot_reach_another_route() {
        for name in
            ["acme", "acme/", "/app", "acme/../app", "acme/..", "acme/a b", "acme/a?x", "a/b/c", "acme/a%2f", ""]
        {
            let repository = RepositoryRef { id: 1, full_name: name };
            assert!(repository.split(Call::new("GET", "/")).is_err(), "{name}");
        }
        let repository = RepositoryRef { id: 1, full_name: "acme-x/.github_2" };
        assert_eq!(repository.split(Call::new("GET", "/")).expect("a name"), ("acme-x", ".github_2"));
    }
}
