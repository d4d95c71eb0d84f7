//! A replica's handshake on its way to an engine, which then finds another boot of the replica's node in it. Both sides
//! prove the volume's key over all that was said, so both proofs are made anew.

use std::io::{self, Write as _};
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};

use holdfast_dataplane::wire::handshake::{Challenge, Hello, MessageKind, Prefix, Proof, frame};
use holdfast_proto::ids::BootId;

use crate::wire::receive;

/// One connection's. Each direction has a thread of its own; the protocol gives them their turns.
#[derive(Debug)]
pub(super) struct Translation {
    key: [u8; 32],
    boot: BootId,
    hello: Mutex<Option<Hello>>,
    challenge: Mutex<Option<Challenge>>,
}

impl Translation {
    pub(super) fn new(key: [u8; 32], boot: BootId) -> Self {
        Self { key, boot, hello: Mutex::default(), challenge: Mutex::default() }
    }

    /// Passes on what the engine says first, as soon as `pass` returns.
    pub(super) fn to_replica(
        &self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        pass: impl Fn(),
    ) -> io::Result<()> {
        let (_, body) = message(&mut from)?;
        keep(&self.hello, Hello::decode(&body).map_err(io::Error::other)?);
        pass();
        to.write_all(&frame(MessageKind::Hello, &body))?;
        message(&mut from)?;
        let proof = Proof::of(&self.key, &kept(&self.hello)?, &kept(&self.challenge)?);
        pass();
        to.write_all(&frame(MessageKind::Proof, &proof.encode()))
    }

    /// Passes on what the replica says first.
    pub(super) fn to_engine(
        &self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        pass: impl Fn(),
    ) -> io::Result<()> {
        let (prefix, body) = message(&mut from)?;
        if !prefix.is(MessageKind::Challenge) {
            pass();
            return to.write_all(&frame(MessageKind::Refused, &body));
        }
        let challenge = Challenge::decode(&body).map_err(io::Error::other)?;
        let told = Challenge { boot: self.boot, ..challenge.clone() }.proven(&self.key, &kept(&self.hello)?);
        keep(&self.challenge, challenge);
        pass();
        to.write_all(&frame(MessageKind::Challenge, &told.encode()))
    }
}

fn message(from: &mut &TcpStream) -> io::Result<(Prefix, Vec<u8>)> {
    receive(from)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn keep<T>(place: &Mutex<Option<T>>, what: T) {
    *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
}

fn kept<T: Clone>(place: &Mutex<Option<T>>) -> io::Result<T> {
    let place = place.lock().unwrap_or_else(PoisonError::into_inner);
    place.clone().ok_or_else(|| io::Error::other("an answer that came before its question"))
}
