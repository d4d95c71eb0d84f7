//! What a cell holds, told from its bytes. A stamp fills its cell: a cell that is not exactly one write's bytes, from
//! the first to the last, is torn or mixed, and says so.

use crate::rng::Rng;

const MAGIC: u64 = 0x5f74_7361_666c_6f68;

/// What a cell holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// Zeros: never written, trimmed or zeroed.
    Zero,
    /// The whole of this write.
    Tag(u64),
    /// Neither; the digest tells one such content from another.
    Torn(u32),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Zero => f.write_str("zeros"),
            Self::Tag(tag) => write!(f, "write {}.{}", tag >> 40, tag & ((1 << 40) - 1)),
            Self::Torn(digest) => write!(f, "a torn or mixed cell {digest:#010x}"),
        }
    }
}

/// The tag of a client's write.
#[must_use]
pub fn tag(client: u64, sequence: u64) -> u64 {
    client << 40 | sequence
}

/// The bytes of write `tag` in the cell at `at`.
///
/// # Panics
/// When `out` is shorter than a stamp's head.
pub fn fill(at: u64, tag: u64, out: &mut [u8]) {
    Rng::seeded(at.rotate_left(32) ^ tag).fill(out);
    out[..8].copy_from_slice(&MAGIC.to_le_bytes());
    out[8..16].copy_from_slice(&tag.to_le_bytes());
    out[16..24].copy_from_slice(&at.to_le_bytes());
    let digest = crc32fast::hash(&out[28..]);
    out[24..28].copy_from_slice(&digest.to_le_bytes());
}

/// What the bytes of the cell at `at` are.
#[must_use]
pub fn read(at: u64, bytes: &[u8]) -> Value {
    if bytes.iter().all(|byte| *byte == 0) {
        return Value::Zero;
    }
    let word =
        |from: usize| bytes.get(from..from + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    if let (Some(MAGIC), Some(tag), Some(found)) = (word(0), word(8), word(16))
        && found == at
        && bytes.get(24..28) == Some(&crc32fast::hash(&bytes[28..]).to_le_bytes())
    {
        // The body is a function of tag and place: one that has another write's body under its own digest is none.
        let mut expected = vec![0; bytes.len()];
        fill(at, tag, &mut expected);
        if expected == bytes {
            return Value::Tag(tag);
        }
    }
    Value::Torn(crc32fast::hash(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(at: u64, tag: u64) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        fill(at, tag, &mut bytes);
        bytes
    }

    #[test]
    fn a_stamp_is_read_back_and_zeros_are_zeros() {
        assert_eq!(read(8192, &cell(8192, tag(3, 9))), Value::Tag(tag(3, 9)));
        assert_eq!(read(0, &[0; 1000]), Value::Zero);
    }

    #[test]
    fn every_way_of_tearing_is_seen() {
        let (old, new) = (cell(0, tag(1, 1)), cell(0, tag(1, 2)));
        for cut in [1, 8, 24, 28, 512, 1024, 2048, 3584, 4095] {
            let torn = [&new[..cut], &old[cut..]].concat();
            let value = read(0, &torn);
            // The first eight bytes are the same in both.
            assert!(matches!(value, Value::Torn(_)) || (cut <= 8 && value == Value::Tag(tag(1, 1))), "{cut}");
        }
        let mut flipped = new.clone();
        flipped[4000] ^= 1;
        assert!(matches!(read(0, &flipped), Value::Torn(_)));
        let mut half = vec![0; 4096];
        half[..512].copy_from_slice(&new[..512]);
        assert!(matches!(read(0, &half), Value::Torn(_)), "a write over zeros that was cut");
    }

    #[test]
    fn a_cell_of_another_place_is_none_of_ours() {
        assert!(matches!(read(4096, &cell(0, tag(1, 1))), Value::Torn(_)));
    }
}
