//! The cluster on disk: where its files are, how it is made, and the settings that it runs with.

use super::binaries::Binaries;
use super::{EmbeddedError, NAME, PORT, command, io_error};
use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a Unix socket's path, with the zero at its end (`sockaddr_un`).
const MAX_SOCKET_PATH: usize = if cfg!(target_os = "macos") { 104 } else { 108 };
/// A log longer than this, in bytes, is put aside at the start; the one before it goes.
const MAX_LOG: u64 = 8 * 1024 * 1024;
/// Making a cluster takes a second; on a slow disk more.
const INITDB_DEADLINE: Duration = Duration::from_secs(180);

/// What no file and no session may weaken. First: a commit is on the disk when it is answered. Then:
/// nobody reaches it but its owner. Then: its log holds no data of statements.
const SETTINGS: [(&str, &str); 21] = [
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("synchronous_commit", "on"),
    ("listen_addresses", ""),
    ("unix_socket_permissions", "0700"),
    ("ssl", "off"),
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    // Not its errors: their texts repeat values. Who caused one is told, and logs it as it may.
    ("log_min_messages", "log"),
    ("log_checkpoints", "off"),
    ("log_error_verbosity", "terse"),
    ("log_min_error_statement", "panic"),
    ("log_statement", "none"),
    ("log_duration", "off"),
    ("log_min_duration_statement", "-1"),
    ("log_min_duration_sample", "-1"),
    ("log_parameter_max_length", "0"),
    ("log_parameter_max_length_on_error", "0"),
    ("log_timezone", "UTC"),
    ("timezone", "UTC"),
    ("cluster_name", NAME),
];
/// macOS keeps what `fsync` wrote in the drive's cache; only this flushes that too.
const MACOS_SETTINGS: [(&str, &str); 1] = [("wal_sync_method", "fsync_writethrough")];

/// Where everything of the private Postgres is.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    home: PathBuf,
    cluster: PathBuf,
}

impl Layout {
    /// The layout in a data directory.
    pub fn of(data_dir: &Path) -> Result<Self, EmbeddedError> {
        // Postgres changes its directory: every path must be absolute.
        let data_dir = std::path::absolute(data_dir).map_err(|error| io_error(data_dir, "read", error))?;
        let home = data_dir.join("postgres");
        let layout = Self { cluster: home.join("cluster"), home };
        let path = layout.socket();
        if path.as_os_str().as_bytes().len() >= MAX_SOCKET_PATH {
            return Err(EmbeddedError::SocketPath { path, limit: MAX_SOCKET_PATH - 1 });
        }
        Ok(layout)
    }

    /// The same with another cluster, for the time that one is built.
    pub fn with_cluster(&self, name: &str) -> Self {
        Self { home: self.home.clone(), cluster: self.home.join(name) }
    }

    /// The cluster: what Postgres calls its data directory.
    pub fn cluster(&self) -> &Path {
        &self.cluster
    }

    /// The directory that holds the cluster.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The directory of the socket.
    pub fn socket_dir(&self) -> PathBuf {
        self.home.join("socket")
    }

    /// The socket.
    pub fn socket(&self) -> PathBuf {
        self.socket_dir().join(format!(".s.PGSQL.{PORT}"))
    }

    /// Postgres's own log.
    pub fn log(&self) -> PathBuf {
        self.home.join("postgres.log")
    }

    /// Where downloaded versions are.
    pub fn downloads(&self) -> PathBuf {
        self.home.join("versions")
    }

    /// The cluster's major version; `None` when there is no cluster.
    pub fn major(&self) -> Result<Option<u32>, EmbeddedError> {
        let path = self.cluster.join("PG_VERSION");
        match std::fs::read_to_string(&path) {
            Ok(text) => match text.trim().parse() {
                Ok(major) => Ok(Some(major)),
                Err(_) => Err(io_error(&path, "read", ErrorKind::InvalidData.into())),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error(&path, "read", error)),
        }
    }

    /// Makes the directories, and writes who may connect: the operating system's user `user`, as the
    /// database's one user. Written at each start, since the service's user may have changed.
    pub fn prepare(&self, user: &str) -> Result<(), EmbeddedError> {
        for directory in [&self.home, &self.socket_dir()] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.and_then(|()| std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)))
                .map_err(|error| io_error(directory, "made", error))?;
        }
        write_file(&self.hba(), "# Written by flyci at each start.\nlocal all all peer map=service\n")?;
        let user = user.replace('"', "\"\"");
        write_file(&self.ident(), &format!("# Written by flyci at each start.\nservice \"{user}\" {NAME}\n"))
    }

    /// Postgres's log, open for writing at its end.
    pub fn open_log(&self) -> Result<File, EmbeddedError> {
        let path = self.log();
        if std::fs::metadata(&path).is_ok_and(|about| about.len() > MAX_LOG) {
            std::fs::rename(&path, path.with_extension("log.1")).map_err(|error| io_error(&path, "written", error))?;
        }
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        file.map_err(|error| io_error(&path, "written", error))
    }

    /// The arguments that Postgres runs with.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments = vec![OsString::from("-D"), self.cluster.clone().into_os_string()];
        let macos = MACOS_SETTINGS.iter().filter(|_| cfg!(target_os = "macos"));
        let settings = SETTINGS.iter().chain(macos).map(|(name, value)| ((*name).into(), (*value).into()));
        // A list of directories, with commas between: a path with one must be quoted.
        let mut socket = OsString::from("\"");
        socket.push(self.socket_dir());
        socket.push("\"");
        let own: [(OsString, OsString); 4] = [
            ("port".into(), PORT.to_string().into()),
            ("unix_socket_directories".into(), socket),
            ("hba_file".into(), self.hba().into()),
            ("ident_file".into(), self.ident().into()),
        ];
        for (name, value) in settings.chain(own) {
            let mut argument: OsString = name;
            argument.push("=");
            argument.push(value);
            arguments.extend([OsString::from("-c"), argument]);
        }
        arguments
    }

    fn hba(&self) -> PathBuf {
        self.home.join("pg_hba.conf")
    }

    fn ident(&self) -> PathBuf {
        self.home.join("pg_ident.conf")
    }
}

/// Makes a new cluster: whole or not at all.
pub(super) async fn initialise(layout: &Layout, binaries: &Binaries) -> Result<(), EmbeddedError> {
    super::check_room(layout.home(), super::ROOM_TO_BE_MADE, "be made")?;
    let draft = layout.with_cluster("cluster.draft");
    remove(draft.cluster())?;
    let arguments: Vec<OsString> = vec![
        "-D".into(),
        draft.cluster().into(),
        "--username".into(),
        NAME.into(),
        "--encoding=UTF8".into(),
        "--locale=C".into(),
        "--data-checksums".into(),
        "--auth-local=peer".into(),
        "--auth-host=reject".into(),
    ];
    command::run(&binaries.program("initdb"), arguments, INITDB_DEADLINE).await?;
    // An empty directory in its place is no cluster.
    match std::fs::remove_dir(layout.cluster()) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(io_error(layout.cluster(), "removed", error)),
        _ => {}
    }
    rename(draft.cluster(), layout.cluster())
}

/// Removes a directory with all that is in it, if there is one.
pub(super) fn remove(directory: &Path) -> Result<(), EmbeddedError> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error(directory, "removed", error)),
        _ => Ok(()),
    }
}

/// Renames within the home directory, so that a power cut does not undo it.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), EmbeddedError> {
    let sync = || File::open(to.parent().unwrap_or(to))?.sync_all();
    std::fs::rename(from, to).and_then(|()| sync()).map_err(|error| io_error(to, "written", error))
}

/// Replaces a file in one step.
fn write_file(path: &Path, content: &str) -> Result<(), EmbeddedError> {
    let draft = path.with_extension("conf.new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(content.as_bytes())?;
        std::fs::rename(&draft, path)
    };
    write().map_err(|error| io_error(path, "written", error))
}
