//! Faults on demand: of the network, of disks, of processes; and schedules of them by a seed.

pub mod disk;
mod fs;
pub mod proxy;
mod undo;

pub use disk::{FaultyDisk, Trouble};
pub use proxy::{Network, Weather};
