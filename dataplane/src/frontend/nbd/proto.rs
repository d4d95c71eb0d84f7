//! Numbers, parsers and encoders of the NBD protocol. Big-endian, and only here.
//!
//! Pure: nothing here reads, allocates beyond what the caller passes in, or panics on foreign bytes.

/// First word of the server's greeting, "NBDMAGIC".
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of the greeting and start of each option, "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of each request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of each chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Server and client: fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Server and client: no padding after the answer to `EXPORT_NAME`.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Options a client may send.
pub mod option {
    /// Choose an export, without a way to refuse it but to hang up.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// List exports.
    pub const LIST: u32 = 3;
    /// Begin TLS.
    pub const STARTTLS: u32 = 5;
    /// Ask about an export.
    pub const INFO: u32 = 6;
    /// Choose an export.
    pub const GO: u32 = 7;
    /// Ask for structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of reply to an option.
pub mod rep {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One information about an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The option is not known here.
    pub const ERR_UNSUP: u32 = (1 << 31) + 1;
    /// The option is malformed, or not possible now.
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    /// The option is too long.
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
}

/// Information about an export.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Canonical name.
    pub const NAME: u16 = 1;
    /// Text for people.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum block size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub mod transmission {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1;
    /// FLUSH is supported.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// FUA is supported.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM is supported.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES is supported.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// DF is supported (structured replies only).
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers what was answered on another.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Commands of the transmission phase.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write.
    pub const WRITE: u16 = 1;
    /// Disconnect.
    pub const DISC: u16 = 2;
    /// Flush.
    pub const FLUSH: u16 = 3;
    /// Trim.
    pub const TRIM: u16 = 4;
    /// Write zeros.
    pub const WRITE_ZEROES: u16 = 6;
    /// Query the allocation map.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a command.
pub mod command_flag {
    /// Durable before it is answered.
    pub const FUA: u16 = 1;
    /// WRITE_ZEROES: keep the space.
    pub const NO_HOLE: u16 = 1 << 1;
    /// READ: one data chunk.
    pub const DF: u16 = 1 << 2;
    /// BLOCK_STATUS: one extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// WRITE_ZEROES: fail rather than be slow.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Types of chunk of a structured reply.
pub mod chunk {
    /// No content; the last one.
    pub const NONE: u16 = 0;
    /// Data at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Runs of the allocation map.
    pub const BLOCK_STATUS: u16 = 5;
    /// An error.
    pub const ERROR: u16 = (1 << 15) + 1;
    /// Flag: the request's last chunk.
    pub const FLAG_DONE: u16 = 1;
}

/// `base:allocation`: a hole.
pub const STATE_HOLE: u32 = 1;
/// `base:allocation`: reads as zeros.
pub const STATE_ZERO: u32 = 1 << 1;
/// The one metadata context.
pub const BASE_ALLOCATION: &[u8] = b"base:allocation";
/// Its id, once selected. Any number would do; not 0, so that a forgotten one shows.
pub const BASE_ALLOCATION_ID: u32 = 1;

/// Largest READ and WRITE, in bytes: the specification's default for clients that negotiate nothing.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;
/// Length of a request's header.
pub const REQUEST_BYTES: usize = 28;
/// Length of an option's header.
pub const OPTION_BYTES: usize = 16;

/// Error numbers of replies. The specification fixes them, whatever this machine's errno are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// EIO
    Io,
    /// EINVAL
    Invalid,
    /// ENOSPC
    NoSpace,
    /// EOVERFLOW
    Overflow,
    /// ENOTSUP
    NotSupported,
    /// ESHUTDOWN
    Shutdown,
}

impl ErrorCode {
    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Io => 5,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::NotSupported => 95,
            Self::Shutdown => 108,
        }
    }
}

/// A magic number is not what it must be: whatever follows cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bad magic: expected {expected:#x}, found {found:#x}")]
pub struct BadMagic {
    /// What belongs there.
    pub expected: u64,
    /// What stood there.
    pub found: u64,
}

/// Takes fields off the front of foreign bytes; `None` once they do not suffice.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// All of `bytes` is still to be taken.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    /// 16 bits.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// 32 bits.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// 64 bits.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string after its 32-bit length.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        self.bytes(usize::try_from(len).ok()?)
    }

    /// Nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The header of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which; see [`option`].
    pub option: u32,
    /// Bytes of data that follow.
    pub len: u32,
}

impl OptionHeader {
    /// Reads a header. Errors: the magic is wrong.
    pub fn parse(bytes: &[u8; OPTION_BYTES]) -> Result<Self, BadMagic> {
        let [m0, m1, m2, m3, m4, m5, m6, m7, o0, o1, o2, o3, l0, l1, l2, l3] = *bytes;
        let magic = u64::from_be_bytes([m0, m1, m2, m3, m4, m5, m6, m7]);
        if magic != OPTION_MAGIC {
            return Err(BadMagic { expected: OPTION_MAGIC, found: magic });
        }
        let option = u32::from_be_bytes([o0, o1, o2, o3]);
        Ok(Self { option, len: u32::from_be_bytes([l0, l1, l2, l3]) })
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; OPTION_BYTES] {
        let mut out = [0; OPTION_BYTES];
        put(&mut out, 0, &OPTION_MAGIC.to_be_bytes());
        put(&mut out, 8, &self.option.to_be_bytes());
        put(&mut out, 12, &self.len.to_be_bytes());
        out
    }
}

/// The header of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// See [`command_flag`].
    pub flags: u16,
    /// See [`command`].
    pub command: u16,
    /// The client's name for the request, returned in its reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

impl RequestHeader {
    /// Reads a header. Errors: the magic is wrong.
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, BadMagic> {
        let mut fields = Fields::new(bytes);
        let mut parsed = || {
            let magic = fields.u32()?;
            let (flags, command) = (fields.u16()?, fields.u16()?);
            let (cookie, offset, len) = (fields.u64()?, fields.u64()?, fields.u32()?);
            Some((magic, Self { flags, command, cookie, offset, len }))
        };
        let Some((magic, header)) = parsed() else { unreachable!("the fields are 28 bytes together") };
        if magic == REQUEST_MAGIC {
            Ok(header)
        } else {
            Err(BadMagic { expected: u64::from(REQUEST_MAGIC), found: u64::from(magic) })
        }
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut out = [0; REQUEST_BYTES];
        put(&mut out, 0, &REQUEST_MAGIC.to_be_bytes());
        put(&mut out, 4, &self.flags.to_be_bytes());
        put(&mut out, 6, &self.command.to_be_bytes());
        put(&mut out, 8, &self.cookie.to_be_bytes());
        put(&mut out, 16, &self.offset.to_be_bytes());
        put(&mut out, 24, &self.len.to_be_bytes());
        out
    }
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A simple reply's header; a successful READ's data follows it.
#[must_use]
pub fn simple_reply(cookie: u64, error: Option<ErrorCode>) -> [u8; 16] {
    let mut out = [0; 16];
    put(&mut out, 0, &SIMPLE_REPLY_MAGIC.to_be_bytes());
    put(&mut out, 4, &error.map_or(0, ErrorCode::number).to_be_bytes());
    put(&mut out, 8, &cookie.to_be_bytes());
    out
}

/// The header of a chunk whose payload is `len` bytes long.
#[must_use]
pub fn chunk_header(cookie: u64, kind: u16, done: bool, len: u32) -> [u8; 20] {
    let mut out = [0; 20];
    put(&mut out, 0, &CHUNK_MAGIC.to_be_bytes());
    put(&mut out, 4, &(if done { chunk::FLAG_DONE } else { 0 }).to_be_bytes());
    put(&mut out, 6, &kind.to_be_bytes());
    put(&mut out, 8, &cookie.to_be_bytes());
    put(&mut out, 16, &len.to_be_bytes());
    out
}

/// Head of an `OFFSET_DATA` chunk; `len` bytes of data follow it. `len` is at most [`REQUEST_BYTES_MAX`].
#[must_use]
pub fn data_chunk(cookie: u64, done: bool, offset: u64, len: u32) -> [u8; 28] {
    let mut out = [0; 28];
    put(&mut out, 0, &chunk_header(cookie, chunk::OFFSET_DATA, done, len + 8));
    put(&mut out, 20, &offset.to_be_bytes());
    out
}

/// A request's last chunk, which says that it failed; without a text.
#[must_use]
pub fn error_chunk(cookie: u64, error: ErrorCode) -> [u8; 26] {
    let mut out = [0; 26];
    put(&mut out, 0, &chunk_header(cookie, chunk::ERROR, true, 6));
    put(&mut out, 20, &error.number().to_be_bytes());
    out
}

/// Writes a request's only `BLOCK_STATUS` chunk into `out` (replacing what was there) from `(length, state)` runs.
pub fn block_status_chunk(out: &mut Vec<u8>, cookie: u64, runs: impl Iterator<Item = (u32, u32)>) {
    out.clear();
    out.extend_from_slice(&[0; 20]);
    out.extend_from_slice(&BASE_ALLOCATION_ID.to_be_bytes());
    for (len, state) in runs {
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&state.to_be_bytes());
    }
    let len = u32::try_from(out.len() - 20).expect("the caller bounds the runs");
    put(out, 0, &chunk_header(cookie, chunk::BLOCK_STATUS, true, len));
}

/// Appends a reply to an option: its header and the concatenation of `data`.
pub fn option_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[&[u8]]) {
    let len: usize = data.iter().map(|piece| piece.len()).sum();
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&u32::try_from(len).expect("names and texts are short").to_be_bytes());
    for piece in data {
        out.extend_from_slice(piece);
    }
}
