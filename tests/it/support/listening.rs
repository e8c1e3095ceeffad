//! Waits for a program that is to listen on loopback.

use std::time::Duration;

/// How often it is tried.
const LOOK: Duration = Duration::from_millis(50);

/// Resolves when something listens on the port; panics when nothing does in time.
pub async fn until(port: u16, deadline: Duration) {
    let listens = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(deadline, listens).await.unwrap_or_else(|_| panic!("nothing listens on {port}"));
}
