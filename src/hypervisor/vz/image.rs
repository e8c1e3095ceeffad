//! What the backend takes from an image of kind `vz`: a bundle of Tart's with `config.json`, `disk.img` and `nvram.bin`.

use crate::domain::units::Bytes;
use crate::errors::chain;
use crate::hypervisor::HypervisorError;
use crate::images::tart::CONFIG_FILE;
use crate::images::{Architecture, Image, ImageError, Kind};
use serde::Deserialize;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Most bytes of the file that says what machine it was made on.
const CONFIG_BYTES: u64 = 1 << 20;

/// What of `config.json` a machine is made of. What is not here is the clone's own: identifier, address, display.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Bundle {
    /// `VZMacHardwareModel.dataRepresentation`, in base64; macOS guests only.
    pub(super) hardware_model: Option<String>,
    /// The fewest CPUs that the guest was made for.
    #[serde(default)]
    pub(super) cpu_count_min: u32,
    /// The least memory.
    #[serde(default)]
    memory_size_min: u64,
    /// `raw`, or `asif`, which only its own hypervisor reads.
    #[serde(default)]
    disk_format: Option<String>,
}

impl Bundle {
    pub(super) const fn memory_min(&self) -> Bytes {
        Bytes(self.memory_size_min)
    }
}

/// The image in a directory, if this backend boots it on this machine, and what its machine is made of.
pub(super) fn usable(path: &Path) -> Result<(Image, Bundle), HypervisorError> {
    let unusable = |reason: String| HypervisorError::Image { path: path.to_owned(), reason };
    let image = Image::read(path).map_err(|error| match error {
        ImageError::Broken { reason, .. } => unusable(reason),
        other => unusable(chain(&other).to_string()),
    })?;
    if image.manifest.kind != Kind::Vz {
        return Err(unusable("it is for another hypervisor: this one needs an image of kind vz".to_owned()));
    }
    if Some(image.manifest.architecture) != Architecture::of_this_machine() {
        return Err(unusable(format!("it is for {} machines", image.manifest.architecture.name())));
    }
    let bundle = bundle(&path.join(CONFIG_FILE)).map_err(|error| unusable(format!("{CONFIG_FILE}: {error}")))?;
    match bundle.disk_format.as_deref() {
        None | Some("raw") => Ok((image, bundle)),
        Some(format) => Err(unusable(format!("its disk is in the format {format}, and only raw ones are booted"))),
    }
}

fn bundle(file: &Path) -> std::io::Result<Bundle> {
    let mut text = String::new();
    File::open(file)?.take(CONFIG_BYTES).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_of_tarts_is_read_as_far_as_it_is_needed() {
        let text = r#"{"version":1,"os":"darwin","arch":"arm64","cpuCountMin":2,"cpuCount":4,"memorySizeMin":4294967296,
            "memorySize":8589934592,"macAddress":"7a:65:e4:3f:b2:01","display":{"width":1024,"height":768},
            "ecid":"YnBsaXN0MDA=","hardwareModel":"YnBsaXN0MDB","diskFormat":"raw","later":{}}"#;
        let bundle: Bundle = serde_json::from_str(text).expect("it is read");
        assert_eq!(bundle.hardware_model.as_deref(), Some("YnBsaXN0MDB"));
        assert_eq!((bundle.cpu_count_min, bundle.memory_min()), (2, Bytes(4 << 30)));
        let linux: Bundle = serde_json::from_str(r#"{"os":"linux"}"#).expect("it is read");
        assert_eq!((linux.hardware_model, linux.cpu_count_min), (None, 0));
    }
}
