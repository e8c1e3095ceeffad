//! What makes a clone another machine than its image and its neighbours: the address of its network card, and
//! the identifier of its Mac. Pure; chance is an argument.

use crate::domain::ids::HostId;
use sha2::{Digest, Sha256};

/// Keeps these hashes apart from any other use of the same ids.
const CONTEXT: &[u8] = b"flyci mac address v1";

/// The network card's address of the VM in a slot, as the framework reads it (`02:0a:…`).
///
/// One per host and slot: the image's own address would give two VMs one DHCP lease, and an address per clone would
/// exhaust the range of leases in a day. It is a locally administered unicast address (IEEE 802, bits 0 and 1 of the
/// first octet).
#[must_use]
pub fn mac_address(host: HostId, slot: u16) -> String {
    let mut hash = Sha256::new();
    hash.update(CONTEXT);
    hash.update(host.0.as_bytes());
    hash.update(slot.to_be_bytes());
    let hash = hash.finalize();
    let first = (hash[0] & 0b1111_1100) | 0b0000_0010;
    format!("{first:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", hash[1], hash[2], hash[3], hash[4], hash[5])
}

/// A Mac's identifier as `VZMacMachineIdentifier.dataRepresentation` holds it: a binary property list with one
/// key, `ECID`. Two VMs that run at once must not share one, so each clone is given a fresh one out of `chance`.
#[must_use]
pub fn machine_identifier(chance: u64) -> Vec<u8> {
    // A 64-bit integer of a property list is signed, and an ECID is not; zero would be no identifier.
    let ecid = (chance >> 1).max(1);
    let mut list = b"bplist00".to_vec();
    let dictionary = list.len();
    list.extend([0xd1, 1, 2]);
    let key = list.len();
    list.push(0x54);
    list.extend(b"ECID");
    let value = list.len();
    list.push(0x13);
    list.extend(ecid.to_be_bytes());
    let offsets = list.len();
    list.extend([dictionary, key, value].map(small));
    // The trailer: 6 unused bytes, the width of an offset and of a reference, then how many objects there are,
    // which is the top one, and where the offsets are.
    list.extend([0, 0, 0, 0, 0, 0, 1, 1]);
    list.extend([3, 0, u64::from(small(offsets))].map(u64::to_be_bytes).concat());
    list
}

/// Every place in such a list fits in a byte.
fn small(place: usize) -> u8 {
    u8::try_from(place).expect("the list has less than 256 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use proptest::prelude::*;
    use uuid::Uuid;

    /// An identifier that a Mac wrote: it is in the configurations of published VMs.
    const APPLES: &str = "YnBsaXN0MDDRAQJURUNJRBMcS7NwwIaUuwgLEAAAAAAAAAEBAAAAAAAAAAMAAAAAAAAAAAAAAAAAAAAZ";

    #[test]
    fn an_identifier_is_written_as_apple_writes_it() {
        let written = base64::engine::general_purpose::STANDARD.encode(machine_identifier(0x1c4b_b370_c086_94bb << 1));
        assert_eq!(written, APPLES);
    }

    #[test]
    fn every_chance_gives_an_identifier() {
        assert_ne!(machine_identifier(0)[17..25], [0; 8]);
        assert_eq!(machine_identifier(u64::MAX)[17..25], i64::MAX.to_be_bytes());
    }

    #[test]
    fn a_slot_keeps_its_address() {
        let host = HostId(Uuid::from_u128(1));
        assert_eq!(mac_address(host, 0), mac_address(host, 0));
        // Whoever changes how it is made gives every slot of every host another address.
        assert_eq!(mac_address(host, 0), "8e:cd:2d:c9:dd:74");
    }

    proptest! {
        #[test]
        fn no_two_slots_share_an_address(a: u128, b: u128, slot: u16) {
            let (a, b) = (HostId(Uuid::from_u128(a)), HostId(Uuid::from_u128(b)));
            prop_assert_ne!(mac_address(a, slot), mac_address(a, slot.wrapping_add(1)));
            prop_assert!(a == b || mac_address(a, slot) != mac_address(b, slot));
            let first = u8::from_str_radix(&mac_address(a, slot)[..2], 16).expect("hexadecimal");
            prop_assert_eq!(first & 0b11, 0b10, "locally administered, and one machine's");
        }
    }
}
