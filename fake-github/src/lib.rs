//! A stateful GitHub on the wire, for flyci's tests and `flyci demo`: the part of GitHub's REST API that flyci calls,
//! webhooks, the queue of jobs, and a small runner that runs them. It owns no part of flyci.
//!
//! - [`FakeGitHub`]: starts a server; its verbs read as a story (`install`, `repository`, `queue_job`, …);
//! - [`runner`]: the runner in-process, with scripted behaviour;
//! - [`guest`]: the runner as a program for real guests (binary `fake-runner`);
//! - [`protocol`]: what runners and server say to each other.
//!
//! Rules and shapes follow GitHub's REST documentation and OpenAPI description.

pub mod protocol;

#[cfg(feature = "guest")]
pub mod guest;

#[cfg(feature = "server")]
pub mod control;
#[cfg(feature = "server")]
mod fake;
#[cfg(feature = "server")]
pub mod hub;
#[cfg(feature = "server")]
pub mod runner;
#[cfg(feature = "server")]
mod secret;
#[cfg(feature = "server")]
mod server;
#[cfg(feature = "server")]
mod shapes;
#[cfg(feature = "server")]
mod tls;
#[cfg(feature = "server")]
pub mod webhooks;
#[cfg(feature = "server")]
pub mod world;

#[cfg(feature = "server")]
pub use control::views::{DeliveryView, Installation, JobHandle, JobView, Repo, RunnerView};
#[cfg(feature = "server")]
pub use fake::{FakeGitHub, Options, StartError};
#[cfg(feature = "server")]
pub use hub::Late;
#[cfg(feature = "server")]
pub use protocol::Conclusion;
#[cfg(feature = "server")]
pub use world::model::{AccountKind, JobScript, Status, Visibility};
#[cfg(feature = "server")]
pub use world::switches::{DeliverySwitches, Failure, Secondary, Switches};
