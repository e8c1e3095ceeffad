//! `flyci image …`: what vms are cloned from, on this host. Works on the data directory itself: the daemon
//! need not run, and sees a new image at its next pass. What the whole fleet is to use is the daemon's to say
//! (`pins.rs`).

mod args;
mod pins;
mod registry;

pub use args::ImageCommand;

use super::client::Admin;
use super::exit::{CliError, DONE, FAILED};
use super::human::{ago, plural, size, span};
use super::out::{self, Look, harmless};
use super::progress::Line;
use super::status::short;
use super::table::{Column, Table};
use crate::api::{Page, Vm, VmsQuery};
use crate::config::Config;
use crate::errors::chain;
use crate::images::build::{self, BuildOptions, LINUX_MINIMAL};
use crate::images::{Digest, Image, ImageError, ImageStore, Os};
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Instant;

/// The most vms that are looked at to find which images are in use.
const MAX_VMS: u32 = 10_000;
const PAGE: u32 = 500;

/// Runs `flyci image …`.
pub async fn run(command: &ImageCommand, config: &Config, look: &Look) -> Result<u8, CliError> {
    let store =
        ImageStore::open(&config.data_dir).map_err(|error| CliError::part("the images cannot be read", error))?;
    match command {
        ImageCommand::Pull { reference } => registry::run_pull(reference, config, &store).await,
        ImageCommand::Update(args) => pins::update(args, config).await,
        ImageCommand::Rollback { reference } => pins::rollback(reference, config).await,
        ImageCommand::Pins(args) => pins::list(args.json, config, look).await,
        ImageCommand::Push { image, reference } => registry::run_push(image, reference, config, &store).await,
        ImageCommand::Import { path, name } => registry::run_import(path, name.as_deref(), &store),
        ImageCommand::Prune { older_than, dry_run } => {
            registry::run_prune(older_than.map(|span| span.0), *dry_run, config, &store).await
        }
        ImageCommand::Build { name, runner } => build(name, runner.clone(), config, &store).await,
        ImageCommand::List(args) => list(&store, args.json, look),
        ImageCommand::Remove { digest } => remove(&store, digest, config).await,
        ImageCommand::Verify { digest } => verify(&store, digest),
    }
}

async fn build(name: &str, runner: Option<PathBuf>, config: &Config, store: &ImageStore) -> Result<u8, CliError> {
    if name != LINUX_MINIMAL {
        let name = harmless(name);
        return Err(CliError::Failed(format!("there is no recipe `{name}`; there is: {LINUX_MINIMAL}")));
    }
    let failed = |error| CliError::part(format!("image {LINUX_MINIMAL} was not built"), error);
    let options = BuildOptions { runner, ..BuildOptions::usual(&config.data_dir).map_err(failed)? };
    let (line, begun) = (Line::start("building"), Instant::now());
    let image = build::linux_minimal(&options, store, &mut |step| line.say(step)).await.map_err(failed)?;
    line.done(&format!("built {LINUX_MINIMAL} in {}", span(begun.elapsed())));
    out::print(&format!("{}@{}\n", image.manifest.name, image.digest))?;
    Ok(DONE)
}

fn list(store: &ImageStore, json: bool, look: &Look) -> Result<u8, CliError> {
    let images = store.list().map_err(|error| CliError::part("the images cannot be listed", error))?;
    if json {
        let items = images.iter().map(Listed::of).collect();
        super::print_value(&Page { items, next: None })?;
    } else if images.is_empty() {
        out::print(&format!("No image yet: flyci image pull REFERENCE, or flyci image build {LINUX_MINIMAL}\n"))?;
    } else {
        let rows: Vec<Listed> = images.iter().map(Listed::of).collect();
        out::print(&render(&rows, Utc::now(), look))?;
    }
    Ok(DONE)
}

/// An image, as it is listed.
#[derive(Serialize)]
struct Listed {
    name: String,
    digest: String,
    os: &'static str,
    architecture: &'static str,
    size_bytes: u64,
    runner_version: Option<String>,
    created_at: String,
}

impl Listed {
    fn of(image: &Image) -> Self {
        let manifest = &image.manifest;
        Self {
            name: manifest.name.clone(),
            digest: image.digest.to_string(),
            os: match manifest.os {
                Os::Linux => "linux",
                Os::Macos => "macos",
            },
            architecture: manifest.architecture.name(),
            size_bytes: image.size(),
            runner_version: manifest.runner_version.clone(),
            created_at: manifest.created.clone(),
        }
    }
}

fn render(images: &[Listed], now: DateTime<Utc>, look: &Look) -> String {
    let mut table = Table::new([
        Column::left("NAME").shrinks_to(14),
        Column::left("DIGEST"),
        Column::left("FOR"),
        Column::right("SIZE"),
        Column::left("RUNNER").leaves_at(1),
        Column::right("BUILT"),
    ]);
    for image in images {
        table.row([
            image.name.as_str().into(),
            short(&image.digest).into(),
            format!("{} {}", image.os, image.architecture).into(),
            size(image.size_bytes).into(),
            image.runner_version.as_deref().unwrap_or("unknown").into(),
            image.created_at.parse().map_or_else(|_| String::new(), |created| ago(now, created)).into(),
        ]);
    }
    table.render(look)
}

/// Tells what was not done because of the images' directory.
fn failed_to(doing: &'static str) -> impl Fn(ImageError) -> CliError {
    move |error| CliError::part(doing, error)
}

fn find(store: &ImageStore, asked: &str) -> Result<Image, CliError> {
    store.find(asked).map_err(|error| CliError::Failed(chain(&error).to_string()))
}

async fn remove(store: &ImageStore, asked: &str, config: &Config) -> Result<u8, CliError> {
    let image = find(store, asked)?;
    let in_use = in_use(config).await?;
    store.remove(&image.digest, &in_use).map_err(|error| CliError::part("the image was not removed", error))?;
    out::print(&format!("Removed {}@{}, {}.\n", image.manifest.name, image.digest, size(image.size())))?;
    Ok(DONE)
}

/// The images of vms that exist. Without a daemon there may be vms all the same, but none that needs its image
/// again: their disks keep it open, and the next daemon destroys or adopts them.
async fn in_use(config: &Config) -> Result<HashSet<Digest>, CliError> {
    let admin = Admin::new(config.admin.socket.clone());
    let query = |after, wanted: u32| VmsQuery { all: false, limit: Some(wanted.min(PAGE)), after };
    match admin.list::<Vm, _>("/vms", MAX_VMS, query).await {
        Ok(page) => Ok(page.items.iter().filter_map(|vm| vm.image.parse().ok()).collect()),
        Err(CliError::NotRunning { .. }) => Ok(HashSet::new()),
        Err(error) => Err(error),
    }
}

fn verify(store: &ImageStore, asked: &str) -> Result<u8, CliError> {
    let image = find(store, asked)?;
    let line = Line::start(&format!("reading {}", plural(image.size().div_ceil(1_000_000), "megabyte")));
    match store.verify(&image.digest) {
        Ok(image) => {
            line.done("every file is what the digest says");
            out::print(&format!("{}@{} is intact.\n", image.manifest.name, image.digest))?;
            Ok(DONE)
        }
        Err(error) => {
            drop(line);
            out::complain(&chain(&error).to_string());
            Ok(FAILED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::out::tests::look;
    use super::super::samples;
    use super::*;

    #[test]
    fn the_list_shows_what_is_known_of_the_runner() {
        let image = |runner_version: Option<&str>| Listed {
            name: LINUX_MINIMAL.into(),
            digest: "sha256:923c98d3aabbccddeeff00112233445566778899aabbccddeeff001122334455".into(),
            os: "linux",
            architecture: "x86_64",
            size_bytes: 48_210_000,
            runner_version: runner_version.map(Into::into),
            created_at: samples::before(7_200.0).to_rfc3339(),
        };
        insta::assert_snapshot!("images_80", render(&[image(Some("2.336.0")), image(None)], samples::now(), &look(80)));
    }
}
