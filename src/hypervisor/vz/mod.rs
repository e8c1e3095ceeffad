//! VMs of Apple's Virtualization.framework.
//!
//! Each VM is a process of its own, `flyci vm`, which owns one [`machine::Vm`] and serves two Unix sockets in the
//! vm's directory: control, and the channel to the agent. What the machine is made of stands in its [`recipe`];
//! what the framework complains of is one of the closed list in [`fault`]. All that calls the framework is in
//! `framework`, for macOS alone; [`bounds`], [`fault`] and [`identity`] decide without it, on any system.

pub mod bounds;
pub mod fault;
#[cfg(target_os = "macos")]
pub mod framework;
pub mod identity;
pub mod machine;
pub mod recipe;
