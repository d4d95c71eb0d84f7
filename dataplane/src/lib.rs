//! The block path.
