//! What one frame of an engine asks for, checked before anything is done. Pure.

use crate::units::{BLOCK_BYTES, PART_BYTES_MAX, is_block_aligned};
use crate::wire::header::{FLAG_FUA, FLAG_PUNCH, FLAG_SPARSE};
use crate::wire::{Header, Kind, Status};

/// A PersistView has no more payload than this; see [`crate::wire::payload::ViewUpdate`].
const VIEW_BYTES_MAX: u32 = 4096;

/// A ReadMap or EditMap has no more payload than this: a name, and words.
const MAP_BYTES_MAX: u32 = 64 * 1024;

/// A request that can be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Write {
        fua: bool,
    },
    Read {
        sparse: bool,
    },
    Flush,
    /// Make the range read as zeros; `punch`: by giving its blocks back.
    Zero {
        punch: bool,
        fua: bool,
    },
    Ping,
    PersistView,
    Extents,
    Digest,
    ReadMap,
    EditMap,
}

/// The bytes it concerns.
pub(super) fn range_len(header: &Header) -> u64 {
    match header.kind {
        Kind::Write => u64::from(header.length),
        Kind::Read
        | Kind::Flush
        | Kind::Trim
        | Kind::WriteZeroes
        | Kind::Ping
        | Kind::PersistView
        | Kind::Extents
        | Kind::Digest
        | Kind::ReadMap
        | Kind::EditMap => header.extent,
    }
}

/// Whether the frame breaks the protocol, so that nothing after it can be trusted.
pub(super) fn is_foreign(header: &Header) -> bool {
    let payload_bytes_max = match header.kind {
        Kind::Write => u32::MAX,
        Kind::PersistView => VIEW_BYTES_MAX,
        Kind::ReadMap | Kind::EditMap => MAP_BYTES_MAX,
        Kind::Read
        | Kind::Flush
        | Kind::Trim
        | Kind::WriteZeroes
        | Kind::Ping
        | Kind::Extents
        | Kind::Digest => 0,
    };
    header.reply || header.length > payload_bytes_max
}

/// Whether a request is the one after `last` of its connection: nothing was left out, repeated or slipped in.
pub(super) fn is_next(header: &Header, last: u64) -> bool {
    last.checked_add(1) == Some(header.sequence)
}

/// What to do, or what to answer instead.
pub(super) fn check(header: &Header, size_bytes: u64) -> Result<Request, Status> {
    let fua = header.flags & FLAG_FUA != 0;
    let request = match header.kind {
        Kind::Flush => return Ok(Request::Flush),
        Kind::Ping => return Ok(Request::Ping),
        Kind::PersistView => return Ok(Request::PersistView),
        Kind::Write => Request::Write { fua },
        Kind::Read => Request::Read { sparse: header.flags & FLAG_SPARSE != 0 },
        Kind::Trim => Request::Zero { punch: true, fua },
        Kind::WriteZeroes => Request::Zero { punch: header.flags & FLAG_PUNCH != 0, fua },
        Kind::Extents => Request::Extents,
        Kind::Digest => Request::Digest,
        // Their ranges are checked with their payloads.
        Kind::ReadMap => return Ok(Request::ReadMap),
        Kind::EditMap => return Ok(Request::EditMap),
    };
    let len = range_len(header);
    let end = header.offset.checked_add(len);
    let inside = len > 0 && end.is_some_and(|end| end <= size_bytes);
    if inside && is_block_aligned(header.offset, len) { Ok(request) } else { Err(Status::Invalid) }
}

/// Whether one frame can carry that much.
pub(super) fn fits_a_frame(len: u64) -> bool {
    len <= PART_BYTES_MAX
}

/// A run as the file system told it, in whole blocks: what is partly allocated counts as allocated. `left` is what the
/// caller asked for and a whole number of blocks.
pub(super) fn whole_blocks((len, allocated): (u64, bool), left: u64) -> (u64, bool) {
    if allocated {
        return (len.next_multiple_of(BLOCK_BYTES).min(left), true);
    }
    match len - len % BLOCK_BYTES {
        // A hole of less than a block.
        0 => (BLOCK_BYTES.min(left), true),
        len => (len, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    fn header(kind: Kind, offset: u64, len: u64) -> Header {
        let mut header = Header { offset, ..Header::request(kind, 1, 1) };
        match kind {
            Kind::Write => header.length = u32::try_from(len).unwrap(),
            _ => header.extent = len,
        }
        header
    }

    #[test]
    fn ranges_are_inside_aligned_and_not_empty() {
        for kind in [Kind::Write, Kind::Read, Kind::Trim, Kind::WriteZeroes, Kind::Extents, Kind::Digest] {
            for (offset, len, ok) in [
                (0, 4096, true),
                (SIZE - 4096, 4096, true),
                (0, 0, false),
                (0, 512, false),
                (512, 4096, false),
                (SIZE, 4096, false),
                (SIZE - 4096, 8192, false),
                (u64::MAX - 4095, 4096, false),
            ] {
                assert_eq!(check(&header(kind, offset, len), SIZE).is_ok(), ok, "{kind:?} {offset}+{len}");
            }
        }
        assert_eq!(check(&header(Kind::Read, 0, u64::MAX - 4095), SIZE), Err(Status::Invalid));
        assert_eq!(check(&header(Kind::Trim, 0, SIZE), SIZE), Ok(Request::Zero { punch: true, fua: false }));
    }

    #[test]
    fn requests_follow_one_another() {
        let numbered = |sequence| Header { sequence, ..header(Kind::Ping, 0, 0) };
        for (sequence, last, next) in
            [(1, 0, true), (2, 1, true), (0, 0, false), (2, 0, false), (1, 1, false)]
        {
            assert_eq!(is_next(&numbered(sequence), last), next, "{sequence} after {last}");
        }
        assert!(!is_next(&numbered(0), u64::MAX));
    }

    #[test]
    fn replies_and_unexpected_payloads_are_foreign() {
        let reply = Header { reply: true, ..header(Kind::Ping, 0, 0) };
        assert!(is_foreign(&reply));
        assert!(is_foreign(&Header { length: 1, ..header(Kind::Read, 0, 4096) }));
        assert!(is_foreign(&Header { length: 4097, ..header(Kind::PersistView, 0, 0) }));
        assert!(!is_foreign(&header(Kind::Write, 0, 4096)));
    }

    #[test]
    fn partly_allocated_blocks_count_as_allocated() {
        assert_eq!(whole_blocks((1024, true), 8192), (4096, true));
        assert_eq!(whole_blocks((1024, false), 8192), (4096, true));
        assert_eq!(whole_blocks((5120, false), 8192), (4096, false));
        assert_eq!(whole_blocks((8192, false), 8192), (8192, false));
    }
}
