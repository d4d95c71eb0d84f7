//! What stands in the payload of the frames that carry more than blocks.

use holdfast_proto::ids::{Epoch, Generation, Incarnation, Lineage, ReplicaId};
use holdfast_proto::record::{ReplicaSet, Stamp, View};

use crate::bytes_codec::{FieldError, Reader, Writer};
use crate::tags::{TagWriter, find_tag, read_tags, unknown_tags};

/// A run of bytes of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// In bytes.
    pub len: u64,
    /// Whether the file holds data there; a hole reads as zeros.
    pub allocated: bool,
}

/// A reply to `Extents` holds at most this many; a longer list is cut, and the engine asks again from there.
pub const EXTENTS_MAX: usize = 1024;
const ALLOCATED: u64 = 1 << 63;

/// The payload of an `Extents` reply.
#[must_use]
pub fn encode_extents(extents: &[Extent]) -> Vec<u8> {
    let mut out = Writer::new();
    for extent in extents.iter().take(EXTENTS_MAX) {
        out.u64(extent.len | if extent.allocated { ALLOCATED } else { 0 });
    }
    out.into_bytes()
}

/// The runs of an `Extents` reply, one after the other from the offset asked for.
///
/// # Errors
/// When there are too many, or one is empty.
pub fn decode_extents(bytes: &[u8]) -> Result<Vec<Extent>, FieldError> {
    let bad = |problem: String| FieldError { field: "extents", problem };
    if bytes.len() > EXTENTS_MAX * 8 || !bytes.len().is_multiple_of(8) {
        return Err(bad(format!("expected at most {EXTENTS_MAX} times 8 bytes, found {}", bytes.len())));
    }
    let mut reader = Reader::new(bytes);
    let mut extents = Vec::with_capacity(bytes.len() / 8);
    while !reader.rest().is_empty() {
        let word = reader.u64("extents")?;
        let extent = Extent { len: word & !ALLOCATED, allocated: word & ALLOCATED != 0 };
        if extent.len == 0 {
            return Err(bad("expected no empty run".to_owned()));
        }
        extents.push(extent);
    }
    Ok(extents)
}

/// The payload of `PersistView`: what a replica must have on stable storage before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewUpdate {
    /// The view proposed.
    pub view: View,
    /// The set that decides majorities.
    pub configured: ReplicaSet,
    /// The lineage the view belongs to.
    pub lineage: Lineage,
    /// The registry's life and the record's version as the engine knows them.
    pub incarnation: Incarnation,
    /// See `incarnation`.
    pub revision: u64,
    /// This replica is being filled: it is no member, and not a source of anything.
    pub syncing: bool,
    /// All members are known to be equal: what the replica lost with its node's cache it has again.
    pub repaired: bool,
    /// Replicas that dirty maps are to be kept for although they are members of the view: they have not persisted it.
    pub keep: ReplicaSet,
    /// Replicas of which everything has to be copied: their dirty maps begin anew, with every region set and this view
    /// as their base.
    pub refill: ReplicaSet,
    /// Of a replica that is being filled: dirty maps with this view as their base cover all that it may lack.
    pub rebased: bool,
    /// Of a replica that becomes a member: its dirty maps begin for these, with every region and with their bases.
    pub adopt: Adopt,
    /// The lineage is new: a person started the volume from this replica alone, against the rules.
    pub new_history: bool,
    /// None: the engine, or another member, knows no stamps.
    pub stamp: Option<StampUpdate>,
}

/// The tag of a [`StampUpdate`] behind the fields of a view.
const TAG_STAMP: u16 = 1;
/// The tag of the rounds of adopted bases: for each that is not 0 the replica, a `u32`, and the round, a `u64`.
const TAG_ADOPT_ROUNDS: u16 = 2;

/// What an engine that keeps stamps tells beside a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StampUpdate {
    /// Of a member: the settling round of the view. Of a replica that is being filled: of its basis.
    pub round: u64,
    /// Every member of that view has persisted this stamp.
    pub settled: Option<Stamp>,
    /// This replica, which is no member, has persisted this stamp: its dirty map's base from now on.
    pub advance: Option<(ReplicaId, Stamp)>,
}

/// Replicas that a new member remembers for from now on: which, and the base of its map.
pub type Adopt = [Option<(ReplicaId, Stamp)>; ReplicaSet::CAPACITY];

fn write_adopt(out: &mut Writer, adopt: &Adopt) {
    out.u8(u8::try_from(adopt.iter().flatten().count()).unwrap_or(u8::MAX));
    for (replica, base) in adopt.iter().flatten() {
        out.u32(replica.0).u64(base.generation.0).u64(base.epoch.0);
    }
}

fn read_adopt(reader: &mut Reader<'_>) -> Result<Adopt, FieldError> {
    let count = usize::from(reader.u8("adopt")?);
    let mut adopt = Adopt::default();
    if count > adopt.len() {
        return Err(FieldError { field: "adopt", problem: format!("expected at most 8, found {count}") });
    }
    for place in adopt.iter_mut().take(count) {
        let replica = ReplicaId(reader.u32("adopt.replica")?);
        let (generation, epoch) = (Generation(reader.u64("adopt.base")?), Epoch(reader.u64("adopt.base")?));
        *place = Some((replica, Stamp { generation, epoch, round: 0 }));
    }
    Ok(adopt)
}

pub(crate) fn write_set(out: &mut Writer, set: &ReplicaSet) {
    out.u8(u8::try_from(set.len()).unwrap_or(u8::MAX));
    for id in set.iter() {
        out.u32(id.0);
    }
}

pub(crate) fn read_set(reader: &mut Reader<'_>, field: &'static str) -> Result<ReplicaSet, FieldError> {
    let count = reader.u8(field)?;
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(reader.u32(field)?);
    }
    ReplicaSet::checked(ids)
        .ok_or_else(|| FieldError { field, problem: "a replica twice, or more than 8".to_owned() })
}

pub(crate) fn write_view(out: &mut Writer, view: &View) {
    out.u64(view.generation.0).u64(view.epoch.0).bool(view.needs_registry);
    write_set(out, &view.members);
}

pub(crate) fn read_view(reader: &mut Reader<'_>) -> Result<View, FieldError> {
    Ok(View {
        generation: Generation(reader.u64("view.generation")?),
        epoch: Epoch(reader.u64("view.epoch")?),
        needs_registry: reader.bool("view.needs_registry")?,
        members: read_set(reader, "view.members")?,
    })
}

pub(crate) fn write_stamp(out: &mut Writer, stamp: Stamp) {
    out.u64(stamp.generation.0).u64(stamp.epoch.0).u64(stamp.round);
}

pub(crate) fn read_stamp(reader: &mut Reader<'_>, field: &'static str) -> Result<Stamp, FieldError> {
    Ok(Stamp {
        generation: Generation(reader.u64(field)?),
        epoch: Epoch(reader.u64(field)?),
        round: reader.u64(field)?,
    })
}

/// A stamp without its round: what peers and disks knew before there were rounds.
pub(crate) fn write_stamp_order(out: &mut Writer, stamp: Option<Stamp>) {
    let Stamp { generation, epoch, .. } = stamp.unwrap_or_default();
    out.bool(stamp.is_some()).u64(generation.0).u64(epoch.0);
}

pub(crate) fn read_stamp_order(
    reader: &mut Reader<'_>,
    field: &'static str,
) -> Result<Option<Stamp>, FieldError> {
    let known = reader.bool(field)?;
    let (generation, epoch) = (Generation(reader.u64(field)?), Epoch(reader.u64(field)?));
    Ok(known.then_some(Stamp { generation, epoch, round: 0 }))
}

impl ViewUpdate {
    /// The bytes of the payload; `tags`: the session has tagged fields.
    #[must_use]
    pub fn encode(&self, tags: bool) -> Vec<u8> {
        let mut out = Writer::new();
        write_view(&mut out, &self.view);
        write_set(&mut out, &self.configured);
        out.uuid(self.lineage.0).uuid(self.incarnation.0).u64(self.revision);
        out.bool(self.syncing).bool(self.repaired);
        write_set(&mut out, &self.keep);
        write_set(&mut out, &self.refill);
        out.bool(self.rebased);
        write_adopt(&mut out, &self.adopt);
        out.bool(self.new_history);
        if tags {
            out.raw(&self.tags());
        }
        out.into_bytes()
    }

    /// `tags`: the session has tagged fields.
    ///
    /// # Errors
    /// When a field is missing or not valid, or a tagged field is required and not known.
    pub fn decode(bytes: &[u8], tags: bool) -> Result<Self, FieldError> {
        let mut reader = Reader::new(bytes);
        let mut update = Self::read(&mut reader)?;
        if tags {
            update.read_tags(reader.rest())?;
        }
        Ok(update)
    }

    fn tags(&self) -> Vec<u8> {
        let mut tags = TagWriter::new();
        let Some(StampUpdate { round, settled, advance }) = self.stamp else { return tags.into_bytes() };
        let mut field = Writer::new();
        field.u64(round).bool(settled.is_some());
        write_stamp(&mut field, settled.unwrap_or_default());
        let (replica, base) = advance.unwrap_or((ReplicaId(0), Stamp::default()));
        field.bool(advance.is_some()).u32(replica.0);
        write_stamp(&mut field, base);
        tags.put(TAG_STAMP, false, field.bytes());
        let mut rounds = Writer::new();
        for (replica, base) in self.adopt.iter().flatten().filter(|(_, base)| base.round != 0) {
            rounds.u32(replica.0).u64(base.round);
        }
        if !rounds.bytes().is_empty() {
            tags.put(TAG_ADOPT_ROUNDS, false, rounds.bytes());
        }
        tags.into_bytes()
    }

    fn read_tags(&mut self, bytes: &[u8]) -> Result<(), FieldError> {
        let tags = read_tags(bytes)?;
        unknown_tags(&tags, &[TAG_STAMP, TAG_ADOPT_ROUNDS])?;
        if let Some(field) = find_tag(&tags, TAG_STAMP) {
            let mut r = Reader::new(field);
            let round = r.u64("stamp.round")?;
            let (known, settled) = (r.bool("stamp.settled")?, read_stamp(&mut r, "stamp.settled")?);
            let (advances, replica) = (r.bool("stamp.advance")?, ReplicaId(r.u32("stamp.advance")?));
            let base = read_stamp(&mut r, "stamp.advance")?;
            let (settled, advance) = (known.then_some(settled), advances.then_some((replica, base)));
            self.stamp = Some(StampUpdate { round, settled, advance });
        }
        let mut r = Reader::new(find_tag(&tags, TAG_ADOPT_ROUNDS).unwrap_or_default());
        while !r.rest().is_empty() {
            let (replica, round) = (ReplicaId(r.u32("adopt.replica")?), r.u64("adopt.round")?);
            for (_, base) in self.adopt.iter_mut().flatten().filter(|(adopted, _)| *adopted == replica) {
                base.round = round;
            }
        }
        Ok(())
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FieldError> {
        Ok(Self {
            view: read_view(reader)?,
            configured: read_set(reader, "configured")?,
            lineage: Lineage(reader.uuid("lineage")?),
            incarnation: Incarnation(reader.uuid("incarnation")?),
            revision: reader.u64("revision")?,
            syncing: reader.bool("syncing")?,
            repaired: reader.bool("repaired")?,
            keep: read_set(reader, "keep")?,
            refill: read_set(reader, "refill")?,
            rebased: reader.bool("rebased")?,
            adopt: read_adopt(reader)?,
            new_history: reader.bool("new_history")?,
            stamp: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_view_update_round_trips() {
        let update = ViewUpdate {
            view: View {
                generation: Generation(3),
                epoch: Epoch(9),
                members: [ReplicaId(1), ReplicaId(3)].into_iter().collect(),
                needs_registry: true,
            },
            configured: [ReplicaId(1), ReplicaId(2), ReplicaId(3)].into_iter().collect(),
            lineage: Lineage::random(),
            incarnation: Incarnation::random(),
            revision: 17,
            syncing: false,
            repaired: true,
            keep: [ReplicaId(3)].into_iter().collect(),
            refill: [ReplicaId(2)].into_iter().collect(),
            rebased: false,
            adopt: {
                let mut adopt = Adopt::default();
                let base = Stamp { generation: Generation(2), epoch: Epoch(8), round: 0 };
                adopt[0] = Some((ReplicaId(2), base));
                adopt
            },
            new_history: true,
            stamp: None,
        };
        let stamp = Stamp { generation: Generation(3), epoch: Epoch(9), round: 4 };
        let mut stamped = update;
        stamped.stamp =
            Some(StampUpdate { round: 5, settled: Some(stamp), advance: Some((ReplicaId(2), stamp)) });
        stamped.adopt[0] = Some((ReplicaId(2), stamp));
        assert_eq!(ViewUpdate::decode(&stamped.encode(true), true), Ok(stamped));
        assert_eq!(ViewUpdate::decode(&stamped.encode(false), false).unwrap().stamp, None);
        for tags in [false, true] {
            let bytes = update.encode(tags);
            assert_eq!(ViewUpdate::decode(&bytes, tags), Ok(update));
            for end in 0..bytes.len() {
                assert!(ViewUpdate::decode(&bytes[..end], tags).is_err());
            }
            let extended = |required: bool| {
                let mut out = TagWriter::new();
                out.put(999, required, b"of the future");
                ViewUpdate::decode(&[&bytes[..], &out.into_bytes()].concat(), tags)
            };
            assert_eq!(extended(false), Ok(update));
            assert_eq!(extended(true).is_err(), tags, "behind the fields of version 2 nothing is looked at");
        }
    }

    proptest! {
        #[test]
        fn extents_round_trip(runs in proptest::collection::vec((1u64..1 << 50, any::<bool>()), 0..50)) {
            let extents: Vec<_> = runs.into_iter().map(|(len, allocated)| Extent { len, allocated }).collect();
            prop_assert_eq!(decode_extents(&encode_extents(&extents)), Ok(extents));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_extents(&bytes);
            let _ = (ViewUpdate::decode(&bytes, false), ViewUpdate::decode(&bytes, true));
        }
    }
}
