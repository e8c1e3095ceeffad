//! How many CPUs and how much memory a guest is given of what is asked for: what its image needs at least, and what
//! the framework allows on this Mac at all. Pure.

use crate::domain::units::Bytes;
use crate::images::Os;
use std::ops::RangeInclusive;

/// A macOS guest of fewer CPUs freezes now and then.
pub const MACOS_CPUS: u32 = 4;

/// The framework takes whole mebibytes.
const MEBIBYTE: u64 = 1 << 20;

/// CPUs for a guest: what is asked for, at least what the image needs, and within what the Mac allows.
#[must_use]
pub fn cpus(asked: u32, image_needs: u32, allowed: &RangeInclusive<u32>) -> u32 {
    asked.max(image_needs).clamp(*allowed.start(), *allowed.end())
}

/// Memory for a guest, likewise, in whole mebibytes.
#[must_use]
pub fn memory(asked: Bytes, image_needs: Bytes, allowed: &RangeInclusive<u64>) -> Bytes {
    let held = asked.0.max(image_needs.0).clamp(*allowed.start(), *allowed.end());
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
    fn a_guest_is_given_what_is_asked_within_what_its_image_needs_and_the_mac_allows() {
        assert_eq!(cpus(4, 2, &(1..=8)), 4);
        assert_eq!(cpus(1, 2, &(1..=8)), 2);
        assert_eq!(cpus(12, 2, &(1..=8)), 8);
        assert_eq!(cpus(4, 12, &(1..=8)), 8);
        let allowed = 128 * MEBIBYTE..=14 * GIBIBYTE;
        assert_eq!(memory(Bytes(7 * GIBIBYTE), Bytes(4 * GIBIBYTE), &allowed), Bytes(7 * GIBIBYTE));
        assert_eq!(memory(Bytes(GIBIBYTE), Bytes(4 * GIBIBYTE), &allowed), Bytes(4 * GIBIBYTE));
        assert_eq!(memory(Bytes(64 * GIBIBYTE), Bytes(0), &allowed), Bytes(14 * GIBIBYTE));
    }

    #[test]
    fn memory_comes_in_whole_mebibytes() {
        let asked = Bytes(7 * 1_000_000_000);
        let held = memory(asked, Bytes(0), &(MEBIBYTE..=64 * GIBIBYTE));
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
