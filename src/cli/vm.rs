//! `flyci vm`: the process of one VM. Hidden: a daemon starts it.

use super::exit::{DONE, FAILED};
use clap::Args;
use std::path::PathBuf;

/// `flyci vm`
#[derive(Args, Debug)]
pub struct VmArgs {
    /// The vm's directory
    #[arg(long, value_name = "DIR")]
    pub directory: PathBuf,
}

/// Runs the VM to its end. Why it ended is told in its directory and its log.
pub fn run(args: &VmArgs) -> u8 {
    if crate::hypervisor::vz::process::run(&args.directory) { DONE } else { FAILED }
}
