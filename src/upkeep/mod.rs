//! What keeps the tables, the machines and GitHub in agreement: input-free tasks, each with a `pass()`.
//!
//! | task | role | what it settles |
//! |---|---|---|
//! | [`doubts`] | gateway | jobs and installations whose state is in doubt, by asking GitHub |
//! | [`prune`] | gateway | rows beyond their retention |
//! | [`sweep`] | host | VMs without a row, and rows without a driver |

pub mod doubts;
pub mod prune;
pub mod sweep;
