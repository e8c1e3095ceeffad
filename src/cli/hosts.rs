//! `flyci hosts`, `drain` and `resume`.

use super::args::{DrainArgs, ListArgs, ResumeArgs, WhichHost};
use super::client::{Admin, segment};
use super::exit::{CliError, DONE};
use super::human::{are, between, plural, span};
use super::out::{self, Look, harmless};
use super::{print_json, progress, status};
use crate::api::{Done, Drain, Host, Page, Vm, VmsQuery};
use chrono::{DateTime, Utc};
use std::time::Duration;
use tokio::time::{Instant, interval};

/// How often a waiting drain looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The vms that a waiting drain names.
const VMS_NAMED: usize = 3;
/// Rows that are asked for where all are wanted.
const ALL: u32 = 10_000;

/// Runs `flyci hosts`.
pub async fn list(admin: &Admin, args: &ListArgs, look: &Look) -> Result<u8, CliError> {
    let body = admin.read("/hosts", &()).await?;
    if args.json {
        print_json(&body)?;
        return Ok(DONE);
    }
    let page: Page<Host> = super::read_json("/hosts", &body)?;
    if page.items.is_empty() {
        out::print("No host has joined yet: a daemon with the role `host` does when it starts.\n")?;
    } else {
        out::print(&status::hosts(&page.items, Utc::now(), usize::MAX, look))?;
    }
    Ok(DONE)
}

/// Runs `flyci drain`.
pub async fn drain(admin: &Admin, args: &DrainArgs) -> Result<u8, CliError> {
    let host = choose(admin, &args.which).await?;
    let path = address(host.as_deref(), "drain");
    let done: Done = admin.post(&path, &Drain { reason: args.reason.clone() }).await?;
    out::print(&format!("{}\n", harmless(&done.message)))?;
    if args.wait {
        wait_for_end(admin, host.as_deref(), args.timeout.0).await?;
    }
    Ok(DONE)
}

/// Runs `flyci resume`.
pub async fn resume(admin: &Admin, args: &ResumeArgs) -> Result<u8, CliError> {
    let host = choose(admin, &args.which).await?;
    let done: Done = admin.post(&address(host.as_deref(), "resume"), &()).await?;
    out::print(&format!("{}\n", harmless(&done.message)))?;
    Ok(DONE)
}

fn address(host: Option<&str>, verb: &str) -> String {
    match host {
        Some(host) => format!("/hosts/{}/{verb}", segment(host)),
        None => format!("/hosts/{verb}"),
    }
}

/// The host that is meant; `None`: all. Nothing said is enough where there is one host.
async fn choose(admin: &Admin, which: &WhichHost) -> Result<Option<String>, CliError> {
    if which.all || which.host.is_some() {
        return Ok(which.host.clone());
    }
    let page: Page<Host> = admin.get("/hosts", &()).await?;
    match page.items.as_slice() {
        [only] => Ok(Some(only.name.clone())),
        [] => Err(CliError::Failed("no host has joined yet".to_owned())),
        many => {
            let names: Vec<String> = many.iter().take(8).map(|host| harmless(&host.name)).collect();
            Err(CliError::Failed(format!(
                "there are {} hosts: say which one ({}), or --all",
                many.len(),
                names.join(", ")
            )))
        }
    }
}

/// Waits until no vm is left there, and shows what it waits for.
async fn wait_for_end(admin: &Admin, host: Option<&str>, patience: Duration) -> Result<(), CliError> {
    let deadline = Instant::now() + patience;
    let line = progress::Line::start("looking what runs");
    let mut ticks = interval(LOOK_INTERVAL);
    loop {
        ticks.tick().await;
        let vms = vms_of(admin, host).await?;
        if vms.is_empty() {
            line.done("nothing runs there any more");
            return Ok(());
        }
        if Instant::now() >= deadline {
            drop(line);
            return Err(CliError::TimedOut(format!(
                "{} not gone after {}; the drain goes on\n  wait on:  flyci drain --wait      take work again:  flyci resume",
                are(vms.len(), "vm"),
                span(patience)
            )));
        }
        line.say(&waiting_for(&vms, Utc::now()));
    }
}

async fn vms_of(admin: &Admin, host: Option<&str>) -> Result<Vec<Vm>, CliError> {
    let query = |after, wanted: u32| VmsQuery { all: false, limit: Some(wanted.min(500)), after };
    let page: Page<Vm> = admin.list("/vms", ALL, query).await?;
    Ok(page.items.into_iter().filter(|vm| host.is_none_or(|host| vm.host == host)).collect())
}

/// What keeps a drain, in a line: `2 vms left: job 4711 of acme/app serving 2m10s, …`.
fn waiting_for(vms: &[Vm], now: DateTime<Utc>) -> String {
    let mut named: Vec<String> = vms
        .iter()
        .take(VMS_NAMED)
        .map(|vm| {
            let what = match (&vm.job_id, &vm.repository) {
                (Some(job), Some(repository)) => format!("job {job} of {repository}"),
                (Some(job), None) => format!("job {job}"),
                (None, _) => format!("vm {}", status::short(&vm.id)),
            };
            let since = vm.stopping_at.or(vm.times.serving_at).unwrap_or(vm.times.planned_at);
            format!("{what} {} {}", vm.state, span(between(since, now)))
        })
        .collect();
    if vms.len() > VMS_NAMED {
        named.push(format!("{} more", vms.len() - VMS_NAMED));
    }
    let left = plural(vms.len(), "vm");
    harmless(&format!("{left} left: {}", named.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn a_waiting_drain_names_what_keeps_it() {
        let mut vms = vec![samples::vm("1", "serving")];
        assert_eq!(waiting_for(&vms, samples::now()), "1 vm left: job 4711 of acme/app serving 1m53s");
        let blank = Vm {
            job_id: None,
            repository: None,
            stopping_at: Some(samples::before(0.5)),
            ..samples::vm("2", "stopping")
        };
        vms.extend(std::iter::repeat_n(blank, 4));
        let text = waiting_for(&vms, samples::now());
        assert!(text.starts_with("5 vms left: ") && text.ends_with("vm 2 stopping 500 ms, 2 more"), "{text}");
    }

    #[test]
    fn a_hosts_name_cannot_change_the_path() {
        assert_eq!(address(Some("../x"), "drain"), "/hosts/..%2Fx/drain");
        assert_eq!(address(None, "resume"), "/hosts/resume");
    }
}
