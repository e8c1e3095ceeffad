//! What a Mac can show without booting a VM, on any Mac: also one that is a VM, and a program that is not signed.
//! Everywhere else these tests are only compiled.

use super::delegate::Delegate;
use super::queue::OnQueue;
use super::{failure, file_url, fresh_machine_identifier, open};
use crate::domain::units::Bytes;
use crate::hypervisor::vz::fault::{Fault, FaultReason};
use crate::hypervisor::vz::identity;
use crate::hypervisor::vz::machine::VmState;
use crate::hypervisor::vz::recipe::{FORMAT, Recipe};
use crate::images::Os;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use objc2::runtime::{AnyObject, NSObjectProtocol};
use objc2::{AnyThread, sel};
use objc2_foundation::{NSData, NSDictionary, NSError, NSString, NSUnderlyingErrorKey};
use objc2_virtualization::VZMacMachineIdentifier;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;
use tokio::sync::watch;

const DEADLINE: Duration = Duration::from_secs(10);

/// What the traced value tells in its life.
const WORDS: usize = 4;

#[test]
fn the_runtime_takes_our_delegate() {
    // With debug assertions, objc2 compares the class with the protocol when it is made.
    let delegate = Delegate::new(watch::channel(VmState::Stopped).0);
    for selector in [
        sel!(guestDidStopVirtualMachine:),
        sel!(virtualMachine:didStopWithError:),
        sel!(virtualMachine:networkDevice:attachmentWasDisconnectedWithError:),
    ] {
        assert!(delegate.respondsToSelector(selector), "{selector:?}");
    }
}

#[test]
fn an_error_of_the_framework_is_read_with_its_cause() {
    let domain = |name| NSString::from_str(name);
    // SAFETY: Errors without further information, and one with the information that its key asks for.
    let error = unsafe {
        let cause = NSError::errorWithDomain_code_userInfo(&domain("NSPOSIXErrorDomain"), 28, None);
        let cause: &AnyObject = &cause;
        let information = NSDictionary::from_slices(&[NSUnderlyingErrorKey], &[cause]);
        NSError::errorWithDomain_code_userInfo(&domain("VZErrorDomain"), 1, Some(&information))
    };
    let fault = failure::fault(&error);
    assert_eq!(fault.reason, FaultReason::OutOfSpace);
    assert!(fault.detail.contains("(VZErrorDomain 1); caused by: "), "{fault}");
}

#[test]
fn the_framework_takes_identifiers_that_we_mint() {
    for data in
        [identity::machine_identifier(0x1234_5678_9abc_def0), STANDARD.decode(fresh_machine_identifier()).unwrap()]
    {
        let data = NSData::with_bytes(&data);
        // SAFETY: The framework checks the data.
        let identifier =
            unsafe { VZMacMachineIdentifier::initWithDataRepresentation(VZMacMachineIdentifier::alloc(), &data) };
        assert!(identifier.is_some());
    }
}

#[test]
fn what_is_on_a_queue_is_made_used_and_dropped_in_that_order() {
    struct Traced(mpsc::SyncSender<&'static str>);
    impl Drop for Traced {
        fn drop(&mut self) {
            self.0.send("dropped").expect("someone listens");
        }
    }
    let (sender, told) = mpsc::sync_channel(WORDS);
    let on_queue = OnQueue::make("flyci.test", |_| {
        sender.send("made").expect("someone listens");
        Ok::<_, Fault>(Traced(sender))
    })
    .expect("it is made");
    for word in ["first", "second"] {
        on_queue.run(move |traced| traced.0.send(word).expect("someone listens"));
    }
    drop(on_queue);
    let order: Vec<_> = (0..WORDS).map(|_| told.recv_timeout(DEADLINE).expect("it is told in time")).collect();
    assert_eq!(order, ["made", "first", "second", "dropped"]);
}

#[test]
fn a_recipe_of_nothing_is_a_fault() {
    let nowhere = Path::new("/nonexistent");
    let recipe = Recipe {
        format: FORMAT,
        os: Os::Linux,
        cpus: 2,
        memory: Bytes(1 << 30),
        disk: nowhere.join("disk.img"),
        nvram: nowhere.join("nvram.bin"),
        hardware_model: None,
        machine_identifier: None,
        mac_address: "02:00:00:00:00:01".to_owned(),
        display: (1920, 1080),
        suspendable: false,
        agent_port: 8080,
    };
    assert!(open(&recipe).is_err());
    assert!(open(&Recipe { os: Os::Macos, ..recipe }).is_err());
}

#[test]
fn a_file_is_named_by_its_whole_path() {
    assert_eq!(
        file_url(Path::new("/var/db/flyci/disk.img")).map(|url| url.to_file_path()).ok().flatten().as_deref(),
        Some(Path::new("/var/db/flyci/disk.img"))
    );
    assert!(file_url(Path::new("disk.img")).is_err());
}
