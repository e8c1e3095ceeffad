//! One layer: found on this host, or streamed from the registry through hash and decoder to its place in the disk.

use super::reuse::Sources;
use super::{Pull, PullError, is_full};
use crate::images::io_at;
use crate::images::manifest::Digest;
use crate::images::pieces::{self, Writer};
use crate::images::registry::Tries;
use crate::images::tart::DISK_FILE;
use crate::images::tart::layout::Chunk;
use crate::images::tart::lz4::{Decoder, Lz4Error};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::mpsc;

/// How often a layer that came damaged is fetched: the damage may be of the way.
const FETCHES: u32 = 2;
/// Received pieces of one layer that wait for the decoder. Hyper's are at most some hundred kilobytes.
const WAITING: usize = 8;

/// The layers of one pull.
pub(super) struct Layers<'a> {
    pull: &'a Pull<'a>,
    sources: &'a Sources,
    disk: Arc<File>,
    /// The disk holds something already.
    used: bool,
    places: Vec<(u64, u64)>,
}

/// What the decoder made of a layer.
struct Decoded {
    stored: Digest,
    content: String,
    missing: u64,
}

/// Why the decoder gave up.
enum Fault {
    Lz4(Lz4Error),
    /// So many bytes more than the manifest tells of, at least.
    TooMuch(u64),
    Disk(io::Error),
}

impl<'a> Layers<'a> {
    pub fn new(pull: &'a Pull<'a>, sources: &'a Sources, (disk, used): (File, bool)) -> Self {
        let places = pieces::places(pull.layout.disk.iter().map(|chunk| &chunk.content));
        Self { pull, sources, disk: Arc::new(disk), used, places }
    }

    /// Brings one layer to its place.
    pub async fn bring(&self, number: usize) -> Result<(), PullError> {
        let chunk = &self.pull.layout.disk[number];
        if self.is_there(number).await? || self.copy(number).await? {
            self.pull.progress.reused.fetch_add(chunk.blob.size, Ordering::Relaxed);
            return Ok(());
        }
        let mut fetches = 1;
        loop {
            match self.fetch(number, fetches > 1).await {
                Err(PullError::Wrong { .. } | PullError::Decode { .. }) if fetches < FETCHES => {
                    tracing::warn!(layer = number, "a layer came damaged and is fetched again");
                    fetches += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// Makes all of it durable and read-only.
    pub async fn seal(&self) -> Result<(), PullError> {
        let disk = Arc::clone(&self.disk);
        let sealed = blocking(move || crate::images::seal(&disk, Path::new(DISK_FILE))).await;
        sealed.map_err(super::full_or)
    }

    /// Whether the disk has the layer's content already: an earlier try's, or a clone's.
    async fn is_there(&self, number: usize) -> Result<bool, PullError> {
        if !self.used {
            return Ok(false);
        }
        let (disk, (at, size)) = (Arc::clone(&self.disk), self.places[number]);
        let digest = blocking(move || pieces::digest_of(&disk, at, size)).await;
        let digest = digest.map_err(io_at("read", Path::new(DISK_FILE)))?;
        Ok(digest == self.pull.layout.disk[number].content.sha256)
    }

    /// Takes the layer's content from another image of this host. One that is damaged there is fetched.
    async fn copy(&self, number: usize) -> Result<bool, PullError> {
        let content = &self.pull.layout.disk[number].content;
        let Some((path, from)) = self.sources.find(&content.sha256, content.size) else { return Ok(false) };
        let Ok(source) = File::open(path) else { return Ok(false) };
        let (disk, used, (at, size)) = (Arc::clone(&self.disk), self.used, self.places[number]);
        match blocking(move || pieces::copy(&source, from, Writer::new(&disk, at, size, used))).await {
            Ok(digest) => Ok(digest == content.sha256),
            Err(error) if is_full(&error) => Err(PullError::Full(error)),
            Err(_) => Ok(false),
        }
    }

    /// Fetches, decodes, proves and writes the layer.
    async fn fetch(&self, number: usize, again: bool) -> Result<(), PullError> {
        let chunk = &self.pull.layout.disk[number];
        let (send, receive) = mpsc::channel(WAITING);
        // A copy that turned out wrong may have left something where nothing was.
        let careful = self.used || again || self.sources.find(&chunk.content.sha256, chunk.content.size).is_some();
        let (disk, (at, size)) = (Arc::clone(&self.disk), self.places[number]);
        let decoding = blocking(move || decode(Received::new(receive), Writer::new(&disk, at, size, careful)));
        let mut got = 0;
        let (received, decoded) = tokio::join!(self.receive(number, &mut got, send), decoding);
        // The decoder ends early when the stream does: the stream's own reason comes first.
        let outcome = received.and_then(|()| judge(number, chunk, decoded));
        if outcome.is_err() {
            self.pull.progress.fetched.fetch_sub(got, Ordering::Relaxed);
        }
        outcome
    }

    /// Passes a layer's bytes on, all of them; what breaks off is taken up where it did.
    async fn receive(&self, number: usize, got: &mut u64, send: mpsc::Sender<Bytes>) -> Result<(), PullError> {
        let blob = &self.pull.layout.disk[number].blob;
        let mut tries = Tries::new(self.pull.options.registry.first_wait);
        loop {
            match self.receive_from(number, got, &send).await {
                // The decoder wants no more when it cannot go on: it says why.
                Ok(()) if *got == blob.size || send.is_closed() => return Ok(()),
                // A connection may be closed early without a fault of its own.
                Ok(()) if tries.again(None).await => {}
                Ok(()) => return Err(PullError::Size { layer: number, told: blob.size, got: *got }),
                Err(PullError::Registry(error)) if error.is_transient() && tries.again(None).await => {
                    tracing::debug!(layer = number, %error, "a layer is taken up where it broke off");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One connection's worth of a layer.
    async fn receive_from(&self, number: usize, got: &mut u64, send: &mpsc::Sender<Bytes>) -> Result<(), PullError> {
        let blob = &self.pull.layout.disk[number].blob;
        let mut stream = self.pull.repository.blob(&blob.digest, *got).await?;
        let mut known = *got - stream.begin;
        while let Some(mut bytes) = stream.next().await? {
            let skipped = usize::try_from(known).unwrap_or(usize::MAX).min(bytes.len());
            known -= skipped as u64;
            let bytes = bytes.split_off(skipped);
            *got += bytes.len() as u64;
            if *got > blob.size {
                return Err(PullError::Size { layer: number, told: blob.size, got: *got });
            }
            self.pull.progress.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            if !bytes.is_empty() && send.send(bytes).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Compares what was decoded with what the manifest tells.
fn judge(layer: usize, chunk: &Chunk, decoded: Result<Decoded, Fault>) -> Result<(), PullError> {
    let told = chunk.content.size;
    match decoded {
        Ok(decoded) if decoded.stored != chunk.blob.digest => Err(PullError::Wrong { layer, what: "the stored data" }),
        Ok(Decoded { missing: missing @ 1.., .. }) => Err(PullError::Size { layer, told, got: told - missing }),
        Ok(decoded) if decoded.content != chunk.content.sha256 => Err(PullError::Wrong { layer, what: "the content" }),
        Ok(_) => Ok(()),
        Err(Fault::Lz4(source)) => Err(PullError::Decode { layer, source }),
        Err(Fault::TooMuch(excess)) => Err(PullError::Size { layer, told, got: told + excess }),
        Err(Fault::Disk(error)) if is_full(&error) => Err(PullError::Full(error)),
        Err(Fault::Disk(error)) => Err(io_at("write", Path::new(DISK_FILE))(error).into()),
    }
}

fn decode(received: Received, mut writer: Writer<'_>) -> Result<Decoded, Fault> {
    let mut decoder = Decoder::new(received);
    while let Some(block) = decoder.next_block().map_err(Fault::Lz4)? {
        if let Some(excess @ 1..) = (block.len() as u64).checked_sub(writer.missing()) {
            return Err(Fault::TooMuch(excess));
        }
        writer.push(block).map_err(Fault::Disk)?;
    }
    let missing = writer.missing();
    let content = writer.finish().map_err(Fault::Disk)?;
    Ok(Decoded { stored: Digest::finish(decoder.into_inner().hash), content, missing })
}

/// What is received, as something to read, and its hash.
struct Received {
    receive: mpsc::Receiver<Bytes>,
    current: Bytes,
    hash: Sha256,
}

impl Received {
    fn new(receive: mpsc::Receiver<Bytes>) -> Self {
        Self { receive, current: Bytes::new(), hash: Sha256::new() }
    }
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() {
            let Some(next) = self.receive.blocking_recv() else { return Ok(0) };
            self.hash.update(&next);
            self.current = next;
        }
        let count = buffer.len().min(self.current.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the work does not panic")
}
