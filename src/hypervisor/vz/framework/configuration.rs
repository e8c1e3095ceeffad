//! A recipe as the framework's configuration, checked by the framework.

use super::{Parts, devices, failure, platform};
use crate::hypervisor::vz::bounds;
use crate::hypervisor::vz::fault::Fault;
use crate::hypervisor::vz::recipe::Recipe;
use crate::images::Os;
use objc2::rc::Retained;
use objc2_virtualization::VZVirtualMachineConfiguration;
use std::ops::RangeInclusive;

/// The configuration of a recipe.
pub(super) fn of(recipe: &Recipe) -> Result<Retained<Parts>, Fault> {
    // SAFETY: A constructor without arguments.
    let parts = unsafe { VZVirtualMachineConfiguration::new() };
    match recipe.os {
        Os::Macos => platform::set_mac(&parts, recipe)?,
        Os::Linux => platform::set_generic(&parts, recipe)?,
    }
    set_size(&parts, recipe);
    devices::add(&parts, recipe)?;
    // SAFETY: The configuration is complete. Validation reads it, and the files that it names.
    unsafe { parts.validateWithError() }.map_err(|error| failure::fault(&error))?;
    Ok(parts)
}

/// CPUs and memory within what this Mac allows.
fn set_size(parts: &Parts, recipe: &Recipe) {
    let cpus = bounds::cpus(recipe.cpus, &allowed_cpus());
    let memory = bounds::memory(recipe.memory, &allowed_memory());
    if (cpus, memory) != (recipe.cpus, recipe.memory) {
        tracing::warn!(
            "asked for {} CPUs and {}, the machine is given {cpus} and {memory}: more or less this Mac does not allow",
            recipe.cpus,
            recipe.memory
        );
    }
    if let Some(warning) = bounds::warning(recipe.os, cpus) {
        tracing::warn!("{warning}");
    }
    // SAFETY: Plain properties; both values are within the framework's own bounds. 64 bits hold a `u32`.
    unsafe {
        parts.setCPUCount(cpus as usize);
        parts.setMemorySize(memory.0);
    }
}

fn allowed_cpus() -> RangeInclusive<u32> {
    // SAFETY: Class properties without requirements.
    let (least, most) = unsafe {
        (
            VZVirtualMachineConfiguration::minimumAllowedCPUCount(),
            VZVirtualMachineConfiguration::maximumAllowedCPUCount(),
        )
    };
    let most = u32::try_from(most).unwrap_or(u32::MAX);
    u32::try_from(least).unwrap_or(1).min(most)..=most
}

fn allowed_memory() -> RangeInclusive<u64> {
    // SAFETY: Class properties without requirements.
    let (least, most) = unsafe {
        (
            VZVirtualMachineConfiguration::minimumAllowedMemorySize(),
            VZVirtualMachineConfiguration::maximumAllowedMemorySize(),
        )
    };
    least.min(most)..=most
}
