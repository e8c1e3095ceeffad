//! The private Postgres with the real programs. Postgres refuses root: `script/test` runs these under
//! an unprivileged user.

use super::*;
use crate::domain::ids::TenantId;
use crate::secrets::{Column, MasterSource};
use crate::store::tenants::{self, Admission, NewTenant};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use std::os::unix::fs::MetadataExt;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(60);
const INSTALLED: Options = Options { download: false };

fn home() -> TempDir {
    assert!(!Uid::effective().is_root(), "Postgres refuses root: run the tests by script/test, or as another user");
    tempfile::tempdir().expect("a temporary directory")
}

/// The file of the one process that may run on the cluster.
fn pid(home: &TempDir) -> Option<Pid> {
    let text = std::fs::read_to_string(home.path().join("postgres/cluster/postmaster.pid")).ok()?;
    text.lines().next()?.parse().ok().map(Pid::from_raw)
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

async fn pool(postgres: &EmbeddedPostgres) -> PgPool {
    let options = PgPoolOptions::new().max_connections(2).acquire_timeout(DEADLINE);
    options.connect_with(postgres.connect_options()).await.expect("it takes connections")
}

async fn value(pool: &PgPool, query: &'static str) -> String {
    sqlx::query_scalar(query).fetch_one(pool).await.expect(query)
}

/// A daemon's Postgres with the schema and one tenant in it; answers the tenant.
async fn with_a_tenant(home: &TempDir, lock: &DataDir) -> (EmbeddedPostgres, TenantId) {
    let postgres = EmbeddedPostgres::start(lock, INSTALLED).await.expect("it starts");
    crate::store::migrate(&postgres.connect_options()).await.expect("the schema is made");
    let ring = crate::secrets::KeyRing::open_or_create(&home.path().join("master.key")).expect("the key is made");
    let tenant = TenantId::random();
    let (keys, wrapped_keys) = ring.new_tenant(tenant);
    let pool = pool(&postgres).await;
    let new = NewTenant {
        id: tenant,
        installation_lookup: ring.installation_lookup(1),
        account_lookup: ring.account_lookup(2),
        wrapped_keys: &wrapped_keys,
        installation_id: &keys.seal_id(Column::TenantInstallationId, tenant.0, 1),
        account_id: &keys.seal_id(Column::TenantAccountId, tenant.0, 2),
        account: &keys.seal_text(Column::TenantAccount, tenant.0, "octo-org"),
        account_kind: "organization",
        admission: Admission::Approved,
    };
    tenants::insert(&pool, &new).await.expect("it is stored");
    pool.close().await;
    (postgres, tenant)
}

async fn stop(mut postgres: EmbeddedPostgres) {
    postgres.server.stop().await.expect("it stops");
}

fn master(file: &Path) -> MasterSource {
    MasterSource::File(file.to_owned())
}

#[tokio::test]
async fn it_is_durable_private_and_silent() {
    let home = home();
    let lock = DataDir::lock(home.path()).expect("nobody else has it");
    let postgres = EmbeddedPostgres::start(&lock, INSTALLED).await.expect("it starts");
    let pool = pool(&postgres).await;
    for (query, expected) in [
        ("SHOW fsync", "on"),
        ("SHOW full_page_writes", "on"),
        ("SHOW synchronous_commit", "on"),
        ("SHOW data_checksums", "on"),
        ("SHOW listen_addresses", ""),
        ("SHOW server_encoding", "UTF8"),
        ("SELECT datcollate::text FROM pg_database WHERE datname = 'flyci'", "C"),
        ("SHOW log_statement", "none"),
        ("SHOW log_min_error_statement", "panic"),
        ("SHOW log_parameter_max_length", "0"),
        ("SHOW log_parameter_max_length_on_error", "0"),
        ("SELECT current_user::text", "flyci"),
    ] {
        assert_eq!(value(&pool, query).await, expected, "{query}");
    }
    sqlx::query("SELECT 'canary-in-a-statement'::integer").execute(&pool).await.expect_err("it is no number");
    sqlx::query("SELECT $1::text::integer").bind("canary-in-a-value").execute(&pool).await.expect_err("neither");
    let log = std::fs::read_to_string(home.path().join("postgres/postgres.log")).expect("there is a log");
    assert!(log.contains("ready to accept connections") && !log.contains("canary"), "{log}");
    for directory in ["postgres", "postgres/socket", "postgres/cluster"] {
        let mode = std::fs::metadata(home.path().join(directory)).expect("it is there").mode();
        assert_eq!(mode & 0o777, 0o700, "{directory}");
    }
    pool.close().await;
    stop(postgres).await;
    assert!(pid(&home).is_none(), "nothing runs any more");
}

#[tokio::test]
async fn it_is_adopted_when_the_daemon_died_before_it() {
    let home = home();
    let lock = DataDir::lock(home.path()).expect("nobody else has it");
    let (first, tenant) = with_a_tenant(&home, &lock).await;
    let running = pid(&home).expect("it runs");
    // A daemon that is killed runs no destructor, and its lock is gone with it.
    std::mem::forget(first);
    drop(lock);
    let lock = DataDir::lock(home.path()).expect("the dead daemon has it no more");
    let second = EmbeddedPostgres::start(&lock, INSTALLED).await.expect("it is adopted");
    assert_eq!(pid(&home), Some(running), "it is the same process");
    let pool = pool(&second).await;
    assert_eq!(tenants::all(&pool).await.expect("it answers")[0].id, tenant);
    pool.close().await;
    stop(second).await;
    assert!(pid(&home).is_none(), "an adopted one is stopped too");
}

#[tokio::test]
async fn it_is_started_again_when_it_dies() {
    let home = home();
    let lock = DataDir::lock(home.path()).expect("nobody else has it");
    let postgres = EmbeddedPostgres::start(&lock, INSTALLED).await.expect("it starts");
    let pool = pool(&postgres).await;
    let (stop, first) = (CancellationToken::new(), pid(&home).expect("it runs"));
    let run = tokio::spawn(postgres.run(stop.clone()));
    kill(first, Signal::SIGKILL).expect("it is ours");
    until("another process", async || pid(&home).is_some_and(|now| now != first)).await;
    until("it answers again", async || sqlx::query("SELECT 1").execute(&pool).await.is_ok()).await;
    pool.close().await;
    stop.cancel();
    run.await.expect("no panic").expect("it stops");
    assert!(pid(&home).is_none(), "nothing runs any more");
}

#[tokio::test]
async fn a_pid_file_that_names_another_process_does_not_keep_it_from_starting() {
    let home = home();
    let lock = DataDir::lock(home.path()).expect("nobody else has it");
    stop(EmbeddedPostgres::start(&lock, INSTALLED).await.expect("it starts")).await;
    // As after a power cut: the id belongs to somebody else of our own user by now.
    let mut other = tokio::process::Command::new("sleep").arg("600").kill_on_drop(true).spawn().expect("it runs");
    let recycled = other.id().expect("it runs");
    let cluster = home.path().join("postgres/cluster");
    let socket = home.path().join("postgres/socket");
    let content = format!("{recycled}\n{}\n1\n5432\n{}\n\n\nready   \n", cluster.display(), socket.display());
    std::fs::write(cluster.join("postmaster.pid"), &content).expect("it is ours");
    std::fs::write(socket.join(".s.PGSQL.5432.lock"), &content).expect("it is ours");
    let postgres = EmbeddedPostgres::start(&lock, INSTALLED).await.expect("it starts all the same");
    assert!(other.try_wait().expect("it is our child").is_none(), "the other process was left alone");
    stop(postgres).await;
    other.kill().await.expect("it is our child");
}

#[tokio::test]
async fn a_cluster_of_another_major_version_is_never_started() {
    let home = home();
    let lock = DataDir::lock(home.path()).expect("nobody else has it");
    stop(EmbeddedPostgres::start(&lock, INSTALLED).await.expect("it starts")).await;
    std::fs::write(home.path().join("postgres/cluster/PG_VERSION"), "9\n").expect("it is ours");
    let error = EmbeddedPostgres::start(&lock, INSTALLED).await.expect_err("it is of another version");
    assert!(matches!(error, EmbeddedError::OtherMajor { is: 9, .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let home = home();
    let lock = DataDir::lock(home.path()).expect("nobody else has it");
    stop(EmbeddedPostgres::start(&lock, INSTALLED).await.expect("it starts")).await;
    std::fs::write(home.path().join("postgres/cluster/postgresql.conf"), "no_such_setting = 1\n").expect("it is ours");
    let error = EmbeddedPostgres::start(&lock, INSTALLED).await.expect_err("its settings are wrong");
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}

#[tokio::test]
async fn a_backup_is_restored_and_what_was_there_is_kept() {
    let home = home();
    let (key, file) = (home.path().join("master.key"), home.path().join("flyci.backup"));
    let lock = DataDir::lock(home.path()).expect("nobody else has it");
    let (postgres, tenant) = with_a_tenant(&home, &lock).await;
    // While the daemon runs.
    let told = backup(home.path(), &master(&key), &file).await.expect("it is written");
    assert!(told.to_string().contains("does not hold the master key"), "{told}");
    assert_eq!(std::fs::metadata(&file).expect("it is there").mode() & 0o777, 0o600);
    let again = backup(home.path(), &master(&key), &file).await.expect_err("a backup replaces nothing");
    assert!(matches!(again, EmbeddedError::FileExists(_)), "{again}");
    let busy = restore(home.path(), &master(&key), &file, INSTALLED).await.expect_err("the daemon runs");
    assert!(busy.to_string().contains("stop that one first"), "{busy}");
    let pool_before = pool(&postgres).await;
    tenants::set_account(&pool_before, tenant, &crate::secrets::Sealed(vec![0])).await.expect("it is damaged");
    pool_before.close().await;
    stop(postgres).await;
    drop(lock);

    let told = restore(home.path(), &master(&key), &file, INSTALLED).await.expect("it is restored");
    assert_eq!(told.key, KeyStanding::Fits, "{told}");
    assert!(told.kept.expect("one was there").join("PG_VERSION").exists());
    let lock = DataDir::lock(home.path()).expect("the restore is over");
    let postgres = EmbeddedPostgres::start(&lock, INSTALLED).await.expect("it starts");
    crate::store::migrate(&postgres.connect_options()).await.expect("the schema is known");
    let pool = crate::store::connect(&postgres.connect_options(), crate::store::Role::Gateway, 2).await;
    let pool = pool.expect("the roles and their rights are there");
    let row = tenants::get(&pool, tenant).await.expect("the gateway may read").expect("it is there");
    let ring = crate::secrets::KeyRing::open(&key).expect("the key was not touched");
    let keys = ring.unwrap(tenant, &row.wrapped_keys).expect("it is the same key");
    assert_eq!(keys.open_text(Column::TenantAccount, tenant.0, &row.account).expect("a name"), "octo-org");
    pool.close().await;
    stop(postgres).await;
}

#[tokio::test]
async fn a_restore_tells_of_a_master_key_that_does_not_fit() {
    let home = home();
    let (key, file) = (home.path().join("master.key"), home.path().join("flyci.backup"));
    let lock = DataDir::lock(home.path()).expect("nobody else has it");
    let (postgres, _) = with_a_tenant(&home, &lock).await;
    stop(postgres).await;
    drop(lock);
    // Without a daemon.
    backup(home.path(), &master(&key), &file).await.expect("it is written");
    let elsewhere = self::home();
    let other_key = elsewhere.path().join("master.key");
    let told = restore(elsewhere.path(), &master(&other_key), &file, INSTALLED).await.expect("it is restored");
    assert_eq!((told.key, &told.kept), (KeyStanding::Missing, &None), "{told}");
    crate::secrets::create_master_key(&other_key).expect("it can be made");
    let told = restore(elsewhere.path(), &master(&other_key), &file, INSTALLED).await.expect("it is restored again");
    assert_eq!(told.key, KeyStanding::Other, "{told}");
}

#[tokio::test]
async fn a_damaged_database_is_no_obstacle_to_a_restore() {
    let home = home();
    let (key, file) = (home.path().join("master.key"), home.path().join("flyci.backup"));
    let lock = DataDir::lock(home.path()).expect("nobody else has it");
    let (postgres, tenant) = with_a_tenant(&home, &lock).await;
    backup(home.path(), &master(&key), &file).await.expect("it is written");
    // The daemon was killed, its Postgres runs on, and its files are gone bad.
    std::mem::forget(postgres);
    drop(lock);
    std::fs::write(home.path().join("postgres/cluster/global/pg_control"), "zeroes").expect("it is ours");
    restore(home.path(), &master(&key), &file, INSTALLED).await.expect("it is restored");
    let lock = DataDir::lock(home.path()).expect("the restore is over");
    let postgres = EmbeddedPostgres::start(&lock, INSTALLED).await.expect("it starts");
    let pool = pool(&postgres).await;
    assert_eq!(tenants::all(&pool).await.expect("it answers")[0].id, tenant);
    pool.close().await;
    stop(postgres).await;
}

#[test]
fn a_full_disk_is_told_with_what_is_needed() {
    let home = tempfile::tempdir().expect("a temporary directory");
    check_room(home.path(), Bytes(1), "start").expect("there is room for a byte");
    let told = check_room(home.path(), Bytes(u64::MAX), "be made").expect_err("no disk is so large").to_string();
    let place = home.path().display().to_string();
    for words in [place.as_str(), "free, and the private database needs", "to be made: make room", "`data_dir`"] {
        assert!(told.contains(words), "{words}: {told}");
    }
}

#[tokio::test]
async fn what_cannot_be_restored_changes_nothing_and_is_told_in_a_sentence() {
    let home = home();
    let (key, file) = (home.path().join("master.key"), home.path().join("flyci.backup"));
    let lock = DataDir::lock(home.path()).expect("nobody else has it");
    let (postgres, tenant) = with_a_tenant(&home, &lock).await;
    // A backup of a later flyci, whose schema this one cannot read.
    let owner = pool(&postgres).await;
    let change = |to: i32| format!("UPDATE fleet SET schema = {to}, min_reader = {to}");
    let sql = |text: String| sqlx::raw_sql(sqlx::AssertSqlSafe(text));
    sql(change(99)).execute(&owner).await.expect("it is ours");
    backup(home.path(), &master(&key), &file).await.expect("it is written");
    sql(change(1)).execute(&owner).await.expect("it is ours");
    // A backup of another program's database.
    let (other, layout) = (home.path().join("other.backup"), Layout::of(home.path()).expect("a short path"));
    sql("ALTER TABLE fleet RENAME TO armada".to_owned()).execute(&owner).await.expect("it is ours");
    backup(home.path(), &master(&key), &other).await.expect("it is written");
    sql("ALTER TABLE armada RENAME TO fleet".to_owned()).execute(&owner).await.expect("it is ours");
    owner.close().await;
    stop(postgres).await;
    drop(lock);

    // What pg_dump writes, of a format to come; a dump that was cut off; and what is none.
    let dump = std::fs::read(&file).expect("it is readable");
    let mut of_later = dump.clone();
    of_later[6] = 200;
    let wrong: [(&str, &[u8], &str); 3] = [
        ("later.backup", &of_later, "later PostgreSQL"),
        ("cut.backup", &dump[..dump.len() / 2], "pg_restore"),
        ("no.backup", b"[github]\napp_id = 1\n", "is no backup of flyci"),
    ];
    let mut told = vec![(file, "written by a later flyci (schema 99"), (other, "it holds another database")];
    for (name, content, words) in wrong {
        let path = home.path().join(name);
        std::fs::write(&path, content).expect("it is writable");
        told.push((path, words));
    }
    for (path, words) in told {
        let error =
            restore(home.path(), &master(&key), &path, INSTALLED).await.expect_err("it cannot be restored").to_string();
        assert!(error.contains(words), "{words}: {error}");
        let left = std::fs::read_dir(layout.home()).expect("it is there").flatten();
        let left: Vec<_> = left.filter(|one| one.file_name().to_string_lossy().starts_with("cluster.")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
    let lock = DataDir::lock(home.path()).expect("the restores are over");
    let postgres = EmbeddedPostgres::start(&lock, INSTALLED).await.expect("it starts");
    let pool = pool(&postgres).await;
    assert_eq!(tenants::all(&pool).await.expect("it answers")[0].id, tenant);
    pool.close().await;
    stop(postgres).await;
}

#[tokio::test]
async fn an_upgrade_moves_everything_into_a_new_cluster() {
    let home = home();
    let key = home.path().join("master.key");
    let lock = DataDir::lock(home.path()).expect("nobody else has it");
    let (postgres, tenant) = with_a_tenant(&home, &lock).await;
    // A second major version is seldom installed: the same one takes its place on both sides.
    let (layout, binaries) = (postgres.layout.clone(), postgres.binaries.clone());
    stop(postgres).await;
    let told = transfer::move_on(&layout, &binaries, &binaries, &master(&key)).await.expect("it is moved");
    assert!(told.kept.join("PG_VERSION").exists(), "{told}");
    let postgres = EmbeddedPostgres::start(&lock, INSTALLED).await.expect("it starts");
    let pool = pool(&postgres).await;
    assert_eq!(tenants::all(&pool).await.expect("it answers")[0].id, tenant);
    pool.close().await;
    stop(postgres).await;
    drop(lock);
    let error = upgrade(home.path(), &master(&key), INSTALLED).await.expect_err("it is the newest");
    assert!(matches!(error, EmbeddedError::NothingToUpgrade(_)), "{error}");
}
