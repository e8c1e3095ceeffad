//! Runner groups of an organisation.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, Query, State};
use serde_json::{Value, json};

use super::answer::{Answer, ok};
use super::caller::Caller;
use super::paging::Page;
use crate::hub::Hub;
use crate::shapes;
use crate::world::tokens::Refused;

const READ: (&str, &str) = ("organization_self_hosted_runners", "read");

/// `GET /orgs/{org}/actions/runner-groups`
pub async fn list(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path(org): Path<String>,
    Query(page): Query<Page>,
) -> Answer {
    let token = caller.installation()?;
    hub.read(|w| {
        let org = w.reach_org(token, &org, READ)?;
        let groups: Vec<_> = w.groups.iter().filter(|((o, _), _)| *o == org).map(|(_, g)| g).collect();
        let account = &w.accounts[&org];
        let shown: Vec<Value> =
            page.cut(groups.iter()).into_iter().map(|g| shapes::runner_group(w, account, g)).collect();
        let url = format!("{}/orgs/{}/actions/runner-groups", w.api_url, account.login);
        let body = json!({ "total_count": groups.len(), "runner_groups": shown });
        Ok(page.link(ok(body), &url, groups.len()))
    })
}

/// `GET /orgs/{org}/actions/runner-groups/{runner_group_id}`
pub async fn one(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path((org, id)): Path<(String, u64)>,
) -> Answer {
    let token = caller.installation()?;
    hub.read(|w| {
        let org = w.reach_org(token, &org, READ)?;
        let group = w.groups.get(&(org, id)).ok_or_else(Refused::not_found)?;
        Ok(ok(shapes::runner_group(w, &w.accounts[&org], group)))
    })
}

/// `GET /orgs/{org}/actions/runner-groups/{runner_group_id}/repositories`
pub async fn repositories(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path((org, id)): Path<(String, u64)>,
    Query(page): Query<Page>,
) -> Answer {
    let token = caller.installation()?;
    hub.read(|w| {
        let org = w.reach_org(token, &org, READ)?;
        let group = w.groups.get(&(org, id)).ok_or_else(Refused::not_found)?;
        let ids: Vec<u64> = group.repositories.iter().flatten().copied().collect();
        let cut = page.cut(ids.iter());
        let shown = cut.into_iter().filter_map(|id| w.repositories.get(id));
        let shown: Vec<Value> = shown.map(|r| Value::Object(shapes::minimal_repository(w, r))).collect();
        let login = &w.accounts[&org].login;
        let url = format!("{}/orgs/{login}/actions/runner-groups/{id}/repositories", w.api_url);
        Ok(page.link(ok(json!({ "total_count": ids.len(), "repositories": shown })), &url, ids.len()))
    })
}
