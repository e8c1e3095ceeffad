//! Lets loops sleep until there may be something to do.
//!
//! A wake carries no data and may be lost or spurious: whoever wakes reads the tables and does what
//! they call for. Each loop also wakes by its period, so that a lost wake costs time and nothing else.

use crate::domain::ids::VmId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// The loops that wait for work, one waiter each.
#[derive(Default)]
pub struct Wakes {
    /// Demand or supply changed: `dispatch`.
    pub demand: Notify,
    /// A runner is requested: `mint`.
    pub mint: Notify,
    /// A registration is to be removed: `mint`.
    pub removal: Notify,
    /// A job or an installation is in doubt: `upkeep`.
    pub doubt: Notify,
    /// A tenant is to be forgotten: `upkeep`.
    pub erase: Notify,
    vms: Mutex<HashMap<VmId, Arc<Notify>>>,
}

impl Wakes {
    /// Wakes the driver of a vm, if it is of this process.
    pub fn vm(&self, id: VmId) {
        if let Some(notify) = self.lock().get(&id) {
            notify.notify_one();
        }
    }

    /// The wake of one vm's driver, until it is dropped.
    #[must_use]
    pub fn subscribe(self: &Arc<Self>, id: VmId) -> VmWake {
        let notify = Arc::clone(self.lock().entry(id).or_default());
        VmWake { id, notify, wakes: Arc::clone(self) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, Arc<Notify>>> {
        // The map is whole at any point: a panic elsewhere does not spoil it.
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One vm's wake.
pub struct VmWake {
    id: VmId,
    notify: Arc<Notify>,
    wakes: Arc<Wakes>,
}

impl VmWake {
    /// Resolves at the next wake, or after `period`.
    pub async fn wait(&self, period: Duration) {
        wait(&self.notify, period).await;
    }
}

impl Drop for VmWake {
    fn drop(&mut self) {
        self.wakes.lock().remove(&self.id);
    }
}

/// Resolves at the next wake, or after `period`.
pub async fn wait(notify: &Notify, period: Duration) {
    // An elapsed period is as good a reason to look as a wake.
    let _ = tokio::time::timeout(period, notify.notified()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_wake_before_the_wait_is_not_lost() {
        let wakes = Arc::new(Wakes::default());
        let id = VmId::random();
        let wake = wakes.subscribe(id);
        wakes.vm(id);
        wake.wait(LONG).await;
        drop(wake);
        wakes.vm(id);
        assert!(wakes.lock().is_empty());
    }
}
