//! `config.json` of a Tart bundle, typed. Keys that are not known are ignored, as Tart does.

use crate::domain::admission::MacosVersion;
use crate::images::{Architecture, Os};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// The version of the format that this reads and writes.
const VERSION: u32 = 1;

/// Most bytes of a hardware model's property list.
const HARDWARE_MODEL_LIMIT: usize = 64 << 10;

/// What a Tart bundle says of its vm.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TartConfig {
    /// The format's version.
    pub version: u32,
    /// The guest's system: `darwin` or `linux`.
    #[serde(default = "darwin")]
    pub os: String,
    /// The guest's architecture: `arm64` or `amd64`.
    #[serde(default = "arm64")]
    pub arch: String,
    /// Fewest CPUs that the guest's system boots with.
    pub cpu_count_min: u32,
    /// CPUs that its maker gave it.
    pub cpu_count: u32,
    /// Least memory that the guest's system boots with, in bytes.
    pub memory_size_min: u64,
    /// Memory that its maker gave it, in bytes.
    pub memory_size: u64,
    /// The network card's address.
    pub mac_address: String,
    /// The display.
    #[serde(default)]
    pub display: Display,
    /// How the disk is stored: `raw` or `asif`.
    #[serde(default = "raw")]
    pub disk_format: String,
    /// `VZMacMachineIdentifier.dataRepresentation`, in base64; macOS guests only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecid: Option<String>,
    /// `VZMacHardwareModel.dataRepresentation`, in base64; macOS guests only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware_model: Option<String>,
}

/// A display's size.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Display {
    /// Width in `unit`.
    pub width: u32,
    /// Height in `unit`.
    pub height: u32,
    /// `pt` or `px`; absent: `pt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

impl Default for Display {
    fn default() -> Self {
        Self { width: 1024, height: 768, unit: None }
    }
}

fn darwin() -> String {
    "darwin".to_owned()
}

fn arm64() -> String {
    "arm64".to_owned()
}

fn raw() -> String {
    "raw".to_owned()
}

/// Why a description cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFault {
    /// It is no description of a vm.
    #[error("config.json is no description of a Tart vm")]
    Json(#[source] serde_json::Error),
    /// It is of a later or another format.
    #[error("config.json is of version {0}; this flyci reads version {VERSION}")]
    Version(u32),
    /// The disk is not raw.
    #[error(
        "its disk is stored as `{0}`, and flyci boots raw disks only: make it with `tart create` without --disk-format"
    )]
    DiskFormat(String),
    /// The guest's system is not known.
    #[error("it is for `{os}` on `{arch}`; flyci boots darwin and linux on arm64 and amd64")]
    Guest { os: String, arch: String },
    /// A macOS guest needs what is not there.
    #[error("it is a macOS guest, and its hardware model {0}")]
    HardwareModel(&'static str),
}

/// The part of Apple's hardware model that is read: a property list.
#[derive(Deserialize)]
struct HardwareModel {
    #[serde(rename = "MinimumSupportedOS")]
    minimum: Vec<u32>,
}

impl TartConfig {
    /// Reads and checks a description.
    ///
    /// # Errors
    /// flyci cannot boot what it describes.
    pub fn parse(text: &[u8]) -> Result<Self, ConfigFault> {
        let config: Self = serde_json::from_slice(text).map_err(ConfigFault::Json)?;
        if config.version != VERSION {
            return Err(ConfigFault::Version(config.version));
        }
        if config.disk_format != "raw" {
            return Err(ConfigFault::DiskFormat(config.disk_format));
        }
        config.guest()?;
        config.minimum_macos()?;
        Ok(config)
    }

    /// The guest's system and architecture.
    ///
    /// # Errors
    /// There is no such guest.
    pub fn guest(&self) -> Result<(Os, Architecture), ConfigFault> {
        match (self.os.as_str(), self.arch.as_str()) {
            ("darwin", "arm64") => Ok((Os::Macos, Architecture::Aarch64)),
            ("linux", "arm64") => Ok((Os::Linux, Architecture::Aarch64)),
            ("linux", "amd64") => Ok((Os::Linux, Architecture::X86_64)),
            (os, arch) => Err(ConfigFault::Guest { os: os.to_owned(), arch: arch.to_owned() }),
        }
    }

    /// The oldest macOS that a Mac must run to boot the guest; none for Linux guests.
    ///
    /// # Errors
    /// A macOS guest has no hardware model, or one that cannot be read.
    pub fn minimum_macos(&self) -> Result<Option<MacosVersion>, ConfigFault> {
        if self.os != "darwin" {
            return Ok(None);
        }
        let text = self.hardware_model.as_deref().ok_or(ConfigFault::HardwareModel("is missing"))?;
        let unreadable = ConfigFault::HardwareModel("cannot be read");
        let bytes = STANDARD.decode(text).ok().filter(|bytes| bytes.len() <= HARDWARE_MODEL_LIMIT);
        let model: Option<HardwareModel> = bytes.and_then(|bytes| plist::from_bytes(&bytes).ok());
        let version = model.and_then(|model| MacosVersion::of_parts(&model.minimum));
        version.map(Some).ok_or(unreadable)
    }
}

#[cfg(test)]
pub(in crate::images) mod tests {
    use super::*;
    use serde_json::json;

    /// A hardware model as Apple's framework writes it.
    pub(in crate::images) fn hardware_model(minimum: [u32; 3]) -> String {
        let mut model = plist::Dictionary::new();
        model.insert("DataRepresentationVersion".into(), 1.into());
        model.insert("MinimumSupportedOS".into(), plist::Value::Array(minimum.into_iter().map(Into::into).collect()));
        model.insert("PlatformVersion".into(), 2.into());
        let mut bytes = Vec::new();
        plist::to_writer_binary(&mut bytes, &model).expect("a property list");
        STANDARD.encode(bytes)
    }

    /// The description of a macOS guest.
    pub(in crate::images) fn macos() -> serde_json::Value {
        json!({
            "version": 1, "os": "darwin", "arch": "arm64", "cpuCountMin": 2, "cpuCount": 4,
            "memorySizeMin": 4_294_967_296_u64, "memorySize": 8_589_934_592_u64, "macAddress": "7e:a3:5c:11:22:33",
            "display": {"width": 1024, "height": 768}, "ecid": "YnBsaXN0MDA=", "hardwareModel": hardware_model([14, 2, 0]),
            "somethingNew": true,
        })
    }

    fn parse(value: &serde_json::Value) -> Result<TartConfig, ConfigFault> {
        TartConfig::parse(value.to_string().as_bytes())
    }

    #[test]
    fn a_macos_guest_says_which_macos_it_needs() {
        let config = parse(&macos()).expect("good");
        assert_eq!(config.guest().expect("known"), (Os::Macos, Architecture::Aarch64));
        assert_eq!(config.minimum_macos().expect("read"), Some(MacosVersion(14, 2, 0)));
        assert_eq!(config.disk_format, "raw");
    }

    #[test]
    fn a_linux_guest_needs_no_macos() {
        let mut linux = macos();
        linux["os"] = "linux".into();
        linux["hardwareModel"] = serde_json::Value::Null;
        assert_eq!(parse(&linux).expect("good").minimum_macos().expect("read"), None);
    }

    #[test]
    fn what_cannot_be_booted_is_refused_with_its_reason() {
        for (key, value, said) in [
            ("version", json!(2), "version 2"),
            ("diskFormat", json!("asif"), "raw disks only"),
            ("os", json!("windows"), "`windows`"),
            ("hardwareModel", json!(null), "is missing"),
            ("hardwareModel", json!("bm90IGEgcGxpc3Q="), "cannot be read"),
            ("hardwareModel", json!("%%%"), "cannot be read"),
        ] {
            let mut bad = macos();
            bad[key] = value;
            let error = parse(&bad).expect_err(key).to_string();
            assert!(error.contains(said), "{key}: {error}");
        }
        assert!(matches!(TartConfig::parse(b"[]"), Err(ConfigFault::Json(_))));
    }
}
