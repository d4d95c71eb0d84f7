use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const SIZE: u64 = 5 * GROUP_BYTES + REGION_BYTES;
const R2: ReplicaId = ReplicaId(2);
const BASE: Order = (Generation(1), Epoch(2));

fn region(region: u64) -> (u64, u64) {
    (region * REGION_BYTES + 4096, 4096)
}

/// A replica whose maps are on a disk that can be crashed at any moment.
struct Rig {
    tracking: Tracking,
    disk: BTreeMap<Page, Vec<u64>>,
    in_flight: Vec<(Page, Vec<u64>)>,
    waiting: Vec<u64>,
    /// Written and not cleared since, by the engine's word.
    differs: BTreeSet<u64>,
    /// Written since the other replica left.
    lacks: BTreeSet<u64>,
}

impl Rig {
    fn new() -> Self {
        let mut tracking = Tracking::new(SIZE, RegionMap::of(6));
        tracking.keep([(R2, BASE, None)]);
        Self {
            tracking,
            disk: BTreeMap::new(),
            in_flight: Vec::new(),
            waiting: Vec::new(),
            differs: BTreeSet::new(),
            lacks: BTreeSet::new(),
        }
    }
    fn poll(&mut self) {
        while let Some(page) = self.tracking.poll_page() {
            let words = (0..PAGE_WORDS).map(|index| self.tracking.page_word(page, index)).collect();
            self.in_flight.push((page, words));
        }
    }
    fn write(&mut self, at: u64) {
        let (offset, len) = region(at);
        if self.tracking.admit(offset, len) {
            self.apply(at);
        } else {
            self.waiting.push(at);
        }
        self.poll();
    }
    fn apply(&mut self, at: u64) {
        self.differs.insert(at);
        self.lacks.insert(at);
    }
    fn written(&mut self, at: usize, ok: bool) {
        if self.in_flight.is_empty() {
            return;
        }
        let (page, words) = self.in_flight.remove(at % self.in_flight.len());
        if ok {
            self.disk.insert(page, words);
        }
        self.tracking.page_written(page, ok);
        for at in std::mem::take(&mut self.waiting) {
            let (offset, len) = region(at);
            if self.tracking.is_admitted(offset, len) {
                self.apply(at);
            } else if self.tracking.is_awaited(offset, len) {
                self.waiting.push(at);
            }
        }
        self.poll();
    }
    fn clear(&mut self, group: u64) {
        let busy = self.waiting.iter().any(|at| at / GROUP_REGIONS == group);
        if busy {
            // The engine never says so while something is under way there.
            return;
        }
        let mut groups = RegionMap::of(6);
        groups.insert(group);
        self.tracking.clear(&groups);
        self.differs.retain(|at| at / GROUP_REGIONS != group);
        self.poll();
    }
    fn map(&self, id: MapId, bits: u64) -> RegionMap {
        let mut map = RegionMap::of(bits);
        if let Some(words) = self.disk.get(&Page { map: id, page: 0 }) {
            words.iter().enumerate().for_each(|(index, word)| map.insert_word(index, *word));
        }
        map
    }
    fn crash(&mut self) {
        // Of the pages on their way, those that a coin favours are there; here: the first.
        if let Some((page, words)) = self.in_flight.drain(..).next() {
            self.disk.insert(page, words);
        }
        self.waiting.clear();
        let regions = SIZE.div_ceil(REGION_BYTES);
        let dirty = self.map(MapId::Dirty(R2), regions);
        self.tracking = Tracking::new(SIZE, self.map(MapId::Intent, 6));
        self.tracking.keep([(R2, BASE, Some(dirty))]);
    }
    fn check(&self) {
        let has =
            |map, at: &u64| self.tracking.word(map, usize::try_from(at / 64).unwrap()) >> (at % 64) & 1 == 1;
        for at in &self.differs {
            assert!(has(MapId::Intent, at), "region {at} may differ and is not in the intent map");
        }
        for at in &self.lacks {
            assert!(has(MapId::Dirty(R2), at), "region {at} is missing from the dirty map");
        }
    }
}

proptest! {
    /// Whatever is written, cleared, fails or crashes: nothing that may differ or be lacking is forgotten.
    #[test]
    fn nothing_is_forgotten(steps in proptest::collection::vec((0u8..10, 0u64..81, any::<bool>()), 1..120)) {
        let mut rig = Rig::new();
        for (what, at, ok) in steps {
            match what {
                0..=4 => rig.write(at),
                5..=7 => rig.written(usize::try_from(at).unwrap(), ok || what < 7),
                8 => rig.clear(at / GROUP_REGIONS),
                _ if ok => rig.crash(),
                _ => {}
            }
            rig.check();
        }
    }

    /// Once the disk has done all it was asked, what was cleared is clear, and no write waits.
    #[test]
    fn what_can_be_forgotten_is(writes in proptest::collection::vec(0u64..81, 0..40)) {
        let mut rig = Rig::new();
        writes.iter().for_each(|at| rig.write(*at));
        while !rig.in_flight.is_empty() {
            rig.written(0, true);
        }
        prop_assert!(rig.waiting.is_empty());
        (0..6).for_each(|group| rig.clear(group));
        while !rig.in_flight.is_empty() {
            rig.written(0, true);
        }
        prop_assert_eq!(rig.tracking.groups_set(), 0);
        prop_assert!(rig.map(MapId::Intent, 6).is_empty());
        let exactly: BTreeSet<_> = writes.into_iter().collect();
        let dirty: BTreeSet<_> = rig.map(MapId::Dirty(R2), 81).iter().collect();
        prop_assert_eq!(dirty, exactly, "not a region more than was written");
    }
}

#[test]
fn one_page_write_lets_in_all_that_came_meanwhile() {
    let mut rig = Rig::new();
    rig.write(0);
    rig.write(1);
    rig.write(20);
    assert_eq!(rig.in_flight.len(), 1, "one page at a time");
    rig.written(0, true);
    assert_eq!(rig.waiting, [20], "it came after the page was taken");
    rig.written(0, true);
    assert!(rig.waiting.is_empty() && rig.in_flight.is_empty());
    rig.write(2);
    assert!(rig.waiting.is_empty(), "nothing to wait for in a group that is set");
}

#[test]
fn a_page_that_cannot_be_written_admits_nobody() {
    let mut rig = Rig::new();
    rig.write(3);
    rig.written(0, false);
    assert!(rig.waiting.is_empty() && rig.differs.is_empty());
    assert_eq!(rig.tracking.groups_set(), 0);
    rig.write(3);
    rig.written(0, true);
    assert_eq!(rig.differs, BTreeSet::from([3]), "the next one is tried again");
}

#[test]
fn intent_stays_while_the_dirty_map_cannot_be_written() {
    let mut rig = Rig::new();
    rig.write(3);
    rig.written(0, true);
    rig.clear(0);
    rig.written(0, false);
    assert_eq!(rig.tracking.groups_set(), 1, "its room is taken by no other");
    rig.clear(0);
    rig.written(0, true);
    rig.written(0, true);
    assert_eq!(rig.tracking.groups_set(), 0);
}

#[test]
fn a_write_during_clearing_keeps_its_group() {
    let mut rig = Rig::new();
    rig.write(3);
    rig.written(0, true);
    rig.clear(0);
    rig.write(4);
    rig.written(0, true);
    rig.check();
    assert_eq!(rig.tracking.groups_set(), 1);
}

#[test]
fn what_an_absent_replica_got_is_taken_from_its_map_alone() {
    let mut tracking = Tracking::new(SIZE, RegionMap::of(6));
    let mut full = RegionMap::of(81);
    full.insert_all();
    tracking.keep([(R2, BASE, Some(full.clone())), (ReplicaId(3), BASE, Some(full))]);
    let mut some = RegionMap::of(81);
    (0..64).for_each(|region| some.insert(region));
    tracking.has_now(R2, &some);
    assert_eq!(tracking.word(MapId::Dirty(R2), 0), 0);
    assert_eq!(tracking.word(MapId::Dirty(ReplicaId(3)), 0), u64::MAX);
    assert_eq!(tracking.base(R2), Some(BASE));
    tracking.keep([(R2, BASE, None)]);
    assert_eq!(tracking.word(MapId::Dirty(R2), 1), (1 << 17) - 1);
    assert_eq!(tracking.base(ReplicaId(3)), None);
}
