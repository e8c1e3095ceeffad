//! Tests against a real Postgres: the parts of the daemon, and the whole of it with a simulated GitHub
//! on the wire. `script/test` starts the Postgres.

mod audit;
mod bad_input;
mod demand;
mod dump;
mod faults;
mod fleet;
mod intake;
mod keys;
mod octokit;
mod privacy;
mod proof;
mod reconcile;
mod roles;
mod schema;
mod stories;
mod support;
mod trust;
mod web;
