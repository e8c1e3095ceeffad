//! The program inside a flyci guest, and what both sides of the guest channel share.
//!
//! | module | owns |
//! |---|---|
//! | [`proto`] | the gRPC protocol, wire compatible with the agent of the stock macOS images |
//! | [`channel`] | a fresh, clean connection on a byte pipe that keeps stale bytes (virtio-serial) |
//! | [`server`] | one connection: HTTP/2, the service, its bounds |
//! | [`exec`] | one command, alive no longer than its stream |
//! | [`prepare`] | the commands that the agent answers itself: clock, randomness, host name, power |
//! | [`listen`] | where connections come from: virtio port, vsock, Unix socket |
//! | [`init`] | PID 1 of a minimal Linux guest |
//!
//! The agent knows nothing of GitHub or of runners: what to run comes from the host.

pub mod channel;
pub mod exec;
mod fd;
#[cfg(target_os = "linux")]
pub mod init;
pub mod listen;
pub mod prepare;
pub mod server;

/// The generated protocol.
pub mod proto {
    #![allow(missing_docs, reason = "generated from proto/agent.proto, which is documented")]
    tonic::include_proto!("_");
}

/// The vsock port of the stock agent, and so of ours.
pub const VSOCK_PORT: u32 = 8080;

/// Largest gRPC message that either side accepts, in bytes.
pub const MESSAGE_BYTES: usize = 64 * 1024;

/// Largest piece of standard input or output in one message, in bytes.
pub const CHUNK_BYTES: usize = 16 * 1024;

/// Largest list of headers or trailers that either side accepts, in bytes.
pub const HEADER_BYTES: u32 = 8 * 1024;
