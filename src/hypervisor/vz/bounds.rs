//! How many CPUs and how much memory a machine is given of what its recipe asks for: what the framework allows on
//! this Mac. What its image needs at least, whoever wrote the recipe knew. Pure.

use crate::domain::units::Bytes;
use crate::images::Os;
use std::ops::RangeInclusive;

/// A macOS guest of fewer CPUs freezes now and then.
pub const MACOS_CPUS: u32 = 4;

/// The framework takes whole mebibytes.
const MEBIBYTE: u64 = 1 << 20;

/// CPUs for a machine: what is asked for, within what the Mac allows.
#[must_use]
pub fn cpus(asked: u32, allowed: &RangeInclusive<u32>) -> u32 {
    asked.clamp(*allowed.start(), *allowed.end())
}

/// Memory for a machine, likewise, in whole mebibytes.
#[must_use]
pub fn memory(asked: Bytes, allowed: &RangeInclusive<u64>) -> Bytes {
    let held = asked.0.clamp(*allowed.start(), *allowed.end());
    Bytes(held / MEBIBYTE * MEBIBYTE)
}

/// What an operator should know of a guest with so many CPUs, if anything.
#[must_use]
pub fn warning(os: Os, cpus: u32) -> Option<String> {
    let few = os == Os::Macos && cpus < MACOS_CPUS;
    few.then(|| format!("a macOS guest with {cpus} CPUs may freeze: give its profile {MACOS_CPUS} or more"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIBIBYTE: u64 = 1 << 30;

    #[test]
    fn a_machine_is_given_what_is_asked_within_what_the_mac_allows() {
        let given = [1, 4, 12].map(|asked| cpus(asked, &(2..=8)));
        assert_eq!(given, [2, 4, 8]);
        let allowed = 128 * MEBIBYTE..=14 * GIBIBYTE;
        let given = [MEBIBYTE, 7 * GIBIBYTE, 64 * GIBIBYTE].map(|asked| memory(Bytes(asked), &allowed));
        assert_eq!(given, [128 * MEBIBYTE, 7 * GIBIBYTE, 14 * GIBIBYTE].map(Bytes));
    }

    #[test]
    fn memory_comes_in_whole_mebibytes() {
        let asked = Bytes(7 * 1_000_000_000);
        let held = memory(asked, &(MEBIBYTE..=64 * GIBIBYTE));
        assert_eq!(held.0 % MEBIBYTE, 0);
        assert!(held < asked && asked.0 - held.0 < MEBIBYTE);
    }

    #[test]
    fn a_macos_guest_of_few_cpus_is_warned_of() {
        assert!(warning(Os::Macos, 3).is_some_and(|text| text.contains("3 CPUs")));
        assert_eq!(warning(Os::Macos, 4), None);
        assert_eq!(warning(Os::Linux, 1), None);
    }
}
