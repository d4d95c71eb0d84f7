//! Holdfast under real processes and real clients: what the tests in `tests/` stand on.
//!
//! A [`Cluster`] is one agent with its data directory, its ports and everything it spawned; it is started by the
//! built binary, never by calling the library, and whatever it leaves behind is ended when it is dropped. Nothing
//! here sleeps to synchronise: every wait is [`eventually`], which asks for an event until a deadline.
#![forbid(unsafe_code)]

pub mod block;
pub mod cli;
pub mod cluster;
pub mod control;
pub mod etcd;
pub mod exposition;
pub mod faults;
pub mod fill;
pub mod fleet;
pub mod history;
pub mod hostile;
pub mod image;
pub mod logs;
pub mod mounts;
pub mod orphans;
pub mod ports;
pub mod process;
pub mod questions;
pub mod records;
pub mod rng;
pub mod scale;
#[path = "../sim/mod.rs"]
pub mod sim;
pub mod tools;
pub mod trial;
pub mod view;
pub mod wait;
pub mod wire;
pub mod workload;

pub use block::BlockClient;
pub use cli::CliOutput;
pub use cluster::{AgentOptions, Cluster, QuickstartOptions};
pub use etcd::Etcd;
pub use fleet::Fleet;
pub use rng::Rng;
pub use view::{Instance, Replica, Volume};
pub use wait::{SECOND, eventually};

/// One mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;
/// The unit of the volume: one block, in bytes.
pub const BLOCK: u64 = 4096;

/// A test that cannot run here says so where nobody can miss it: past the capture of the test harness.
pub fn skip_aloud(test: &str, needs: &str) {
    use std::io::Write as _;
    let line = format!("SKIPPED: {test}: needs {needs}\n");
    std::io::stderr().lock().write_all(line.as_bytes()).expect("standard error takes a line");
}
