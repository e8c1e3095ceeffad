//! The master key rotates while everything goes on, and a tenant that is erased stays so.

use crate::support::database::TestDatabase;
use crate::support::payload::{CANARY, Job};
use crate::support::program::Place;
use crate::support::site::{PLAN, Site, keeper};
use axum::http::StatusCode;
use fake_github::{FakeGitHub, Options};
use flyci::domain::ids::TenantId;
use flyci::secrets::{Column, KeyRing, Sealed, wrapped_by};
use flyci::store::tenants::{self, Admission, NewTenant};
use flyci::upkeep::keys::{Keeper, Rotation};
use flyci::upkeep::trail;
use serde_json::{Value, json};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

/// Tenants that the killed daemon was wrapping anew: more than one pass takes.
const TENANTS: u64 = 2_500;

async fn insert(db: &TestDatabase, ring: &KeyRing, number: u64) -> TenantId {
    let id = TenantId::random();
    let (keys, wrapped_keys) = ring.new_tenant(id);
    let new = NewTenant {
        id,
        installation_lookup: ring.installation_lookup(number),
        account_lookup: ring.account_lookup(number),
        wrapped_keys: &wrapped_keys,
        installation_id: &keys.seal_id(Column::TenantInstallationId, id.0, number),
        account_id: &keys.seal_id(Column::TenantAccountId, id.0, number),
        account: &keys.seal_text(Column::TenantAccount, id.0, &format!("account-{number}")),
        account_kind: "organization",
        admission: Admission::Approved,
    };
    tenants::insert(&db.gateway, &new).await.expect("it is new");
    id
}

/// Every tenant is found by GitHub's number of its installation, and opens.
async fn all_open(db: &TestDatabase, ring: &KeyRing, numbers: impl Iterator<Item = u64>) {
    for number in numbers {
        let found = tenants::find(&db.gateway, &ring.installation_lookups(number)).await.expect("the database answers");
        let tenant = found.unwrap_or_else(|| panic!("installation {number} is not found"));
        let keys = ring.unwrap(tenant.id, &tenant.wrapped_keys).expect("its keys open");
        assert_eq!(keys.open_id(Column::TenantInstallationId, tenant.id.0, &tenant.installation_id).ok(), Some(number));
    }
}

async fn count(db: &TestDatabase, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(&db.owner).await.expect(query)
}

#[tokio::test]
async fn a_rotation_under_load_loses_and_blocks_nothing() {
    let site = Arc::new(Site::open().await);
    let old = site.admin.ring.master_key_id();
    let senders = (0..4_u64).map(|sender| {
        let site = Arc::clone(&site);
        tokio::spawn(async move {
            for number in 0..40_u64 {
                let mut job = Job::queued(10_000 + sender * 100 + number);
                // Some are new during the rotation, and senders meet at each of them.
                (job.installation, job.owner, job.repository) = (1 + number, 1_000 + number, 5_000 + number);
                let answer = site.deliver(&job).await;
                assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
            }
        })
    });
    let senders: Vec<_> = senders.collect();
    for _ in 0..4 {
        let rotated = site.change("/keys/rotate", json!({})).await;
        assert_eq!(rotated.status, StatusCode::OK, "{rotated:?}");
        site.admin.keeper.pass().await.expect("a pass");
    }
    for sender in senders {
        sender.await.expect("every delivery was taken");
    }
    while site.admin.keeper.rotation().await.expect("the rows are read") != Rotation::None {
        site.admin.keeper.pass().await.expect("a pass");
    }
    let counts = [("jobs", 160), ("tenants", 40), ("repositories", 40)];
    for (table, expected) in counts {
        let query: &'static str = match table {
            "jobs" => "SELECT count(*) FROM jobs",
            "tenants" => "SELECT count(*) FROM tenants",
            _ => "SELECT count(*) FROM repositories",
        };
        assert_eq!(count(&site.db, query).await, expected, "{table}");
    }
    all_open(&site.db, &site.admin.ring, 1..=40).await;
    let keys = site.get("/keys").await.body;
    let of = |id: String| keys["keys"].as_array().expect("a list").iter().find(|key| key["id"] == id.as_str()).cloned();
    let (before, now) = (of(old.to_string()).expect("it is listed"), of(site.admin.ring.master_key_id().to_string()));
    assert_eq!((&before["state"], &before["tenants"]), (&json!("destroyed"), &json!(0)), "{keys}");
    assert_eq!(now.expect("it is listed")["tenants"], 40, "{keys}");
    // The jobs' names are readable as before, and the audit trail tells of it and verifies.
    let jobs = site.get("/jobs?limit=500").await.body;
    assert!(jobs["items"].as_array().expect("a page").iter().all(|job| job["run_id"].is_string()), "{jobs}");
    assert_eq!(site.get("/audit/verify").await.body["intact"], true);
    let acts = site.get("/audit").await.body.to_string();
    assert!(acts.contains("key.rotate") && acts.contains("key.destroy"), "{acts}");
}

#[tokio::test]
async fn a_rotation_goes_on_after_kill_9_in_its_middle() {
    let (github, db) = (FakeGitHub::start(Options::default()).await.expect("it starts"), TestDatabase::new().await);
    let place = Place::new(&github, Some(&db.url), "fake", "");
    let data = place.path("data");
    std::fs::DirBuilder::new().mode(0o700).create(&data).expect("it is new");
    let file = data.join("master.key");
    let ring = KeyRing::open_or_create(&file).expect("a new key");
    let old = ring.master_key_id();
    for number in 1..=TENANTS {
        insert(&db, &ring, number).await;
    }
    let left = async || -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM tenants WHERE substring(wrapped_keys from 2 for 4) = $1")
            .bind(old.as_bytes())
            .fetch_one(&db.owner)
            .await
            .expect("rows are counted")
    };
    let serving = place.serve("--pretend", "info").await;
    place.run("keys rotate").await.expect(0, &["is made"]);
    let middle = serving.kill_now(async || (1..i64::try_from(TENANTS).expect("few")).contains(&left().await)).await;
    assert!(middle, "it was killed while {} of {TENANTS} were left", left().await);
    let text = std::fs::read_to_string(&file).expect("it is ours");
    assert_eq!(text.lines().count(), 2, "both keys are in the file");

    let mut serving = place.serve("--pretend", "info").await;
    place.until(&mut serving, |status| status.readiness == "ready").await;
    place.until_shown("keys list --json", r#""state":"destroyed""#).await;
    assert_eq!(std::fs::read_to_string(&file).expect("it is ours").lines().count(), 1, "the old one is gone");
    let rotated = KeyRing::open(&file).expect("it is whole");
    assert_ne!(rotated.master_key_id(), old);
    all_open(&db, &rotated, 1..=TENANTS).await;
    assert!(serving.stop().success());
}

#[tokio::test]
async fn a_rotation_waits_until_every_gateway_has_the_new_key() {
    let site = Site::open().await;
    let folder = tempfile::tempdir().expect("a folder");
    let files = [folder.path().join("a.key"), folder.path().join("b.key")];
    let first = Arc::new(KeyRing::open_or_create(&files[0]).expect("a new key"));
    std::fs::copy(&files[0], &files[1]).expect("the operator copies it");
    let second = Arc::new(KeyRing::open(&files[1]).expect("it is the same key"));
    sqlx::query("DELETE FROM audit_key").execute(&site.db.owner).await.expect("for another master key");
    let audit = trail::open(&site.db.gateway, &first, "a").await.expect("a key");
    let named = |ring: &Arc<KeyRing>, name: &str| Keeper { name: name.to_owned(), ..keeper(&site.db, ring, &audit) };
    let (a, b) = (named(&first, "a"), named(&second, "b"));
    insert(&site.db, &first, 1).await;
    b.pass().await.expect("a pass");

    assert_eq!(a.rotate("operator:1").await.expect("it begins"), Rotation::WaitsFor(vec!["b".to_owned()]));
    insert(&site.db, &first, 2).await;
    all_open(&site.db, &second, 1..=2).await;
    std::fs::remove_file(&files[1]).expect("it is ours");
    std::fs::copy(&files[0], &files[1]).expect("the operator brings it");
    b.pass().await.expect("a pass");
    assert_eq!(second.master_key_ids().len(), 2, "it read its file again");
    a.pass().await.expect("a pass");
    b.pass().await.expect("a pass");
    for ring in [&first, &second] {
        all_open(&site.db, ring, 1..=2).await;
    }
    a.pass().await.expect("a pass");
    b.pass().await.expect("a pass");
    assert_eq!((first.master_key_ids().len(), second.master_key_ids()), (1, first.master_key_ids()));
    a.pass().await.expect("a pass");
    let destroyed = count(&site.db, "SELECT count(*) FROM master_keys WHERE destroyed_at IS NOT NULL").await;
    assert_eq!(destroyed, 1, "it is on no gateway any more");
}

#[tokio::test]
async fn a_tenant_that_cannot_be_rewrapped_keeps_its_master_key() {
    let site = Site::open().await;
    let old = site.admin.ring.master_key_id();
    let (damaged, _) = (insert(&site.db, &site.admin.ring, 1).await, insert(&site.db, &site.admin.ring, 2).await);
    let value: Vec<u8> = sqlx::query_scalar("SELECT account_id FROM tenants WHERE id = $1")
        .bind(damaged.0)
        .fetch_one(&site.db.owner)
        .await
        .expect("it is there");
    let write = async |value: &[u8]| {
        let update =
            sqlx::query("UPDATE tenants SET account_id = $2 WHERE id = $1").bind(damaged.0).bind(value.to_vec());
        update.execute(&site.db.owner).await.expect("the owner may");
    };
    write(&value[1..]).await;
    site.change("/keys/rotate", json!({})).await;
    let report = site.admin.keeper.pass().await.expect("a pass");
    assert_eq!((report.stuck, report.destroyed), (1, 0));
    assert!(site.admin.ring.master_key_ids().contains(&old), "what it wraps must stay readable");
    assert_eq!(site.get("/keys").await.body["rotation"], "rewrapping");

    write(&value).await;
    let report = site.admin.keeper.pass().await.expect("a pass");
    assert_eq!((report.rewrapped, report.stuck, report.destroyed), (1, 0, 1));
    all_open(&site.db, &site.admin.ring, 1..=2).await;
}

#[tokio::test]
async fn a_key_in_anothers_hands_is_rotated_by_the_operator() {
    let site = Site::open().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("key");
    KeyRing::open_or_create(&file).expect("a new key");
    let command = vec!["/bin/cat".to_owned(), file.display().to_string()];
    let ring = Arc::new(KeyRing::load(flyci::secrets::MasterSource::Command(command)).expect("it prints the key"));
    sqlx::query("DELETE FROM audit_key").execute(&site.db.owner).await.expect("for another master key");
    let audit = trail::open(&site.db.gateway, &ring, "a").await.expect("a key");
    let keeper = keeper(&site.db, &ring, &audit);
    insert(&site.db, &ring, 1).await;
    let refused = keeper.rotate("operator:1").await.expect_err("there is no new key");
    assert!(flyci::errors::chain(&refused).to_string().contains("flyci keys new FILE"), "{refused:?}");

    let new = folder.path().join("new");
    flyci::secrets::create_master_key(&new).expect("as `flyci keys new` does");
    let both = [std::fs::read(&new).expect("it is ours"), std::fs::read(&file).expect("it is ours")].concat();
    std::fs::write(&file, both).expect("the operator puts it in front");
    assert_eq!(keeper.rotate("operator:1").await.expect("there is a new key"), Rotation::Removable);
    std::fs::write(&file, std::fs::read(&new).expect("it is ours")).expect("the operator takes the old one out");
    keeper.pass().await.expect("a pass");
    assert_eq!((keeper.rotation().await.expect("read"), ring.master_key_ids().len()), (Rotation::None, 1));
    all_open(&site.db, &ring, 1..=1).await;
}

/// A tenant's row as a backup of before holds it: its keys and its account's name, both encrypted.
async fn backup(db: &TestDatabase) -> (TenantId, Vec<u8>, Sealed) {
    let (id, wrapped, account): (Uuid, Vec<u8>, Vec<u8>) =
        sqlx::query_as("SELECT id, wrapped_keys, account FROM tenants").fetch_one(&db.owner).await.expect("one tenant");
    (TenantId(id), wrapped, Sealed(account))
}

fn reads(master_key: &Path, (tenant, wrapped, account): &(TenantId, Vec<u8>, Sealed)) -> Option<String> {
    let keys = KeyRing::open(master_key).expect("a master key").unwrap(*tenant, wrapped).ok()?;
    keys.open_text(Column::TenantAccount, tenant.0, account).ok()
}

#[tokio::test]
async fn an_erased_tenant_is_unreadable_even_from_a_backup_once_the_master_key_is_rotated() {
    let site = Site::open().await;
    for number in 1..=30 {
        site.deliver(&Job::queued(number)).await;
    }
    site.deliver(&Job::queued(99).labels(&["flyci-unknown"])).await;
    let backup = backup(&site.db).await;
    let flyci::secrets::MasterSource::File(file) = site.admin.ring.source() else { panic!("it is a file") };
    let stolen = site.path("stolen.key");
    std::fs::copy(file, &stolen).expect("the attacker copies the master key of before");

    let erased = site.change("/tenants/acme/erase", json!({})).await;
    assert_eq!((erased.status, &erased.body["erased"]), (StatusCode::OK, &json!(true)), "{erased:?}");
    let finality = erased.body["finality"].as_str().expect("a sentence").to_owned();
    assert!(finality.contains("flyci keys rotate") && finality.contains("30 days"), "{finality}");
    for query in [
        "SELECT count(*) FROM tenants",
        "SELECT count(*) FROM repositories",
        "SELECT count(*) FROM jobs",
        "SELECT count(*) FROM refusals",
        "SELECT count(*) FROM runners",
        "SELECT count(*) FROM vms WHERE tenant_id IS NOT NULL",
    ] {
        assert_eq!(count(&site.db, query).await, 0, "{query}");
    }
    let acts = site.get("/audit").await.body.to_string();
    assert!(acts.contains("tenant.erased") && acts.contains(&finality[..20]), "{acts}");
    assert_eq!(reads(file, &backup).as_deref(), Some("acme"), "not final yet: the master key is the one of before");

    site.change("/keys/rotate", json!({})).await;
    assert_eq!(reads(file, &backup), None, "the current master key opens no copy of the wrapped keys of before");
    assert_eq!(
        reads(&stolen, &backup).as_deref(),
        Some("acme"),
        "the old one does: without it this test shows nothing"
    );
    let days = count(
        &site.db,
        "SELECT (extract(epoch FROM final_from - erased_at) / 86400)::bigint FROM erasures WHERE final_from IS NOT NULL",
    )
    .await;
    assert_eq!(days, PLAN.backups.num_days(), "it is known from when on it is final");
    assert!(site.get("/audit").await.body.to_string().contains("tenant.erasure_final"));
}

#[tokio::test]
async fn what_runs_for_an_erased_tenant_ends_first() {
    let site = Site::open().await;
    site.deliver(&Job::queued(1)).await;
    site.vm(site.host("mini-1", 2, 16_000_000_000).await, 0).await;
    site.sql("UPDATE vms SET state = 'serving', tenant_id = (SELECT id FROM tenants)").await;
    let asked = site.change("/tenants/acme/erase", json!({})).await.body;
    assert_eq!(asked["erased"], false, "{asked}");
    assert_eq!(count(&site.db, "SELECT count(*) FROM vms WHERE kill_asked = 'killed'").await, 1);
    assert_eq!(count(&site.db, "SELECT count(*) FROM tenants WHERE admission = 'suspended'").await, 1);
    site.sql("UPDATE vms SET state = 'gone', gone_at = clock_timestamp()").await;
    let report = site.admin.eraser.pass(chrono::Utc::now()).await.expect("a pass");
    assert_eq!((report.erased, report.waiting), (1, 0));
    assert_eq!(count(&site.db, "SELECT count(*) FROM tenants").await, 0);
    assert_eq!(count(&site.db, "SELECT count(*) FROM vms").await, 1, "a host's vms are its own history");
}

#[tokio::test]
async fn who_uninstalled_the_app_is_erased_after_the_grace() {
    let site = Site::open().await;
    site.deliver(&Job::queued(1)).await;
    let pass = async || site.admin.eraser.pass(chrono::Utc::now()).await.expect("a pass").erased;
    assert_eq!(pass().await, 0, "it is installed");
    site.sql("UPDATE tenants SET uninstalled_at = clock_timestamp() - interval '29 days'").await;
    assert_eq!(pass().await, 0, "it may come back");
    site.sql("UPDATE tenants SET uninstalled_at = clock_timestamp() - interval '31 days'").await;
    assert_eq!(pass().await, 1);
    assert_eq!(count(&site.db, "SELECT count(*) FROM tenants").await, 0);
}

#[tokio::test]
async fn an_export_is_all_that_is_stored_of_a_tenant_in_clear() {
    let site = Site::open().await;
    for number in 600..=602 {
        site.deliver(&Job::queued(number)).await;
    }
    site.sql("INSERT INTO refusals (tenant_id, github_lookup, reason)
              SELECT t.id, decode(lpad(to_hex(n), 8, '0'), 'hex'), 'label_unknown' FROM tenants t, generate_series(1, 700) n").await;
    let mut others = Job::queued(9_999);
    (others.installation, others.owner, others.repository) = (2, 200, 20);
    site.deliver(&others).await;
    site.sql("UPDATE tenants SET uninstalled_at = clock_timestamp() WHERE id <> (SELECT tenant_id FROM jobs ORDER BY received_at LIMIT 1)")
        .await;
    let (mut after, mut tables) = (None::<String>, std::collections::BTreeMap::<String, Vec<Value>>::new());
    loop {
        let body = after.as_ref().map_or_else(|| json!({}), |after| json!({ "after": after }));
        let part = site.change("/tenants/acme/export", body).await;
        assert_eq!(part.status, StatusCode::OK, "{part:?}");
        let table = part.body["table"].as_str().expect("a name").to_owned();
        tables.entry(table).or_default().extend(part.body["rows"].as_array().expect("rows").clone());
        match part.body["next"].as_str() {
            Some(next) => after = Some(next.to_owned()),
            None => break,
        }
    }
    assert_eq!((tables["tenants"].len(), tables["jobs"].len(), tables["refusals"].len()), (1, 3, 700));
    assert_eq!(tables["tenants"][0]["account"], "acme");
    assert_eq!(tables["tenants"][0]["installation_id"], "1");
    assert_eq!(tables["repositories"][0]["name"], format!("acme/{CANARY}"));
    let job = tables["jobs"].iter().find(|job| job["github_id"] == "600").expect("the first job is there");
    assert_eq!((&job["run_id"], &job["initiator"]), (&json!("1000600"), &json!(format!("{CANARY}-person"))));
    let text = serde_json::to_string(&tables).expect("JSON");
    assert!(!text.contains("wrapped_keys") && !text.contains("lookup") && !text.contains("\\\\x"), "nothing sealed");
    assert!(!text.contains("9999"), "nothing of others");
    assert_eq!(tables["audit"].last().expect("an act")["action"], "tenant.export");
    assert_eq!(site.change("/tenants/acme/export", json!({"after": "99.0"})).await.status, StatusCode::BAD_REQUEST);
    assert!(wrapped_by(&[]).is_none());
}
