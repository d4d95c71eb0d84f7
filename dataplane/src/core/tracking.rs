//! What a replica remembers of its changes: the write-intent map and the dirty maps. Pure; the shell carries the pages
//! to their files.
//!
//! **Write intent.** Before the first write to a group of regions reaches the image, the group's bit is on stable
//! storage: after a crash, members can differ only in groups whose bit is set on one of them. Within a group, `fresh`
//! remembers the regions that were really written, for as long as the process lives; a process that starts takes all
//! regions of its groups for written.
//!
//! **Dirty maps.** One for each configured replica that is no member: the regions that it may lack. A bit of the intent
//! map is cleared only once what it stands for is on stable storage in every dirty map; so what a replica lacks is its
//! dirty map and `fresh` together, whatever crashes.
//!
//! Calling order: [`Tracking::admit`] for each change of the data before it is made (one that is not admitted waits
//! until [`Tracking::is_admitted`]), [`Tracking::clear`] when the engine says so; after either, and after
//! [`Tracking::page_written`], [`Tracking::poll_page`] until it is `None`.

use std::collections::BTreeSet;

use holdfast_proto::ids::ReplicaId;
use holdfast_proto::record::Stamp;

use super::ahead::{Ahead, Bits};
use super::region_map::{RegionMap, regions_of};
use super::rules::{Rule, kept};
use crate::layout::bitmap::{PAGE_BITS, PAGE_WORDS, page_of};
use crate::units::{GROUP_BYTES, GROUP_REGIONS, REGION_BYTES, to_u64, to_usize};

/// One of the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MapId {
    /// Where members may differ after a crash; a bit stands for a group of regions.
    Intent,
    /// What this replica may lack; a bit stands for a region.
    Dirty(ReplicaId),
}

/// A page that has to reach stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Page {
    /// Of which map.
    pub map: MapId,
    /// Which, counted from 0.
    pub page: u32,
}

/// So many pages of one map are on their way to the disk at a time. Each ends with a flush, and the kernel makes one of
/// those that come together: on the disk of performance.md 16 are written in 2.7 times the time of one.
pub const PAGES_AT_ONCE: usize = 16;

/// A map with its pages on their way to the disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Paged {
    map: RegionMap,
    unwritten: BTreeSet<u32>,
    in_flight: Vec<InFlight>,
    /// Could not be written; tried again with the next change that needs them.
    failed: BTreeSet<u32>,
}

/// A page on its way, and what it has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct InFlight {
    page: u32,
    words: Vec<u64>,
}

impl Paged {
    fn new(map: RegionMap) -> Self {
        Self { map, unwritten: BTreeSet::new(), in_flight: Vec::new(), failed: BTreeSet::new() }
    }
    fn changed(&mut self, bit: u64) {
        self.unwritten.insert(page_of(bit));
    }
    fn is_written(&self) -> bool {
        self.unwritten.is_empty() && self.in_flight.is_empty() && self.failed.is_empty()
    }
    fn begin(&mut self) -> Option<u32> {
        if self.in_flight.len() == PAGES_AT_ONCE {
            return None;
        }
        // The same page twice, and the disk might have the older one last.
        let page = self.unwritten.iter().copied().find(|page| self.on_its_way(*page).is_none())?;
        self.unwritten.remove(&page);
        let first = first_word(page);
        let words = (first..first + PAGE_WORDS).map(|index| self.map.word(index)).collect();
        self.in_flight.push(InFlight { page, words });
        Some(page)
    }
    fn on_its_way(&self, page: u32) -> Option<&InFlight> {
        self.in_flight.iter().find(|one| one.page == page)
    }
    /// None: it was replaced meanwhile, and has none in flight.
    fn ended(&mut self, page: u32) -> Option<InFlight> {
        let at = self.in_flight.iter().position(|one| one.page == page)?;
        Some(self.in_flight.swap_remove(at))
    }
}

fn first_word(page: u32) -> usize {
    to_usize(u64::from(page) * PAGE_BITS / 64)
}

/// What one absent replica may lack.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Dirty {
    replica: ReplicaId,
    base: Stamp,
    paged: Paged,
}

/// The maps of one replica.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tracking {
    intent: Paged,
    /// Groups whose bit is on stable storage.
    durable: RegionMap,
    /// Regions written within groups whose bit is set.
    fresh: RegionMap,
    /// Groups that are cleared once the dirty maps are written, unless they are written to before.
    clearing: RegionMap,
    dirty: Vec<Dirty>,
    ahead: Ahead,
}

impl Tracking {
    /// For a volume of `size_bytes`, with the groups of the write-intent map as they are on the disk.
    #[must_use]
    pub fn new(size_bytes: u64, intent: RegionMap) -> Self {
        let groups = size_bytes.div_ceil(GROUP_BYTES);
        let mut fresh = RegionMap::empty(size_bytes);
        for group in intent.iter() {
            fresh.insert_bytes(group * GROUP_BYTES, GROUP_BYTES.min(size_bytes - group * GROUP_BYTES));
        }
        Self {
            durable: intent.clone(),
            intent: Paged::new(intent),
            fresh,
            clearing: RegionMap::of(groups),
            dirty: Vec::new(),
            ahead: Ahead::default(),
        }
    }

    /// From now on these are the replicas that dirty maps are kept for. A map that is given replaces the one there was;
    /// none: it stays as it is.
    pub fn keep(&mut self, maps: impl IntoIterator<Item = (ReplicaId, Stamp, Option<RegionMap>)>) {
        let mut before = std::mem::take(&mut self.dirty);
        for (replica, base, map) in maps {
            let old =
                before.iter().position(|dirty| dirty.replica == replica).map(|at| before.swap_remove(at));
            let paged = match (map, old) {
                (Some(map), _) => Paged::new(map),
                (None, Some(old)) => old.paged,
                (None, None) => Paged::new(RegionMap::of(self.fresh.len())),
            };
            self.dirty.push(Dirty { replica, base, paged });
        }
        self.finish_clearing();
    }

    /// A change of `offset..offset + len` is about to be made. False: it has to wait until [`Self::is_admitted`].
    pub fn admit(&mut self, offset: u64, len: u64) -> bool {
        self.fresh.insert_bytes(offset, len);
        let groups = groups_of(offset, len);
        if let Some(bits) = self.ahead.reached(&groups, self.clearing.len()) {
            self.set_ahead(bits);
        }
        let mut admitted = true;
        for group in groups {
            if !self.clearing.is_empty() {
                self.clearing.remove(group);
            }
            if self.durable.contains(group) {
                continue;
            }
            admitted = false;
            self.intend(group);
        }
        admitted
    }

    fn intend(&mut self, group: u64) {
        if !self.intent.map.contains(group) {
            self.intent.map.insert(group);
            self.intent.changed(group);
        }
    }

    fn set_ahead(&mut self, bits: Bits) {
        match bits {
            Bits::Set(groups) => groups.for_each(|group| self.intend(group)),
            Bits::TakeBack(groups) => {
                for group in groups {
                    if !regions_in(group).any(|region| self.fresh.contains(region)) {
                        self.forget(group);
                    }
                }
            }
        }
    }

    fn forget(&mut self, group: u64) {
        self.intent.map.remove(group);
        self.durable.remove(group);
        self.intent.changed(group);
    }

    /// Whether a change may be made now; for one that [`Self::admit`] has seen.
    #[must_use]
    pub fn is_admitted(&self, offset: u64, len: u64) -> bool {
        groups_of(offset, len).all(|group| self.durable.contains(group))
    }

    /// Whether a change still may be admitted: its bits are set, or on their way. Not so after a page could not be
    /// written.
    #[must_use]
    pub fn is_awaited(&self, offset: u64, len: u64) -> bool {
        groups_of(offset, len).all(|group| self.intent.map.contains(group))
    }

    /// Members are equal in these groups, on stable storage: their bits are cleared, once what they stood for is in the
    /// dirty maps.
    pub fn clear(&mut self, groups: &RegionMap) {
        if let Some(bits) = self.ahead.settled(|group| groups.contains(group)) {
            self.set_ahead(bits);
        }
        let groups: Vec<_> = groups.iter().filter(|group| self.durable.contains(*group)).collect();
        for group in &groups {
            self.clearing.insert(*group);
        }
        for dirty in &mut self.dirty {
            let failed = std::mem::take(&mut dirty.paged.failed);
            dirty.paged.unwritten.extend(failed);
            for region in groups.iter().copied().flat_map(regions_in) {
                if self.fresh.contains(region)
                    && !dirty.paged.map.contains(region)
                    && kept(Rule::DirtyBeforeCleared)
                {
                    dirty.paged.map.insert(region);
                    dirty.paged.changed(region);
                }
            }
        }
        self.finish_clearing();
    }

    /// For the model checker, which gives other names to what is named in it.
    #[cfg(test)]
    pub(crate) fn bases_mut(&mut self) -> impl Iterator<Item = &mut Stamp> {
        self.dirty.iter_mut().map(|dirty| &mut dirty.base)
    }

    fn finish_clearing(&mut self) {
        if self.clearing.is_empty() || !self.dirty.iter().all(|dirty| dirty.paged.is_written()) {
            return;
        }
        let none = RegionMap::of(self.clearing.len());
        let groups = std::mem::replace(&mut self.clearing, none);
        for group in groups.iter() {
            self.forget(group);
            regions_in(group).for_each(|region| self.fresh.remove(region));
        }
    }

    /// An absent replica has these regions now, on stable storage: those set in `words`, which begin with the word at
    /// `first`. That need not be remembered at once: a bit too many is copied again.
    pub fn has_now(&mut self, replica: ReplicaId, first: usize, words: &[u64]) {
        let Some(dirty) = self.dirty.iter_mut().find(|dirty| dirty.replica == replica) else { return };
        for (index, bits) in (first..).zip(words) {
            if dirty.paged.map.word(index) & bits != 0 {
                dirty.paged.map.remove_word(index, *bits);
                // All of a word are on one page.
                dirty.paged.changed(to_u64(index) * 64);
            }
        }
    }

    /// What a replica may lack that has been a member up to `base`; none: nothing is known of it.
    #[must_use]
    pub fn base(&self, replica: ReplicaId) -> Option<Stamp> {
        self.dirty.iter().find(|dirty| dirty.replica == replica).map(|dirty| dirty.base)
    }

    /// The regions that a map stands for, 64 from `64 * index`: for an absent replica what it may lack, for the intent map
    /// where this replica may differ from others.
    #[must_use]
    pub fn word(&self, map: MapId, index: usize) -> u64 {
        let dirty = match map {
            MapId::Intent => 0,
            MapId::Dirty(replica) => self
                .dirty
                .iter()
                .find(|dirty| dirty.replica == replica)
                .map_or(0, |dirty| dirty.paged.map.word(index)),
        };
        dirty | self.fresh.word(index)
    }

    /// The next page to put on stable storage; answered by [`Self::page_written`]. Its bits are those of
    /// [`Self::page_word`] until then.
    pub fn poll_page(&mut self) -> Option<Page> {
        if let Some(page) = self.intent.begin() {
            return Some(Page { map: MapId::Intent, page });
        }
        self.dirty.iter_mut().find_map(|dirty| {
            let page = dirty.paged.begin()?;
            Some(Page { map: MapId::Dirty(dirty.replica), page })
        })
    }

    /// A word of the page in flight, by its place among all words of the map.
    #[must_use]
    pub fn page_word(&self, page: Page, index: usize) -> u64 {
        let within = index.wrapping_sub(first_word(page.page));
        let words = self.paged(page.map).and_then(|paged| paged.on_its_way(page.page)).map(|one| &one.words);
        words.and_then(|words| words.get(within)).copied().unwrap_or(0)
    }

    fn paged(&self, map: MapId) -> Option<&Paged> {
        match map {
            MapId::Intent => Some(&self.intent),
            MapId::Dirty(replica) => {
                self.dirty.iter().find(|dirty| dirty.replica == replica).map(|dirty| &dirty.paged)
            }
        }
    }

    /// A page is on stable storage, or could not be put there.
    pub fn page_written(&mut self, written: Page, ok: bool) {
        match written.map {
            MapId::Intent => self.intent_written(written.page, ok),
            MapId::Dirty(replica) => {
                let Some(dirty) = self.dirty.iter_mut().find(|dirty| dirty.replica == replica) else {
                    return;
                };
                let Some(ended) = dirty.paged.ended(written.page) else { return };
                if !ok {
                    dirty.paged.failed.insert(ended.page);
                    // What they stand for is not on stable storage: they stay.
                    self.clearing.clear();
                }
            }
        }
        self.finish_clearing();
    }

    fn intent_written(&mut self, page: u32, ok: bool) {
        let Some(ended) = self.intent.ended(page) else { return };
        let first = first_word(page);
        for within in 0..PAGE_WORDS {
            let index = first + within;
            let wanted = self.intent.map.word(index);
            if ok {
                // What was cleared since is not counted, what was set since is not there yet.
                let written = ended.words.get(within).copied().unwrap_or(0);
                self.durable.insert_word(index, written & wanted);
            } else {
                self.intent.map.remove_word(index, wanted & !self.durable.word(index));
            }
        }
        if !ok {
            self.intent.unwritten.remove(&page);
        }
    }

    /// How many groups have their bit set.
    #[must_use]
    pub fn groups_set(&self) -> u64 {
        self.intent.map.count()
    }
}

/// The groups that a byte range touches.
fn groups_of(offset: u64, len: u64) -> std::ops::Range<u64> {
    let regions = regions_of(offset, len);
    regions.start / GROUP_REGIONS..regions.end.div_ceil(GROUP_REGIONS)
}

fn regions_in(group: u64) -> std::ops::Range<u64> {
    group * GROUP_REGIONS..(group + 1) * GROUP_REGIONS
}

const _: () = assert!(GROUP_BYTES == GROUP_REGIONS * REGION_BYTES);
const _: () = assert!(PAGE_BITS.is_multiple_of(64), "a word is on one page");

#[cfg(test)]
#[path = "tracking_tests.rs"]
mod tests;
