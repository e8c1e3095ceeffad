//! The read-only templates that VMs are cloned from: `<data_dir>/images/<digest>/`.
//!
//! Owns their directories and manifests; how a VM is made of one is the hypervisor's business.
//! An image never changes: another content is another digest. All calls here block on the disk.

pub mod build;
mod bundle;
mod manifest;
mod offer;
mod pieces;
mod prune;
mod pull;
mod push;
pub mod registry;
pub mod runner;
mod tags;
pub mod tart;
mod tree;

pub use bundle::{BundleError, import_bundle, is_bundle};

pub use manifest::{
    Architecture, DISK, Digest, FORMAT, INITRD, ImageFile, KERNEL, Kind, MANIFEST_FILE, Manifest, Os, ParseDigestError,
    Piece,
};

pub use offer::{Found, Images};
pub use prune::{Keep, Pruned};
pub use pull::{Progress, PullError, PullOptions, Snapshot, pull, resolve};
pub use push::{PushError, push};

use sha2::{Digest as _, Sha256};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Fewest digits that stand for a digest.
const PREFIX_LENGTH: usize = 6;

/// Piece in which files are read, in bytes.
const PIECE: usize = 1 << 20;

/// Most bytes that a manifest has.
const MANIFEST_LIMIT: u64 = 1 << 20;

/// How the directory of an unfinished import begins.
const UNFINISHED: &str = ".import-";

/// How the directory of a push begins.
const UNFINISHED_PUSH: &str = ".push-";

/// What is wrong with an image, or with what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is none of that name.
    #[error("there is no image `{0}` on this host; `flyci image list` shows those there are")]
    Unknown(String),
    /// The reference fits several.
    #[error("`{reference}` fits {count} images; write more digits of the digest")]
    Ambiguous { reference: String, count: usize },
    /// Its manifest or a file of it is not what it should be.
    #[error("the image at {path} is broken: {reason}; remove it, then pull or build it again")]
    Broken { path: PathBuf, reason: String },
    /// Vms are made of it.
    #[error("the image {0} is in use by vms of this host; drain the host, or wait for their end")]
    InUse(Digest),
    /// The file system did not do what was asked.
    #[error("cannot {doing}")]
    Io {
        doing: String,
        #[source]
        source: io::Error,
    },
}

/// Names what was being done when the file system failed.
fn io_at(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let doing = format!("{doing} {}", path.display());
    move |source| ImageError::Io { doing, source }
}

/// One image.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its name.
    pub digest: Digest,
    /// Its directory.
    pub path: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
}

impl Image {
    /// Reads the manifest of the image in a directory. The files are not looked at.
    ///
    /// # Errors
    /// There is no manifest, or it cannot be used.
    pub fn read(path: &Path) -> Result<Self, ImageError> {
        let file = path.join(MANIFEST_FILE);
        let broken = |reason: String| ImageError::Broken { path: path.to_owned(), reason };
        let mut text = String::new();
        let opened = File::open(&file).map_err(io_at("open", &file))?;
        opened.take(MANIFEST_LIMIT).read_to_string(&mut text).map_err(io_at("read", &file))?;
        let manifest: Manifest =
            serde_json::from_str(&text).map_err(|e| broken(format!("{MANIFEST_FILE} cannot be read: {e}")))?;
        match manifest.fault() {
            Some(fault) => Err(broken(fault)),
            None => Ok(Self { digest: manifest.digest(), path: path.to_owned(), manifest }),
        }
    }

    /// What an image that was pulled says otherwise than the registry's manifest that it is named by.
    fn contradicts_registry(&self) -> Result<Option<String>, ImageError> {
        let Some(digest) = &self.manifest.registry else { return Ok(None) };
        let path = self.path.join(tart::REGISTRY_MANIFEST_FILE);
        let text = fs::read(&path).map_err(io_at("read", &path))?;
        if Digest::of(&text) != *digest {
            return Ok(Some(format!("{} is not the registry's", tart::REGISTRY_MANIFEST_FILE)));
        }
        let layout = match tart::layout::Layout::parse(&text) {
            Ok(layout) => layout,
            Err(fault) => return Ok(Some(fault.to_string())),
        };
        let told = |name: &str| self.manifest.files.iter().find(|file| file.name == name);
        let whole = |name: &str, digest: &Digest| told(name).is_some_and(|file| file.sha256 == digest.hex());
        let disk = told(tart::DISK_FILE).map_or(&[][..], |file| &file.pieces);
        let same = whole(tart::CONFIG_FILE, &layout.config.digest)
            && whole(tart::NVRAM_FILE, &layout.nvram.digest)
            && layout.disk.iter().map(|chunk| &chunk.content).eq(disk);
        Ok((!same).then(|| format!("{MANIFEST_FILE} names other files than the registry's manifest")))
    }

    /// Bytes that its files take.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.manifest.files.iter().map(|file| file.size).sum()
    }
}

/// All images of this host.
#[derive(Clone, Debug)]
pub struct ImageStore {
    directory: PathBuf,
}

impl ImageStore {
    /// The images in a data directory. Makes their directory when there is none.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(data_dir: &Path) -> Result<Self, ImageError> {
        let directory = data_dir.join("images");
        fs::create_dir_all(&directory).map_err(io_at("make the directory", &directory))?;
        Ok(Self { directory })
    }

    /// All images, by name, then by digest. A broken one is left out, and told in the log.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(io_at("read the directory", &self.directory))? {
            let entry = entry.map_err(io_at("read the directory", &self.directory))?;
            // Images are named by their digest; beside them lie the tags, and what is not finished.
            if entry.file_name().to_str().is_none_or(|name| name.parse::<Digest>().is_err()) {
                continue;
            }
            match Image::read(&entry.path()) {
                Ok(image) => found.push(image),
                Err(error) => tracing::warn!(path = %entry.path().display(), %error, "an image is left out"),
            }
        }
        found.sort_by(|a, b| (&a.manifest.name, &a.digest).cmp(&(&b.manifest.name, &b.digest)));
        Ok(found)
    }

    /// The image that a reference names: `HOST/REPOSITORY:TAG` (the one that was pulled or pinned), `NAME` (the one
    /// imported last), `NAME@sha256:HEX`, `sha256:HEX`, or the first digits of a digest.
    ///
    /// # Errors
    /// None or several fit.
    pub fn find(&self, reference: &str) -> Result<Image, ImageError> {
        if let Some(digest) = self.pointed(reference)? {
            return Image::read(&self.directory.join(digest.hex()));
        }
        let mut all = self.list()?;
        let (name, digits) = match reference.split_once('@') {
            Some((name, digest)) => (Some(name), digest),
            None => (None, reference),
        };
        let digits = digits.strip_prefix("sha256:").unwrap_or(digits);
        if name.is_none() && all.iter().any(|image| image.manifest.name == reference) {
            all.retain(|image| image.manifest.name == reference);
            return Ok(newest(all).expect("at least one has the name"));
        }
        all.retain(|image| {
            name.is_none_or(|name| image.manifest.name == name)
                && digits.len() >= PREFIX_LENGTH
                && image.digest.hex().starts_with(digits)
        });
        match all.len() {
            0 => Err(ImageError::Unknown(reference.to_owned())),
            1 => Ok(all.remove(0)),
            count => Err(ImageError::Ambiguous { reference: reference.to_owned(), count }),
        }
    }

    /// The directory of the image with this digest, if it is here.
    #[must_use]
    pub fn directory(&self, digest: &Digest) -> Option<PathBuf> {
        let home = self.directory.join(digest.hex());
        home.join(MANIFEST_FILE).is_file().then_some(home)
    }

    /// Takes an image from a directory: copies it, proves every file, makes it read-only, and only
    /// then lets it be seen. An image that is there already is left alone.
    ///
    /// # Errors
    /// It is broken, or the disk fails.
    pub fn import(&self, source: &Path) -> Result<Image, ImageError> {
        let image = Image::read(source)?;
        let home = self.directory.join(image.digest.hex());
        if home.exists() {
            return Image::read(&home);
        }
        // The registry's name is for what the registry named.
        if let Some(reason) = image.contradicts_registry()? {
            return Err(ImageError::Broken { path: source.to_owned(), reason });
        }
        self.sweep_unfinished();
        let unfinished = self.directory.join(format!("{UNFINISHED}{}-{}", image.digest.hex(), std::process::id()));
        tree::remove(&unfinished).map_err(io_at("remove", &unfinished))?;
        fs::create_dir(&unfinished).map_err(io_at("make the directory", &unfinished))?;
        let filled = fill(&unfinished, &image).and_then(|()| {
            fs::rename(&unfinished, &home).map_err(io_at("move the finished image to", &home))?;
            sync_directory(&self.directory)
        });
        if let Err(error) = filled {
            let _ = tree::remove(&unfinished);
            // Another process may have finished the same import first.
            return if home.exists() { Image::read(&home) } else { Err(error) };
        }
        Image::read(&home)
    }

    /// Removes an image. `in_use` holds the digests that vms of this host are made of.
    ///
    /// # Errors
    /// It is in use, unknown, or the disk fails.
    pub fn remove(&self, digest: &Digest, in_use: &HashSet<Digest>) -> Result<(), ImageError> {
        if in_use.contains(digest) {
            return Err(ImageError::InUse(digest.clone()));
        }
        let home = self.directory.join(digest.hex());
        if !home.exists() {
            return Err(ImageError::Unknown(digest.to_string()));
        }
        tree::remove(&home).map_err(io_at("remove", &home))?;
        self.forget_use(digest);
        Ok(())
    }

    /// Reads every file of an image and compares it with the manifest.
    ///
    /// # Errors
    /// It is unknown, or not what its name says.
    pub fn verify(&self, digest: &Digest) -> Result<Image, ImageError> {
        let home = self.directory.join(digest.hex());
        if !home.exists() {
            return Err(ImageError::Unknown(digest.to_string()));
        }
        let image = Image::read(&home)?;
        let broken = |reason: String| ImageError::Broken { path: home.clone(), reason };
        if image.digest != *digest {
            return Err(broken(format!("its manifest was changed: it is that of {}", image.digest)));
        }
        for file in &image.manifest.files {
            let path = home.join(&file.name);
            let mut source = File::open(&path).map_err(io_at("open", &path))?;
            if file.pieces.is_empty() {
                compare(&path, &mut source, &mut io::sink(), file)?;
            } else if let Some(piece) = pieces::first_wrong(&source, file).map_err(io_at("read", &path))? {
                return Err(broken(format!("piece {piece} of `{}` is not the one that its manifest names", file.name)));
            }
        }
        if let Some(fault) = image.contradicts_registry()? {
            return Err(broken(fault));
        }
        Ok(image)
    }

    /// Removes imports that died on the way. One that is being made by a process that lives is
    /// left alone.
    fn sweep_unfinished(&self) {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let rest = name.strip_prefix(UNFINISHED).or_else(|| name.strip_prefix(UNFINISHED_PUSH));
            let maker = rest.and_then(|rest| rest.rsplit('-').next()?.parse().ok());
            let Some(maker) = maker else { continue };
            let alive =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(maker), None) != Err(nix::errno::Errno::ESRCH);
            if !alive && let Err(error) = tree::remove(&entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "an unfinished import stays");
            }
        }
    }
}

/// The image whose directory was made last.
fn newest(images: Vec<Image>) -> Option<Image> {
    images.into_iter().max_by_key(|image| {
        fs::metadata(&image.path).and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
    })
}

/// Copies an image's files and manifest into a directory, proves and protects them.
fn fill(directory: &Path, image: &Image) -> Result<(), ImageError> {
    for file in &image.manifest.files {
        let (from, to) = (image.path.join(&file.name), directory.join(&file.name));
        let mut source = File::open(&from).map_err(io_at("open", &from))?;
        let mut target = File::create_new(&to).map_err(io_at("make the file", &to))?;
        if file.pieces.is_empty() {
            compare(&from, &mut source, &mut target, file)?;
        } else {
            copy_pieces(&from, &source, &target, file)?;
        }
        seal(&target, &to)?;
    }
    let path = directory.join(MANIFEST_FILE);
    let mut target = File::create_new(&path).map_err(io_at("make the file", &path))?;
    let text = serde_json::to_vec_pretty(&image.manifest).expect("a manifest is JSON");
    target.write_all(&text).map_err(io_at("write", &path))?;
    seal(&target, &path)?;
    sync_directory(directory)
}

/// Makes a file read-only and durable.
fn seal(file: &File, path: &Path) -> Result<(), ImageError> {
    file.set_permissions(fs::Permissions::from_mode(0o444)).map_err(io_at("protect", path))?;
    file.sync_all().map_err(io_at("write", path))
}

fn sync_directory(directory: &Path) -> Result<(), ImageError> {
    File::open(directory).and_then(|opened| opened.sync_all()).map_err(io_at("write the directory", directory))
}

/// Copies a file while proving that it is the one that the manifest names.
fn compare(path: &Path, from: &mut impl Read, to: &mut impl Write, told: &ImageFile) -> Result<(), ImageError> {
    let (size, sha256) = copy_hashing(from, to).map_err(io_at("copy", path))?;
    if size == told.size && sha256 == told.sha256 {
        return Ok(());
    }
    let reason = format!("`{}` is not the file that its manifest names (size {size}, SHA-256 {sha256})", told.name);
    Err(ImageError::Broken { path: path.parent().unwrap_or(path).to_owned(), reason })
}

/// Copies a file of pieces, without its holes, while proving each.
fn copy_pieces(path: &Path, from: &File, to: &File, told: &ImageFile) -> Result<(), ImageError> {
    to.set_len(told.size).map_err(io_at("size the copy of", path))?;
    for ((at, size), piece) in pieces::places(&told.pieces).into_iter().zip(&told.pieces) {
        let copied = pieces::copy(from, at, pieces::Writer::new(to, at, size, false));
        if copied.map_err(io_at("copy", path))? != piece.sha256 {
            let reason = format!("`{}` is not the file that its manifest names, from byte {at} on", told.name);
            return Err(ImageError::Broken { path: path.parent().unwrap_or(path).to_owned(), reason });
        }
    }
    Ok(())
}

/// Copies to the end; returns length and SHA-256.
fn copy_hashing(from: &mut impl Read, to: &mut impl Write) -> io::Result<(u64, String)> {
    let (mut hash, mut size) = (Sha256::new(), 0);
    let mut piece = vec![0; PIECE];
    loop {
        let count = match from.read(&mut piece) {
            Ok(0) => return Ok((size, hex::encode(hash.finalize()))),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(&piece[..count]);
        to.write_all(&piece[..count])?;
        size += count as u64;
    }
}

#[cfg(test)]
mod tests;
