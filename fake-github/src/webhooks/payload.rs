//! Webhook payloads: what GitHub sends for each event, whole, with the fields that its schemas require.

use serde_json::{Map, Value, json};

use crate::shapes;
use crate::world::model::{Installed, Job, Repository, Visibility};
use crate::world::{Event, World};

/// `workflow_job`: queued, waiting, in_progress, completed.
pub fn workflow_job(world: &World, job: &Job, repository: &Repository, to: &Installed, action: &'static str) -> Event {
    let mut body = about(world, repository, to);
    body.insert("action".into(), json!(action));
    body.insert("workflow_job".into(), shapes::job(world, job));
    if job.script.gated {
        body.insert("deployment".into(), deployment(world, job, repository));
    }
    event("workflow_job", Some(action), Some(to), Some(repository), job.id, body)
}

/// `repository`: renamed, transferred, publicized, privatized, deleted.
pub fn repository(
    world: &World,
    repository: &Repository,
    to: &Installed,
    action: &'static str,
    changes: Option<Value>,
) -> Event {
    let mut body = about(world, repository, to);
    body.insert("action".into(), json!(action));
    if let Some(changes) = changes {
        body.insert("changes".into(), changes);
    }
    event("repository", Some(action), Some(to), Some(repository), repository.id, body)
}

/// `installation`: created, deleted, suspend, unsuspend, new_permissions_accepted.
pub fn installation(world: &World, installed: &Installed, action: &'static str) -> Event {
    let repositories: Vec<Value> = world
        .repositories
        .values()
        .filter(|r| r.owner == installed.account && r.selected)
        .map(|r| repository_lite(world, r))
        .collect();
    let body = json!({
        "action": action,
        "installation": shapes::installation(world, installed),
        "repositories": repositories,
        "requester": null,
        "sender": sender(world, installed),
    });
    event("installation", Some(action), Some(installed), None, installed.id, object(body))
}

/// `installation_repositories`: added, removed.
pub fn installation_repositories(
    world: &World,
    installed: &Installed,
    repository: &Repository,
    action: &'static str,
) -> Event {
    let named = vec![repository_lite(world, repository)];
    let (added, removed) = if action == "added" { (named, vec![]) } else { (vec![], named) };
    let shape = shapes::installation(world, installed);
    let body = json!({
        "action": action,
        "repository_selection": shape["repository_selection"],
        "installation": shape,
        "repositories_added": added,
        "repositories_removed": removed,
        "requester": null,
        "sender": sender(world, installed),
    });
    event("installation_repositories", Some(action), Some(installed), None, installed.id, object(body))
}

/// `installation_target`: renamed.
pub fn installation_target_renamed(world: &World, installed: &Installed, from: &str) -> Event {
    let account = &world.accounts[&installed.account];
    let mut shape = shapes::account(world, account);
    shape["description"] = Value::Null;
    let body = json!({
        "action": "renamed",
        "target_type": account.kind.word(),
        "account": shape,
        "changes": { "login": { "from": from } },
        "installation": shapes::installation_lite(installed),
        "sender": sender(world, installed),
    });
    event("installation_target", Some("renamed"), Some(installed), None, installed.id, object(body))
}

/// `ping`.
pub fn ping(world: &World) -> Event {
    let app = &world.app;
    let made = shapes::time(app.created_at);
    let body = json!({
        "zen": "Keep it logically awesome.",
        "hook_id": app.hook_id,
        "hook": {
            "type": "App", "id": app.hook_id, "name": "web", "active": true, "app_id": app.id, "events": app.events,
            "config": { "content_type": "json", "insecure_ssl": "0", "secret": "********", "url": "https://ci.example.com" },
            "updated_at": made, "created_at": made,
            "deliveries_url": format!("{}/app/hook/deliveries", world.api_url),
        },
    });
    event("ping", None, None, None, app.hook_id, object(body))
}

/// What every event about a repository carries.
fn about(world: &World, repository: &Repository, to: &Installed) -> Map<String, Value> {
    let mut body = Map::new();
    body.insert("repository".into(), shapes::repository(world, repository));
    if let Some(organization) = shapes::organization(world, world.owner(repository)) {
        body.insert("organization".into(), organization);
    }
    body.insert("sender".into(), sender(world, to));
    body.insert("installation".into(), shapes::installation_lite(to));
    body
}

fn sender(world: &World, to: &Installed) -> Value {
    let mut person = world.accounts[&to.account].clone();
    person.kind = crate::world::model::AccountKind::User;
    person.login = format!("{}-dev", person.login);
    person.id += 1_000_000_000;
    shapes::account(world, &person)
}

fn repository_lite(world: &World, repository: &Repository) -> Value {
    json!({
        "id": repository.id,
        "node_id": format!("R_{:x}", repository.id),
        "name": repository.name,
        "full_name": world.full_name(repository),
        "private": repository.visibility == Visibility::Private,
    })
}

fn deployment(world: &World, job: &Job, repository: &Repository) -> Value {
    let url = format!("{}/repos/{}", world.api_url, world.full_name(repository));
    let made = shapes::time(job.created_at);
    json!({
        "url": format!("{url}/deployments/{}", job.id), "id": job.id, "node_id": format!("DE_{:x}", job.id),
        "task": "deploy", "original_environment": "production", "environment": "production", "description": null,
        "created_at": made, "updated_at": made, "statuses_url": format!("{url}/deployments/{}/statuses", job.id),
        "repository_url": url, "creator": shapes::account(world, world.owner(repository)),
        "sha": format!("{:040x}", job.run), "ref": "main", "payload": {}, "transient_environment": false,
        "production_environment": false, "performed_via_github_app": null,
    })
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => unreachable!("payloads are written as objects"),
    }
}

fn event(
    name: &'static str,
    action: Option<&'static str>,
    installation: Option<&Installed>,
    repository: Option<&Repository>,
    key: u64,
    body: Map<String, Value>,
) -> Event {
    Event {
        name: name.into(),
        action,
        installation: installation.map(|i| i.id),
        repository: repository.map(|r| r.id),
        key,
        payload: Value::Object(body),
    }
}
