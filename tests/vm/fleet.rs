//! Hosts apart from their gateway, with real VMs: one dies with jobs queued, booting and running.

use crate::fleet_world::Fleet;
use fake_github::JobScript;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_host_cannot_serve_moves_and_nothing_is_left_when_it_comes_back() {
    let fleet = Fleet::new().await;
    let (mut first, mut second) = (fleet.host("first", 2).await, fleet.host("second", 2).await);
    first.start();
    let running = fleet.queue(JobScript::new().step(fleet.gate.wait_there()));
    let at_the_gate = fleet.gate.arrival().await;
    let booting = fleet.queue(JobScript::new().step("true"));
    let boots = "SELECT 'yes' FROM vms WHERE state = 'booting' AND booted_at IS NOT NULL";
    fleet.until("the second vm boots", async || !fleet.texts(boots).await.is_empty()).await;
    first.kill();
    let queued = fleet.queue(JobScript::new().step("true"));
    second.start();

    // The queued one does not wait for anybody; the booting one for a lease.
    fleet.succeeds(queued).await;
    fleet.succeeds(booting).await;
    fleet
        .until("the dead host's vms are judged", async || {
            fleet.live().await == ["first abandoned", "first unreachable"]
        })
        .await;
    assert_eq!(fleet.texts("SELECT state FROM jobs ORDER BY state").await, ["done", "done", "running"]);
    at_the_gate.go_on().await;
    fleet.succeeds(running).await;

    first.start();
    fleet.until("nothing lives any more", async || fleet.live().await.is_empty()).await;
    fleet.until("nothing is left on either host", async || first.left().is_empty() && second.left().is_empty()).await;
    fleet.github.no_runners(crate::fleet_world::PATIENCE).await.expect("no runner is left at GitHub");
    fleet
        .until("each job is done, once", async || {
            fleet.texts("SELECT state FROM jobs").await == ["done", "done", "done"]
        })
        .await;
    let mut ends = fleet.texts("SELECT reason FROM vms").await;
    ends.sort();
    assert_eq!(ends, ["abandoned", "job_done", "job_done", "job_done"]);
}
