//! Reading and editing the replicas' maps over the wire: which regions members may differ in, and what an absent replica
//! may lack.

use holdfast_proto::record::Stamp;

use super::ops::Work;
use super::tag::Tag;
use super::{Body, Engine, Mask, Now, bit, slots};
use crate::core::region_map::RegionMap;
use crate::core::rules::{Rule, kept};
use crate::units::{REGION_BYTES, to_u64, to_usize};
use crate::wire::header::{Header, Kind};
use crate::wire::map::{MAP_WORDS_MAX, MapEdit, MapName, MapPart, REGIONS_WINDOW_BYTES};

/// What a map is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(super) enum Purpose {
    /// Which regions are to be compared after an unclean end.
    Repair,
    /// Whether the members know what the target lacks.
    Ask,
    /// What the target lacks.
    Lacks,
    /// Where the target may have what no member knows of.
    Extra,
    /// What yet another absent replica lacks: the target will remember it too.
    Others {
        /// Its place.
        absent: usize,
    },
}

/// A map that is being read from several replicas, window by window.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(Hash))]
pub(super) struct Learn {
    pub(super) purpose: Purpose,
    name: MapName,
    pub(super) mask: Mask,
    end: u64,
    at: u64,
    asking: Option<u32>,
    /// All that any of them has.
    pub(super) map: RegionMap,
    /// How far back each of them goes.
    pub(super) bases: [Option<Stamp>; 8],
}

impl Engine {
    /// Begins to read a map. What was being read is forgotten.
    pub(super) fn learn(&mut self, purpose: Purpose, name: MapName, mask: Mask, now: Now) {
        let size = self.config.volume_bytes;
        // To know how far back the maps go, a look at their beginning is enough.
        let end = if purpose == Purpose::Ask { size.min(REGION_BYTES) } else { size };
        self.fill.learn = Some(Learn {
            purpose,
            name,
            mask,
            end,
            at: 0,
            asking: None,
            map: RegionMap::empty(size),
            bases: [None; 8],
        });
        self.learn_on(now);
    }

    fn learn_on(&mut self, now: Now) {
        let Some(learn) = &self.fill.learn else { return };
        let (mask, at) = (learn.mask, learn.at);
        let len = REGIONS_WINDOW_BYTES.min(learn.end - at);
        let op = self.admit(Work::ReadMap { name: learn.name, mask }, at, len, now);
        if let Some(learn) = &mut self.fill.learn {
            learn.asking = Some(op.slot);
        }
        self.run_ready(now);
    }

    /// A window has been read, or those it was asked of are not all there any more.
    pub(super) fn map_read(&mut self, id: u32, now: Now) {
        let (offset, len, parts) = self.ops.take_parts(id);
        self.end_own(id, now);
        let Some(learn) = self.fill.learn.as_mut().filter(|learn| learn.asking == Some(id)) else { return };
        learn.asking = None;
        let answered = parts.iter().fold(0, |mask, (slot, _)| mask | bit(*slot));
        if answered != learn.mask {
            let purpose = learn.purpose;
            self.fill.learn = None;
            return self.not_learned(purpose, now);
        }
        let first = to_usize(offset / REGION_BYTES / 64);
        for (slot, part) in parts {
            learn.bases[slot] = part.base;
            for (index, word) in part.words.iter().enumerate() {
                learn.map.insert_word(first + index, *word);
            }
        }
        learn.at = offset + len;
        if learn.at < learn.end {
            return self.learn_on(now);
        }
        if let Some(learn) = self.fill.learn.take() {
            self.learned(learn, now);
        }
    }

    /// Sends an edit of a map to a replica, in as many frames as it takes: the words that have a bit set, in ascending
    /// order. Nothing waits for it: a bit that is not cleared costs a comparison or a copy.
    pub(super) fn edit_map(
        &mut self,
        slot: usize,
        words: impl Iterator<Item = (usize, u64)>,
        bit_bytes: u64,
        edit: impl Fn(Vec<u64>) -> MapEdit,
    ) {
        let mut frame: Option<(usize, Vec<u64>)> = None;
        for (index, word) in words {
            if let Some((first, filled)) = frame.take_if(|(first, _)| index - *first >= MAP_WORDS_MAX) {
                self.send_edit(slot, first, bit_bytes, filled, &edit);
            }
            let (first, filled) = frame.get_or_insert_with(|| (index, Vec::new()));
            filled.resize(index - *first, 0);
            filled.push(word);
        }
        if let Some((first, filled)) = frame {
            self.send_edit(slot, first, bit_bytes, filled, &edit);
        }
    }

    fn send_edit(
        &mut self,
        slot: usize,
        first: usize,
        bit_bytes: u64,
        words: Vec<u64>,
        edit: impl Fn(Vec<u64>) -> MapEdit,
    ) {
        let offset = to_u64(first) * 64 * bit_bytes;
        let extent = (to_u64(words.len()) * 64 * bit_bytes).min(self.config.volume_bytes - offset);
        let header = Header { offset, extent, ..Header::request(Kind::EditMap, Tag::Ping.encode(), 0) };
        self.send(slot, header, Body::Bytes(edit(words).encode()));
    }

    /// Keeps an answer to [`Work::ReadMap`]; false: it makes no sense.
    pub(super) fn keep_part(
        parts: &mut Vec<(usize, MapPart)>,
        slot: usize,
        extent: u64,
        payload: &[u8],
    ) -> bool {
        let expected = to_usize(extent.div_ceil(REGION_BYTES).div_ceil(64));
        match MapPart::decode(payload) {
            // No honest history has a base with so many rounds.
            Ok(part)
                if part.words.len() == expected
                    && part.base.is_none_or(|base| base.round < Stamp::ROUND_MAX) =>
            {
                parts.push((slot, part));
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// Whether a member goes back far enough to know all that the target lacks.
    pub(super) fn reaching(&self, learn: &Learn, target: usize) -> Mask {
        let basis = self.peers[target].welcome.as_ref().and_then(|welcome| welcome.basis);
        slots(learn.mask)
            .filter(|slot| {
                learn.bases[*slot]
                    .zip(basis)
                    .is_some_and(|(base, basis)| base <= basis || !kept(Rule::BasisReaches))
            })
            .fold(0, |mask, slot| mask | bit(slot))
    }
}
