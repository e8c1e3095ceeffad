//! What of an image is on this host already, in others: later images of a series share most of their disk.

use crate::images::tart::DISK_FILE;
use crate::images::tart::layout::Layout;
use crate::images::{ImageError, ImageStore, pieces};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Where pieces of disk lie on this host.
pub(super) struct Sources {
    /// By SHA-256 and size: the disk that has such a piece, and where.
    pieces: HashMap<(String, u64), (PathBuf, u64)>,
    base: Option<(PathBuf, u64)>,
}

impl Sources {
    /// Looks through all images.
    pub fn of(store: &ImageStore, layout: &Layout) -> Result<Self, ImageError> {
        let mut sources = Self { pieces: HashMap::new(), base: None };
        let wanted = pieces::places(layout.disk.iter().map(|chunk| &chunk.content));
        for image in store.list()? {
            let Some(disk) = image.manifest.files.iter().find(|file| file.name == DISK_FILE) else { continue };
            let path = image.path.join(DISK_FILE);
            let mut in_place = HashMap::new();
            for ((at, size), piece) in pieces::places(&disk.pieces).into_iter().zip(&disk.pieces) {
                sources.pieces.entry((piece.sha256.clone(), size)).or_insert_with(|| (path.clone(), at));
                in_place.insert(at, piece);
            }
            let shared =
                layout.disk.iter().zip(&wanted).filter(|(chunk, (at, _))| in_place.get(at) == Some(&&chunk.content));
            let shared: u64 = shared.map(|(chunk, _)| chunk.content.size).sum();
            if shared > sources.base.as_ref().map_or(0, |(_, most)| *most) {
                sources.base = Some((path, shared));
            }
        }
        Ok(sources)
    }

    /// The disk that has most in common with the new one, at the same places, and how many bytes.
    pub fn base(&self) -> Option<(&Path, u64)> {
        self.base.as_ref().map(|(path, shared)| (path.as_path(), *shared))
    }

    /// A file that should hold a piece, and where in it.
    pub fn find(&self, sha256: &str, size: u64) -> Option<(&Path, u64)> {
        let (path, at) = self.pieces.get(&(sha256.to_owned(), size))?;
        Some((path, *at))
    }
}
