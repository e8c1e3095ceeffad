//! What the login of a host can do in the database, by trying what it must not; and how a host comes into the fleet, and
//! out of it.

use crate::support::world::{Host, Setup, World};
use fake_github::Conclusion;
use flyci::hypervisor::fake::Step;
use flyci::secrets::vouch::JoinToken;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

/// A fleet with a job on the first of two hosts, whose daemons do not run any more.
async fn fleet() -> (World, Host, Host) {
    let world = World::with(Setup { gateway_alone: true, ..Setup::default() }).await;
    let (mut first, mut second) = (world.host("first", 1).await, world.host("second", 1).await);
    second.start().await;
    second.stop().await;
    first.start().await;
    world.queue_held_on(&first).await;
    world.github.switch(|switches| switches.outage = true);
    first.machines.heal(Step::Ready);
    world.vms_are("bound", 1).await;
    first.stop().await;
    (world, first, second)
}

/// How many rows a statement returns or changes; `None` when it is refused.
async fn rows(pool: &PgPool, statement: &str) -> Option<u64> {
    match sqlx::query(AssertSqlSafe(statement)).execute(pool).await {
        Ok(done) => Some(done.rows_affected()),
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42501") => None,
        Err(error) => panic!("{statement}: {error}"),
    }
}

#[tokio::test]
async fn a_host_reads_what_it_must_count_and_no_more() {
    let (mut world, first, second) = fleet().await;
    world.execute("UPDATE runners SET sealed_jit = '\\x01'").await;
    let (own, other) = (first.pool().await, second.pool().await);
    assert_eq!(rows(&own, "SELECT sealed_jit FROM runners").await, Some(1), "its own");
    assert_eq!(rows(&own, "SELECT class, state FROM vms").await, Some(1));
    assert_eq!(rows(&other, "SELECT class, state FROM vms").await, Some(1), "supply is counted by all");
    assert_eq!(rows(&other, "SELECT class, labels FROM jobs").await, Some(1), "demand too");
    assert_eq!(rows(&other, "SELECT name FROM hosts").await, Some(1), "of hosts it sees itself");
    for nothing in ["runners", "host_images"] {
        assert_eq!(rows(&other, &format!("SELECT * FROM {nothing}")).await, Some(0), "{nothing} of another host");
    }
    for refused in [
        "SELECT * FROM audit",
        "SELECT * FROM audit_key",
        "SELECT * FROM master_keys",
        "SELECT * FROM invitations",
        "SELECT * FROM gateways",
        "SELECT * FROM deliveries",
        "SELECT * FROM repositories",
        "SELECT * FROM runner_names",
        "SELECT * FROM refusals",
        "SELECT wrapped_keys FROM tenants",
        "SELECT account FROM tenants",
        "SELECT github_id FROM jobs",
        "SELECT initiator FROM jobs",
        "SELECT mac FROM jobs",
        "SET ROLE flyci_gateway",
        "SET ROLE flyci_migrate",
        "CREATE TABLE mine (id integer)",
    ] {
        assert_eq!(rows(&other, refused).await, None, "{refused}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_host_writes_its_own_rows_and_no_more() {
    let (mut world, _first, second) = fleet().await;
    let other = second.pool().await;
    let id = |name: &str| format!("(SELECT id FROM hosts WHERE name = '{name}')");
    let ids = world.texts("SELECT id::text FROM hosts WHERE name = 'first'").await;
    let (vm, job) = (world.texts("SELECT id::text FROM vms").await, world.texts("SELECT id::text FROM jobs").await);
    let (tenant, repository) =
        (world.texts("SELECT id::text FROM tenants").await, world.texts("SELECT id::text FROM repositories").await);
    for nothing in [
        "UPDATE vms SET state = 'gone'".to_owned(),
        "UPDATE vms SET release_asked_at = now()".to_owned(),
        "UPDATE runners SET state = 'removed'".to_owned(),
        "UPDATE hosts SET seq = seq + 1 WHERE name = 'first'".to_owned(),
        "UPDATE host_images SET failures = 9".to_owned(),
        format!("UPDATE jobs SET not_before = 'infinity' WHERE id = '{}'", job[0]),
    ] {
        assert_eq!(rows(&other, &nothing).await, Some(0), "{nothing}: it is another's");
    }
    for refused in [
        format!(
            "INSERT INTO vms (id, host_id, session, slot, profile, image, cpus, memory, state)
             VALUES (gen_random_uuid(), '{}', 1, 5, 'flyci-test', 'any', 1, 1, 'planned')",
            ids[0]
        ),
        format!(
            "INSERT INTO runners (id, vm_id, host_id, tenant_id, repository_id, labels, class, state)
             VALUES (gen_random_uuid(), '{}', '{}', '{}', '{}', '{{}}', 1, 'void')",
            vm[0], ids[0], tenant[0], repository[0]
        ),
        format!("INSERT INTO host_images (host_id, image) VALUES ('{}', 'any')", ids[0]),
        format!("UPDATE hosts SET mac = '\\x00' WHERE id = {}", id("second")),
        format!("UPDATE hosts SET login = 'flyci' WHERE id = {}", id("second")),
        "UPDATE hosts SET name = 'first'".to_owned(),
        "UPDATE hosts SET draining = false".to_owned(),
        "UPDATE hosts SET revoked_at = NULL".to_owned(),
        "UPDATE jobs SET state = 'queued'".to_owned(),
        "UPDATE jobs SET labels = '{}'".to_owned(),
        "UPDATE lanes SET last_claim = 0".to_owned(),
        "UPDATE tenants SET vm_limit = 1000".to_owned(),
        "UPDATE profiles SET label = 'x'".to_owned(),
        "UPDATE fleet SET schema = 99".to_owned(),
        "INSERT INTO audit (chain, position, actor, action, subject, previous, hash) VALUES ('x', 1, '', '', '', '', '')"
            .to_owned(),
        "SELECT audit_prune('x', 1)".to_owned(),
        "DELETE FROM vms".to_owned(),
        "DELETE FROM jobs".to_owned(),
        "DELETE FROM hosts".to_owned(),
        "TRUNCATE lanes".to_owned(),
    ] {
        assert_eq!(rows(&other, &refused).await, None, "{refused}");
    }
    let lanes = world.texts("SELECT last_claim::text FROM lanes").await;
    assert_eq!(rows(&other, &format!("SELECT lane_served('{}', 'flyci-test')", tenant[0])).await, Some(1));
    assert_eq!(world.texts("SELECT last_claim::text FROM lanes").await, lanes, "it has bound no vm of theirs");
    world.stop().await;
}

#[tokio::test]
async fn what_a_runner_is_for_and_an_operators_word_a_host_does_not_change_of_its_own_rows() {
    let (mut world, first, _second) = fleet().await;
    let (own, job) = (first.pool().await, world.texts("SELECT id::text FROM jobs").await);
    // By whom it is allowed to: the statements are not refused for another reason.
    for done in [
        "UPDATE vms SET release_asked_at = now()".to_owned(),
        "UPDATE hosts SET seq = seq + 1".to_owned(),
        "UPDATE runners SET reason = NULL".to_owned(),
        format!("UPDATE jobs SET verify_since = NULL WHERE id = '{}'", job[0]),
    ] {
        assert_eq!(rows(&own, &done).await, Some(1), "{done}");
    }
    for refused in [
        "UPDATE vms SET kill_asked = NULL",
        "UPDATE runners SET repository_id = gen_random_uuid()",
        "UPDATE runners SET labels = '{}'",
    ] {
        assert_eq!(rows(&own, refused).await, None, "{refused}: not of its own either");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_hosts_login_alone_is_nobody() {
    let (mut world, first, _second) = fleet().await;
    let url = first.config.database.url.as_ref().expect("it has one").expose().to_owned();
    let mut connection = PgConnection::connect(&url).await.expect("the login exists");
    for table in ["hosts", "vms", "runners", "jobs", "tenants", "audit"] {
        let read = sqlx::query(AssertSqlSafe(format!("SELECT * FROM {table}"))).execute(&mut connection).await;
        assert!(read.is_err(), "{table}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_host_joins_by_a_token_once_and_not_without() {
    let mut world = World::with(Setup { gateway_alone: true, ..Setup::default() }).await;
    let stranger = world.stranger("mini", 1).await;
    assert!(stranger.refusal().await.contains("has not joined this fleet"));
    let guessed = JoinToken::parse("flyci-join-1:00112233445566778899aabbccddeeff").expect("its form is right");
    let refused =
        async |token: &JoinToken| flyci::app::join(&stranger.config, token).await.err().map(|e| e.to_string());
    assert!(refused(&guessed).await.expect("nobody was invited").contains("no gateway lets mini join"));
    let token = world.invite("mini", &stranger.login).await;
    assert!(refused(&guessed).await.is_some(), "a guess uses the invitation up");
    assert!(refused(&token).await.is_some(), "so the token does not count any more");
    let token = world.invite("mini", "flyci_host_another").await;
    assert!(refused(&token).await.is_some(), "another login was invited");
    let token = world.invite("mini", &stranger.login).await;
    world.execute("UPDATE invitations SET until = now() - interval '1 second'").await;
    assert!(refused(&token).await.is_some(), "it ended");
    let token = world.invite("mini", &stranger.login).await;
    world.execute("UPDATE invitations SET until = until + interval '1 hour'").await;
    assert!(refused(&token).await.is_some(), "whoever makes it longer makes another token");
    let token = world.invite("mini", &stranger.login).await;
    assert_eq!(refused(&token).await, None, "it joins");
    assert!(refused(&token).await.is_some(), "once");
    assert_eq!(
        world.texts("SELECT action FROM audit WHERE action LIKE 'host.join%' ORDER BY seq").await,
        [
            "host.join_refused",
            "host.join_refused",
            "host.join_refused",
            "host.join_refused",
            "host.join_refused",
            "host.join_refused",
            "host.join",
            "host.join_refused"
        ]
    );
    world.stop().await;
}

#[tokio::test]
async fn a_revoked_host_writes_nothing_and_its_job_is_served_elsewhere() {
    let world = World::with(Setup { gateway_alone: true, ..Setup::default() }).await;
    let (mut first, mut second) = (world.host("first", 1).await, world.host("second", 1).await);
    first.start().await;
    let job = world.queue_held_on(&first).await;
    let mut tx = world.db.gateway.begin().await.expect("a transaction");
    flyci::store::joins::revoke(&mut tx, "first").await.expect("it is revoked").expect("it is there");
    tx.commit().await.expect("it is committed");
    assert_eq!(rows(&first.pool().await, "UPDATE hosts SET seq = seq + 1").await, Some(0));
    assert_eq!(rows(&first.pool().await, "UPDATE vms SET state = 'ready'").await, Some(0));
    second.start().await;
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    first.stop().await;
    assert!(first.refusal().await.contains("it was revoked"));
    world.until("its vm is written off", async || world.ends().await == ["abandoned", "job_done"]).await;
    assert_eq!(first.machines.vms().len(), 1, "what is on its machine nobody can end from here");
    // It is let in again: what it had is an orphan there.
    let token = world.invite("first", &first.login).await;
    flyci::app::join(&first.config, &token).await.map(|_| ()).expect("it joins");
    first.start().await;
    first.nothing_is_left(&world).await;
    second.nothing_is_left(&world).await;
    world.nothing_is_left().await;
}
