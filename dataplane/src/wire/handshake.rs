//! The handshake: four messages that agree on a version, prove the volume's key to both sides, and fence.
//!
//! ```text
//! engine                                replica
//!   Hello     ------------------------->          who I am, what I speak, my nonce
//!             <-------------------------  Challenge   the same of the replica, and its proof of the key
//!   Proof     ------------------------->          the engine's proof of the key
//!             <-------------------------  Welcome     promise persisted, older connections drained; whole state
//!                                         or Refused
//! ```
//! Each message is `magic u32, kind u8, reserved u8, length u16, CRC-32 of the body u32`, then the body. Both proofs
//! are HMAC-SHA-256 with the volume's key over a label, the Hello and the Challenge without its proof: over everything negotiated
//! and both nonces. Nothing of the replica's state is sent before the engine's proof was verified.

use hmac::{Hmac, KeyInit, Mac};
use holdfast_proto::ids::{
    BootId, Epoch, Generation, Incarnation, InstanceUuid, Lineage, ProcessUuid, ReplicaId, VolumeId,
};
use holdfast_proto::record::{ReplicaSet, Stamp, View};
use sha2::Sha256;

use super::payload::{read_set, read_stamp_order, read_view, write_set, write_stamp_order, write_view};
use crate::bytes_codec::{FieldError, Reader, Writer};

/// The size of the prefix of every handshake message.
pub const PREFIX_BYTES: usize = 12;
/// The longest body.
pub const BODY_BYTES_MAX: usize = 4096;
const MAGIC: u32 = u32::from_le_bytes(*b"HFHS");
const TEXT_MAX: usize = 512;

/// Which message follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum MessageKind {
    /// [`Hello`]
    Hello = 1,
    /// [`Challenge`]
    Challenge = 2,
    /// [`Proof`]
    Proof = 3,
    /// [`Welcome`]
    Welcome = 4,
    /// [`Refused`]
    Refused = 5,
}

/// Why a handshake message cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Not this protocol.
    #[error("expected a handshake message, found bytes that start with {0:#010x}")]
    Magic(u32),
    /// Another message than the one whose turn it is.
    #[error("handshake message {found} is not the one expected, {expected:?}")]
    Kind {
        /// Whose turn it is.
        expected: MessageKind,
        /// What came.
        found: u8,
    },
    /// More than a peer may send.
    #[error("handshake message of {0} bytes: expected at most {BODY_BYTES_MAX}")]
    Length(u16),
    /// Damaged.
    #[error("handshake message checksum does not match")]
    Crc,
    /// A field is missing or not valid.
    #[error("handshake message: {0}")]
    Field(#[from] FieldError),
    /// The two sides have no version in common.
    #[error(
        "no common protocol version: this side speaks {ours_min} to {ours_max}, the peer {theirs_min} to {theirs_max}"
    )]
    Version {
        /// Ours.
        ours_min: u16,
        /// Ours.
        ours_max: u16,
        /// The peer's.
        theirs_min: u16,
        /// The peer's.
        theirs_max: u16,
    },
    /// The peer does not have the volume's key.
    #[error("the peer did not prove that it has the volume's key")]
    Proof,
}

/// What the connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// The volume's engine.
    Engine = 1,
    /// Another replica, to pull from this one (reserved).
    Replica = 2,
}

/// The engine's first message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Versions spoken.
    pub version_min: u16,
    /// See `version_min`.
    pub version_max: u16,
    /// Feature bits offered; none is defined yet.
    pub features: u64,
    /// The largest payload it accepts.
    pub payload_bytes_max: u32,
    /// The volume.
    pub volume: VolumeId,
    /// The replica it wants to talk to.
    pub replica: ReplicaId,
    /// Which key.
    pub key_id: u64,
    /// What for.
    pub role: Role,
    /// The history it knows.
    pub lineage: Lineage,
    /// Its generation.
    pub generation: Generation,
    /// The engine's UUID under that generation.
    pub engine: InstanceUuid,
    /// The epoch of its newest view.
    pub epoch: Epoch,
    /// This run of its process.
    pub process: ProcessUuid,
    /// Its node's boot.
    pub boot: BootId,
    /// Random.
    pub nonce: [u8; 32],
}

/// The replica's answer to a [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// The version both will speak.
    pub version: u16,
    /// Feature bits both will use.
    pub features: u64,
    /// The largest payload both accept.
    pub payload_bytes_max: u32,
    /// This run of its process.
    pub process: ProcessUuid,
    /// Its node's boot.
    pub boot: BootId,
    /// Random.
    pub nonce: [u8; 32],
    /// HMAC over all of the above and the Hello.
    pub proof: [u8; 32],
}

/// The engine's proof that it has the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// HMAC over the Hello and the Challenge.
    pub proof: [u8; 32],
}

/// The whole state of a replica, as it is on its disk once the promise is persisted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The volume's size that the replica was made with.
    pub size_bytes: u64,
    /// The history its data belongs to.
    pub lineage: Lineage,
    /// The newest view it persisted.
    pub view: View,
    /// The configured set it was told.
    pub configured: ReplicaSet,
    /// The registry's life it heard of last.
    pub incarnation: Incarnation,
    /// The record's version it heard of last.
    pub revision: u64,
    /// The dirty maps whose base is not after this stamp cover all that it may lack; none: nothing does.
    pub basis: Option<Stamp>,
    /// It knows stamps, and so rounds; without that `basis` has none.
    pub stamps: bool,
    /// Every member of that view has persisted this stamp; none: not known.
    pub settled: Option<Stamp>,
    /// It is being filled: not a member, not a source.
    pub syncing: bool,
    /// Its node restarted after writes that no flush covered.
    pub cache_lost: bool,
    /// An fsync failed; empty: none did.
    pub failed: String,
    /// The sequence of the last flush that it acknowledged in this session's process.
    pub flush_sequence: u64,
}

/// Why a replica does not take the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RefusalKind {
    /// It promised to a newer engine, or to another of the same generation.
    Fenced = 1,
    /// Another volume, replica, key or lineage.
    Identity = 2,
    /// No common version.
    Version = 3,
    /// It cannot persist the promise.
    Storage = 4,
    /// It holds no data (its directory is missing).
    Absent = 5,
}

/// The replica's no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub kind: RefusalKind,
    /// The generation it promised.
    pub generation: Generation,
    /// To whom.
    pub engine: InstanceUuid,
    /// For people.
    pub reason: String,
}

/// A whole message: prefix and body.
#[must_use]
pub fn frame(kind: MessageKind, body: &[u8]) -> Vec<u8> {
    let mut out = Writer::new();
    out.u32(MAGIC)
        .u8(kind as u8)
        .u8(0)
        .u16(u16::try_from(body.len()).unwrap_or(u16::MAX))
        .u32(crc32fast::hash(body))
        .raw(body);
    out.into_bytes()
}

/// What a prefix announces: how long the body is, and how to check it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    kind: u8,
    length: u16,
    crc: u32,
}

impl Prefix {
    /// # Errors
    /// When it is not a prefix, or announces too much.
    pub fn decode(bytes: &[u8; PREFIX_BYTES]) -> Result<Self, HandshakeError> {
        let mut reader = Reader::new(bytes);
        let magic = reader.u32("magic")?;
        if magic != MAGIC {
            return Err(HandshakeError::Magic(magic));
        }
        let kind = reader.u8("kind")?;
        reader.u8("reserved")?;
        let length = reader.u16("length")?;
        if usize::from(length) > BODY_BYTES_MAX {
            return Err(HandshakeError::Length(length));
        }
        Ok(Self { kind, length, crc: reader.u32("crc")? })
    }
    /// The bytes of body that follow.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        usize::from(self.length)
    }
    /// Whether the message is of this kind.
    #[must_use]
    pub fn is(&self, kind: MessageKind) -> bool {
        self.kind == kind as u8
    }
    /// Checks that `body` is whole and the message the expected one.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self, expected: MessageKind, body: &[u8]) -> Result<(), HandshakeError> {
        if crc32fast::hash(body) != self.crc {
            return Err(HandshakeError::Crc);
        }
        if !self.is(expected) {
            return Err(HandshakeError::Kind { expected, found: self.kind });
        }
        Ok(())
    }
}

impl Hello {
    /// The body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u16(self.version_min).u16(self.version_max).u64(self.features).u32(self.payload_bytes_max);
        out.uuid(self.volume.0).u32(self.replica.0).u64(self.key_id).u8(self.role as u8);
        out.uuid(self.lineage.0).u64(self.generation.0).uuid(self.engine.0).u64(self.epoch.0);
        out.uuid(self.process.0).uuid(self.boot.0).raw(&self.nonce);
        out.into_bytes()
    }
    /// # Errors
    /// When a field is missing or not valid. Bytes past the known fields are a newer peer's and are left alone.
    pub fn decode(body: &[u8]) -> Result<Self, HandshakeError> {
        let mut r = Reader::new(body);
        Ok(Self {
            version_min: r.u16("version_min")?,
            version_max: r.u16("version_max")?,
            features: r.u64("features")?,
            payload_bytes_max: r.u32("payload_bytes_max")?,
            volume: VolumeId(r.uuid("volume")?),
            replica: ReplicaId(r.u32("replica")?),
            key_id: r.u64("key_id")?,
            role: match r.u8("role")? {
                1 => Role::Engine,
                2 => Role::Replica,
                other => {
                    return Err(FieldError { field: "role", problem: format!("{other} is not known") }.into());
                }
            },
            lineage: Lineage(r.uuid("lineage")?),
            generation: Generation(r.u64("generation")?),
            engine: InstanceUuid(r.uuid("engine")?),
            epoch: Epoch(r.u64("epoch")?),
            process: ProcessUuid(r.uuid("process")?),
            boot: BootId(r.uuid("boot")?),
            nonce: r.array("nonce")?,
        })
    }
    /// The version both sides speak.
    ///
    /// # Errors
    /// When there is none.
    pub fn common_version(&self) -> Result<u16, HandshakeError> {
        let version = self.version_max.min(super::VERSION_MAX);
        if version < self.version_min || version < super::VERSION_MIN {
            return Err(HandshakeError::Version {
                ours_min: super::VERSION_MIN,
                ours_max: super::VERSION_MAX,
                theirs_min: self.version_min,
                theirs_max: self.version_max,
            });
        }
        Ok(version)
    }
}

impl Challenge {
    fn unproven(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u16(self.version).u64(self.features).u32(self.payload_bytes_max);
        out.uuid(self.process.0).uuid(self.boot.0).raw(&self.nonce);
        out.into_bytes()
    }
    /// The body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = self.unproven();
        body.extend_from_slice(&self.proof);
        body
    }
    /// # Errors
    /// When a field is missing.
    pub fn decode(body: &[u8]) -> Result<Self, HandshakeError> {
        let mut r = Reader::new(body);
        Ok(Self {
            version: r.u16("version")?,
            features: r.u64("features")?,
            payload_bytes_max: r.u32("payload_bytes_max")?,
            process: ProcessUuid(r.uuid("process")?),
            boot: BootId(r.uuid("boot")?),
            nonce: r.array("nonce")?,
            proof: r.array("proof")?,
        })
    }
    /// Fills in the replica's proof.
    #[must_use]
    pub fn proven(mut self, key: &[u8; 32], hello: &Hello) -> Self {
        self.proof = transcript(key, b"holdfast replica v1", hello, &self).finalize().into_bytes().into();
        self
    }
    /// Checks the replica's proof, in constant time.
    ///
    /// # Errors
    /// When it does not have the key.
    pub fn verify(&self, key: &[u8; 32], hello: &Hello) -> Result<(), HandshakeError> {
        transcript(key, b"holdfast replica v1", hello, self)
            .verify_slice(&self.proof)
            .map_err(|_| HandshakeError::Proof)
    }
}

fn transcript(key: &[u8; 32], label: &[u8], hello: &Hello, challenge: &Challenge) -> Hmac<Sha256> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(label);
    mac.update(&hello.encode());
    mac.update(&challenge.unproven());
    mac
}

impl Proof {
    /// The engine's proof.
    #[must_use]
    pub fn of(key: &[u8; 32], hello: &Hello, challenge: &Challenge) -> Self {
        Self {
            proof: transcript(key, b"holdfast engine v1", hello, challenge).finalize().into_bytes().into(),
        }
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
    /// Checks the engine's proof, in constant time.
    ///
    /// # Errors
    /// When it does not have the key.
    pub fn verify(&self, key: &[u8; 32], hello: &Hello, challenge: &Challenge) -> Result<(), HandshakeError> {
        transcript(key, b"holdfast engine v1", hello, challenge)
            .verify_slice(&self.proof)
            .map_err(|_| HandshakeError::Proof)
    }
}

impl Welcome {
    /// The body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u64(self.size_bytes).uuid(self.lineage.0);
        write_view(&mut out, &self.view);
        write_set(&mut out, &self.configured);
        out.uuid(self.incarnation.0).u64(self.revision);
        write_stamp_order(&mut out, self.basis);
        out.bool(self.syncing).bool(self.cache_lost);
        out.text(cut(&self.failed)).u64(self.flush_sequence);
        out.into_bytes()
    }
    /// # Errors
    /// When a field is missing or not valid.
    pub fn decode(body: &[u8]) -> Result<Self, HandshakeError> {
        let mut r = Reader::new(body);
        Ok(Self {
            size_bytes: r.u64("size_bytes")?,
            lineage: Lineage(r.uuid("lineage")?),
            view: read_view(&mut r)?,
            configured: read_set(&mut r, "configured")?,
            incarnation: Incarnation(r.uuid("incarnation")?),
            revision: r.u64("revision")?,
            basis: read_stamp_order(&mut r, "basis")?,
            stamps: false,
            settled: None,
            syncing: r.bool("syncing")?,
            cache_lost: r.bool("cache_lost")?,
            failed: r.text("failed", TEXT_MAX)?.to_owned(),
            flush_sequence: r.u64("flush_sequence")?,
        })
    }
}

/// At most [`TEXT_MAX`] bytes of a text.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_MAX)]
}

impl Refused {
    /// The body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(self.kind as u8).u64(self.generation.0).uuid(self.engine.0).text(cut(&self.reason));
        out.into_bytes()
    }
    /// # Errors
    /// When a field is missing or not valid.
    pub fn decode(body: &[u8]) -> Result<Self, HandshakeError> {
        let mut r = Reader::new(body);
        Ok(Self {
            kind: match r.u8("kind")? {
                1 => RefusalKind::Fenced,
                2 => RefusalKind::Identity,
                3 => RefusalKind::Version,
                4 => RefusalKind::Storage,
                5 => RefusalKind::Absent,
                other => {
                    return Err(FieldError { field: "kind", problem: format!("{other} is not known") }.into());
                }
            },
            generation: Generation(r.u64("generation")?),
            engine: InstanceUuid(r.uuid("engine")?),
            reason: r.text("reason", TEXT_MAX)?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            version_min: 1,
            version_max: 1,
            features: 0,
            payload_bytes_max: 262_144,
            volume: VolumeId(uuid::Uuid::from_u128(1)),
            replica: ReplicaId(2),
            key_id: 3,
            role: Role::Engine,
            lineage: Lineage(uuid::Uuid::from_u128(4)),
            generation: Generation(5),
            engine: InstanceUuid(uuid::Uuid::from_u128(6)),
            epoch: Epoch(7),
            process: ProcessUuid(uuid::Uuid::from_u128(8)),
            boot: BootId(uuid::Uuid::from_u128(9)),
            nonce: [10; 32],
        }
    }
    fn challenge() -> Challenge {
        Challenge {
            version: 1,
            features: 0,
            payload_bytes_max: 262_144,
            process: ProcessUuid(uuid::Uuid::from_u128(11)),
            boot: BootId(uuid::Uuid::from_u128(12)),
            nonce: [13; 32],
            proof: [0; 32],
        }
    }

    #[test]
    fn golden_hello() {
        let bytes = frame(MessageKind::Hello, &hello().encode());
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let expected = concat!(
            "4846485301009d00ba8821fc",
            "010001000000000000000000000004000000000000000000000000000000000102000000030000000000000001",
            "0000000000000000000000000000000405000000000000000000000000000000000000000000000607000000",
            "000000000000000000000000000000000000000800000000000000000000000000000009",
            "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"
        );
        assert_eq!(hex, expected);
    }

    #[test]
    fn both_sides_prove_the_key() {
        let (key, other) = ([1; 32], [2; 32]);
        let hello = hello();
        let challenge = challenge().proven(&key, &hello);
        assert_eq!(challenge.verify(&key, &hello), Ok(()));
        assert_eq!(challenge.verify(&other, &hello), Err(HandshakeError::Proof));
        let proof = Proof::of(&key, &hello, &challenge);
        assert_eq!(proof.verify(&key, &hello, &challenge), Ok(()));
        assert_eq!(proof.verify(&other, &hello, &challenge), Err(HandshakeError::Proof));
        // A replica's proof is of no use as an engine's.
        let reflected = Proof { proof: challenge.proof };
        assert_eq!(reflected.verify(&key, &hello, &challenge), Err(HandshakeError::Proof));
    }

    #[test]
    fn a_proof_covers_everything_negotiated() {
        let key = [1; 32];
        let hello = hello();
        let challenge = challenge().proven(&key, &hello);
        let changed = Hello { generation: Generation(6), ..hello.clone() };
        assert_eq!(challenge.verify(&key, &changed), Err(HandshakeError::Proof));
        let weaker = Challenge { payload_bytes_max: 1, ..challenge.clone() };
        assert_eq!(weaker.verify(&key, &hello), Err(HandshakeError::Proof));
    }

    #[test]
    fn versions_without_overlap_are_refused_by_name() {
        let future = Hello { version_min: 3, version_max: 4, ..hello() };
        let said = future.common_version().unwrap_err().to_string();
        assert!(said.contains("this side speaks 2 to 2, the peer 3 to 4"), "{said}");
        // The first version knew no maps: what it acknowledges, nobody would remember.
        let past = Hello { version_max: 1, ..hello() };
        assert!(past.common_version().is_err());
        assert_eq!(Hello { version_max: 9, ..hello() }.common_version(), Ok(2));
    }

    #[test]
    fn messages_round_trip_and_survive_truncation() {
        let welcome = Welcome {
            size_bytes: 1 << 30,
            lineage: Lineage::random(),
            view: View {
                generation: Generation(1),
                epoch: Epoch(2),
                members: [ReplicaId(1)].into_iter().collect(),
                needs_registry: true,
            },
            configured: [ReplicaId(1), ReplicaId(2)].into_iter().collect(),
            incarnation: Incarnation::random(),
            revision: 4,
            basis: Some(Stamp { generation: Generation(1), epoch: Epoch(2), round: 0 }),
            stamps: false,
            settled: None,
            syncing: true,
            cache_lost: false,
            failed: "fsync: EIO".to_owned(),
            flush_sequence: 77,
        };
        let refused = Refused {
            kind: RefusalKind::Fenced,
            generation: Generation(9),
            engine: InstanceUuid::random(),
            reason: "é".repeat(600),
        };
        assert_eq!(Hello::decode(&hello().encode()), Ok(hello()));
        assert_eq!(Challenge::decode(&challenge().encode()), Ok(challenge()));
        assert_eq!(Welcome::decode(&welcome.encode()), Ok(welcome.clone()));
        let cut_short = Refused::decode(&refused.encode()).unwrap();
        assert!(refused.reason.starts_with(&cut_short.reason) && cut_short.reason.len() == 512);
        for end in 0..welcome.encode().len() {
            assert!(Welcome::decode(&welcome.encode()[..end]).is_err());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Hello::decode(&bytes);
            let _ = Challenge::decode(&bytes);
            let _ = Proof::decode(&bytes);
            let _ = Welcome::decode(&bytes);
            let _ = Refused::decode(&bytes);
            if let Some(prefix) = bytes.first_chunk::<PREFIX_BYTES>() {
                let _ = Prefix::decode(prefix);
            }
        }
    }
}
