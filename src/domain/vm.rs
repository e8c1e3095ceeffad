//! The states of a vm.
//!
//! ```text
//! planned → cloning → cloned → booting → ready ⇄ bound → delivering → serving → stopping → gone
//!    └─────────┴─────────┴────────┴────────┴──────┴──▶ abandoned ─▶ stopping
//!                                      delivering, serving ⇄ unreachable
//! any live state → stopping
//! ```
//!
//! The `-ing` states are intents, committed before the act: whoever finds one after a crash knows
//! that the act may have been begun. `bound → ready` is taken when the demand goes before GitHub was
//! asked for a runner: the vm is blank again, so nothing is wasted.

use super::reason::VmEnd;
use std::fmt;

/// The state of a vm, with what is true only then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmState {
    /// A slot is taken; nothing is on the disk.
    Planned,
    /// The clone is being made.
    Cloning,
    /// The clone is there.
    Cloned,
    /// The process is being started, or the guest boots.
    Booting,
    /// The agent answers. Blank: no job, no tenant.
    Ready,
    /// Taken for a class; a runner was requested for it.
    Bound,
    /// A JIT config may have reached the guest from here on.
    Delivering,
    /// The runner was started.
    Serving,
    /// Its host was silent; GitHub said that its runner is busy.
    Unreachable,
    /// Its host was silent before anything was delivered: its demand counts again.
    Abandoned,
    /// It is being destroyed. May last for ever, and keeps its slot.
    Stopping(VmEnd),
    /// Nothing is left of it.
    Gone(VmEnd),
    /// Written by a later version: nothing of this version touches it.
    Unknown,
}

/// What can happen to a vm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmEvent {
    /// Its host begins the clone.
    BeginClone,
    /// The clone was made.
    Cloned,
    /// Its host begins to start the process.
    BeginBoot,
    /// The agent answered.
    Ready,
    /// A class with a deficit took it.
    Bind,
    /// The demand went before GitHub was asked.
    Unbind,
    /// Its host is about to send the JIT config.
    BeginDelivery,
    /// The runner was started.
    Served,
    /// Its host is silent, and nothing was delivered.
    Abandon,
    /// Its host is silent, and its runner is busy.
    LoseSight,
    /// Its host is back.
    Return,
    /// It is to be destroyed.
    Stop(VmEnd),
    /// Nothing is left of it.
    Destroyed,
}

/// The event does not fit the state: somebody else was faster, or there is a mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a vm that is {state} cannot take {event:?}")]
pub struct Denied {
    /// The state it was in.
    pub state: VmState,
    /// What was to happen.
    pub event: VmEvent,
}

impl VmState {
    /// The stable spelling, as stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Cloning => "cloning",
            Self::Cloned => "cloned",
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Bound => "bound",
            Self::Delivering => "delivering",
            Self::Serving => "serving",
            Self::Unreachable => "unreachable",
            Self::Abandoned => "abandoned",
            Self::Stopping(_) => "stopping",
            Self::Gone(_) => "gone",
            Self::Unknown => "unknown",
        }
    }

    /// The state with this spelling and, for an ended one, this reason.
    #[must_use]
    pub fn decode(state: &str, reason: Option<&str>) -> Self {
        let end = || reason.and_then(VmEnd::parse);
        match state {
            "planned" => Self::Planned,
            "cloning" => Self::Cloning,
            "cloned" => Self::Cloned,
            "booting" => Self::Booting,
            "ready" => Self::Ready,
            "bound" => Self::Bound,
            "delivering" => Self::Delivering,
            "serving" => Self::Serving,
            "unreachable" => Self::Unreachable,
            "abandoned" => Self::Abandoned,
            "stopping" => end().map_or(Self::Unknown, Self::Stopping),
            "gone" => end().map_or(Self::Unknown, Self::Gone),
            _ => Self::Unknown,
        }
    }

    /// The reason of its end, if it is ending.
    #[must_use]
    pub const fn end(self) -> Option<VmEnd> {
        match self {
            Self::Stopping(end) | Self::Gone(end) => Some(end),
            Self::Planned
            | Self::Cloning
            | Self::Cloned
            | Self::Booting
            | Self::Ready
            | Self::Bound
            | Self::Delivering
            | Self::Serving
            | Self::Unreachable
            | Self::Abandoned
            | Self::Unknown => None,
        }
    }

    /// True when it may still come to have a job: what a class's deficit counts.
    #[must_use]
    pub const fn is_supply(self) -> bool {
        matches!(
            self,
            Self::Planned
                | Self::Cloning
                | Self::Cloned
                | Self::Booting
                | Self::Ready
                | Self::Bound
                | Self::Delivering
                | Self::Serving
                | Self::Unreachable
        )
    }

    /// True when a JIT config may have reached its guest: from here on the registration at
    /// GitHub is the fence, and it must not simply be destroyed.
    #[must_use]
    pub const fn may_hold_registration(self) -> bool {
        matches!(self, Self::Delivering | Self::Serving | Self::Unreachable)
    }
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a vm in `state` becomes by `event`.
///
/// # Errors
/// [`Denied`] when the event does not fit the state.
pub fn next(state: VmState, event: VmEvent) -> Result<VmState, Denied> {
    use VmEvent as E;
    use VmState as S;
    let denied = Err(Denied { state, event });
    match (state, event) {
        (S::Planned, E::BeginClone) => Ok(S::Cloning),
        (S::Cloning, E::Cloned) => Ok(S::Cloned),
        (S::Cloned, E::BeginBoot) => Ok(S::Booting),
        (S::Booting, E::Ready) | (S::Bound, E::Unbind) => Ok(S::Ready),
        (S::Ready, E::Bind) => Ok(S::Bound),
        (S::Bound, E::BeginDelivery) => Ok(S::Delivering),
        (S::Delivering, E::Served) | (S::Unreachable, E::Return) => Ok(S::Serving),
        (S::Planned | S::Cloning | S::Cloned | S::Booting | S::Ready | S::Bound, E::Abandon) => Ok(S::Abandoned),
        (S::Delivering | S::Serving, E::LoseSight) => Ok(S::Unreachable),
        (
            S::Planned
            | S::Cloning
            | S::Cloned
            | S::Booting
            | S::Ready
            | S::Bound
            | S::Delivering
            | S::Serving
            | S::Unreachable
            | S::Abandoned,
            E::Stop(end),
        ) => Ok(S::Stopping(end)),
        (S::Stopping(end), E::Destroyed) => Ok(S::Gone(end)),
        (
            S::Planned
            | S::Cloning
            | S::Cloned
            | S::Booting
            | S::Ready
            | S::Bound
            | S::Delivering
            | S::Serving
            | S::Unreachable
            | S::Abandoned
            | S::Stopping(_)
            | S::Gone(_)
            | S::Unknown,
            E::BeginClone
            | E::Cloned
            | E::BeginBoot
            | E::Ready
            | E::Bind
            | E::Unbind
            | E::BeginDelivery
            | E::Served
            | E::Abandon
            | E::LoseSight
            | E::Return
            | E::Stop(_)
            | E::Destroyed,
        ) => denied,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EVENTS: [VmEvent; 13] = [
        VmEvent::BeginClone,
        VmEvent::Cloned,
        VmEvent::BeginBoot,
        VmEvent::Ready,
        VmEvent::Bind,
        VmEvent::Unbind,
        VmEvent::BeginDelivery,
        VmEvent::Served,
        VmEvent::Abandon,
        VmEvent::LoseSight,
        VmEvent::Return,
        VmEvent::Stop(VmEnd::JobDone),
        VmEvent::Destroyed,
    ];

    #[test]
    fn the_ordinary_life() {
        let mut state = VmState::Planned;
        for event in [
            VmEvent::BeginClone,
            VmEvent::Cloned,
            VmEvent::BeginBoot,
            VmEvent::Ready,
            VmEvent::Bind,
            VmEvent::BeginDelivery,
            VmEvent::Served,
            VmEvent::Stop(VmEnd::JobDone),
            VmEvent::Destroyed,
        ] {
            state = next(state, event).expect("each step follows the one before");
        }
        assert_eq!(state, VmState::Gone(VmEnd::JobDone));
    }

    proptest! {
        /// Whatever happens in whatever order: at most one destroy, nothing after it, and a vm
        /// that once may have held a registration never counts as blank again.
        #[test]
        fn any_order_ends_with_at_most_one_destroy(order in prop::collection::vec(0..EVENTS.len(), 0..60)) {
            let mut state = VmState::Planned;
            let (mut destroys, mut delivered) = (0, false);
            for index in order {
                let event = EVENTS[index];
                let Ok(after) = next(state, event) else { continue };
                prop_assert!(!matches!(state, VmState::Gone(_)), "something happened after gone");
                destroys += u32::from(event == VmEvent::Destroyed);
                delivered |= after.may_hold_registration();
                prop_assert!(!delivered || !matches!(after, VmState::Ready | VmState::Bound | VmState::Abandoned));
                state = after;
            }
            prop_assert!(destroys <= 1);
            if !matches!(state, VmState::Gone(_) | VmState::Stopping(_)) {
                prop_assert!(next(state, VmEvent::Stop(VmEnd::Killed)).is_ok(), "a live vm can be stopped");
            }
        }

        #[test]
        fn what_is_stored_is_read_back(order in prop::collection::vec(0..EVENTS.len(), 0..20)) {
            let mut state = VmState::Planned;
            for index in order {
                state = next(state, EVENTS[index]).unwrap_or(state);
                prop_assert_eq!(VmState::decode(state.as_str(), state.end().map(VmEnd::as_str)), state);
            }
        }
    }
}
