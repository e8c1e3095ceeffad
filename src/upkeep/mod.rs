//! What keeps the tables, the machines and GitHub in agreement: input-free tasks, each with a `pass()`.
//!
//! | task | role | what it settles |
//! |---|---|---|
//! | [`redeliver`] | gateway | deliveries that failed, by having GitHub deliver them again |
//! | [`pull`] | gateway | all deliveries, from GitHub's log of them, where there is no webhook |
//! | [`backfill`] | gateway | jobs that no delivery told us of, and those that are not as we have them |
//! | [`doubts`] | gateway | jobs, installations and repositories that are in doubt, by asking GitHub |
//! | [`registrations`] | gateway | registrations at GitHub that nothing stands behind |
//! | [`holds`] | gateway | until when GitHub holds calls back: what one gateway was told, all obey |
//! | [`rescue`] | gateway | vms of hosts that went silent, so that their demand counts again |
//! | [`rerun`] | gateway | jobs that we lost, by having GitHub run them again |
//! | [`follow`] | host | images that its profiles name: pulled as they are pinned |
//! | [`rollouts`] | gateway | updates of images, by what their canary has shown |
//! | [`images`] | host | images that nothing needs |
//! | [`erase`] | gateway | tenants that are to be forgotten |
//! | [`joins`] | gateway | hosts that ask to join |
//! | [`keys`] | gateway | the master key: rotated, and destroyed when nothing needs it |
//! | [`prune`] | gateway | rows beyond their retention |
//! | [`trail`] | gateway | the audit trail: heads told, old rows removed, the chain verified |
//! | [`sweep`] | host | VMs without a row, and rows without a driver |

pub mod backfill;
mod budget;
pub mod doubts;
pub mod erase;
pub mod follow;
pub mod holds;
pub mod images;
pub mod joins;
pub mod keys;
mod log;
pub mod prune;
pub mod pull;
pub mod redeliver;
pub mod registrations;
pub mod rerun;
pub mod rescue;
pub mod rollouts;
pub mod sweep;
pub mod trail;
