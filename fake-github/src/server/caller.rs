//! Who calls, as the middleware found it, and the check that a handler makes of it.

use std::sync::Arc;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;

use crate::hub::Hub;
use crate::world::tokens::{Refused, Token};

/// The caller of a request.
#[derive(Clone)]
pub enum Caller {
    /// Nobody known: `/meta` and `/rate_limit` only.
    Nobody,
    /// The App, by its JWT.
    App,
    /// An installation, by its token.
    Installation(Arc<Token>),
}

impl Caller {
    /// Reads and checks the `authorization` header. 401 when it is there and wrong.
    pub fn of(hub: &Hub, headers: &HeaderMap) -> Result<Self, Refused> {
        let Some(value) = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()) else {
            return Ok(Self::Nobody);
        };
        let bearer = ["Bearer ", "bearer ", "token "].into_iter().find_map(|scheme| value.strip_prefix(scheme));
        let bearer = bearer.ok_or_else(|| Refused::new(401, "Bad credentials"))?;
        // A JWT has three parts; a token has no dot.
        if bearer.contains('.') {
            hub.read(|w| w.check_jwt(bearer, &hub.wiring.app_key)).map(|()| Self::App)
        } else {
            hub.read(|w| w.token(bearer).cloned()).map(|t| Self::Installation(Arc::new(t)))
        }
    }

    /// Whose rate limit is spent.
    pub fn budget_key(&self) -> String {
        match self {
            Self::Nobody => "nobody".into(),
            Self::App => "app".into(),
            Self::Installation(token) => token.installation.to_string(),
        }
    }

    /// Only the App may go on.
    pub fn app(&self) -> Result<(), Refused> {
        match self {
            Self::App => Ok(()),
            Self::Installation(_) => Err(Refused::new(401, "A JSON web token could not be decoded")),
            Self::Nobody => Err(Refused::new(401, "Requires authentication")),
        }
    }

    /// Only an installation may go on.
    pub fn installation(&self) -> Result<&Token, Refused> {
        match self {
            Self::Installation(token) => Ok(token),
            Self::App => Err(Refused::new(401, "Bad credentials")),
            Self::Nobody => Err(Refused::new(401, "Requires authentication")),
        }
    }
}
