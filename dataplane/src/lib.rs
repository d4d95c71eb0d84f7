//! Holdfast's block path: the engine that replicates block I/O and the replica that keeps a copy.
//!
//! `core` decides and is pure; `wire` and `layout` turn bytes into types; `io` is the only place with unsafe code.
//! The binary's `engine` and `replica` subcommands call [`engine::run`] and [`replica::run`].
#![deny(unsafe_code)]

pub mod bytes_codec;
pub mod control;
pub mod core;
pub mod engine;
pub mod error;
pub mod frontend;
pub mod io;
pub mod layout;
pub mod private_file;
pub mod replica;
pub mod tags;
pub mod units;
pub mod wire;
