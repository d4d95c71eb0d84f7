//! The data protocol between an engine and its replicas: bytes to types and back, nothing else.
//!
//! A connection begins with a handshake ([`handshake`]), after which both sides exchange frames ([`header`]): a fixed
//! header, then as many bytes of payload as the header says. `docs/wire-protocol.md` describes both byte by byte.

pub mod handshake;
pub mod header;
pub mod map;
pub mod payload;

pub use header::{FrameError, HEADER_BYTES, Header, Kind, Status};

/// The oldest protocol version this build speaks: that of the build before it.
pub const VERSION_MIN: u16 = 2;
/// The newest protocol version this build speaks.
pub const VERSION_MAX: u16 = 3;
/// From this version on Welcome and Refused carry a MAC, and feature bits are negotiated.
pub(crate) const VERSION_SEALED: u16 = 3;

// Feature bits: what a peer of the same version may know and another not. The engine offers, the replica chooses; the
// proofs of the handshake cover both. A bit never gets another meaning.

/// Tagged fields stand behind the fixed ones of Welcome and PersistView; see [`crate::tags`].
pub const FEATURE_TAGS: u64 = 1;
/// All that this build knows.
pub const FEATURES_KNOWN: u64 = FEATURE_TAGS;
