//! The per-node agent: supervises engines and replicas, keeps volume records, and answers operators.
#![forbid(unsafe_code)]

mod blocking;
pub mod cli;
pub mod complaint;
pub mod config;
pub mod core;
pub mod error;
#[cfg(test)]
mod golden_tests;
pub mod metrics;
pub mod node;
pub mod preflight;
pub mod process;
pub mod registry;
pub mod rpc;
pub mod runtime_dir;
pub mod store;
pub mod telemetry;
pub mod units;
