//! The private Postgres: installed binaries, a cluster in the data directory, a Unix socket for its
//! owner alone. Started with the daemon, adopted when an earlier daemon died before it, started again
//! when it dies, stopped last.
//!
//! Postgres is run by its own programs, with the settings that make a commit durable and keep data out
//! of its log given on its command line, where no file can weaken them. Nobody needs a password: the
//! socket's directory is 0700, and the kernel tells Postgres who connects (`peer`). Processes are
//! spawned here and in `hypervisor/`, nowhere else.

mod binaries;
mod cluster;
mod command;
mod server;
mod transfer;

pub use transfer::{Backup, KeyStanding, Restored, Upgraded, backup, restore, upgrade};

use crate::data_dir::{DataDir, DataDirError, free_space};
use crate::domain::units::Bytes;
use binaries::Binaries;
use cluster::Layout;
use nix::unistd::{Uid, User};
use server::Server;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The database, and the superuser that owns it.
const NAME: &str = "flyci";
/// The database that every cluster has.
const MAINTENANCE: &str = "postgres";
/// Part of the socket's name; nothing listens on it.
const PORT: u16 = 5432;
const MEGABYTE: u64 = 1_000_000;
/// Free space without which no new cluster is made: it has 55 MB, and its first write-ahead log.
const ROOM_TO_BE_MADE: Bytes = Bytes(200 * MEGABYTE);
/// Free space without which it is not started: a few files of its write-ahead log, of 17 MB each.
const ROOM_TO_START: Bytes = Bytes(64 * MEGABYTE);
/// Between two tries to start a server that died: the first wait and the longest.
const RESTART_WAIT: Duration = Duration::from_millis(200);
const RESTART_WAIT_MAX: Duration = Duration::from_secs(30);

/// Why the private Postgres does not run.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Postgres refuses root.
    #[error(
        "flyci cannot run its private Postgres as root (Postgres refuses to): run flyci as an unprivileged user, or set `database.url`"
    )]
    Root,
    /// Postgres asks the system for the user's name.
    #[error("user {0} has no name in this system (/etc/passwd), and Postgres needs one: add it, or set `database.url`")]
    NamelessUser(u32),
    /// None is installed.
    #[error(
        "no PostgreSQL {wanted} was found (looked on the PATH and in {looked}): install it (`apt install postgresql`, `brew install postgresql@17`), allow `[database] download = true`, or set `database.url`"
    )]
    NoBinaries {
        /// The major version, or `14 or later`.
        wanted: String,
        /// The directories.
        looked: String,
    },
    /// The cluster was made by another major version.
    #[error(
        "the private database in {cluster} is of PostgreSQL {is}, and installed is {found}: install PostgreSQL {is} again; with both installed, `flyci database upgrade` moves it on"
    )]
    OtherMajor {
        /// The cluster.
        cluster: PathBuf,
        /// Its major version.
        is: u32,
        /// What is installed.
        found: String,
    },
    /// A download was allowed, and failed.
    #[error("PostgreSQL could not be downloaded ({reason}): install it, or try again")]
    Download {
        /// What went wrong.
        reason: String,
    },
    /// The socket's path does not fit.
    #[error(
        "the socket {path} would have more than the {limit} bytes that a socket's path may have: give a shorter `data_dir`"
    )]
    SocketPath {
        /// The path.
        path: PathBuf,
        /// The limit in bytes.
        limit: usize,
    },
    /// One of Postgres's programs failed.
    #[error("`{program}` failed: {output}")]
    Program {
        /// Its name.
        program: String,
        /// The end of what it said.
        output: String,
    },
    /// One of Postgres's programs took too long.
    #[error("`{program}` did not end within {} s", .deadline.as_secs())]
    Slow {
        /// Its name.
        program: String,
        /// The deadline.
        deadline: Duration,
    },
    /// The server ended while it started.
    #[error("the private Postgres did not start; the end of its log {log}:\n{tail}")]
    Died {
        /// The log.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// The server neither started nor ended.
    #[error("the private Postgres was not ready within {} s; its log is {log}", .deadline.as_secs())]
    NotReady {
        /// The log.
        log: PathBuf,
        /// The deadline.
        deadline: Duration,
    },
    /// The server did not stop.
    #[error("the private Postgres (process {pid}) did not stop within {} s", .deadline.as_secs())]
    NotStopped {
        /// Its process id.
        pid: i32,
        /// The deadline.
        deadline: Duration,
    },
    /// The disk is full, or nearly.
    #[error(
        "{path} has {free} free, and the private database needs {needed} to {to}: make room on that volume (`df -h {path}`), or give another `data_dir`"
    )]
    NoRoom {
        /// The directory of the database.
        path: PathBuf,
        /// What this user may still write there.
        free: Bytes,
        /// What must be free.
        needed: Bytes,
        /// `be made`, `start`.
        to: &'static str,
    },
    /// What is to be restored is something else.
    #[error("{file} is no backup of flyci ({why}): nothing was changed; name a file that `flyci backup` wrote")]
    NoBackup {
        /// The file.
        file: PathBuf,
        /// What shows it.
        why: &'static str,
    },
    /// The backup is of a later flyci.
    #[error(
        "{file} was written by a later flyci (schema {found}; this one knows {known}): nothing was changed; restore it with that flyci, or a later one"
    )]
    NewerBackup {
        /// The file.
        file: PathBuf,
        /// Its schema.
        found: i32,
        /// The newest schema that this version knows.
        known: i32,
    },
    /// The backup is of a later PostgreSQL.
    #[error(
        "{file} was written with a later PostgreSQL than the installed {major}, which cannot read it: nothing was changed; install that PostgreSQL, and try again"
    )]
    NewerDump {
        /// The file.
        file: PathBuf,
        /// The installed major version.
        major: u32,
    },
    /// There is nothing to back up or upgrade.
    #[error("there is no private database in {0}")]
    NoCluster(PathBuf),
    /// It is of the newest installed version already.
    #[error("the private database is of PostgreSQL {0} already, and no later one is installed")]
    NothingToUpgrade(u32),
    /// A backup never replaces a file.
    #[error("{0} is there already: name another file")]
    FileExists(PathBuf),
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The server runs and does not answer as expected.
    #[error("the private Postgres did not answer as expected")]
    Database(#[from] sqlx::Error),
    /// The file system refused.
    #[error("{path} cannot be {doing}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// `made`, `read`, `written`, `removed`, `started`, ….
        doing: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

fn io_error(path: &Path, doing: &'static str, source: io::Error) -> EmbeddedError {
    EmbeddedError::Io { path: path.to_owned(), doing, source }
}

/// Whether there is room for the private Postgres in a directory that exists.
fn check_room(path: &Path, needed: Bytes, to: &'static str) -> Result<(), EmbeddedError> {
    let free = free_space(path).map_err(|error| io_error(path, "asked for its free space", error))?;
    if free >= needed {
        return Ok(());
    }
    // Whole megabytes: it is for people.
    let free = Bytes(free.0 - free.0 % MEGABYTE);
    Err(EmbeddedError::NoRoom { path: path.to_owned(), free, needed, to })
}

/// How the private Postgres is had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Whether it may be downloaded where none is installed.
    pub download: bool,
}

/// The private Postgres while it runs. Dropped without [`run`](Self::run), it is told to stop.
#[derive(Debug)]
pub struct EmbeddedPostgres {
    layout: Layout,
    binaries: Binaries,
    server: Server,
}

impl EmbeddedPostgres {
    /// Starts Postgres in the data directory, or adopts the one that runs there, and makes the database
    /// if there is none. The lock on the directory says that no other daemon does the same.
    ///
    /// # Errors
    /// With what to do: as root, without binaries of the cluster's version, when Postgres does not start.
    pub async fn start(data_dir: &DataDir, options: Options) -> Result<Self, EmbeddedError> {
        let user = service_user()?;
        let layout = Layout::of(data_dir.path())?;
        match layout.major()? {
            Some(_) => check_room(data_dir.path(), ROOM_TO_START, "start")?,
            None => check_room(data_dir.path(), ROOM_TO_BE_MADE, "be made")?,
        }
        let binaries = binaries::choose(&layout, options).await?;
        layout.prepare(&user)?;
        if layout.major()?.is_none() {
            cluster::initialise(&layout, &binaries).await?;
        }
        let server = Server::start(&layout, &binaries).await?;
        let postgres = Self { layout, binaries, server };
        postgres.make_database().await?;
        Ok(postgres)
    }

    /// How the daemon connects to it.
    #[must_use]
    pub fn connect_options(&self) -> PgConnectOptions {
        connect_options(&self.layout, NAME)
    }

    /// Keeps it running until `stop` is cancelled, then stops it. Cancel it last: after everything that
    /// uses the database has ended.
    ///
    /// # Errors
    /// When it does not stop.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), EmbeddedError> {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.server.stop().await,
                () = self.server.ended() => tracing::error!("the private Postgres ended by itself; it is started again"),
            }
            if !self.start_again(&stop).await {
                return Ok(());
            }
        }
    }

    /// Tries until it runs (`true`) or is not wanted any more (`false`).
    async fn start_again(&mut self, stop: &CancellationToken) -> bool {
        let mut wait = RESTART_WAIT;
        loop {
            match Server::start(&self.layout, &self.binaries).await {
                Ok(server) => {
                    self.server = server;
                    tracing::info!("the private Postgres runs again");
                    return true;
                }
                Err(error) => tracing::error!(%error, "the private Postgres does not start; trying again"),
            }
            tokio::select! {
                () = stop.cancelled() => return false,
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(RESTART_WAIT_MAX),
            }
        }
    }

    async fn make_database(&self) -> Result<(), EmbeddedError> {
        let mut connection = connect_options(&self.layout, MAINTENANCE).connect().await?;
        let there: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(NAME)
            .fetch_one(&mut connection)
            .await?;
        if !there {
            sqlx::raw_sql("CREATE DATABASE flyci TEMPLATE template0").execute(&mut connection).await?;
        }
        Ok(connection.close().await?)
    }
}

fn connect_options(layout: &Layout, database: &str) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .socket(layout.socket_dir())
        .port(PORT)
        .username(NAME)
        .database(database)
        .ssl_mode(PgSslMode::Disable)
        .application_name(NAME)
        .disable_statement_logging()
}

/// The name of the user that flyci runs as; never root.
fn service_user() -> Result<String, EmbeddedError> {
    let uid = Uid::effective();
    if uid.is_root() {
        return Err(EmbeddedError::Root);
    }
    let user = User::from_uid(uid).ok().flatten();
    user.map(|user| user.name).ok_or(EmbeddedError::NamelessUser(uid.as_raw()))
}

#[cfg(test)]
mod tests;
