//! Which vms fit on a host: slots, memory and virtual CPUs, less what is kept for the host itself.

use super::units::Bytes;

/// What a host has to give.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capacity {
    /// Vms at once.
    pub slots: u32,
    /// Memory of the machine.
    pub memory: Bytes,
    /// CPUs of the machine.
    pub cpus: u32,
    /// Memory kept for the host itself.
    pub reserve_memory: Bytes,
    /// CPUs kept for the host itself.
    pub reserve_cpus: u32,
    /// Virtual CPUs that one CPU may carry.
    pub cpu_overcommit: f64,
}

/// What one vm takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Memory.
    pub memory: Bytes,
    /// Virtual CPUs.
    pub cpus: u32,
}

/// Why a vm does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Every slot is taken.
    Slots,
    /// Not enough memory is left.
    Memory,
    /// Not enough CPUs are left.
    Cpus,
}

impl Capacity {
    /// Whether a vm with `need` fits beside those that `taken` tells of.
    ///
    /// # Errors
    /// The first thing there is too little of.
    pub fn admit(&self, taken: &[Need], need: Need) -> Result<(), Refusal> {
        if taken.len() >= self.slots as usize {
            return Err(Refusal::Slots);
        }
        let memory: u64 = taken.iter().map(|vm| vm.memory.0).sum();
        let for_vms = self.memory.0.saturating_sub(self.reserve_memory.0);
        if memory.saturating_add(need.memory.0) > for_vms {
            return Err(Refusal::Memory);
        }
        let cpus: u32 = taken.iter().map(|vm| vm.cpus).sum();
        let for_vms = f64::from(self.cpus.saturating_sub(self.reserve_cpus)) * self.cpu_overcommit;
        if f64::from(cpus.saturating_add(need.cpus)) > for_vms {
            return Err(Refusal::Cpus);
        }
        Ok(())
    }

    /// Whether a vm with `need` fits on the empty host: if not, it can never run here.
    ///
    /// # Errors
    /// The first thing there is too little of.
    pub fn could_ever_admit(&self, need: Need) -> Result<(), Refusal> {
        self.admit(&[], need)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mini(memory_gb: u64, cpus: u32) -> Capacity {
        Capacity {
            slots: 2,
            memory: Bytes(memory_gb * 1_000_000_000),
            cpus,
            reserve_memory: Bytes(4_000_000_000),
            reserve_cpus: 0,
            cpu_overcommit: 1.0,
        }
    }

    fn need(memory_gb: u64, cpus: u32) -> Need {
        Need { memory: Bytes(memory_gb * 1_000_000_000), cpus }
    }

    #[test]
    fn a_16_gb_mini_carries_a_large_and_a_small_vm() {
        let host = mini(16, 10);
        assert_eq!(host.admit(&[], need(7, 4)), Ok(()));
        assert_eq!(host.admit(&[need(7, 4)], need(7, 4)), Err(Refusal::Memory));
        assert_eq!(host.admit(&[need(7, 4)], need(5, 4)), Ok(()));
        assert_eq!(host.admit(&[need(7, 4), need(5, 4)], need(1, 1)), Err(Refusal::Slots));
    }

    #[test]
    fn cpus_may_be_shared_only_if_the_operator_says_so() {
        let mut host = mini(64, 8);
        assert_eq!(host.admit(&[need(7, 8)], need(7, 4)), Err(Refusal::Cpus));
        host.cpu_overcommit = 1.5;
        assert_eq!(host.admit(&[need(7, 8)], need(7, 4)), Ok(()));
    }

    #[test]
    fn what_never_fits_is_known_beforehand() {
        assert_eq!(mini(8, 8).could_ever_admit(need(7, 4)), Err(Refusal::Memory));
    }
}
