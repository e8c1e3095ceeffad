//! A vm of Tart's as it lies on a disk, small enough for tests.

use base64::Engine as _;
use flyci::domain::units::Bytes;
use flyci::images::registry::{Options, Reference};
use flyci::images::{Image, ImageStore, Progress, PullError, PullOptions, Snapshot, import_bundle, pull, push};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// Bytes of disk in one layer here; Tart's has 512 MiB.
pub const CHUNK: u64 = 1 << 20;

/// A property list as Apple's framework writes one, of a Mac that boots from macOS 14.2.0 on.
const HARDWARE_MODEL: &[u8] = b"bplist00\xd3\x01\x02\x03\x04\x05\x09_\x10\x19DataRepresentationVersion_\x10\x12MinimumSupportedOS_\x10\x0fPlatformVersion\x10\x01\xa3\x06\x07\x08\x10\x0e\x10\x02\x10\x00\x10\x02\x08\x0f\x2b\x40\x52\x54\x58\x5a\x5c\x5e\x00\x00\x00\x00\x00\x00\x01\x01\x00\x00\x00\x00\x00\x00\x00\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x60";

/// `config.json` of a macOS guest.
pub fn config() -> Vec<u8> {
    let model = base64::engine::general_purpose::STANDARD.encode(HARDWARE_MODEL);
    let config = json!({
        "version": 1, "os": "darwin", "arch": "arm64", "cpuCountMin": 2, "cpuCount": 4,
        "memorySizeMin": 4_294_967_296_u64, "memorySize": 4_294_967_296_u64, "macAddress": "7e:a3:5c:11:22:33",
        "ecid": "YnBsaXN0MDA=", "hardwareModel": model,
    });
    config.to_string().into_bytes()
}

/// A disk of some megabytes: text, noise and holes.
pub fn disk(megabytes: usize, seed: u64) -> Vec<u8> {
    let mut disk = Vec::with_capacity(megabytes << 20);
    for megabyte in 0..megabytes as u64 {
        let mut state = seed.wrapping_add(megabyte).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        match megabyte % 4 {
            0 => disk.extend((0..1 << 20).map(|at: u32| b"the quick brown fox "[at as usize % 20])),
            1 => disk.resize(disk.len() + (1 << 20), 0),
            _ => disk.extend(
                std::iter::repeat_with(|| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    if state % 3 == 0 { (state >> 32) as u8 } else { 0x55 }
                })
                .take(1 << 20),
            ),
        }
    }
    disk.extend(b"an end that fills no block");
    disk[..8].copy_from_slice(&seed.to_le_bytes());
    disk
}

/// A host's images.
pub struct Home {
    pub root: TempDir,
    pub store: ImageStore,
}

impl Home {
    pub fn new() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let store = ImageStore::open(root.path()).expect("a store");
        Self { root, store }
    }

    /// Everything in the images' directory, hidden or not, except what says when an image was used.
    pub fn entries(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.path().join("images")).expect("there");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("read").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }

    pub fn disk_of(&self, image: &Image) -> Vec<u8> {
        std::fs::read(image.path.join("disk.img")).expect("its disk")
    }

    /// A bundle with this disk, imported.
    pub fn import(&self, disk: &[u8]) -> Image {
        let path = bundle(self.root.path(), disk);
        import_bundle(&self.store, &path, "mine").expect("imported")
    }

    pub async fn push(&self, image: &Image, reference: &str) -> String {
        let reference: Reference = reference.parse().expect("a reference");
        let pushed = push(&self.store, image, &reference, &options(), CHUNK, &Progress::default()).await;
        pushed.expect("pushed").to_string()
    }

    pub async fn pull(&self, reference: &str) -> Result<(Image, Snapshot), PullError> {
        self.pull_with(reference, options()).await
    }

    pub async fn pull_with(&self, reference: &str, registry: Options) -> Result<(Image, Snapshot), PullError> {
        let (reference, progress) = (reference.parse().expect("a reference"), Progress::default());
        let options = PullOptions { registry, concurrency: 3, reserve: Bytes(0), macos: None };
        let image = pull(&self.store, &reference, &options, &progress).await?;
        Ok((image, progress.now()))
    }
}

/// Writes a bundle.
pub fn bundle(home: &Path, disk: &[u8]) -> PathBuf {
    let path = home.join(format!("bundle-{}", rand::random::<u32>()));
    std::fs::create_dir(&path).expect("a directory");
    for (name, content) in [("config.json", config().as_slice()), ("nvram.bin", &[9; 70_000]), ("disk.img", disk)] {
        std::fs::write(path.join(name), content).expect("a file");
    }
    path
}

/// Registries on loopback, without logins and without long waits.
pub fn options() -> Options {
    Options { first_wait: Duration::from_millis(5), ..Options::default() }
}
