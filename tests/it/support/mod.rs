//! What the tests stand on.

pub mod database;
pub mod gate;
pub mod payload;
pub mod world;
