//! The formats of Tart's macOS images: a vm's bundle on disk, and the same in a registry.
//!
//! Pure: bytes in, values out. Who fetches, stores and boots them is elsewhere. The formats are public facts of
//! Tart's format version 2 (<https://github.com/openai/tart>) and of Apple's `COMPRESSION_LZ4`.

mod config;
pub mod layout;
pub mod lz4;

pub use config::{ConfigFault, Display, TartConfig};

/// The vm's description in a bundle.
pub const CONFIG_FILE: &str = "config.json";
/// The vm's raw disk in a bundle.
pub const DISK_FILE: &str = "disk.img";
/// The vm's auxiliary storage in a bundle.
pub const NVRAM_FILE: &str = "nvram.bin";
/// The registry's manifest in an image that was pulled.
pub const REGISTRY_MANIFEST_FILE: &str = "manifest.json";

/// Bytes of disk in one layer, as Tart cuts them.
pub const CHUNK: u64 = 512 << 20;
