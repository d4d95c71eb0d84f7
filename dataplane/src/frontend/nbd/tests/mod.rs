//! Tests of the NBD frontend: an in-memory connection and disk around a client, and a decoder of replies.

mod decoder;
mod directed;
mod disk;
mod driver;
mod fuzz;
mod handshake;
mod model;
mod rig;
