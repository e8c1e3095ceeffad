//! Machines and rows of this host are compared.
//!
//! An *orphan* is a VM on this machine, of this fleet, whose row says that it is gone, or that has no row
//! at all: a daemon died between the end of the row and the end of the machine, or the row was never
//! committed. It is destroyed. A live row without a driver gets one.
//!
//! Does not: touch a VM of a live row, whatever its state.

use crate::domain::ids::VmId;
use crate::domain::vm::VmState;
use crate::hypervisor::HypervisorError;
use crate::lifecycle::Drivers;
use crate::points::effect;
use crate::store::{StoreError, vms};
use std::collections::HashMap;

/// What one pass did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SweepReport {
    /// Live rows.
    pub live: usize,
    /// Orphans destroyed.
    pub destroyed: usize,
    /// Orphans that could not be destroyed: tried again at the next pass.
    pub failed: usize,
    /// There are more VMs that nobody knows than ones that somebody does: nothing was touched.
    pub strange_world: bool,
}

/// Why a pass could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The database is away.
    #[error("the vms' rows could not be read")]
    Store(#[from] StoreError),
    /// The machine could not tell what is on it.
    #[error("the machine's VMs could not be listed")]
    Hypervisor(#[from] HypervisorError),
}

/// One round.
///
/// # Errors
/// When the database or the machine does not answer.
pub async fn pass(drivers: &Drivers) -> Result<SweepReport, SweepError> {
    let machine = drivers.machine();
    // The machine first: a vm that is planned after this look has a row that is read below.
    let there = machine.hypervisor.list().await?;
    let mut report = SweepReport { live: drivers.adopt().await?, ..SweepReport::default() };
    let ids: Vec<uuid::Uuid> = there.iter().map(|vm| vm.0).collect();
    let rows: HashMap<VmId, VmState> = vms::known(&machine.pool, machine.fence.host, &ids).await?.into_iter().collect();
    let unknown = there.iter().filter(|vm| !rows.contains_key(vm)).count();
    if unknown > there.len() - unknown && unknown > 1 {
        tracing::error!(
            unknown,
            known = there.len() - unknown,
            "more VMs on this machine are unknown to the database than known: is it the right database? None is touched; destroy them by hand, or point flyci at their database"
        );
        report.strange_world = true;
        return Ok(report);
    }
    for vm in there {
        let orphan = matches!(rows.get(&vm), None | Some(VmState::Gone(_)));
        if !orphan {
            continue;
        }
        match effect!("upkeep.destroy_orphan", machine.hypervisor.destroy(vm).await) {
            Ok(()) => {
                tracing::warn!(vm.id = %vm, "a VM without an owner was destroyed");
                report.destroyed += 1;
            }
            Err(error) => {
                tracing::warn!(vm.id = %vm, error = %crate::errors::chain(&error), "a VM without an owner could not be destroyed");
                report.failed += 1;
            }
        }
    }
    Ok(report)
}
