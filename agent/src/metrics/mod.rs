//! Metrics in Prometheus' text format: what the agent counts ([`Counts`]), what it has seen ([`Observed`]), and how that
//! is written ([`render`], pure) and served ([`MetricsServer`]).
//!
//! A scrape reads what the agent knows already. It asks no instance, no registry and no disk, so it answers while any of
//! them hangs, and costs them nothing. Series go away with what they are about. Labels are names and fixed words: no
//! reason, path, address or key.

mod counts;
mod render;
mod server;

pub use counts::{Counts, Histogram};
pub(crate) use render::SUSPENDED;
pub use render::{InTrash, Observed, ProcessUse, Since, Space, render};
pub use server::{MetricsListener, MetricsServer};

#[cfg(test)]
mod tests;
