//! Webhooks: payloads, the sender with its log, and what gets lost on the way.

pub mod log;
pub mod payload;
pub mod sender;
pub mod unreliable;
