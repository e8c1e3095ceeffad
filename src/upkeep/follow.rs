//! A host has the images that its profiles name: what is pinned is pulled, and the tag stands for it then. Host.
//!
//! A tag that nobody has pinned is resolved once, by the first host that needs it. Vms go on being made of the image
//! that is here while its successor comes. Where the disk has no room for both and `[images] replace` allows it, the
//! tag first stands for nothing here, its vms come to their end, their image goes, and then the successor comes; one
//! host of the fleet at a time.
//!
//! Does not: move a pin (`flyci image update`, [`super::rollouts`]), or touch images that are not in registries.

use super::images::{OptionsError, pull_options};
use crate::config;
use crate::domain::admission::MacosVersion;
use crate::domain::ids::HostId;
use crate::domain::profile::Profile;
use crate::domain::units::Bytes;
use crate::errors::chain;
use crate::images::registry::{Reference, Version};
use crate::images::{Digest, Image, ImageError, ImageStore, Keep, Progress, PullError, PullOptions, pull, resolve};
use crate::store::image_pulls::{self, Pull};
use crate::store::{Applied, StoreError, image_pins, vms};
use crate::wake::Wakes;
use sqlx::PgPool;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;

/// How often a pull says how far it is, and looks whether its image is still wanted.
const REPORT_PERIOD: Duration = Duration::from_secs(5);
/// How long an image is left alone that could not be pulled, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// Rounds of making room and pulling again within one pass.
const ROUNDS: usize = 2;

/// What a host needs to follow the pins.
pub struct Follower {
    /// Acts as the host.
    pub pool: PgPool,
    /// Which host.
    pub host: HostId,
    /// Its name: it is written beside what it pins.
    pub name: String,
    /// Its images.
    pub store: ImageStore,
    /// How images are fetched.
    pub section: config::Images,
    /// The macOS that the machine runs, if it does: an image that needs a later one is not fetched.
    pub macos: Option<MacosVersion>,
    /// What it can run.
    pub profiles: Vec<Profile>,
    /// Woken when an image has come.
    pub wakes: Arc<Wakes>,
    /// A pull stops here, and is taken up again by the next daemon.
    pub shutdown: CancellationToken,
    /// Images that could not be pulled.
    pub pauses: Pauses,
}

/// What one pass did, in references.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FollowReport {
    /// Their image is here.
    pub here: u32,
    /// Their image came in this pass.
    pub pulled: u32,
    /// Their image cannot come yet.
    pub waiting: u32,
    /// Their image could not be pulled.
    pub failed: u32,
}

/// Why an image did not come.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The database is away.
    #[error("the pins could not be read or written")]
    Store(#[from] StoreError),
    /// The registry, the network, the disk.
    #[error("the image was not pulled")]
    Pull(#[from] PullError),
    /// The images' directory fails.
    #[error("the images cannot be used")]
    Images(#[from] ImageError),
    /// The configuration of images cannot be used now.
    #[error("the images' configuration cannot be used")]
    Options(#[from] OptionsError),
    /// The pin is no digest.
    #[error("the pin of {0} is no digest: `flyci image update` writes another")]
    Pin(String),
}

/// How it is with one reference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Here,
    Pulled,
    Waiting,
}

/// References that are left alone for a growing while.
#[derive(Debug, Default)]
pub struct Pauses(Mutex<BTreeMap<String, (u32, Instant)>>);

impl Pauses {
    fn holds(&self, reference: &str, now: Instant) -> bool {
        self.lock().get(reference).is_some_and(|(_, until)| now < *until)
    }

    fn failed(&self, reference: &str, now: Instant) {
        let mut all = self.lock();
        let failures = all.get(reference).map_or(0, |(failures, _)| *failures);
        let pause = LONGEST_PAUSE.min(FIRST_PAUSE * 2_u32.saturating_pow(failures.min(8)));
        all.insert(reference.to_owned(), (failures + 1, now + pause));
    }

    fn forget(&self, reference: &str) {
        self.lock().remove(reference);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (u32, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follower {
    /// What the profiles name in registries, each once.
    fn references(&self) -> BTreeMap<String, Reference> {
        let parsed = self.profiles.iter().filter_map(|profile| profile.image.parse::<Reference>().ok());
        parsed.map(|reference| (reference.to_string(), reference)).collect()
    }

    /// One round. A pull takes as long as it takes; it ends with the daemon, or when another image is wanted.
    ///
    /// # Errors
    /// When the database is away. An image that does not come is told in its row, and stops no other.
    pub async fn pass(&self) -> Result<FollowReport, StoreError> {
        let references = self.references();
        let names: Vec<String> = references.keys().cloned().collect();
        image_pulls::keep_only(&self.pool, self.host, &names).await?;
        let mut report = FollowReport::default();
        for (name, reference) in &references {
            if self.shutdown.is_cancelled() {
                break;
            }
            if self.pauses.holds(name, Instant::now()) {
                report.waiting += 1;
                continue;
            }
            match self.follow(reference).await {
                Ok(outcome) => {
                    self.pauses.forget(name);
                    match outcome {
                        Outcome::Here => report.here += 1,
                        Outcome::Pulled => report.pulled += 1,
                        Outcome::Waiting => report.waiting += 1,
                    }
                }
                Err(FollowError::Store(error)) => return Err(error),
                Err(error) => {
                    self.pauses.failed(name, Instant::now());
                    report.failed += 1;
                    self.tell(name, &error).await?;
                }
            }
        }
        Ok(report)
    }

    async fn tell(&self, reference: &str, error: &FollowError) -> Result<(), StoreError> {
        let text = chain(error).to_string();
        tracing::warn!(image.reference = reference, error = text, "an image is not here, and could not be pulled");
        let image = image_pins::find(&self.pool, reference).await?;
        let image = image.as_ref().map_or("", |pin| pin.wanted_on(self.host));
        let pull = Pull { host: self.host, reference, image, total: 0, done: 0, trouble: Some(&text) };
        image_pulls::report(&self.pool, &pull).await
    }

    async fn follow(&self, reference: &Reference) -> Result<Outcome, FollowError> {
        let wanted = self.wanted(reference).await?;
        if self.store.directory(&wanted).is_some() {
            self.take(reference, &wanted).await?;
            return Ok(Outcome::Here);
        }
        let options = PullOptions { macos: self.macos, ..pull_options(&self.section)? };
        for _ in 0..ROUNDS {
            match self.fetch(reference, &wanted, &options).await {
                Ok(true) => {
                    self.take(reference, &wanted).await?;
                    tracing::info!(image.reference = %reference, image.digest = %wanted, "an image was pulled");
                    return Ok(Outcome::Pulled);
                }
                Ok(false) => return Ok(Outcome::Waiting),
                Err(FollowError::Pull(space @ PullError::Space { .. })) => {
                    if !self.make_room(reference, &wanted, space).await? {
                        return Ok(Outcome::Waiting);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Outcome::Waiting)
    }

    /// The image that the reference stands for on this host, by the fleet's word.
    async fn wanted(&self, reference: &Reference) -> Result<Digest, FollowError> {
        if let Version::Digest(digest) = &reference.version {
            return Ok(digest.clone());
        }
        let name = reference.to_string();
        let pin = match image_pins::find(&self.pool, &name).await? {
            Some(pin) => Some(pin),
            None => {
                let digest = self.resolve(reference, &name).await?;
                let by = format!("host:{}", self.name);
                if image_pins::pin_first(&self.pool, &name, &digest.to_string(), &by).await? == Applied::Yes {
                    tracing::info!(image.reference = name, image.digest = %digest, "the tag is pinned for the whole fleet");
                }
                image_pins::find(&self.pool, &name).await?
            }
        };
        let pinned = pin.as_ref().and_then(|pin| pin.wanted_on(self.host).parse().ok());
        pinned.ok_or(FollowError::Pin(name))
    }

    /// What nobody has pinned: the image that somebody pulled here by hand, else what the registry says.
    async fn resolve(&self, reference: &Reference, name: &str) -> Result<Digest, FollowError> {
        match self.store.pointed(name)? {
            Some(digest) => Ok(digest),
            None => Ok(resolve(reference, &pull_options(&self.section)?.registry).await?),
        }
    }

    /// The tag stands for the image from now on, and nothing is left to fetch.
    async fn take(&self, reference: &Reference, digest: &Digest) -> Result<(), FollowError> {
        let name = reference.to_string();
        if let Version::Tag(_) = reference.version {
            self.store.point(&name, digest)?;
        }
        image_pulls::finished(&self.pool, self.host, &name).await?;
        self.wakes.demand.notify_one();
        Ok(())
    }

    /// Pulls an image, and says how far it is. `false` when the daemon stops, or another image is wanted.
    async fn fetch(&self, reference: &Reference, wanted: &Digest, options: &PullOptions) -> Result<bool, FollowError> {
        let (source, progress) = (reference.at(wanted.clone()), Progress::default());
        let pulling = pull(&self.store, &source, options, &progress);
        tokio::pin!(pulling);
        let mut ticks = interval(REPORT_PERIOD);
        loop {
            tokio::select! {
                done = &mut pulling => return Ok(done.map(|_| true)?),
                () = self.shutdown.cancelled() => return Ok(false),
                _ = ticks.tick() => {
                    let still = self.tick(reference, wanted, &progress).await;
                    match still {
                        Ok(true) => {}
                        Ok(false) => return Ok(false),
                        // What is fetched is needed whatever the database does.
                        Err(error) => tracing::debug!(error = %chain(&error), "how far a pull is cannot be told"),
                    }
                }
            }
        }
    }

    /// Writes how far a pull is. `false` when another image is wanted.
    async fn tick(&self, reference: &Reference, wanted: &Digest, progress: &Progress) -> Result<bool, FollowError> {
        let (name, image, now) = (reference.to_string(), wanted.to_string(), progress.now());
        let done = now.fetched + now.reused;
        let pull = Pull { host: self.host, reference: &name, image: &image, total: now.total, done, trouble: None };
        image_pulls::report(&self.pool, &pull).await?;
        Ok(self.wanted(reference).await? == *wanted)
    }

    /// Makes room for an image that does not fit: unused images go, and where that is not enough, the image before it if
    /// the configuration says so. `false`: another host is at it, or vms of the image before run still; the next pass
    /// looks again.
    async fn make_room(&self, reference: &Reference, wanted: &Digest, space: PullError) -> Result<bool, FollowError> {
        let PullError::Space { needed, reserve, .. } = &space else { return Err(space.into()) };
        let room = needed.0.saturating_add(reserve.0);
        let named = self.store.named(self.profiles.iter().map(|profile| profile.image.as_str()))?;
        let live = vms::live(&self.pool, self.host).await?;
        let live: HashSet<Digest> = live.iter().filter_map(|vm| vm.image.parse().ok()).collect();
        if self.prune(room, named.union(&live).cloned().collect()).await? {
            return Ok(true);
        }
        // A digest in the configuration has no image before it.
        let Version::Tag(_) = reference.version else { return Err(space.into()) };
        if !self.section.replace {
            return Err(space.into());
        }
        let name = reference.to_string();
        let mut tx = self.pool.begin().await.map_err(StoreError::from)?;
        let mine = image_pulls::begin_replacing(&mut tx, self.host, &name, &wanted.to_string()).await?;
        tx.commit().await.map_err(StoreError::from)?;
        if mine == Applied::Stale {
            return Ok(false);
        }
        // No vm is planned of what no tag names. One that was planned just now is seen by the next pass.
        if self.store.pointed(&name)?.is_some() {
            tracing::info!(image.reference = name, "an image makes room for its successor when its vms have ended");
            self.store.unpoint(&name)?;
            return Ok(false);
        }
        if live.is_subset(&named) { Err(space.into()) } else { Ok(false) }
    }

    /// Removes unused images until there is room; none where all of them would not be enough.
    async fn prune(&self, room: u64, used: HashSet<Digest>) -> Result<bool, FollowError> {
        let (store, keep) = (self.store.clone(), Keep { younger_than: Duration::MAX, free: Bytes(room) });
        let pruned = tokio::task::spawn_blocking(move || {
            let sizes: u64 = store.prune(&keep, &used, true)?.images.iter().map(Image::size).sum();
            if store.free_space()?.0.saturating_add(sizes) < room {
                return Ok(false);
            }
            let pruned = store.prune(&keep, &used, false)?;
            for image in &pruned.images {
                tracing::info!(image.name = image.manifest.name, image.digest = %image.digest, "an unused image made room");
            }
            Ok(store.free_space()?.0 >= room)
        });
        pruned.await.expect("pruning does not panic").map_err(FollowError::Images)
    }
}
