//! Reads an `NSError`. What it means is decided in [`fault`](crate::hypervisor::vz::fault).

use crate::hypervisor::vz::fault::{CAUSES, ErrorReport, Fault};
use objc2_foundation::NSError;

/// What the framework says of a failure, as one of ours.
pub(super) fn fault(error: &NSError) -> Fault {
    Fault::of(&report(error, CAUSES))
}

/// The error and as many of its causes as are looked at.
fn report(error: &NSError, depth: usize) -> ErrorReport {
    let mut text = error.localizedDescription().to_string();
    if let Some(reason) = error.localizedFailureReason().map(|reason| reason.to_string())
        && !text.contains(&reason)
    {
        text = format!("{text} {reason}");
    }
    let cause = match depth {
        0 => None,
        _ => error.underlyingErrors().firstObject().map(|cause| Box::new(report(&cause, depth - 1))),
    };
    ErrorReport { domain: error.domain().to_string(), code: error.code() as i64, text, cause }
}
