//! Whoever writes the database alone gets nothing minted: every field that minting relies on is flipped by SQL, and
//! each time the runner is refused, and that is written down.

use crate::support::world::{Host, LABEL, Setup, World};
use fake_github::Visibility;
use flyci::hypervisor::fake::Step;

/// A vm that waits for its runner while GitHub is away, on a host whose daemon does not run.
async fn waiting() -> (World, Host) {
    let world = World::with(Setup { gateway_alone: true, ..Setup::default() }).await;
    let mut host = world.host("mini", 1).await;
    host.start().await;
    // Nobody rescues what the story holds.
    world
        .execute(
            "INSERT INTO pass_leases VALUES ('rescue', gen_random_uuid(), 'infinity')
                  ON CONFLICT (pass) DO UPDATE SET holder = EXCLUDED.holder, until = EXCLUDED.until",
        )
        .await;
    bind_one(&world, &host).await;
    host.stop().await;
    (world, host)
}

/// Queues a job whose vm waits for its runner, since GitHub is away.
async fn bind_one(world: &World, host: &Host) {
    world.queue_held_on(host).await;
    world.github.switch(|switches| switches.outage = true);
    host.machines.heal(Step::Ready);
    world.vms_are("bound", 1).await;
    parked(world).await;
}

/// Waits until the runner was put back, and holds it there.
async fn parked(world: &World) {
    let park = "UPDATE runners SET not_before = 'infinity' WHERE state = 'requested' AND tries > 0 RETURNING id::text";
    world.until("it was tried, and put back", async || !world.texts(park).await.is_empty()).await;
}

async fn written_down(world: &World, action: &str) -> usize {
    world.texts(&format!("SELECT subject FROM audit WHERE action = '{action}'")).await.len()
}

#[tokio::test]
async fn a_flipped_field_of_host_vm_or_runner_is_refused_and_written_down() {
    let (world, mut host) = waiting().await;
    let other = "(SELECT id FROM hosts WHERE name = 'other')";
    world
        .execute("INSERT INTO hosts (id, name, public_key, hypervisor, hardware, os, architecture, slots, cpus, memory, version)
                  VALUES (gen_random_uuid(), 'other', '\\x00', '', '', '', '', 1, 1, 1, '')")
        .await;
    let repository = "INSERT INTO repositories SELECT gen_random_uuid(), tenant_id, '\\x00', github_id, name, visibility FROM repositories";
    world.execute(repository).await;
    let another = "(SELECT id FROM repositories WHERE github_lookup = '\\x00')";
    let kept = "SELECT row_to_json(t)::text FROM (SELECT * FROM";
    for (table, change) in [
        ("hosts", "public_key = decode(repeat('07', 32), 'hex')".to_owned()),
        ("hosts", "name = 'mini-2'".to_owned()),
        ("hosts", "login = 'flyci'".to_owned()),
        ("hosts", "mac = NULL".to_owned()),
        ("hosts", "mac = decode(repeat('07', 32), 'hex')".to_owned()),
        ("hosts", "revoked_at = now()".to_owned()),
        ("hosts", "session = session + 1".to_owned()),
        ("hosts", "slots = 0".to_owned()),
        ("vms", "session = session + 1".to_owned()),
        ("vms", "slot = 7".to_owned()),
        ("vms", "profile = 'another'".to_owned()),
        ("vms", "tenant_id = NULL".to_owned()),
        ("vms", "class = class + 1".to_owned()),
        ("vms", format!("repository_id = {another}")),
        ("vms", format!("host_id = {other}")),
        ("runners", "labels = '{another}'".to_owned()),
        ("runners", "class = class + 1".to_owned()),
        ("runners", format!("host_id = {other}")),
    ] {
        let which = if table == "hosts" { "WHERE name <> 'other'" } else { "" };
        parked(&world).await;
        let before = world.texts(&format!("{kept} {table} {which}) t")).await;
        let refused = written_down(&world, "runner.refused").await;
        world.execute(&format!("UPDATE {table} SET {change} {which}")).await;
        world.github.switch(|switches| switches.outage = false);
        world.execute("UPDATE runners SET not_before = NULL").await;
        world
            .until(&format!("{table}: {change}: it is refused"), async || {
                written_down(&world, "runner.refused").await > refused
            })
            .await;
        assert!(world.github.all_runners().is_empty(), "{table}: {change}: nothing is minted");
        world.github.switch(|switches| switches.outage = true);
        for row in before {
            restore(&world, table, &row).await;
        }
    }
    parked(&world).await;
    world.execute(&format!("DELETE FROM hosts WHERE id = {other}")).await;
    world.execute(&format!("DELETE FROM repositories WHERE id = {another}")).await;
    world.github.switch(|switches| switches.outage = false);
    world.execute("UPDATE runners SET not_before = NULL").await;
    host.start().await;
    world.jobs_are(&["done"]).await;
    host.nothing_is_left(&world).await;
    world.nothing_is_left().await;
}

/// Writes a row as it was.
async fn restore(world: &World, table: &str, row: &str) {
    let row = row.replace('\'', "''");
    world
        .execute(&format!(
            "DO $$ DECLARE old {table} := json_populate_record(NULL::{table}, '{row}'); sets text; BEGIN
               SELECT string_agg(format('%I = ($1).%I', attname, attname), ', ') INTO sets FROM pg_attribute
               WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped AND attname NOT IN ('id', 'state',
                     'not_before', 'tries', 'minting_by', 'minting_until')
                     AND NOT (attname = 'name' AND '{table}' = 'runners');
               EXECUTE format('UPDATE {table} SET %s WHERE id = ($1).id', sets) USING old;
             END $$"
        ))
        .await;
}

#[tokio::test]
async fn a_job_that_intake_did_not_take_in_so_is_removed_and_nothing_is_minted_for_it() {
    let (mut world, mut host) = waiting().await;
    let other = world.github.repository(&world.acme, "other", Visibility::Private);
    let second = world.github.queue_job(&other, &[LABEL], fake_github::JobScript::new().step("true"));
    world.until("it is known", async || world.texts("SELECT state FROM jobs").await.len() == 2).await;
    world.github.cancel(second);
    world
        .until("it is cancelled", async || {
            world.texts("SELECT state FROM jobs").await.contains(&"cancelled".to_owned())
        })
        .await;
    host.start().await;
    for change in [
        "id = gen_random_uuid()",
        "repository_id = (SELECT repository_id FROM jobs WHERE state = 'cancelled')",
        "github_lookup = decode(repeat('07', 32), 'hex')",
        "labels = '{another}'",
        "origin = 'foreign'",
        "mac = decode(repeat('07', 32), 'hex')",
    ] {
        let removed = written_down(&world, "job.forged").await;
        world.execute(&format!("UPDATE jobs SET {change} WHERE state = 'queued'")).await;
        world.github.switch(|switches| switches.outage = false);
        world.execute("UPDATE runners SET not_before = NULL").await;
        world
            .until(&format!("{change}: it is removed"), async || written_down(&world, "job.forged").await > removed)
            .await;
        assert!(world.github.all_runners().is_empty(), "{change}: nothing is minted");
        world.until("its vm is blank again", async || world.live().await == ["mini ready"]).await;
        bind_again(&world).await;
    }
    // A row of a version that gave no word: removed as well, and no sign of anything.
    world.execute("UPDATE jobs SET mac = NULL WHERE state = 'queued'").await;
    world.github.switch(|switches| switches.outage = false);
    world.execute("UPDATE runners SET not_before = NULL").await;
    world.until("it is removed", async || written_down(&world, "job.unsigned").await == 1).await;
    world.queue();
    // GitHub gives the runner the oldest of the jobs that it still has.
    world
        .until("one is served", async || world.texts("SELECT state FROM jobs").await.contains(&"done".to_owned()))
        .await;
    host.stop().await;
    world.stop().await;
}

/// A new job takes the blank vm while GitHub is away.
async fn bind_again(world: &World) {
    world.github.switch(|switches| switches.outage = true);
    world.queue();
    world.vms_are("bound", 1).await;
    parked(world).await;
}
