//! The devices of a machine: disk, network card, guest channel, console, display, keyboard, sound, entropy.
//!
//! There is no clipboard, no shared directory and no memory balloon: nothing leads from one job's guest to the host
//! but the guest channel and the network.

use super::{Parts, failure, file_url};
use crate::hypervisor::vz::fault::{Fault, FaultReason};
use crate::hypervisor::vz::recipe::Recipe;
use crate::images::Os;
use objc2::AnyThread;
use objc2::rc::Retained;
use objc2_foundation::{NSArray, NSString};
use objc2_virtualization::{
    VZDiskImageCachingMode, VZDiskImageStorageDeviceAttachment, VZDiskImageSynchronizationMode, VZMACAddress,
    VZMacGraphicsDeviceConfiguration, VZMacGraphicsDisplayConfiguration, VZMacKeyboardConfiguration,
    VZMacTrackpadConfiguration, VZNATNetworkDeviceAttachment, VZVirtioBlockDeviceConfiguration,
    VZVirtioConsoleDeviceConfiguration, VZVirtioConsolePortConfiguration, VZVirtioEntropyDeviceConfiguration,
    VZVirtioNetworkDeviceConfiguration, VZVirtioSocketDeviceConfiguration, VZVirtioSoundDeviceConfiguration,
    VZVirtioSoundDeviceOutputStreamConfiguration,
};

/// The port whose presence tells the agent of Tart's images that it runs in a machine of its kind. It ends itself
/// where there is none of major version 2 or later.
const CONSOLE_PORT: &str = "tart-version-2.35.0";

/// Density of the display, in pixels per inch: that of a display without Retina.
const PIXELS_PER_INCH: isize = 80;

/// Gives the configuration all devices of the recipe.
pub(super) fn add(parts: &Parts, recipe: &Recipe) -> Result<(), Fault> {
    let disk = disk(recipe)?;
    let network = network(recipe)?;
    // SAFETY: Plain properties of a configuration that no machine uses yet; each array holds what the property's
    // type asks for, by `into_super`.
    unsafe {
        parts.setStorageDevices(&NSArray::from_retained_slice(&[disk.into_super()]));
        parts.setNetworkDevices(&NSArray::from_retained_slice(&[network.into_super()]));
        parts.setSocketDevices(&NSArray::from_retained_slice(&[VZVirtioSocketDeviceConfiguration::new().into_super()]));
        parts.setConsoleDevices(&NSArray::from_retained_slice(&[console().into_super()]));
    }
    if recipe.os == Os::Macos {
        add_seat(parts, recipe);
    }
    if !recipe.suspendable {
        add_what_cannot_be_saved(parts, recipe.os);
    }
    Ok(())
}

/// The disk is a clone that nobody needs after its job: the Mac's cache serves it, and a flush of the guest reaches
/// no device. With the framework's own choice of caching, file systems of macOS guests were seen to break under load.
fn disk(recipe: &Recipe) -> Result<Retained<VZVirtioBlockDeviceConfiguration>, Fault> {
    let url = file_url(&recipe.disk)?;
    // SAFETY: The URL is of a file; the attachment is kept by the device that is returned.
    unsafe {
        let attachment =
            VZDiskImageStorageDeviceAttachment::initWithURL_readOnly_cachingMode_synchronizationMode_error(
                VZDiskImageStorageDeviceAttachment::alloc(),
                &url,
                false,
                VZDiskImageCachingMode::Cached,
                VZDiskImageSynchronizationMode::None,
            )
            .map_err(|error| failure::fault(&error))?;
        Ok(VZVirtioBlockDeviceConfiguration::initWithAttachment(VZVirtioBlockDeviceConfiguration::alloc(), &attachment))
    }
}

fn network(recipe: &Recipe) -> Result<Retained<VZVirtioNetworkDeviceConfiguration>, Fault> {
    let address = NSString::from_str(&recipe.mac_address);
    // SAFETY: Constructors and plain properties of objects that are ours alone.
    unsafe {
        let address = VZMACAddress::initWithString(VZMACAddress::alloc(), &address).ok_or_else(|| {
            Fault::new(FaultReason::Unfit, format!("{:?} in the vm's recipe is no MAC address", recipe.mac_address))
        })?;
        let card = VZVirtioNetworkDeviceConfiguration::new();
        card.setMACAddress(&address);
        card.setAttachment(Some(&nat()));
        Ok(card)
    }
}

/// macOS's own network for VMs, behind its address translation; guests do not see each other.
pub(super) fn nat() -> Retained<VZNATNetworkDeviceAttachment> {
    // SAFETY: A constructor without arguments.
    unsafe { VZNATNetworkDeviceAttachment::new() }
}

/// A port that only has a name: nothing is attached to it.
fn console() -> Retained<VZVirtioConsoleDeviceConfiguration> {
    // SAFETY: Constructors and plain properties of objects that are ours alone.
    unsafe {
        let port = VZVirtioConsolePortConfiguration::new();
        port.setName(Some(&NSString::from_str(CONSOLE_PORT)));
        let device = VZVirtioConsoleDeviceConfiguration::new();
        device.ports().setObject_atIndexedSubscript(Some(&port), 0);
        device
    }
}

/// Display, keyboard and trackpad: macOS does not start without a display, and a Mac's own keyboard and trackpad are
/// the ones with which a machine can be saved.
fn add_seat(parts: &Parts, recipe: &Recipe) {
    let (width, height) = recipe.display;
    // SAFETY: As in `add`. A `u32` fits into `isize`, which has 64 bits on every Mac that runs this.
    unsafe {
        let display = VZMacGraphicsDisplayConfiguration::initWithWidthInPixels_heightInPixels_pixelsPerInch(
            VZMacGraphicsDisplayConfiguration::alloc(),
            width as isize,
            height as isize,
            PIXELS_PER_INCH,
        );
        let graphics = VZMacGraphicsDeviceConfiguration::new();
        graphics.setDisplays(&NSArray::from_retained_slice(&[display]));
        parts.setGraphicsDevices(&NSArray::from_retained_slice(&[graphics.into_super()]));
        parts.setKeyboards(&NSArray::from_retained_slice(&[VZMacKeyboardConfiguration::new().into_super()]));
        parts.setPointingDevices(&NSArray::from_retained_slice(&[VZMacTrackpadConfiguration::new().into_super()]));
    }
}

/// Entropy; and for macOS a sound output that swallows what is played (simulators hang without one) and no input.
fn add_what_cannot_be_saved(parts: &Parts, os: Os) {
    // SAFETY: As in `add`. An output stream without a sink discards its sound.
    unsafe {
        parts.setEntropyDevices(&NSArray::from_retained_slice(&[
            VZVirtioEntropyDeviceConfiguration::new().into_super()
        ]));
        if os == Os::Macos {
            let output = VZVirtioSoundDeviceOutputStreamConfiguration::new();
            let sound = VZVirtioSoundDeviceConfiguration::new();
            sound.setStreams(&NSArray::from_retained_slice(&[output.into_super()]));
            parts.setAudioDevices(&NSArray::from_retained_slice(&[sound.into_super()]));
        }
    }
}
