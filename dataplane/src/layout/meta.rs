//! `meta`: who a replica is and what it promised. The blocks of the file are reserved, so that a full disk can still
//! record what happened; see [`super::replica_dir`] for how it is replaced.
//!
//! Fields of format 2 stand in a fixed order. What came later stands behind them as [tagged fields](crate::tags), and
//! makes it format 3; where there is none the file is written in format 2, which older builds read.

use holdfast_proto::ids::{
    BootId, Epoch, Generation, Incarnation, InstanceUuid, Lineage, NodeName, ReplicaId, VolumeId, VolumeName,
};
use holdfast_proto::record::{ReplicaSet, Stamp, View};

use crate::bytes_codec::{FieldError, Reader, Writer};
use crate::tags::{KeptTag, TAG_PREFIX_BYTES, TagWriter, find_tag, read_tags, unknown_tags};
use crate::wire::payload::{
    read_set, read_stamp, read_stamp_order, read_view, write_set, write_stamp, write_stamp_order, write_view,
};

/// The size of the file up to format 2, and the unit of its size since.
pub const META_BYTES: usize = 4096;
/// The largest file, from format 3 on.
pub const META_BYTES_MAX: usize = 64 * 1024;
/// Fields of a newer build that are kept: room is left for all of this one's.
const UNKNOWN_BYTES_MAX: usize = 62 * 1024;
const MAGIC: &[u8; 8] = b"HFMETA\0\0";
/// The newest format this build reads and writes.
pub const META_VERSION: u32 = 3;
/// The format without tagged fields.
const META_VERSION_FIXED: u32 = 2;
/// The oldest format this build reads: without `basis` and `dirty`.
const META_VERSION_MIN: u32 = 1;

/// Tagged fields. A number is never given to another meaning.
mod tag {
    /// `basis.round`, a `u64`.
    pub(super) const BASIS_ROUND: u16 = 1;
    /// `settled`: generation, epoch and round, a `u64` each.
    pub(super) const SETTLED: u16 = 2;
    /// `base.round` of dirty maps: for each that is not 0 the replica, a `u32`, and the round, a `u64`.
    pub(super) const BASE_ROUNDS: u16 = 3;
    pub(super) const KNOWN: [u16; 3] = [BASIS_ROUND, SETTLED, BASE_ROUNDS];
}
const PREFIX_BYTES: usize = 20;
const TEXT_MAX: usize = 512;

/// A replica's identity and promises. Persisted as a whole, before the answer that depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// The node it was made on.
    pub node: NodeName,
    /// The volume it is a copy of.
    pub volume: VolumeId,
    /// The volume's name at the time: for people.
    pub volume_name: VolumeName,
    /// Its number within the volume.
    pub replica: ReplicaId,
    /// The volume's size.
    pub size_bytes: u64,
    /// The history its data belongs to.
    pub lineage: Lineage,
    /// The highest generation it promised to.
    pub promised: Generation,
    /// The engine it promised to.
    pub promised_to: InstanceUuid,
    /// The newest view it was told of, committed or not.
    pub view: View,
    /// The configured set it was told of.
    pub configured: ReplicaSet,
    /// The registry's life it heard of last.
    pub incarnation: Incarnation,
    /// The record's version it heard of last.
    pub revision: u64,
    /// It is being filled: not a member, not a source of anything.
    pub syncing: bool,
    /// The boot in which it was last opened for writing; nil: none.
    pub boot: BootId,
    /// Since it was opened in that boot, something was written that no flush has covered.
    pub unflushed: bool,
    /// Its node restarted while something was unflushed; cleared when it becomes a member again.
    pub cache_lost: bool,
    /// Why it may never claim a flush again (an fsync failed); empty: it may.
    pub failed: String,
    /// The dirty maps whose base is not after this stamp cover all that this copy may lack: the newest view and round
    /// it persisted as a member, or those since which it is being filled. None: nothing covers it.
    pub basis: Option<Stamp>,
    /// Every member of that view has persisted this stamp, as the engine said. None: not known, as under an engine that
    /// knows no stamps.
    pub settled: Option<Stamp>,
    /// The dirty maps that count (`dirty-<id>.bm`), sorted by replica.
    pub dirty: Vec<DirtyMap>,
    /// Tagged fields of a newer build, written back as they are.
    pub unknown: Vec<KeptTag>,
}

/// A dirty map that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DirtyMap {
    /// The replica that may lack what the map says.
    pub replica: ReplicaId,
    /// A copy of it with an older basis may lack more than the map says.
    pub base: Stamp,
}

/// Why a `meta` cannot be used. The replica is then absent: never empty, never overwritten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// Not a meta file.
    #[error("expected a file that starts with HFMETA, found {0:02x?}")]
    Magic(Vec<u8>),
    /// Cut off.
    #[error("expected {META_BYTES} bytes, found {0}")]
    Short(usize),
    /// Written by a newer (or much older) version.
    #[error(
        "expected format version {META_VERSION_MIN} to {META_VERSION}, found {0}: use a holdfast that knows it"
    )]
    Version(u32),
    /// Damaged.
    #[error("checksum: expected {expected:#010x}, found {found:#010x}")]
    Crc {
        /// Carried by the file.
        expected: u32,
        /// Computed over it.
        found: u32,
    },
    /// A field does not say what its type needs.
    #[error(transparent)]
    Field(#[from] FieldError),
}

impl Meta {
    /// The bytes of the file: a multiple of [`META_BYTES`], at most [`META_BYTES_MAX`].
    ///
    /// # Panics
    /// When the fields do not fit, which their bounds exclude.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Writer::new();
        body.text(self.node.as_str()).uuid(self.volume.0).text(self.volume_name.as_str());
        body.u32(self.replica.0).u64(self.size_bytes).uuid(self.lineage.0);
        body.u64(self.promised.0).uuid(self.promised_to.0);
        write_view(&mut body, &self.view);
        write_set(&mut body, &self.configured);
        body.uuid(self.incarnation.0).u64(self.revision).bool(self.syncing);
        body.uuid(self.boot.0).bool(self.unflushed).bool(self.cache_lost);
        body.text(&self.failed[..self.failed.floor_char_boundary(TEXT_MAX)]);
        write_stamp_order(&mut body, self.basis);
        body.u8(u8::try_from(self.dirty.len()).unwrap_or(u8::MAX));
        for DirtyMap { replica, base } in &self.dirty {
            body.u32(replica.0).u64(base.generation.0).u64(base.epoch.0);
        }
        let tags = self.tags();
        let version = if tags.is_empty() { META_VERSION_FIXED } else { META_VERSION };
        let body = body.raw(&tags).bytes();
        let mut out = Writer::new();
        out.raw(MAGIC).u32(version);
        out.u32(u32::try_from(body.len()).expect("bounded by its fields"));
        out.u32(checksum(version, body)).raw(body);
        let mut bytes = out.into_bytes();
        assert!(bytes.len() <= META_BYTES_MAX, "meta of {} bytes does not fit", bytes.len());
        bytes.resize(bytes.len().next_multiple_of(META_BYTES), 0);
        bytes
    }

    /// The tagged fields that say something.
    fn tags(&self) -> Vec<u8> {
        let mut tags = TagWriter::new();
        let field = |write: &dyn Fn(&mut Writer)| {
            let mut out = Writer::new();
            write(&mut out);
            out.into_bytes()
        };
        if let Some(basis) = self.basis.filter(|basis| basis.round != 0) {
            tags.put(tag::BASIS_ROUND, true, &basis.round.to_le_bytes());
        }
        if let Some(settled) = self.settled {
            tags.put(tag::SETTLED, true, &field(&|out| write_stamp(out, settled)));
        }
        let rounds: Vec<_> = self.dirty.iter().filter(|map| map.base.round != 0).collect();
        if !rounds.is_empty() {
            let write = |out: &mut Writer| {
                for map in &rounds {
                    out.u32(map.replica.0).u64(map.base.round);
                }
            };
            tags.put(tag::BASE_ROUNDS, true, &field(&write));
        }
        for unknown in &self.unknown {
            tags.keep(&unknown.as_tag());
        }
        tags.into_bytes()
    }

    fn read_tags(&mut self, bytes: &[u8]) -> Result<(), MetaError> {
        let tags = read_tags(bytes)?;
        let unknown = unknown_tags(&tags, &tag::KNOWN)?;
        let kept: usize = unknown.iter().map(|tag| TAG_PREFIX_BYTES + tag.bytes.len()).sum();
        if kept > UNKNOWN_BYTES_MAX {
            let problem =
                format!("expected at most {UNKNOWN_BYTES_MAX} bytes of unknown fields, found {kept}");
            return Err(FieldError { field: "tag", problem }.into());
        }
        self.unknown = unknown.iter().map(|tag| tag.kept()).collect();
        if let Some(bytes) = find_tag(&tags, tag::BASIS_ROUND) {
            let round = Reader::new(bytes).u64("basis.round")?;
            self.basis = self.basis.map(|basis| Stamp { round, ..basis });
        }
        if let Some(bytes) = find_tag(&tags, tag::SETTLED) {
            self.settled = Some(read_stamp(&mut Reader::new(bytes), "settled")?);
        }
        if let Some(bytes) = find_tag(&tags, tag::BASE_ROUNDS) {
            let mut r = Reader::new(bytes);
            while !r.rest().is_empty() {
                let (replica, round) = (ReplicaId(r.u32("base.replica")?), r.u64("base.round")?);
                for map in self.dirty.iter_mut().filter(|map| map.replica == replica) {
                    map.base.round = round;
                }
            }
        }
        Ok(())
    }

    /// # Errors
    /// When the bytes are not exactly what a replica of this format wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, MetaError> {
        if bytes.len() < META_BYTES {
            return Err(MetaError::Short(bytes.len()));
        }
        let mut r = Reader::new(bytes);
        let magic = r.take("magic", MAGIC.len())?;
        if magic != MAGIC {
            return Err(MetaError::Magic(magic.to_vec()));
        }
        let version = r.u32("version")?;
        if !(META_VERSION_MIN..=META_VERSION).contains(&version) {
            return Err(MetaError::Version(version));
        }
        let len = usize::try_from(r.u32("length")?).unwrap_or(usize::MAX);
        let expected = r.u32("crc")?;
        let max = if version == META_VERSION { META_BYTES_MAX } else { META_BYTES };
        if len > max - PREFIX_BYTES {
            return Err(FieldError { field: "length", problem: format!("{len} does not fit") }.into());
        }
        let body = r.take("body", len)?;
        let found = checksum(version, body);
        if found != expected {
            return Err(MetaError::Crc { expected, found });
        }
        let mut r = Reader::new(body);
        let mut meta = Self::decode_first(&mut r)?;
        if version == META_VERSION_MIN {
            // It had no maps: a member is as the others are, and whoever is none lacks everything.
            let member = meta.view.members.contains(meta.replica) && !meta.syncing;
            meta.basis = member.then(|| meta.view.stamp(0));
            return Ok(meta);
        }
        meta.basis = read_stamp_order(&mut r, "basis")?;
        for _ in 0..r.u8("dirty")? {
            let replica = ReplicaId(r.u32("dirty.replica")?);
            let (generation, epoch) = (Generation(r.u64("dirty.base")?), Epoch(r.u64("dirty.base")?));
            meta.dirty.push(DirtyMap { replica, base: Stamp { generation, epoch, round: 0 } });
        }
        if version == META_VERSION {
            meta.read_tags(r.rest())?;
        }
        Ok(meta)
    }

    /// The fields of the first format.
    fn decode_first(r: &mut Reader<'_>) -> Result<Self, MetaError> {
        let invalid = |field, problem: &dyn ToString| FieldError { field, problem: problem.to_string() };
        Ok(Self {
            node: r.text("node", TEXT_MAX)?.parse().map_err(|e| invalid("node", &e))?,
            volume: VolumeId(r.uuid("volume")?),
            volume_name: r.text("volume_name", TEXT_MAX)?.parse().map_err(|e| invalid("volume_name", &e))?,
            replica: ReplicaId(r.u32("replica")?),
            size_bytes: r.u64("size_bytes")?,
            lineage: Lineage(r.uuid("lineage")?),
            promised: Generation(r.u64("promised")?),
            promised_to: InstanceUuid(r.uuid("promised_to")?),
            view: read_view(r)?,
            configured: read_set(r, "configured")?,
            incarnation: Incarnation(r.uuid("incarnation")?),
            revision: r.u64("revision")?,
            syncing: r.bool("syncing")?,
            boot: BootId(r.uuid("boot")?),
            unflushed: r.bool("unflushed")?,
            cache_lost: r.bool("cache_lost")?,
            failed: r.text("failed", TEXT_MAX)?.to_owned(),
            basis: None,
            settled: None,
            dirty: Vec::new(),
            unknown: Vec::new(),
        })
    }
}

/// From format 3 on the version is covered too: one bit of it turned, and the file would pass for an older format's.
fn checksum(version: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    if version >= META_VERSION {
        hasher.update(&version.to_le_bytes());
    }
    hasher.update(body);
    hasher.finalize()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use holdfast_proto::ids::Epoch;
    use proptest::prelude::*;
    use uuid::Uuid;

    pub(crate) fn sample() -> Meta {
        Meta {
            node: "node-a".parse().unwrap(),
            volume: VolumeId(Uuid::from_u128(1)),
            volume_name: "demo".parse().unwrap(),
            replica: ReplicaId(2),
            size_bytes: 1 << 30,
            lineage: Lineage(Uuid::from_u128(3)),
            promised: Generation(4),
            promised_to: InstanceUuid(Uuid::from_u128(5)),
            view: View {
                generation: Generation(4),
                epoch: Epoch(6),
                members: [ReplicaId(1), ReplicaId(2)].into_iter().collect(),
                needs_registry: false,
            },
            configured: [ReplicaId(1), ReplicaId(2), ReplicaId(3)].into_iter().collect(),
            incarnation: Incarnation(Uuid::from_u128(7)),
            revision: 8,
            syncing: true,
            boot: BootId(Uuid::from_u128(9)),
            unflushed: true,
            cache_lost: false,
            failed: String::new(),
            basis: Some(stamp(3, 5, 0)),
            settled: None,
            dirty: vec![DirtyMap { replica: ReplicaId(3), base: stamp(3, 5, 0) }],
            unknown: Vec::new(),
        }
    }

    fn stamp(generation: u64, epoch: u64, round: u64) -> Stamp {
        Stamp { generation: Generation(generation), epoch: Epoch(epoch), round }
    }

    /// The sample with all that came with format 3.
    fn stamped() -> Meta {
        Meta {
            basis: Some(stamp(3, 5, 7)),
            settled: Some(stamp(3, 5, 6)),
            dirty: vec![DirtyMap { replica: ReplicaId(3), base: stamp(3, 5, 2) }],
            ..sample()
        }
    }

    /// The sample as the first format wrote it.
    fn version_1() -> Vec<u8> {
        let mut bytes = sample().encode();
        let used = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) - 17 - 1 - 20;
        let end = 20 + usize::try_from(used).unwrap();
        bytes[end..].fill(0);
        bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&used.to_le_bytes());
        let crc = crc32fast::hash(&bytes[20..end]);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn the_first_format_is_read() {
        let bytes = version_1();
        assert_eq!(crc32fast::hash(&bytes), 0xe6de_c28a, "as it was written");
        // It was being filled.
        let meta = Meta::decode(&bytes).unwrap();
        assert_eq!(meta, Meta { basis: None, dirty: Vec::new(), ..sample() });
    }

    #[test]
    fn golden_bytes() {
        let bytes = sample().encode();
        let hex: String = bytes[..48].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "48464d455441000002000000cc000000f4eea59006006e6f64652d610000000000000000000000000000000104006465"
        );
        assert_eq!(crc32fast::hash(&bytes), 0xe241_fc6a);
    }

    #[test]
    fn meta_each_damaged_bit_is_refused() {
        for good in [sample().encode(), stamped().encode()] {
            let used = 20 + usize::try_from(u32::from_le_bytes(good[12..16].try_into().unwrap())).unwrap();
            for (at, bit) in (0..used).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(Meta::decode(&bad).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn meta_foreign_version_is_named() {
        let mut bytes = sample().encode();
        bytes[8] = 4;
        assert_eq!(Meta::decode(&bytes), Err(MetaError::Version(4)));
    }

    #[test]
    fn meta_stamps_make_format_3_golden() {
        let bytes = stamped().encode();
        assert_eq!((bytes.len(), bytes[8]), (META_BYTES, 3));
        let fixed = 20 + 204;
        let hex: String = bytes[fixed..fixed + 68].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "01000100080000000700000000000000\
             0200010018000000030000000000000005000000000000000600000000000000\
             030001000c000000030000000200000000000000"
        );
        assert_eq!(Meta::decode(&bytes), Ok(stamped()));
        // What an older build can read is written for it.
        assert_eq!(sample().encode()[8], 2);
    }

    fn with(meta: Meta, required: bool, len: usize) -> Meta {
        let mut tags = TagWriter::new();
        tags.put(900, required, &vec![7; len]);
        let unknown = read_tags(&tags.into_bytes()).unwrap().iter().map(|tag| tag.kept()).collect();
        Meta { unknown, ..meta }
    }
    /// One with an optional field of a newer build.
    pub(crate) fn with_unknown(meta: &Meta, len: usize) -> Meta {
        with(meta.clone(), false, len)
    }

    #[test]
    fn meta_unknown_tags_are_kept_or_refused() {
        let with = |required, len| with(stamped(), required, len);
        for len in [3, 5000, 60_000] {
            let meta = with(false, len);
            let bytes = meta.encode();
            assert!(bytes.len() <= META_BYTES_MAX && bytes.len().is_multiple_of(META_BYTES));
            assert_eq!(Meta::decode(&bytes), Ok(meta), "an optional field of {len} bytes");
        }
        let error = Meta::decode(&with(true, 3).encode()).unwrap_err().to_string();
        assert!(error.contains("900") && error.contains("newer"), "{error}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let _ = Meta::decode(&bytes);
        }

        #[test]
        fn round_trip(promised: u64, syncing: bool, failed in ".{0,200}") {
            let meta = Meta { promised: Generation(promised), syncing, failed, ..sample() };
            let back = Meta::decode(&meta.encode()).unwrap();
            prop_assert!(meta.failed.starts_with(&back.failed));
            prop_assert_eq!(Meta { failed: meta.failed.clone(), ..back }, meta);
        }
    }
}
