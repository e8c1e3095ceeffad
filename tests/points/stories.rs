//! What happens to a daemon: each story meets some of its effects. None knows where the daemon dies.

use crate::reconcile;
use crate::world::{LABEL, Setup, World};
use fake_github::runner::{Behaviour, Work};
use fake_github::{Conclusion, Failure, Visibility};
use flyci::hypervisor::fake::{Fault, Step};
use futures_util::future::{BoxFuture, FutureExt};
use serde_json::json;
use std::time::Duration;

/// GitHub's route for JIT configs.
const MINT: &str = "POST /repos/{owner}/{repo}/actions/runners/generate-jitconfig";
/// GitHub's route for the removal of a runner.
const REMOVE: &str = "DELETE /repos/{owner}/{repo}/actions/runners/{runner_id}";
/// A gateway is in the middle of its call.
const IN_CALL: &str = "SELECT FROM runners WHERE state = 'minting' AND name IS NOT NULL";
/// A machine that is one too many goes soon.
const USUAL: &str = "idle_timeout = \"2s\"";
/// Sooner still.
const SHORT_IDLE: &str = "idle_timeout = \"1s\"";

/// One story.
#[derive(Clone, Copy)]
pub struct Story {
    pub name: &'static str,
    pub setup: Setup,
    /// What is met while the daemon starts is not this story's: it says itself from when on the daemon may die.
    pub dies_late: bool,
    /// Plays it. The deaths are for a story that says when.
    pub play: for<'a> fn(&'a World, &'a [String]) -> BoxFuture<'a, ()>,
}

macro_rules! story {
    ($name:literal, $limits:expr, $play:path) => {
        Story { name: $name, setup: Setup::with($limits), dies_late: false, play: |world, _| $play(world).boxed() }
    };
}

macro_rules! late_story {
    ($name:literal, $limits:expr, $play:path) => {
        Story {
            name: $name,
            setup: Setup::with($limits),
            dies_late: true,
            play: |world, deaths| $play(world, deaths).boxed(),
        }
    };
}

/// All of them: a point is played in the first that meets it.
pub const STORIES: &[Story] = &[
    story!("a job", USUAL, a_job),
    story!("cancelled while its machine boots", SHORT_IDLE, cancelled_while_booting),
    story!("machines that fail", USUAL, machines_fail),
    story!("cancelled while minting fails", SHORT_IDLE, cancelled_while_minting_fails),
    story!("cancelled while it is minted", SHORT_IDLE, cancelled_while_minted),
    story!("killed while it is minted", USUAL, killed_while_minted),
    story!("an answer of GitHub is lost", USUAL, a_lost_answer),
    story!("an answer of GitHub is late", USUAL, a_late_answer),
    story!("GitHub does not know the repository", USUAL, not_found),
    story!("a removal fails", USUAL, a_removal_fails),
    story!("a start fails", USUAL, a_start_fails),
    story!("cancelled while it runs", USUAL, cancelled_while_running),
    story!("an idle runner", SHORT_IDLE, an_idle_runner),
    story!("a busy runner looks idle", "idle_timeout = \"3s\"", a_busy_runner_looks_idle),
    story!("doubts", USUAL, doubts),
    story!("a second job", USUAL, a_second_job),
    story!("news of repositories", USUAL, news),
    story!("a machine that was unreachable", USUAL, unreachable),
    story!("an orphan", USUAL, an_orphan),
    story!("lost, and GitHub does not know it yet", USUAL, lost_unknown_to_github),
    story!("taken away while it runs", USUAL, taken_away_while_running),
    story!("GitHub holds calls back", USUAL, held_back),
    story!("a host is silent", USUAL, a_host_is_silent),
    Story { setup: Setup { pulls: true, ..Setup::with(USUAL) }, ..story!("a pulled delivery", USUAL, a_job) },
    Story { setup: Setup { dedicated: true, ..Setup::with(USUAL) }, ..story!("a dedicated host", USUAL, a_job) },
    late_story!("deliveries fail", USUAL, reconcile::deliveries_fail),
    late_story!("deliveries are lost", USUAL, reconcile::deliveries_are_lost),
    late_story!("lists are refused", USUAL, reconcile::lists_are_refused),
    late_story!("taken away unheard", USUAL, reconcile::taken_away_unheard),
    late_story!("an orphaned registration", USUAL, reconcile::an_orphaned_registration),
    late_story!("a lost job runs again", reconcile::RERUNS, reconcile::a_lost_job_runs_again),
    late_story!("a lost job does not run again", reconcile::RERUNS, reconcile::a_lost_job_does_not_run_again),
    late_story!("old rows", USUAL, reconcile::old_rows),
    late_story!("an account that left is forgotten", USUAL, reconcile::an_account_is_forgotten),
    Story {
        setup: Setup { rotates: true, ..Setup::with(USUAL) },
        ..late_story!("the master key is rotated", USUAL, reconcile::the_master_key_is_rotated)
    },
];

/// Played at each point that it meets, besides.
pub const POWER_CUT: Story = story!("a power cut", USUAL, a_power_cut);

/// A runner that ends its job well after a while.
pub fn working_for(milliseconds: u64) -> Behaviour {
    Behaviour::working(Work::For(Duration::from_millis(milliseconds), Conclusion::Success))
}

/// Machines that are lost with their jobs are given up soon.
pub fn impatient(world: &World) {
    world.github.switch(|switches| {
        switches.silence_ms = 300;
        switches.lost_after_ms = 300;
        switches.cancel_grace_ms = 100;
    });
}

async fn a_job(world: &World) {
    world.runners.will(working_for(300));
    let job = world.queue();
    world.served(job).await;
    world.jobs_are(&["done"]).await;
    world.until("SELECT coalesce(reason, '') FROM vms", &["job_done"]).await;
}

/// The whole machine dies with its daemon. A job that ran is lost, and GitHub says so; others are served.
async fn a_power_cut(world: &World) {
    impatient(world);
    world.machines_die_too();
    world.runners.will(working_for(300));
    let job = world.queue();
    world.over(job).await;
    world.until("SELECT state FROM jobs WHERE state NOT IN ('done', 'lost')", &[]).await;
}

/// Its runner never hears of it.
async fn cancelled_while_running(world: &World) {
    impatient(world);
    world.runners.will(Behaviour::working(Work::Freeze));
    let job = world.queue();
    world.jobs_are(&["running"]).await;
    world.github.cancel(job);
    world.over(job).await;
    world.jobs_are(&["done"]).await;
}

async fn cancelled_while_booting(world: &World) {
    world.machines.inject(Step::Ready, Fault::Hang);
    let job = world.queue();
    world.until_some("SELECT FROM vms WHERE state = 'booting'").await;
    assert!(world.github.cancel(job), "it had no runner");
    world.jobs_are(&["cancelled"]).await;
    world.machines.heal(Step::Ready);
}

async fn machines_fail(world: &World) {
    world.machines.inject(Step::Clone, Fault::Fail(1));
    world.machines.inject(Step::Boot, Fault::Fail(1));
    world.machines.inject(Step::Destroy, Fault::Fail(1));
    let job = world.queue();
    world.served(job).await;
    world.jobs_are(&["done"]).await;
}

async fn cancelled_while_minting_fails(world: &World) {
    world.github.fail_next(MINT, 500, 1_000, false);
    let job = world.queue();
    world.until_some("SELECT FROM runners WHERE tries > 0 AND state = 'requested'").await;
    assert!(world.github.cancel(job), "it had no runner");
    world.jobs_are(&["cancelled"]).await;
    world.until_some("SELECT FROM runners WHERE state = 'void'").await;
}

async fn cancelled_while_minted(world: &World) {
    world.github.switch(|switches| _ = switches.latency_ms.insert(MINT.to_owned(), 1_500));
    let job = world.queue();
    world.until_some(IN_CALL).await;
    assert!(world.github.cancel(job), "it had no runner");
    world.jobs_are(&["cancelled"]).await;
}

async fn killed_while_minted(world: &World) {
    world.github.switch(|switches| _ = switches.latency_ms.insert(MINT.to_owned(), 1_500));
    let job = world.queue();
    world.until_some(IN_CALL).await;
    world.execute("UPDATE vms SET kill_asked = 'killed' WHERE state = 'bound'").await;
    world.until_some("SELECT FROM vms WHERE state IN ('stopping', 'gone')").await;
    world.github.switch(|switches| switches.latency_ms.clear());
    world.served(job).await;
    world.jobs_are(&["done"]).await;
}

async fn a_lost_answer(world: &World) {
    world.github.fail_next(MINT, 502, 1, true);
    let job = world.queue();
    world.served(job).await;
    world.jobs_are(&["done"]).await;
}

/// Another gateway believed that the first was gone, and took its runner over.
async fn a_late_answer(world: &World) {
    world.github.switch(|switches| _ = switches.latency_ms.insert(MINT.to_owned(), 1_500));
    let job = world.queue();
    world.until_some(IN_CALL).await;
    world
        .execute(
            "UPDATE runners SET minting_by = gen_random_uuid(),
             minting_until = clock_timestamp() + interval '2 seconds' WHERE state = 'minting'",
        )
        .await;
    world.github.switch(|switches| switches.latency_ms.clear());
    world.served(job).await;
    world.jobs_are(&["done"]).await;
}

async fn not_found(world: &World) {
    world.github.fail_next(MINT, 404, 1, false);
    let job = world.queue();
    world.served(job).await;
    world.jobs_are(&["done"]).await;
}

async fn a_removal_fails(world: &World) {
    world.github.fail_next(REMOVE, 500, 4, false);
    let job = world.queue();
    world.served(job).await;
    world.jobs_are(&["done"]).await;
}

async fn a_start_fails(world: &World) {
    world.machines.inject(Step::Start, Fault::Fail(1));
    let job = world.queue();
    world.served(job).await;
    world.jobs_are(&["done"]).await;
}

async fn an_idle_runner(world: &World) {
    world.runners.will(Behaviour { start_after: Duration::from_secs(3600), ..Behaviour::default() });
    let job = world.queue();
    world.until_some("SELECT FROM vms WHERE state = 'serving'").await;
    world.runners.will(Behaviour::default());
    world.served(job).await;
    world.jobs_are(&["done"]).await;
}

/// GitHub's word that the runner has a job is lost.
async fn a_busy_runner_looks_idle(world: &World) {
    world.runners.will(Behaviour { start_after: Duration::from_millis(1_000), ..working_for(8_000) });
    let job = world.queue();
    world.until_some("SELECT FROM vms WHERE state = 'serving'").await;
    // Not even in the log of deliveries, from which they would be sent again.
    world.github.switch(|switches| {
        switches.deliveries.drop_fraction = 1.0;
        switches.deliveries.drop_without_trace = true;
    });
    world.served(job).await;
    world.jobs_are(&["done"]).await;
}

/// Jobs of which nothing was heard for long: GitHub is asked, and answers late, or otherwise than we thought.
async fn doubts(world: &World) {
    world.machines.inject(Step::Ready, Fault::Hang);
    world.runners.will(working_for(8_000));
    let job = world.queue();
    world.until_some("SELECT FROM vms WHERE state = 'booting'").await;
    world.github.switch(|switches| switches.outage = true);
    world.execute("UPDATE jobs SET verify_since = '2020-01-01'").await;
    world.until_some("SELECT FROM jobs WHERE ask_after IS NOT NULL").await;
    world.github.switch(|switches| switches.outage = false);
    world.execute("UPDATE jobs SET ask_after = NULL").await;
    world.until_some("SELECT FROM jobs WHERE verify_since IS NULL").await;

    let overdue = world.queue();
    world.until("SELECT state FROM jobs", &["queued", "queued"]).await;
    let newest = "(SELECT id FROM jobs ORDER BY received_at DESC LIMIT 1)";
    world.execute(&format!("UPDATE jobs SET queued_at = '2020-01-01' WHERE id = {newest}")).await;
    world.jobs_are(&["queued", "unserved"]).await;
    assert!(world.github.cancel(overdue), "nobody serves it");

    world.machines.heal(Step::Ready);
    world.until_some("SELECT FROM jobs WHERE state = 'running'").await;
    world.execute("UPDATE jobs SET verify_since = '2020-01-01' WHERE state = 'running'").await;
    world.until("SELECT state FROM jobs WHERE state = 'running' AND verify_since < '2021-01-01'", &[]).await;
    world.served(job).await;
    world.until_some("SELECT FROM jobs WHERE state = 'done'").await;
}

/// GitHub's protocol forbids it: a machine whose runner two jobs name is not to be trusted.
async fn a_second_job(world: &World) {
    impatient(world);
    world.runners.will(working_for(3_600_000));
    let job = world.queue();
    world.jobs_are(&["running"]).await;
    let runner = world.github.all_runners().into_iter().next().expect("the job's runner");
    let (owner, name) = world.repo.full_name.split_once('/').expect("owner and name");
    world.github.send_event(
        "workflow_job",
        json!({
            "action": "in_progress",
            "workflow_job": {
                "id": job.id + 1_000_000, "run_id": 1, "run_attempt": 1, "status": "in_progress", "conclusion": null,
                "created_at": chrono::Utc::now(), "started_at": chrono::Utc::now(), "completed_at": null,
                "labels": [LABEL], "runner_id": runner.id, "runner_name": runner.name, "steps": [],
            },
            "repository": {
                "id": world.repo.id, "full_name": format!("{owner}/{name}"), "private": true,
                "owner": {"id": world.acme.account_id, "login": owner, "type": "Organization"},
            },
            "sender": {"id": 7, "login": "somebody", "type": "User"},
            "installation": {"id": world.acme.id},
        }),
    );
    world.until("SELECT coalesce(reason, '') FROM vms", &["second_job"]).await;
    world.over(job).await;
    world.jobs_are(&["done", "lost"]).await;
}

async fn news(world: &World) {
    let taken = world.github.repository(&world.acme, "taken", Visibility::Private);
    let opened = world.github.repository(&world.acme, "opened", Visibility::Private);
    let jobs = [world.queue(), world.github.queue_job(&taken, &[LABEL], fake_github::JobScript::new().step("true"))];
    for job in jobs {
        world.served(job).await;
    }
    // GitHub lets nobody remove runners of a repository that was taken away.
    world.jobs_are(&["done", "done"]).await;
    world.until("SELECT state FROM runners", &["removed", "removed"]).await;
    world.github.rename_account(&world.acme, "acme-renamed");
    world.github.select(&taken, false);
    world.github.publicize(&opened);
    world.github.ping();
    for event in ["installation_target", "installation_repositories", "repository", "ping"] {
        world.until_some(&format!("SELECT FROM deliveries WHERE event = '{event}'")).await;
    }
    world.until_some("SELECT FROM repositories WHERE removed_at IS NOT NULL").await;
    let job = world.queue();
    world.served(job).await;
    world.jobs_are(&["done", "done", "done"]).await;
}

async fn unreachable(world: &World) {
    world.runners.will(working_for(4_000));
    let job = world.queue();
    world.jobs_are(&["running"]).await;
    world.execute("UPDATE vms SET state = 'unreachable' WHERE state = 'serving'").await;
    world.until_some("SELECT FROM vms WHERE state <> 'unreachable'").await;
    world.served(job).await;
    world.jobs_are(&["done"]).await;
}

/// The vm's row ended, and its machine did not.
async fn an_orphan(world: &World) {
    impatient(world);
    world.runners.will(working_for(3_600_000));
    let job = world.queue();
    world.jobs_are(&["running"]).await;
    world
        .while_it_is_away(&[], async || {
            world.execute("UPDATE vms SET state = 'gone', reason = 'killed', gone_at = clock_timestamp()").await;
        })
        .await;
    world.over(job).await;
    world.jobs_are(&["done"]).await;
}

/// GitHub calls the job running for some time after its machine went.
async fn lost_unknown_to_github(world: &World) {
    impatient(world);
    world.github.switch(|switches| switches.lost_after_ms = 12_000);
    world.runners.will(Behaviour::working(Work::Freeze));
    let job = world.queue();
    world.jobs_are(&["running"]).await;
    world.machines.vms().into_iter().for_each(|vm| world.machines.crash(vm));
    world.until("SELECT state FROM vms", &["gone"]).await;
    world.execute("UPDATE jobs SET verify_since = '2020-01-01'").await;
    world.until_some("SELECT FROM jobs WHERE verify_since > '2021-01-01'").await;
    world.over(job).await;
    world.jobs_are(&["lost"]).await;
}

/// GitHub tells nothing of the job any more, nor lets anybody ask.
async fn taken_away_while_running(world: &World) {
    world.runners.will(working_for(12_000));
    let job = world.queue();
    world.jobs_are(&["running"]).await;
    world.github.select(&world.repo, false);
    world.until_some("SELECT FROM repositories WHERE removed_at IS NOT NULL").await;
    world.execute("UPDATE jobs SET verify_since = '2020-01-01'").await;
    world.over(job).await;
    world.jobs_are(&["lost"]).await;
}

async fn held_back(world: &World) {
    world.github.switch(|switches| {
        let route = MINT.to_owned();
        switches.failures.push(Failure { route, status: 403, times: 1, after_effect: false, retry_after_s: Some(8) });
    });
    let job = world.queue();
    world.served(job).await;
    world.jobs_are(&["done"]).await;
}

/// Another host of the fleet died with a machine that it had planned: the job is served here.
async fn a_host_is_silent(world: &World) {
    let first = world.queue();
    world.served(first).await;
    world.jobs_are(&["done"]).await;
    world.until("SELECT state FROM vms", &["gone"]).await;
    let host = "00000000-0000-4000-8000-000000000001";
    world
        .execute(&format!(
            r#"INSERT INTO hosts SELECT (jsonb_populate_record(h, '{{"id": "{host}", "name": "silent"}}')).* FROM hosts h"#
        ))
        .await;
    world
        .execute(&format!(
            r#"INSERT INTO vms SELECT (jsonb_populate_record(v, '{{"id": "{host}", "host_id": "{host}",
                   "state": "planned", "reason": null, "class": null, "tenant_id": null, "repository_id": null,
                   "gone_at": null}}')).* FROM vms v"#
        ))
        .await;
    let job = world.queue();
    world.served(job).await;
    world.jobs_are(&["done", "done"]).await;
    world.until("SELECT state FROM vms ORDER BY state", &["abandoned", "gone", "gone"]).await;
    world.execute(&format!("DELETE FROM vms WHERE host_id = '{host}'")).await;
    world.execute(&format!("DELETE FROM hosts WHERE id = '{host}'")).await;
}
