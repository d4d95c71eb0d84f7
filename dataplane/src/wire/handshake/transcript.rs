//! What proves the volume's key: HMAC-SHA-256 over everything that both sides have said.
//!
//! Hello, Challenge and Proof have fixed lengths, and no label begins another, so that no two transcripts are the same
//! bytes. All comparisons are in constant time.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{Challenge, HandshakeError, Hello, MessageKind};
use crate::bytes_codec::Reader;

const REPLICA_LABEL: &[u8] = b"holdfast replica v1";
const ENGINE_LABEL: &[u8] = b"holdfast engine v1";
const WELCOME_LABEL: &[u8] = b"holdfast welcome v3";
const REFUSED_LABEL: &[u8] = b"holdfast refused v3";
/// What stands at the end of a sealed body.
pub(super) const MAC_BYTES: usize = 32;

fn transcript(key: &[u8; 32], label: &[u8], hello: &Hello, challenge: &Challenge) -> Hmac<Sha256> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(label);
    mac.update(&hello.encode());
    mac.update(&challenge.unproven());
    mac
}

impl Challenge {
    /// Fills in the replica's proof.
    #[must_use]
    pub fn proven(mut self, key: &[u8; 32], hello: &Hello) -> Self {
        self.proof = transcript(key, REPLICA_LABEL, hello, &self).finalize().into_bytes().into();
        self
    }
    /// Checks the replica's proof.
    ///
    /// # Errors
    /// When it does not have the key.
    pub fn verify(&self, key: &[u8; 32], hello: &Hello) -> Result<(), HandshakeError> {
        transcript(key, REPLICA_LABEL, hello, self)
            .verify_slice(&self.proof)
            .map_err(|_| HandshakeError::Proof)
    }
}

/// The engine's proof that it has the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// HMAC over the Hello and the Challenge.
    pub proof: [u8; 32],
}

impl Proof {
    /// The engine's proof.
    #[must_use]
    pub fn of(key: &[u8; 32], hello: &Hello, challenge: &Challenge) -> Self {
        Self { proof: transcript(key, ENGINE_LABEL, hello, challenge).finalize().into_bytes().into() }
    }
    /// The body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.proof.to_vec()
    }
    /// # Errors
    /// When it is too short.
    pub fn decode(body: &[u8]) -> Result<Self, HandshakeError> {
        Ok(Self { proof: Reader::new(body).array("proof")? })
    }
    /// Checks the engine's proof.
    ///
    /// # Errors
    /// When it does not have the key.
    pub fn verify(&self, key: &[u8; 32], hello: &Hello, challenge: &Challenge) -> Result<(), HandshakeError> {
        transcript(key, ENGINE_LABEL, hello, challenge)
            .verify_slice(&self.proof)
            .map_err(|_| HandshakeError::Proof)
    }
}

/// A handshake up to its proofs: what seals the replica's last word from version 3 on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transcript {
    /// What the engine said.
    pub hello: Hello,
    /// What the replica answered.
    pub challenge: Challenge,
    /// What the engine proved.
    pub proof: Proof,
}

impl Transcript {
    fn mac(&self, key: &[u8; 32], kind: MessageKind, body: &[u8]) -> Hmac<Sha256> {
        let label = if kind == MessageKind::Welcome { WELCOME_LABEL } else { REFUSED_LABEL };
        let mut mac = transcript(key, label, &self.hello, &self.challenge);
        mac.update(&self.challenge.proof);
        mac.update(&self.proof.proof);
        mac.update(body);
        mac
    }

    /// The body of a Welcome or Refused with its MAC behind it.
    #[must_use]
    pub fn seal(&self, key: &[u8; 32], kind: MessageKind, mut body: Vec<u8>) -> Vec<u8> {
        let mac = self.mac(key, kind, &body).finalize().into_bytes();
        body.extend_from_slice(&mac);
        body
    }

    /// The body less its MAC.
    ///
    /// # Errors
    /// When the MAC is not that of a peer with the key in this very handshake.
    pub fn open<'a>(
        &self,
        key: &[u8; 32],
        kind: MessageKind,
        sealed: &'a [u8],
    ) -> Result<&'a [u8], HandshakeError> {
        let (body, mac) = sealed.split_last_chunk::<MAC_BYTES>().ok_or(HandshakeError::Mac { kind })?;
        let valid = self.mac(key, kind, body).verify_slice(mac);
        valid.map(|()| body).map_err(|_| HandshakeError::Mac { kind })
    }
}
