//! What kind of computer the machine is, and how it boots: a Mac by Apple's loader, a PC for Linux by EFI.

use super::{Parts, failure, file_url};
use crate::hypervisor::vz::fault::{Fault, FaultReason};
use crate::hypervisor::vz::recipe::Recipe;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use objc2::AnyThread;
use objc2::rc::Retained;
use objc2_foundation::NSData;
use objc2_virtualization::{
    VZEFIBootLoader, VZEFIVariableStore, VZEFIVariableStoreInitializationOptions, VZGenericPlatformConfiguration,
    VZMacAuxiliaryStorage, VZMacHardwareModel, VZMacMachineIdentifier, VZMacOSBootLoader, VZMacPlatformConfiguration,
};

/// A Mac: hardware model of the image, an identifier of its own, its auxiliary storage.
pub(super) fn set_mac(parts: &Parts, recipe: &Recipe) -> Result<(), Fault> {
    let model = hardware_model(recipe)?;
    let identifier = machine_identifier(recipe)?;
    let nvram = file_url(&recipe.nvram)?;
    // SAFETY: Constructors and plain properties of objects that are ours alone; the URL is of a file.
    unsafe {
        let storage = VZMacAuxiliaryStorage::initWithURL(VZMacAuxiliaryStorage::alloc(), &nvram);
        let platform = VZMacPlatformConfiguration::new();
        platform.setHardwareModel(&model);
        platform.setMachineIdentifier(&identifier);
        platform.setAuxiliaryStorage(Some(&storage));
        parts.setPlatform(&platform);
        parts.setBootLoader(Some(&VZMacOSBootLoader::new()));
    }
    Ok(())
}

fn hardware_model(recipe: &Recipe) -> Result<Retained<VZMacHardwareModel>, Fault> {
    let data = decoded("hardware_model", recipe.hardware_model.as_deref())?;
    // SAFETY: The framework checks the data, and answers none when it is not of this kind.
    unsafe {
        let model = VZMacHardwareModel::initWithDataRepresentation(VZMacHardwareModel::alloc(), &data)
            .ok_or_else(|| unreadable("hardware_model"))?;
        if !model.isSupported() {
            let detail = "the image's hardware model needs a newer macOS on this Mac";
            return Err(Fault::new(FaultReason::Unfit, detail));
        }
        Ok(model)
    }
}

fn machine_identifier(recipe: &Recipe) -> Result<Retained<VZMacMachineIdentifier>, Fault> {
    let data = decoded("machine_identifier", recipe.machine_identifier.as_deref())?;
    // SAFETY: The framework checks the data, and answers none when it is not of this kind.
    unsafe { VZMacMachineIdentifier::initWithDataRepresentation(VZMacMachineIdentifier::alloc(), &data) }
        .ok_or_else(|| unreadable("machine_identifier"))
}

/// A fresh machine identifier that the framework itself made, as [`Recipe::machine_identifier`] holds it.
#[must_use]
pub fn fresh_machine_identifier() -> String {
    // SAFETY: A constructor without arguments, and its only property.
    STANDARD.encode(unsafe { VZMacMachineIdentifier::new().dataRepresentation() }.to_vec())
}

/// A PC with EFI. Its identifier is the framework's own choice, a fresh one for each machine.
pub(super) fn set_generic(parts: &Parts, recipe: &Recipe) -> Result<(), Fault> {
    let loader = boot_by_efi(recipe)?;
    // SAFETY: Plain properties of a configuration that no machine uses yet.
    unsafe {
        parts.setPlatform(&VZGenericPlatformConfiguration::new());
        parts.setBootLoader(Some(&loader));
    }
    Ok(())
}

/// EFI with the clone's variables; an image need not bring any.
fn boot_by_efi(recipe: &Recipe) -> Result<Retained<VZEFIBootLoader>, Fault> {
    let url = file_url(&recipe.nvram)?;
    let there = recipe.nvram.try_exists().map_err(|error| {
        Fault::new(
            FaultReason::Internal,
            format!("cannot look for the EFI variables at {}: {error}", recipe.nvram.display()),
        )
    })?;
    // SAFETY: The URL is of a file, which is opened where it is there, else made.
    unsafe {
        let store = if there {
            VZEFIVariableStore::initWithURL(VZEFIVariableStore::alloc(), &url)
        } else {
            VZEFIVariableStore::initCreatingVariableStoreAtURL_options_error(
                VZEFIVariableStore::alloc(),
                &url,
                VZEFIVariableStoreInitializationOptions::empty(),
            )
            .map_err(|error| failure::fault(&error))?
        };
        let loader = VZEFIBootLoader::new();
        loader.setVariableStore(Some(&store));
        Ok(loader)
    }
}

fn decoded(name: &str, value: Option<&str>) -> Result<Retained<NSData>, Fault> {
    let value = value.ok_or_else(|| {
        Fault::new(FaultReason::Unfit, format!("the vm's recipe has no {name}, which a macOS guest needs"))
    })?;
    STANDARD.decode(value).map(|data| NSData::with_bytes(&data)).map_err(|_| unreadable(name))
}

fn unreadable(name: &str) -> Fault {
    Fault::new(FaultReason::Unfit, format!("{name} in the vm's recipe cannot be read"))
}
