//! VMs of Apple's Virtualization.framework.
//!
//! Each VM is a process of its own, `flyci vm` ([`process`]), which owns one [`machine::Vm`] and serves two Unix sockets
//! in the vm's directory: control ([`protocol`]), and the channel to the agent. The daemon's side is [`Vz`]. What the
//! machine is made of stands in its [`recipe`]; what the framework complains of is one of the closed list in [`fault`];
//! why a process ended is left in its directory ([`end`]). All that calls the framework is in `framework`, for macOS
//! alone; [`bounds`], [`fault`] and [`identity`] decide without it. Where there is no framework, tests have a stand-in.

mod backend;
mod boot;
pub mod bounds;
pub mod client;
pub mod end;
pub mod fault;
#[cfg(target_os = "macos")]
pub mod framework;
pub mod identity;
mod image;
mod launchd;
pub mod machine;
pub mod options;
pub mod process;
pub mod protocol;
pub mod recipe;
pub mod server;
mod slots;
mod spawn;
#[cfg(feature = "demo")]
pub mod stand_in;

pub use backend::Vz;
pub use options::{Options, Spawn};
