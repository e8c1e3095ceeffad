//! What one machine is made of: written into the vm's directory before its process starts, and read by the
//! process alone. It holds no secret.

use crate::domain::units::Bytes;
use crate::images::Os;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The recipe's file in a vm's directory.
pub const RECIPE_FILE: &str = "recipe.json";

/// The recipe's format that this version writes, and the only one that it reads.
pub const FORMAT: u32 = 1;

/// What one machine is made of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// [`FORMAT`].
    pub format: u32,
    /// The guest's system: macOS guests boot by Apple's loader, Linux guests by EFI.
    pub os: Os,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: Bytes,
    /// The clone's disk: a raw image.
    pub disk: PathBuf,
    /// The clone's auxiliary storage (macOS) or EFI variable store (Linux).
    pub nvram: PathBuf,
    /// `VZMacHardwareModel.dataRepresentation`, in base64; macOS guests only.
    pub hardware_model: Option<String>,
    /// `VZMacMachineIdentifier.dataRepresentation`, in base64: fresh for each clone; macOS guests only.
    pub machine_identifier: Option<String>,
    /// The network card's address, stable per host and slot: an address per clone would fill the DHCP range.
    pub mac_address: String,
    /// The display's width and height, in pixels.
    pub display: (u32, u32),
    /// Whether its memory may be saved and restored. Such a machine has no sound and no source of entropy, which the
    /// framework cannot save (`validateSaveRestoreSupportWithError`).
    #[serde(default)]
    pub suspendable: bool,
    /// The agent's port in the guest.
    pub agent_port: u32,
}
