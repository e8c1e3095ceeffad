//! `flyci image …`, as it is typed.

use super::super::args::ListArgs;
use crate::domain::units::Span;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `flyci image …`
#[derive(Subcommand, Debug)]
pub enum ImageCommand {
    /// Fetch a macOS image of Tart's format from a registry
    #[command(
        after_help = "An interrupted pull is taken up where it broke off. Hosts pull what their profiles name by \
                            themselves; by hand an image can come earlier. A tag that is pinned in the fleet means the \
                            image that it is pinned to: `flyci image update` moves it."
    )]
    Pull {
        /// HOST/REPOSITORY:TAG or HOST/REPOSITORY@sha256:…
        reference: String,
    },
    /// Let a tag stand for the image that it names in its registry now: on one host first, then on all
    #[command(
        after_help = "The canary fetches the new image beside the old one, boots it to ready, and runs jobs in it. \
                            When enough of them succeeded every host takes it; when its vms do not come up the canary \
                            goes back. `flyci image pins` shows how far it is, `flyci image rollback` ends it."
    )]
    Update(UpdateArgs),
    /// Let a tag stand for the image before again, in the whole fleet; an update under way is given up
    Rollback {
        /// HOST/REPOSITORY:TAG
        reference: String,
    },
    /// Show what tags stand for, and updates under way
    Pins(ListArgs),
    /// Bring an image of this host to a registry, in Tart's format
    Push {
        /// Its name, its digest, or enough of its beginning.
        image: String,
        /// HOST/REPOSITORY:TAG
        reference: String,
    },
    /// Take a vm of Tart's (~/.tart/vms/NAME), or an image's directory, from this machine
    Import {
        /// Its directory.
        path: PathBuf,
        /// The image's name here [default: that of the directory]
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Build an image out of packages of this system
    Build {
        /// Which: `linux-minimal`
        name: String,
        /// An unpacked runner to put into it (it has a run.sh)
        #[arg(long, value_name = "DIR")]
        runner: Option<PathBuf>,
    },
    /// List the images of this host
    List(ListArgs),
    /// Remove an image that no vm uses
    Remove {
        /// Its digest, or enough of its beginning.
        digest: String,
    },
    /// Remove images that no vm and no profile uses, and what interrupted pulls left
    Prune {
        /// Keep those that were used within this time [default: images.keep]
        #[arg(long, value_name = "TIME")]
        older_than: Option<Span>,
        /// Say what would go, and remove nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Read an image whole and compare it with its digest
    Verify {
        /// Its digest, or enough of its beginning.
        digest: String,
    },
}

/// `flyci image update`.
#[derive(Args, Debug)]
pub struct UpdateArgs {
    /// HOST/REPOSITORY:TAG
    pub reference: String,
    /// The host that tries it first [default: one that takes work and has few vms]
    #[arg(long, value_name = "HOST")]
    pub canary: Option<String>,
    /// Jobs that are to succeed there before every host takes it [default: 3]
    #[arg(long, value_name = "N")]
    pub jobs: Option<u32>,
}
