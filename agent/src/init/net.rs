//! The guest's network: loopback, and a static IPv4 address on the first card, over rtnetlink.
//!
//! Only three requests are needed, so they are written here byte by byte. Numbers are from
//! linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h and linux/if.h.

use super::cmdline::StaticAddress;
use super::{Doing, InitError};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt, socket,
    sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a card may take to be found by its driver.
const CARD: Duration = Duration::from_secs(5);

/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(10);

/// How long the kernel may take to answer, in seconds.
const ANSWER_SECONDS: i64 = 5;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;
const REQUEST_AND_ACK: u16 = 0x1 | 0x4;
const CREATE_OR_REPLACE: u16 = 0x400 | 0x100;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RTN_UNICAST: u8 = 1;
const AF_INET: u8 = 2;
const AF_UNSPEC: u8 = 0;

/// Brings the loopback interface up.
pub(super) fn loopback() -> Result<(), InitError> {
    let doing = || "bring up lo".to_owned();
    let index = index("lo").doing(doing)?;
    request(&up(index)).doing(doing)
}

/// Gives the first card its address and route, and the system its name server.
pub(super) fn card(address: &StaticAddress) -> Result<(), InitError> {
    let name = await_card()?;
    let doing = || format!("set up {name}");
    let index = index(&name).doing(doing)?;
    request(&up(index)).doing(doing)?;
    request(&new_address(index, address)).doing(doing)?;
    request(&default_route(address.gateway)).doing(doing)?;
    let resolver = format!("nameserver {}\n", address.dns);
    std::fs::create_dir_all("/etc").doing(|| "make /etc".into())?;
    std::fs::write("/etc/resolv.conf", resolver).doing(|| "write /etc/resolv.conf".into())
}

/// The first network card by name, once its driver has found one.
fn await_card() -> Result<String, InitError> {
    let begun = Instant::now();
    loop {
        let cards = std::fs::read_dir("/sys/class/net").doing(|| "list network cards".into())?;
        let names = cards.flatten().filter_map(|card| {
            // Loopback and tunnels have no device behind them.
            let real = card.path().join("device").exists();
            real.then(|| card.file_name().to_string_lossy().into_owned())
        });
        if let Some(first) = names.min() {
            return Ok(first);
        }
        if begun.elapsed() > CARD {
            let none = io::Error::from(io::ErrorKind::NotFound);
            return Err(none).doing(|| format!("find a network card within {CARD:?}"));
        }
        std::thread::sleep(LOOK);
    }
}

fn index(name: &str) -> nix::Result<u32> {
    nix::net::if_::if_nametoindex(name)
}

/// The request that brings an interface up.
fn up(index: u32) -> Vec<u8> {
    // struct ifinfomsg
    let mut body = vec![AF_UNSPEC, 0, 0, 0];
    for word in [index, IFF_UP, IFF_UP] {
        body.extend_from_slice(&word.to_ne_bytes());
    }
    message(RTM_NEWLINK, 0, &body)
}

/// The request that gives an interface its address.
fn new_address(index: u32, address: &StaticAddress) -> Vec<u8> {
    // struct ifaddrmsg
    let mut body = vec![AF_INET, address.prefix, 0, RT_SCOPE_UNIVERSE];
    body.extend_from_slice(&index.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, address.address);
    attribute(&mut body, IFA_ADDRESS, address.address);
    message(RTM_NEWADDR, CREATE_OR_REPLACE, &body)
}

/// The request that sends all else to the gateway.
fn default_route(gateway: Ipv4Addr) -> Vec<u8> {
    // struct rtmsg
    let mut body = vec![AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST];
    body.extend_from_slice(&0_u32.to_ne_bytes());
    attribute(&mut body, RTA_GATEWAY, gateway);
    message(RTM_NEWROUTE, CREATE_OR_REPLACE, &body)
}

/// Appends a struct rtattr; an address needs no padding.
fn attribute(body: &mut Vec<u8>, kind: u16, address: Ipv4Addr) {
    const LENGTH: u16 = 8;
    body.extend_from_slice(&LENGTH.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(&address.octets());
}

/// A request behind its struct nlmsghdr.
fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    const HEADER_BYTES: usize = 16;
    const SEQUENCE: u32 = 1;
    let length = u32::try_from(HEADER_BYTES + body.len()).expect("a few dozen bytes");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&(flags | REQUEST_AND_ACK).to_ne_bytes());
    bytes.extend_from_slice(&SEQUENCE.to_ne_bytes());
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Sends one request to the kernel and reads its verdict.
fn request(message: &[u8]) -> io::Result<()> {
    let kernel = NetlinkAddr::new(0, 0);
    let socket: OwnedFd =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS))?;
    bind(socket.as_raw_fd(), &kernel)?;
    sendto(socket.as_raw_fd(), message, &kernel, MsgFlags::empty())?;
    let mut answer = [0; 4096];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    verdict(&answer[..length])
}

/// What an answer says: struct nlmsghdr, then struct nlmsgerr with 0 or a negative errno.
fn verdict(answer: &[u8]) -> io::Result<()> {
    let word = |at: usize| -> Option<[u8; 4]> { answer.get(at..at + 4)?.try_into().ok() };
    let kind = word(4).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    match (kind, word(16).map(i32::from_ne_bytes)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(error)) => Err(io::Error::from_raw_os_error(-error)),
        _ => Err(io::Error::other("the kernel's answer is not understood")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_the_message_for_loopback() {
        // Refused only where the test may not administer the network: understood all the same.
        let index = index("lo").unwrap();
        match request(&up(index)) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.raw_os_error(), Some(nix::libc::EPERM)),
        }
    }

    #[test]
    fn an_interface_that_is_not_there_is_told() {
        let error = request(&up(0x7FFF_0000)).unwrap_err();
        assert!([nix::libc::ENODEV, nix::libc::EPERM].contains(&error.raw_os_error().unwrap()));
    }
}
