//! What flyci is about, without clock, I/O or async: ids, labels, profiles, and the states of
//! job, vm and runner. Time and chance come in as arguments.

pub mod admission;
pub mod class;
pub mod counted;
pub mod ids;
pub mod job;
pub mod labels;
pub mod profile;
pub mod reason;
pub mod rollout;
pub mod runner;
pub mod runner_version;
pub mod units;
pub mod vm;
