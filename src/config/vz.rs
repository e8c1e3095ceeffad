//! `[host.vz]`: how the VMs of a Mac are run.

use super::setting::choices;
use super::table::Table;
use crate::domain::reason::words;
use serde::Serialize;

words! {
    /// Who starts the processes of vms.
    Spawn {
        /// launchd, in the graphical session of the daemon's user: macOS guests from version 15 on need it.
        Launchd = "launchd",
        /// The daemon itself: for development, from a terminal of that session.
        Fork = "fork",
    }
}

choices!(Spawn);

/// `[host.vz]`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Vz {
    /// Who starts the processes of vms.
    pub spawn: Spawn,
    /// Whether a graphical session that was lost is brought back.
    pub restore_session: bool,
}

impl Vz {
    pub(super) fn read(mut table: Table<'_>) -> Self {
        let vz = Self { spawn: table.or("spawn", Spawn::Launchd), restore_session: table.or("restore_session", false) };
        table.finish();
        vz
    }
}
