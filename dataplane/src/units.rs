//! Sizes that the whole block path agrees on, and the one place for casts between integer widths.

/// The unit of alignment on the wire and in replica files, and (later) of checksums.
pub const BLOCK_BYTES: u64 = 4096;
/// The largest payload of a frame, the largest buffer, and the largest part of a client's request.
pub const PART_BYTES_MAX: u64 = 256 * 1024;
/// The unit of comparing and copying between replicas: what one frame carries, so that a copy is one read and one
/// write, and a client waits for one of them at most. A bitmap of a 16 TiB volume is then 8 MiB.
pub const REGION_BYTES: u64 = PART_BYTES_MAX;
/// Regions whose write intent is remembered by one bit: a sequential load pays for one more write to the disk every 4 MiB.
pub const GROUP_REGIONS: u64 = 16;
/// The bytes of a group of regions.
pub const GROUP_BYTES: u64 = GROUP_REGIONS * REGION_BYTES;
/// The largest volume: what ext4 allows for one file with 4 KiB blocks.
pub const VOLUME_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024 * 1024 - 4096;

/// `usize` to `u64`: lossless on every platform that Rust's std supports on Linux.
#[must_use]
pub fn to_u64(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// `u64` to `usize` where the value is known to be bounded by [`PART_BYTES_MAX`] or a table's length.
///
/// # Panics
/// On a 32-bit platform with a value past its range: our own bug.
#[must_use]
pub fn to_usize(n: u64) -> usize {
    usize::try_from(n).expect("bounded by its caller")
}

/// Whether `offset..offset + len` is made of whole blocks.
#[must_use]
pub fn is_block_aligned(offset: u64, len: u64) -> bool {
    offset.is_multiple_of(BLOCK_BYTES) && len.is_multiple_of(BLOCK_BYTES)
}

/// The smallest range of whole blocks around `offset..offset + len`, as `(offset, len)`.
#[must_use]
pub fn block_cover(offset: u64, len: u64) -> (u64, u64) {
    let start = offset - offset % BLOCK_BYTES;
    let end = (offset + len).next_multiple_of(BLOCK_BYTES);
    (start, end - start)
}
