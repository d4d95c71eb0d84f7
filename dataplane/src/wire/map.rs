//! What stands in the payload of `ReadMap`, its reply, and `EditMap`. The range of the frame says where the words
//! belong: the first bit stands for the region (or group of regions) at its offset.

use holdfast_proto::ids::ReplicaId;
use holdfast_proto::record::Stamp;

use super::payload::{read_stamp, read_stamp_order, write_stamp, write_stamp_order};
use crate::bytes_codec::{FieldError, Reader, Writer};
use crate::units::{GROUP_BYTES, REGION_BYTES, to_u64};

/// Words in one frame; a longer map takes several.
pub const MAP_WORDS_MAX: usize = 4096;
/// The range of a frame whose bits stand for regions: 64 GiB.
pub const REGIONS_WINDOW_BYTES: u64 = MAP_WORDS_MAX as u64 * 64 * REGION_BYTES;
/// The range of a frame whose bits stand for groups of regions: 1 TiB.
pub const GROUPS_WINDOW_BYTES: u64 = MAP_WORDS_MAX as u64 * 64 * GROUP_BYTES;

/// In the place of the boolean in front of a base: the base has a round.
const BASE_WITH_ROUND: u8 = 2;

/// Which map of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MapName {
    /// Where it may differ from the other members.
    Intent,
    /// What this replica may lack.
    Dirty(ReplicaId),
}

/// A part of a map, as `ReadMap` is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapPart {
    /// Of a dirty map, the stamp that it reaches back to; none: there is no such map. The intent map has none.
    pub base: Option<Stamp>,
    /// One bit for each region.
    pub words: Vec<u64>,
}

/// What `EditMap` changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MapEdit {
    /// All members are equal, on stable storage, in these groups of regions.
    Settled {
        /// One bit for each group.
        words: Vec<u64>,
    },
    /// The replica has these regions now, on stable storage.
    Copied {
        /// Which replica.
        replica: ReplicaId,
        /// One bit for each region.
        words: Vec<u64>,
    },
}

impl MapName {
    /// The payload of `ReadMap`. `rounds`: a base with a round is understood.
    #[must_use]
    pub fn encode(self, rounds: bool) -> Vec<u8> {
        let mut out = Writer::new();
        match self {
            Self::Intent => out.u8(0).u32(0),
            Self::Dirty(replica) => out.u8(1).u32(replica.0),
        };
        if rounds {
            out.bool(true);
        }
        out.into_bytes()
    }

    /// The map, and whether a base with a round is understood.
    ///
    /// # Errors
    /// When it names no map.
    pub fn decode(bytes: &[u8]) -> Result<(Self, bool), FieldError> {
        let mut r = Reader::new(bytes);
        let (kind, replica) = (r.u8("map")?, ReplicaId(r.u32("replica")?));
        let rounds = !r.rest().is_empty() && r.bool("rounds")?;
        match kind {
            0 => Ok((Self::Intent, rounds)),
            1 => Ok((Self::Dirty(replica), rounds)),
            other => Err(FieldError { field: "map", problem: format!("{other} is not known") }),
        }
    }
}

impl MapPart {
    /// The payload of the reply to `ReadMap`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        match self.base {
            Some(base) if base.round != 0 => write_stamp(out.u8(BASE_WITH_ROUND), base),
            base => write_stamp_order(&mut out, base),
        }
        write_words(&mut out, &self.words);
        out.into_bytes()
    }

    /// The answer to an engine. One that knows no rounds would take a base for an older one than it is: it is told that
    /// there is no map.
    #[must_use]
    pub fn told(base: Option<Stamp>, words: Vec<u64>, rounds: bool) -> Self {
        Self { base: base.filter(|base| rounds || base.round == 0), words }
    }

    /// # Errors
    /// When a field is missing, or there are too many words.
    pub fn decode(bytes: &[u8]) -> Result<Self, FieldError> {
        let mut r = Reader::new(bytes);
        let base = match bytes.first() {
            Some(&BASE_WITH_ROUND) => {
                r.u8("base")?;
                Some(read_stamp(&mut r, "base")?)
            }
            Some(_) | None => read_stamp_order(&mut r, "base")?,
        };
        Ok(Self { base, words: read_words(&mut r)? })
    }
}

impl MapEdit {
    /// The payload of `EditMap`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        match self {
            Self::Settled { words } => write_words(out.u8(1).u32(0), words),
            Self::Copied { replica, words } => write_words(out.u8(2).u32(replica.0), words),
        }
        out.into_bytes()
    }

    /// # Errors
    /// When a field is missing or not known, or there are too many words.
    pub fn decode(bytes: &[u8]) -> Result<Self, FieldError> {
        let mut r = Reader::new(bytes);
        let (kind, replica) = (r.u8("edit")?, ReplicaId(r.u32("replica")?));
        let words = read_words(&mut r)?;
        match kind {
            1 => Ok(Self::Settled { words }),
            2 => Ok(Self::Copied { replica, words }),
            other => Err(FieldError { field: "edit", problem: format!("{other} is not known") }),
        }
    }
}

/// Whether a range is one that a frame with `MapName` or `MapEdit` may have: it begins at a word, and is not longer than
/// the words of a frame.
#[must_use]
pub fn is_map_range(offset: u64, len: u64, bit_bytes: u64) -> bool {
    offset.is_multiple_of(64 * bit_bytes) && len > 0 && len <= to_u64(MAP_WORDS_MAX) * 64 * bit_bytes
}

fn write_words(out: &mut Writer, words: &[u64]) {
    for word in words.iter().take(MAP_WORDS_MAX) {
        out.u64(*word);
    }
}

fn read_words(r: &mut Reader<'_>) -> Result<Vec<u64>, FieldError> {
    let bytes = r.rest().len();
    if bytes > MAP_WORDS_MAX * 8 || !bytes.is_multiple_of(8) {
        let problem = format!("expected at most {MAP_WORDS_MAX} times 8 bytes, found {bytes}");
        return Err(FieldError { field: "words", problem });
    }
    (0..bytes / 8).map(|_| r.u64("words")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::ids::{Epoch, Generation};
    use proptest::prelude::*;

    #[test]
    fn golden_bytes() {
        assert_eq!(MapName::Dirty(ReplicaId(3)).encode(false), [1, 3, 0, 0, 0]);
        assert_eq!(MapName::Intent.encode(false), [0, 0, 0, 0, 0]);
        assert_eq!(MapName::Intent.encode(true), [0, 0, 0, 0, 0, 1]);
        let edit = MapEdit::Copied { replica: ReplicaId(2), words: vec![0x0102] };
        assert_eq!(edit.encode(), [2, 2, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        let base = Stamp { generation: Generation(7), epoch: Epoch(9), round: 0 };
        let part = MapPart { base: Some(base), words: vec![1] };
        assert_eq!(
            part.encode(),
            [1, 7, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
        );
        let part = MapPart { base: Some(Stamp { round: 3, ..base }), words: vec![] };
        assert_eq!(
            part.encode(),
            [2, 7, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(MapPart::told(part.base, vec![], false).base, None);
        assert_eq!(MapPart::told(part.base, vec![], true), part);
    }

    #[test]
    fn ranges_begin_at_a_word() {
        assert!(is_map_range(0, 1, REGION_BYTES));
        assert!(is_map_range(64 * REGION_BYTES, REGIONS_WINDOW_BYTES, REGION_BYTES));
        assert!(!is_map_range(REGION_BYTES, REGION_BYTES, REGION_BYTES));
        assert!(!is_map_range(0, REGIONS_WINDOW_BYTES + 1, REGION_BYTES));
        assert!(!is_map_range(0, 0, REGION_BYTES));
    }

    proptest! {
        #[test]
        fn round_trip(words in proptest::collection::vec(any::<u64>(), 0..20), replica in 1u32.., base: Option<(u64, u64, u64)>) {
            let replica = ReplicaId(replica);
            for edit in [MapEdit::Settled { words: words.clone() }, MapEdit::Copied { replica, words: words.clone() }] {
                prop_assert_eq!(MapEdit::decode(&edit.encode()), Ok(edit));
            }
            let base = base.map(|(g, e, round)| Stamp { generation: Generation(g), epoch: Epoch(e), round });
            let part = MapPart { base, words };
            prop_assert_eq!(MapPart::decode(&part.encode()), Ok(part));
            for name in [MapName::Intent, MapName::Dirty(replica)] {
                for rounds in [false, true] {
                    prop_assert_eq!(MapName::decode(&name.encode(rounds)), Ok((name, rounds)));
                }
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = MapName::decode(&bytes);
            let _ = MapPart::decode(&bytes);
            let _ = MapEdit::decode(&bytes);
        }
    }
}
