//! Processes: where their binary comes from, starting them, watching them, finding them again, and talking to them.
//!
//! An instance's exclusive lock on its directory proves that it lives; a pid never does. [`driver`] is the one task
//! per instance that puts the parts together.

pub mod binary;
pub mod cgroup;
pub mod driver;
pub mod link;
pub mod logs;
pub mod proc;
pub mod spawn;
pub mod watch;
