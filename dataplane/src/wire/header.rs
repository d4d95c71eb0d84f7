//! The frame header: 64 bytes, little-endian, verified before its length is believed.

use crate::bytes_codec::FieldError;
use crate::units::PART_BYTES_MAX;

/// The size of every header.
pub const HEADER_BYTES: usize = 64;
/// "HFD1", read as a little-endian number.
pub const MAGIC: u32 = u32::from_le_bytes(*b"HFD1");

/// Stable storage before the answer.
pub const FLAG_FUA: u16 = 1;
/// On a read: a range that is all hole may be answered without payload.
pub const FLAG_SPARSE: u16 = 2;
/// On a reply: the range is all hole, and there is no payload.
pub const FLAG_HOLE: u16 = 4;
/// On write-zeroes: the range may be deallocated.
pub const FLAG_PUNCH: u16 = 8;
/// On a write or trim: a copy to a replica that is being filled; the members remember for it that it may lack the region.
pub const FLAG_FILL: u16 = 16;
const FLAGS_KNOWN: u16 = FLAG_FUA | FLAG_SPARSE | FLAG_HOLE | FLAG_PUNCH | FLAG_FILL;
const REPLY: u8 = 0x80;

/// What a frame asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Payload to `offset`.
    Write = 1,
    /// `extent` bytes from `offset`; the reply carries them.
    Read = 2,
    /// All that was acknowledged before reaches stable storage.
    Flush = 3,
    /// `extent` bytes from `offset` read as zeros and are deallocated.
    Trim = 4,
    /// `extent` bytes from `offset` read as zeros.
    WriteZeroes = 5,
    /// Nothing; shows that the replica answers.
    Ping = 6,
    /// Persist the view in the payload before answering.
    PersistView = 7,
    /// Which parts of `extent` bytes from `offset` are allocated; the reply carries a list.
    Extents = 8,
    /// A SHA-256 of `extent` bytes from `offset`; the reply carries 32 bytes, or none with the hole flag.
    Digest = 9,
    /// The regions of the map named in the payload, for `extent` bytes from `offset`; the reply carries them.
    ReadMap = 10,
    /// Change the map named in the payload for `extent` bytes from `offset`, as the payload says.
    EditMap = 11,
}

impl Kind {
    fn from_u8(kind: u8) -> Option<Self> {
        Some(match kind {
            1 => Self::Write,
            2 => Self::Read,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::WriteZeroes,
            6 => Self::Ping,
            7 => Self::PersistView,
            8 => Self::Extents,
            9 => Self::Digest,
            10 => Self::ReadMap,
            11 => Self::EditMap,
            _ => return None,
        })
    }
}

/// How a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// The disk refused; what the range holds is not known.
    Io = 1,
    /// No room; what the range holds is not known.
    NoSpace = 2,
    /// Out of range, not aligned, or not allowed for this replica.
    Invalid = 3,
    /// A newer engine was promised to.
    Fenced = 4,
    /// An fsync failed once; this replica never claims a flush again.
    Failed = 5,
}

impl Status {
    fn from_u32(status: u32) -> Option<Self> {
        Some(match status {
            0 => Self::Ok,
            1 => Self::Io,
            2 => Self::NoSpace,
            3 => Self::Invalid,
            4 => Self::Fenced,
            5 => Self::Failed,
            _ => return None,
        })
    }
}

/// A verified header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What is asked, or what was answered.
    pub kind: Kind,
    /// Whether this is the answer.
    pub reply: bool,
    /// `FLAG_*`.
    pub flags: u16,
    /// Chosen by the engine, repeated in the reply.
    pub tag: u64,
    /// Grows by one with each request of a session; a resent request has a new one. Repeated in the reply.
    pub sequence: u64,
    /// The engine's generation.
    pub generation: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes, where there is no payload that says it.
    pub extent: u64,
    /// Bytes of payload behind this header.
    pub length: u32,
    /// Of a reply; [`Status::Ok`] in requests.
    pub status: Status,
    /// CRC-32 (IEEE) of the payload; 0 where there is none.
    pub payload_crc: u32,
}

/// Why bytes are not a frame. The connection is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not this protocol.
    #[error("expected a frame that starts with {MAGIC:#010x}, found {0:#010x}")]
    Magic(u32),
    /// Damaged on the way.
    #[error("header checksum: expected {expected:#010x}, found {found:#010x}")]
    HeaderCrc {
        /// Computed over the bytes.
        expected: u32,
        /// Carried by them.
        found: u32,
    },
    /// Damaged on the way.
    #[error("payload checksum: expected {expected:#010x}, found {found:#010x}")]
    PayloadCrc {
        /// Carried by the header.
        expected: u32,
        /// Computed over the payload.
        found: u32,
    },
    /// A version that was not negotiated.
    #[error("expected frame version 1, found {0}")]
    Version(u8),
    /// A kind this version does not have.
    #[error("frame kind {0:#04x} is not known")]
    Kind(u8),
    /// Flags this version does not have.
    #[error("frame flags {0:#06x} are not known")]
    Flags(u16),
    /// A status this version does not have.
    #[error("frame status {0} is not known")]
    Status(u32),
    /// More than any peer may send.
    #[error("expected at most {PART_BYTES_MAX} bytes of payload, found {0}")]
    Length(u32),
    /// A payload that does not say what its kind needs.
    #[error("payload of {kind:?}: {source}")]
    Payload {
        /// Of the frame.
        kind: Kind,
        /// What is wrong.
        source: FieldError,
    },
}

fn put<const N: usize>(bytes: &mut [u8; HEADER_BYTES], at: usize, field: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&field);
}
fn get<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

impl Header {
    /// A request without payload.
    #[must_use]
    pub fn request(kind: Kind, tag: u64, generation: u64) -> Self {
        Self {
            kind,
            reply: false,
            flags: 0,
            tag,
            sequence: 0,
            generation,
            offset: 0,
            extent: 0,
            length: 0,
            status: Status::Ok,
            payload_crc: 0,
        }
    }

    /// The answer to `self`, without payload.
    #[must_use]
    pub fn answer(&self, status: Status) -> Self {
        Self { reply: true, status, flags: 0, length: 0, payload_crc: 0, ..*self }
    }

    /// The bytes of this header.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        put(&mut bytes, 0, MAGIC.to_le_bytes());
        put(&mut bytes, 4, [1]);
        put(&mut bytes, 5, [self.kind as u8 | if self.reply { REPLY } else { 0 }]);
        put(&mut bytes, 6, self.flags.to_le_bytes());
        put(&mut bytes, 8, self.tag.to_le_bytes());
        put(&mut bytes, 16, self.sequence.to_le_bytes());
        put(&mut bytes, 24, self.generation.to_le_bytes());
        put(&mut bytes, 32, self.offset.to_le_bytes());
        put(&mut bytes, 40, self.extent.to_le_bytes());
        put(&mut bytes, 48, self.length.to_le_bytes());
        put(&mut bytes, 52, (self.status as u32).to_le_bytes());
        put(&mut bytes, 56, self.payload_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..60]);
        put(&mut bytes, 60, crc.to_le_bytes());
        bytes
    }

    /// The header at the front of `bytes`; `None` where more bytes are needed.
    ///
    /// # Errors
    /// When the bytes cannot be a header; nothing after them can be trusted.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let magic = u32::from_le_bytes(get(bytes, 0));
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        let found = u32::from_le_bytes(get(bytes, 60));
        let expected = crc32fast::hash(&bytes[..60]);
        if found != expected {
            return Err(FrameError::HeaderCrc { expected, found });
        }
        let [version] = get(bytes, 4);
        if version != 1 {
            return Err(FrameError::Version(version));
        }
        let [kind] = get(bytes, 5);
        let flags = u16::from_le_bytes(get(bytes, 6));
        if flags & !FLAGS_KNOWN != 0 {
            return Err(FrameError::Flags(flags));
        }
        let length = u32::from_le_bytes(get(bytes, 48));
        if u64::from(length) > PART_BYTES_MAX {
            return Err(FrameError::Length(length));
        }
        let status = u32::from_le_bytes(get(bytes, 52));
        Ok(Some(Self {
            kind: Kind::from_u8(kind & !REPLY).ok_or(FrameError::Kind(kind))?,
            reply: kind & REPLY != 0,
            flags,
            tag: u64::from_le_bytes(get(bytes, 8)),
            sequence: u64::from_le_bytes(get(bytes, 16)),
            generation: u64::from_le_bytes(get(bytes, 24)),
            offset: u64::from_le_bytes(get(bytes, 32)),
            extent: u64::from_le_bytes(get(bytes, 40)),
            length,
            status: Status::from_u32(status).ok_or(FrameError::Status(status))?,
            payload_crc: u32::from_le_bytes(get(bytes, 56)),
        }))
    }

    /// Checks the payload that came behind this header.
    ///
    /// # Errors
    /// When it is not what the sender computed the checksum over.
    pub fn verify(&self, payload: &[u8]) -> Result<(), FrameError> {
        let found = if payload.is_empty() { 0 } else { crc32fast::hash(payload) };
        if found == self.payload_crc {
            Ok(())
        } else {
            Err(FrameError::PayloadCrc { expected: self.payload_crc, found })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Header {
        Header {
            flags: FLAG_FUA,
            sequence: 2,
            offset: 0x1000,
            extent: 0x2000,
            length: 0x3000,
            payload_crc: 0xdead_beef,
            ..Header::request(Kind::Write, 1, 7)
        }
    }

    #[test]
    fn golden_bytes() {
        let expected = "48464431010101000100000000000000020000000000000007000000000000000010000000000000\
                        00200000000000000030000000000000efbeadde";
        let encoded = sample().encode();
        let hex: String = encoded.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(&hex[..120], expected);
        assert_eq!(encoded[60..], crc32fast::hash(&encoded[..60]).to_le_bytes());
    }

    #[test]
    fn each_damaged_bit_is_refused() {
        let good = sample().encode();
        for bit in 0..HEADER_BYTES * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_length_is_bounded() {
        let big = Header { length: u32::MAX, ..sample() };
        assert_eq!(Header::decode(&big.encode()), Err(FrameError::Length(u32::MAX)));
    }

    proptest! {
        #[test]
        fn round_trip(kind in 1u8..=9, reply: bool, flags in 0u16..16, tag: u64, sequence: u64, generation: u64,
                      offset: u64, extent: u64, length in 0u32..=262_144, status in 0u32..=5, payload_crc: u32) {
            let header = Header {
                kind: Kind::from_u8(kind).unwrap(), reply, flags, tag, sequence, generation, offset, extent, length,
                status: Status::from_u32(status).unwrap(), payload_crc,
            };
            prop_assert_eq!(Header::decode(&header.encode()), Ok(Some(header)));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Header::decode(&bytes);
        }
    }
}
