//! What the tests stand on.

pub mod database;
pub mod gate;
pub mod payload;
pub mod program;
pub mod site;
pub mod world;
