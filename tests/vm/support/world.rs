//! A small world of its own, in namespaces: this process is the host; behind its one card are its neighbours, local
//! networks, a metadata service and a server in the internet, each with a greeter.

use nix::sched::{CloneFlags, unshare};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// What a greeter says to whoever comes.
pub const GREETING: &str = "here";

/// Where every greeter of this world listens.
pub const PORT: u16 = 7_000;

/// The host.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// In no network that is denied, and not in one of the host's own.
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

/// What is near, and must not be reached by a guest.
pub const NEAR: [(&str, Ipv4Addr); 8] = [
    ("the host's router", ROUTER),
    ("a neighbour in the host's own network", Ipv4Addr::new(192, 0, 2, 77)),
    ("the metadata service", Ipv4Addr::new(169, 254, 169, 254)),
    ("a local network", Ipv4Addr::new(10, 1, 2, 3)),
    ("a local network", Ipv4Addr::new(172, 20, 0, 1)),
    ("a local network", Ipv4Addr::new(192, 168, 1, 1)),
    ("a private network of a provider or a VPN", Ipv4Addr::new(100, 100, 1, 1)),
    ("a test network of devices", Ipv4Addr::new(198, 18, 0, 1)),
];

const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Set where the world is made already.
const INSIDE: &str = "FLYCI_TEST_WORLD";

/// How long a greeting may take within this machine.
const GREETED: Duration = Duration::from_secs(5);

/// Runs the test of this name once more, in a world of its own. True in there.
pub fn entered(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        make();
        return true;
    }
    let this = std::env::current_exe().expect("this test");
    let status = Command::new("unshare")
        .args(["--user", "--map-current-user", "--keep-caps", "--net", "--"])
        .arg(this)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare runs");
    assert!(status.success(), "{test} failed in its own world");
    false
}

/// Whether a greeter is reached from this host.
pub fn greets(address: Ipv4Addr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&SocketAddr::new(IpAddr::V4(address), PORT), GREETED) else {
        return false;
    };
    stream.set_read_timeout(Some(GREETED)).expect("a time limit");
    let mut said = String::new();
    stream.read_to_string(&mut said).is_ok() && said == GREETING
}

fn make() {
    ip("link set lo up");
    let (ready, is_ready) = mpsc::sync_channel(1);
    // A network namespace is a thread's: what this one starts and opens is on the other side of the card.
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("another network");
        ip("link set lo up");
        ip(&format!("link add out type veth peer name card netns {}", std::process::id()));
        ip(&format!("address add {ROUTER}/24 dev out"));
        for address in NEAR.map(|(_, address)| address).into_iter().filter(|address| *address != ROUTER) {
            ip(&format!("address add {address}/32 dev lo"));
        }
        ip(&format!("address add {INTERNET}/32 dev lo"));
        ip("link set out up");
        greet();
        ready.send(()).expect("awaited");
        loop {
            thread::park();
        }
    });
    is_ready.recv_timeout(GREETED).expect("the other side is there");
    ip(&format!("address add {HOST}/24 dev card"));
    ip("link set card up");
    ip(&format!("route add default via {ROUTER}"));
    greet();
}

/// Greets whoever comes to this side, on every address.
fn greet() {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).expect("a listener");
    thread::spawn(move || {
        for mut peer in listener.incoming().flatten() {
            // A peer that is gone already wants no greeting.
            let _ = peer.write_all(GREETING.as_bytes());
        }
    });
}

fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().expect("ip runs");
    assert!(status.success(), "ip {words}");
}
