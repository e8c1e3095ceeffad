//! Which vms fit on a host: slots, memory and virtual CPUs, less what is kept for the host itself.

use super::units::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A version of macOS: `14.2.0`, or shorter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MacosVersion(pub u32, pub u32, pub u32);

impl MacosVersion {
    /// The version of one to three numbers, the first of which is not zero.
    #[must_use]
    pub const fn of_parts(parts: &[u32]) -> Option<Self> {
        match *parts {
            [major] if major > 0 => Some(Self(major, 0, 0)),
            [major, minor] if major > 0 => Some(Self(major, minor, 0)),
            [major, minor, patch] if major > 0 => Some(Self(major, minor, patch)),
            _ => None,
        }
    }
}

impl fmt::Display for MacosVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)?;
        if self.2 > 0 { write!(f, ".{}", self.2) } else { Ok(()) }
    }
}

/// The text is no version of macOS.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is no version of macOS, like `14.2`")]
pub struct ParseMacosVersionError(String);

impl FromStr for MacosVersion {
    type Err = ParseMacosVersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Option<Vec<u32>> = text.trim().split('.').map(|part| part.parse().ok()).collect();
        parts.and_then(|parts| Self::of_parts(&parts)).ok_or_else(|| ParseMacosVersionError(text.to_owned()))
    }
}

impl Serialize for MacosVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacosVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

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
    /// The macOS that the machine runs, if it does.
    pub macos: Option<MacosVersion>,
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
    /// The image needs a later macOS, or a Mac at all.
    Macos,
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

    /// Whether the machine boots an image that needs this macOS or a later one; none: any machine does.
    ///
    /// # Errors
    /// [`Refusal::Macos`].
    pub fn can_boot(&self, minimum: Option<MacosVersion>) -> Result<(), Refusal> {
        match (minimum, self.macos) {
            (None, _) => Ok(()),
            (Some(minimum), Some(runs)) if runs >= minimum => Ok(()),
            (Some(_), _) => Err(Refusal::Macos),
        }
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
            macos: Some(MacosVersion(15, 2, 0)),
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
    fn an_image_of_a_later_macos_is_not_booted() {
        let version = |text: &str| Some(text.parse().expect("a version"));
        let mac = mini(16, 8);
        for (minimum, outcome) in [
            (None, Ok(())),
            (version("13"), Ok(())),
            (version("15.2"), Ok(())),
            (version("15.2.1"), Err(Refusal::Macos)),
            (version("26.0.0"), Err(Refusal::Macos)),
        ] {
            assert_eq!(mac.can_boot(minimum), outcome, "{minimum:?}");
        }
        let linux = Capacity { macos: None, ..mac };
        assert_eq!((linux.can_boot(version("13")), linux.can_boot(None)), (Err(Refusal::Macos), Ok(())));
    }

    #[test]
    fn versions_of_macos_are_read_and_written() {
        for (text, written) in [("14", "14.0"), ("14.2", "14.2"), ("14.2.0", "14.2"), ("15.6.1", "15.6.1")] {
            assert_eq!(text.parse::<MacosVersion>().map(|version| version.to_string()), Ok(written.to_owned()));
        }
        for text in ["", "0", "fourteen", "1.2.3.4", "14."] {
            assert!(text.parse::<MacosVersion>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_never_fits_is_known_beforehand() {
        assert_eq!(mini(8, 8).could_ever_admit(need(7, 4)), Err(Refusal::Memory));
    }
}
