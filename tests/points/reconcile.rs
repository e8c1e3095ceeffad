//! Stories of what a gateway does when it starts: the passes that compare the tables with GitHub find something to
//! do then, since it was prepared while the daemon was away.

use crate::stories::{impatient, working_for};
use crate::world::World;
use fake_github::runner::{Behaviour, Work};
use flyci::hypervisor::fake::{Fault, Step};
use std::time::Duration;

/// GitHub's route that delivers again.
const REDELIVER: &str = "POST /app/hook/deliveries/{delivery_id}/attempts";
/// GitHub's list of runs, with which a list of open jobs begins.
const RUNS: &str = "GET /repos/{owner}/{repo}/actions/runs";
/// GitHub's list of runners.
const RUNNERS: &str = "GET /repos/{owner}/{repo}/actions/runners";
/// GitHub's route that runs a job again.
const RERUN: &str = "POST /repos/{owner}/{repo}/actions/jobs/{job_id}/rerun";
/// What makes lost jobs run again, under `[limits]`.
pub const RERUNS: &str = "idle_timeout = \"2s\"\nrerun_lost_jobs = true";

/// The daemon itself asks for what failed. One of the deliveries GitHub has dropped: its job is found by comparing.
pub async fn deliveries_fail(world: &World, deaths: &[String]) {
    let known = world.queue();
    world.served(known).await;
    world.jobs_are(&["done"]).await;
    world.sends_once();
    let mut jobs = Vec::new();
    world
        .while_it_is_away(deaths, async || {
            world.github.fail_next(REDELIVER, 404, 1, false);
            jobs.extend([world.queue(), world.queue()]);
            world.tried_all().await;
        })
        .await;
    for job in jobs {
        world.served(job).await;
    }
    world.jobs_are(&["done"; 3]).await;
}

/// Nothing in GitHub's log tells of them.
pub async fn deliveries_are_lost(world: &World, deaths: &[String]) {
    world.machines.inject(Step::Ready, Fault::Hang);
    let cancelled = world.queue();
    world.until_some("SELECT FROM vms WHERE state = 'booting'").await;
    let mut told_to_nobody = None;
    world
        .while_it_is_away(deaths, async || {
            world.lose_deliveries(true);
            assert!(world.github.cancel(cancelled), "it had no runner");
            told_to_nobody = Some(world.queue());
            world.tried_all().await;
            world.lose_deliveries(false);
            world.machines.heal(Step::Ready);
        })
        .await;
    world.served(told_to_nobody.expect("the daemon was away")).await;
    world.jobs_are(&["cancelled", "done"]).await;
}

/// For once GitHub does not find the repository whose runs and runners are listed.
pub async fn lists_are_refused(world: &World, deaths: &[String]) {
    let job = world.queue();
    world.served(job).await;
    world.jobs_are(&["done"]).await;
    world
        .while_it_is_away(deaths, async || {
            world.execute("UPDATE repositories SET swept_at = NULL").await;
            world.github.fail_next(RUNS, 404, 1, false);
            world.github.fail_next(RUNNERS, 404, 1, false);
        })
        .await;
    for list in ["after upkeep.scan_suspect", "after upkeep.registrations_suspect"] {
        world.reaches_or_dies(list).await;
    }
    world.until_some("SELECT FROM repositories WHERE verify_since IS NULL AND removed_at IS NULL").await;
    let job = world.queue();
    world.served(job).await;
    world.jobs_are(&["done", "done"]).await;
}

/// The repository was taken away, and nobody told us.
pub async fn taken_away_unheard(world: &World, deaths: &[String]) {
    world.machines.inject(Step::Ready, Fault::Hang);
    world.queue();
    world.until_some("SELECT FROM vms WHERE state = 'booting'").await;
    world
        .while_it_is_away(deaths, async || {
            world.lose_deliveries(true);
            world.github.select(&world.repo, false);
            world.machines.heal(Step::Ready);
        })
        .await;
    world.jobs_are(&["unserved"]).await;
    world.until_some("SELECT FROM repositories WHERE removed_at IS NOT NULL").await;
}

/// The rows say that it was removed, and GitHub did not do what it was asked.
pub async fn an_orphaned_registration(world: &World, deaths: &[String]) {
    impatient(world);
    world.runners.will(Behaviour { start_after: Duration::from_secs(3600), ..Behaviour::default() });
    let job = world.queue();
    world.until_some("SELECT FROM vms WHERE state = 'serving'").await;
    assert_eq!(world.github.all_runners().len(), 1);
    world
        .while_it_is_away(deaths, async || {
            world.github.cancel(job);
            world
                .execute("UPDATE runners SET state = 'removed', removed_at = clock_timestamp(), sealed_jit = NULL")
                .await;
            world.execute("UPDATE vms SET state = 'gone', reason = 'killed', gone_at = clock_timestamp()").await;
            world.execute("UPDATE repositories SET swept_at = NULL").await;
        })
        .await;
    world.reaches_or_dies("after upkeep.registrations_remove").await;
    world.jobs_are(&["cancelled"]).await;
}

/// A job that was lost with its machine is run again, at most once: a daemon that died while it asked does not ask
/// a second time.
pub async fn a_lost_job_runs_again(world: &World, deaths: &[String]) {
    lose_a_job(world).await;
    world
        .while_it_is_away(deaths, async || {
            world.github.switch(|switches| switches.failures.clear());
            world.execute("UPDATE jobs SET rerun_after = NULL").await;
        })
        .await;
    world.reaches_or_dies("after upkeep.rerun_ask").await;
    world.until_some("SELECT FROM jobs WHERE rerun_asked_at IS NOT NULL").await;
    let asked = world.github.requests(RERUN);
    world.ended_all().await;
    world.until("SELECT state FROM jobs WHERE state IN ('queued', 'running')", &[]).await;
    let attempts = world.github.jobs().len();
    assert!(attempts <= 2, "it was run again {attempts} times after {asked} requests");
}

/// GitHub refuses to run it again.
pub async fn a_lost_job_does_not_run_again(world: &World, deaths: &[String]) {
    lose_a_job(world).await;
    world.while_it_is_away(deaths, async || world.execute("UPDATE jobs SET rerun_after = NULL").await).await;
    world.reaches_or_dies("after upkeep.rerun_later").await;
    world.jobs_are(&["lost"]).await;
}

/// GitHub refuses for now to run it again.
async fn lose_a_job(world: &World) {
    world.github.fail_next(RERUN, 403, 1_000, false);
    impatient(world);
    world.runners.will(Behaviour::working(Work::Freeze));
    let job = world.queue();
    world.jobs_are(&["running"]).await;
    world.runners.will(working_for(100));
    world.machines.vms().into_iter().for_each(|vm| world.machines.crash(vm));
    world.over(job).await;
    world.jobs_are(&["lost"]).await;
    world.until("SELECT state FROM vms", &["gone"]).await;
}

/// Rows beyond their retention.
pub async fn old_rows(world: &World, deaths: &[String]) {
    let job = world.queue();
    world.served(job).await;
    world.jobs_are(&["done"]).await;
    world.github.queue_job(&world.repo, &["flyci-nobody-has-it"], fake_github::JobScript::new());
    world.until_some("SELECT FROM refusals").await;
    world.until("SELECT state FROM vms", &["gone"]).await;
    world.until("SELECT state FROM runners", &["removed"]).await;
    world
        .while_it_is_away(deaths, async || {
            for (table, time) in [
                ("deliveries", "received_at"),
                ("refusals", "refused_at"),
                ("jobs", "received_at"),
                ("vms", "gone_at"),
                ("audit", "at"),
            ] {
                world.execute(&format!("UPDATE {table} SET {time} = '2020-01-01'")).await;
            }
        })
        .await;
    world.until("SELECT action FROM audit WHERE at < '2021-01-01' AND action = 'audit.begin'", &[]).await;
    // What is open at GitHub is told, and refused, again.
    for (table, time) in
        [("deliveries", "received_at"), ("refusals", "refused_at"), ("jobs", "received_at"), ("vms", "gone_at")]
    {
        world.until(&format!("SELECT 'there' FROM {table} WHERE {time} < '2021-01-01' LIMIT 1"), &[]).await;
    }
}

/// It uninstalled the App longer ago than it is kept.
pub async fn an_account_is_forgotten(world: &World, deaths: &[String]) {
    let job = world.queue();
    world.served(job).await;
    world.jobs_are(&["done"]).await;
    world.until("SELECT state FROM vms", &["gone"]).await;
    world.until("SELECT state FROM runners", &["removed"]).await;
    world.github.uninstall(&world.acme);
    world.until_some("SELECT FROM tenants WHERE uninstalled_at IS NOT NULL").await;
    world
        .while_it_is_away(deaths, async || world.execute("UPDATE tenants SET uninstalled_at = '2020-01-01'").await)
        .await;
    for table in ["tenants", "jobs", "runners"] {
        world.until(&format!("SELECT id::text FROM {table}"), &[]).await;
    }
}

/// It is older than it may become.
pub async fn the_master_key_is_rotated(world: &World, deaths: &[String]) {
    let job = world.queue();
    world.served(job).await;
    world.jobs_are(&["done"]).await;
    world
        .while_it_is_away(deaths, async || world.execute("UPDATE master_keys SET first_at = '2020-01-01'").await)
        .await;
    world.until("SELECT count(*)::text FROM master_keys WHERE destroyed_at IS NOT NULL", &["1"]).await;
    let job = world.queue();
    world.served(job).await;
    world.jobs_are(&["done", "done"]).await;
}
