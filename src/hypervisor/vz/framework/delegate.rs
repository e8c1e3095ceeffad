//! What the framework tells by itself: that the guest powered off, that the machine broke, that its network is gone.
//!
//! The methods' selectors and arguments are a contract with the Objective-C runtime that the compiler does not check:
//! a misspelt one is never called. `tests/selectors.rs` compares them with the bindings.

use super::{devices, failure};
use crate::hypervisor::vz::machine::VmState;
use objc2::rc::{Allocated, Retained};
use objc2::runtime::{NSObject, NSObjectProtocol};
use objc2::{AnyThread, DefinedClass, define_class, msg_send};
use objc2_foundation::NSError;
use objc2_virtualization::{VZNetworkDevice, VZVirtualMachine, VZVirtualMachineDelegate};
use std::cell::Cell;
use tokio::sync::watch;

/// How often a machine's network is connected again, in all: it is lost at reboots of the guest as well.
const RECONNECTIONS: u32 = 16;

/// What the delegate holds. It is called on the machine's queue alone.
pub(super) struct Told {
    state: watch::Sender<VmState>,
    reconnections: Cell<u32>,
}

define_class!(
    // SAFETY: NSObject asks nothing of its subclasses, and the class does not implement `Drop`.
    #[unsafe(super(NSObject))]
    #[name = "FlyciMachineDelegate"]
    #[ivars = Told]
    pub(super) struct Delegate;

    // SAFETY: NSObjectProtocol has no further requirements.
    unsafe impl NSObjectProtocol for Delegate {}

    // SAFETY: Selectors and arguments are those of the protocol; tests/selectors.rs holds it.
    unsafe impl VZVirtualMachineDelegate for Delegate {
        #[unsafe(method(guestDidStopVirtualMachine:))]
        fn guest_did_stop(&self, _machine: &VZVirtualMachine) {
            self.ivars().state.send_replace(VmState::PoweredOff);
        }

        #[unsafe(method(virtualMachine:didStopWithError:))]
        fn did_stop_with_error(&self, _machine: &VZVirtualMachine, error: &NSError) {
            self.ivars().state.send_replace(VmState::Failed(failure::fault(error)));
        }

        #[unsafe(method(virtualMachine:networkDevice:attachmentWasDisconnectedWithError:))]
        fn network_was_lost(&self, _machine: &VZVirtualMachine, device: &VZNetworkDevice, error: &NSError) {
            self.reconnect(device, error);
        }
    }
);

impl Delegate {
    pub(super) fn new(state: watch::Sender<VmState>) -> Retained<Self> {
        let this: Allocated<Self> = Self::alloc();
        let this = this.set_ivars(Told { state, reconnections: Cell::new(0) });
        // SAFETY: NSObject's `init` takes nothing, and returns the object that it was sent to.
        unsafe { msg_send![super(this), init] }
    }

    /// A card without an attachment is an unplugged cable: the guest waits for its network for ever.
    fn reconnect(&self, device: &VZNetworkDevice, error: &NSError) {
        let fault = failure::fault(error);
        let before = self.ivars().reconnections.get();
        if before >= RECONNECTIONS {
            tracing::error!("the network was lost {RECONNECTIONS} times, and is not connected again: {fault}");
            return;
        }
        self.ivars().reconnections.set(before + 1);
        tracing::warn!("the network was lost, and is connected again: {fault}");
        // SAFETY: The framework calls its delegate on the machine's queue, where its devices may be changed.
        unsafe { device.setAttachment(Some(&devices::nat())) };
    }
}
