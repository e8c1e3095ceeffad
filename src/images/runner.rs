//! GitHub's runner program, supplied by the host: unpacked out of an archive whose digest the operator pinned.
//! Owns `<data_dir>/runner/`. How guests get it is the hypervisor's business.

use super::Digest;
use flate2::read::GzDecoder;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Where the operator's or our own note of a runner's version is, in its directory: GitHub's runner
/// has none that is meant to be read.
const VERSION_FILE: &str = ".version";
/// Longest version that is believed, in characters.
const MAX_VERSION_CHARS: usize = 32;
/// Most bytes that a runner unpacks to. GitHub's has about 700 MB.
const MAX_UNPACKED: u64 = 4 << 30;
/// Most files of a runner. GitHub's has about 10,000.
const MAX_ENTRIES: usize = 200_000;

/// Why there is no runner to give to guests.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The archive is another than the one that was pinned.
    #[error(
        "[runner] archive {path} has the SHA-256 {found}, and [runner] sha256 pins {pinned}: download it again, or pin the digest that the release page shows"
    )]
    OtherDigest { path: PathBuf, found: String, pinned: String },
    /// It holds no runner.
    #[error("[runner] archive {path} holds no run.sh: take the archive actions-runner-OS-ARCH-VERSION.tar.gz")]
    NoRunner { path: PathBuf },
    /// It is larger than any runner.
    #[error("[runner] archive {path} unpacks to more than a runner ever has: take another")]
    TooLarge { path: PathBuf },
    /// The file system did not do what was asked.
    #[error("cannot {doing}")]
    Io {
        doing: String,
        #[source]
        source: io::Error,
    },
}

fn io_at(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> RunnerError {
    let doing = format!("{doing} {}", path.display());
    move |source| RunnerError::Io { doing, source }
}

/// What is pinned.
#[derive(Clone, Copy, Debug)]
pub struct Pinned<'a> {
    /// The archive, `.tar.gz`.
    pub archive: &'a Path,
    /// Its version.
    pub version: &'a str,
    /// Its SHA-256.
    pub sha256: &'a Digest,
}

/// The directory with the pinned runner, unpacked now unless it was before. Others are removed. Blocks on the disk.
///
/// # Errors
/// When the archive is not the pinned one, or cannot be unpacked. Nothing is left behind then.
pub fn unpack(pinned: &Pinned<'_>, data_dir: &Path) -> Result<PathBuf, RunnerError> {
    let home = data_dir.join("runner");
    let target = home.join(pinned.sha256.hex());
    if target.join("run.sh").is_file() {
        return Ok(target);
    }
    check_digest(pinned)?;
    if home.exists() {
        fs::remove_dir_all(&home).map_err(io_at("remove the runner of before in", &home))?;
    }
    let unfinished = home.join(".unfinished");
    fs::create_dir_all(&unfinished).map_err(io_at("make the directory", &unfinished))?;
    let done = extract(pinned, &unfinished)
        .and_then(|()| fs::rename(&unfinished, &target).map_err(io_at("finish the directory", &target)));
    if done.is_err() {
        let _ = fs::remove_dir_all(&unfinished);
    }
    done.map(|()| target)
}

fn check_digest(pinned: &Pinned<'_>) -> Result<(), RunnerError> {
    let path = pinned.archive;
    let mut file = File::open(path).map_err(io_at("open [runner] archive", path))?;
    let (_, found) = super::copy_hashing(&mut file, &mut io::sink()).map_err(io_at("read", path))?;
    if found == pinned.sha256.hex() {
        return Ok(());
    }
    Err(RunnerError::OtherDigest { path: path.to_owned(), found, pinned: pinned.sha256.hex().to_owned() })
}

/// Nothing leaves `target`: the library refuses paths that do.
fn extract(pinned: &Pinned<'_>, target: &Path) -> Result<(), RunnerError> {
    let path = pinned.archive;
    let file = File::open(path).map_err(io_at("open", path))?;
    let mut archive = tar::Archive::new(GzDecoder::new(io::BufReader::new(file)));
    archive.set_preserve_mtime(false);
    let (mut bytes, mut entries) = (0_u64, 0_usize);
    for entry in archive.entries().map_err(io_at("read", path))? {
        let mut entry = entry.map_err(io_at("read", path))?;
        (bytes, entries) = (bytes.saturating_add(entry.size()), entries + 1);
        if bytes > MAX_UNPACKED || entries > MAX_ENTRIES {
            return Err(RunnerError::TooLarge { path: path.to_owned() });
        }
        entry.unpack_in(target).map_err(io_at("unpack", path))?;
    }
    if !target.join("run.sh").is_file() {
        return Err(RunnerError::NoRunner { path: path.to_owned() });
    }
    let note = target.join(VERSION_FILE);
    fs::write(&note, pinned.version).map_err(io_at("write", &note))
}

/// The version of the runner in a directory, if it says.
#[must_use]
pub fn version_of(directory: &Path) -> Option<String> {
    let text = fs::read_to_string(directory.join(VERSION_FILE)).ok()?;
    let version = text.trim();
    let good =
        version.len() <= MAX_VERSION_CHARS && version.chars().all(|c| c.is_ascii_alphanumeric() || ".-+".contains(c));
    (good && !version.is_empty()).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest as _, Sha256};

    /// An archive of these files, and its digest.
    fn archive(folder: &Path, files: &[(&str, &str)]) -> (PathBuf, Digest) {
        let path = folder.join("runner.tar.gz");
        let encoder = flate2::write::GzEncoder::new(File::create(&path).expect("made"), flate2::Compression::fast());
        let mut builder = tar::Builder::new(encoder);
        for (name, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o755);
            builder.append_data(&mut header, name, text.as_bytes()).expect("appended");
        }
        builder.into_inner().and_then(flate2::write::GzEncoder::finish).expect("finished");
        let digest = hex::encode(Sha256::digest(fs::read(&path).expect("read")));
        (path, digest.parse().expect("a digest"))
    }

    #[test]
    fn the_pinned_archive_is_unpacked_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, sha256) = archive(folder.path(), &[("run.sh", "#!/bin/sh\n"), ("bin/listener", "x")]);
        let pinned = Pinned { archive: &path, version: "2.330.0", sha256: &sha256 };
        let target = unpack(&pinned, folder.path()).expect("unpacked");
        assert!(target.join("bin/listener").is_file());
        assert_eq!(version_of(&target).as_deref(), Some("2.330.0"));
        fs::remove_file(&path).expect("the archive is not needed any more");
        assert_eq!(unpack(&pinned, folder.path()).expect("it is there"), target);
    }

    #[test]
    fn another_archive_is_refused_and_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, _) = archive(folder.path(), &[("run.sh", "#!/bin/sh\n")]);
        let other = "0".repeat(64).parse().expect("a digest");
        let told = unpack(&Pinned { archive: &path, version: "2.330.0", sha256: &other }, folder.path());
        assert!(told.expect_err("another digest").to_string().contains("download it again"));
        let (path, sha256) = archive(folder.path(), &[("readme.txt", "no runner")]);
        let told = unpack(&Pinned { archive: &path, version: "2.330.0", sha256: &sha256 }, folder.path());
        assert!(matches!(told, Err(RunnerError::NoRunner { .. })), "{told:?}");
        assert_eq!(fs::read_dir(folder.path().join("runner")).expect("a folder").count(), 0);
    }
}
