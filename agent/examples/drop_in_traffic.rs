//! Drops the host's side of a real guest channel in the middle of traffic, again and again:
//! `drop_in_traffic SOCKET ROUNDS`, with the socket of a virtio-serial port that an agent serves.

use std::path::PathBuf;

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/drops.rs"]
mod drops;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(Ok(rounds))) = (arguments.next(), arguments.next().map(|text| text.parse())) else {
        eprintln!("usage: drop_in_traffic SOCKET ROUNDS");
        return std::process::ExitCode::from(2);
    };
    let socket = PathBuf::from(socket);
    drops::drop_in_traffic(rounds, move || tokio::net::UnixStream::connect(socket.clone())).await;
    println!("{rounds} of {rounds} connections were clean");
    std::process::ExitCode::SUCCESS
}
