//! HTTP: deliveries from GitHub, health, the admin API, metrics.
//!
//! Owns the routers, their limits and the listeners. Does not decide anything about a delivery
//! (`intake`), and opens stored names for the admin API alone (`admin`).

pub mod admin;
mod body;
mod connections;
mod failure;
mod headers;
mod metrics;
mod public;
mod readiness;
mod security_txt;
pub mod servers;
mod sources;
mod throttle;
mod tls;

pub use body::{BODY_DEADLINE, MAX_BODY, Purse};
pub use connections::Peer;
pub use failure::REQUEST_ID;
pub use metrics::{MetricsState, router as metrics_router};
pub use public::{PublicState, ROUTES as PUBLIC_ROUTES, router as public_router};
pub use readiness::Readiness;
pub use security_txt::SecurityTxt;
pub use sources::{Source, Sources};
pub use tls::{Tls, TlsError, TlsMode};
