//! Whole jobs: from GitHub's webhook to steps that run inside a VM, and to nothing that is left of it.

use crate::daemon::{Setup, World};
use crate::support::PATIENCE;
use fake_github::{Conclusion, JobScript, Status};

/// Every vm's end.
const ENDS: &str = "SELECT coalesce(reason, '') FROM vms ORDER BY planned_at";
/// Every job's state.
const JOBS: &str = "SELECT state FROM jobs ORDER BY received_at";

#[tokio::test(flavor = "multi_thread")]
async fn two_jobs_at_once_run_in_vms_of_their_own_and_leave_only_metadata() {
    let world = World::new(Setup { slots: 2, ..Setup::default() }).await;
    let canary = format!("canary-{:032x}", uuid::Uuid::new_v4().as_u128());
    let good = JobScript::new()
        .secret("DEPLOY_KEY", &canary)
        .step("echo \"with $DEPLOY_KEY\"; echo \"$DEPLOY_KEY\" > /root/key; sync; echo \"$(uname -s) $(cat /sys/class/net/eth0/address)\"")
        .step(world.gate.wait_there());
    let bad = JobScript::new().step(world.gate.wait_there()).step("echo 'assertion failed'; exit 3").step("echo never");
    let (good, bad) = (world.queue(good), world.queue(bad));
    let (one, other) = (world.gate.arrival().await, world.gate.arrival().await);
    for job in [good, bad] {
        assert_eq!(world.github.job(job.id).expect("a job").status, Status::InProgress, "both run at once");
    }
    assert_eq!(world.places_of(&canary).await, Vec::<String>::new(), "while it is used, and on the job's own disk");
    tokio::join!(one.go_on(), other.go_on());

    assert_eq!(world.completed(good).await.conclusion, Some(Conclusion::Success));
    assert_eq!(world.completed(bad).await.conclusion, Some(Conclusion::Failure));
    let log = world.log_of(good);
    for expected in ["##[group]flyci", "host: test", "profile: flyci-test", "with ***", "Linux 52:54:00:", "go on"] {
        assert!(log.contains(expected), "{expected} is not in the log:\n{log}");
    }
    let log = world.log_of(bad);
    assert!(log.contains("assertion failed") && !log.contains("never\n"), "{log}");

    world.nothing_is_left().await;
    world.until(JOBS, &["done", "done"]).await;
    world.until("SELECT conclusion FROM jobs ORDER BY conclusion", &["failure", "success"]).await;
    assert_eq!(world.texts(ENDS).await, ["job_done", "job_done"]);
    let told = "SELECT vm.id::text FROM jobs JOIN vms AS vm ON vm.id = jobs.vm_id WHERE vm.cloned_at IS NOT NULL \
                AND vm.ready_at IS NOT NULL AND vm.serving_at IS NOT NULL AND github_completed_at IS NOT NULL";
    let vms = world.texts(told).await;
    assert!(vms.len() == 2 && vms[0] != vms[1], "each job has a vm of its own: {vms:?}");
    assert_eq!(world.places_of(&canary).await, Vec::<String>::new(), "afterwards");
    let control = world.places_of(&vms[0]).await;
    let found = |end: &str| control.iter().any(|place| place.ends_with(end));
    assert!(found("/daemon.log") && found("vms"), "the search finds what is there: {control:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_cancelled_while_its_vm_boots_another_while_it_waits_a_third_while_it_runs() {
    let world = World::new(Setup::default()).await;
    let early = world.queue(JobScript::new().step("echo never"));
    world.until_some("SELECT FROM vms WHERE state = 'booting' AND booted_at IS NOT NULL").await;
    assert!(world.github.cancel(early), "it had no runner");
    world.until(JOBS, &["cancelled"]).await;

    // The vm that boots already serves the next one.
    let running =
        world.queue(JobScript::new().step(format!("echo began; {}", world.gate.wait_there())).step("echo never"));
    let _waits = world.gate.arrival().await;
    let waiting = world.queue(JobScript::new().step("echo never"));
    world.until(JOBS, &["cancelled", "running", "queued"]).await;
    assert!(world.github.cancel(waiting), "it waits for the only slot");
    world.until(JOBS, &["cancelled", "running", "cancelled"]).await;
    assert!(world.github.cancel(running), "it runs");

    assert_eq!(world.completed(running).await.conclusion, Some(Conclusion::Cancelled));
    world.nothing_is_left().await;
    // What a runner had is done, however it ended.
    world.until(JOBS, &["cancelled", "done", "cancelled"]).await;
    let conclusions = "SELECT coalesce(conclusion, '') FROM jobs WHERE state = 'done'";
    assert_eq!(world.texts(conclusions).await, ["cancelled"]);
    assert_eq!(world.texts(ENDS).await, ["job_done"], "one vm was enough");
    let log = [early, running, waiting].map(|job| world.log_of(job)).join("\n");
    assert!(log.contains("began") && !log.contains("never\n"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_never_becomes_ready_is_ended_and_its_job_waits_for_a_better_one() {
    let world = World::new(Setup { limits: "boot_timeout = \"2s\"", broken: true, ..Setup::default() }).await;
    let job = world.queue(JobScript::new().step("echo never"));
    // The host is to blame: after three it rests, and the job is not lost.
    world.until_some("SELECT FROM host_images WHERE quarantined_until IS NOT NULL").await;
    world.nothing_is_left().await;
    let mut ends = world.texts(ENDS).await;
    ends.dedup();
    assert_eq!(ends, ["boot_timeout"]);
    assert_eq!(world.texts(JOBS).await, ["queued"]);
    assert!(world.github.cancel(job), "GitHub has it queued");
    world.until(JOBS, &["cancelled"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_never_takes_a_job_is_ended_and_the_job_is_tried_again() {
    let run = Some("#!/bin/sh\nexec sleep 3600\n");
    let world = World::new(Setup { limits: "idle_timeout = \"2s\"", run, ..Setup::default() }).await;
    let job = world.queue(JobScript::new().step("echo never"));
    world.until_some("SELECT FROM vms WHERE state = 'gone' AND reason = 'idle'").await;
    // Another vm is made for it.
    world.until_some("SELECT FROM vms WHERE state = 'booting'").await;
    assert!(world.github.cancel(job), "no runner has it");
    world.until(JOBS, &["cancelled"]).await;
    world.nothing_is_left().await;
    assert_eq!(world.texts(ENDS).await, ["idle", "surplus"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_outlives_its_daemon_and_the_next_daemon_ends_the_vm() {
    let mut world = World::new(Setup::default()).await;
    let gate = world.gate.wait_there();
    let job = world.queue(JobScript::new().step(format!("{gate}echo alone\n{gate}echo 'among friends'")));
    let before = world.gate.arrival().await;
    world.until(JOBS, &["running"]).await;
    let machines = world.machines();
    assert!(!machines.is_empty(), "a machine runs");

    world.kill_daemon();
    before.go_on().await;
    let after = world.gate.arrival().await;
    let heard =
        |seen: &fake_github::world::World| seen.jobs[&job.id].log.iter().any(|line| line == "alone").then_some(());
    world.github.wait_for("the step's word while no daemon is there", PATIENCE, heard).await.expect("it is heard");
    assert_eq!(world.machines(), machines, "nothing of it ended with the daemon");

    world.restart_daemon().await;
    assert_eq!(world.texts("SELECT state FROM vms").await, ["serving"], "the vm is adopted");
    after.go_on().await;
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    assert!(world.log_of(job).contains("among friends"));
    world.nothing_is_left().await;
    world.until(JOBS, &["done"]).await;
    assert_eq!(world.texts(ENDS).await, ["job_done"], "no other vm was needed");
}
