//! Takes a vm of Tart's from this machine (`~/.tart/vms/NAME`): by clone where the file system makes one.

use super::manifest::{FORMAT, ImageFile, Kind, Manifest};
use super::pieces::{self, Writer};
use super::tart::{CHUNK, CONFIG_FILE, ConfigFault, DISK_FILE, NVRAM_FILE, TartConfig};
use super::{Image, ImageError, ImageStore, MANIFEST_FILE, UNFINISHED, io_at, seal, sync_directory, tree};
use nix::fcntl::{FcntlArg, fcntl};
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Most bytes of `config.json` and of `nvram.bin`.
const SMALL_FILE_LIMIT: u64 = 128 << 20;

/// The overlay's file in a stacked bundle.
const OVERLAY_FILE: &str = "overlay.asif";

/// Why a bundle was not imported.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It is none.
    #[error("{path} is no bundle of Tart's: {name} is missing")]
    Missing { path: PathBuf, name: &'static str },
    /// It runs.
    #[error("the vm at {0} is running: stop it first (`tart stop`)")]
    Running(PathBuf),
    /// Its disk is stacked.
    #[error("the disk of the vm at {0} is stacked (an ASIF overlay), which flyci cannot boot")]
    Stacked(PathBuf),
    /// It cannot be booted.
    #[error("the vm cannot be used")]
    Config(#[from] ConfigFault),
    /// A file of it is too long.
    #[error("{0} is longer than any such file")]
    TooLong(PathBuf),
    /// The disk fails.
    #[error("the vm cannot be imported")]
    Store(#[from] ImageError),
}

/// True for a directory that Tart made.
#[must_use]
pub fn is_bundle(path: &Path) -> bool {
    path.join(CONFIG_FILE).is_file() && !path.join(MANIFEST_FILE).is_file()
}

/// Imports a bundle under a name.
///
/// # Errors
/// It is none, runs, or cannot be booted; or the disk fails.
pub fn import_bundle(store: &ImageStore, path: &Path, name: &str) -> Result<Image, BundleError> {
    for needed in [CONFIG_FILE, NVRAM_FILE] {
        if !path.join(needed).is_file() {
            return Err(BundleError::Missing { path: path.to_owned(), name: needed });
        }
    }
    if path.join(OVERLAY_FILE).exists() {
        return Err(BundleError::Stacked(path.to_owned()));
    }
    if !path.join(DISK_FILE).is_file() {
        return Err(BundleError::Missing { path: path.to_owned(), name: DISK_FILE });
    }
    if is_running(&path.join(CONFIG_FILE))? {
        return Err(BundleError::Running(path.to_owned()));
    }
    let config = read_small(&path.join(CONFIG_FILE))?;
    let guest = TartConfig::parse(&config)?;
    let nvram = read_small(&path.join(NVRAM_FILE))?;
    store.sweep_unfinished();
    let work = store.directory.join(format!("{UNFINISHED}{:016x}-{}", rand::random::<u64>(), std::process::id()));
    fs::create_dir(&work).map_err(io_at("make the directory", &work))?;
    let made = fill(&work, path, name, &guest, [(CONFIG_FILE, &config), (NVRAM_FILE, &nvram)])
        .and_then(|manifest| Ok(store.publish(&work, &manifest.digest())?));
    let _ = tree::remove(&work);
    made
}

/// A vm that runs holds a lock on its description.
fn is_running(config: &Path) -> Result<bool, BundleError> {
    let file = File::open(config).map_err(io_at("open", config))?;
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_GETLK(&mut lock)).map_err(|error| io_at("look at the lock of", config)(error.into()))?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

fn read_small(path: &Path) -> Result<Vec<u8>, BundleError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io_at("open", path))?;
    file.take(SMALL_FILE_LIMIT + 1).read_to_end(&mut bytes).map_err(io_at("read", path))?;
    if bytes.len() as u64 > SMALL_FILE_LIMIT { Err(BundleError::TooLong(path.to_owned())) } else { Ok(bytes) }
}

fn fill(
    work: &Path,
    bundle: &Path,
    name: &str,
    guest: &TartConfig,
    small: [(&str, &Vec<u8>); 2],
) -> Result<Manifest, BundleError> {
    let (os, architecture) = guest.guest()?;
    let disk_path = work.join(DISK_FILE);
    let disk = clone_disk(&bundle.join(DISK_FILE), &disk_path)?;
    let pieces = pieces::cut(&disk, CHUNK).map_err(io_at("read", &disk_path))?;
    seal(&disk, &disk_path)?;
    let mut files = vec![ImageFile::of_pieces(DISK_FILE, pieces)];
    for (name, content) in small {
        write(&work.join(name), content)?;
        files.push(ImageFile::whole(name, content));
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let manifest = Manifest {
        format: FORMAT,
        name: name.to_owned(),
        os,
        architecture,
        kind: Kind::Vz,
        disk_size: disk.metadata().map_err(io_at("look at", &disk_path))?.len(),
        command_line: String::new(),
        agent_version: "unknown".to_owned(),
        runner_version: None,
        created: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        files,
        registry: None,
        minimum_macos: guest.minimum_macos()?,
    };
    write(&work.join(MANIFEST_FILE), &serde_json::to_vec_pretty(&manifest).expect("a manifest is JSON"))?;
    Ok(manifest)
}

/// The disk by clone; where the file system makes none, by copy without its holes.
fn clone_disk(from: &Path, to: &Path) -> Result<File, ImageError> {
    if let Err(error) = reflink_copy::reflink(from, to) {
        tracing::info!(%error, "the file system makes no clones: the disk is copied");
        let _ = fs::remove_file(to);
        let source = File::open(from).map_err(io_at("open", from))?;
        let size = source.metadata().map_err(io_at("look at", from))?.len();
        let target = File::create_new(to).map_err(io_at("make the file", to))?;
        target.set_len(size).map_err(io_at("size", to))?;
        pieces::copy(&source, 0, Writer::new(&target, 0, size, false)).map_err(io_at("copy", from))?;
    }
    fs::set_permissions(to, fs::Permissions::from_mode(0o600)).map_err(io_at("open", to))?;
    OpenOptions::new().read(true).write(true).open(to).map_err(io_at("open", to))
}

fn write(path: &Path, content: &[u8]) -> Result<(), ImageError> {
    let mut file = File::create_new(path).map_err(io_at("make the file", path))?;
    file.write_all(content).map_err(io_at("write", path))?;
    seal(&file, path)
}

impl ImageStore {
    /// A finished directory becomes an image, unless there is the same one already.
    fn publish(&self, work: &Path, digest: &super::Digest) -> Result<Image, ImageError> {
        let home = self.directory.join(digest.hex());
        if !home.exists() {
            sync_directory(work)?;
            fs::rename(work, &home).map_err(io_at("move the finished image to", &home))?;
            sync_directory(&self.directory)?;
        }
        Image::read(&home)
    }
}
