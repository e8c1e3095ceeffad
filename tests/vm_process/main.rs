//! `flyci vm` as a real process, with a stand-in for the machine: what it boots is the real agent with a runner. All but
//! Virtualization.framework itself is what a Mac runs.
//!
//! Needs a Postgres, volumes with clones, and the agent and the small runner built for this machine; script/test sees to all.
#![cfg(target_os = "linux")]

#[path = "../it/support/database.rs"]
#[expect(dead_code, reason = "here the daemon has pools of its own")]
mod database;

mod clones;
mod control;
mod faults;
mod jobs;
mod life;
mod support;
