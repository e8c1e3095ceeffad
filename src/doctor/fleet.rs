//! What lies outside this machine: the daemon's own word, the database, GitHub.

use super::{Check, Subject};
use crate::api::{Status, Trouble};
use crate::config::{Config, Intake, RunnerScope};
use crate::errors::chain;
use crate::github::{App, Delivery, GitHub, Scope, missing_events, missing_permissions};
use crate::store::external::{self, External};
use crate::store::{self, Role, views};
use chrono::{DateTime, Utc};
use std::time::Duration;

/// How long the database or GitHub may take.
const DEADLINE: Duration = Duration::from_secs(15);
/// Clocks that differ by more are refused by GitHub soon.
const MAX_CLOCK_S: i64 = 30;
/// Without any delivery for so long, something may be wrong.
const QUIET: chrono::Duration = chrono::Duration::days(7);

/// What the daemon says of itself, and everything that it shows as wrong.
#[must_use]
pub fn daemon(status: Result<&Status, &str>) -> Vec<Check> {
    const NAME: &str = "daemon";
    let status = match status {
        Ok(status) => status,
        Err(why) => {
            return vec![
                Check::warning(NAME, why.lines().next().unwrap_or_default()).fix("flyci service status; flyci serve"),
            ];
        }
    };
    let mut checks = vec![match status.readiness.as_str() {
        "ready" => Check::good(NAME, format!("it runs, version {}", status.version)),
        "draining" => Check::warning(NAME, "it is going down"),
        word => Check::bad(NAME, format!("it runs, and waits for: {word}")).fix("flyci status"),
    }];
    if status.version != env!("CARGO_PKG_VERSION") {
        let ours = env!("CARGO_PKG_VERSION");
        checks.push(
            Check::warning("daemon version", format!("{} runs, and this program is {ours}", status.version))
                .fix("restart the service: running VMs are left as they are"),
        );
    }
    checks.extend(status.problems.iter().map(problem));
    checks
}

fn problem(trouble: &Trouble) -> Check {
    let evidence = format!("{}: {}", trouble.what, trouble.evidence);
    let check = Check::bad("status", evidence.trim_end_matches([':', ' ']));
    if trouble.fix.is_empty() { check } else { check.fix(trouble.fix.clone()) }
}

/// Whether the database answers. The private one runs with the daemon, which tells of it.
pub async fn database(config: &Config) -> Check {
    const NAME: &str = "database";
    let section = &config.database;
    let Some(url) = &section.url else {
        return Check::good(NAME, "a private Postgres, which runs with the daemon");
    };
    let fix = "is Postgres up, is [database] url right, may this user connect?";
    let external = External {
        url: url.expose(),
        password_file: section.password_file.as_deref(),
        ca_file: section.ca_file.as_deref(),
    };
    let options = match external::connect_options(external) {
        Ok(options) => options.application_name("flyci doctor"),
        Err(error) => return Check::bad(NAME, chain(&error).to_string()).fix(fix),
    };
    let look = async {
        let pool = store::connect(&options, Role::Host, 1).await?;
        let answer = views::ping(&pool).await;
        pool.close().await;
        answer
    };
    match tokio::time::timeout(DEADLINE, look).await {
        Ok(Ok(())) => Check::good(NAME, "it answers"),
        Ok(Err(error)) => Check::bad(NAME, chain(&error).to_string()).fix(fix),
        Err(_) => Check::bad(NAME, format!("no answer within {} s", DEADLINE.as_secs())).fix(fix),
    }
}

/// Whether GitHub knows the App, what it may do, what it hears, and whether GitHub reaches us.
pub async fn github(subject: &Subject<'_>) -> Vec<Check> {
    let Some(section) = &subject.config.github else { return Vec::new() };
    let client = match crate::app::github_client(subject.config, section, None) {
        Ok(client) => client,
        Err(error) => return vec![Check::bad("github", chain(&error).to_string())],
    };
    let Ok(answer) = tokio::time::timeout(DEADLINE, client.app()).await else {
        return vec![Check::bad("github", format!("no answer within {} s", DEADLINE.as_secs())).fix(WAY)];
    };
    let app = match answer {
        Ok(app) => app,
        Err(error) => return vec![Check::bad("github", chain(&error).to_string()).fix(WAY)],
    };
    let scope = match section.runner_scope {
        RunnerScope::Repository => Scope::Repository,
        RunnerScope::OrganizationGroup => Scope::OrganizationGroup,
    };
    let by_webhook = section.intake == Intake::Webhook;
    let mut checks = vec![
        Check::good("github", format!("it knows the App `{}`", app.slug)),
        clock(client.clock_ahead_s()),
        permissions(&app, scope),
        events(&app, by_webhook),
    ];
    checks.push(reachable(&client, by_webhook, subject.now).await);
    checks
}

const WAY: &str = "is there a way from here to [github] api_url (DNS, firewall, proxy_url, ca_file)? githubstatus.com";

fn clock(ahead_s: i64) -> Check {
    const NAME: &str = "clock against github";
    if ahead_s.abs() <= MAX_CLOCK_S {
        return Check::good(NAME, format!("{ahead_s} s apart"));
    }
    Check::bad(NAME, format!("{ahead_s} s apart: GitHub refuses such tokens")).fix("set up time synchronisation")
}

fn permissions(app: &App, scope: Scope) -> Check {
    const NAME: &str = "app permissions";
    let missing: Vec<String> = missing_permissions(&app.permissions, scope)
        .iter()
        .map(|one| format!("{}: {} ({})", one.title, one.access.as_str(), one.reason))
        .collect();
    if missing.is_empty() {
        return Check::good(NAME, "the App has what it needs");
    }
    Check::bad(NAME, format!("missing: {}", missing.join("; ")))
        .fix("add them in the App's settings (Permissions & events); each account then accepts them by GitHub's mail")
}

fn events(app: &App, by_webhook: bool) -> Check {
    const NAME: &str = "app events";
    let missing = missing_events(&app.events);
    if missing.is_empty() || !by_webhook {
        return Check::good(NAME, "the App is told of jobs");
    }
    Check::bad(NAME, format!("it does not subscribe to {}", missing.join(", ")))
        .fix("tick \"Workflow job\" in the App's settings (Permissions & events, Subscribe to events)")
}

async fn reachable(client: &GitHub, by_webhook: bool, now: DateTime<Utc>) -> Check {
    const NAME: &str = "webhook";
    match tokio::time::timeout(DEADLINE, client.deliveries(None, None)).await {
        Ok(Ok(page)) => deliveries(&page.deliveries, by_webhook, now),
        Ok(Err(error)) => Check::unknown(NAME, chain(&error).to_string()),
        Err(_) => Check::unknown(NAME, format!("no answer within {} s", DEADLINE.as_secs())),
    }
}

/// GitHub's own log of what it delivered, newest first.
fn deliveries(log: &[Delivery], by_webhook: bool, now: DateTime<Utc>) -> Check {
    const NAME: &str = "webhook";
    if !by_webhook {
        return Check::good(NAME, "deliveries are pulled: GitHub need not reach this gateway");
    }
    let Some(last) = log.first() else {
        return Check::warning(NAME, "GitHub has delivered nothing yet")
            .fix("App's settings, Advanced: is the webhook active, is its URL [web] public_url + /webhooks/github?");
    };
    let failed = log.iter().filter(|delivery| !delivery.succeeded()).count();
    let seen = format!(
        "last delivery {} UTC: {}; {failed} of the last {} failed",
        last.delivered_at.format("%Y-%m-%d %H:%M"),
        match last.status_code {
            0 => "no answer".to_owned(),
            code => code.to_string(),
        },
        log.len()
    );
    let fix = "App's settings, Advanced, shows our answers; afterwards Redeliver there";
    if !last.succeeded() {
        Check::bad(NAME, format!("{seen}: GitHub does not reach this gateway, or is refused")).fix(fix)
    } else if failed > 0 {
        Check::warning(NAME, seen).fix(fix)
    } else if now - last.delivered_at > QUIET {
        Check::warning(NAME, format!("{seen}: that is long ago")).fix(fix)
    } else {
        Check::good(NAME, seen)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn delivery(status: u16, at: &str) -> Delivery {
        serde_json::from_value(serde_json::json!({
            "id": 1, "guid": "g", "delivered_at": at, "status_code": status, "event": "workflow_job",
        }))
        .expect("a delivery")
    }

    #[test]
    fn githubs_log_tells_whether_it_reaches_us() {
        let now = "2026-11-25T04:00:00Z".parse().expect("a time");
        let judge = |log: &[Delivery]| deliveries(log, true, now).verdict;
        let (good, none) = (delivery(202, "2026-11-25T03:59:00Z"), delivery(0, "2026-11-25T03:58:00Z"));
        assert_eq!(judge(std::slice::from_ref(&good)), Verdict::Good);
        assert_eq!(judge(&[good.clone(), none.clone()]), Verdict::Warning);
        assert_eq!(judge(&[none.clone(), good]), Verdict::Bad);
        assert_eq!(judge(&[delivery(202, "2026-11-01T00:00:00Z")]), Verdict::Warning);
        assert_eq!(judge(&[]), Verdict::Warning);
        assert_eq!(deliveries(&[none], false, now).verdict, Verdict::Good);
    }

    #[test]
    fn an_app_that_lacks_something_is_bad() {
        let app = |permissions: serde_json::Value, events: serde_json::Value| -> App {
            serde_json::from_value(serde_json::json!({
                "id": 1, "slug": "flyci", "permissions": permissions, "events": events,
            }))
            .expect("an App")
        };
        let bare = app(serde_json::json!({}), serde_json::json!([]));
        assert_eq!(permissions(&bare, Scope::Repository).verdict, Verdict::Bad);
        assert_eq!(events(&bare, true).verdict, Verdict::Bad);
        assert_eq!(events(&bare, false).verdict, Verdict::Good);
        assert_eq!((clock(2).verdict, clock(-90).verdict), (Verdict::Good, Verdict::Bad));
    }

    #[test]
    fn a_daemon_that_is_away_is_told_and_no_end() {
        let checks = daemon(Err("the daemon is not running: nothing listens on /x\n  start it"));
        assert_eq!((checks.len(), checks[0].verdict), (1, Verdict::Warning));
    }
}
