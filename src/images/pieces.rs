//! Large files, proved and written in pieces: a disk of a hundred gigabytes is mostly holes, and several hands carry it.

use super::manifest::{Digest, ImageFile, Piece};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that are read and written at once.
const RUN: usize = 1 << 20;
/// Bytes of zeros that are left out together.
const GRAIN: usize = 64 << 10;
/// What a hole reads as.
static ZEROS: [u8; GRAIN] = [0; GRAIN];

/// Writes one piece of a file from its beginning to its end, and leaves out what need not be written.
pub(super) struct Writer<'a> {
    file: &'a File,
    /// Where `pending` begins.
    at: u64,
    end: u64,
    pending: Vec<u8>,
    hash: Sha256,
    /// The file holds something there already: what is the same is not written again, so that clones stay shared.
    careful: bool,
}

impl<'a> Writer<'a> {
    /// A writer of `size` bytes at `at`. In a file that was just made nothing has to be compared: not `careful`.
    pub fn new(file: &'a File, at: u64, size: u64, careful: bool) -> Self {
        Self { file, at, end: at + size, pending: Vec::with_capacity(RUN), hash: Sha256::new(), careful }
    }

    /// Bytes that are still to come.
    pub fn missing(&self) -> u64 {
        self.end - self.at - self.pending.len() as u64
    }

    /// Takes the next bytes.
    ///
    /// # Panics
    /// There are more than are [missing](Self::missing).
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        assert!(bytes.len() as u64 <= self.missing(), "a piece is not written beyond its end");
        self.hash.update(bytes);
        for grain in bytes.chunks(GRAIN) {
            if !self.careful && *grain == ZEROS[..grain.len()] {
                self.flush()?;
                self.at += grain.len() as u64;
                continue;
            }
            self.pending.extend_from_slice(grain);
            if self.pending.len() >= RUN {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes what is left, and answers what the piece is.
    pub fn finish(mut self) -> io::Result<String> {
        self.flush()?;
        Ok(Digest::finish(self.hash).hex().to_owned())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.careful {
            self.write_what_differs()?;
        } else {
            self.file.write_all_at(&self.pending, self.at)?;
        }
        self.at += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    fn write_what_differs(&self) -> io::Result<()> {
        let mut there = vec![0; self.pending.len()];
        self.file.read_exact_at(&mut there, self.at)?;
        let grains = self.pending.chunks(GRAIN).zip(there.chunks(GRAIN)).enumerate();
        for (number, (new, _)) in grains.filter(|(_, (new, old))| new != old) {
            self.file.write_all_at(new, self.at + (number * GRAIN) as u64)?;
        }
        Ok(())
    }
}

/// Calls `each` with the bytes of a part of a file, run by run.
fn read_runs(file: &File, at: u64, size: u64, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut run = vec![0; RUN];
    let mut done = 0;
    while done < size {
        let count = usize::try_from(size - done).unwrap_or(RUN).min(RUN);
        file.read_exact_at(&mut run[..count], at + done)?;
        each(&run[..count])?;
        done += count as u64;
    }
    Ok(())
}

/// SHA-256 of a part of a file, in hexadecimal.
pub(super) fn digest_of(file: &File, at: u64, size: u64) -> io::Result<String> {
    let mut hash = Sha256::new();
    read_runs(file, at, size, |run| {
        hash.update(run);
        Ok(())
    })?;
    Ok(Digest::finish(hash).hex().to_owned())
}

/// Copies a part of a file into another, holes left out; answers its SHA-256, in hexadecimal.
pub(super) fn copy(from: &File, from_at: u64, mut to: Writer<'_>) -> io::Result<String> {
    let size = to.missing();
    read_runs(from, from_at, size, |run| to.push(run))?;
    to.finish()
}

/// Feeds a part of a file to `each`, run by run; answers its SHA-256, in hexadecimal.
pub(super) fn feed(
    from: &File,
    at: u64,
    size: u64,
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<String> {
    let mut hash = Sha256::new();
    read_runs(from, at, size, |run| {
        hash.update(run);
        each(run)
    })?;
    Ok(Digest::finish(hash).hex().to_owned())
}

/// The places of pieces in their file: each one's beginning and length.
pub(super) fn places<'a>(pieces: impl IntoIterator<Item = &'a Piece>) -> Vec<(u64, u64)> {
    let mut at = 0;
    let place = |piece: &Piece| {
        let begin = at;
        at += piece.size;
        (begin, piece.size)
    };
    pieces.into_iter().map(place).collect()
}

/// Cuts a file into pieces of `size` bytes (the last one shorter), and hashes them on all CPUs.
pub(super) fn cut(file: &File, size: u64) -> io::Result<Vec<Piece>> {
    let length = file.metadata()?.len();
    let places: Vec<_> = (0..length.div_ceil(size)).map(|n| (n * size, size.min(length - n * size))).collect();
    let digests = digests(file, &places)?;
    Ok(places.iter().zip(digests).map(|(&(_, size), sha256)| Piece { size, sha256 }).collect())
}

/// The SHA-256 of each part, hashed on all CPUs.
fn digests(file: &File, places: &[(u64, u64)]) -> io::Result<Vec<String>> {
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(places.len())));
    let work = || -> io::Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(&(at, size)) = places.get(number) else { return Ok(()) };
            let digest = digest_of(file, at, size)?;
            found.lock().expect("nobody panics with it").push((number, digest));
        }
    };
    let hands = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(places.len().max(1));
    std::thread::scope(|scope| {
        let hands: Vec<_> = (0..hands).map(|_| scope.spawn(work)).collect();
        hands.into_iter().try_for_each(|hand| hand.join().expect("hashing does not panic"))
    })?;
    let mut found = found.into_inner().expect("nobody panicked with it");
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, digest)| digest).collect())
}

/// The first piece of a file that is not what it should be; `None` when all are.
pub(super) fn first_wrong(file: &File, told: &ImageFile) -> io::Result<Option<usize>> {
    if file.metadata()?.len() != told.size {
        return Ok(Some(0));
    }
    let digests = digests(file, &places(&told.pieces))?;
    Ok(digests.iter().zip(&told.pieces).position(|(digest, piece)| *digest != piece.sha256))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    fn file_of(content: &[u8]) -> File {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(content, 0).expect("written");
        file
    }

    #[test]
    fn zeros_take_no_room() {
        let file = tempfile::tempfile().expect("a file");
        let size = 8 * RUN;
        file.set_len(size as u64).expect("sized");
        let mut content = vec![0; size];
        content[5 * RUN] = 1;
        let mut writer = Writer::new(&file, 0, size as u64, false);
        content.chunks(GRAIN).for_each(|grain| writer.push(grain).expect("written"));
        assert_eq!(writer.finish().expect("whole"), Digest::of(&content).hex());
        assert_eq!(digest_of(&file, 0, size as u64).expect("read"), Digest::of(&content).hex());
        assert!(file.metadata().expect("there").blocks() * 512 <= 2 * GRAIN as u64, "it is sparse");
    }

    #[test]
    fn what_was_there_before_does_not_shine_through() {
        let file = file_of(&vec![7; 3 * GRAIN]);
        let new = vec![0; 2 * GRAIN];
        let mut writer = Writer::new(&file, GRAIN as u64, new.len() as u64, true);
        writer.push(&new).expect("written");
        assert_eq!(writer.finish().expect("whole"), Digest::of(&new).hex());
        assert_eq!(digest_of(&file, GRAIN as u64, new.len() as u64).expect("read"), Digest::of(&new).hex());
        assert_eq!(digest_of(&file, 0, 9).expect("read"), Digest::of(&[7; 9]).hex(), "its neighbour stays");
    }

    #[test]
    fn a_file_is_cut_and_proved() {
        let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 253) as u8).collect();
        let file = file_of(&content);
        let pieces = cut(&file, 1_000_001).expect("cut");
        assert_eq!(pieces.iter().map(|piece| piece.size).collect::<Vec<_>>(), [1_000_001, 1_000_001, 999_998]);
        assert_eq!(pieces[1].sha256, Digest::of(&content[1_000_001..2_000_002]).hex());
        let told = ImageFile::of_pieces("disk.img", pieces);
        assert_eq!(first_wrong(&file, &told).expect("read"), None);
        file.write_all_at(b"x", 2_500_000).expect("damaged");
        assert_eq!(first_wrong(&file, &told).expect("read"), Some(2));
    }
}
