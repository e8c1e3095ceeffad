//! Clones of raw disks, beside a copy of the smallest: by size, and by what is written in them.

use super::stats::{Samples, Table};
use flyci::hypervisor::clone::{self, How};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Set by script/bench: directories on volumes with clones, with a `:` between.
const VOLUMES: &str = "FLYCI_TEST_VOLUMES";
/// Sizes, in GiB.
const SIZES: [u64; 3] = [1, 10, 50];
/// Clones of each.
const ROUNDS: usize = 20;
/// A disk in use has so much written, each so far from the other.
const WRITTEN: usize = 256 << 10;
const APART: u64 = 16 << 20;

pub fn run() {
    let volumes = std::env::var(VOLUMES).unwrap_or_else(|_| panic!("{VOLUMES} is not set: run script/bench"));
    let head = ["clone of a raw disk (ms)", "written MB", "p50", "worst", "a full copy, p50"];
    let mut table = Table::new(&head);
    for volume in volumes.split(':').map(Path::new) {
        for size in SIZES {
            for written in [false, true] {
                measure(&mut table, volume, size, written);
            }
        }
    }
    table.print();
}

fn measure(table: &mut Table, volume: &Path, gib: u64, written: bool) {
    let image = disk(volume, gib << 30, written);
    let shared = times(&image, How::Share);
    // What a copy takes is shown once, for scale.
    let copied = (written && gib == SIZES[0]).then(|| times(&image, How::Copy));
    let megabytes = if written { (gib << 30) / APART * WRITTEN as u64 / 1_000_000 } else { 0 };
    table.row(&[
        format!("{}, {gib} GiB", volume.file_name().unwrap_or_default().to_string_lossy()),
        megabytes.to_string(),
        format!("{:.2}", shared.percentile(50.0)),
        format!("{:.2}", shared.percentile(100.0)),
        copied.map_or_else(String::new, |copied| format!("{:.2}", copied.percentile(50.0))),
    ]);
    fs::remove_file(image).expect("it is removed");
}

/// A sparse disk on stable storage.
fn disk(volume: &Path, size: u64, written: bool) -> PathBuf {
    let path = volume.join("image");
    let file = File::create(&path).expect("a disk");
    file.set_len(size).expect("its size");
    if written {
        let piece: Vec<u8> = (0..WRITTEN).map(|at| (at % 251) as u8).collect();
        for at in (0..size).step_by(APART as usize) {
            file.write_all_at(&piece, at).expect("written");
        }
    }
    file.sync_all().expect("stored");
    path
}

/// Reads and writes all of it. The library's own copy shares where it can.
fn copy(image: &Path, vm: &Path) {
    let (mut from, mut to) = (File::open(image).expect("opened"), File::create(vm).expect("made"));
    let mut piece = vec![0; 1 << 20];
    loop {
        let count = from.read(&mut piece).expect("read");
        if count == 0 {
            return to.sync_all().expect("stored");
        }
        to.write_all(&piece[..count]).expect("written");
    }
}

fn times(image: &Path, how: How) -> Samples {
    let vm = image.with_file_name("disk");
    let round = |_| {
        let begun = Instant::now();
        if how == How::Share {
            clone::file(image, &vm, how).expect("cloned");
        } else {
            copy(image, &vm);
        }
        let took = begun.elapsed().as_secs_f64() * 1000.0;
        fs::remove_file(&vm).expect("it is removed");
        took
    };
    let rounds = if how == How::Share { ROUNDS } else { 1 };
    Samples::new((0..rounds).map(round).collect())
}
