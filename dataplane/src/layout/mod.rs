//! What a replica keeps on disk: bytes to types and back, and the few file operations that must be atomic.
//! `docs/disk-format.md` describes the files byte by byte.

pub mod bitmap;
pub mod bitmap_file;
#[cfg(test)]
mod golden_tests;
pub mod meta;
pub mod replica_dir;

pub use meta::{Meta, MetaError};
pub use replica_dir::{
    ReplicaDir, ReplicaDirError, allocated_bytes, create_replica_dir, label_file, making_path, read_label,
    remove_unfinished,
};
