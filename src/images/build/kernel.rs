//! A guest kernel out of a kernel package: as QEMU boots it quickest, and the modules it needs.

use super::{BuildError, io_at};
use crate::hypervisor::process::{Tool, find};
use crate::images::Architecture;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long decompressing a kernel or a module may take.
const DECOMPRESS: Duration = Duration::from_secs(120);

/// How long reading the modules' dependencies may take.
const DEPENDENCIES: Duration = Duration::from_secs(120);

/// Drivers of the devices that the backend gives a guest, and of its disks' file system.
/// What the kernel has built in is left out.
const DRIVERS: [&str; 6] = ["virtio_pci", "virtio_console", "virtio_blk", "virtio_net", "virtio_rng", "ext4"];

/// A kernel, unpacked.
#[derive(Debug)]
pub(super) struct Kernel {
    root: PathBuf,
    version: String,
}

impl Kernel {
    /// The kernel in an unpacked package.
    pub(super) fn in_package(root: &Path) -> Result<Self, BuildError> {
        let boot = root.join("boot");
        let entries = fs::read_dir(&boot).map_err(io_at("read the directory", &boot))?;
        let version = entries.flatten().find_map(|entry| {
            let name = entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned();
            Some(name)
        });
        let version = version.ok_or_else(|| BuildError::Kernel("the package has no boot/vmlinuz-*".to_owned()))?;
        Ok(Self { root: root.to_owned(), version })
    }

    /// Writes the kernel itself. On x86 that is the ELF image out of the compressed one: QEMU
    /// enters it directly (PVH), and emulated machines need not decompress it (over 4 s).
    pub(super) async fn write(&self, architecture: Architecture, target: &Path) -> Result<(), BuildError> {
        let source = self.root.join("boot").join(format!("vmlinuz-{}", self.version));
        let image = fs::read(&source).map_err(io_at("read", &source))?;
        if architecture == Architecture::Aarch64 {
            // Debian's is an uncompressed Image.
            return fs::write(target, image).map_err(io_at("write", target));
        }
        let payload = payload(&image).ok_or_else(|| {
            BuildError::Kernel(format!("{} is no compressed x86 kernel that can be read", source.display()))
        })?;
        decompress(decompressor(payload)?, payload.to_vec(), target).await
    }

    /// Writes the modules that a guest needs as plain files `NAME.ko`; returns the names in the
    /// order in which they are to be loaded.
    pub(super) async fn write_modules(&self, target: &Path) -> Result<Vec<String>, BuildError> {
        Tool::new("depmod", DEPENDENCIES)?.arg("-b").arg(&self.root).arg(&self.version).run().await?;
        let home = self.modules();
        let read = |name: &str| {
            let path = home.join(name);
            fs::read_to_string(&path).map_err(io_at("read", &path))
        };
        let order = load_order(&DRIVERS, &read("modules.dep")?, &read("modules.builtin")?)?;
        let mut names = Vec::new();
        for file in order {
            let name = stem(&file).to_owned();
            self.write_module(&home.join(&file), &target.join(format!("{name}.ko"))).await?;
            names.push(name);
        }
        Ok(names)
    }

    fn modules(&self) -> PathBuf {
        let lib = self.root.join("lib/modules").join(&self.version);
        if lib.is_dir() { lib } else { self.root.join("usr/lib/modules").join(&self.version) }
    }

    async fn write_module(&self, source: &Path, target: &Path) -> Result<(), BuildError> {
        let data = fs::read(source).map_err(io_at("read", source))?;
        match source.extension().and_then(|extension| extension.to_str()) {
            Some("ko") => fs::write(target, data).map_err(io_at("write", target)),
            _ => decompress(decompressor(&data)?, data, target).await,
        }
    }
}

/// The compressed kernel in a bzImage: <https://docs.kernel.org/arch/x86/boot.html>, fields
/// `setup_sects` (0x1f1), `payload_offset` (0x248) and `payload_length` (0x24c).
fn payload(image: &[u8]) -> Option<&[u8]> {
    const SECTOR: usize = 512;
    const MAGIC: &[u8] = b"HdrS";
    /// The payload's end holds its uncompressed length, which decompressors would stumble over.
    const TRAILER: usize = 4;
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    if image.get(0x202..0x206)? != MAGIC {
        return None;
    }
    let sectors = match image.get(0x1f1)? {
        0 => 4,
        count => usize::from(*count),
    };
    let start = (sectors + 1) * SECTOR + word(0x248)?;
    let end = start.checked_add(word(0x24c)?)?.checked_sub(TRAILER)?;
    image.get(start..end)
}

/// The program that decompresses this.
fn decompressor(data: &[u8]) -> Result<&'static str, BuildError> {
    const KINDS: [(&[u8], &str); 3] =
        [(&[0x28, 0xb5, 0x2f, 0xfd], "zstd"), (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"), (&[0x1f, 0x8b], "gzip")];
    let kind = KINDS.iter().find(|(magic, _)| data.starts_with(magic));
    kind.map(|(_, program)| *program)
        .ok_or_else(|| BuildError::Kernel("it is compressed in a way that is not known (zstd, xz and gzip are)".into()))
}

async fn decompress(program: &str, data: Vec<u8>, target: &Path) -> Result<(), BuildError> {
    find(program)?;
    let file = File::create(target).map_err(io_at("make the file", target))?;
    Tool::new(program, DECOMPRESS)?.args(["-d", "-c"]).input(data).output_to(file).run().await?;
    Ok(())
}

/// A module's name: its file's, less the extensions.
fn stem(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.split(".ko").next().unwrap_or(name)
}

/// The files of the wanted modules and of all that they depend on, in the order of loading.
fn load_order(wanted: &[&str], dependencies: &str, builtin: &str) -> Result<Vec<String>, BuildError> {
    let same = |file: &str, name: &str| stem(file).replace('-', "_") == name;
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        let line = dependencies.lines().find_map(|line| line.split_once(':').filter(|(file, _)| same(file, name)));
        let Some((file, needs)) = line else {
            if builtin.lines().any(|file| same(file, name)) {
                continue;
            }
            return Err(BuildError::Kernel(format!("it has no driver `{name}`")));
        };
        // The file lists the nearest dependency first.
        for file in needs.split_whitespace().rev().chain([file]) {
            if !order.iter().any(|there| there == file) {
                order.push(file.to_owned());
            }
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let dependencies = "k/virtio_net.ko.xz: k/net_failover.ko.xz k/failover.ko.xz\n\
                            k/failover.ko.xz:\nk/net_failover.ko.xz: k/failover.ko.xz\nk/virtio-rng.ko.xz:\n";
        let order = load_order(&["virtio_net", "virtio_pci", "virtio_rng"], dependencies, "k/virtio_pci.ko\n");
        let order = order.expect("all there");
        assert_eq!(order, ["k/failover.ko.xz", "k/net_failover.ko.xz", "k/virtio_net.ko.xz", "k/virtio-rng.ko.xz"]);
        assert_eq!(stem(&order[3]), "virtio-rng");
    }

    #[test]
    fn a_missing_driver_is_told() {
        let told = load_order(&["virtio_blk"], "", "").expect_err("missing").to_string();
        assert!(told.contains("virtio_blk"), "{told}");
    }

    #[test]
    fn the_payload_is_where_the_header_says() {
        let mut image = vec![0; 4096];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&12u32.to_le_bytes());
        image[1040..1048].copy_from_slice(b"contents");
        assert_eq!(payload(&image), Some(b"contents".as_slice()));
        assert_eq!(payload(&image[..1024]), None, "cut short");
        assert_eq!(payload(b"no kernel"), None);
    }
}
