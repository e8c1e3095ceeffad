//! The control verbs: what people and their code do at GitHub, as functions and over HTTP.

pub mod http;
pub mod verb;
pub mod verbs;
pub mod views;
