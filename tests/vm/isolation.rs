//! What a guest reaches: the allowed port of the host's loopback, and nothing else of the host, its
//! neighbours or other guests. Each "no" has a "yes" beside it that the same probe finds.

use crate::support::{Host, Vm, world};
use flyci::hypervisor::Hypervisor;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use world::GREETING;

/// Listens on an address of this machine and greets everybody; returns the port.
async fn greeter(address: Ipv4Addr) -> u16 {
    let listener = TcpListener::bind((address, 0)).await.expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = listener.accept().await {
            // A peer that is gone already wants no greeting.
            let _ = peer.write_all(GREETING.as_bytes()).await;
        }
    });
    port
}

/// Whether a guest gets a listener's greeting.
async fn reaches(vm: &Vm, address: &str, port: u16) -> bool {
    let (_, said) = vm.run(&format!("nc -w 5 {address} {port} </dev/null")).await;
    said.contains(GREETING)
}

/// The address by which this machine's packets leave it, if it has a way out.
fn own_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Sends nothing: only the route is looked up.
    socket.connect("203.0.113.1:9").ok()?;
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(address) if !address.is_loopback() => Some(address),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_allowed_port_of_the_host_is_reached() {
    let (allowed, secret) = (greeter(Ipv4Addr::LOCALHOST).await, greeter(Ipv4Addr::LOCALHOST).await);
    let host = Host::new(|options| options.allow_host_ports = vec![allowed]).await;
    assert_eq!(host.qemu.problems().await, Vec::<String>::new(), "this machine can isolate guests");
    let vm = host.booted(0).await;
    assert!(reaches(&vm, "10.0.2.2", allowed).await, "the allowed port is reached");
    assert!(!reaches(&vm, "10.0.2.2", secret).await, "no other port of the loopback");

    let own = own_address().expect("a machine with a way out");
    let exposed = greeter(Ipv4Addr::UNSPECIFIED).await;
    assert!(std::net::TcpStream::connect((own, exposed)).is_ok(), "the host itself reaches it there");
    for address in [own.to_string(), "10.0.2.2".into(), "10.0.2.3".into(), "198.51.100.1".into(), "198.51.100.2".into()]
    {
        assert!(!reaches(&vm, &address, exposed).await, "{address} leads to the host");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_internet_is_reached_and_nothing_that_is_near() {
    if !world::entered("isolation::the_internet_is_reached_and_nothing_that_is_near") {
        return;
    }
    for (place, address) in world::NEAR {
        assert!(world::greets(address), "the host itself reaches {place}, {address}");
    }
    let host = Host::new(|_| {}).await;
    let vm = host.booted(0).await;
    assert!(reaches(&vm, &world::INTERNET.to_string(), world::PORT).await, "a server in the internet is reached");
    for (place, address) in world::NEAR.into_iter().chain([("the host", world::HOST)]) {
        assert!(!reaches(&vm, &address.to_string(), world::PORT).await, "{place}, {address}, is reached");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_tells_what_it_reaches() {
    let (allowed, secret) = (greeter(Ipv4Addr::LOCALHOST).await, greeter(Ipv4Addr::LOCALHOST).await);
    let host = Host::new(|options| options.allow_host_ports = vec![allowed]).await;
    let spec = host.spec(0);
    host.qemu.clone_vm(&spec).await.expect("cloned");
    host.qemu.boot(&spec).await.expect("booted");
    let guest = host.qemu.guest(spec.id);
    guest.ready().await.expect("the agent answers");
    let targets = [secret, allowed].map(|port| SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 2), port));
    assert_eq!(guest.reached(&targets).await.expect("an answer"), [targets[1]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_do_not_reach_each_other() {
    let host = Host::new(|_| {}).await;
    let (one, two) = tokio::join!(host.booted(0), host.booted(1));
    let listen = "(while true; do echo here | nc -l -p 7777; done) >/dev/null 2>&1 & \
                  until nc -w 2 127.0.0.1 7777 </dev/null | grep here; do :; done";
    assert!(one.run(listen).await.1.contains(GREETING), "it listens");
    for address in ["10.0.2.15", "10.0.2.2", "198.51.100.1"] {
        assert!(!reaches(&two, address, 7777).await, "{address} leads to the other guest");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_without_a_network_reaches_nothing() {
    let port = greeter(Ipv4Addr::LOCALHOST).await;
    let host = Host::new(|options| {
        options.network = flyci::hypervisor::qemu::Network::None;
        options.allow_host_ports = vec![port];
    })
    .await;
    let vm = host.booted(0).await;
    assert!(!reaches(&vm, "10.0.2.2", port).await);
}
