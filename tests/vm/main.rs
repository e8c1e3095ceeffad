//! Real VMs with the real agent: QEMU, with whatever accelerator this machine has.
//!
//! Needs what script/setup installs, a Postgres, and agent and runner built for guests; script/test sees to it.
#![cfg(target_os = "linux")]

#[path = "../../agent/tests/common/mod.rs"]
mod common;
#[path = "../../agent/tests/common/drops.rs"]
mod drops;

#[path = "../it/support/database.rs"]
#[expect(dead_code, reason = "here the daemon has pools of its own")]
mod database;

mod channel;
#[path = "support/daemon.rs"]
mod daemon;
mod disk;
mod isolation;
mod jobs;
mod life;
mod support;
