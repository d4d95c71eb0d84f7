//! A bitmap over the regions of a volume (or over groups of them), with a count and a cursor.

use crate::units::{REGION_BYTES, to_u64, to_usize};

/// Which regions of a volume something is still to be done for. Takes no memory while it is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct RegionMap {
    words: Vec<u64>,
    regions: u64,
    set: u64,
}

impl RegionMap {
    /// None set, for a volume of that size.
    #[must_use]
    pub fn empty(size_bytes: u64) -> Self {
        Self::of(size_bytes.div_ceil(REGION_BYTES))
    }
    /// All set, for a volume of that size.
    #[must_use]
    pub fn full(size_bytes: u64) -> Self {
        let mut map = Self::empty(size_bytes);
        map.insert_all();
        map
    }
    /// None set, over `count` of whatever is counted.
    #[must_use]
    pub fn of(count: u64) -> Self {
        Self { words: Vec::new(), regions: count, set: 0 }
    }
    /// Over how many.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.regions
    }
    /// Sets every one.
    pub fn insert_all(&mut self) {
        self.words = vec![u64::MAX; to_usize(self.regions.div_ceil(64))];
        let rest = self.regions % 64;
        if let Some(last) = self.words.last_mut().filter(|_| rest != 0) {
            *last = (1 << rest) - 1;
        }
        self.set = self.regions;
    }
    /// Clears every one.
    pub fn clear(&mut self) {
        self.words = Vec::new();
        self.set = 0;
    }
    /// The 64 from `64 * index`.
    #[must_use]
    pub fn word(&self, index: usize) -> u64 {
        self.words.get(index).copied().unwrap_or(0)
    }
    /// Sets those of the 64 from `64 * index` that `bits` has; those past the end are passed over.
    pub fn insert_word(&mut self, index: usize, bits: u64) {
        let first = to_u64(index) * 64;
        let bits = match self.regions.saturating_sub(first) {
            0 => 0,
            left @ 1..64 => bits & ((1 << left) - 1),
            64.. => bits,
        };
        if bits == 0 {
            return;
        }
        self.take_memory();
        if let Some(word) = self.words.get_mut(index) {
            self.set += u64::from((bits & !*word).count_ones());
            *word |= bits;
        }
    }
    /// Clears those of the 64 from `64 * index` that `bits` has.
    pub fn remove_word(&mut self, index: usize, bits: u64) {
        if let Some(word) = self.words.get_mut(index) {
            self.set -= u64::from((bits & *word).count_ones());
            *word &= !bits;
        }
        self.give_memory();
    }
    /// Sets what `other` has.
    pub fn insert_map(&mut self, other: &Self) {
        for (index, bits) in other.words.iter().enumerate().filter(|(_, bits)| **bits != 0) {
            self.insert_word(index, *bits);
        }
    }
    /// Clears what `other` has.
    pub fn remove_map(&mut self, other: &Self) {
        for (index, bits) in other.words.iter().enumerate().filter(|(_, bits)| **bits != 0) {
            self.remove_word(index, *bits);
        }
    }
    /// Clears what `other` does not have.
    pub fn keep_only(&mut self, other: &Self) {
        for index in 0..self.words.len() {
            let gone = self.word(index) & !other.word(index);
            if gone != 0 {
                self.remove_word(index, gone);
            }
        }
    }
    /// Those set, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let next = self.next_from(at)?;
            at = next + 1;
            Some(next)
        })
    }
    fn take_memory(&mut self) {
        if self.words.is_empty() {
            // Zeroed by the kernel: pages that are never touched cost nothing.
            self.words = vec![0; to_usize(self.regions.div_ceil(64))];
        }
    }
    fn give_memory(&mut self) {
        if self.set == 0 {
            self.words = Vec::new();
        }
    }
    /// How many regions are set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.set
    }
    /// Whether none is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set == 0
    }
    /// Whether `region` is set.
    #[must_use]
    pub fn contains(&self, region: u64) -> bool {
        self.words.get(to_usize(region / 64)).is_some_and(|word| word >> (region % 64) & 1 == 1)
    }
    /// Sets one.
    pub fn insert(&mut self, region: u64) {
        if region >= self.regions {
            return;
        }
        self.take_memory();
        if let Some(word) = self.words.get_mut(to_usize(region / 64)) {
            let bit = 1 << (region % 64);
            self.set += u64::from(*word & bit == 0);
            *word |= bit;
        }
    }
    /// Clears one.
    pub fn remove(&mut self, region: u64) {
        if let Some(word) = self.words.get_mut(to_usize(region / 64)) {
            let bit = 1 << (region % 64);
            self.set -= u64::from(*word & bit != 0);
            *word &= !bit;
        }
        self.give_memory();
    }
    /// Sets every region that the byte range touches.
    pub fn insert_bytes(&mut self, offset: u64, len: u64) {
        for region in regions_of(offset, len) {
            self.insert(region);
        }
    }
    /// Whether any region that the byte range touches is set.
    #[must_use]
    pub fn touches(&self, offset: u64, len: u64) -> bool {
        self.set != 0
            && self.next_from(offset / REGION_BYTES).is_some_and(|r| r * REGION_BYTES < offset + len)
    }
    /// The first set region at or after `from`.
    #[must_use]
    pub fn next_from(&self, from: u64) -> Option<u64> {
        if self.set == 0 {
            return None;
        }
        let start = to_usize(from / 64);
        let mut mask = u64::MAX << (from % 64);
        for (index, word) in self.words.iter().enumerate().skip(start) {
            let word = word & mask;
            if word != 0 {
                return Some(to_u64(index) * 64 + u64::from(word.trailing_zeros()));
            }
            mask = u64::MAX;
        }
        None
    }
}

/// The regions that a byte range touches.
pub fn regions_of(offset: u64, len: u64) -> std::ops::Range<u64> {
    offset / REGION_BYTES..(offset + len).div_ceil(REGION_BYTES)
}

/// The byte range of a region of a volume of `size_bytes`, as `(offset, len)`.
#[must_use]
pub fn region_bytes(region: u64, size_bytes: u64) -> (u64, u64) {
    let offset = region * REGION_BYTES;
    (offset, REGION_BYTES.min(size_bytes.saturating_sub(offset)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_as_a_set(ops in proptest::collection::vec((any::<bool>(), 0u64..200), 0..300)) {
            let mut map = RegionMap::empty(200 * REGION_BYTES - 4096);
            let mut set = BTreeSet::new();
            for (insert, region) in ops {
                if insert {
                    map.insert(region);
                    set.insert(region);
                } else {
                    map.remove(region);
                    set.remove(&region);
                }
                prop_assert_eq!(map.count(), set.len() as u64);
                prop_assert_eq!(map.contains(region), set.contains(&region));
                prop_assert_eq!(map.next_from(region), set.range(region..).next().copied());
            }
        }
    }

    proptest! {
        #[test]
        fn words_and_maps_are_sets_too(
            a in proptest::collection::btree_set(0u64..150, 0..80),
            b in proptest::collection::btree_set(0u64..150, 0..80),
        ) {
            let map = |set: &BTreeSet<u64>| {
                let mut map = RegionMap::of(150);
                set.iter().for_each(|r| map.insert(*r));
                map
            };
            let all = |map: &RegionMap| map.iter().collect::<BTreeSet<_>>();
            let (mut union, mut less, mut both) = (map(&a), map(&a), map(&a));
            union.insert_map(&map(&b));
            less.remove_map(&map(&b));
            both.keep_only(&map(&b));
            prop_assert_eq!(all(&union), a.union(&b).copied().collect());
            prop_assert_eq!(all(&less), a.difference(&b).copied().collect());
            prop_assert_eq!(all(&both), a.intersection(&b).copied().collect());
            for map in [&union, &less, &both] {
                prop_assert_eq!(map.count(), map.iter().count() as u64);
            }
        }
    }

    #[test]
    fn full_has_all_and_nothing_past_the_end() {
        for count in [1, 63, 64, 65, 150] {
            let mut map = RegionMap::of(count);
            map.insert_all();
            assert_eq!((map.count(), map.iter().count() as u64), (count, count));
            assert_eq!(map.next_from(count), None);
            let mut words = RegionMap::of(count);
            (0..4).for_each(|index| words.insert_word(index, u64::MAX));
            assert_eq!(words, map);
        }
    }

    #[test]
    fn the_last_region_may_be_short() {
        let size = 2 * REGION_BYTES + 8192;
        assert_eq!(RegionMap::full(size).count(), 3);
        assert_eq!(region_bytes(2, size), (2 * REGION_BYTES, 8192));
        assert!(RegionMap::full(size).touches(2 * REGION_BYTES + 4096, 4096));
    }
}
