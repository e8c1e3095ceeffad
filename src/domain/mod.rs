//! What flyci is about, without clock, I/O or async: ids, labels, profiles, and the states of
//! job, vm and runner. Time and chance come in as arguments.

pub mod ids;
pub mod labels;
pub mod units;
