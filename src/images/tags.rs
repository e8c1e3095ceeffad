//! Which image a tag stands for on this host: `tags.json`. A tag moves here only when somebody says so, never because
//! it moved in its registry: the fleet's pins (`upkeep::follow`), or `flyci image pull` where there is none.

use super::manifest::Digest;
use super::registry::Reference;
use super::{ImageError, ImageStore, io_at, sync_directory};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};

const TAGS_FILE: &str = "tags.json";
/// Held while the tags are changed.
const LOCK_FILE: &str = ".tags.lock";
/// Most bytes of the tags.
const TAGS_LIMIT: u64 = 1 << 20;

/// What a reference with a tag stands for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Pointer {
    /// The image.
    digest: Digest,
}

/// What each reference stands for.
type Tags = BTreeMap<String, Pointer>;

impl ImageStore {
    /// What each tag stands for.
    ///
    /// # Errors
    /// The file cannot be read.
    fn tags(&self) -> Result<Tags, ImageError> {
        let path = self.directory.join(TAGS_FILE);
        let mut text = String::new();
        match File::open(&path) {
            Ok(file) => file.take(TAGS_LIMIT).read_to_string(&mut text).map_err(io_at("read", &path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Tags::new()),
            Err(error) => return Err(io_at("open", &path)(error)),
        };
        serde_json::from_str(&text)
            .map_err(|error| ImageError::Broken { path, reason: format!("{TAGS_FILE} cannot be read: {error}") })
    }

    /// From now on the reference stands for this image on this host.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn point(&self, reference: &str, digest: &Digest) -> Result<(), ImageError> {
        self.change(|tags| {
            let pointer = Pointer { digest: digest.clone() };
            tags.insert(reference.to_owned(), pointer.clone()).as_ref() != Some(&pointer)
        })
    }

    /// From now on the reference stands for no image on this host.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn unpoint(&self, reference: &str) -> Result<(), ImageError> {
        self.change(|tags| tags.remove(reference).is_some())
    }

    /// Changes the tags, whole or not at all. `change` answers whether it did.
    fn change(&self, change: impl FnOnce(&mut Tags) -> bool) -> Result<(), ImageError> {
        let lock = self.directory.join(LOCK_FILE);
        let held = File::create(&lock).map_err(io_at("make the file", &lock))?;
        held.lock().map_err(io_at("lock", &lock))?;
        let mut tags = self.tags()?;
        if !change(&mut tags) {
            return Ok(());
        }
        let path = self.directory.join(TAGS_FILE);
        let new = self.directory.join(format!(".{TAGS_FILE}.new"));
        let text = serde_json::to_vec_pretty(&tags).expect("texts are JSON");
        let written = File::create(&new).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()
        });
        written.and_then(|()| fs::rename(&new, &path)).map_err(io_at("write", &path))?;
        sync_directory(&self.directory)
    }

    /// The image that a reference with a tag stands for, if it does and the image is here.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn pointed(&self, reference: &str) -> Result<Option<Digest>, ImageError> {
        let Ok(reference) = reference.parse::<Reference>() else { return Ok(None) };
        let digest = self.tags()?.remove(&reference.to_string()).map(|pointer| pointer.digest);
        Ok(digest.filter(|digest| self.directory(digest).is_some()))
    }

    /// The images that the given references stand for.
    ///
    /// # Errors
    /// The images cannot be listed.
    pub fn named<'a>(&self, references: impl IntoIterator<Item = &'a str>) -> Result<HashSet<Digest>, ImageError> {
        let mut named = HashSet::new();
        for reference in references {
            match self.find(reference) {
                Ok(image) => named.insert(image.digest),
                Err(ImageError::Unknown(_) | ImageError::Ambiguous { .. }) => continue,
                Err(error) => return Err(error),
            };
        }
        Ok(named)
    }
}
