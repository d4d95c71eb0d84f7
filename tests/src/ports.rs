//! Blocks of TCP ports: each test has its own, also against other test runs on this machine.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use crate::faults::proxy::ADVERTISED;

const FIRST: u16 = 20_000;
const BLOCK: u16 = 20;
const BLOCKS: u16 = 500;
/// The last ports of a block are for what the test itself serves or asks to be served.
const OWN: u16 = 4;

/// A block of ports that nobody else uses while this lives: a lock on a file, so that even a killed test gives it
/// back.
#[derive(Debug)]
pub struct PortBlock {
    first: u16,
    _lock: File,
}

impl PortBlock {
    /// Takes a block.
    ///
    /// # Panics
    /// When all are taken.
    #[must_use]
    pub fn take() -> Self {
        let dir = lock_dir();
        // Runs that start together look in different places first.
        let start = u16::try_from(std::process::id() % u32::from(BLOCKS)).expect("below BLOCKS");
        for i in 0..BLOCKS {
            let number = (start + i) % BLOCKS;
            let first = FIRST + number * BLOCK;
            let path = dir.join(number.to_string());
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()));
            if file.try_lock().is_ok() && is_free(first) {
                return Self { first, _lock: file };
            }
        }
        panic!("all {BLOCKS} blocks of ports from {FIRST} are in use (locks in {})", dir.display());
    }
    /// For `--data-ports`: first and last.
    #[must_use]
    pub fn data_ports(&self) -> String {
        format!("{}-{}", self.first, self.first + BLOCK - OWN - 1)
    }
    /// The same as numbers.
    #[must_use]
    pub fn data_port_range(&self) -> std::ops::RangeInclusive<u16> {
        self.first..=self.first + BLOCK - OWN - 1
    }
    /// One of the test's own ports.
    ///
    /// # Panics
    /// When `index` is not below 4.
    #[must_use]
    pub fn own(&self, index: u16) -> u16 {
        assert!(index < OWN, "a test has {OWN} ports of its own");
        self.first + BLOCK - OWN + index
    }
}

fn lock_dir() -> PathBuf {
    let dir = std::env::temp_dir().join(format!("holdfast-test-ports-{}", nix::unistd::getuid()));
    std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("cannot create {}: {e}", dir.display()));
    dir
}

/// Also on the address of the network between engines and replicas, which may end a moment after its cluster.
fn is_free(first: u16) -> bool {
    let free =
        |port| [Ipv4Addr::LOCALHOST, ADVERTISED].iter().all(|at| TcpListener::bind((*at, port)).is_ok());
    (first..first + BLOCK).all(free)
}
