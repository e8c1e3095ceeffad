//! Several hosts around one Postgres: what becomes of the jobs of one that falls silent, and what it does when it
//! comes back. The rescuer's clock is the story's.

use crate::support::world::{Host, SOON, Setup, World, working_for};
use fake_github::Conclusion;
use fake_github::runner::{Behaviour, Work};
use flyci::hypervisor::fake::{Fault, Step};
use flyci::store::{Applied, hosts, rescue};
use flyci::upkeep::rescue::{LEASE, Rescue, RescueReport};
use flyci::wake::Wakes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Less than the rescuer may be held up between two looks.
const BETWEEN_LOOKS: Duration = Duration::from_secs(10);

/// A gateway, and two hosts with one slot each, of which the first runs.
async fn two_hosts() -> (World, Host, Host) {
    let world = World::with(Setup { gateway_alone: true, ..Setup::default() }).await;
    let (mut first, second) = (world.host("first", 1).await, world.host("second", 1).await);
    first.start().await;
    (world, first, second)
}

/// A rescuer beside the daemon's, with a clock of its own.
struct Rescuer {
    rescue: Rescue,
    now: Instant,
}

impl Rescuer {
    async fn new(world: &World) -> Self {
        let rescue = Rescue::new(world.db.gateway.clone(), Uuid::new_v4(), Arc::new(Wakes::default()));
        let mut rescuer = Self { rescue, now: Instant::now() };
        // The daemon's own must not be in its way.
        while rescuer.looks().await.elsewhere {
            world.execute("DELETE FROM pass_leases WHERE pass = 'rescue'").await;
        }
        rescuer
    }

    async fn looks(&mut self) -> RescueReport {
        self.rescue.pass(self.now).await.expect("the database answers")
    }

    /// Looks again and again until a lease is over; answers what it did last.
    async fn looks_for_a_lease(&mut self) -> RescueReport {
        let until = self.now + LEASE;
        let mut report = RescueReport::default();
        while self.now < until {
            self.now += BETWEEN_LOOKS;
            report = self.looks().await;
        }
        report
    }
}

/// A runner that never asks for a job.
fn silent() -> Behaviour {
    Behaviour { start_after: Duration::from_secs(3600), ..Behaviour::default() }
}

/// Whatever was decided while one was silent, no vm is left on either.
async fn neither_has_anything(world: &World, first: Host, second: Host) {
    first.nothing_is_left(world).await;
    second.nothing_is_left(world).await;
}

#[tokio::test]
async fn what_a_silent_host_was_booting_is_served_by_another_and_destroyed_when_it_returns() {
    let (world, mut first, mut second) = two_hosts().await;
    first.machines.inject(Step::Ready, Fault::Hang);
    let job = world.queue();
    world.vms_are("booting", 1).await;
    first.stop().await;
    let mut rescuer = Rescuer::new(&world).await;
    let report = rescuer.looks_for_a_lease().await;
    assert_eq!((report.silent, report.abandoned), (1, 1), "{report:?}");
    second.start().await;
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    world.until("only the abandoned vm is left", async || world.live().await == ["first abandoned"]).await;
    assert_eq!(first.machines.vms().len(), 1, "nobody but its host can destroy it");
    first.start().await;
    world.until("its end is written", async || world.ends().await == ["abandoned", "job_done"]).await;
    neither_has_anything(&world, first, second).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn what_waits_for_its_runner_on_a_silent_host_leaves_no_registration() {
    let (world, mut first, mut second) = two_hosts().await;
    let job = world.queue_held_on(&first).await;
    world.github.switch(|switches| switches.outage = true);
    first.machines.heal(Step::Ready);
    world.vms_are("bound", 1).await;
    first.stop().await;
    // The gateway mints although nobody is there to take it.
    world.github.switch(|switches| switches.outage = false);
    world.until("it is minted", async || world.texts("SELECT state FROM runners").await == ["minted"]).await;
    Rescuer::new(&world).await.looks_for_a_lease().await;
    second.start().await;
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    first.start().await;
    world.until("its end is written", async || world.ends().await == ["abandoned", "job_done"]).await;
    neither_has_anything(&world, first, second).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_runner_without_a_job_on_a_silent_host_is_let_go_by_github_before_its_job_is_served_elsewhere() {
    let (world, mut first, mut second) = two_hosts().await;
    world.runners.will(silent());
    let job = world.queue();
    world.vms_are("serving", 1).await;
    first.stop().await;
    world.runners.will(Behaviour::default());
    let mut rescuer = Rescuer::new(&world).await;
    let report = rescuer.looks_for_a_lease().await;
    assert_eq!((report.abandoned, report.asked), (0, 1), "the registration is the fence: {report:?}");
    world.until("GitHub let go", async || world.texts("SELECT state FROM runners").await == ["removed"]).await;
    assert_eq!(rescuer.looks().await.stopped, 1);
    second.start().await;
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    first.start().await;
    neither_has_anything(&world, first, second).await;
    assert_eq!(world.ends().await, ["abandoned", "job_done"]);
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_job_that_runs_on_a_silent_host_runs_on_and_once() {
    let (world, mut first, mut second) = two_hosts().await;
    world.runners.will(Behaviour::working(Work::Freeze));
    let job = world.queue();
    world.jobs_are(&["running"]).await;
    first.stop().await;
    let mut rescuer = Rescuer::new(&world).await;
    assert_eq!(rescuer.looks_for_a_lease().await.unreachable, 1);
    assert_eq!(rescuer.looks_for_a_lease().await, RescueReport { silent: 1, ..RescueReport::default() }, "all is said");
    second.start().await;
    assert_eq!(world.live().await, ["first unreachable"]);
    first.start().await;
    world.until("its host watches it again", async || world.live().await == ["first serving"]).await;
    world.github.switch(|switches| switches.cancel_grace_ms = 100);
    world.github.cancel(job);
    world.completed(job).await;
    world.until("it ends where it ran", async || world.ends().await == ["job_done"]).await;
    neither_has_anything(&world, first, second).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_runner_that_github_calls_busy_is_kept_although_its_deliveries_were_lost() {
    let (world, mut first, mut second) = two_hosts().await;
    let start_after = Duration::from_millis(500);
    world.runners.will(Behaviour { start_after, ..working_for(Duration::from_secs(4)) });
    let job = world.queue();
    world.vms_are("serving", 1).await;
    world.lose_deliveries();
    world.until("GitHub gave it the job", async || world.github.all_runners().iter().any(|runner| runner.busy)).await;
    first.stop().await;
    let mut rescuer = Rescuer::new(&world).await;
    assert_eq!(rescuer.looks_for_a_lease().await.asked, 1);
    world.until("GitHub said busy", async || world.texts("SELECT state FROM runners").await == ["busy"]).await;
    assert_eq!(rescuer.looks().await.unreachable, 1);
    world.github.switch(|switches| switches.deliveries.drop_fraction = 0.0);
    second.start().await;
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    first.start().await;
    world.jobs_are(&["done"]).await;
    assert_eq!(world.ends().await.len(), 1, "it ran once");
    neither_has_anything(&world, first, second).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_job_that_ends_while_its_host_is_silent_needs_the_host_only_to_clean_up() {
    let (world, mut first, second) = two_hosts().await;
    world.runners.will(working_for(Duration::from_secs(1)));
    let job = world.queue();
    world.jobs_are(&["running"]).await;
    first.stop().await;
    let mut rescuer = Rescuer::new(&world).await;
    assert_eq!(rescuer.looks_for_a_lease().await.unreachable, 1);
    world.completed(job).await;
    world
        .until("its registration is over", async || world.texts("SELECT state FROM runners").await == ["removed"])
        .await;
    assert_eq!(rescuer.looks().await.stopped, 1);
    assert_eq!(world.live().await, ["first stopping"], "its tenant may have another vm, its slot is not free");
    first.start().await;
    neither_has_anything(&world, first, second).await;
    assert_eq!(world.ends().await, ["job_done"]);
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_host_that_was_only_cut_off_destroys_what_was_abandoned_and_then_serves_it_anew() {
    let (world, first, second) = two_hosts().await;
    let job = world.queue_held_on(&first).await;
    let stale = first.machines.vms()[0];
    // Between two of its beats a whole lease passes for the rescuer.
    let mut rescuer = Rescuer::new(&world).await;
    while rescuer.looks_for_a_lease().await.abandoned == 0 {}
    world.until("it lets the old one go", async || !first.machines.vms().contains(&stale)).await;
    first.machines.heal(Step::Ready);
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    neither_has_anything(&world, first, second).await;
    assert_eq!(world.ends().await, ["abandoned", "job_done"]);
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_host_that_speaks_at_the_last_moment_keeps_its_vms() {
    let (world, mut first, second) = two_hosts().await;
    world.queue_held_on(&first).await;
    first.stop().await;
    let mut rescuer = Rescuer::new(&world).await;
    for _ in 0..2 {
        rescuer.now += BETWEEN_LOOKS;
        rescuer.looks().await;
    }
    first.start().await;
    rescuer.now += BETWEEN_LOOKS;
    assert_eq!(rescuer.looks().await, RescueReport::default());
    first.machines.heal(Step::Ready);
    world.jobs_are(&["done"]).await;
    neither_has_anything(&world, first, second).await;
    assert_eq!(world.ends().await, ["job_done"]);
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_returning_host_begins_nothing_before_the_abandoned_is_destroyed() {
    let world = World::with(Setup { gateway_alone: true, ..Setup::default() }).await;
    let mut host = world.host("first", 2).await;
    host.start().await;
    let job = world.queue_held_on(&host).await;
    host.stop().await;
    Rescuer::new(&world).await.looks_for_a_lease().await;
    host.machines.inject(Step::Destroy, Fault::Hang);
    host.machines.heal(Step::Ready);
    host.start().await;
    world.until("it is about to be destroyed", async || world.live().await == ["first stopping"]).await;
    // A slot is free, and a job is queued; the host looks for work more often than it beats.
    let seq = world.texts("SELECT seq::text FROM hosts").await;
    world.until("it beats", async || world.texts("SELECT seq::text FROM hosts").await != seq).await;
    assert_eq!(world.live().await, ["first stopping"], "nothing was begun");
    host.machines.heal(Step::Destroy);
    let done = world.github.job_completed(job.id, SOON).await.expect("the job is completed");
    assert_eq!(done.conclusion, Some(Conclusion::Success));
    host.nothing_is_left(&world).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_beat_between_the_look_and_the_word_takes_the_word_back() {
    let (world, mut first, second) = two_hosts().await;
    world.queue_held_on(&first).await;
    first.stop().await;
    let beat = rescue::beats(&world.db.gateway).await.expect("beats")[0];
    let mut word = world.db.gateway.begin().await.expect("a transaction");
    assert!(rescue::hold(&mut word, beat).await.expect("an answer"));
    // The host speaks now: it waits for what is decided about it.
    let pool = first.pool().await;
    let beats = hosts::beat(&pool, beat.host, beat.session);
    let word_first = async {
        tokio::task::yield_now().await;
        word.commit().await.expect("the word is given");
    };
    let (spoken, ()) = tokio::join!(beats, word_first);
    assert_eq!(spoken.expect("an answer"), Applied::Yes);
    let mut late = world.db.gateway.begin().await.expect("a transaction");
    assert!(!rescue::hold(&mut late, beat).await.expect("an answer"), "it has spoken since");
    drop(late);
    first.start().await;
    first.machines.heal(Step::Ready);
    world.jobs_are(&["done"]).await;
    neither_has_anything(&world, first, second).await;
    world.nothing_is_left().await;
}
