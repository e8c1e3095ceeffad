//! A registry, what stands before it, and images to put there.

pub mod apple;
pub mod bundle;
#[path = "../../it/support/database.rs"]
#[expect(dead_code, reason = "shared with tests/it, which uses all of it")]
pub mod database;
pub mod proxy;
pub mod registry;
