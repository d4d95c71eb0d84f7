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
//! and both nonces. Nothing of the replica's state is sent before the engine's proof was verified. From version 3 on the
//! replica's last word has a MAC over the whole of it ([`Transcript`]), and the replica says which process of which boot
//! it is there and not in the Challenge.

mod transcript;

use holdfast_proto::ids::{
    BootId, Epoch, Generation, Incarnation, InstanceUuid, Lineage, ProcessUuid, ReplicaId, VolumeId,
};
use holdfast_proto::record::{ReplicaSet, Stamp, View};

pub use self::transcript::{Proof, Transcript};
use super::payload::{
    read_set, read_stamp, read_stamp_order, read_view, write_set, write_stamp, write_stamp_order, write_view,
};
use super::{FEATURE_TAGS, FEATURES_KNOWN, VERSION_MAX, VERSION_MIN, VERSION_SEALED};
use crate::bytes_codec::{FieldError, Reader, Writer};
use crate::tags::{TagWriter, find_tag, read_tags, unknown_tags};

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
    /// The replica's last word is not of the peer that has proven the key, or was changed on the way.
    #[error("{kind:?} carries no valid MAC of this handshake: expected one by the volume's key")]
    Mac {
        /// Which message.
        kind: MessageKind,
    },
    /// The replica chose what was not offered.
    #[error("the replica chose {what} {found:#x}, which was not offered")]
    Terms {
        /// Of what.
        what: &'static str,
        /// Its choice.
        found: u64,
    },
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
    /// Feature bits offered.
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
    /// This run of its process; nil from version 3 on, see [`About`].
    pub process: ProcessUuid,
    /// Its node's boot; nil from version 3 on, see [`About`].
    pub boot: BootId,
    /// Random.
    pub nonce: [u8; 32],
    /// HMAC over all of the above and the Hello.
    pub proof: [u8; 32],
}

/// What both sides agreed on; it holds for the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The version.
    pub version: u16,
    /// Feature bits that the engine offered and the replica knows.
    pub features: u64,
    /// The largest payload.
    pub payload_bytes_max: u32,
}

impl Terms {
    /// Whether the replica's last word carries a MAC.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.version >= VERSION_SEALED
    }
    /// Whether tagged fields stand behind the fixed ones.
    #[must_use]
    pub fn has_tags(&self) -> bool {
        self.features & FEATURE_TAGS != 0
    }
}

/// What a replica says of its process, which only an engine that has proven the key may know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// This run of its process.
    pub process: ProcessUuid,
    /// Its node's boot.
    pub boot: BootId,
    /// The version of its program, for people; empty: not said.
    pub build: String,
}

/// The tag of [`About::build`] in a Welcome.
const TAG_BUILD: u16 = 1;
/// The tag of the round of [`Welcome::basis`] and of [`Welcome::settled`]: the replica knows stamps.
const TAG_STAMPS: u16 = 2;

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
    /// What a replica of this build agrees to: the newest version and all features that both know.
    ///
    /// # Errors
    /// When there is no common version.
    pub fn terms(&self, payload_bytes_max: u32) -> Result<Terms, HandshakeError> {
        let version = self.version_max.min(VERSION_MAX);
        if version < self.version_min || version < VERSION_MIN {
            return Err(HandshakeError::Version {
                ours_min: VERSION_MIN,
                ours_max: VERSION_MAX,
                theirs_min: self.version_min,
                theirs_max: self.version_max,
            });
        }
        Ok(Terms {
            version,
            // Version 2 has none, whatever its engine offers.
            features: if version >= VERSION_SEALED { self.features & FEATURES_KNOWN } else { 0 },
            payload_bytes_max: self.payload_bytes_max.min(payload_bytes_max),
        })
    }
}

impl Challenge {
    /// What a replica answers under these terms, but for its proof.
    #[must_use]
    pub fn under(terms: &Terms, about: &About, nonce: [u8; 32]) -> Self {
        let told =
            if terms.is_sealed() { (ProcessUuid::nil(), BootId::nil()) } else { (about.process, about.boot) };
        let Terms { version, features, payload_bytes_max } = *terms;
        Self { version, features, payload_bytes_max, process: told.0, boot: told.1, nonce, proof: [0; 32] }
    }

    /// What the replica agreed to. Its proof is verified before that: it covers the choice and what was offered.
    ///
    /// # Errors
    /// When it chose what `hello` did not offer.
    pub fn terms(&self, hello: &Hello) -> Result<Terms, HandshakeError> {
        let offered = hello.version_min..=hello.version_max;
        let wrong = if !offered.contains(&self.version) {
            Some(("version", u64::from(self.version)))
        } else if self.features & !hello.features != 0 {
            Some(("features", self.features))
        } else if self.payload_bytes_max > hello.payload_bytes_max {
            Some(("payload limit", u64::from(self.payload_bytes_max)))
        } else {
            None
        };
        match wrong {
            Some((what, found)) => Err(HandshakeError::Terms { what, found }),
            None => Ok(Terms {
                version: self.version,
                features: self.features,
                payload_bytes_max: self.payload_bytes_max,
            }),
        }
    }

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
}

impl Welcome {
    /// The body under these terms, without the MAC.
    #[must_use]
    pub fn encode(&self, terms: &Terms, about: &About) -> Vec<u8> {
        let mut out = Writer::new();
        out.u64(self.size_bytes).uuid(self.lineage.0);
        write_view(&mut out, &self.view);
        write_set(&mut out, &self.configured);
        out.uuid(self.incarnation.0).u64(self.revision);
        write_stamp_order(&mut out, self.basis);
        out.bool(self.syncing).bool(self.cache_lost);
        out.text(cut(&self.failed)).u64(self.flush_sequence);
        if terms.is_sealed() {
            out.uuid(about.process.0).uuid(about.boot.0);
        }
        if terms.has_tags() {
            let mut tags = TagWriter::new();
            tags.put(TAG_BUILD, false, cut(&about.build).as_bytes());
            if self.stamps {
                let mut field = Writer::new();
                field.u64(self.basis.map_or(0, |basis| basis.round)).bool(self.settled.is_some());
                write_stamp(&mut field, self.settled.unwrap_or_default());
                tags.put(TAG_STAMPS, false, field.bytes());
            }
            out.raw(&tags.into_bytes());
        }
        out.into_bytes()
    }
    /// From a body without its MAC, and the Challenge before it.
    ///
    /// # Errors
    /// When a field is missing or not valid, or a tagged field is required and not known.
    pub fn decode(
        body: &[u8],
        terms: &Terms,
        challenge: &Challenge,
    ) -> Result<(Self, About), HandshakeError> {
        let mut r = Reader::new(body);
        let mut welcome = Self::read(&mut r)?;
        let mut about = About { process: challenge.process, boot: challenge.boot, build: String::new() };
        if terms.is_sealed() {
            about.process = ProcessUuid(r.uuid("process")?);
            about.boot = BootId(r.uuid("boot")?);
        }
        if terms.has_tags() {
            let tags = read_tags(r.rest())?;
            unknown_tags(&tags, &[TAG_BUILD, TAG_STAMPS])?;
            if let Some(field) = find_tag(&tags, TAG_STAMPS) {
                let mut r = Reader::new(field);
                let round = r.u64("basis.round")?;
                let (known, settled) = (r.bool("settled")?, read_stamp(&mut r, "settled")?);
                welcome.stamps = true;
                welcome.basis = welcome.basis.map(|basis| Stamp { round, ..basis });
                welcome.settled = known.then_some(settled);
            }
            let build = find_tag(&tags, TAG_BUILD).unwrap_or_default();
            about.build = cut(&String::from_utf8_lossy(build)).to_owned();
        }
        Ok((welcome, about))
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, HandshakeError> {
        Ok(Self {
            size_bytes: r.u64("size_bytes")?,
            lineage: Lineage(r.uuid("lineage")?),
            view: read_view(r)?,
            configured: read_set(r, "configured")?,
            incarnation: Incarnation(r.uuid("incarnation")?),
            revision: r.u64("revision")?,
            basis: read_stamp_order(r, "basis")?,
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
mod tests;
