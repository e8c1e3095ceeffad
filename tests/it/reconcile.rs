//! Deliveries are lost, and whatever happened meanwhile, both sides agree again.

use crate::support::world::{LABEL, Setup, World, working_for};
use chrono::Utc;
use fake_github::runner::{Behaviour, Work};
use fake_github::{AccountKind, Conclusion, Visibility};
use flyci::domain::runner::name_prefix;
use flyci::github::{HeldBudget, Hold, InstallationId, RepositoryRef, Scope};
use flyci::hypervisor::fake::{Fault, Step};
use flyci::upkeep::holds::Holds;
use flyci::upkeep::redeliver::Redeliver;
use std::time::Duration;

/// A runner that never asks for a job.
fn silent() -> Behaviour {
    Behaviour { start_after: Duration::from_secs(3600), ..Behaviour::default() }
}

/// A world whose repository is known by a job that was served.
async fn known_world(setup: Setup) -> World {
    let world = World::with(setup).await;
    let first = world.queue();
    world.completed(first).await;
    world.jobs_are(&["done"]).await;
    world.vms_are("gone", 1).await;
    world.settled().await;
    world
}

#[tokio::test]
async fn a_delivery_that_failed_is_asked_for_again_and_its_job_is_served() {
    let world = World::new().await;
    world.settled().await;
    world.github.switch(|switches| switches.deliveries.drop_next = 1);
    let job = world.queue();
    world.settled().await;
    assert!(world.texts("SELECT state FROM jobs").await.is_empty(), "nobody told of it");
    let redeliver = world.upkeep().redeliver.clone().expect("deliveries come by webhook");
    let report = redeliver.pass(Utc::now()).await.expect("the log is read");
    assert_eq!((report.asked, report.dropped, report.partial), (1, 0, false));
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    world.jobs_are(&["done"]).await;
    let again = redeliver.pass(Utc::now()).await.expect("the log is read");
    assert_eq!(again.asked, 0, "what came is not asked for again");
    assert!(world.texts("SELECT guid::text FROM missed_deliveries").await.is_empty());
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_delivery_that_keeps_failing_is_asked_for_less_and_less() {
    let mut world = World::new().await;
    world.settled().await;
    let gateway = world.upkeep().redeliver.as_ref().expect("deliveries come by webhook").gateway;
    let redeliver = Redeliver { pool: world.db.gateway.clone(), github: world.client(), gateway };
    world.stop().await;
    world.queue();
    world.settled().await;
    assert_eq!(redeliver.pass(Utc::now()).await.expect("the log is read").asked, 1);
    assert_eq!(redeliver.pass(Utc::now()).await.expect("the log is read").asked, 0, "not before a minute is over");
    world.execute("UPDATE missed_deliveries SET asked_at = asked_at - interval '61 seconds'").await;
    assert_eq!(redeliver.pass(Utc::now()).await.expect("the log is read").asked, 1);
    world.execute("UPDATE missed_deliveries SET asked = 8, asked_at = asked_at - interval '1 day'").await;
    assert_eq!(redeliver.pass(Utc::now()).await.expect("the log is read").asked, 0, "and not for ever");
}

#[tokio::test]
async fn a_log_longer_than_one_pass_is_read_on_where_it_was_left() {
    let mut world = World::new().await;
    world.settled().await;
    world.stop().await;
    // The oldest of them all is the only one that counts.
    let job = world.queue();
    world.settled().await;
    for _ in 0..1_150 {
        world.github.send_event("push", serde_json::json!({ "zen": "noise" }));
    }
    world.settled().await;
    world.start().await;
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    assert_eq!(world.texts("SELECT (cursor IS NULL)::text FROM delivery_log").await, ["true"], "it was read whole");
    world.nothing_is_left().await;
}

#[tokio::test]
async fn of_two_gateways_one_reads_the_log() {
    let world = World::new().await;
    let taken = "SELECT pass FROM pass_leases WHERE pass IN ('redeliver', 'backfill', 'registrations')";
    world.until("each pass was made once", async || world.texts(taken).await.len() == 3).await;
    world
        .execute("UPDATE pass_leases SET holder = gen_random_uuid(), until = clock_timestamp() + interval '1 hour'")
        .await;
    let upkeep = world.upkeep();
    let redeliver = upkeep.redeliver.clone().expect("deliveries come by webhook");
    assert!(redeliver.pass(Utc::now()).await.expect("a pass").elsewhere);
    assert!(upkeep.backfill.pass().await.expect("a pass").elsewhere);
    assert!(upkeep.registrations.pass().await.expect("a pass").elsewhere);
    world.execute("UPDATE pass_leases SET until = clock_timestamp() - interval '1 second'").await;
    assert!(!redeliver.pass(Utc::now()).await.expect("a pass").elsewhere, "the other died");
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_job_that_no_delivery_told_of_is_found_and_served() {
    let world = known_world(Setup::default()).await;
    world.lose_next_delivery();
    let job = world.queue();
    world.settled().await;
    world.repositories_are_due().await;
    let report = world.upkeep().backfill.pass().await.expect("a pass");
    assert_eq!((report.found, report.failed), (1, 0));
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    world.jobs_are(&["done", "done"]).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn an_idle_repository_costs_no_more_than_its_runs_under_way() {
    let world = known_world(Setup::default()).await;
    world.repositories_are_due().await;
    let backfill = &world.upkeep().backfill;
    backfill.pass().await.expect("a pass");
    assert_eq!(backfill.pass().await.expect("a pass").scanned, 0, "it is not its turn again so soon");
    world.repositories_are_due().await;
    let report = backfill.pass().await.expect("a pass");
    assert_eq!((report.scanned, report.unchanged, report.requests), (1, 1, 1));
    world.nothing_is_left().await;
}

#[tokio::test]
async fn jobs_of_others_are_not_taken_in() {
    let world = known_world(Setup::default()).await;
    world.lose_next_delivery();
    world.github.queue_job(&world.repo, &["ubuntu-latest"], fake_github::JobScript::new().step("true"));
    world.settled().await;
    world.repositories_are_due().await;
    assert_eq!(world.upkeep().backfill.pass().await.expect("a pass").found, 0);
    assert!(world.texts("SELECT reason FROM refusals").await.is_empty());
    world.nothing_is_left().await;
}

/// Done-when 4: ten minutes of everything, and not one delivery of it.
#[tokio::test]
async fn a_daemon_that_was_away_while_every_delivery_was_lost_is_right_again() {
    let mut world = known_world(Setup { slots: 1, ..Setup::default() }).await;
    world.runners.will(working_for(Duration::from_millis(700)));
    let running = world.queue();
    world.jobs_are(&["done", "running"]).await;
    let (kept, cancelled) = (world.queue(), world.queue());
    world.jobs_are(&["done", "queued", "queued", "running"]).await;
    world.settled().await;
    world.stop().await;
    world.lose_deliveries();
    world.runners.will(Behaviour::default());
    world.github.cancel(cancelled);
    let told_to_nobody = world.queue();
    let gone_again = world.queue();
    world.github.cancel(gone_again);
    world.completed(running).await;
    world.settled().await;

    // Not one delivery comes after the start, either: each job's end is found out, too.
    world.start().await;
    for job in [kept, told_to_nobody] {
        assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    }
    world.jobs_are(&["done", "done", "done", "done", "cancelled"]).await;
    assert_eq!(world.texts("SELECT count(*)::text FROM vms").await, ["4"], "each job had one machine");
    world.nothing_is_left().await;
}

/// The same, with each pass made by hand: two rounds are enough.
#[tokio::test]
async fn two_rounds_of_the_passes_settle_what_was_lost() {
    let world = known_world(Setup { slots: 1, ..Setup::default() }).await;
    world.machines.inject(Step::Ready, Fault::Hang);
    let (first, second) = (world.queue(), world.queue());
    world.jobs_are(&["done", "queued", "queued"]).await;
    world.settled().await;
    world.lose_deliveries();
    world.github.cancel(first);
    let third = world.queue();
    world.settled().await;
    for _ in 0..2 {
        world.repositories_are_due().await;
        world.upkeep().backfill.pass().await.expect("a pass");
        world.upkeep().doubts.pass().await.expect("a pass");
    }
    assert_eq!(
        world.texts("SELECT state FROM jobs ORDER BY state").await,
        ["cancelled", "done", "queued", "queued"],
        "no later than after two rounds"
    );
    world.machines.heal(Step::Ready);
    world.github.switch(|switches| switches.deliveries.drop_fraction = 0.0);
    for job in [second, third] {
        assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    }
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_job_of_a_dead_run_does_not_wait_for_ever() {
    let world = World::new().await;
    let job = world.queue_held().await;
    assert!(world.github.kill_run(job));
    world
        .execute("UPDATE jobs SET queued_at = queued_at - interval '11 minutes', verify_since = clock_timestamp()")
        .await;
    world.upkeep().doubts.pass().await.expect("a pass");
    assert_eq!(world.texts("SELECT state || ' ' || reason FROM jobs").await, ["unserved run_over"]);
    world.execute("UPDATE vms SET kill_asked = 'killed'").await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_registration_that_nothing_stands_behind_is_deleted() {
    let world = known_world(Setup::default()).await;
    let name = format!("{}00000000000000000000000000000000", name_prefix(world.fleet()));
    mint(&world, &name).await;
    mint(&world, "another-fleets-runner").await;
    world.repositories_are_due().await;
    let report = world.upkeep().registrations.pass().await.expect("a pass");
    assert_eq!((report.listed, report.deleted, report.strange_world), (1, 1, false));
    let left: Vec<String> = world.github.all_runners().into_iter().map(|runner| runner.name).collect();
    assert_eq!(left, ["another-fleets-runner"]);
    for runner in world.github.all_runners() {
        world.github.remove_runner(runner.id);
    }
    world.nothing_is_left().await;
}

#[tokio::test]
async fn many_unknown_registrations_are_asked_about_and_not_touched() {
    let world = known_world(Setup::default()).await;
    for digit in ["1", "2", "3"] {
        mint(&world, &format!("{}{}", name_prefix(world.fleet()), digit.repeat(32))).await;
    }
    world.repositories_are_due().await;
    let report = world.upkeep().registrations.pass().await.expect("a pass");
    assert_eq!((report.deleted, report.strange_world), (0, true));
    assert_eq!(world.upkeep().registrations.troubles.all().len(), 1, "the operator is told");
    for runner in world.github.all_runners() {
        world.github.remove_runner(runner.id);
    }
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_registration_whose_runner_is_over_is_deleted() {
    let world = World::new().await;
    world.runners.will(silent());
    world.queue();
    world.vms_are("serving", 1).await;
    world.until("it is registered", async || world.github.all_runners().len() == 1).await;
    // As if the row's end had been written, and GitHub had not done what it was asked.
    world.execute("UPDATE jobs SET state = 'cancelled', ended_at = clock_timestamp()").await;
    world.execute("UPDATE runners SET state = 'removed', removed_at = clock_timestamp(), sealed_jit = NULL").await;
    world.repositories_are_due().await;
    world
        .until("the registration is deleted", async || {
            world.repositories_are_due().await;
            world.upkeep().registrations.pass().await.expect("a pass");
            world.github.all_runners().is_empty()
        })
        .await;
    world.nothing_is_left().await;
}

/// Registers a runner that no row of ours is of.
async fn mint(world: &World, name: &str) {
    let labels = [LABEL].iter().collect();
    let repository = RepositoryRef { id: world.repo.id, full_name: "acme/app" };
    let installation = InstallationId(world.acme.id);
    world.client().mint(installation, repository, Scope::Repository, name, &labels).await.expect("minted");
}

#[tokio::test]
async fn a_job_lost_with_its_machine_is_run_again_if_the_operator_wants_that() {
    let world = World::with(Setup { limits: "rerun_lost_jobs = true", ..Setup::default() }).await;
    world.github.switch(|switches| {
        switches.silence_ms = 300;
        switches.lost_after_ms = 300;
    });
    world.runners.will(Behaviour::working(Work::Freeze));
    let job = world.queue();
    world.jobs_are(&["running"]).await;
    world.runners.will(Behaviour::default());
    for vm in world.machines.vms() {
        world.machines.crash(vm);
    }
    world.completed(job).await;
    world.jobs_are(&["lost"]).await;
    let rerun = world.upkeep().rerun.clone().expect("it is switched on");
    assert_eq!(rerun.pass().await.expect("a pass").asked, 1);
    world.jobs_are(&["done", "lost"]).await;
    assert_eq!(world.texts("SELECT run_attempt::text FROM jobs ORDER BY received_at").await, ["1", "2"]);
    assert_eq!(rerun.pass().await.expect("a pass").asked, 0, "once");
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_machine_that_dies_before_its_job_starts_costs_one_question() {
    let world = World::new().await;
    world.runners.will(silent());
    let job = world.queue();
    world.vms_are("serving", 1).await;
    world.runners.will(Behaviour::default());
    for vm in world.machines.vms() {
        world.machines.crash(vm);
    }
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    world.jobs_are(&["done"]).await;
    assert_eq!(world.ends().await, ["vanished", "job_done"]);
    assert_eq!(world.github.requests("GET /repos/{owner}/{repo}/actions/jobs/{job_id}"), 1);
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_repository_taken_away_without_a_word_is_found_out_by_the_refusal() {
    let world = World::new().await;
    world.queue_held().await;
    world.settled().await;
    world.lose_deliveries();
    world.github.select(&world.repo, false);
    world.machines.heal(Step::Ready);
    world.jobs_are(&["unserved"]).await;
    assert_eq!(world.texts("SELECT reason FROM jobs").await, ["repository_gone"]);
    assert_eq!(world.texts("SELECT (removed_at IS NOT NULL)::text FROM repositories").await, ["true"]);
    world.execute("UPDATE vms SET kill_asked = 'killed'").await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_repository_renamed_without_a_word_is_served_by_its_new_name() {
    let world = World::new().await;
    let job = world.queue_held().await;
    world.settled().await;
    world.lose_next_delivery();
    world.github.rename(&world.repo, "renamed");
    world.settled().await;
    world.machines.heal(Step::Ready);
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    world.jobs_are(&["done"]).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn an_installation_suspended_without_a_word_is_found_out_by_the_refusal() {
    let world = World::new().await;
    world.queue_held().await;
    world.settled().await;
    world.lose_deliveries();
    world.github.suspend(&world.acme);
    world.machines.heal(Step::Ready);
    world
        .until("the suspension is known", async || {
            world.texts("SELECT (suspended_at IS NOT NULL)::text FROM tenants").await == ["true"]
        })
        .await;
    world.github.unsuspend(&world.acme);
    world.execute("UPDATE tenants SET verify_since = clock_timestamp()").await;
    world.jobs_are(&["done"]).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_permission_taken_away_is_told_to_the_operator() {
    let world = World::new().await;
    world.queue_held().await;
    world.settled().await;
    world.lose_next_delivery();
    world.github.grant(&world.acme, "administration", None);
    world.settled().await;
    world.machines.heal(Step::Ready);
    let troubles = &world.upkeep().doubts.troubles;
    world
        .until("it is told", async || troubles.all().iter().any(|one| one.evidence.contains("lacks Administration")))
        .await;
    world.github.grant(&world.acme, "administration", Some("write"));
    world.until("it is well again", async || troubles.all().is_empty()).await;
    world.execute("UPDATE runners SET not_before = clock_timestamp() WHERE state = 'requested'").await;
    world.jobs_are(&["done"]).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn what_one_gateway_is_told_to_wait_all_gateways_wait() {
    let world = known_world(Setup::default()).await;
    let idle = world.github.install("globex", AccountKind::Organization);
    let idle = InstallationId(idle.id);
    world.until("it is known", async || world.texts("SELECT id::text FROM tenants").await.len() == 2).await;
    let told = world.client();
    told.hold(&Hold { installation: Some(idle), budget: HeldBudget::All, wait: Duration::from_secs(300) });
    let ring = std::sync::Arc::clone(&world.upkeep().holds.ring);
    let other = Holds { pool: world.db.gateway.clone(), ring, github: told };
    assert_eq!(other.pass().await.expect("a pass").told, 1);
    assert!(world.upkeep().holds.github.holds().is_empty());
    assert_eq!(world.upkeep().holds.pass().await.expect("a pass").obeyed, 1);
    let held = world.upkeep().holds.github.holds();
    assert_eq!(
        held.iter().map(|hold| (hold.installation, hold.budget)).collect::<Vec<_>>(),
        [(Some(idle), HeldBudget::All)]
    );
    world.execute("UPDATE github_holds SET until = clock_timestamp()").await;
    world.upkeep().holds.pass().await.expect("a pass");
    world.nothing_is_left().await;
}

#[tokio::test]
async fn pulled_deliveries_need_no_listener() {
    let world = World::with(Setup { pull: true, limits: "jobs_per_installation = 100", ..Setup::default() }).await;
    let other = world.github.repository(&world.acme, "second", Visibility::Private);
    let jobs = [world.queue(), world.queue(), world.queue_on(&other)];
    for job in jobs {
        assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    }
    world.jobs_are(&["done"; 3]).await;
    world.settled().await;
    let detail = "GET /app/hook/deliveries/{delivery_id}";
    let taken = async || world.texts("SELECT guid::text FROM deliveries").await.len();
    world.until("each delivery was taken", async || taken().await == world.github.deliveries().len()).await;
    assert_eq!(world.github.requests(detail), taken().await as u64, "with one request each");
    let pull = world.upkeep().pull.clone().expect("deliveries are pulled");
    assert_eq!(pull.pass(Utc::now()).await.expect("a pass").fetched, 0, "what came is not fetched again");
    assert!(world.upkeep().redeliver.is_none());
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_pull_that_was_away_fetches_what_it_missed() {
    let mut world = World::with(Setup { pull: true, ..Setup::default() }).await;
    let first = world.queue();
    world.completed(first).await;
    world.jobs_are(&["done"]).await;
    world.stop().await;
    let second = world.queue();
    world.settled().await;
    for _ in 0..150 {
        world.github.send_event("push", serde_json::json!({ "zen": "noise" }));
    }
    world.settled().await;
    world.start().await;
    assert_eq!(world.completed(second).await.conclusion, Some(Conclusion::Success));
    world.jobs_are(&["done", "done"]).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_host_whose_profiles_are_not_the_gateways_says_so() {
    let world = World::new().await;
    let differs =
        "SELECT coalesce(array_to_string(can_boot, ',') || '/' || array_to_string(differs, ','), '') FROM hosts";
    world.until("it says what it can boot", async || world.texts(differs).await == ["flyci-test/"]).await;
    world.until("the profile is published", async || world.texts("SELECT label FROM profiles").await == [LABEL]).await;
    world.execute("UPDATE profiles SET description = jsonb_set(description, '{cpus}', '64')").await;
    world
        .until("it says that its own is another", async || world.texts(differs).await == ["flyci-test/flyci-test"])
        .await;
    world.nothing_is_left().await;
}
