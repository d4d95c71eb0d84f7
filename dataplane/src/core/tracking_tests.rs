use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use holdfast_proto::ids::{Epoch, Generation};

/// Of the intent map a page and a little more, which is seventeen of a dirty map.
const GROUPS: u64 = PAGE_BITS + 6;
const SIZE: u64 = (GROUPS - 1) * GROUP_BYTES + REGION_BYTES;
const REGIONS: u64 = SIZE.div_ceil(REGION_BYTES);
const R2: ReplicaId = ReplicaId(2);
const BASE: Stamp = Stamp { generation: Generation(1), epoch: Epoch(2), round: 0 };

fn region(region: u64) -> (u64, u64) {
    (region * REGION_BYTES + 4096, 4096)
}

/// Regions of the first six groups, of six in the next page of a dirty map, and of six in the next of the intent map.
fn spot(n: u64) -> u64 {
    let page = [0, PAGE_BITS, PAGE_BITS * GROUP_REGIONS][to_usize(n % 3)];
    page + n / 3
}

const SPOTS: u64 = 3 * (5 * GROUP_REGIONS + 1);

/// A replica whose maps are on a disk that can be crashed at any moment.
struct Rig {
    tracking: Tracking,
    disk: BTreeMap<Page, Vec<u64>>,
    in_flight: Vec<(Page, Vec<u64>)>,
    waiting: Vec<u64>,
    /// Written last.
    last: u64,
    /// Written and not cleared since, by the engine's word.
    differs: BTreeSet<u64>,
    /// Written since the other replica left.
    lacks: BTreeSet<u64>,
}

impl Rig {
    fn new() -> Self {
        let mut tracking = Tracking::new(SIZE, RegionMap::of(GROUPS));
        tracking.keep([(R2, BASE, None)]);
        Self {
            tracking,
            disk: BTreeMap::new(),
            in_flight: Vec::new(),
            waiting: Vec::new(),
            last: 0,
            differs: BTreeSet::new(),
            lacks: BTreeSet::new(),
        }
    }
    fn poll(&mut self) {
        while let Some(page) = self.tracking.poll_page() {
            let first = first_word(page.page);
            let words =
                (first..first + PAGE_WORDS).map(|index| self.tracking.page_word(page, index)).collect();
            self.in_flight.push((page, words));
        }
    }
    /// In the next group.
    fn go_on(&mut self) {
        self.write((self.last + GROUP_REGIONS).min(REGIONS - 1));
    }
    fn write(&mut self, at: u64) {
        self.last = at;
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
        let mut groups = RegionMap::of(GROUPS);
        groups.insert(group);
        self.tracking.clear(&groups);
        self.differs.retain(|at| at / GROUP_REGIONS != group);
        self.poll();
    }
    fn map(&self, id: MapId, bits: u64) -> RegionMap {
        let mut map = RegionMap::of(bits);
        for (page, words) in self.disk.iter().filter(|(page, _)| page.map == id) {
            let first = first_word(page.page);
            words.iter().enumerate().for_each(|(within, word)| map.insert_word(first + within, *word));
        }
        map
    }
    /// Of the pages on their way, those are there whose bit of `coins` is set.
    fn crash(&mut self, coins: u64) {
        for (n, (page, words)) in self.in_flight.drain(..).enumerate() {
            if coins >> (n % 64) & 1 == 1 {
                self.disk.insert(page, words);
            }
        }
        self.waiting.clear();
        let dirty = self.map(MapId::Dirty(R2), REGIONS);
        self.tracking = Tracking::new(SIZE, self.map(MapId::Intent, GROUPS));
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
    fn nothing_is_forgotten(steps in proptest::collection::vec((0u8..10, 0..SPOTS, any::<bool>()), 1..120)) {
        let mut rig = Rig::new();
        for (what, at, ok) in steps {
            match what {
                0..=2 => rig.write(spot(at)),
                3 | 4 => rig.go_on(),
                5..=7 => rig.written(to_usize(at), ok || what < 7),
                8 => rig.clear(spot(at) / GROUP_REGIONS),
                _ if ok => rig.crash(at),
                _ => {}
            }
            rig.check();
        }
    }

    /// Once the disk has done all it was asked, what was cleared is clear, and no write waits.
    #[test]
    fn what_can_be_forgotten_is(writes in proptest::collection::vec((0..SPOTS, any::<bool>()), 0..40)) {
        let mut rig = Rig::new();
        let writes: Vec<_> = writes
            .into_iter()
            .map(|(at, on)| {
                if on { rig.go_on() } else { rig.write(spot(at)) }
                rig.last
            })
            .collect();
        while !rig.in_flight.is_empty() {
            rig.written(0, true);
        }
        prop_assert!(rig.waiting.is_empty());
        let groups: BTreeSet<_> = writes.iter().map(|at| at / GROUP_REGIONS).collect();
        groups.into_iter().for_each(|group| rig.clear(group));
        while !rig.in_flight.is_empty() {
            rig.written(0, true);
        }
        prop_assert_eq!(rig.tracking.groups_set(), 0);
        prop_assert!(rig.map(MapId::Intent, GROUPS).is_empty());
        let exactly: BTreeSet<_> = writes.into_iter().collect();
        let dirty: BTreeSet<_> = rig.map(MapId::Dirty(R2), REGIONS).iter().collect();
        prop_assert_eq!(dirty, exactly, "not a region more than was written");
    }
}

#[test]
fn one_page_write_lets_in_all_that_came_meanwhile() {
    let mut rig = Rig::new();
    rig.write(0);
    rig.write(1);
    rig.write(20);
    assert_eq!(rig.in_flight.len(), 1, "a page is not on its way twice");
    rig.written(0, true);
    assert_eq!(rig.waiting, [20], "it came after the page was taken");
    rig.written(0, true);
    assert!(rig.waiting.is_empty() && rig.in_flight.is_empty());
    rig.write(2);
    assert!(rig.waiting.is_empty(), "nothing to wait for in a group that is set");
}

#[test]
fn pages_go_together_and_one_that_fails_takes_no_other_with_it() {
    let mut rig = Rig::new();
    let far = PAGE_BITS * GROUP_REGIONS;
    rig.write(0);
    rig.write(far);
    rig.write(far + 1);
    assert_eq!(rig.in_flight.len(), 2);
    rig.written(0, false);
    assert_eq!((&rig.waiting, rig.differs.len()), (&vec![far, far + 1], 0));
    rig.written(0, true);
    assert_eq!(rig.differs, BTreeSet::from([far, far + 1]));
    assert_eq!(rig.tracking.groups_set(), 1);
}

#[test]
fn a_sequential_writer_waits_at_its_start_alone_and_leaves_no_bit_behind() {
    let mut rig = Rig::new();
    for group in 0..100 {
        rig.write(group * GROUP_REGIONS);
        assert_eq!(rig.waiting.is_empty(), group > 2, "group {group}");
        while !rig.in_flight.is_empty() {
            rig.written(0, true);
        }
    }
    assert!((132..=164).contains(&rig.tracking.groups_set()), "half of 64 at least");
    rig.write(PAGE_BITS * GROUP_REGIONS);
    assert_eq!(rig.tracking.groups_set(), 101, "it has gone elsewhere");
}

#[test]
fn a_bit_set_ahead_is_taken_back_unless_something_was_written_there() {
    let mut rig = Rig::new();
    (0..3).for_each(|group| rig.write(group * GROUP_REGIONS));
    rig.write(5 * GROUP_REGIONS);
    while !rig.in_flight.is_empty() {
        rig.written(0, true);
    }
    rig.crash(0);
    let set: Vec<_> = rig.map(MapId::Intent, GROUPS).iter().collect();
    assert_eq!(set, [0, 1, 2, 5]);
}

#[test]
fn so_many_pages_at_a_time_and_no_more() {
    let pages = u64::try_from(PAGES_AT_ONCE).unwrap() + 4;
    let mut tracking = Tracking::new(pages * PAGE_BITS * GROUP_BYTES, RegionMap::of(pages * PAGE_BITS));
    for page in 0..pages {
        assert!(!tracking.admit(page * PAGE_BITS * GROUP_BYTES, 4096));
    }
    let first: Vec<_> = std::iter::from_fn(|| tracking.poll_page()).collect();
    assert_eq!(first.len(), PAGES_AT_ONCE);
    tracking.page_written(first[3], true);
    assert!(tracking.poll_page().is_some_and(|page| !first.contains(&page)), "one has ended, the next goes");
    assert_eq!(tracking.poll_page(), None);
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
    let mut tracking = Tracking::new(SIZE, RegionMap::of(GROUPS));
    let mut full = RegionMap::of(REGIONS);
    full.insert_all();
    tracking.keep([(R2, BASE, Some(full.clone())), (ReplicaId(3), BASE, Some(full))]);
    tracking.has_now(R2, 0, &[u64::MAX]);
    assert_eq!(tracking.word(MapId::Dirty(R2), 0), 0);
    assert_eq!(tracking.word(MapId::Dirty(ReplicaId(3)), 0), u64::MAX);
    assert_eq!(tracking.base(R2), Some(BASE));
    tracking.keep([(R2, BASE, None)]);
    assert_eq!(tracking.word(MapId::Dirty(R2), 1), u64::MAX);
    assert_eq!(tracking.base(ReplicaId(3)), None);
}
