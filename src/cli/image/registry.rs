//! `flyci image pull`, `push`, `import` and `prune`.

use super::{failed_to, find, in_use, pins};
use crate::cli::exit::{CliError, DONE};
use crate::cli::human::{plural, size, span};
use crate::cli::out;
use crate::cli::progress::Line;
use crate::config::Config;
use crate::images::registry::{Reference, Version};
use crate::images::tart::CHUNK;
use crate::images::{Image, ImageStore, Keep, Progress, Snapshot, import_bundle, is_bundle, pull, push};
use crate::upkeep::images::{pull_options, registry_options};
use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often the line of progress changes.
const TICK: Duration = Duration::from_millis(500);

pub(super) fn parse(reference: &str) -> Result<Reference, CliError> {
    reference.parse().map_err(|error| CliError::part("nothing was done", error))
}

fn shown(image: &Image) -> String {
    format!("{}@{}\n", image.manifest.name, image.digest)
}

/// `flyci image pull`.
pub async fn run_pull(reference: &str, config: &Config, store: &ImageStore) -> Result<u8, CliError> {
    let reference = parse(reference)?;
    let failed = |error| CliError::part(format!("{reference} was not pulled"), error);
    let options = pull_options(&config.images).map_err(|error| CliError::part("nothing was pulled", error))?;
    let pinned = pins::digest_of(&reference, config).await?;
    let source = pinned.map_or_else(|| reference.clone(), |digest| reference.at(digest));
    let (progress, begun) = (Progress::default(), Instant::now());
    let line = Line::start("asking the registry");
    let image = watch(pull(store, &source, &options, &progress), &progress, &line).await.map_err(failed)?;
    if let Version::Tag(_) = reference.version {
        store.point(&reference.to_string(), &image.digest).map_err(failed_to("the image came, and has no tag"))?;
    }
    let Snapshot { fetched, reused, .. } = progress.now();
    let time = span(begun.elapsed());
    line.done(&match (fetched, reused) {
        (0, 0) => "it is here already".to_owned(),
        (_, 0) => format!("fetched {} in {time}", size(fetched)),
        (_, _) => format!("fetched {} in {time}; {} were here already", size(fetched), size(reused)),
    });
    out::print(&shown(&image))?;
    Ok(DONE)
}

/// `flyci image push`.
pub async fn run_push(asked: &str, reference: &str, config: &Config, store: &ImageStore) -> Result<u8, CliError> {
    let (image, reference) = (find(store, asked)?, parse(reference)?);
    let failed = |error| CliError::part("the image was not pushed", error);
    let options = registry_options(&config.images).map_err(|error| CliError::part("nothing was pushed", error))?;
    let (progress, begun) = (Progress::default(), Instant::now());
    let line = Line::start("pushing");
    let pushing = push(store, &image, &reference, &options, CHUNK, &progress);
    let digest = watch(pushing, &progress, &line).await.map_err(failed)?;
    line.done(&format!("pushed {} of disk in {}", size(progress.now().fetched), span(begun.elapsed())));
    out::print(&format!("{}\n", reference.at(digest)))?;
    Ok(DONE)
}

/// Shows how far something is until it ends.
async fn watch<T>(work: impl Future<Output = T>, progress: &Progress, line: &Line) -> T {
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(TICK);
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = ticks.tick() => {
                let now = progress.now();
                if now.total > 0 {
                    line.say(&tell(now, begun.elapsed()));
                }
            }
        }
    }
}

/// `1.2 GB of 27 GB, 110 MB/s, 3m50s left`.
fn tell(now: Snapshot, elapsed: Duration) -> String {
    let done = now.fetched + now.reused;
    let seconds = elapsed.as_secs_f64().max(0.001);
    #[expect(clippy::cast_precision_loss, reason = "a rate is shown with two digits")]
    let rate = now.fetched as f64 / seconds;
    let mut text = format!("{} of {}", size(done), size(now.total));
    if rate >= 1.0 {
        #[expect(clippy::cast_precision_loss, reason = "a rest is shown in seconds")]
        let left = Duration::from_secs((now.total.saturating_sub(done) as f64 / rate) as u64);
        #[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "a rate is positive and finite")]
        let rate = rate as u64;
        text += &format!(", {}/s, {} left", size(rate), span(left));
    }
    text
}

/// `flyci image import`.
pub fn run_import(path: &Path, name: Option<&str>, store: &ImageStore) -> Result<u8, CliError> {
    let doing = "the image was not imported";
    let line = Line::start("reading the disk");
    let image = if is_bundle(path) {
        let directory = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let name = name.unwrap_or(&directory);
        import_bundle(store, path, name).map_err(|error| CliError::part(doing, error))?
    } else if name.is_some() {
        return Err(CliError::Failed("an image's directory has its name in it: leave out --name".to_owned()));
    } else {
        store.import(path).map_err(|error| CliError::part(doing, error))?
    };
    line.done(&format!("{} of disk are proved", size(image.manifest.disk_size)));
    out::print(&shown(&image))?;
    Ok(DONE)
}

/// `flyci image prune`.
pub async fn run_prune(
    older_than: Option<Duration>,
    dry_run: bool,
    config: &Config,
    store: &ImageStore,
) -> Result<u8, CliError> {
    let failed = failed_to("the images were not pruned");
    let mut kept = in_use(config).await?;
    kept.extend(store.named(config.profiles.iter().map(|profile| profile.image.as_str())).map_err(&failed)?);
    let keep = Keep { younger_than: older_than.unwrap_or(config.images.keep.0), free: config.images.keep_free };
    let pruned = store.prune(&keep, &kept, dry_run).map_err(&failed)?;
    let verb = if dry_run { "Would remove" } else { "Removed" };
    let mut text = String::new();
    for image in &pruned.images {
        text += &format!("{verb} {}@{}, {}.\n", image.manifest.name, image.digest, size(image.size()));
    }
    if pruned.unfinished > 0 {
        text += &format!("{verb} what {} left.\n", plural(pruned.unfinished as u64, "interrupted pull"));
    }
    if text.is_empty() {
        text += "Nothing to remove.\n";
    }
    out::print(&text)?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_tells_amount_rate_and_rest() {
        let now = Snapshot { total: 27_000_000_000, fetched: 1_200_000_000, reused: 800_000_000 };
        assert_eq!(tell(now, Duration::from_secs(10)), "2.0 GB of 27 GB, 120 MB/s, 3m28s left");
        assert_eq!(tell(Snapshot { total: 5_000, ..Snapshot::default() }, Duration::ZERO), "0 B of 5.0 KB");
    }
}
