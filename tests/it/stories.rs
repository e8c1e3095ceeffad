//! The way of a job, from the webhook to the machine's end.

use crate::support::world::{LABEL, Setup, World, working_for};
use fake_github::runner::{Behaviour, Work};
use fake_github::{AccountKind, Conclusion, JobScript, Visibility};
use flyci::hypervisor::fake::Step;
use std::time::Duration;

#[tokio::test]
async fn a_job_runs_in_a_machine_of_its_own_that_is_gone_afterwards() {
    let world = World::new().await;
    let job = world.queue();
    let done = world.completed(job).await;
    assert_eq!(done.conclusion, Some(Conclusion::Success));
    world.jobs_are(&["done"]).await;
    assert_eq!(world.github.requests("POST /repos/{owner}/{repo}/actions/runners/generate-jitconfig"), 1);
    let steps = "SELECT (planned_at <= cloned_at AND cloned_at <= booted_at AND booted_at <= ready_at
        AND ready_at <= bound_at AND bound_at <= delivering_at AND delivering_at <= serving_at)::text FROM vms";
    assert_eq!(world.texts(steps).await, ["true"], "each step has its time, in their order");
    world.vms_are("gone", 1).await;
    assert_eq!(world.ends().await, ["job_done"]);
    world.nothing_is_left().await;
}

#[tokio::test]
async fn twenty_jobs_on_four_slots_each_get_a_machine_of_their_own() {
    let world = World::with(Setup { limits: "jobs_per_installation = 100", ..Setup::default() }).await;
    let jobs: Vec<_> = (0..20).map(|_| world.queue()).collect();
    for job in jobs {
        assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    }
    world.jobs_are(&["done"; 20]).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_job_that_fails_is_done_and_costs_no_second_machine() {
    let world = World::new().await;
    world.runners.will(Behaviour::working(Work::Instant(Conclusion::Failure)));
    let job = world.queue();
    world.completed(job).await;
    world.jobs_are(&["done"]).await;
    assert_eq!(world.texts("SELECT conclusion FROM jobs").await, ["failure"]);
    world.vms_are("gone", 1).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_job_cancelled_in_the_queue_never_gets_a_runner() {
    let world = World::new().await;
    let job = world.queue_held().await;
    world.github.cancel(job);
    world.jobs_are(&["cancelled"]).await;
    let mint = "POST /repos/{owner}/{repo}/actions/runners/generate-jitconfig";
    assert_eq!(world.github.requests(mint), 0);
    world.execute("UPDATE vms SET kill_asked = 'killed'").await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_job_cancelled_while_its_machine_boots_leaves_a_warm_vm_for_the_next() {
    let world = World::new().await;
    let cancelled = world.queue_held().await;
    world.github.cancel(cancelled);
    world.jobs_are(&["cancelled"]).await;
    world.machines.heal(Step::Ready);
    // The hanging look at the guest is made anew when the driver is woken.
    world.execute("UPDATE vms SET kill_asked = NULL").await;
    let next = world.queue();
    world.completed(next).await;
    world.jobs_are(&["cancelled", "done"]).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_job_cancelled_while_it_runs_ends_its_machine() {
    let world = World::new().await;
    world.runners.will(working_for(Duration::from_secs(60)));
    let job = world.queue();
    world.jobs_are(&["running"]).await;
    world.github.cancel(job);
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Cancelled));
    world.jobs_are(&["done"]).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_sibling_takes_the_runner_and_both_jobs_are_served() {
    let world = World::new().await;
    let (first, second) = (world.queue(), world.queue());
    world.completed(first).await;
    world.completed(second).await;
    world.jobs_are(&["done", "done"]).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_job_without_our_label_is_not_ours_but_says_why() {
    let world = World::new().await;
    let job = world.github.queue_job(&world.repo, &["ubuntu-latest"], JobScript::new());
    world
        .until("the refusal is there", async || world.texts("SELECT reason FROM refusals").await == ["label_unknown"])
        .await;
    world.github.cancel(job);
    world.nothing_is_left().await;
}

#[tokio::test]
async fn jobs_of_a_public_repository_are_refused() {
    let world = World::new().await;
    let open = world.github.repository(&world.acme, "open", Visibility::Public);
    world.queue_on(&open);
    world
        .until("the refusal is there", async || {
            world.texts("SELECT reason FROM refusals").await == ["public_repository"]
        })
        .await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_runner_registered_for_one_repository_serves_no_other() {
    let world = World::new().await;
    world.runners.will(Behaviour { start_after: Duration::from_millis(200), ..Behaviour::default() });
    let other = world.github.repository(&world.acme, "other", Visibility::Private);
    let (one, two) = (world.queue(), world.queue_on(&other));
    let (one, two) = (world.completed(one).await, world.completed(two).await);
    assert_ne!(one.runner.map(|runner| runner.id), two.runner.map(|runner| runner.id));
    world.nothing_is_left().await;
}

#[tokio::test]
async fn two_organisations_are_served_beside_each_other() {
    let world = World::with(Setup { slots: 2, ..Setup::default() }).await;
    let globex = world.github.install("globex", AccountKind::Organization);
    let theirs = world.github.repository(&globex, "site", Visibility::Private);
    let mut jobs: Vec<_> = (0..6).map(|_| world.queue()).collect();
    jobs.push(world.queue_on(&theirs));
    for job in jobs {
        assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    }
    world.nothing_is_left().await;
}

#[tokio::test]
async fn labels_match_whatever_their_case_and_order() {
    let world = World::new().await;
    let label = LABEL.to_uppercase();
    let job = world.github.queue_job(&world.repo, &["self-hosted", &label], JobScript::new().step("true"));
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    world.nothing_is_left().await;
}
