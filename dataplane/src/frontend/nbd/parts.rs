//! How a request is cut into parts. Pure arithmetic on byte ranges.

use std::ops::Range;

use super::request::Op;
use crate::frontend::BlockKind;
use crate::io::{BLOCK, PART_BYTES_MAX};

pub(super) const BLOCK_U64: u64 = BLOCK as u64;
const PART_U64: u64 = PART_BYTES_MAX as u64;
/// Trims and write-zeroes are cut here: a file system that cannot deallocate or zero a range writes it, and a replica
/// that answers nothing meanwhile must not be taken for a dead one. A guess: well under a second on a slow disk.
const ZERO_U64: u64 = 64 << 20;

/// The part that begins at `at` of a request that ends before `end`: what it does, and where it ends.
pub(super) fn next_part(op: Op, at: u64, end: u64) -> (BlockKind, u64) {
    match op {
        Op::Read => (BlockKind::Read, end.min(boundary_after(at, PART_U64))),
        Op::Write => (BlockKind::Write, end.min(boundary_after(at, PART_U64))),
        Op::Flush => (BlockKind::Flush, end),
        Op::Trim => (BlockKind::Trim, end.min(boundary_after(at, ZERO_U64))),
        Op::BlockStatus => (BlockKind::BlockStatus, end),
        Op::WriteZeroes { may_punch } => {
            // Whole blocks in few parts; an edge that does not fill its block is a small write.
            if at.is_multiple_of(BLOCK_U64) && end - at >= BLOCK_U64 {
                let whole = end - end % BLOCK_U64;
                (BlockKind::WriteZeroes { may_punch }, whole.min(boundary_after(at, ZERO_U64)))
            } else {
                (BlockKind::Write, end.min(boundary_after(at, BLOCK_U64)))
            }
        }
    }
}

fn boundary_after(at: u64, step: u64) -> u64 {
    (at / step + 1).saturating_mul(step)
}

/// The whole blocks within `range`, empty if there are none.
pub(super) fn blocks_within(range: Range<u64>) -> Range<u64> {
    let start = range.start.next_multiple_of(BLOCK_U64);
    start..(range.end - range.end % BLOCK_U64).max(start)
}

/// Where in its buffer, which covers whole blocks, a part's payload stands; and the buffer's length.
pub(super) fn in_buffer(at: u64, end: u64) -> (Range<usize>, usize) {
    debug_assert!(at < end);
    let head = to_usize(at % BLOCK_U64);
    let payload = head..head + to_usize(end - at);
    let len = payload.end.next_multiple_of(BLOCK);
    (payload, len)
}

/// Lengths within one part always fit.
pub(super) fn to_usize(n: u64) -> usize {
    usize::try_from(n).expect("a part is at most 256 KiB long")
}
