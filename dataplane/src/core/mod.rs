//! Pure state machines.

pub mod flush;
pub mod replica;
