//! The states of a runner: GitHub's registration of one vm for one job.
//!
//! ```text
//! requested → minting → minted → delivering → online → busy → ended → removed
//! requested → void        minting → requested (a new name)
//! minted … busy → removing → removed        removing → busy (GitHub answered 422)
//! ```

use super::ids::FleetId;
use super::reason::words;

words! {
    /// The state of a runner.
    RunnerState {
        /// A ready vm wants one.
        Requested = "requested",
        /// A gateway is calling GitHub.
        Minting = "minting",
        /// GitHub made it; the JIT config is stored, sealed to its host.
        Minted = "minted",
        /// Its host is handing the JIT config to the guest.
        Delivering = "delivering",
        /// It was started in the guest.
        Online = "online",
        /// GitHub said that it runs a job.
        Busy = "busy",
        /// Its job or its vm ended; GitHub has not been asked to forget it yet.
        Ended = "ended",
        /// GitHub is being asked to forget it.
        Removing = "removing",
        /// GitHub does not know it (any more).
        Removed = "removed",
        /// Its demand went before GitHub was asked.
        Void = "void",
        /// Written by a later version: nothing of this version touches it.
        Unknown = "unknown",
    }
}

/// What every runner's name of a fleet begins with. GitHub takes 64 characters; the rest are 128 random bits.
#[must_use]
pub fn name_prefix(fleet: FleetId) -> String {
    let fleet = fleet.0.simple().to_string();
    format!("flyci-{}-", &fleet[..12])
}

impl RunnerState {
    /// The state with this spelling; [`RunnerState::Unknown`] if this version does not know it.
    #[must_use]
    pub fn decode(text: &str) -> Self {
        Self::parse(text).unwrap_or(Self::Unknown)
    }

    /// True when GitHub may know a registration of it.
    #[must_use]
    pub const fn may_be_registered(self) -> bool {
        matches!(
            self,
            Self::Minting | Self::Minted | Self::Delivering | Self::Online | Self::Busy | Self::Ended | Self::Removing
        )
    }
}
