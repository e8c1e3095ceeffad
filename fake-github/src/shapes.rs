//! GitHub's JSON shapes, shared by API answers and webhook payloads. Fields and their order follow GitHub's OpenAPI
//! description; a test checks them against it.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};

use crate::world::World;
use crate::world::model::{
    Account, AccountKind, Installed, Job, Repository, Run, Runner, RunnerGroup, Status, Visibility,
};

/// GitHub's times: UTC, whole seconds.
pub fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn node_id(kind: &str, id: u64) -> String {
    format!("{kind}_{id:x}")
}

/// `simple-user`, also for organisations as owners.
pub fn account(world: &World, account: &Account) -> Value {
    let url = format!("{}/users/{}", world.api_url, account.login);
    json!({
        "login": account.login,
        "id": account.id,
        "node_id": node_id("U", account.id),
        "avatar_url": format!("https://avatars.githubusercontent.com/u/{}?v=4", account.id),
        "gravatar_id": "",
        "url": url,
        "html_url": format!("https://github.com/{}", account.login),
        "followers_url": format!("{url}/followers"),
        "following_url": format!("{url}/following{{/other_user}}"),
        "gists_url": format!("{url}/gists{{/gist_id}}"),
        "starred_url": format!("{url}/starred{{/owner}}{{/repo}}"),
        "subscriptions_url": format!("{url}/subscriptions"),
        "organizations_url": format!("{url}/orgs"),
        "repos_url": format!("{url}/repos"),
        "events_url": format!("{url}/events{{/privacy}}"),
        "received_events_url": format!("{url}/received_events"),
        "type": account.kind.word(),
        "site_admin": false,
    })
}

/// `organization-simple-webhooks`.
pub fn organization(world: &World, account: &Account) -> Option<Value> {
    let url = format!("{}/orgs/{}", world.api_url, account.login);
    (account.kind == AccountKind::Organization).then(|| {
        json!({
            "login": account.login,
            "id": account.id,
            "node_id": node_id("O", account.id),
            "url": url,
            "repos_url": format!("{url}/repos"),
            "events_url": format!("{url}/events"),
            "hooks_url": format!("{url}/hooks"),
            "issues_url": format!("{url}/issues"),
            "members_url": format!("{url}/members{{/member}}"),
            "public_members_url": format!("{url}/public_members{{/member}}"),
            "avatar_url": format!("https://avatars.githubusercontent.com/u/{}?v=4", account.id),
            "description": null,
        })
    })
}

/// The link templates of a repository: field and what follows the repository's URL.
const REPOSITORY_LINKS: [(&str, &str); 37] = [
    ("archive_url", "/{archive_format}{/ref}"),
    ("assignees_url", "/assignees{/user}"),
    ("blobs_url", "/git/blobs{/sha}"),
    ("branches_url", "/branches{/branch}"),
    ("collaborators_url", "/collaborators{/collaborator}"),
    ("comments_url", "/comments{/number}"),
    ("commits_url", "/commits{/sha}"),
    ("compare_url", "/compare/{base}...{head}"),
    ("contents_url", "/contents/{+path}"),
    ("contributors_url", "/contributors"),
    ("deployments_url", "/deployments"),
    ("downloads_url", "/downloads"),
    ("events_url", "/events"),
    ("forks_url", "/forks"),
    ("git_commits_url", "/git/commits{/sha}"),
    ("git_refs_url", "/git/refs{/sha}"),
    ("git_tags_url", "/git/tags{/sha}"),
    ("hooks_url", "/hooks"),
    ("issue_comment_url", "/issues/comments{/number}"),
    ("issue_events_url", "/issues/events{/number}"),
    ("issues_url", "/issues{/number}"),
    ("keys_url", "/keys{/key_id}"),
    ("labels_url", "/labels{/name}"),
    ("languages_url", "/languages"),
    ("merges_url", "/merges"),
    ("milestones_url", "/milestones{/number}"),
    ("notifications_url", "/notifications{?since,all,participating}"),
    ("pulls_url", "/pulls{/number}"),
    ("releases_url", "/releases{/id}"),
    ("stargazers_url", "/stargazers"),
    ("statuses_url", "/statuses/{sha}"),
    ("subscribers_url", "/subscribers"),
    ("subscription_url", "/subscription"),
    ("tags_url", "/tags"),
    ("teams_url", "/teams"),
    ("trees_url", "/git/trees{/sha}"),
    ("url", ""),
];

/// `minimal-repository`.
pub fn minimal_repository(world: &World, repository: &Repository) -> Map<String, Value> {
    let owner = world.owner(repository);
    let full_name = world.full_name(repository);
    let url = format!("{}/repos/{full_name}", world.api_url);
    let mut shape = Map::new();
    shape.insert("id".into(), json!(repository.id));
    shape.insert("node_id".into(), json!(node_id("R", repository.id)));
    shape.insert("name".into(), json!(repository.name));
    shape.insert("full_name".into(), json!(full_name));
    shape.insert("private".into(), json!(repository.visibility == Visibility::Private));
    shape.insert("owner".into(), account(world, owner));
    shape.insert("html_url".into(), json!(format!("https://github.com/{full_name}")));
    shape.insert("description".into(), Value::Null);
    shape.insert("fork".into(), json!(false));
    for (field, path) in REPOSITORY_LINKS {
        shape.insert(field.into(), json!(format!("{url}{path}")));
    }
    shape
}

/// `repository-webhooks`.
pub fn repository(world: &World, repository: &Repository) -> Value {
    let mut shape = minimal_repository(world, repository);
    let html = format!("github.com/{}", world.full_name(repository));
    let made = time(repository.created_at);
    let rest = json!({
        "created_at": made, "updated_at": made, "pushed_at": made,
        "git_url": format!("git://{html}.git"), "ssh_url": format!("git@{}.git", html.replacen('/', ":", 1)),
        "clone_url": format!("https://{html}.git"), "svn_url": format!("https://{html}"),
        "homepage": null, "size": 0, "stargazers_count": 0, "watchers_count": 0, "language": null,
        "has_issues": true, "has_projects": false, "has_downloads": true, "has_wiki": false, "has_pages": false,
        "has_discussions": false, "forks_count": 0, "mirror_url": null, "archived": false, "disabled": false,
        "open_issues_count": 0, "license": null, "allow_forking": true, "is_template": false,
        "web_commit_signoff_required": false, "topics": [],
        "visibility": match repository.visibility { Visibility::Private => "private", Visibility::Public => "public" },
        "forks": 0, "open_issues": 0, "watchers": 0, "default_branch": "main", "custom_properties": {},
    });
    if let Value::Object(rest) = rest {
        shape.extend(rest);
    }
    Value::Object(shape)
}

/// `installation`.
pub fn installation(world: &World, installed: &Installed) -> Value {
    let owner = &world.accounts[&installed.account];
    let url = format!("{}/app/installations/{}", world.api_url, installed.id);
    let everything = world.repositories.values().filter(|r| r.owner == installed.account).all(|r| r.selected);
    json!({
        "id": installed.id,
        "account": account(world, owner),
        "repository_selection": if everything { "all" } else { "selected" },
        "access_tokens_url": format!("{url}/access_tokens"),
        "repositories_url": format!("{}/installation/repositories", world.api_url),
        "html_url": format!("https://github.com/settings/installations/{}", installed.id),
        "app_id": world.app.id,
        "app_slug": world.app.slug,
        "target_id": owner.id,
        "target_type": owner.kind.word(),
        "permissions": installed.permissions,
        "events": world.app.events,
        "created_at": time(installed.created_at),
        "updated_at": time(installed.suspended_at.unwrap_or(installed.created_at)),
        "single_file_name": null,
        "has_multiple_single_files": false,
        "single_file_paths": [],
        "suspended_by": installed.suspended_at.map(|_| account(world, owner)),
        "suspended_at": installed.suspended_at.map(time),
    })
}

/// `simple-installation`, as most webhooks carry it.
pub fn installation_lite(installed: &Installed) -> Value {
    json!({ "id": installed.id, "node_id": node_id("MDIzOklu", installed.id) })
}

/// `integration`: the App.
pub fn app(world: &World) -> Value {
    let app = &world.app;
    let made = time(app.created_at);
    json!({
        "id": app.id,
        "slug": app.slug,
        "client_id": app.client_id,
        "node_id": node_id("A", app.id),
        "owner": account(world, &world.accounts[&app.owner]),
        "name": app.slug,
        "description": null,
        "external_url": "https://flyci.example",
        "html_url": format!("https://github.com/apps/{}", app.slug),
        "created_at": made,
        "updated_at": made,
        "permissions": app.permissions,
        "events": app.events,
        "installations_count": world.installations.len(),
    })
}

/// `runner`.
pub fn runner(world: &World, runner: &Runner) -> Value {
    let labels: Vec<Value> = runner
        .labels
        .iter()
        .zip(1u64..)
        .map(|(name, number)| json!({ "id": number, "name": name, "type": "custom" }))
        .collect();
    json!({
        "id": runner.id,
        "runner_group_id": world.group(runner).id,
        "name": runner.name,
        "os": runner.os,
        "status": if runner.online() { "online" } else { "offline" },
        "busy": runner.busy(),
        "labels": labels,
        "ephemeral": true,
        "version": runner.version,
    })
}

/// `runner-groups-org`.
pub fn runner_group(world: &World, org: &Account, group: &RunnerGroup) -> Value {
    let url = format!("{}/orgs/{}/actions/runner-groups/{}", world.api_url, org.login, group.id);
    json!({
        "id": group.id,
        "name": group.name,
        "visibility": if group.repositories.is_some() { "selected" } else { "all" },
        "default": group.id == crate::world::tenants::DEFAULT_GROUP,
        "selected_repositories_url": format!("{url}/repositories"),
        "runners_url": format!("{url}/runners"),
        "inherited": false,
        "allows_public_repositories": group.allows_public,
        "restricted_to_workflows": false,
        "selected_workflows": [],
        "workflow_restrictions_read_only": false,
    })
}

fn head_sha(run: u64) -> String {
    format!("{run:040x}")
}

/// `job`, and the `workflow_job` of webhooks.
pub fn job(world: &World, job: &Job) -> Value {
    let full_name = world.full_name(&world.repositories[&job.repository]);
    let url = format!("{}/repos/{full_name}", world.api_url);
    let runner = job.runner.as_ref();
    let steps: Vec<Value> = job
        .steps
        .iter()
        .map(|step| {
            json!({
                "name": step.name, "status": step.status.word(), "conclusion": step.conclusion, "number": step.number,
                "started_at": step.started_at.map(time), "completed_at": step.completed_at.map(time),
            })
        })
        .collect();
    json!({
        "id": job.id,
        "run_id": job.run,
        "workflow_name": "ci",
        "head_branch": "main",
        "run_url": format!("{url}/actions/runs/{}", job.run),
        "run_attempt": job.attempt,
        "node_id": node_id("CR", job.id),
        "head_sha": head_sha(job.run),
        "url": format!("{url}/actions/jobs/{}", job.id),
        "html_url": format!("https://github.com/{full_name}/actions/runs/{}/job/{}", job.run, job.id),
        "status": job.status.word(),
        "conclusion": job.conclusion,
        "created_at": time(job.created_at),
        // GitHub gives a time here from the beginning.
        "started_at": time(job.started_at.unwrap_or(job.created_at)),
        "completed_at": job.completed_at.map(time),
        "name": job.name,
        "steps": steps,
        "check_run_url": format!("{url}/check-runs/{}", job.id),
        "labels": job.labels,
        "runner_id": runner.map(|r| r.id),
        "runner_name": runner.map(|r| &r.name),
        "runner_group_id": runner.map(|r| r.group_id),
        "runner_group_name": runner.map(|r| &r.group_name),
    })
}

/// The jobs of a run's latest attempt.
pub fn latest_jobs<'a>(world: &'a World, run: &'a Run) -> impl Iterator<Item = &'a Job> {
    let jobs = run.jobs.iter().filter_map(|id| world.jobs.get(id));
    jobs.filter(|job| job.attempt == run.attempt)
}

/// A run's status and conclusion: what its latest jobs make of it.
pub fn run_state(world: &World, run: &Run) -> (Status, Option<&'static str>) {
    let jobs: Vec<&Job> = latest_jobs(world, run).collect();
    let any = |status: Status| jobs.iter().any(|j| j.status == status);
    if run.dead {
        return (Status::Completed, Some("startup_failure"));
    }
    let status = [Status::InProgress, Status::Queued, Status::Waiting].into_iter().find(|s| any(*s));
    match status {
        Some(status) => (status, None),
        None => (Status::Completed, Some(run_conclusion(&jobs))),
    }
}

fn run_conclusion(jobs: &[&Job]) -> &'static str {
    use crate::protocol::Conclusion::{Cancelled, Failure};
    let any = |conclusion| jobs.iter().any(|j| j.conclusion == Some(conclusion));
    match (any(Failure), any(Cancelled)) {
        (true, _) => "failure",
        (false, true) => "cancelled",
        (false, false) => "success",
    }
}

/// `workflow-run`.
pub fn run(world: &World, run: &Run) -> Value {
    let repository = &world.repositories[&run.repository];
    let minimal = Value::Object(minimal_repository(world, repository));
    let full_name = world.full_name(repository);
    let url = format!("{}/repos/{full_name}/actions/runs/{}", world.api_url, run.id);
    let (status, conclusion) = run_state(world, run);
    let made = time(run.created_at);
    let actor = account(world, world.owner(repository));
    let person = json!({ "name": "dev", "email": "dev@example.com" });
    json!({
        "id": run.id, "name": "ci", "node_id": node_id("WFR", run.id), "check_suite_id": run.id,
        "head_branch": "main", "head_sha": head_sha(run.id), "path": ".github/workflows/ci.yml",
        "run_number": run.number, "run_attempt": run.attempt, "event": "push", "display_title": "Build",
        "status": status.word(), "conclusion": conclusion, "workflow_id": run.repository,
        "url": url, "html_url": format!("https://github.com/{full_name}/actions/runs/{}", run.id),
        "pull_requests": [], "created_at": made, "updated_at": made, "run_started_at": made,
        "actor": actor, "triggering_actor": actor,
        "jobs_url": format!("{url}/jobs"), "logs_url": format!("{url}/logs"),
        "check_suite_url": format!("{}/repos/{full_name}/check-suites/{}", world.api_url, run.id),
        "artifacts_url": format!("{url}/artifacts"), "cancel_url": format!("{url}/cancel"),
        "rerun_url": format!("{url}/rerun"), "previous_attempt_url": null,
        "workflow_url": format!("{}/repos/{full_name}/actions/workflows/{}", world.api_url, run.repository),
        "head_commit": {
            "id": head_sha(run.id), "tree_id": head_sha(run.id), "message": "Build", "timestamp": made,
            "author": person, "committer": person,
        },
        "repository": minimal, "head_repository": minimal,
    })
}
