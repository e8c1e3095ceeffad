//! Who calls: the App by its JWT, an installation by its token; and what each may do.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Duration, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;

use super::World;
use super::model::{Installed, Repository};
use crate::secret::{digest, random_token};

/// How long an installation token lives, in minutes.
const TOKEN_MINUTES: i64 = 60;
/// How far ahead a JWT's `exp` may lie, in seconds; GitHub documents ten minutes.
const JWT_LIMIT_S: i64 = 600;
/// How far ahead a JWT's `iat` may lie, in seconds.
const JWT_SKEW_S: i64 = 60;

/// An installation's token.
#[derive(Clone, Debug)]
pub struct Token {
    /// Whose it is.
    pub installation: u64,
    /// What it may do.
    pub permissions: BTreeMap<String, String>,
    /// Where; absent: wherever the installation reaches.
    pub repositories: Option<BTreeSet<u64>>,
    /// Until when.
    pub expires_at: DateTime<Utc>,
}

/// Why a call is refused, with GitHub's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// HTTP status.
    pub status: u16,
    /// `message` of the body.
    pub message: String,
}

impl Refused {
    /// A refusal with a status and a message.
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 404, GitHub's answer to whatever the caller may not know of.
    pub fn not_found() -> Self {
        Self::new(404, "Not Found")
    }

    /// 403, the caller's permissions do not reach.
    pub fn permission() -> Self {
        Self::new(403, "Resource not accessible by integration")
    }
}

const UNDECODABLE: &str = "A JSON web token could not be decoded";

impl World {
    /// Checks an App's JWT: RS256 by the App's key, `iat` not ahead, `exp` ahead by ten minutes at most, `iss` the App.
    pub fn check_jwt(&self, jwt: &str, key: &DecodingKey) -> Result<(), Refused> {
        let mut rules = Validation::new(Algorithm::RS256);
        // GitHub's clock can be moved, so times are checked here and not by the library.
        rules.validate_exp = false;
        rules.required_spec_claims.clear();
        let claims =
            jsonwebtoken::decode::<Value>(jwt, key, &rules).map_err(|_| Refused::new(401, UNDECODABLE))?.claims;
        let now = self.now().timestamp();
        let iat = claims["iat"].as_i64().filter(|iat| *iat <= now + JWT_SKEW_S).ok_or_else(|| {
            Refused::new(
                401,
                "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued",
            )
        })?;
        let exp = claims["exp"].as_i64().filter(|exp| *exp > now).ok_or_else(|| {
            Refused::new(401, "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion expires")
        })?;
        if exp > now + JWT_LIMIT_S || exp - iat > JWT_LIMIT_S + JWT_SKEW_S {
            return Err(Refused::new(401, "'Expiration time' claim ('exp') is too far in the future"));
        }
        let iss = &claims["iss"];
        let app = iss.as_u64() == Some(self.app.id)
            || iss.as_str().is_some_and(|iss| iss == self.app.client_id || iss == self.app.id.to_string());
        if app { Ok(()) } else { Err(Refused::new(404, "Integration not found")) }
    }

    /// Makes a token for an installation, narrowed as asked.
    pub fn mint_token(
        &mut self,
        installation: u64,
        permissions: Option<BTreeMap<String, String>>,
        repositories: Option<BTreeSet<u64>>,
    ) -> Result<(String, Token), Refused> {
        let installed = self.installations.get(&installation).ok_or_else(Refused::not_found)?;
        if installed.suspended_at.is_some() {
            return Err(Refused::new(403, "This installation has been suspended"));
        }
        let permissions = narrow(installed, permissions)?;
        let reachable =
            |id: &u64| self.repositories.get(id).is_some_and(|r| r.selected && r.owner == installed.account);
        if repositories.as_ref().is_some_and(|ids| !ids.iter().all(reachable)) {
            let message =
                "There is at least one repository that does not exist or is not accessible to the parent installation.";
            return Err(Refused::new(422, message));
        }
        let secret = random_token("ghs_");
        let expires_at = self.now() + Duration::minutes(TOKEN_MINUTES);
        let token = Token { installation, permissions, repositories, expires_at };
        let now = self.now();
        self.tokens.retain(|_, t| t.expires_at > now);
        self.tokens.insert(digest(&secret), token.clone());
        Ok((secret, token))
    }

    /// The installation token behind a bearer.
    pub fn token(&self, bearer: &str) -> Result<&Token, Refused> {
        let bad = || Refused::new(401, "Bad credentials");
        let token = self.tokens.get(&digest(bearer)).filter(|t| t.expires_at > self.now()).ok_or_else(bad)?;
        let installed = self.installations.get(&token.installation).ok_or_else(bad)?;
        match installed.suspended_at {
            Some(_) => Err(Refused::new(403, "This installation has been suspended")),
            None => Ok(token),
        }
    }

    /// A repository that a token reaches, with a permission there.
    pub fn reach(&self, token: &Token, owner: &str, name: &str, need: (&str, &str)) -> Result<&Repository, Refused> {
        let repository = self.repository_named(owner, name).ok_or_else(Refused::not_found)?;
        let reached = self.installation_reaching(repository).is_some_and(|i| i.id == token.installation)
            && token.repositories.as_ref().is_none_or(|ids| ids.contains(&repository.id));
        if !reached {
            return Err(Refused::not_found());
        }
        token.allows(need)?;
        Ok(repository)
    }

    /// An organisation that a token reaches, with a permission there. Answers its account id.
    pub fn reach_org(&self, token: &Token, org: &str, need: (&str, &str)) -> Result<u64, Refused> {
        let account = self.account_named(org).ok_or_else(Refused::not_found)?;
        let reached = account.kind == super::model::AccountKind::Organization
            && self.installation_of(account.id).is_some_and(|i| i.id == token.installation);
        if !reached {
            return Err(Refused::not_found());
        }
        token.allows(need)?;
        Ok(account.id)
    }
}

impl Token {
    /// Checks a permission.
    pub fn allows(&self, (name, level): (&str, &str)) -> Result<(), Refused> {
        let has = self.permissions.get(name).map_or(0, |l| rank(l));
        if has >= rank(level) { Ok(()) } else { Err(Refused::permission()) }
    }
}

fn narrow(installed: &Installed, asked: Option<BTreeMap<String, String>>) -> Result<BTreeMap<String, String>, Refused> {
    let Some(mut asked) = asked else {
        return Ok(installed.permissions.clone());
    };
    let granted = |(name, level): (&String, &String)| {
        rank(level) > 0 && installed.permissions.get(name).is_some_and(|l| rank(l) >= rank(level))
    };
    if !asked.iter().all(granted) {
        return Err(Refused::new(422, "The permissions requested are not granted to this installation."));
    }
    // Every token can read metadata.
    asked.entry("metadata".into()).or_insert_with(|| "read".into());
    Ok(asked)
}

fn rank(level: &str) -> u8 {
    match level {
        "read" => 1,
        "write" => 2,
        "admin" => 3,
        _ => 0,
    }
}
