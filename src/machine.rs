//! What this machine is: CPUs, memory, chip.

use crate::config::Machine;
use crate::domain::admission::MacosVersion;
use crate::domain::units::Bytes;
use chrono::Utc;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// An address for documentation (RFC 5737): the way to it is the way to the internet.
const NOBODYS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// Looks at the machine.
#[must_use]
pub fn detect() -> Machine {
    let wanted =
        RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()).with_memory(MemoryRefreshKind::nothing().with_ram());
    // An unknown system tells nothing: a host of no memory takes no vm, and says so.
    let system = System::new_with_specifics(wanted).ok();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let brand = system.as_ref().and_then(|system| system.cpus().first()).map_or("", sysinfo::Cpu::brand);
    Machine {
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory: Bytes(system.as_ref().map_or(0, System::total_memory)),
        hardware: hardware(brand, std::env::consts::ARCH),
    }
}

/// The macOS that this machine runs, if it does.
#[must_use]
pub fn macos() -> Option<MacosVersion> {
    if cfg!(target_os = "macos") { System::os_version().ok()?.parse().ok() } else { None }
}

/// The chip, as profiles name it: `m2` of an `Apple M2 Pro`, else the instruction set.
fn hardware(brand: &str, architecture: &str) -> String {
    let apple = brand.strip_prefix("Apple ").and_then(|rest| rest.split_whitespace().next());
    apple.map_or_else(|| architecture.to_owned(), str::to_lowercase)
}

/// Addresses of this machine, but for its loopback.
///
/// # Errors
/// The system does not tell.
pub fn addresses() -> std::io::Result<Vec<Ipv4Addr>> {
    let of = |interface: nix::ifaddrs::InterfaceAddress| Some(interface.address?.as_sockaddr_in()?.ip());
    let mut found: Vec<_> = nix::ifaddrs::getifaddrs()?.filter_map(of).filter(|ip| !ip.is_loopback()).collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The address by which this machine's packets leave it, if it has a way out. It changes with the network.
fn way_out() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // Sends nothing: only the route is looked up.
    socket.connect((NOBODYS, 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// In which world this program runs: this boot of the machine, this network, this day, this version of its system, this
/// version of flyci. What was proven in one need not hold in another.
#[must_use]
pub fn world() -> String {
    // Linux names each boot; elsewhere its time does, which moves when the clock is set: a test too many does no harm.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| System::boot_time().unwrap_or_default().to_string(), |id| id.trim().to_owned());
    let system = System::long_os_version().unwrap_or_default();
    let network = way_out().map_or_else(|| "no network".to_owned(), |address| format!("as {address}"));
    let day = Utc::now().date_naive();
    format!("boot {boot}, {network}, {day}, {system}, flyci {}", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apples_chips_are_named_by_their_generation() {
        assert_eq!(hardware("Apple M2 Pro", "aarch64"), "m2");
        assert_eq!(hardware("Apple M4", "aarch64"), "m4");
        assert_eq!(hardware("AMD EPYC 7763", "x86_64"), "x86_64");
        assert_eq!(hardware("", "aarch64"), "aarch64");
    }

    #[test]
    fn this_machine_has_something_to_give() {
        let machine = detect();
        assert!(machine.cpus > 0 && machine.memory > Bytes(1 << 20) && !machine.hardware.is_empty());
    }
}
