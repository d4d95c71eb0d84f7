//! Faults on demand: of the network, of disks, of processes; and schedules of them by a seed.

pub mod clock;
pub mod disk;
mod fs;
mod handshake;
pub mod plan;
pub mod proxy;
mod undo;

pub use clock::WallClock;
pub use disk::{FaultyDisk, Trouble};
pub use plan::{Fault, Planned, schedule};
pub use proxy::{Network, Weather};
