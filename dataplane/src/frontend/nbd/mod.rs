//! The NBD frontend: fixed newstyle handshake and the transmission phase, both without I/O of their own.
//!
//! Source: the protocol's specification, `doc/proto.md` of the NBD project. [`proto`] is the only place that knows
//! byte order and numbers; [`handshake`] negotiates (on the control thread); [`client`] is one connection's
//! transmission phase (on the data thread), which sees its connection as a [`transport::Transport`].
//!
//! Not here: listening and accepting, deadlines, TLS (refused), read-only exports, resizing.

pub mod client;
pub mod handshake;
mod parts;
pub mod proto;
mod reply;
mod request;
mod slab;
pub mod transport;

#[cfg(test)]
mod tests;

pub use client::{Client, ClientLimits, Violation};
pub use handshake::{ExportInfo, HandshakeError, Negotiated, negotiate};
pub use transport::{DriverTransport, Transport};
