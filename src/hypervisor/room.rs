//! Room on the disk for one more clone.

use super::record::{Home, VmDirectory, allocated};
use super::{HypervisorError, io_error};
use crate::data_dir::free_space;
use crate::domain::units::Bytes;

/// A disk's size is a multiple of this, in bytes.
pub(super) const GRANULE: u64 = 1 << 20;

/// Part of a disk's added space that its file system takes for itself: one in so many.
const FILE_SYSTEM_SHARE: u64 = 40;

/// What a disk must have more than what is on it, for a guest to find so much free.
pub(super) const fn added_for(free: Bytes) -> u64 {
    free.0.saturating_add(free.0 / FILE_SYSTEM_SHARE)
}

/// Whether there is room for one more clone: every clone may grow to its full size, and the host
/// keeps a reserve, since its database shares the disk. `disk` is the name of the disk in a VM's directory.
pub(super) fn check(home: &Home, disk: &str, wanted: Bytes, reserve: Bytes) -> Result<(), HypervisorError> {
    let free = free_space(home.path()).map_err(|source| io_error("ask for the free space of", home.path(), source))?.0;
    let vms = home.list().map_err(|source| io_error("list the vms in", home.path(), source))?;
    let promised: u64 = vms.into_iter().map(|vm| still_promised(&home.of(vm), disk)).sum();
    let needed = promised.saturating_add(wanted.0).saturating_add(reserve.0);
    if free >= needed {
        return Ok(());
    }
    Err(HypervisorError::NoRoom(format!(
        "{} has {} free; one more vm needs {wanted}, the others may still grow by {}, and the host keeps {reserve}: \
         free some space, lower the profile's disk_free, or use fewer slots",
        home.path().display(),
        readable(free),
        readable(promised),
    )))
}

/// By how much a VM's disk may still grow.
fn still_promised(vm: &VmDirectory, disk: &str) -> u64 {
    vm.read_record().map_or(0, |record| {
        let promised = record.promised.unwrap_or(record.disk_size).0;
        promised.saturating_sub(allocated(&vm.path().join(disk)).saturating_sub(record.shared.0))
    })
}

/// A size for people: whole megabytes.
fn readable(bytes: u64) -> Bytes {
    const MEGABYTE: u64 = 1_000_000;
    Bytes(bytes - bytes % MEGABYTE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::VmId;
    use crate::hypervisor::record::Record;

    #[test]
    fn a_full_disk_is_told_before_it_is_full() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Home::open(directory.path()).expect("a home");
        check(&home, "disk", Bytes(1), Bytes(0)).expect("there is room for a byte");
        let told = check(&home, "disk", Bytes(1), Bytes(u64::MAX / 2)).expect_err("no room").to_string();
        assert!(told.contains("no room for another vm") && told.contains("disk_free"), "{told}");
    }

    #[test]
    fn what_other_vms_may_still_write_is_not_free() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Home::open(directory.path()).expect("a home");
        let id = VmId::random();
        home.of(id).create().expect("made");
        home.of(id).write_record(&Record::new(id, "x".into(), Bytes(u64::MAX / 2))).expect("written");
        assert!(matches!(check(&home, "disk", Bytes(1), Bytes(0)), Err(HypervisorError::NoRoom(_))));
    }

    #[test]
    fn what_a_disk_shares_with_its_image_is_no_growth_of_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Home::open(directory.path()).expect("a home");
        let id = VmId::random();
        let vm = home.of(id);
        vm.create().expect("made");
        std::fs::write(vm.path().join("disk"), vec![1; 64 << 10]).expect("written");
        let shared = Bytes(allocated(&vm.path().join("disk")));
        let mut record = Record::new(id, "x".into(), Bytes(1 << 40));
        (record.shared, record.promised) = (shared, Some(Bytes(1 << 20)));
        vm.write_record(&record).expect("written");
        assert_eq!(still_promised(&vm, "disk"), 1 << 20, "it has written nothing of its own");
        record.shared = Bytes(0);
        vm.write_record(&record).expect("written");
        assert_eq!(still_promised(&vm, "disk"), (1 << 20) - shared.0);
    }
}
