//! Brings an image of this host to a registry, in Tart's format: `tart pull` and `flyci image pull` understand it.

use super::manifest::{Digest, Kind, Piece};
use super::pieces;
use super::pull::Progress;
use super::registry::{Access, Options, Reference, RegistryError, Repository};
use super::tart::layout::{Blob, Chunk, Layout, stub};
use super::tart::{CONFIG_FILE, ConfigFault, DISK_FILE, NVRAM_FILE, TartConfig, lz4};
use super::{Image, ImageError, ImageStore, UNFINISHED_PUSH, io_at, tree};
use futures_util::{StreamExt as _, TryStreamExt as _};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Layers at once: each is compressed into a file of its own before it is sent.
const AT_ONCE: usize = 4;

/// Why an image was not pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// It is of another kind.
    #[error("only macOS images and Tart's are pushed, and {0} is a Linux image for QEMU: build it on each host")]
    Kind(Digest),
    /// Its description cannot be used.
    #[error("the image cannot be used")]
    Config(#[from] ConfigFault),
    /// The registry was of no help.
    #[error("the image cannot be stored in the registry")]
    Registry(#[from] RegistryError),
    /// What is on the disk is not the image.
    #[error("the image {0} is damaged on this host (piece {1} of its disk); `flyci image verify` tells more")]
    Damaged(Digest, usize),
    /// The disk fails.
    #[error("the image cannot be read")]
    Store(#[from] ImageError),
}

/// A directory that is gone when the push ends, however it ends.
struct Work(PathBuf);

impl Work {
    fn begin(store: &ImageStore) -> Result<Self, ImageError> {
        store.sweep_unfinished();
        let name = format!("{UNFINISHED_PUSH}{:016x}-{}", rand::random::<u64>(), std::process::id());
        let path = store.directory.join(name);
        fs::create_dir(&path).map_err(io_at("make the directory", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = tree::remove(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "the directory of a push stays");
        }
    }
}

/// Pushes an image; answers the digest that the registry has it by. `chunk` is the disk's bytes in one layer:
/// [`CHUNK`](super::tart::CHUNK), as Tart cuts them, except in tests.
///
/// # Errors
/// See [`PushError`].
pub async fn push(
    store: &ImageStore,
    image: &Image,
    reference: &Reference,
    options: &Options,
    chunk: u64,
    progress: &Progress,
) -> Result<Digest, PushError> {
    if image.manifest.kind != Kind::Vz {
        return Err(PushError::Kind(image.digest.clone()));
    }
    let repository = Repository::open(reference, Access::Push, options).await?;
    let read = |name: &str| {
        let path = image.path.join(name);
        fs::read(&path).map_err(io_at("read", &path))
    };
    let (config, nvram) = (read(CONFIG_FILE)?, read(NVRAM_FILE)?);
    let guest = TartConfig::parse(&config)?;
    let stub = repository.store_bytes(stub(&guest.os, &guest.arch)).await?;
    let (config, nvram) = (repository.store_bytes(config).await?, repository.store_bytes(nvram).await?);
    let path = image.path.join(DISK_FILE);
    let disk = Arc::new(File::open(&path).map_err(io_at("open", &path))?);
    let size = disk.metadata().map_err(io_at("look at", &path))?.len();
    progress.expect(size);
    let job = Job { repository: &repository, image, disk, chunk, work: Work::begin(store)?, progress };
    let all = futures_util::stream::iter(0..size.div_ceil(chunk));
    let chunks = all.map(|number| job.send(number, chunk.min(size - number * chunk)));
    let disk = chunks.buffered(AT_ONCE).try_collect().await?;
    let layout = Layout { config, disk, nvram };
    let time = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    Ok(repository.store_manifest(&reference.version, layout.manifest(&stub, &time)).await?)
}

/// The disk's part of a push.
struct Job<'a> {
    repository: &'a Repository,
    image: &'a Image,
    disk: Arc<File>,
    chunk: u64,
    work: Work,
    progress: &'a Progress,
}

impl Job<'_> {
    async fn send(&self, number: u64, size: u64) -> Result<Chunk, PushError> {
        let (disk, at, path) = (Arc::clone(&self.disk), number * self.chunk, self.work.0.join(number.to_string()));
        let target = path.clone();
        let compressed = tokio::task::spawn_blocking(move || compress(&disk, at, size, &target)).await;
        let chunk = compressed.expect("compressing does not panic").map_err(io_at("compress into", &path))?;
        self.compare(at, &chunk.content)?;
        self.repository.store_file(&chunk.blob, &path).await?;
        fs::remove_file(&path).map_err(io_at("remove", &path))?;
        self.progress.add(size);
        Ok(chunk)
    }

    /// What is damaged here is not spread. Pieces of another size cannot be compared.
    fn compare(&self, at: u64, content: &Piece) -> Result<(), PushError> {
        let told = self.image.manifest.files.iter().find(|file| file.name == DISK_FILE);
        let pieces = told.map_or(&[][..], |file| &file.pieces);
        let number = pieces::places(pieces).iter().position(|&place| place == (at, content.size));
        match number.filter(|&number| pieces[number] != *content) {
            Some(number) => Err(PushError::Damaged(self.image.digest.clone(), number)),
            None => Ok(()),
        }
    }
}

/// Hashes and counts what is written.
struct Hashing<W> {
    target: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.target.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.target.flush()
    }
}

fn compress(disk: &File, at: u64, size: u64, target: &Path) -> io::Result<Chunk> {
    let file = io::BufWriter::new(File::create_new(target)?);
    let mut encoder = lz4::Encoder::new(Hashing { target: file, hash: Sha256::new(), size: 0 });
    let sha256 = pieces::feed(disk, at, size, |run| encoder.push(run))?;
    let mut stored = encoder.finish()?;
    stored.flush()?;
    let blob = Blob { digest: Digest::finish(stored.hash), size: stored.size };
    Ok(Chunk { blob, content: Piece { size, sha256 } })
}
