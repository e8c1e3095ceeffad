//! Apple's Virtualization.framework: the only code that calls it, for macOS alone.
//!
//! **The framework's rule** is that a machine, its devices and its delegate are used on one serial queue only, the
//! one that the machine was made with; elsewhere the framework ends the process. The types hold the rule:
//!
//! - `Machine` has no field through which an Objective-C object could be reached but an [`queue::OnQueue`]. That makes
//!   the queue and builds configuration, delegate and machine on it; lets them be seen only by work that it sends
//!   there; and drops them there.
//! - That work is `Send`, and the framework's objects are not: none can be brought in or carried away, and the
//!   compiler refuses to try. What comes back does so through channels, as values of our own.
//! - Completions and the delegate are called by the framework on the same queue. The blocks are made there and hold
//!   what they need; they are never called by us.
//! - `exec_sync`, which would wait for ever on the own queue, is called once, before anyone else has the queue.
//!
//! **`unsafe`** is of four kinds here: calls of the framework (every method of the bindings is `unsafe`, since the
//! headers do not tell what is thread-safe), the delegate's class, `Send` for what the queue confines, and borrowing
//! a connection's descriptor. Each block says why it holds; a lint asks for it.
//!
//! What is not here: what an error means ([`fault`](super::fault)), how large a machine may be
//! ([`bounds`](super::bounds)), and who it is ([`identity`](super::identity)). Those decide on any system, and are
//! tested where there is no framework.

#![deny(clippy::undocumented_unsafe_blocks)]

mod configuration;
mod delegate;
mod devices;
mod failure;
mod machine;
mod platform;
mod queue;
#[cfg(test)]
mod tests;

pub use platform::fresh_machine_identifier;

use super::fault::{Fault, FaultReason};
use super::machine::Vm;
use super::recipe::Recipe;
use objc2::available;
use objc2::rc::Retained;
use objc2_core_foundation::CFRunLoop;
use objc2_foundation::NSURL;
use objc2_virtualization::{VZVirtualMachine, VZVirtualMachineConfiguration};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What a machine is put together from.
type Parts = VZVirtualMachineConfiguration;

/// Pause before a run loop that ended by itself is run again, so that it never spins.
const RUN_LOOP_PAUSE: Duration = Duration::from_millis(100);

/// Makes the machine of a recipe. It is not started; dropping it ends it.
///
/// The process must be signed with the entitlement `com.apple.security.virtualization`, and its main thread must be
/// in [`run_loop`]. Blocks for as long as the framework takes to look at the machine's files.
///
/// # Errors
/// This Mac cannot run such a machine, or one of its files cannot be used.
pub fn open(recipe: &Recipe) -> Result<Arc<dyn Vm>, Fault> {
    if !available!(macos = 14.0) {
        return Err(Fault::new(FaultReason::Unfit, "flyci needs macOS 14 or later"));
    }
    if !supported() {
        return Err(Fault::new(FaultReason::Unfit, "this Mac does not offer virtualization (it may itself be a VM)"));
    }
    Ok(Arc::new(machine::Machine::new(recipe)?))
}

/// Whether there is virtualization here: a VM of macOS has none for a macOS guest.
#[must_use]
pub fn supported() -> bool {
    // SAFETY: A class property without requirements.
    unsafe { VZVirtualMachine::isSupported() }
}

/// Serves the main thread's run loop until the process ends: the framework has sources of its own on it, and does not
/// answer without. To be called on the main thread. There is no `NSApplication`: it needs a graphical session.
pub fn run_loop() -> ! {
    loop {
        CFRunLoop::run();
        std::thread::sleep(RUN_LOOP_PAUSE);
    }
}

/// The URL of a file, which must be told by its whole path.
fn file_url(path: &Path) -> Result<Retained<NSURL>, Fault> {
    let url = path.is_absolute().then(|| NSURL::from_file_path(path)).flatten();
    url.ok_or_else(|| Fault::new(FaultReason::Internal, format!("{} is no absolute path", path.display())))
}
