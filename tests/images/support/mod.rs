//! A registry, what stands before it, and images to put there.

pub mod apple;
pub mod bundle;
pub mod proxy;
pub mod registry;
