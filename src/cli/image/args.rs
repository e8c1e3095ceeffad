//! `flyci image …`, as it is typed.

use super::super::args::ListArgs;
use crate::domain::units::Span;
use clap::Subcommand;
use std::path::PathBuf;

/// `flyci image …`
#[derive(Subcommand, Debug)]
pub enum ImageCommand {
    /// Fetch a macOS image of Tart's format from a registry
    #[command(after_help = "An interrupted pull is taken up where it broke off. A tag stands for the image that it \
                            names now, on this host, until it is pulled again or rolled back.")]
    Pull {
        /// HOST/REPOSITORY:TAG or HOST/REPOSITORY@sha256:…
        reference: String,
    },
    /// Let a tag stand for the image that it stood for before, on this host
    Rollback {
        /// HOST/REPOSITORY:TAG
        reference: String,
    },
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
