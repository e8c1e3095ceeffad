//! The guest's port survives a host that drops it at any moment.

use crate::drops::drop_in_traffic;
use crate::support::Host;
use tokio::net::UnixStream;

/// How often the host drops in the middle of traffic.
const ROUNDS: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_drops_in_the_middle_of_traffic_spoil_nothing() {
    let host = Host::new(|_| {}).await;
    let vm = host.booted(0).await;
    let socket = vm.socket.clone();
    drop_in_traffic(ROUNDS, move || UnixStream::connect(socket.clone())).await;
    assert_eq!(vm.run("echo fine").await, (0, "fine\n".into()));
}
