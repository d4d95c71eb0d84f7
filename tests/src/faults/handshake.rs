//! A replica's handshake on its way to an engine, which then finds another boot of the replica's node in it. The boot
//! stands in the Welcome under a MAC by the volume's key, which is made anew.

use std::io::{self, Write as _};
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};

use holdfast_dataplane::wire::handshake::{
    About, Challenge, Hello, MessageKind, Prefix, Proof, Transcript, Welcome, frame,
};
use holdfast_proto::ids::BootId;

use crate::wire::receive;

/// One connection's. Each direction has a thread of its own; the protocol gives them their turns.
#[derive(Debug)]
pub(super) struct Translation {
    key: [u8; 32],
    boot: BootId,
    hello: Mutex<Option<Hello>>,
    proof: Mutex<Option<Proof>>,
}

impl Translation {
    pub(super) fn new(key: [u8; 32], boot: BootId) -> Self {
        Self { key, boot, hello: Mutex::default(), proof: Mutex::default() }
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
        let (_, body) = message(&mut from)?;
        keep(&self.proof, Proof::decode(&body).map_err(io::Error::other)?);
        pass();
        to.write_all(&frame(MessageKind::Proof, &body))
    }

    /// Passes on what the replica says, to its last word.
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
        pass();
        to.write_all(&frame(MessageKind::Challenge, &body))?;
        let (prefix, body) = message(&mut from)?;
        if !prefix.is(MessageKind::Welcome) {
            pass();
            return to.write_all(&frame(MessageKind::Refused, &body));
        }
        let told = self.elsewhere(challenge, &body)?;
        pass();
        to.write_all(&frame(MessageKind::Welcome, &told))
    }

    /// The same Welcome, from a replica on a node of another boot.
    fn elsewhere(&self, challenge: Challenge, sealed: &[u8]) -> io::Result<Vec<u8>> {
        let transcript = Transcript { hello: kept(&self.hello)?, challenge, proof: kept(&self.proof)? };
        let terms = transcript.challenge.terms(&transcript.hello).map_err(io::Error::other)?;
        assert!(terms.is_sealed(), "both sides are of this build");
        let kind = MessageKind::Welcome;
        let body = transcript.open(&self.key, kind, sealed).map_err(io::Error::other)?;
        let (welcome, about) =
            Welcome::decode(body, &terms, &transcript.challenge).map_err(io::Error::other)?;
        let told = welcome.encode(&terms, &About { boot: self.boot, ..about });
        Ok(transcript.seal(&self.key, kind, told))
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
