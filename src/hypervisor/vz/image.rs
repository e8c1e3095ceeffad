//! What the backend takes from an image of kind `vz`: a bundle of Tart's with `config.json`, `disk.img` and `nvram.bin`.

use crate::domain::units::Bytes;
use crate::errors::chain;
use crate::hypervisor::record::allocated;
use crate::hypervisor::{HypervisorError, room};
use crate::images::tart::{CONFIG_FILE, DISK_FILE, TartConfig};
use crate::images::{Architecture, Image, ImageError, Kind};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// Most bytes of the file that says what machine it was made on.
const CONFIG_BYTES: u64 = 1 << 20;

/// The image in a directory, if this backend boots it on this machine, and what it says of its machine. What a clone has of
/// its own is not taken from there: identifier, address, display.
pub(super) fn usable(path: &Path) -> Result<(Image, TartConfig), HypervisorError> {
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
    let text = read(&path.join(CONFIG_FILE)).map_err(|error| unusable(format!("{CONFIG_FILE}: {error}")))?;
    let config = TartConfig::parse(&text).map_err(|error| unusable(chain(&error).to_string()))?;
    Ok((image, config))
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(file)?.take(CONFIG_BYTES).read_to_end(&mut text)?;
    Ok(text)
}

/// The size of a clone's disk, and how much of the image's is written. See [`disk_size`].
pub(super) fn clone_size(image: &Image, disk_free: Bytes) -> io::Result<(u64, Bytes)> {
    let disk = image.path.join(DISK_FILE);
    let (size, written) = (fs::metadata(&disk)?.len(), allocated(&disk));
    Ok((disk_size(size, written, disk_free), Bytes(written)))
}

/// The size of a disk on which a guest finds so much free: the image's, or more where that leaves too little beside what
/// is written. What the guest has deleted may count as written still, so it finds more rather than less.
const fn disk_size(size: u64, written: u64, disk_free: Bytes) -> u64 {
    let wanted = written.saturating_add(room::added_for(disk_free));
    if wanted <= size { size } else { wanted.next_multiple_of(room::GRANULE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    #[test]
    fn a_disk_is_enlarged_where_the_profile_asks_for_more_than_the_image_has() {
        assert_eq!(disk_size(50 * GB, 20 * GB, Bytes(28 * GB)), 50 * GB, "there is enough");
        let enlarged = disk_size(50 * GB, 40 * GB, Bytes(28 * GB));
        let least = 40 * GB + 28 * GB + 28 * GB / 40;
        assert!((least..69 * GB).contains(&enlarged), "{enlarged}");
        assert_eq!(enlarged % room::GRANULE, 0);
        assert_eq!(disk_size(50 * GB, 50 * GB, Bytes(0)), 50 * GB, "and never made smaller");
    }
}
