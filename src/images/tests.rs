//! Images come, are found, proved and go.

use super::*;
use crate::images::manifest::tests::sample;

/// A directory with an image of one file, as a build leaves it.
fn made(directory: &Path, name: &str, content: &[u8]) -> PathBuf {
    let home = directory.join(format!("built-{name}-{}", content.len()));
    fs::create_dir(&home).expect("a directory");
    fs::write(home.join("disk"), content).expect("a file");
    let file = ImageFile::whole("disk", content);
    let manifest = Manifest { name: name.into(), files: vec![file], ..sample() };
    fs::write(home.join(MANIFEST_FILE), serde_json::to_vec(&manifest).expect("JSON")).expect("a manifest");
    home
}

fn store() -> (tempfile::TempDir, ImageStore) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = ImageStore::open(directory.path()).expect("a store");
    (directory, store)
}

#[test]
fn an_image_comes_and_is_found_by_all_its_names() {
    let (home, store) = store();
    let image = store.import(&made(home.path(), "ubuntu", b"one")).expect("imported");
    for reference in ["ubuntu".to_owned(), format!("ubuntu@{}", image.digest), image.digest.hex()[..8].to_owned()] {
        assert_eq!(store.find(&reference).expect("found").digest, image.digest, "{reference}");
    }
    assert!(matches!(store.find("debian"), Err(ImageError::Unknown(_))));
    assert!(matches!(store.find(&image.digest.hex()[..5]), Err(ImageError::Unknown(_))), "too few digits");
    store.verify(&image.digest).expect("whole");
}

#[test]
fn the_image_imported_last_has_the_name() {
    let (home, store) = store();
    store.import(&made(home.path(), "ubuntu", b"one")).expect("imported");
    let later = store.import(&made(home.path(), "ubuntu", b"another")).expect("imported");
    assert_eq!(store.list().expect("listed").len(), 2);
    assert_eq!(store.find("ubuntu").expect("found").digest, later.digest);
}

#[test]
fn the_same_image_twice_is_one_image() {
    let (home, store) = store();
    let source = made(home.path(), "ubuntu", b"one");
    let first = store.import(&source).expect("imported");
    assert_eq!(store.import(&source).expect("again").digest, first.digest);
    assert_eq!(store.list().expect("listed").len(), 1);
}

#[test]
fn a_damaged_image_is_refused_and_leaves_nothing() {
    let (home, store) = store();
    let source = made(home.path(), "ubuntu", b"one");
    fs::write(source.join("disk"), b"two").expect("damaged");
    assert!(matches!(store.import(&source), Err(ImageError::Broken { .. })));
    assert_eq!(fs::read_dir(home.path().join("images")).expect("there").count(), 0);
}

#[test]
fn damage_is_seen_later_too() {
    let (home, store) = store();
    let image = store.import(&made(home.path(), "ubuntu", b"one")).expect("imported");
    let file = image.path.join("disk");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("forced");
    fs::write(&file, b"two").expect("damaged");
    assert!(matches!(store.verify(&image.digest), Err(ImageError::Broken { .. })));
}

#[test]
fn an_image_in_use_stays() {
    let (home, store) = store();
    let image = store.import(&made(home.path(), "ubuntu", b"one")).expect("imported");
    let in_use = HashSet::from([image.digest.clone()]);
    assert!(matches!(store.remove(&image.digest, &in_use), Err(ImageError::InUse(_))));
    store.remove(&image.digest, &HashSet::new()).expect("removed");
    assert!(store.list().expect("listed").is_empty());
    assert!(matches!(store.remove(&image.digest, &HashSet::new()), Err(ImageError::Unknown(_))));
}

#[test]
fn an_import_that_died_is_swept() {
    let (home, store) = store();
    // No process has this id: it is beyond what the kernel gives.
    let dead = home.path().join("images/.import-abc-2147483646");
    fs::create_dir(&dead).expect("a leftover");
    assert!(store.list().expect("listed").is_empty(), "it is no image");
    store.import(&made(home.path(), "ubuntu", b"one")).expect("imported");
    assert!(!dead.exists());
}
