//! The simulated GitHub against GitHub's documented rules, over HTTP, as flyci and runners see it.

mod client;
mod contract;
mod deliveries;
mod guest;
mod process;
mod rules;
mod story;
