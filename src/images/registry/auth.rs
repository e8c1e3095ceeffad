//! What a registry asks for before it answers: a password, or a token that another place gives for it.
//! <https://distribution.github.io/distribution/spec/auth/token/>

use super::credentials::Login;
use super::exchange::RegistryError;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Client, StatusCode, Url};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use zeroize::Zeroizing;

/// Most bytes of the answer that holds a token.
const ANSWER_LIMIT: usize = 256 << 10;

/// What a registry asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Challenge {
    /// User and password with each call.
    Basic,
    /// A token from `realm`.
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    /// The challenge that we can meet, of those in `WWW-Authenticate`: a token rather than the password.
    pub fn choose<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Self> {
        let known: Vec<Self> = headers.filter_map(Self::parse).collect();
        known.iter().find(|challenge| **challenge != Self::Basic).or_else(|| known.first()).cloned()
    }

    fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, None);
        for (key, value) in parameters(rest) {
            match key.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                // The scope that is asked for is ours to choose.
                _ => {}
            }
        }
        Some(Self::Bearer { realm: realm?, service })
    }
}

/// `key="value", key=value`; a value in quotes may hold commas.
fn parameters(mut text: &str) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    while let Some((key, rest)) = text.split_once('=') {
        let (value, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(',').map_or((rest, ""), |(value, after)| (value, after)),
        };
        found.push((key.trim_matches([' ', ',']), value.trim().to_owned()));
        text = after;
    }
    found
}

#[derive(Deserialize)]
struct Answer {
    token: Option<SecretString>,
    access_token: Option<SecretString>,
}

/// Fetches a token; with a login as that user, else as anybody.
pub(super) async fn fetch_token(
    http: &Client,
    mut realm: Url,
    service: Option<&str>,
    scope: &str,
    login: Option<&Login>,
) -> Result<HeaderValue, RegistryError> {
    let host = realm.host_str().unwrap_or_default().to_owned();
    if let Some(service) = service {
        realm.query_pairs_mut().append_pair("service", service);
    }
    realm.query_pairs_mut().append_pair("scope", scope);
    let mut request = http.get(realm);
    if let Some(login) = login {
        request = request.header(AUTHORIZATION, login.basic());
    }
    let unreachable = |error| RegistryError::unreachable(&host, error);
    let mut response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        return Err(RegistryError::Busy { host, status, doing: "fetching a token" });
    }
    if !status.is_success() {
        return Err(RegistryError::Unauthorised { host, status });
    }
    let strange = || RegistryError::Strange { host: host.clone(), what: "no token" };
    let mut bytes = Zeroizing::new(Vec::new());
    while let Some(piece) = response.chunk().await.map_err(unreachable)? {
        if bytes.len() + piece.len() > ANSWER_LIMIT {
            return Err(strange());
        }
        bytes.extend_from_slice(&piece);
    }
    let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| strange())?;
    let token = answer.token.or(answer.access_token).ok_or_else(strange)?;
    let text = Zeroizing::new(format!("Bearer {}", token.expose_secret()));
    let mut header = HeaderValue::from_str(&text).map_err(|_| strange())?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_preferred_to_the_password() {
        let bearer = r#"Bearer realm="https://ghcr.io/token",service="ghcr.io",scope="repository:a/b:pull,push""#;
        let expected = Challenge::Bearer { realm: "https://ghcr.io/token".into(), service: Some("ghcr.io".into()) };
        assert_eq!(Challenge::choose(["Basic realm=\"x\"", bearer].into_iter()), Some(expected));
        assert_eq!(Challenge::choose(["basic"].into_iter()), Some(Challenge::Basic));
        assert_eq!(Challenge::choose(["Negotiate", "Bearer service=x"].into_iter()), None);
    }

    #[test]
    fn parameters_are_read_with_and_without_quotes() {
        let read = parameters(r#"realm="a,b", service=c ,x="unclosed"#);
        assert_eq!(read, [("realm", "a,b".to_owned()), ("service", "c".into()), ("x", "unclosed".into())]);
    }
}
