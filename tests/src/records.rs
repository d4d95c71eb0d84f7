//! Where the agent's file registry keeps its records, for tests that damage them, and its keys, for tests that
//! speak the data protocol themselves. `docs/disk-format.md` describes both.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::view::Volume;

/// The record of a volume.
#[must_use]
pub fn record_path(data_dir: &Path, volume: &str) -> PathBuf {
    data_dir.join("registry/volumes").join(format!("{volume}.json"))
}

/// The record of a volume, as JSON.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn record(data_dir: &Path, volume: &str) -> Value {
    let path = record_path(data_dir, volume);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{} is no JSON: {e}", path.display()))
}

/// A volume's key, with its id.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn key(data_dir: &Path, volume: &Volume) -> (u64, [u8; 32]) {
    let path = key_path(data_dir, volume);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    let file: Value =
        serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{} is no JSON: {e}", path.display()));
    let hex = file["key_hex"].as_str().expect("a key file has key_hex");
    let mut key = [0; 32];
    assert_eq!(hex.len(), 64, "a key has 32 bytes");
    for (byte, pair) in key.iter_mut().zip(hex.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).expect("hexadecimal digits");
        *byte = u8::from_str_radix(pair, 16).expect("hexadecimal digits");
    }
    (file["key_id"].as_u64().expect("a key file has key_id"), key)
}

/// The file of a volume's key.
#[must_use]
pub fn key_path(data_dir: &Path, volume: &Volume) -> PathBuf {
    data_dir.join("registry/keys").join(format!("{}.key", volume.id()))
}
