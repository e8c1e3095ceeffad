//! Brings a Tart image from a registry: `.pull-DIGEST/` in the images' directory while it is made, then an image.
//!
//! Both digests of each layer are proved: of what the registry stores, and of what it decodes to. What is on this host
//! already, in another image or by an earlier try that was interrupted, is not fetched again. What is refused leaves
//! nothing behind; what merely broke off is kept for the next try.

mod layer;
mod reuse;
mod work;

use super::manifest::{Digest, FORMAT, ImageFile, Kind, Manifest};
use super::registry::{Access, Options, Reference, RegistryError, Repository, Version};
use super::tart::layout::{Layout, LayoutFault};
use super::tart::{CONFIG_FILE, ConfigFault, DISK_FILE, NVRAM_FILE, REGISTRY_MANIFEST_FILE, TartConfig, lz4};
use super::{Image, ImageError, ImageStore};
use crate::domain::admission::MacosVersion;
use crate::domain::units::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use layer::Layers;
use reuse::Sources;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use work::Work;

pub(super) use work::UNFINISHED_PULL;

/// How an image is pulled.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// How registries are reached.
    pub registry: Options,
    /// Layers at once.
    pub concurrency: usize,
    /// Space that must be left when all is written.
    pub reserve: Bytes,
    /// The macOS that is to boot the image; `None`: it is not asked whether it can.
    pub macos: Option<MacosVersion>,
}

/// How far a pull is. Written by the pull, read by whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    total: AtomicU64,
    fetched: AtomicU64,
    reused: AtomicU64,
}

/// How far a pull is, at one moment, in bytes as the registry stores them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Snapshot {
    /// All there is; 0 until the manifest is known.
    pub total: u64,
    /// What came from the registry.
    pub fetched: u64,
    /// What was here already.
    pub reused: u64,
}

impl Progress {
    /// All there is to do.
    pub(super) fn expect(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// So much more is done.
    pub(super) fn add(&self, bytes: u64) {
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
    }

    /// As it is now.
    #[must_use]
    pub fn now(&self) -> Snapshot {
        Snapshot {
            total: self.total.load(Ordering::Relaxed),
            fetched: self.fetched.load(Ordering::Relaxed),
            reused: self.reused.load(Ordering::Relaxed),
        }
    }
}

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry was of no help.
    #[error("the image cannot be fetched")]
    Registry(#[from] RegistryError),
    /// It is no image that flyci pulls.
    #[error("the image cannot be used")]
    Layout(#[from] LayoutFault),
    /// It is no image that flyci boots.
    #[error("the image cannot be booted")]
    Config(#[from] ConfigFault),
    /// This machine's system cannot boot it.
    #[error(
        "the image boots on macOS {needs} and later, and this Mac runs {has}: update its macOS, or choose another image"
    )]
    TooNew { needs: MacosVersion, has: MacosVersion },
    /// Somebody else pulls it.
    #[error("another flyci on this host is pulling {0}; wait for its end")]
    Busy(Digest),
    /// It does not fit.
    #[error(
        "the image needs {needed} of disk (and {reserve} that stay free), and {free} are free at {path}; `flyci image prune` removes unused images"
    )]
    Space { needed: Bytes, reserve: Bytes, free: Bytes, path: PathBuf },
    /// The disk was filled meanwhile.
    #[error("the disk is full; nothing of the image is kept")]
    Full(#[source] io::Error),
    /// A layer is another than its digest says.
    #[error(
        "{what} of layer {layer} is not the one that the manifest names: the registry, or what is between, has damaged it"
    )]
    Wrong { layer: usize, what: &'static str },
    /// A layer is longer or shorter than the manifest says.
    #[error("layer {layer} has {got} bytes where the manifest tells of {told}")]
    Size { layer: usize, told: u64, got: u64 },
    /// A layer cannot be decoded.
    #[error("layer {layer} cannot be decoded")]
    Decode {
        layer: usize,
        #[source]
        source: lz4::Lz4Error,
    },
    /// The images' directory fails.
    #[error("the image cannot be stored")]
    Store(#[from] ImageError),
}

impl PullError {
    /// True when what was fetched helps the next try.
    const fn leaves_work(&self) -> bool {
        match self {
            Self::Registry(error) => {
                !matches!(error, RegistryError::WrongManifest { .. } | RegistryError::WrongBlob { .. })
            }
            Self::Busy(_) | Self::Store(_) | Self::Space { .. } => true,
            Self::Layout(_)
            | Self::Config(_)
            | Self::TooNew { .. }
            | Self::Full(_)
            | Self::Wrong { .. }
            | Self::Size { .. }
            | Self::Decode { .. } => false,
        }
    }
}

/// The digest that a reference stands for in its registry now.
///
/// # Errors
/// The registry does not say, or it is no image that flyci pulls.
pub async fn resolve(reference: &Reference, options: &Options) -> Result<Digest, PullError> {
    let repository = Repository::open(reference, Access::Pull, options).await?;
    let (manifest, digest) = repository.manifest(&reference.version).await?;
    Layout::parse(&manifest)?;
    Ok(digest)
}

/// Pulls an image, unless it is here already. A tag then stands for it on this host.
///
/// # Errors
/// See [`PullError`].
pub async fn pull(
    store: &ImageStore,
    reference: &Reference,
    options: &PullOptions,
    progress: &Progress,
) -> Result<Image, PullError> {
    let repository = Repository::open(reference, Access::Pull, &options.registry).await?;
    let (text, digest) = repository.manifest(&reference.version).await?;
    let image = match store.directory(&digest) {
        Some(home) => Image::read(&home)?,
        None => {
            let layout = Layout::parse(&text)?;
            let config = repository.small_blob(&layout.config).await?;
            let guest = TartConfig::parse(&config)?;
            let manifest = describe(reference, &digest, &layout, &config, &text, &guest)?;
            if let (Some(needs), Some(has)) = (manifest.minimum_macos, options.macos)
                && has < needs
            {
                return Err(PullError::TooNew { needs, has });
            }
            let work = Work::begin(&store.directory, &digest)?;
            let pull = Pull { store, repository, options, progress, layout, work };
            pull.run(manifest, &config, &text).await?
        }
    };
    if let Version::Tag(_) = reference.version {
        store.point(&reference.to_string(), &image.digest)?;
    }
    Ok(image)
}

/// What the image will say of itself.
fn describe(
    reference: &Reference,
    digest: &Digest,
    layout: &Layout,
    config: &[u8],
    text: &[u8],
    guest: &TartConfig,
) -> Result<Manifest, PullError> {
    let (os, architecture) = guest.guest()?;
    let nvram = ImageFile {
        name: NVRAM_FILE.to_owned(),
        size: layout.nvram.size,
        sha256: layout.nvram.digest.hex().to_owned(),
        pieces: Vec::new(),
    };
    let pieces = layout.disk.iter().map(|chunk| chunk.content.clone()).collect();
    Ok(Manifest {
        format: FORMAT,
        name: reference.name(),
        os,
        architecture,
        kind: Kind::Vz,
        disk_size: layout.disk_size(),
        command_line: String::new(),
        agent_version: "unknown".to_owned(),
        runner_version: None,
        created: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        files: vec![
            ImageFile::whole(CONFIG_FILE, config),
            ImageFile::of_pieces(DISK_FILE, pieces),
            ImageFile::whole(REGISTRY_MANIFEST_FILE, text),
            nvram,
        ],
        registry: Some(digest.clone()),
        minimum_macos: guest.minimum_macos()?,
    })
}

/// One pull, once all is known about it.
struct Pull<'a> {
    store: &'a ImageStore,
    repository: Repository,
    options: &'a PullOptions,
    progress: &'a Progress,
    layout: Layout,
    work: Work,
}

impl Pull<'_> {
    async fn run(self, manifest: Manifest, config: &[u8], text: &[u8]) -> Result<Image, PullError> {
        match self.fill(&manifest, config, text).await {
            Ok(()) => Ok(self.work.publish(&self.store.directory, &manifest.digest())?),
            Err(error) => {
                if !error.leaves_work() || (self.work.is_new() && matches!(error, PullError::Space { .. })) {
                    self.work.discard();
                }
                Err(error)
            }
        }
    }

    async fn fill(&self, manifest: &Manifest, config: &[u8], text: &[u8]) -> Result<(), PullError> {
        self.progress.expect(self.layout.transfer_size());
        let sources = Sources::of(self.store, &self.layout)?;
        let base = if self.work.is_new() { self.work.clone_base(&sources)? } else { None };
        self.check_space(base.unwrap_or(0))?;
        let disk = self.work.open_disk(self.layout.disk_size())?;
        let layers = Layers::new(self, &sources, disk);
        let all = futures_util::stream::iter(0..self.layout.disk.len());
        all.map(|number| layers.bring(number))
            .buffer_unordered(self.options.concurrency.max(1))
            .try_collect::<()>()
            .await?;
        let nvram = self.repository.small_blob(&self.layout.nvram).await?;
        let description = serde_json::to_vec_pretty(manifest).expect("a manifest is JSON");
        for (name, content) in [
            (CONFIG_FILE, config),
            (NVRAM_FILE, nvram.as_slice()),
            (REGISTRY_MANIFEST_FILE, text),
            (super::MANIFEST_FILE, description.as_slice()),
        ] {
            self.work.write(name, content).map_err(full_or)?;
        }
        self.progress.add(self.layout.config.size + self.layout.nvram.size);
        layers.seal().await
    }

    /// Refuses before the first byte what cannot fit. `shared` bytes of the disk are a clone's already.
    fn check_space(&self, shared: u64) -> Result<(), PullError> {
        let files = self.layout.config.size + self.layout.nvram.size;
        let needed = (self.layout.disk_size() + files).saturating_sub(shared.max(self.work.allocated()));
        let (free, reserve) = (self.store.free_space()?, self.options.reserve);
        if needed.saturating_add(reserve.0) <= free.0 {
            return Ok(());
        }
        Err(PullError::Space { needed: Bytes(needed), reserve, free, path: self.store.directory.clone() })
    }
}

/// A failure to write, told apart by whether there is no room.
fn full_or(error: ImageError) -> PullError {
    match error {
        ImageError::Io { source, .. } if is_full(&source) => PullError::Full(source),
        other => PullError::Store(other),
    }
}

/// No room on the disk, for this user, or in a file of this process.
fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
