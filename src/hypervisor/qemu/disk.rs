//! The disks of a VM: its clone, encrypted before it is written to, and the runner's disk.

use super::luks;
use crate::domain::units::Bytes;
use crate::errors::chain;
use crate::hypervisor::process::{Tool, ToolError};
use crate::hypervisor::record::VmDirectory;
use crate::hypervisor::{HypervisorError, io_error, remove_if_there, room};
use crate::images::build::disk as image_disk;
use crate::images::{DISK, Image};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// How long making an overlay may take. It is some 10 ms.
const OVERLAY: Duration = Duration::from_secs(30);

/// The file in a VM's directory that takes what the guest writes.
pub(super) const VOLUME: &str = "disk.luks";

/// What a clone needs besides the bytes of its disk: one part in so many, and the least, in bytes.
const OVERHEAD_SHARE: u64 = 1_024;
const LEAST_OVERHEAD: u64 = 64 << 20;

/// The file system's name on a runner's disk.
const RUNNER_LABEL: &str = "runner";

/// The size of a clone's disk: what the image has, the space that the guest is promised, and what
/// the file system takes for itself.
pub(super) fn clone_size(image: &Image, disk_free: Bytes) -> Bytes {
    Bytes((image.manifest.disk_size + room::added_for(disk_free)).next_multiple_of(room::GRANULE))
}

/// Makes the clone of an image's disk: an overlay that takes no room until it is written to.
pub(super) async fn clone(image: &Image, vm: &VmDirectory, size: Bytes) -> Result<(), HypervisorError> {
    let unfinished = vm.path().join(format!("{DISK}.unfinished"));
    let tool = Tool::new("qemu-img", OVERLAY).map_err(tool_failed)?;
    let made = tool
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .arg(image.path.join(DISK))
        .arg(&unfinished)
        .arg(size.0.to_string())
        .run()
        .await;
    made.map_err(|error| match error {
        ToolError::Failed { complaint, .. } => {
            HypervisorError::Image { path: image.path.clone(), reason: format!("it cannot be cloned: {complaint}") }
        }
        other => tool_failed(other),
    })?;
    fs::rename(&unfinished, vm.path().join(DISK))
        .map_err(|source| io_error("finish the clone", &vm.path().join(DISK), source))
}

/// Puts the clone, which nothing was written to yet, into an encrypted volume. Answers the volume's key, of which
/// there is no other copy: a VM whose process is gone cannot be started from its disk again, and is not to be.
pub(super) async fn encrypt(vm: &VmDirectory, size: Bytes) -> Result<Zeroizing<String>, HypervisorError> {
    let (clone, volume) = (vm.path().join(DISK), vm.path().join(VOLUME));
    let failed = |source| io_error("encrypt the clone in", vm.path(), source);
    let capacity = Bytes(size.0 + LEAST_OVERHEAD.max(size.0 / OVERHEAD_SHARE));
    let made = tokio::task::spawn_blocking(move || {
        // Of a process that did not start.
        remove_if_there(&volume)?;
        luks::make(&volume, &fs::read(clone)?, capacity)
    });
    made.await.unwrap_or_else(|panicked| Err(io::Error::other(panicked))).map_err(failed)
}

/// The disk with the runner's directory, made anew when the directory has changed. Older ones
/// stay while vms may use them, and go with [`sweep_runner_disks`].
pub(super) async fn runner_disk(directory: &Path, data_dir: &Path) -> Result<PathBuf, HypervisorError> {
    let failed = |error: crate::images::build::BuildError| {
        let path = directory.display();
        HypervisorError::Process(format!("no disk can be made of the runner in {path}: {}", chain(&error)))
    };
    if !directory.join("run.sh").is_file() {
        return Err(HypervisorError::Process(format!(
            "the runner's directory {} has no run.sh; unpack GitHub's runner there, or change [runner] directory",
            directory.display()
        )));
    }
    let home = data_dir.join("runners");
    let target = home.join(format!("{}.img", image_disk::fingerprint(directory).map_err(failed)?));
    if target.is_file() {
        return Ok(target);
    }
    fs::create_dir_all(&home).map_err(|source| io_error("make the directory", &home, source))?;
    let unfinished = home.join(format!(".{}-{:08x}", std::process::id(), rand::random::<u32>()));
    let size = image_disk::space_for(directory).map_err(failed)?;
    let made = image_disk::make(directory, size, RUNNER_LABEL, &unfinished).await;
    if let Err(error) = made {
        let _ = fs::remove_file(&unfinished);
        return Err(failed(error));
    }
    fs::rename(&unfinished, &target).map_err(|source| io_error("finish the runner's disk", &target, source))?;
    Ok(target)
}

/// Removes runner disks other than the one in use.
pub(super) fn sweep_runner_disks(data_dir: &Path, keep: Option<&Path>) -> io::Result<()> {
    let entries = match fs::read_dir(data_dir.join("runners")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        if keep != Some(path.as_path()) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

pub(super) fn tool_failed(error: ToolError) -> HypervisorError {
    match error {
        ToolError::Run { program, source } => HypervisorError::Io { doing: format!("running `{program}`"), source },
        other => HypervisorError::Process(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_runners_disk_is_made_once_per_content() {
        let (data, runner) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("another"));
        fs::write(runner.path().join("run.sh"), "#!/bin/sh\n").expect("written");
        let first = runner_disk(runner.path(), data.path()).await.expect("made");
        assert_eq!(runner_disk(runner.path(), data.path()).await.expect("there"), first);
        fs::write(runner.path().join("other"), "more").expect("written");
        let second = runner_disk(runner.path(), data.path()).await.expect("made");
        assert_ne!(first, second);
        sweep_runner_disks(data.path(), Some(&second)).expect("swept");
        assert!(!first.exists() && second.exists());
    }

    #[tokio::test]
    async fn a_directory_that_is_no_runner_is_refused() {
        let (data, runner) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("another"));
        let told = runner_disk(runner.path(), data.path()).await.expect_err("no runner").to_string();
        assert!(told.contains("run.sh"), "{told}");
    }
}
