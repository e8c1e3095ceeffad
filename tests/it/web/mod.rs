//! The listeners, from outside.

mod admin;
mod metrics;
mod public;
mod tls;
mod why;
