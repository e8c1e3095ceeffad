//! What the schema may hold, and who may see which row of it: by the database's own catalogue, so that a
//! table or column that somebody adds must be thought about here.

use crate::support::database::TestDatabase;
use crate::support::payload::Job;
use crate::support::site::Site;
use flyci::secrets::Column;
use flyci::store::export;
use sqlx::{AssertSqlSafe, PgPool};
use std::collections::{BTreeMap, BTreeSet};

/// What kind of value a column holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    /// Readable, and about no person, account or repository.
    Metadata,
    /// Says whose a row is: encrypted, or a keyed HMAC.
    Encrypted,
    /// Keys, leases, counters: what the machinery needs.
    Technical,
}

/// Every column, with its class.
const COLUMNS: &[(&str, Class, &[&str])] = &[
    ("audit", Class::Metadata, &["at", "actor", "action", "subject", "detail", "chain"]),
    ("audit", Class::Technical, &["seq", "position", "previous", "hash"]),
    ("audit_key", Class::Technical, &["singleton", "id", "wrapped", "made_at"]),
    ("deliveries", Class::Metadata, &["guid", "event", "action", "outcome", "reason", "received_at"]),
    ("delivery_log", Class::Metadata, &["read_to", "floor", "read_at", "good_at"]),
    // Two positions in GitHub's log of deliveries: its own opaque texts, of no account.
    ("delivery_log", Class::Technical, &["singleton", "etag", "cursor"]),
    ("erasures", Class::Metadata, &["erased_at", "final_from"]),
    ("erasures", Class::Technical, &["tenant_id", "master_key"]),
    ("fleet", Class::Technical, &["singleton", "id", "schema", "min_reader", "created_at"]),
    ("gateways", Class::Metadata, &["name", "seen_at"]),
    ("gateways", Class::Technical, &["id", "master_keys"]),
    ("github_holds", Class::Encrypted, &["installation_lookup"]),
    ("github_holds", Class::Technical, &["budget", "until"]),
    ("host_images", Class::Metadata, &["image", "failures", "last_failure", "quarantined_until", "proven_in"]),
    ("host_images", Class::Technical, &["host_id"]),
    (
        "hosts",
        Class::Metadata,
        &[
            "name",
            "hypervisor",
            "hardware",
            "os",
            "architecture",
            "slots",
            "cpus",
            "memory",
            "version",
            "beat_at",
            "draining",
            "drain_reason",
            "drained_by",
            "drained_at",
            "world",
            "runner_version",
            "can_boot",
            "differs",
        ],
    ),
    ("hosts", Class::Metadata, &["login", "revoked_at"]),
    ("hosts", Class::Technical, &["id", "public_key", "session", "seq", "dedicated_to", "mac", "join_proof"]),
    ("invitations", Class::Metadata, &["name", "login", "until"]),
    ("invitations", Class::Technical, &["nonce"]),
    (
        "image_pins",
        Class::Metadata,
        &[
            "reference",
            "digest",
            "previous",
            "pinned_at",
            "pinned_by",
            "candidate",
            "jobs_wanted",
            "candidate_at",
            "candidate_by",
            "rejected",
            "rejected_why",
            "rejected_at",
        ],
    ),
    ("image_pins", Class::Technical, &["canary"]),
    (
        "image_pulls",
        Class::Metadata,
        &["reference", "image", "total", "done", "replaces", "trouble", "begun_at", "updated_at"],
    ),
    ("image_pulls", Class::Technical, &["host_id"]),
    ("jobs", Class::Encrypted, &["github_lookup", "github_id", "run_id", "initiator"]),
    (
        "jobs",
        Class::Metadata,
        &[
            "run_attempt",
            "profile",
            "labels",
            "origin",
            "state",
            "reason",
            "conclusion",
            "received_at",
            "queued_at",
            "github_created_at",
            "github_started_at",
            "github_completed_at",
            "ended_at",
            "attempts",
        ],
    ),
    (
        "jobs",
        Class::Technical,
        &[
            "id",
            "tenant_id",
            "repository_id",
            "class",
            "vm_id",
            "not_before",
            "verify_since",
            "confirmed_at",
            "ask_after",
            "rerun_asked_at",
            "rerun_after",
            "mac",
        ],
    ),
    ("lanes", Class::Metadata, &["profile"]),
    ("lanes", Class::Technical, &["tenant_id", "last_claim"]),
    ("master_keys", Class::Technical, &["id", "first_at", "destroyed_at"]),
    // The attempt's number is GitHub's, and tells something to who has the App's key alone.
    ("missed_deliveries", Class::Metadata, &["guid", "attempt", "failed_at", "asked", "asked_at"]),
    ("pass_leases", Class::Technical, &["pass", "holder", "until"]),
    ("profiles", Class::Metadata, &["label", "description", "published_at"]),
    ("refusals", Class::Encrypted, &["github_lookup"]),
    // A label of a refused job is kept if it begins with our prefix.
    ("refusals", Class::Metadata, &["reason", "nearest_profile", "label", "refused_at"]),
    ("refusals", Class::Technical, &["id", "tenant_id"]),
    ("repositories", Class::Encrypted, &["github_lookup", "github_id", "name"]),
    ("repositories", Class::Metadata, &["visibility", "removed_at"]),
    ("repositories", Class::Technical, &["id", "tenant_id", "scanned_at", "scan_etag", "swept_at", "verify_since"]),
    ("runner_names", Class::Encrypted, &["lookup"]),
    ("runner_names", Class::Technical, &["runner_id", "tenant_id", "tried_at"]),
    ("runners", Class::Encrypted, &["name", "github_lookup", "github_id", "sealed_jit"]),
    (
        "runners",
        Class::Metadata,
        &[
            "labels",
            "state",
            "reason",
            "tries",
            "trouble",
            "requested_at",
            "minted_at",
            "busy_at",
            "ended_at",
            "removed_at",
        ],
    ),
    (
        "runners",
        Class::Technical,
        &["id", "vm_id", "host_id", "tenant_id", "repository_id", "class", "minting_by", "minting_until", "not_before"],
    ),
    (
        "tenants",
        Class::Encrypted,
        &["installation_lookup", "account_lookup", "installation_id", "account_id", "account"],
    ),
    (
        "tenants",
        Class::Metadata,
        &["account_kind", "admission", "suspended_at", "uninstalled_at", "erase_asked_at", "vm_limit", "created_at"],
    ),
    ("tenants", Class::Technical, &["id", "wrapped_keys", "verify_since"]),
    (
        "vms",
        Class::Metadata,
        &[
            "slot",
            "profile",
            "image",
            "cpus",
            "memory",
            "state",
            "reason",
            "runner_status",
            "kill_asked",
            "planned_at",
            "cloned_at",
            "booted_at",
            "ready_at",
            "bound_at",
            "minted_at",
            "delivering_at",
            "serving_at",
            "stopping_at",
            "gone_at",
        ],
    ),
    ("vms", Class::Technical, &["id", "host_id", "session", "tenant_id", "repository_id", "class", "release_asked_at"]),
];
/// The table of the migrations' own tool: no role that serves has rights on it.
const TOOL: &str = "_sqlx_migrations";
/// The roles that serve requests.
const SERVING: [&str; 3] = ["flyci_gateway", "flyci_host", "flyci_web"];

async fn rows<T>(pool: &PgPool, query: &str) -> Vec<T>
where
    T: for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin,
{
    sqlx::query_as(AssertSqlSafe(query)).fetch_all(pool).await.expect(query)
}

#[tokio::test]
async fn every_column_has_its_class() {
    let db = TestDatabase::new().await;
    let listed: BTreeMap<(String, String), Class> = COLUMNS
        .iter()
        .flat_map(|(table, class, names)| names.iter().map(|name| (((*table).into(), (*name).into()), *class)))
        .collect();
    let found: Vec<(String, String, String)> = rows(
        &db.owner,
        "SELECT table_name::text, column_name::text, data_type::text FROM information_schema.columns
         WHERE table_schema = 'public' AND table_name <> '_sqlx_migrations'",
    )
    .await;
    let there: BTreeSet<(String, String)> =
        found.iter().map(|(table, name, _)| (table.clone(), name.clone())).collect();
    for place in &there {
        assert!(
            listed.contains_key(place),
            "{}.{} is new: say in this list what it holds, and if that tells of a person, an account or a repository, \
             encrypt it",
            place.0,
            place.1
        );
    }
    for place in listed.keys() {
        assert!(there.contains(place), "{}.{} is listed, and not in the schema", place.0, place.1);
    }
    for (table, name, kind) in found {
        if listed[&(table.clone(), name.clone())] == Class::Encrypted {
            assert_eq!(kind, "bytea", "{table}.{name} is encrypted");
            let is_lookup = name == "lookup" || name.ends_with("_lookup");
            let is_sealed =
                Column::find(&table, &name).is_some() || (table.as_str(), name.as_str()) == ("runners", "sealed_jit");
            assert!(is_lookup || is_sealed, "{table}.{name} is of no kind that `secrets` knows");
        }
    }
    for column in Column::ALL {
        let (table, name) = column.place().split_once('.').expect("table and column");
        assert_eq!(listed.get(&(table.into(), name.into())), Some(&Class::Encrypted), "{table}.{name}");
    }
}

#[tokio::test]
async fn an_export_leaves_out_no_table() {
    let db = TestDatabase::new().await;
    let found: Vec<(String,)> = rows(
        &db.owner,
        "SELECT table_name::text FROM information_schema.columns
         WHERE table_schema = 'public' AND column_name = 'tenant_id' AND table_name <> 'erasures'",
    )
    .await;
    for (table,) in found {
        assert!(export::TABLES.iter().any(|(known, _, _)| *known == table), "{table} has rows of tenants");
    }
}

#[tokio::test]
async fn row_level_security_is_forced_on_every_table_and_every_grant_has_its_policy() {
    let db = TestDatabase::new().await;
    let tables: Vec<(String, bool, bool)> = rows(
        &db.owner,
        "SELECT relname::text, relrowsecurity, relforcerowsecurity FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')",
    )
    .await;
    assert!(tables.len() > 15, "{tables:?}");
    for (table, is_on, is_forced) in tables.iter().filter(|(table, _, _)| table != TOOL) {
        assert!(*is_on && *is_forced, "row-level security is not forced on {table}");
    }
    // A view or a materialized view would be read with its owner's rights.
    let views: Vec<(String,)> = rows(
        &db.owner,
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('v', 'm', 'f')",
    )
    .await;
    assert_eq!(views, []);

    let policies: Vec<(String, Vec<String>, String)> = rows(
        &db.owner,
        "SELECT tablename::text, roles::text[], cmd::text FROM pg_policies WHERE schemaname = 'public'",
    )
    .await;
    let grants: Vec<(String, String, String)> = rows(
        &db.owner,
        "SELECT DISTINCT table_name::text, grantee::text, privilege_type::text FROM information_schema.column_privileges
         WHERE table_schema = 'public' AND (grantee LIKE 'flyci\\_%' OR grantee = 'PUBLIC')
         UNION SELECT DISTINCT table_name::text, grantee::text, privilege_type::text FROM information_schema.role_table_grants
         WHERE table_schema = 'public' AND (grantee LIKE 'flyci\\_%' OR grantee = 'PUBLIC')",
    )
    .await;
    for (table, role, right) in &grants {
        assert!(SERVING.contains(&role.as_str()) && table != TOOL, "{role} has {right} on {table}");
        let is_for = |(of, roles, command): &&(String, Vec<String>, String)| {
            of == table && (command == "ALL" || command == right) && roles.iter().any(|of| of == role || of == "public")
        };
        assert!(
            policies.iter().any(|policy| is_for(&policy)),
            "{role} may {right} {table}, and no policy says which rows"
        );
    }
    let may = |role: &str, right: &str, table: &str| {
        grants.iter().any(|(of, to, what)| (of.as_str(), to.as_str(), what.as_str()) == (table, role, right))
    };
    for role in SERVING {
        assert!(!may(role, "UPDATE", "audit") && !may(role, "DELETE", "audit"), "{role} may change the audit trail");
    }
    for right in ["INSERT", "UPDATE", "DELETE"] {
        assert!(!grants.iter().any(|(_, role, what)| role == "flyci_web" && what == right), "the web role reads alone");
    }
}

#[tokio::test]
async fn who_serves_owns_nothing_and_bypasses_nothing() {
    let db = TestDatabase::new().await;
    let roles: Vec<(String, bool, bool, bool, bool, bool)> = rows(
        &db.owner,
        "SELECT rolname::text, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolcanlogin FROM pg_roles
         WHERE rolname LIKE 'flyci\\_%'",
    )
    .await;
    assert!(roles.len() >= 5, "{roles:?}");
    for (role, is_super, bypasses, makes_roles, makes_databases, logs_in) in roles {
        // The logins of hosts, which other tests make in the same cluster.
        let may_log_in = role.starts_with("flyci_host_");
        assert!(!(is_super || bypasses || makes_roles || makes_databases), "{role} can too much");
        assert!(!logs_in || may_log_in, "{role} logs in");
    }
    let owned: Vec<(String,)> = rows(
        &db.owner,
        "SELECT relname::text FROM pg_class JOIN pg_roles r ON r.oid = relowner
         WHERE r.rolname IN ('flyci_gateway', 'flyci_host', 'flyci_web')",
    )
    .await;
    assert_eq!(owned, [], "whoever owns a table can switch its row-level security off");
    let inherited: Vec<(String,)> = rows(
        &db.owner,
        "SELECT m.rolname::text FROM pg_auth_members a JOIN pg_roles m ON m.oid = a.member
         WHERE m.rolname IN ('flyci_gateway', 'flyci_host', 'flyci_web')",
    )
    .await;
    assert_eq!(inherited, [], "a role that serves is member of no other");
    for (pool, role) in [(&db.gateway, "flyci_gateway"), (&db.host, "flyci_host")] {
        let acts_as: Vec<(String, bool)> = rows(
            pool,
            "SELECT current_user::text, rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user",
        )
        .await;
        assert_eq!(acts_as, [(role.to_owned(), false)]);
    }
    // Functions that run with their owner's rights: with a fixed path, and for whom they were granted alone.
    let functions: Vec<(String, Option<Vec<String>>, bool)> = rows(
        &db.owner,
        "SELECT proname::text, proconfig, has_function_privilege('public', oid, 'EXECUTE')
         FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosecdef",
    )
    .await;
    assert_eq!(functions.len(), 2, "{functions:?}");
    for (name, settings, is_public) in functions {
        let path = settings.unwrap_or_default().into_iter().any(|setting| setting.starts_with("search_path="));
        assert!(path && !is_public, "{name} can be misused");
    }
}

/// What the web role sees of each table, acting for a tenant or for none.
async fn seen(db: &TestDatabase, tenant: Option<&str>) -> Vec<(&'static str, Vec<String>)> {
    let mut tx = db.owner.begin().await.expect("a transaction");
    sqlx::query("SET LOCAL ROLE flyci_web").execute(&mut *tx).await.expect("the login is member of it");
    if let Some(tenant) = tenant {
        sqlx::query("SELECT set_config('flyci.tenant', $1, true)").bind(tenant).execute(&mut *tx).await.expect("set");
    }
    let mut found = Vec::new();
    for (table, owner) in [
        ("tenants", "id"),
        ("repositories", "tenant_id"),
        ("jobs", "tenant_id"),
        ("refusals", "tenant_id"),
        ("runners", "tenant_id"),
        ("vms", "tenant_id"),
    ] {
        let query = format!("SELECT DISTINCT {owner}::text FROM {table}");
        let owners = sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(&mut *tx).await.expect(table);
        found.push((table, owners));
    }
    found
}

#[tokio::test]
async fn the_web_role_sees_the_rows_of_the_tenant_that_it_acts_for() {
    let site = Site::open().await;
    for (installation, label) in [(1, "flyci-test"), (2, "flyci-test"), (1, "flyci-unknown"), (2, "flyci-unknown")] {
        let mut job = Job::queued(1_000 + installation * 10 + label.len() as u64).labels(&[label]);
        (job.installation, job.owner, job.repository) = (installation, 100 + installation, 10 + installation);
        assert!(site.deliver(&job).await.status.is_success());
    }
    let fence = site.host("mini-1", 4, 16_000_000_000).await;
    for slot in [0, 1, 2] {
        site.vm(fence, slot).await;
    }
    site.sql("UPDATE vms SET tenant_id = (SELECT id FROM tenants ORDER BY created_at LIMIT 1) WHERE slot = 0").await;
    site.sql("UPDATE vms SET tenant_id = (SELECT id FROM tenants ORDER BY created_at DESC LIMIT 1) WHERE slot = 1")
        .await;
    site.sql(
        "INSERT INTO runners (id, vm_id, host_id, tenant_id, repository_id, labels, class, state)
              SELECT gen_random_uuid(), v.id, v.host_id, v.tenant_id, r.id, '{}', 1, 'removed'
              FROM vms v JOIN repositories r ON r.tenant_id = v.tenant_id",
    )
    .await;
    let tenants: Vec<(String,)> = rows(&site.db.owner, "SELECT id::text FROM tenants ORDER BY created_at").await;
    assert_eq!(tenants.len(), 2);

    for (table, owners) in seen(&site.db, None).await {
        assert_eq!(owners, Vec::<String>::new(), "without a tenant nothing of {table} is seen");
    }
    for (tenant,) in &tenants {
        for (table, owners) in seen(&site.db, Some(tenant)).await {
            assert_eq!(owners, std::slice::from_ref(tenant), "of {table}");
        }
    }
    // Nor does it outlive its transaction, or reach what is wrapped or sealed for others.
    assert!(seen(&site.db, None).await.iter().all(|(_, owners)| owners.is_empty()));
    for statement in [
        "SELECT wrapped_keys FROM tenants",
        "SELECT installation_lookup FROM tenants",
        "SELECT sealed_jit FROM runners",
        "SELECT * FROM audit",
        "SELECT * FROM audit_key",
        "SELECT * FROM hosts",
        "SELECT * FROM deliveries",
        "UPDATE jobs SET state = 'done'",
        "DELETE FROM tenants",
    ] {
        let mut tx = site.db.owner.begin().await.expect("a transaction");
        sqlx::query("SET LOCAL ROLE flyci_web").execute(&mut *tx).await.expect("the login is member of it");
        sqlx::query("SELECT set_config('flyci.tenant', $1, true)")
            .bind(&tenants[0].0)
            .execute(&mut *tx)
            .await
            .expect("set");
        assert!(sqlx::query(statement).execute(&mut *tx).await.is_err(), "{statement}");
    }
}
