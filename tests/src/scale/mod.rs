//! Many nodes publish their inventories into one registry: the real publishers, readers and codec on simulated time, and
//! a registry that only counts. No process, disk or network takes part, and a write takes no time.
//!
//! Volumes have three replicas, one in each of three zones, the first beside the engine; so a node of the full size has
//! 25 engines, 75 replicas and their directories. What a volume's epoch or the state of its processes says is put into
//! the entries of the nodes that it is on, as their agents do.

mod fleet;
mod registry;
mod scenario;

pub use fleet::Size;
pub use registry::Counts;
pub use scenario::{Report, Scenario, run};
