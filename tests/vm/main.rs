//! Real VMs with the real agent: QEMU, with whatever accelerator this machine has.
//!
//! Needs what script/setup installs, and the agent built for guests
//! (`cargo build -p flyci-agent --profile agent --target <arch>-unknown-linux-musl`).
#![cfg(target_os = "linux")]

#[path = "../../agent/tests/common/mod.rs"]
mod common;
#[path = "../../agent/tests/common/drops.rs"]
mod drops;

mod channel;
mod isolation;
mod life;
mod support;
