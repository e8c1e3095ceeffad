//! The runner that runs inside guests.
