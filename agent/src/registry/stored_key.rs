//! A volume's key as JSON, the same in every home.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Read, VolumeKey};

pub(super) const KEY_SCHEMA: u32 = 1;

/// What is stored. It has no `Debug`: that would print the key. It is replaced whole, with all that belongs to the key
/// before it.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredKey {
    schema: u32,
    key_id: u64,
    key_hex: String,
}

impl StoredKey {
    pub(super) fn of(key: &VolumeKey) -> Self {
        let key_hex = key.key.iter().fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        });
        Self { schema: KEY_SCHEMA, key_id: key.key_id, key_hex }
    }

    /// The key; what is wrong with one at `place` is told without quoting it.
    pub(super) fn to_key(read: Read<Value>, place: &str) -> Read<VolumeKey> {
        let stored = match read {
            // serde's message may quote what it found, which may be the key.
            Read::Found(value) => serde_json::from_value::<Self>(value).map_err(|_| " is damaged"),
            Read::Absent => return Read::Absent,
            Read::Unreadable(reason) => return Read::Unreadable(reason),
        };
        // Without the text: it may be most of a key.
        let wrong = ": expected 64 hexadecimal digits";
        let key = stored.and_then(|stored| Ok((stored.key_id, unhex(&stored.key_hex).ok_or(wrong)?)));
        match key {
            Ok((key_id, key)) => Read::Found(VolumeKey { key_id, key }),
            Err(why) => Read::Unreadable(format!("{place}{why}")),
        }
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in key.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(key)
}
