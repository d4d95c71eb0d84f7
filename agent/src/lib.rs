//! The per-node agent: supervises engines and replicas, keeps volume records, and answers operators.
#![forbid(unsafe_code)]

pub mod core;
pub mod error;
pub mod node;
pub mod process;
pub mod registry;
pub mod store;
