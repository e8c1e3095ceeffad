//! What a machine complains of: a closed list, each with what to do. The framework's codes are translated here
//! once, and nowhere else.

use serde::{Deserialize, Serialize};

/// Why a machine could not do what was asked, or ended by itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{}: {detail}", .reason.advice())]
pub struct Fault {
    /// Which of the known ones it is.
    pub reason: FaultReason,
    /// What the framework said of it: domain, code and text.
    pub detail: String,
}

/// The known faults of a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultReason {
    /// The platform runs as many VMs as it may, or one that it still counts is gone.
    LimitExceeded,
    /// No graphical session, or its keychain is locked: a macOS 15 guest cannot make its host key.
    SessionLost,
    /// Another process holds the auxiliary storage.
    StorageLocked,
    /// The volume is full.
    OutOfSpace,
    /// The disk cannot be used.
    DiskBroken,
    /// The configuration is not one that this Mac can run, or the program lacks its entitlement.
    Unfit,
    /// The network of the machine failed.
    Network,
    /// A saved machine does not fit this one.
    StateMismatch,
    /// The machine was not in a state in which it could do that.
    WrongState,
    /// Anything else.
    Internal,
}

impl FaultReason {
    /// What happened and what to do about it, for an operator.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            Self::LimitExceeded => "no room for another VM on this Mac; look for stray VMs, or reboot it when empty",
            Self::SessionLost => "no logged-in graphical session, or its keychain is locked; log the service's user in",
            Self::StorageLocked => "another process holds this VM's auxiliary storage; end the VM that was left over",
            Self::OutOfSpace => "the volume of the data directory is full; remove images, or free space",
            Self::DiskBroken => "the disk image cannot be used; remove the image, then pull it again",
            Self::Unfit => "this Mac cannot run such a VM; check the image's macOS version and `flyci doctor`",
            Self::Network => "the VM's network failed",
            Self::StateMismatch => "the saved VM does not fit; it is booted afresh",
            Self::WrongState => "the VM was not in a state for that",
            Self::Internal => "Virtualization.framework failed; `flyci doctor` looks for known causes",
        }
    }
}

/// An `NSError`, as far as it tells what happened: what the framework's side reads out of it, so that its meaning is
/// decided here, and tested where there is no framework.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ErrorReport {
    /// Whose codes these are: `VZErrorDomain`, `NSPOSIXErrorDomain`, …
    pub domain: String,
    /// The code within the domain.
    pub code: i64,
    /// The sentences for people: description and reason.
    pub text: String,
    /// What caused it, if that is told.
    pub cause: Option<Box<Self>>,
}

/// The framework's own errors (`VZErrorDomain`).
const VZ: &str = "VZErrorDomain";

/// Errors of system calls (`NSPOSIXErrorDomain`).
const POSIX_DOMAIN: &str = "NSPOSIXErrorDomain";

/// How many causes of causes are looked at.
pub const CAUSES: usize = 4;

/// Most characters of a fault's detail.
const DETAIL_CHARACTERS: usize = 600;

/// The codes of `VZErrorDomain` (VZError.h), and one that Apple does not document.
mod code {
    pub const INVALID_CONFIGURATION: i64 = 2;
    pub const INVALID_STATE: i64 = 3;
    pub const INVALID_STATE_TRANSITION: i64 = 4;
    pub const INVALID_DISK_IMAGE: i64 = 5;
    pub const LIMIT_EXCEEDED: i64 = 6;
    pub const NETWORK: i64 = 7;
    pub const OUT_OF_DISK_SPACE: i64 = 8;
    pub const OPERATION_CANCELLED: i64 = 9;
    pub const NOT_SUPPORTED: i64 = 10;
    pub const RESTORE: i64 = 12;
    pub const INSTALLATION_REQUIRES_UPDATE: i64 = 10006;
    pub const NETWORK_BLOCK_DEVICE_NEGOTIATION_FAILED: i64 = 20001;
    pub const NETWORK_BLOCK_DEVICE_DISCONNECTED: i64 = 20002;
    /// "Failed to create new HostKey" (macOS 26).
    pub const NO_HOST_KEY: i64 = -9;
}

impl Fault {
    /// What an error of the framework means to us.
    #[must_use]
    pub fn of(report: &ErrorReport) -> Self {
        let told: Vec<String> =
            report.chain().map(|error| format!("{} ({} {})", error.text.trim(), error.domain, error.code)).collect();
        let printable = told.join("; caused by: ").replace(|c: char| c.is_control(), " ");
        Self { reason: report.reason(), detail: printable.chars().take(DETAIL_CHARACTERS).collect() }
    }

    /// A fault that is ours to tell, not the framework's.
    #[must_use]
    pub fn new(reason: FaultReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

impl ErrorReport {
    /// It and its causes, the outermost first.
    fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |error| error.cause.as_deref()).take(CAUSES)
    }

    /// A cause that can be mended is worth more than the framework's own code, which is often only "internal".
    fn reason(&self) -> FaultReason {
        let of_cause = |told: fn(&Self) -> bool| self.chain().any(told);
        if of_cause(Self::is_no_space) {
            FaultReason::OutOfSpace
        } else if of_cause(Self::is_no_session) {
            FaultReason::SessionLost
        } else if self.is_locked_storage() {
            FaultReason::StorageLocked
        } else {
            self.chain().find_map(Self::by_code).unwrap_or(FaultReason::Internal)
        }
    }

    fn is(&self, domain: &str, codes: &[i64]) -> bool {
        self.domain == domain && codes.contains(&self.code)
    }

    fn says(&self, words: &str) -> bool {
        self.text.to_lowercase().contains(words)
    }

    fn is_no_space(&self) -> bool {
        /// `ENOSPC` and `EDQUOT` of macOS, and `NSFileWriteOutOfSpaceError`.
        const POSIX: &[i64] = &[28, 69];
        const COCOA: &[i64] = &[640];
        self.is(VZ, &[code::OUT_OF_DISK_SPACE])
            || self.is(POSIX_DOMAIN, POSIX)
            || self.is("NSCocoaErrorDomain", COCOA)
            || ["no space left on device", "enough space", "out of space", "disk is full"]
                .iter()
                .any(|words| self.says(words))
    }

    fn is_no_session(&self) -> bool {
        /// `errSecInteractionNotAllowed`: the keychain is locked, and there is nobody to ask.
        const KEYCHAIN: &[i64] = &[-25308];
        self.is(VZ, &[code::NO_HOST_KEY]) || self.is("NSOSStatusErrorDomain", KEYCHAIN) || self.says("hostkey")
    }

    /// "Failed to lock auxiliary storage": told as a wrong configuration, for whose files another holds the lock.
    fn is_locked_storage(&self) -> bool {
        /// `EAGAIN` of macOS.
        const POSIX: &[i64] = &[35];
        self.chain().any(|error| error.says("lock auxiliary storage"))
            || self.is(VZ, &[code::INVALID_CONFIGURATION]) && self.chain().any(|error| error.is(POSIX_DOMAIN, POSIX))
    }

    fn by_code(&self) -> Option<FaultReason> {
        if self.domain != VZ {
            return None;
        }
        match self.code {
            code::LIMIT_EXCEEDED => Some(FaultReason::LimitExceeded),
            code::INVALID_CONFIGURATION | code::NOT_SUPPORTED | code::INSTALLATION_REQUIRES_UPDATE => {
                Some(FaultReason::Unfit)
            }
            code::INVALID_STATE | code::INVALID_STATE_TRANSITION | code::OPERATION_CANCELLED => {
                Some(FaultReason::WrongState)
            }
            code::INVALID_DISK_IMAGE => Some(FaultReason::DiskBroken),
            code::NETWORK | code::NETWORK_BLOCK_DEVICE_NEGOTIATION_FAILED | code::NETWORK_BLOCK_DEVICE_DISCONNECTED => {
                Some(FaultReason::Network)
            }
            code::RESTORE => Some(FaultReason::StateMismatch),
            // Internal (1), whose cause may tell more. Not saved (11): the machine goes on as it is, and nothing is there
            // that would not fit. The rest is of installing from a restore image and of USB devices, which flyci does not.
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(domain: &str, code: i64, text: &str) -> ErrorReport {
        ErrorReport { domain: domain.to_owned(), code, text: text.to_owned(), cause: None }
    }

    fn vz(code: i64) -> ErrorReport {
        error("VZErrorDomain", code, "The virtual machine failed.")
    }

    fn caused_by(mut error: ErrorReport, cause: ErrorReport) -> ErrorReport {
        error.cause = Some(Box::new(cause));
        error
    }

    #[test]
    fn every_code_of_the_framework_has_its_reason() {
        let told = [
            (-9, FaultReason::SessionLost),
            (1, FaultReason::Internal),
            (2, FaultReason::Unfit),
            (3, FaultReason::WrongState),
            (4, FaultReason::WrongState),
            (5, FaultReason::DiskBroken),
            (6, FaultReason::LimitExceeded),
            (7, FaultReason::Network),
            (8, FaultReason::OutOfSpace),
            (9, FaultReason::WrongState),
            (10, FaultReason::Unfit),
            (11, FaultReason::Internal),
            (12, FaultReason::StateMismatch),
            (10006, FaultReason::Unfit),
            (20001, FaultReason::Network),
            (20002, FaultReason::Network),
        ];
        for (code, reason) in told {
            assert_eq!(Fault::of(&vz(code)).reason, reason, "code {code}");
        }
        for code in (10001..=10005).chain([10007]).chain(30001..=30004).chain([0, 13, i64::MIN]) {
            assert_eq!(Fault::of(&vz(code)).reason, FaultReason::Internal, "code {code}");
        }
        assert_eq!(Fault::of(&caused_by(vz(1), vz(6))).reason, FaultReason::LimitExceeded);
        assert_eq!(Fault::of(&error("SomeoneElsesDomain", 6, "")).reason, FaultReason::Internal);
    }

    #[test]
    fn a_full_volume_is_told_whoever_says_so() {
        let causes = [
            error("NSPOSIXErrorDomain", 28, "No space left on device"),
            error("NSPOSIXErrorDomain", 69, "Disc quota exceeded"),
            error("NSCocoaErrorDomain", 640, "You can’t save the file because the volume is out of space."),
            error("Foreign", 1, "write: no space left on device"),
            error("Foreign", 1, "There isn’t enough space on “Macintosh HD”."),
        ];
        for cause in causes {
            for outer in [1, 5, 11] {
                let fault = Fault::of(&caused_by(vz(outer), cause.clone()));
                assert_eq!(fault.reason, FaultReason::OutOfSpace, "{fault}");
            }
        }
    }

    #[test]
    fn a_lost_session_is_told_by_each_version_of_macos() {
        let of_15 = caused_by(vz(1), error("NSOSStatusErrorDomain", -25308, "User interaction is not allowed."));
        assert_eq!(Fault::of(&of_15).reason, FaultReason::SessionLost);
        let of_26 = error("VZErrorDomain", -9, "The virtual machine failed to start.");
        assert_eq!(Fault::of(&of_26).reason, FaultReason::SessionLost);
        let by_words = caused_by(vz(1), error("Foreign", -9, "Failed to create new HostKey."));
        assert_eq!(Fault::of(&by_words).reason, FaultReason::SessionLost);
    }

    #[test]
    fn auxiliary_storage_that_another_process_holds_is_no_wrong_configuration() {
        let by_code = caused_by(vz(2), error("NSPOSIXErrorDomain", 35, "Resource temporarily unavailable"));
        assert_eq!(Fault::of(&by_code).reason, FaultReason::StorageLocked);
        let by_words = error("VZErrorDomain", 2, "Invalid configuration. Failed to lock auxiliary storage.");
        assert_eq!(Fault::of(&by_words).reason, FaultReason::StorageLocked);
        let elsewhere = caused_by(vz(1), error("NSPOSIXErrorDomain", 35, "Resource temporarily unavailable"));
        assert_eq!(Fault::of(&elsewhere).reason, FaultReason::Internal);
    }

    #[test]
    fn the_detail_holds_the_causes_and_is_bounded() {
        let fault = Fault::of(&caused_by(vz(1), error("NSPOSIXErrorDomain", 5, "Input/output\nerror")));
        assert_eq!(
            fault.detail,
            "The virtual machine failed. (VZErrorDomain 1); caused by: Input/output error (NSPOSIXErrorDomain 5)"
        );
        let endless = (0..100).fold(vz(1), |cause, _| caused_by(vz(1), cause));
        assert!(Fault::of(&endless).detail.matches("caused by").count() < CAUSES);
        let long = Fault::of(&error("VZErrorDomain", 1, &"é".repeat(10_000)));
        assert_eq!(long.detail.chars().count(), DETAIL_CHARACTERS);
    }
}
