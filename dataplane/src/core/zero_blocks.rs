//! Which blocks of a region are zeros, so that a copy of it makes them holes and takes no room for them.
//!
//! Content decides, and not where the source's file has holes: it needs no word of the file system, whose own blocks may
//! be larger, nor another question to the source, and a look at a block of data ends at its first bytes that are not zero.

use crate::units::{BLOCK_BYTES, REGION_BYTES, to_usize};

/// One bit for each block of a region.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ZeroBlocks(u64);

const _: () = assert!(REGION_BYTES == 64 * BLOCK_BYTES);

/// Blocks of one kind, next to each other. In bytes, from the beginning of the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where it begins.
    pub from: u64,
    /// How long it is.
    pub len: u64,
    /// Whether it is zeros.
    pub zeros: bool,
}

impl ZeroBlocks {
    /// No block is known to be zeros.
    pub const NONE: Self = Self(0);
    /// Every block is.
    pub const ALL: Self = Self(u64::MAX);

    /// Those of a region with this content; whole blocks, at most 64.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self::by_block(content.chunks_exact(to_usize(BLOCK_BYTES)).map(is_zeros))
    }
    /// The same where it is known of each block.
    pub fn by_block(zeros: impl IntoIterator<Item = bool>) -> Self {
        let blocks = zeros.into_iter().take(64).zip(0u32..);
        Self(blocks.fold(0, |bits, (zeros, at)| bits | u64::from(zeros) << at))
    }
    /// As the shell hands it over.
    #[must_use]
    pub fn encode(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }
    /// Of what the shell handed over; nothing: no block is known to be zeros.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        bytes.first_chunk().map_or(Self::NONE, |bits| Self(u64::from_le_bytes(*bits)))
    }
    /// The region's first `len` bytes, which are whole blocks, in runs: at most 64.
    pub fn runs(self, len: u64) -> impl Iterator<Item = Run> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let left = (from < len).then_some(len - from)?;
            let rest = self.0 >> (from / BLOCK_BYTES);
            let zeros = rest & 1 == 1;
            let blocks = if zeros { rest.trailing_ones() } else { rest.trailing_zeros() };
            let run = Run { from, len: (u64::from(blocks) * BLOCK_BYTES).min(left), zeros };
            from += run.len;
            Some(run)
        })
    }
}

fn is_zeros(block: &[u8]) -> bool {
    // In pieces that the compiler makes one comparison of.
    block.chunks(64).all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_byte_makes_a_block_data() {
        let mut region = vec![0; to_usize(REGION_BYTES)];
        assert_eq!(ZeroBlocks::of(&region), ZeroBlocks::ALL);
        for at in [0, 4095, 63 * 4096, 64 * 4096 - 1] {
            region[at] = 1;
            assert_eq!(ZeroBlocks::of(&region), ZeroBlocks(!(1 << (at / 4096))), "{at}");
            region[at] = 0;
        }
    }

    #[test]
    fn a_region_is_one_run_where_it_is_of_one_kind() {
        for (blocks, zeros) in [(ZeroBlocks::NONE, false), (ZeroBlocks::ALL, true)] {
            for len in [BLOCK_BYTES, 3 * BLOCK_BYTES, REGION_BYTES] {
                let runs: Vec<_> = blocks.runs(len).collect();
                assert_eq!(runs, [Run { from: 0, len, zeros }]);
            }
        }
    }

    proptest! {
        #[test]
        fn runs_cover_the_region_once_and_take_turns(bits: u64, blocks in 1u64..=64) {
            let zeros = ZeroBlocks::decode(&ZeroBlocks(bits).encode());
            let (mut at, mut before) = (0, None);
            for run in zeros.runs(blocks * BLOCK_BYTES) {
                prop_assert_eq!(run.from, at);
                prop_assert!(run.len > 0 && before != Some(run.zeros));
                for block in run.from / BLOCK_BYTES..(run.from + run.len) / BLOCK_BYTES {
                    prop_assert_eq!(bits >> block & 1 == 1, run.zeros);
                }
                (at, before) = (at + run.len, Some(run.zeros));
            }
            prop_assert_eq!(at, blocks * BLOCK_BYTES);
        }
    }
}
