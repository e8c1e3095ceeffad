//! What a guest writes is on the host's disk as noise.

use crate::support::Host;
use memchr::memmem;
use std::path::Path;

/// The files below a directory that hold these bytes.
fn files_with(directory: &Path, needle: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory").flatten() {
        let (path, kind) = (entry.path(), entry.file_type().expect("a kind"));
        if kind.is_dir() {
            found.extend(files_with(&path, needle));
        } else if kind.is_file() && memmem::find(&std::fs::read(&path).expect("read"), needle).is_some() {
            found.push(path.display().to_string());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_writes_is_found_nowhere_on_the_hosts_disk() {
    let host = Host::new(|_| {}).await;
    let vm = host.booted(0).await;
    let canary = uuid::Uuid::new_v4().to_string();
    let write = format!("for i in $(seq 1000); do echo {canary}; done > /root/secret; sync; grep -c {canary} /dev/vda");
    let (status, seen) = vm.run(&write).await;
    assert_eq!(status, 0, "it is on the disk that the guest sees: {seen}");

    let directory = host.path(vm.spec.id);
    assert_eq!(files_with(&directory, canary.as_bytes()), Vec::<String>::new(), "the vm's files on the host");
    assert_eq!(files_with(&host.image.path, canary.as_bytes()), Vec::<String>::new(), "its image");
    std::fs::write(directory.join("planted"), &canary).expect("written");
    assert_eq!(files_with(&directory, canary.as_bytes()).len(), 1, "the search finds what is there");
    let volume = std::fs::metadata(directory.join("disk.luks")).expect("the disk");
    assert!(std::os::unix::fs::MetadataExt::blocks(&volume) > 0 && !directory.join("disk.key").exists());
}
