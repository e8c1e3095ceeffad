//! A database of its own for each test, copied from a template that was migrated once.

use flyci::store::{self, Maintenance, Role};
use sha2::{Digest, Sha256};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, Executor, PgConnection, PgPool};
use uuid::Uuid;

/// Set by `script/test`: a cluster that tests may make databases in, as a superuser.
const URL: &str = "FLYCI_TEST_DATABASE_URL";
/// Of the tests that start at once, one makes the template.
const TEMPLATE_LOCK: i64 = 0x666c_7963_6974_6573;

/// One test's database.
pub struct TestDatabase {
    /// Where it is, for a daemon's configuration.
    pub url: String,
    /// Acts as the cluster's owner: for looking at, and for arranging, what no role of flyci may.
    pub owner: PgPool,
    /// Acts as the gateway.
    pub gateway: PgPool,
    /// Acts as a host.
    pub host: PgPool,
    /// Looks after the tables as their owner.
    pub maintenance: Maintenance,
}

impl TestDatabase {
    pub async fn new() -> Self {
        let url = std::env::var(URL)
            .unwrap_or_else(|_| panic!("{URL} is not set: run script/test, which starts a Postgres for the tests"));
        let server: PgConnectOptions = url.parse().expect("the URL of the test cluster");
        let template = template(&server).await;
        let name = format!("test_{}", Uuid::new_v4().simple());
        let mut connection = PgConnection::connect_with(&server).await.expect("the test cluster answers");
        let create = format!("CREATE DATABASE {name} TEMPLATE {template}");
        connection.execute(sqlx::AssertSqlSafe(create)).await.expect("the template can be copied");
        let options = server.database(&name);
        Self {
            owner: PgPoolOptions::new().max_connections(4).connect_lazy_with(options.clone()),
            gateway: store::connect(&options, Role::Gateway, 8).await.expect("the gateway connects"),
            host: store::connect(&options, Role::Host, 4).await.expect("the host connects"),
            maintenance: Maintenance::new(options),
            url: url.replacen("/postgres?", &format!("/{name}?"), 1),
        }
    }
}

/// The template for this schema, made by the first test that wants it.
async fn template(server: &PgConnectOptions) -> String {
    let checksums: Vec<u8> = store::MIGRATOR.iter().flat_map(|migration| migration.checksum.iter().copied()).collect();
    let name = format!("template_{}", hex::encode(&Sha256::digest(&checksums)[..16]));
    let mut connection = PgConnection::connect_with(server).await.expect("the test cluster answers");
    sqlx::query("SELECT pg_advisory_lock($1)").bind(TEMPLATE_LOCK).execute(&mut connection).await.expect("the lock");
    let there: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)")
        .bind(&name)
        .fetch_one(&mut connection)
        .await
        .expect("the catalogue can be read");
    if !there {
        // Under another name until it is whole: a test that dies here leaves no half template.
        let making = format!("making_{}", Uuid::new_v4().simple());
        connection.execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {making}"))).await.expect("a new database");
        store::migrate(&server.clone().database(&making)).await.expect("the migrations run");
        let rename = format!("ALTER DATABASE {making} RENAME TO {name}");
        connection.execute(sqlx::AssertSqlSafe(rename)).await.expect("the template gets its name");
    }
    sqlx::query("SELECT pg_advisory_unlock($1)").bind(TEMPLATE_LOCK).execute(&mut connection).await.expect("unlock");
    name
}
