//! The pure core: state machines that take events and the time and return actions. No socket, file, task, clock or
//! log is here, so that all of it runs under simulation.

pub mod ahead;
pub mod engine;
pub mod flush;
pub mod inline;
#[cfg(test)]
mod model;
pub mod range_lock;
pub mod rebuild_budget;
pub mod region_map;
pub mod replica;
mod rules;
pub mod seats;
pub mod shares;
pub mod stalls;
pub mod start;
pub mod tracking;
pub mod writeback;
pub mod zero_blocks;
pub mod zero_steps;
