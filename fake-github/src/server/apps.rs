//! The App and its installations: `/app`, installation tokens, which installation reaches what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Answer, created, ok, optional_body};
use super::caller::Caller;
use super::paging::Page;
use crate::hub::Hub;
use crate::shapes;
use crate::world::World;
use crate::world::tokens::Refused;

/// `GET /app`
pub async fn app(State(hub): State<Arc<Hub>>, Extension(caller): Extension<Caller>) -> Answer {
    caller.app()?;
    Ok(ok(hub.read(shapes::app)))
}

/// `GET /app/installations`
pub async fn list(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Query(page): Query<Page>,
) -> Answer {
    caller.app()?;
    let (shown, total, url) = hub.read(|w| {
        let shown: Vec<Value> = page.cut(w.installations.values()).iter().map(|i| shapes::installation(w, i)).collect();
        (shown, w.installations.len(), format!("{}/app/installations", w.api_url))
    });
    Ok(page.link(ok(Value::Array(shown)), &url, total))
}

/// `GET /app/installations/{installation_id}`
pub async fn one(State(hub): State<Arc<Hub>>, Extension(caller): Extension<Caller>, Path(id): Path<u64>) -> Answer {
    caller.app()?;
    hub.read(|w| w.installations.get(&id).map(|i| shapes::installation(w, i))).map(ok).ok_or_else(Refused::not_found)
}

/// `GET /repos/{owner}/{repo}/installation`
pub async fn of_repository(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path((owner, name)): Path<(String, String)>,
) -> Answer {
    caller.app()?;
    hub.read(|w| {
        let repository = w.repository_named(&owner, &name)?;
        w.installation_reaching(repository).map(|i| shapes::installation(w, i))
    })
    .map(ok)
    .ok_or_else(Refused::not_found)
}

/// `GET /orgs/{org}/installation`, `GET /users/{username}/installation`
pub async fn of_account(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path(login): Path<String>,
) -> Answer {
    caller.app()?;
    hub.read(|w| {
        let account = w.account_named(&login)?;
        w.installation_of(account.id).map(|i| shapes::installation(w, i))
    })
    .map(ok)
    .ok_or_else(Refused::not_found)
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenRequest {
    repositories: Option<Vec<String>>,
    repository_ids: Option<BTreeSet<u64>>,
    permissions: Option<BTreeMap<String, String>>,
}

/// `POST /app/installations/{installation_id}/access_tokens`
pub async fn access_token(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<u64>,
    bytes: Bytes,
) -> Answer {
    caller.app()?;
    let asked: TokenRequest = optional_body(&bytes)?;
    hub.change(|w| {
        let repositories = chosen(w, id, &asked)?;
        let (secret, token) = w.mint_token(id, asked.permissions, repositories)?;
        let mut shape = json!({
            "token": secret,
            "expires_at": shapes::time(token.expires_at),
            "permissions": token.permissions,
            "repository_selection": if token.repositories.is_some() { "selected" } else { "all" },
        });
        if let Some(ids) = &token.repositories {
            let named = ids.iter().filter_map(|id| w.repositories.get(id));
            shape["repositories"] = named.map(|r| shapes::repository(w, r)).collect();
        }
        Ok(created(shape))
    })
}

fn chosen(w: &World, installation: u64, asked: &TokenRequest) -> Result<Option<BTreeSet<u64>>, Refused> {
    let Some(names) = &asked.repositories else {
        return Ok(asked.repository_ids.clone());
    };
    let owner = w.installations.get(&installation).ok_or_else(Refused::not_found)?.account;
    let mut ids = asked.repository_ids.clone().unwrap_or_default();
    for name in names {
        let found = w.repositories.values().find(|r| r.owner == owner && r.name.eq_ignore_ascii_case(name));
        // Number 0 names no repository: the mint answers for names and ids alike.
        ids.insert(found.map_or(0, |r| r.id));
    }
    Ok(Some(ids))
}

/// `GET /installation/repositories`
pub async fn repositories(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Query(page): Query<Page>,
) -> Answer {
    let token = caller.installation()?;
    let (shown, total, url) = hub.read(|w| {
        let owner = w.installations.get(&token.installation).map(|i| i.account);
        let reached: Vec<_> = w
            .repositories
            .values()
            .filter(|r| Some(r.owner) == owner && r.selected)
            .filter(|r| token.repositories.as_ref().is_none_or(|ids| ids.contains(&r.id)))
            .collect();
        let shown: Vec<Value> = page.cut(reached.iter()).into_iter().map(|r| shapes::repository(w, r)).collect();
        (shown, reached.len(), format!("{}/installation/repositories", w.api_url))
    });
    let body = json!({ "total_count": total, "repository_selection": "all", "repositories": shown });
    Ok(page.link(ok(body), &url, total))
}

/// `GET /repos/{owner}/{repo}`
pub async fn repository(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path((owner, name)): Path<(String, String)>,
) -> Answer {
    let token = caller.installation()?;
    hub.read(|w| {
        let repository = w.reach(token, &owner, &name, ("metadata", "read"))?;
        let mut shape = shapes::repository(w, repository);
        shape["network_count"] = json!(0);
        shape["subscribers_count"] = json!(0);
        Ok(ok(shape))
    })
}
