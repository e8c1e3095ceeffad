//! Good days: what is pushed is pulled, by whom it may be, and what is here is not fetched again.

use crate::support::apple;
use crate::support::bundle::{CHUNK, Home, bundle, disk, options};
use crate::support::proxy::{Deed, Proxy};
use crate::support::registry::Registry;
use flyci::domain::admission::MacosVersion;
use flyci::images::{BundleError, ImageError, Kind, Os, PushError, import_bundle, push};
use std::collections::HashSet;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

#[tokio::test]
async fn an_image_goes_to_a_registry_and_comes_to_another_host() {
    let (registry, maker, host) = (Registry::start(), Home::new(), Home::new());
    let disk = disk(6, 1);
    let digest = maker.push(&maker.import(&disk), &registry.image("mac/base:1")).await;
    let (image, fetched) = host.pull(&registry.image("mac/base:1")).await.expect("pulled");
    assert_eq!(image.digest.to_string(), digest, "it is named by the registry's digest");
    assert_eq!(host.disk_of(&image), disk);
    assert_eq!((image.manifest.os, image.manifest.kind), (Os::Macos, Kind::Vz));
    assert_eq!(image.manifest.minimum_macos, Some(MacosVersion(14, 2, 0)));
    assert_eq!((fetched.fetched, fetched.reused), (fetched.total, 0));
    for reference in [registry.image("mac/base:1"), format!("{}@{digest}", registry.image("mac/base")), digest.clone()]
    {
        assert_eq!(host.store.find(&reference).expect("found").digest, image.digest, "{reference}");
    }
    host.store.verify(&image.digest).expect("whole");
    assert_eq!(host.entries(), [".tags.lock".to_owned(), image.digest.hex().to_owned(), "tags.json".to_owned()]);
    let data = std::fs::metadata(image.path.join("disk.img")).expect("there");
    assert!(data.blocks() * 512 < disk.len() as u64, "holes take no room");
    assert_eq!(data.permissions().mode() & 0o777, 0o444);
}

#[tokio::test]
async fn a_copy_of_another_tool_is_the_same_image() {
    let (registry, maker, host) = (Registry::start(), Home::new(), Home::new());
    let disk = disk(3, 2);
    let digest = maker.push(&maker.import(&disk), &registry.image("mac/base:1")).await;
    registry.skopeo_copy(&registry.image("mac/base:1"), &registry.image("copied/base:2"));
    let (image, _) = host.pull(&registry.image("copied/base:2")).await.expect("pulled");
    assert_eq!((image.digest.to_string(), host.disk_of(&image)), (digest, disk));
}

#[tokio::test]
async fn blocks_that_refer_to_one_another_are_pulled_as_apple_makes_them() {
    let (registry, host) = (Registry::start(), Home::new());
    // Not a multiple of the distance between repetitions: matches cross their block's beginning.
    let pattern = &disk(4, 3)[2 << 20..(2 << 20) + 65_535];
    let disk = [pattern.repeat(20), b"end".to_vec()].concat();
    let made = apple::image(&disk, CHUNK as usize);
    assert!(made.blobs[2].len() < CHUNK as usize / 4, "most of it refers to the block before");
    let digest = made.put(&registry.place, "mac/apple", "1").await;
    let (image, _) = host.pull(&registry.image("mac/apple:1")).await.expect("pulled");
    assert_eq!((image.digest.to_string(), host.disk_of(&image)), (digest, disk));
    host.store.verify(&image.digest).expect("whole");
}

#[tokio::test]
async fn what_another_image_has_is_not_fetched_again() {
    let (registry, maker, host) = (Registry::start(), Home::new(), Home::new());
    let (first, mut second) = (disk(6, 4), disk(6, 4));
    second[2 << 20..(2 << 20) + 100].fill(1);
    maker.push(&maker.import(&first), &registry.image("mac/base:1")).await;
    maker.push(&maker.import(&second), &registry.image("mac/base:2")).await;
    host.pull(&registry.image("mac/base:1")).await.expect("pulled");
    let proxy = Proxy::before(&registry.place, |_| Deed::Pass).await;
    let (image, fetched) = host.pull(&proxy.image("mac/base:2")).await.expect("pulled");
    assert_eq!(host.disk_of(&image), second);
    assert_eq!(proxy.blobs_asked_for(), 3, "config, nvram, and the one layer that differs");
    assert!(fetched.reused > 0);
    host.store.verify(&image.digest).expect("whole");
}

#[tokio::test]
async fn the_same_image_again_costs_a_manifest() {
    let (registry, maker, host) = (Registry::start(), Home::new(), Home::new());
    maker.push(&maker.import(&disk(2, 5)), &registry.image("mac/base:1")).await;
    let proxy = Proxy::before(&registry.place, |_| Deed::Pass).await;
    let (first, _) = host.pull(&proxy.image("mac/base:1")).await.expect("pulled");
    let asked = proxy.blobs_asked_for();
    let (again, _) = host.pull(&proxy.image("mac/base:1")).await.expect("pulled");
    assert_eq!((again.digest, proxy.blobs_asked_for()), (first.digest, asked));
}

#[tokio::test]
async fn a_tag_moves_here_only_when_it_is_pulled() {
    let (registry, maker, host) = (Registry::start(), Home::new(), Home::new());
    let tag = registry.image("mac/base:latest");
    let old = maker.push(&maker.import(&disk(1, 6)), &tag).await;
    host.pull(&tag).await.expect("pulled");
    let new = maker.push(&maker.import(&disk(1, 7)), &tag).await;
    assert_eq!(host.store.find(&tag).expect("found").digest.to_string(), old);
    host.pull(&tag).await.expect("pulled");
    assert_eq!(host.store.find(&tag).expect("found").digest.to_string(), new);
    host.store.unpoint(&tag).expect("written");
    assert!(matches!(host.store.find(&tag), Err(ImageError::Unknown(_))), "it stands for nothing");
}

#[tokio::test]
async fn an_image_that_claims_a_registrys_name_is_not_imported() {
    let (registry, maker, host, other) = (Registry::start(), Home::new(), Home::new(), Home::new());
    maker.push(&maker.import(&disk(2, 14)), &registry.image("mac/base:1")).await;
    let (image, _) = host.pull(&registry.image("mac/base:1")).await.expect("pulled");
    assert_eq!(other.store.import(&image.path).expect("the same image").digest, image.digest);
    let forged = host.root.path().join("forged");
    std::fs::create_dir(&forged).expect("a directory");
    for entry in std::fs::read_dir(&image.path).expect("there").flatten() {
        std::fs::copy(entry.path(), forged.join(entry.file_name())).expect("copied");
    }
    let mut said: serde_json::Value =
        serde_json::from_slice(&std::fs::read(forged.join("image.json")).expect("read")).expect("JSON");
    said["registry"] = format!("sha256:{}", "0".repeat(64)).into();
    std::fs::remove_file(forged.join("image.json")).expect("removed");
    std::fs::write(forged.join("image.json"), said.to_string()).expect("written");
    let imported = Home::new().store.import(&forged);
    assert!(matches!(imported, Err(ImageError::Broken { .. })), "{imported:?}");
}

#[tokio::test]
async fn a_mirror_is_asked_instead() {
    let (registry, maker, host) = (Registry::start(), Home::new(), Home::new());
    let digest = maker.push(&maker.import(&disk(1, 8)), &registry.image("ghcr/cirruslabs/base:1")).await;
    let mut options = options();
    options.mirrors = vec![format!("ghcr.io={}/ghcr", registry.place).parse().expect("a mirror")];
    let (image, _) = host.pull_with("ghcr.io/cirruslabs/base:1", options).await.expect("pulled");
    assert_eq!(image.manifest.name, "ghcr.io/cirruslabs/base");
    assert_eq!(image.digest.to_string(), digest);
}

#[tokio::test]
async fn what_is_damaged_on_the_disk_is_found_and_not_spread() {
    let (registry, maker, host) = (Registry::start(), Home::new(), Home::new());
    maker.push(&maker.import(&disk(3, 9)), &registry.image("mac/base:1")).await;
    let (image, _) = host.pull(&registry.image("mac/base:1")).await.expect("pulled");
    let file = image.path.join("disk.img");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("opened");
    let mut bytes = std::fs::read(&file).expect("read");
    bytes[2_500_000] ^= 1;
    std::fs::write(&file, bytes).expect("damaged");
    let error = host.store.verify(&image.digest).expect_err("damaged").to_string();
    assert!(error.contains("piece 2 of `disk.img`"), "{error}");
    let reference = registry.image("mac/other:1").parse().expect("a reference");
    let pushed = push(&host.store, &image, &reference, &options(), CHUNK, &flyci::images::Progress::default()).await;
    assert!(matches!(pushed, Err(PushError::Damaged(_, 2))), "{pushed:?}");
}

#[test]
fn a_bundle_of_tarts_is_imported_once() {
    let home = Home::new();
    let disk = disk(2, 10);
    let image = home.import(&disk);
    assert_eq!(home.disk_of(&image), disk);
    assert_eq!(home.import(&disk).digest, image.digest, "the same content is the same image");
    assert_eq!(home.store.find("mine").expect("found").digest, image.digest);
    home.store.verify(&image.digest).expect("whole");
    assert_eq!(home.entries(), [image.digest.hex().to_owned()]);
}

#[test]
fn a_bundle_that_cannot_be_used_leaves_nothing() {
    let home = Home::new();
    let refused = |change: &dyn Fn(&std::path::Path), said: &str| {
        let path = bundle(home.root.path(), b"disk");
        change(&path);
        let error = import_bundle(&home.store, &path, "mine").expect_err(said);
        assert!(flyci::errors::chain(&error).to_string().contains(said), "{error}");
    };
    refused(&|path| std::fs::remove_file(path.join("nvram.bin")).expect("removed"), "nvram.bin is missing");
    refused(&|path| std::fs::write(path.join("overlay.asif"), "x").expect("written"), "stacked");
    refused(&|path| std::fs::write(path.join("config.json"), r#"{"version": 1}"#).expect("written"), "no description");
    assert_eq!(home.entries(), Vec::<String>::new());
}

#[test]
fn a_bundle_whose_vm_runs_is_left_alone() {
    let home = Home::new();
    let path = bundle(home.root.path(), b"disk");
    // As Tart does: another process holds a lock on the description while the vm runs.
    let script = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()";
    let mut holder = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(path.join("config.json"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("python3");
    let mut said = [0; 4];
    std::io::Read::read_exact(holder.stdout.as_mut().expect("piped"), &mut said).expect("it holds the lock");
    let imported = import_bundle(&home.store, &path, "mine");
    drop(holder.stdin.take());
    holder.wait().expect("it ends");
    assert!(matches!(imported, Err(BundleError::Running(_))), "{imported:?}");
    import_bundle(&home.store, &path, "mine").expect("it stopped");
}

#[tokio::test]
async fn what_nothing_uses_goes_and_what_is_used_stays() {
    let (registry, maker, host) = (Registry::start(), Home::new(), Home::new());
    let mut digests = Vec::new();
    for (seed, tag) in [(11, "used"), (12, "named"), (13, "unused")] {
        maker.push(&maker.import(&disk(1, seed)), &registry.image(&format!("mac/base:{tag}"))).await;
        let (image, _) = host.pull(&registry.image(&format!("mac/base:{tag}"))).await.expect("pulled");
        digests.push(image.digest);
    }
    let profiles = [registry.image("mac/base:named"), "nobody-has-this".to_owned()];
    let mut kept = host.store.named(profiles.iter().map(String::as_str)).expect("listed");
    kept.insert(digests[0].clone());
    let keep = |days: u64| flyci::images::Keep {
        younger_than: std::time::Duration::from_secs(days * 86_400),
        free: flyci::domain::units::Bytes(0),
    };
    assert!(host.store.prune(&keep(1), &kept, false).expect("pruned").images.is_empty(), "it was just pulled");
    let told = host.store.prune(&keep(0), &kept, true).expect("told");
    assert_eq!((told.images.len(), host.store.list().expect("listed").len()), (1, 3), "telling removes nothing");
    let pruned = host.store.prune(&keep(0), &kept, false).expect("pruned");
    assert_eq!(pruned.images.iter().map(|image| &image.digest).collect::<Vec<_>>(), [&digests[2]]);
    let short = flyci::images::Keep { free: flyci::domain::units::Bytes(u64::MAX), ..keep(1_000) };
    assert_eq!(host.store.prune(&short, &HashSet::new(), false).expect("pruned").images.len(), 2, "room is short");
    assert!(matches!(host.store.find(&registry.image("mac/base:named")), Err(ImageError::Unknown(_))));
}
