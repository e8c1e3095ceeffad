//! What goes wrong, and how it ends: no accepted job is lost, and nothing is left.

use crate::support::world::{LABEL, SOON, Setup, World, working_for};
use fake_github::runner::{Behaviour, Work};
use fake_github::{Conclusion, JobScript, Status};
use flyci::hypervisor::fake::{Fault, Step};
use std::time::Duration;

/// GitHub's route for JIT configs.
const MINT: &str = "POST /repos/{owner}/{repo}/actions/runners/generate-jitconfig";

/// A runner that never asks for a job.
fn silent() -> Behaviour {
    Behaviour { start_after: Duration::from_secs(3600), ..Behaviour::default() }
}

#[tokio::test]
async fn a_daemon_that_restarts_adopts_the_vm_and_the_job_goes_on() {
    let mut world = World::new().await;
    world.runners.will(working_for(Duration::from_secs(2)));
    let job = world.queue();
    world.jobs_are(&["running"]).await;
    let machines = world.machines.vms();
    world.stop().await;
    assert_eq!(world.machines.vms(), machines, "the machine is left alone");
    world.start().await;
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    world.jobs_are(&["done"]).await;
    world.until("its vm ends with it", async || world.ends().await == ["job_done"]).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_job_that_ends_while_the_daemon_is_away_is_found_out() {
    let mut world = World::new().await;
    world.runners.will(working_for(Duration::from_millis(500)));
    let job = world.queue();
    world.jobs_are(&["running"]).await;
    world.stop().await;
    world.completed(job).await;
    world.start().await;
    world.jobs_are(&["done"]).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_host_that_cannot_boot_an_image_stops_trying_and_the_job_stays_queued() {
    let world = World::new().await;
    world.machines.inject(Step::Boot, Fault::Fail(100));
    let job = world.queue();
    world
        .until("the image is quarantined", async || {
            world.texts("SELECT last_failure FROM host_images WHERE quarantined_until IS NOT NULL").await
                == ["boot_failed"]
        })
        .await;
    assert_eq!(world.texts("SELECT count(*)::text FROM vms").await, ["3"], "three tries, and no more");
    assert_eq!(world.texts("SELECT state || attempts FROM jobs").await, ["queued0"], "it costs the job nothing");
    world.machines.heal(Step::Boot);
    world.execute("UPDATE host_images SET quarantined_until = clock_timestamp()").await;
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    assert_eq!(world.texts("SELECT failures::text FROM host_images").await, ["0"], "the canary cleared it");
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_guest_that_never_becomes_ready_is_destroyed_and_another_is_made() {
    let world = World::with(Setup { limits: "boot_timeout = \"2s\"", ..Setup::default() }).await;
    world.machines.inject(Step::Ready, Fault::Hang);
    let job = world.queue();
    world.until("the first gives up", async || world.ends().await.contains(&"boot_timeout".to_owned())).await;
    world.machines.heal(Step::Ready);
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_clone_that_cannot_be_made_is_tried_again() {
    let world = World::new().await;
    world.machines.inject(Step::Clone, Fault::Fail(1));
    let job = world.queue();
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    assert_eq!(world.ends().await[0], "clone_failed");
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_runner_that_never_takes_its_job_is_let_go_and_the_job_is_served() {
    let world = World::with(Setup { limits: "idle_timeout = \"1s\"", ..Setup::default() }).await;
    world.runners.will(silent());
    let job = world.queue();
    world.vms_are("serving", 1).await;
    world.runners.will(Behaviour::default());
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    world.until("its end has a reason", async || world.ends().await[0] == "idle").await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_runner_that_exits_at_once_is_replaced() {
    let world = World::new().await;
    world.runners.will(Behaviour { refuses: Some(1), ..Behaviour::default() });
    let job = world.queue();
    world.until("the first is out", async || world.ends().await.contains(&"runner_exited".to_owned())).await;
    world.runners.will(Behaviour::default());
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_runner_that_github_calls_too_old_stops_the_image_instead_of_looping() {
    let world = World::new().await;
    world.github.switch(|switches| switches.deprecated_runners = true);
    world.queue();
    world
        .until("the image is quarantined", async || {
            world.texts("SELECT last_failure FROM host_images WHERE quarantined_until IS NOT NULL").await
                == ["runner_too_old"]
        })
        .await;
    world.vms_are("gone", 1).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_mint_whose_answer_is_lost_leaves_no_registration() {
    let world = World::new().await;
    world.github.fail_next(MINT, 502, 1, true);
    let job = world.queue();
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    assert_eq!(world.github.requests(MINT), 2, "a call that may have had its effect is not repeated blindly");
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_mint_that_fails_is_tried_again_with_another_name() {
    let world = World::new().await;
    world.github.fail_next(MINT, 500, 2, false);
    let job = world.queue();
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    assert_eq!(world.texts("SELECT count(*)::text FROM runner_names").await, ["3"]);
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_job_whose_in_progress_is_lost_is_not_served_twice() {
    let world = World::new().await;
    world.runners.will(working_for(Duration::from_millis(300)));
    let job = world.queue();
    world.vms_are("serving", 1).await;
    world.github.switch(|switches| switches.deliveries.drop_fraction = 1.0);
    world.completed(job).await;
    world.jobs_are(&["done"]).await;
    assert_eq!(world.texts("SELECT count(*)::text FROM vms").await, ["1"], "no second machine for a finished job");
    world.nothing_is_left().await;
}

#[tokio::test]
async fn deliveries_that_come_twice_late_and_in_disorder_change_nothing() {
    let world = World::with(Setup { limits: "jobs_per_installation = 100", ..Setup::default() }).await;
    world.github.switch(|switches| {
        switches.deliveries.repeat = 1;
        switches.deliveries.reorder = 4;
        switches.deliveries.seed = 7;
    });
    let jobs: Vec<_> = (0..12).map(|_| world.queue()).collect();
    for job in jobs {
        assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    }
    world.jobs_are(&["done"; 12]).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_cancelled_jobs_runner_is_let_go_at_once() {
    let world = World::new().await;
    world.runners.will(silent());
    let job = world.queue();
    world.vms_are("serving", 1).await;
    world.github.cancel(job);
    world.until("its vm ends as surplus", async || world.ends().await == ["surplus"]).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_job_is_lost_with_its_machine_when_github_has_given_it_up() {
    let world = World::new().await;
    world.github.switch(|switches| {
        switches.silence_ms = 300;
        switches.lost_after_ms = 300;
    });
    world.runners.will(Behaviour::working(Work::Freeze));
    let job = world.queue();
    world.jobs_are(&["running"]).await;
    for vm in world.machines.vms() {
        world.machines.crash(vm);
    }
    world.completed(job).await;
    world.jobs_are(&["lost"]).await;
    assert_eq!(world.texts("SELECT reason || ' ' || conclusion FROM jobs").await, ["vm_vanished failure"]);
    world.until("its vm's end is written", async || world.ends().await == ["vanished"]).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_job_that_runs_too_long_is_ended() {
    let world = World::with(Setup { limits: "job_timeout = \"2s\"", ..Setup::default() }).await;
    world.github.switch(|switches| {
        switches.silence_ms = 300;
        switches.lost_after_ms = 300;
    });
    world.runners.will(working_for(Duration::from_secs(3600)));
    let job = world.queue();
    world.completed(job).await;
    world.until("the deadline ended it", async || world.ends().await == ["job_timeout"]).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_drained_host_finishes_its_job_and_takes_no_other() {
    let world = World::new().await;
    world.runners.will(working_for(Duration::from_millis(500)));
    let first = world.queue();
    world.jobs_are(&["running"]).await;
    world.execute("UPDATE hosts SET draining = true").await;
    let second = world.queue();
    world.completed(first).await;
    world.jobs_are(&["done", "queued"]).await;
    world.vms_are("gone", 1).await;
    assert_eq!(world.github.job(second.id).map(|job| job.status), Some(Status::Queued));
    world.execute("UPDATE hosts SET draining = false").await;
    world.completed(second).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_vm_that_nobody_knows_is_destroyed_at_the_next_start() {
    let mut world = World::new().await;
    world.runners.will(working_for(Duration::from_secs(3600)));
    let job = world.queue();
    world.jobs_are(&["running"]).await;
    world.stop().await;
    // As if the daemon had died between the row's end and the machine's.
    world.execute("UPDATE vms SET state = 'gone', reason = 'killed', gone_at = clock_timestamp()").await;
    world.start().await;
    world.until("the orphan is gone", async || world.machines.vms().is_empty()).await;
    world.github.switch(|switches| switches.cancel_grace_ms = 100);
    world.github.cancel(job);
    world.completed(job).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_profile_kept_warm_has_a_vm_ready_before_the_job() {
    let world = World::with(Setup { profile: "warm = 1", ..Setup::default() }).await;
    world.vms_are("ready", 1).await;
    let job = world.github.queue_job(&world.repo, &[LABEL], JobScript::new().step("true"));
    world.completed(job).await;
    world.jobs_are(&["done"]).await;
    world.vms_are("ready", 1).await;
    let early = "SELECT (v.ready_at < j.received_at)::text FROM jobs j JOIN vms v ON v.id = j.vm_id";
    assert_eq!(world.texts(early).await, ["true"]);
    world.execute("UPDATE hosts SET draining = true").await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_suspended_installation_is_not_served_and_is_again_when_it_is_lifted() {
    let world = World::new().await;
    let first = world.queue();
    world.completed(first).await;
    world.github.suspend(&world.acme);
    world
        .until("the suspension is known", async || {
            world.texts("SELECT (suspended_at IS NOT NULL)::text FROM tenants").await == ["true"]
        })
        .await;
    world.github.unsuspend(&world.acme);
    world
        .until("its end, too", async || {
            world.texts("SELECT (suspended_at IS NULL)::text FROM tenants").await == ["true"]
        })
        .await;
    let second = world.queue();
    world.completed(second).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn an_outage_of_github_delays_and_loses_nothing() {
    let world = World::new().await;
    let job = world.queue_held().await;
    world.github.switch(|switches| switches.outage = true);
    world.machines.heal(Step::Ready);
    world.vms_are("bound", 1).await;
    world
        .until("minting was tried", async || world.texts("SELECT state FROM runners WHERE tries > 0").await.len() == 1)
        .await;
    world.github.switch(|switches| switches.outage = false);
    let done = world.github.job_completed(job.id, SOON * 2).await.expect("the job is completed");
    assert_eq!(done.conclusion, Some(Conclusion::Success));
    world.nothing_is_left().await;
}
