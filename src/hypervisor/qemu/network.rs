//! The network around a VM: its process lives in a network namespace of its own.
//!
//! `pasta` (package passt) makes the namespace and carries its connections to the world, without
//! root. Inside it the loopback is empty but for the ports that the operator allowed, which lead to
//! the same ports of the host's loopback; private and special networks, the host's addresses and
//! the networks it is directly in are unreachable; so a guest sees the internet, the resolver, and
//! nothing of the host, its neighbours or other guests. IPv4 only: there is no IPv6 to filter.
//!
//! QEMU keeps no capability in there, so a process that escaped from it cannot undo this. What
//! cannot be set up is an error; a VM is never started with less.

use crate::hypervisor::process::{Tool, ToolError, find};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

/// Where guests ask for names: an address of the namespace that stands for the host's resolver.
/// All of 198.51.100.0/24 is for documentation: nobody has these addresses.
pub(super) const RESOLVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 3);

/// The namespace's own address and the way out.
const ADDRESS: &str = "198.51.100.1";
const PREFIX: &str = "29";
const GATEWAY: &str = "198.51.100.2";
const CARD: &str = "flyci0";

/// How long a namespace may take to be made.
const TRIAL: Duration = Duration::from_secs(15);

/// What a guest must not reach: "this network", private use, shared (carriers, VPNs), link-local
/// (cloud metadata), protocol assignments, benchmarking, multicast, reserved and broadcast.
/// <https://www.iana.org/assignments/iana-ipv4-special-registry>.
const UNREACHABLE: [&str; 10] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// Networks at least this large are not taken for the host's own: such a mask is a mistake, and
/// would cut guests off from the internet.
const SHORTEST_PREFIX: u32 = 8;

/// Run inside the namespace: closes the routes, gives up all rights over it, becomes the VM.
/// The pipe's last program decides its status; `set -e` ends the shell on any failure. A process in
/// a user namespace below has no capability over the network namespace and can get none; dropping
/// them instead is silently not done where the daemon runs under no_new_privs (found by a test).
const ENTER: &str = r#"set -eu
printf 'route replace unreachable %s\n' $1 | ip -4 -batch -
shift
exec unshare --user -- setpriv --no-new-privs -- "$@""#;

/// Why guests cannot have a network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A program is missing.
    #[error("the guests' network needs a program")]
    Program(#[source] ToolError),
    /// The namespace cannot be made.
    #[error(
        "the guests' network cannot be isolated: a network namespace could not be made by pasta \
         (is /dev/net/tun open to this user, are user namespaces allowed, has the host a default route?)"
    )]
    Namespace(#[source] ToolError),
    /// The host's addresses cannot be read.
    #[error("the host's network addresses cannot be read")]
    Addresses(#[source] std::io::Error),
}

/// The way to put a program into a namespace of its own.
#[derive(Clone, Debug)]
pub(super) struct Isolation {
    programs: Programs,
    ports: Vec<u16>,
}

#[derive(Clone, Debug)]
struct Programs {
    pasta: PathBuf,
    unshare: PathBuf,
    root: bool,
}

impl Isolation {
    /// Finds the programs and tries them.
    pub(super) async fn prepare(ports: &[u16]) -> Result<Self, NetworkError> {
        for program in ["ip", "setpriv"] {
            find(program).map_err(NetworkError::Program)?;
        }
        let programs = Programs {
            pasta: find("pasta").map_err(NetworkError::Program)?,
            unshare: find("unshare").map_err(NetworkError::Program)?,
            root: nix::unistd::geteuid().is_root(),
        };
        let isolation = Self { programs, ports: ports.to_vec() };
        let mut trial = isolation.entrance()?;
        trial.push("true".to_owned());
        let tool = Tool::new(&trial[0], TRIAL).map_err(NetworkError::Program)?;
        tool.env("PATH", super::SAFE_PATH).args(&trial[1..]).run().await.map_err(NetworkError::Namespace)?;
        Ok(isolation)
    }

    /// The words to put before a program's own, to run it in a namespace of its own.
    pub(super) fn entrance(&self) -> Result<Vec<String>, NetworkError> {
        let own = own_networks().map_err(NetworkError::Addresses)?;
        let unreachable = UNREACHABLE.iter().map(|net| (*net).to_owned()).chain(own).collect::<Vec<_>>();
        Ok(words(&self.programs, &self.ports, &unreachable.join(" ")))
    }
}

fn words(programs: &Programs, ports: &[u16], unreachable: &str) -> Vec<String> {
    let mut list = Vec::new();
    if programs.root {
        // pasta gives up root for nobody, who cannot read the VM's directory. Under another name
        // in a user namespace it has nothing to give up; the process keeps the right to its files
        // and loses all others.
        list.push(programs.unshare.display().to_string());
        list.extend(["--user", "--map-user=1", "--map-group=1", "--"].map(str::to_owned));
    }
    list.push(programs.pasta.display().to_string());
    let ports = match ports {
        [] => "none".to_owned(),
        ports => ports.iter().map(u16::to_string).collect::<Vec<_>>().join(","),
    };
    let resolver = RESOLVER.to_string();
    // -t, -u: nothing comes in; -T, -U: what the namespace's loopback leads to.
    let options = [
        "--quiet",
        "--ipv4-only",
        "--config-net",
        "--no-map-gw",
        "--ns-ifname",
        CARD,
        "--address",
        ADDRESS,
        "--netmask",
        PREFIX,
        "--gateway",
        GATEWAY,
        "--dns-forward",
        &resolver,
        "-t",
        "none",
        "-u",
        "none",
        "-U",
        "none",
        "-T",
        &ports,
        "--",
        "sh",
        "-c",
        ENTER,
        "flyci",
        unreachable,
    ];
    list.extend(options.map(str::to_owned));
    list
}

/// The host's addresses, and the networks that it is directly in.
fn own_networks() -> std::io::Result<Vec<String>> {
    let mut found = Vec::new();
    for interface in nix::ifaddrs::getifaddrs()? {
        let ip = |storage: Option<nix::sys::socket::SockaddrStorage>| Some(storage?.as_sockaddr_in()?.ip());
        let Some(address) = ip(interface.address).filter(|address| !address.is_loopback()) else { continue };
        found.push(format!("{address}/32"));
        if let Some(net) = ip(interface.netmask).and_then(|mask| network(address, mask)) {
            found.push(net);
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// The network of an address, if it is one that could be the host's own.
fn network(address: Ipv4Addr, mask: Ipv4Addr) -> Option<String> {
    let prefix = mask.to_bits().leading_ones();
    let base = Ipv4Addr::from_bits(address.to_bits() & mask.to_bits());
    (prefix >= SHORTEST_PREFIX).then(|| format!("{base}/{prefix}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_into_a_namespace_is_this() {
        let programs = Programs { pasta: "/usr/bin/pasta".into(), unshare: "/usr/bin/unshare".into(), root: false };
        insta::assert_snapshot!(words(&programs, &[8443, 3000], "10.0.0.0/8 192.0.2.2/32").join(" "));
        let as_root = words(&Programs { root: true, ..programs }, &[], "10.0.0.0/8").join(" ");
        assert!(
            as_root.starts_with("/usr/bin/unshare --user --map-user=1 --map-group=1 -- /usr/bin/pasta"),
            "{as_root}"
        );
        assert!(as_root.contains("-U none -T none"), "nothing of the host's loopback: {as_root}");
    }

    #[test]
    fn the_hosts_own_networks_are_found() {
        let of = |address: [u8; 4], mask: [u8; 4]| network(address.into(), mask.into());
        assert_eq!(of([192, 0, 2, 77], [255, 255, 255, 0]).as_deref(), Some("192.0.2.0/24"));
        assert_eq!(of([203, 0, 113, 9], [255, 255, 255, 255]).as_deref(), Some("203.0.113.9/32"));
        assert_eq!(of([203, 0, 113, 9], [0, 0, 0, 0]), None, "that would be all of the internet");
        own_networks().expect("addresses can be read");
    }

    /// Whether a program that was put into a namespace by these words succeeds there.
    async fn succeeds(words: &[String], program: &[&str]) -> bool {
        let tool = Tool::new(&words[0], TRIAL).expect("there").env("PATH", super::super::SAFE_PATH);
        match tool.args(&words[1..]).args(program).run().await {
            Ok(_) => true,
            Err(ToolError::Failed { .. }) => false,
            Err(other) => panic!("the namespace cannot be tried: {other}"),
        }
    }

    #[tokio::test]
    async fn every_kind_of_address_that_is_not_the_internet_is_unreachable() {
        let isolation = Isolation::prepare(&[]).await.expect("this machine can isolate guests");
        let words = isolation.entrance().expect("words");
        assert!(succeeds(&words, &["ip", "-4", "route", "get", "203.0.113.1"]).await, "the internet is reachable");
        for address in [
            "0.1.2.3",
            "10.1.2.3",
            "100.100.1.1",
            "169.254.169.254",
            "172.20.0.1",
            "192.0.0.8",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.251",
            "255.255.255.255",
        ] {
            assert!(!succeeds(&words, &["ip", "-4", "route", "get", address]).await, "{address}");
        }
        assert!(
            !succeeds(&words, &["ip", "-4", "route", "del", "unreachable", "10.0.0.0/8"]).await,
            "no right to undo it"
        );
    }

    #[tokio::test]
    async fn the_hosts_own_address_is_closed_by_the_routes_alone() {
        let own = own_networks().expect("addresses").into_iter().find(|net| net.ends_with("/32"));
        let own = own.expect("a machine with an address").trim_end_matches("/32").to_owned();
        let listener = std::net::TcpListener::bind("0.0.0.0:0").expect("a listener");
        let port = listener.local_addr().expect("an address").port().to_string();
        let connect = ["timeout", "5", "bash", "-c", "exec 3<>/dev/tcp/$0/$1", own.as_str(), port.as_str()];
        let isolation = Isolation::prepare(&[]).await.expect("this machine can isolate guests");
        let open = words(&isolation.programs, &[], "192.88.99.0/24");
        assert!(succeeds(&open, &connect).await, "without the routes the host is reached");
        assert!(!succeeds(&isolation.entrance().expect("words"), &connect).await, "with them it is not");
    }
}
