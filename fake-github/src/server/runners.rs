//! Self-hosted runners of repositories and organisations: JIT configurations, lists, removal.

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Answer, body, created, no_content, ok};
use super::caller::Caller;
use super::paging::Page;
use crate::hub::Hub;
use crate::protocol::Jit;
use crate::shapes;
use crate::world::World;
use crate::world::model::{Runner, Scope};
use crate::world::runners::RemovalRefusal;
use crate::world::tokens::{Refused, Token};

/// Labels of a runner: documented bounds.
const LABELS: std::ops::RangeInclusive<usize> = 1..=100;
/// Longest name of a runner.
const NAME_LIMIT: usize = 64;
/// The group of GitHub's own runners: nobody may register there.
const HOSTED_GROUP: u64 = 2;

/// Which runners a route speaks of.
enum At<'a> {
    Repository(&'a str, &'a str),
    Organization(&'a str),
}

impl At<'_> {
    fn scope(&self, w: &World, token: &Token, level: &str) -> Result<Scope, Refused> {
        match self {
            Self::Repository(owner, name) => {
                w.reach(token, owner, name, ("administration", level)).map(|r| Scope::Repository(r.id))
            }
            Self::Organization(org) => {
                w.reach_org(token, org, ("organization_self_hosted_runners", level)).map(Scope::Organization)
            }
        }
    }

    fn path(&self) -> String {
        match self {
            Self::Repository(owner, name) => format!("/repos/{owner}/{name}/actions/runners"),
            Self::Organization(org) => format!("/orgs/{org}/actions/runners"),
        }
    }
}

#[derive(Deserialize)]
struct JitRequest {
    name: String,
    runner_group_id: u64,
    labels: Vec<String>,
    #[serde(default = "work")]
    work_folder: String,
}

fn work() -> String {
    "_work".into()
}

/// `POST /repos/{owner}/{repo}/actions/runners/generate-jitconfig`
pub async fn jit_repository(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path((owner, name)): Path<(String, String)>,
    bytes: Bytes,
) -> Answer {
    jit(&hub, &caller, &At::Repository(&owner, &name), &bytes)
}

/// `POST /orgs/{org}/actions/runners/generate-jitconfig`
pub async fn jit_org(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path(org): Path<String>,
    bytes: Bytes,
) -> Answer {
    jit(&hub, &caller, &At::Organization(&org), &bytes)
}

fn jit(hub: &Hub, caller: &Caller, at: &At<'_>, bytes: &[u8]) -> Answer {
    let token = caller.installation()?;
    hub.change(|w| {
        let scope = at.scope(w, token, "write")?;
        let asked: JitRequest = body(bytes)?;
        check(w, scope, &asked)?;
        let (id, secret) = w.register(scope, asked.runner_group_id, &asked.name, asked.labels).ok_or_else(|| {
            Refused::new(409, format!("Already exists - A runner with the name {} already exists.", asked.name))
        })?;
        let jit = Jit {
            server: hub.wiring.runner_url.clone(),
            ca_pem: hub.wiring.ca_pem.clone(),
            token: secret,
            name: asked.name,
            work_folder: asked.work_folder,
        };
        let runner = shapes::runner(w, &w.runners[&id]);
        Ok(created(json!({ "runner": runner, "encoded_jit_config": jit.encode() })))
    })
}

fn check(w: &World, scope: Scope, asked: &JitRequest) -> Result<(), Refused> {
    if !LABELS.contains(&asked.labels.len()) || asked.labels.iter().any(String::is_empty) {
        return Err(Refused::new(422, "Invalid request.\n\nlabels must hold 1 to 100 names."));
    }
    if asked.name.is_empty() || asked.name.len() > NAME_LIMIT {
        return Err(Refused::new(422, "Invalid request.\n\nname must have 1 to 64 characters."));
    }
    let account = match scope {
        Scope::Organization(org) => org,
        Scope::Repository(id) => {
            let owner = w.repositories[&id].owner;
            if w.installation_of(owner).is_some_and(|i| i.forbids_repository_runners) {
                let message = "Repository level self-hosted runners are disabled by the organization.";
                return Err(Refused::new(403, message));
            }
            owner
        }
    };
    if asked.runner_group_id == HOSTED_GROUP {
        return Err(Refused::new(403, "Runners cannot be added to the group of GitHub-hosted runners."));
    }
    w.groups.contains_key(&(account, asked.runner_group_id)).then_some(()).ok_or_else(Refused::not_found)
}

/// The page of a list, and the one name that is looked for.
#[derive(Deserialize)]
pub struct Listing {
    name: Option<String>,
    per_page: Option<usize>,
    page: Option<usize>,
}

/// `GET /repos/{owner}/{repo}/actions/runners`
pub async fn list_repository(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path((owner, name)): Path<(String, String)>,
    Query(listing): Query<Listing>,
) -> Answer {
    list(&hub, &caller, &At::Repository(&owner, &name), &listing)
}

/// `GET /orgs/{org}/actions/runners`
pub async fn list_org(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path(org): Path<String>,
    Query(listing): Query<Listing>,
) -> Answer {
    list(&hub, &caller, &At::Organization(&org), &listing)
}

fn list(hub: &Hub, caller: &Caller, at: &At<'_>, listing: &Listing) -> Answer {
    let token = caller.installation()?;
    let page = Page::new(listing.page, listing.per_page);
    hub.read(|w| {
        let scope = at.scope(w, token, "read")?;
        let wanted = |r: &&Runner| r.scope == scope && listing.name.as_ref().is_none_or(|n| *n == r.name);
        let runners: Vec<&Runner> = w.runners.values().filter(wanted).collect();
        let shown: Vec<Value> = page.cut(runners.iter()).into_iter().map(|r| shapes::runner(w, r)).collect();
        let url = format!("{}{}", w.api_url, at.path());
        Ok(page.link(ok(json!({ "total_count": runners.len(), "runners": shown })), &url, runners.len()))
    })
}

/// `GET /repos/{owner}/{repo}/actions/runners/{runner_id}`
pub async fn one_repository(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path((owner, name, id)): Path<(String, String, u64)>,
) -> Answer {
    one(&hub, &caller, &At::Repository(&owner, &name), id)
}

/// `GET /orgs/{org}/actions/runners/{runner_id}`
pub async fn one_org(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path((org, id)): Path<(String, u64)>,
) -> Answer {
    one(&hub, &caller, &At::Organization(&org), id)
}

fn one(hub: &Hub, caller: &Caller, at: &At<'_>, id: u64) -> Answer {
    let token = caller.installation()?;
    hub.read(|w| {
        let scope = at.scope(w, token, "read")?;
        let runner = w.runners.get(&id).filter(|r| r.scope == scope).ok_or_else(Refused::not_found)?;
        Ok(ok(shapes::runner(w, runner)))
    })
}

/// `DELETE /repos/{owner}/{repo}/actions/runners/{runner_id}`
pub async fn delete_repository(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path((owner, name, id)): Path<(String, String, u64)>,
) -> Answer {
    delete(&hub, &caller, &At::Repository(&owner, &name), id)
}

/// `DELETE /orgs/{org}/actions/runners/{runner_id}`
pub async fn delete_org(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path((org, id)): Path<(String, u64)>,
) -> Answer {
    delete(&hub, &caller, &At::Organization(&org), id)
}

fn delete(hub: &Hub, caller: &Caller, at: &At<'_>, id: u64) -> Result<Response, Refused> {
    let token = caller.installation()?;
    hub.change(|w| {
        let scope = at.scope(w, token, "write")?;
        match w.delete_runner(id, scope) {
            Ok(()) => Ok(no_content()),
            Err(RemovalRefusal::NotFound) => Err(Refused::not_found()),
            Err(RemovalRefusal::Busy) => {
                let name = &w.runners[&id].name;
                Err(Refused::new(422, format!("Bad request - Runner \"{name}\" is still running a job\"")))
            }
        }
    })
}
