//! The listeners, from outside.

mod admin;
mod metrics;
mod public;
mod sources;
mod tls;
mod why;
