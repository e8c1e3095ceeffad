//! Builds the roles, owns every task, shuts down.

pub mod gateway;
pub mod host;
pub mod loops;
