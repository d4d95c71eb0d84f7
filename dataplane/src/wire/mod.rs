//! The data protocol between an engine and its replicas: bytes to types and back, nothing else.
//!
//! A connection begins with a handshake ([`handshake`]), after which both sides exchange frames ([`header`]): a fixed
//! header, then as many bytes of payload as the header says. `docs/wire-protocol.md` describes both byte by byte.

pub mod handshake;
pub mod header;
pub mod map;
pub mod payload;

pub use header::{FrameError, HEADER_BYTES, Header, Kind, Status};

/// The oldest protocol version this build speaks.
pub const VERSION_MIN: u16 = 2;
/// The newest protocol version this build speaks.
pub const VERSION_MAX: u16 = 2;
