//! What a machine complains of: a closed list, each with what to do. The framework's codes are translated here
//! once, and nowhere else.

use serde::{Deserialize, Serialize};

/// Why a machine could not do what was asked, or ended by itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{}: {detail}", .reason.advice())]
pub struct Fault {
    /// Which of the known ones it is.
    pub reason: FaultReason,
    /// What the framework said of it: domain, code and text.
    pub detail: String,
}

/// The known faults of a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultReason {
    /// The platform runs as many VMs as it may, or one that it still counts is gone.
    LimitExceeded,
    /// No graphical session, or its keychain is locked: a macOS 15 guest cannot make its host key.
    SessionLost,
    /// Another process holds the auxiliary storage.
    StorageLocked,
    /// The volume is full.
    OutOfSpace,
    /// The disk cannot be used.
    DiskBroken,
    /// The configuration is not one that this Mac can run, or the program lacks its entitlement.
    Unfit,
    /// The network of the machine failed.
    Network,
    /// A saved machine does not fit this one.
    StateMismatch,
    /// The machine was not in a state in which it could do that.
    WrongState,
    /// Anything else.
    Internal,
}

impl FaultReason {
    /// What happened and what to do about it, for an operator.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            Self::LimitExceeded => "no room for another VM on this Mac; look for stray VMs, or reboot it when empty",
            Self::SessionLost => "no logged-in graphical session, or its keychain is locked; log the service's user in",
            Self::StorageLocked => "another process holds this VM's auxiliary storage; end the VM that was left over",
            Self::OutOfSpace => "the volume of the data directory is full; remove images, or free space",
            Self::DiskBroken => "the disk image cannot be used; remove the image, then pull it again",
            Self::Unfit => "this Mac cannot run such a VM; check the image's macOS version and `flyci doctor`",
            Self::Network => "the VM's network failed",
            Self::StateMismatch => "the saved VM does not fit; it is booted afresh",
            Self::WrongState => "the VM was not in a state for that",
            Self::Internal => "Virtualization.framework failed; `flyci doctor` looks for known causes",
        }
    }
}
