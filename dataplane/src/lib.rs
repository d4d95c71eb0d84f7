//! The block path.
#![deny(unsafe_code)]

pub mod io;
