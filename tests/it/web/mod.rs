//! The listeners, from outside.

mod admin;
mod metrics;
mod pins;
mod public;
mod sources;
mod tls;
mod why;
