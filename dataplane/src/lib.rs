//! The block path.
#![deny(unsafe_code)]

pub mod frontend;
pub mod io;
