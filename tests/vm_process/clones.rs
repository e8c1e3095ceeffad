//! Clones on file systems that have them: real volumes, which script/test mounts.

use crate::support::Host;
use flyci::hypervisor::clone::{self, CloneError, How};
use flyci::hypervisor::{Hypervisor, HypervisorError};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A disk of ten GiB in which so much is written.
const DISK_BYTES: u64 = 10 << 30;
const WRITTEN: u64 = 64 << 20;

/// The volumes: btrfs and xfs.
fn volumes() -> Vec<PathBuf> {
    let set = std::env::var("FLYCI_TEST_VOLUMES");
    let set = set.expect("FLYCI_TEST_VOLUMES is not set: run script/test, which mounts volumes with clones");
    set.split(':').map(PathBuf::from).collect()
}

fn folder(volume: &Path) -> tempfile::TempDir {
    tempfile::tempdir_in(volume).expect("a directory on the volume")
}

fn free(volume: &Path) -> u64 {
    let stat = nix::sys::statvfs::statvfs(volume).expect("a volume");
    stat.blocks_available() * stat.fragment_size()
}

#[test]
fn a_clone_shares_its_blocks_until_it_is_written_to() {
    for volume in volumes() {
        let folder = folder(&volume);
        let (image, disk) = (folder.path().join("image"), folder.path().join("disk"));
        let file = File::create(&image).expect("made");
        file.set_len(DISK_BYTES).expect("its size");
        for at in (0..WRITTEN).step_by(1 << 20) {
            file.write_all_at(&[7; 1 << 20], at * 100).expect("written");
        }
        file.sync_all().expect("stored");
        let before = free(&volume);
        clone::file(&image, &disk, How::Share).unwrap_or_else(|error| panic!("{}: {error}", volume.display()));
        File::open(&disk).and_then(|disk| disk.sync_all()).expect("stored");
        let taken = before.saturating_sub(free(&volume));
        assert!(taken < WRITTEN / 4, "{}: {taken} bytes are taken by a clone of {WRITTEN}", volume.display());
        assert_eq!(fs::metadata(&disk).expect("there").size(), DISK_BYTES);

        let written = File::options().read(true).write(true).open(&disk).expect("it is writable");
        written.write_all_at(b"the job's", 0).expect("written");
        let mut piece = [0; 9];
        File::open(&image).and_then(|image| image.read_exact_at(&mut piece, 0)).expect("read");
        assert_eq!(piece, [7; 9], "the image is as it was");
    }
}

#[test]
fn a_clone_across_volumes_is_refused_and_not_copied() {
    let volumes = volumes();
    let [one, other] = &volumes[..] else { panic!("two volumes, not {volumes:?}") };
    let (one, other) = (folder(one), folder(other));
    let (image, disk) = (one.path().join("image"), other.path().join("disk"));
    fs::write(&image, [7; 1 << 16]).expect("written");
    let refused = clone::file(&image, &disk, How::Share).expect_err("two volumes");
    assert!(matches!(refused, CloneError::OtherVolume { .. }), "{refused:?}");
    assert_eq!(fs::read_dir(other.path()).expect("listed").count(), 0, "nothing is left there");
    assert!(matches!(clone::prove(one.path(), other.path()), Err(CloneError::OtherVolume { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_lives_on_a_clone_and_none_is_begun_without_room() {
    for volume in volumes() {
        let host = Host::on(&volume, |options| options.how = How::Share);
        let spec = host.booted(0).await;
        host.is_gone(spec.id).await;
        let mut greedy = host.spec(0);
        greedy.disk_free.0 = u64::MAX / 2;
        let refused = host.vz.clone_vm(&greedy).await.expect_err("no disk is so large");
        assert!(matches!(refused, HypervisorError::NoRoom(_)), "{refused:?}");
        assert!(!host.path(greedy.id).exists(), "nothing is begun");
    }
}

#[test]
fn a_volume_without_clones_is_told_when_the_daemon_starts() {
    // A file system in memory has none.
    let folder = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let refused = clone::prove(folder.path(), folder.path()).expect_err("no clones");
    assert!(refused.to_string().contains("APFS"), "{refused}");
}
