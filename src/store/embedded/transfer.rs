//! Backup, restore, and moving on to a later major version of Postgres.
//!
//! A backup is one file: a dump of the database in pg_dump's custom format. The master key is never in
//! it: who finds a backup reads no names, and who loses the key reads none either, so it is told where
//! that key is and that it wants a copy elsewhere. What a restore or an upgrade replaces is kept.

use super::binaries::{self, Binaries};
use super::cluster::{self, Layout};
use super::server::Server;
use super::{EmbeddedError, NAME, Options, PORT, command, connect_options, io_error, service_user};
use crate::data_dir::{DataDir, DataDirError};
use crate::domain::units::Bytes;
use crate::secrets::{KeyId, KeyRing, MasterSource};
use crate::store::{SCHEMA, fleet, tenants};
use chrono::Utc;
use sqlx::postgres::PgPoolOptions;
use sqlx::{ConnectOptions, Connection};
use std::ffi::OsString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A dump of a year of a busy fleet's metadata takes minutes.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(60 * 60);
/// How pg_dump's custom format begins.
const DUMP_BEGIN: &[u8] = b"PGDMP";
/// The roles that the dump's grants name: a dump of one database holds no roles.
const ROLES: [&str; 5] = ["flyci_owner", "flyci_migrate", "flyci_gateway", "flyci_web", "flyci_host"];

/// What a backup holds, in words for the operator.
#[derive(Debug)]
pub struct Backup {
    /// The file.
    pub file: PathBuf,
    /// Its size.
    pub size: Bytes,
    /// Where the master key is, which is not in the backup.
    pub master: MasterSource,
    /// Names that key, if it is there.
    pub master_key: Option<KeyId>,
}

impl fmt::Display for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (file, master) = (self.file.display(), &self.master);
        writeln!(
            f,
            "{file} ({}) holds the private database: tenants with their wrapped keys, repositories, jobs, vms, \
             runners, hosts, deliveries and the audit log. Names and GitHub's ids in it are encrypted.",
            self.size
        )?;
        let id = self.master_key.map(|id| format!(", id {id}")).unwrap_or_default();
        write!(
            f,
            "It does not hold the master key ({master}{id}): without that key nobody reads those names, you \
             neither. Keep a copy of the key elsewhere, apart from this file."
        )
    }
}

/// Whether the master key at hand opens what was restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyStanding {
    /// It does.
    Fits,
    /// There is nothing yet that it would have to open.
    NothingToOpen,
    /// There is no key.
    Missing,
    /// It is another one, or unreadable.
    Other,
}

/// What a restore did, in words for the operator.
#[derive(Debug)]
pub struct Restored {
    /// The database that was there before.
    pub kept: Option<PathBuf>,
    /// Where the master key is.
    pub master: MasterSource,
    /// Whether it opens what was restored.
    pub key: KeyStanding,
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "The private database is restored.")?;
        if let Some(kept) = &self.kept {
            writeln!(f, "The one before is kept in {}: remove it when all is well.", kept.display())?;
        }
        let master = &self.master;
        match self.key {
            KeyStanding::Fits => write!(f, "The master key ({master}) opens it."),
            KeyStanding::NothingToOpen => write!(f, "It holds no tenant yet, so any master key will do."),
            KeyStanding::Missing => {
                write!(f, "The master key is missing: put it to {master} before you start flyci.")
            }
            KeyStanding::Other => write!(
                f,
                "The master key in {master} does NOT open it: put the one there that belongs to this backup, \
                 before you start flyci."
            ),
        }
    }
}

/// What an upgrade did, in words for the operator.
#[derive(Debug)]
pub struct Upgraded {
    /// The major version before.
    pub from: u32,
    /// The major version now.
    pub to: u32,
    /// The database of before.
    pub kept: PathBuf,
}

impl fmt::Display for Upgraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.kept.display();
        write!(
            f,
            "The private database is of PostgreSQL {} now ({} before). The one before is kept in {kept}: remove it \
             when all is well.",
            self.to, self.from
        )
    }
}

/// Writes the private database to a new file that only its owner may read. The daemon may run.
///
/// # Errors
/// When the file is there already, when there is no private database, or Postgres fails.
pub async fn backup(data_dir: &Path, master: &MasterSource, file: &Path) -> Result<Backup, EmbeddedError> {
    let user = service_user()?;
    let layout = Layout::of(data_dir)?;
    let major = layout.major()?.ok_or_else(|| EmbeddedError::NoCluster(data_dir.to_owned()))?;
    let found = binaries::installed(&layout).await;
    let binaries = binaries::of_major(&layout, found, major, Options { download: false }).await?;
    match DataDir::lock(data_dir) {
        Ok(_lock) => {
            layout.prepare(&user)?;
            let mut server = Server::start(&layout, &binaries).await?;
            let outcome = dump(&layout, &binaries, file).await;
            server.stop().await?;
            outcome?;
        }
        // The daemon runs, and Postgres with it.
        Err(DataDirError::InUse { .. }) => dump(&layout, &binaries, file).await?,
        Err(error) => return Err(error.into()),
    }
    let size = std::fs::metadata(file).map_err(|error| io_error(file, "read", error))?.len();
    Ok(Backup {
        file: file.to_owned(),
        size: Bytes(size),
        master: master.clone(),
        master_key: KeyRing::load(master.clone()).ok().map(|ring| ring.master_key_id()),
    })
}

/// Puts a backup in the place of the private database, which is kept. The daemon must not run.
///
/// # Errors
/// When the daemon runs, when the file is no backup, or Postgres fails: nothing is changed then.
pub async fn restore(
    data_dir: &Path,
    master: &MasterSource,
    file: &Path,
    options: Options,
) -> Result<Restored, EmbeddedError> {
    let user = service_user()?;
    // Postgres's programs are told the path: a file that is missing or something else is better told by us.
    look_at(file)?;
    let file = std::path::absolute(file).map_err(|error| io_error(file, "read", error))?;
    let lock = DataDir::lock(data_dir)?;
    let layout = Layout::of(lock.path())?;
    layout.prepare(&user)?;
    // The present cluster may be damaged or of a version that is gone: it is not started.
    if let Some(mut leftover) = Server::find(&layout).await? {
        leftover.stop().await?;
    }
    let binaries = binaries::for_new_cluster(&layout, options).await?;
    let (draft, key) = build(&layout, &binaries, &file, master).await?;
    let kept = match layout.major()? {
        Some(_) => Some(keep(&layout, "before-restore")?),
        None => None,
    };
    cluster::rename(draft.cluster(), layout.cluster())?;
    Ok(Restored { kept, master: master.clone(), key })
}

/// Moves the private database on to the newest installed major version. What was before is kept. The
/// daemon must not run.
///
/// # Errors
/// When the daemon runs, when there is no later version, when the binaries of the present version are
/// missing, or Postgres fails: nothing is changed then.
pub async fn upgrade(data_dir: &Path, master: &MasterSource, options: Options) -> Result<Upgraded, EmbeddedError> {
    let user = service_user()?;
    let lock = DataDir::lock(data_dir)?;
    let layout = Layout::of(lock.path())?;
    let major = layout.major()?.ok_or_else(|| EmbeddedError::NoCluster(data_dir.to_owned()))?;
    let found = binaries::installed(&layout).await;
    let newest = binaries::newest(found.clone()).filter(|binaries| binaries.major > major);
    let newest = newest.ok_or(EmbeddedError::NothingToUpgrade(major))?;
    let present = binaries::of_major(&layout, found, major, options).await?;
    layout.prepare(&user)?;
    move_on(&layout, &present, &newest, master).await
}

/// Dumps the cluster with the present binaries' server, and builds one of the next binaries from it.
pub(super) async fn move_on(
    layout: &Layout,
    present: &Binaries,
    next: &Binaries,
    master: &MasterSource,
) -> Result<Upgraded, EmbeddedError> {
    let file = layout.home().join("upgrade.dump");
    remove_file(&file)?;
    let mut server = Server::start(layout, present).await?;
    // A later pg_dump reads earlier servers, not the other way round.
    let dumped = dump(layout, next, &file).await;
    server.stop().await?;
    dumped?;
    let built = build(layout, next, &file, master).await;
    remove_file(&file)?;
    let (draft, _) = built?;
    let kept = keep(layout, &format!("postgresql-{}", present.major))?;
    cluster::rename(draft.cluster(), layout.cluster())?;
    Ok(Upgraded { from: present.major, to: next.major, kept })
}

/// Writes a dump beside its place and moves it there when it is whole.
async fn dump(layout: &Layout, binaries: &Binaries, file: &Path) -> Result<(), EmbeddedError> {
    if file.exists() {
        return Err(EmbeddedError::FileExists(file.to_owned()));
    }
    let file = std::path::absolute(file).map_err(|error| io_error(file, "read", error))?;
    let mut draft = file.clone().into_os_string();
    draft.push(".part");
    let draft = PathBuf::from(draft);
    // Made by us with its mode: pg_dump would let the umask decide who may read it.
    remove_file(&draft)?;
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft);
    made.map_err(|error| io_error(&draft, "written", error))?;
    let arguments =
        [connection(layout, "--dbname"), vec!["--format=custom".into(), "--file".into(), draft.clone().into()]];
    if let Err(error) = command::run(&binaries.program("pg_dump"), arguments.concat(), TRANSFER_DEADLINE).await {
        remove_file(&draft)?;
        return Err(error);
    }
    let sync = |path: &Path| File::open(path)?.sync_all();
    sync(&draft)
        // A hard link never replaces a file.
        .and_then(|()| std::fs::hard_link(&draft, &file))
        .and_then(|()| std::fs::remove_file(&draft))
        .and_then(|()| file.parent().map_or(Ok(()), sync))
        .map_err(|error| io_error(&file, "written", error))
}

/// Whether a file begins as pg_dump begins its custom format.
fn look_at(file: &Path) -> Result<(), EmbeddedError> {
    let mut begin = Vec::new();
    let read = File::open(file).and_then(|opened| opened.take(DUMP_BEGIN.len() as u64).read_to_end(&mut begin));
    read.map_err(|error| io_error(file, "read", error))?;
    if begin == DUMP_BEGIN {
        return Ok(());
    }
    Err(EmbeddedError::NoBackup { file: file.to_owned(), why: "it does not begin as one" })
}

/// What pg_restore's failure says of the file.
fn not_restored(error: EmbeddedError, file: &Path, binaries: &Binaries) -> EmbeddedError {
    match &error {
        // `unsupported version (1.17) in file header`, `unrecognized configuration parameter "…"`: of a later server.
        EmbeddedError::Program { output, .. }
            if output.contains("in file header") && output.contains("unsupported version")
                || output.contains("unrecognized configuration parameter") =>
        {
            EmbeddedError::NewerDump { file: file.to_owned(), major: binaries.major }
        }
        _ => error,
    }
}

/// That what was restored is a database of flyci's, and one that this version can work with.
async fn known(draft: &Layout, file: &Path) -> Result<(), EmbeddedError> {
    let pool = PgPoolOptions::new().max_connections(1).connect_with(connect_options(draft, NAME)).await?;
    let schema = fleet::find_schema(&pool).await;
    pool.close().await;
    let file = file.to_owned();
    match schema {
        Ok(Some(schema)) if schema.min_reader > SCHEMA => {
            Err(EmbeddedError::NewerBackup { file, found: schema.schema, known: SCHEMA })
        }
        Ok(Some(_)) => Ok(()),
        Ok(None) | Err(_) => Err(EmbeddedError::NoBackup { file, why: "it holds another database" }),
    }
}

/// Builds a cluster beside the present one out of a dump.
async fn build(
    layout: &Layout,
    binaries: &Binaries,
    file: &Path,
    master: &MasterSource,
) -> Result<(Layout, KeyStanding), EmbeddedError> {
    let draft = layout.with_cluster("cluster.new");
    cluster::remove(draft.cluster())?;
    cluster::initialise(&draft, binaries).await?;
    let mut server = Server::start(&draft, binaries).await?;
    let filled = fill(&draft, binaries, file, master).await;
    server.stop().await?;
    match filled {
        Ok(key) => Ok((draft, key)),
        Err(error) => {
            cluster::remove(draft.cluster())?;
            Err(error)
        }
    }
}

async fn fill(
    draft: &Layout,
    binaries: &Binaries,
    file: &Path,
    master: &MasterSource,
) -> Result<KeyStanding, EmbeddedError> {
    let mut connection_to = connect_options(draft, super::MAINTENANCE).connect().await?;
    let roles = ROLES.map(|role| format!("CREATE ROLE {role} NOLOGIN;")).concat();
    sqlx::raw_sql(sqlx::AssertSqlSafe(roles)).execute(&mut connection_to).await?;
    sqlx::raw_sql("CREATE DATABASE flyci TEMPLATE template0").execute(&mut connection_to).await?;
    connection_to.close().await?;
    let flags = ["--single-transaction", "--exit-on-error"].map(OsString::from).to_vec();
    let arguments = [connection(draft, "--dbname"), flags, vec![file.into()]].concat();
    let restored = command::run(&binaries.program("pg_restore"), arguments, TRANSFER_DEADLINE).await;
    restored.map_err(|error| not_restored(error, file, binaries))?;
    known(draft, file).await?;
    standing(draft, master).await
}

/// Whether the master key opens the first of the tenants' keys.
async fn standing(layout: &Layout, master: &MasterSource) -> Result<KeyStanding, EmbeddedError> {
    let pool = PgPoolOptions::new().max_connections(1).connect_with(connect_options(layout, NAME)).await?;
    let tenants = tenants::all(&pool).await;
    pool.close().await;
    let tenants = match tenants {
        Ok(tenants) => tenants,
        Err(super::super::StoreError::Database(error)) => return Err(error.into()),
        Err(_) => return Ok(KeyStanding::Other),
    };
    if matches!(master, MasterSource::File(path) if !path.exists()) {
        return Ok(KeyStanding::Missing);
    }
    let Some(first) = tenants.first() else { return Ok(KeyStanding::NothingToOpen) };
    let opens = KeyRing::load(master.clone()).and_then(|ring| ring.unwrap(first.id, &first.wrapped_keys));
    Ok(if opens.is_ok() { KeyStanding::Fits } else { KeyStanding::Other })
}

/// Moves the present cluster aside.
fn keep(layout: &Layout, why: &str) -> Result<PathBuf, EmbeddedError> {
    let name = format!("cluster.{why}-{}", Utc::now().format("%Y%m%dT%H%M%S%3fZ"));
    let kept = layout.home().join(name);
    cluster::rename(layout.cluster(), &kept)?;
    Ok(kept)
}

/// How Postgres's programs connect; they take no password.
fn connection(layout: &Layout, database: &str) -> Vec<OsString> {
    vec![
        "--host".into(),
        layout.socket_dir().into(),
        "--port".into(),
        PORT.to_string().into(),
        "--username".into(),
        NAME.into(),
        "--no-password".into(),
        database.into(),
        NAME.into(),
    ]
}

fn remove_file(path: &Path) -> Result<(), EmbeddedError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error(path, "removed", error)),
        _ => Ok(()),
    }
}
