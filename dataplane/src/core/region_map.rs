//! A bitmap over the regions of a volume (or over groups of them), with a count, and a summary of where bits are set.
//!
//! The summary is a tree: a bit says whether the word below it has any bit set. Looking for the next bit then costs a few
//! words whatever the size of the volume, and what was cleared is not looked at again.

use std::collections::BTreeMap;

use crate::units::{REGION_BYTES, to_u64, to_usize};

/// Which regions of a volume something is still to be done for. Takes no memory while it is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct RegionMap {
    words: Vec<u64>,
    /// Which words have a bit set, which words of that have, and so on up to one word.
    above: Vec<Vec<u64>>,
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
        Self { words: Vec::new(), above: Vec::new(), regions: count, set: 0 }
    }
    /// Over how many.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.regions
    }
    /// Sets every one.
    pub fn insert_all(&mut self) {
        self.words = all_of(self.regions);
        self.above = Vec::new();
        let mut below = self.words.len();
        while below > 1 {
            let level = all_of(to_u64(below));
            below = level.len();
            self.above.push(level);
        }
        self.set = self.regions;
    }
    /// Clears every one.
    pub fn clear(&mut self) {
        self.words = Vec::new();
        self.above = Vec::new();
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
            let before = *word;
            *word |= bits;
            if before == 0 {
                self.mark(index);
            }
        }
    }
    /// Clears those of the 64 from `64 * index` that `bits` has.
    pub fn remove_word(&mut self, index: usize, bits: u64) {
        if let Some(word) = self.words.get_mut(index) {
            let before = *word;
            self.set -= u64::from((bits & before).count_ones());
            *word &= !bits;
            if before != 0 && before & !bits == 0 {
                self.unmark(index);
            }
        }
    }
    /// Sets what `other` has.
    pub fn insert_map(&mut self, other: &Self) {
        for (index, bits) in other.set_words() {
            self.insert_word(index, bits);
        }
    }
    /// Clears what `other` has.
    pub fn remove_map(&mut self, other: &Self) {
        for (index, bits) in other.set_words() {
            self.remove_word(index, bits);
        }
    }
    /// Clears what `other` does not have.
    pub fn keep_only(&mut self, other: &Self) {
        let mut next = self.next_word(0);
        while let Some(index) = next {
            self.remove_word(index, !other.word(index));
            next = self.next_word(index + 1);
        }
    }
    /// Those set, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.set_words().flat_map(|(index, bits)| bits_of(index, bits))
    }
    /// The words that have a bit set, with their places, in ascending order.
    pub fn set_words(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let index = self.next_word(at)?;
            at = index + 1;
            Some((index, self.word(index)))
        })
    }
    fn take_memory(&mut self) {
        if self.words.is_empty() {
            // Zeroed by the kernel: pages that are never touched cost nothing.
            self.words = vec![0; to_usize(self.regions.div_ceil(64))];
            let mut below = self.words.len();
            while below > 1 {
                below = below.div_ceil(64);
                self.above.push(vec![0; below]);
            }
        }
    }
    /// A word has its first bit.
    #[cold]
    fn mark(&mut self, mut index: usize) {
        for level in &mut self.above {
            let Some(word) = level.get_mut(index / 64) else { return };
            let before = *word;
            *word |= 1 << (index % 64);
            if before != 0 {
                return;
            }
            index /= 64;
        }
    }
    /// A word has no bit any more. Gives the memory back with the last.
    #[cold]
    fn unmark(&mut self, mut index: usize) {
        if self.set == 0 {
            return self.clear();
        }
        for level in &mut self.above {
            let Some(word) = level.get_mut(index / 64) else { return };
            *word &= !(1 << (index % 64));
            if *word != 0 {
                return;
            }
            index /= 64;
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
        let index = to_usize(region / 64);
        if let Some(word) = self.words.get_mut(index) {
            let (bit, before) = (1 << (region % 64), *word);
            self.set += u64::from(before & bit == 0);
            *word = before | bit;
            if before == 0 {
                self.mark(index);
            }
        }
    }
    /// Clears one.
    pub fn remove(&mut self, region: u64) {
        self.remove_word(to_usize(region / 64), 1 << (region % 64));
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
        let rest = self.word(start) & u64::MAX << (from % 64);
        if rest != 0 {
            return Some(to_u64(start) * 64 + u64::from(rest.trailing_zeros()));
        }
        let index = self.next_word(start + 1)?;
        Some(to_u64(index) * 64 + u64::from(self.word(index).trailing_zeros()))
    }
    /// The place of the first word at or after `from` that has a bit set: up the tree until there is one, and down again.
    fn next_word(&self, from: usize) -> Option<usize> {
        looked();
        if self.word(from) != 0 {
            return Some(from);
        }
        let mut place = from + 1;
        for (height, level) in self.above.iter().enumerate() {
            looked();
            let rest = level.get(place / 64)? & u64::MAX << (place % 64);
            if rest != 0 {
                place = place / 64 * 64 + to_usize(u64::from(rest.trailing_zeros()));
                for level in self.above.iter().take(height).rev() {
                    looked();
                    place = place * 64 + to_usize(u64::from(level.get(place)?.trailing_zeros()));
                }
                return Some(place);
            }
            place = place / 64 + 1;
        }
        None
    }
}

/// As many bits, all set.
fn all_of(count: u64) -> Vec<u64> {
    let mut words = vec![u64::MAX; to_usize(count.div_ceil(64))];
    let rest = count % 64;
    if let Some(last) = words.last_mut().filter(|_| rest != 0) {
        *last = (1 << rest) - 1;
    }
    words
}

fn bits_of(index: usize, mut bits: u64) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let bit = (bits != 0).then(|| u64::from(bits.trailing_zeros()))?;
        bits &= bits - 1;
        Some(to_u64(index) * 64 + bit)
    })
}

/// A few regions of a volume that may be large: takes memory for what is set alone, and is slower to ask.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct RegionSet {
    words: BTreeMap<usize, u64>,
    set: u64,
}

impl RegionSet {
    /// Sets one.
    pub fn insert(&mut self, region: u64) {
        let (word, bit) = (self.words.entry(to_usize(region / 64)).or_default(), 1 << (region % 64));
        self.set += u64::from(*word & bit == 0);
        *word |= bit;
    }
    /// Sets all that `other` has.
    pub fn insert_all(&mut self, other: &Self) {
        for (index, bits) in other.set_words() {
            let word = self.words.entry(index).or_default();
            self.set += u64::from((bits & !*word).count_ones());
            *word |= bits;
        }
    }
    /// How many are set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.set
    }
    /// The words that have a bit set, with their places, in ascending order.
    pub fn set_words(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.words.iter().map(|(index, bits)| (*index, *bits))
    }
}

/// A test counts the words that were looked at to find a bit.
#[cfg(not(test))]
#[inline(always)]
const fn looked() {}

#[cfg(test)]
pub(crate) use counting::{looked, words_looked_at};

#[cfg(test)]
mod counting {
    use std::cell::Cell;

    thread_local! {
        static LOOKED: Cell<u64> = const { Cell::new(0) };
    }

    pub(crate) fn looked() {
        LOOKED.set(LOOKED.get() + 1);
    }
    /// By this thread, so far.
    pub(crate) fn words_looked_at() -> u64 {
        LOOKED.get()
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

        /// With a summary of four levels.
        #[test]
        fn the_next_one_is_found_in_a_large_map(
            ops in proptest::collection::vec((any::<bool>(), 0u64..40), 0..100),
            from in 0u64..66_000_000,
        ) {
            const FAR: u64 = 1_640_625;
            let mut map = RegionMap::of(40 * FAR);
            let mut set = BTreeSet::new();
            for (insert, at) in ops {
                let region = at * FAR + at;
                if insert {
                    map.insert(region);
                    set.insert(region);
                } else {
                    map.remove(region);
                    set.remove(&region);
                }
                prop_assert_eq!(map.next_from(from), set.range(from..).next().copied());
            }
            prop_assert!(map.iter().eq(set.iter().copied()));
            prop_assert_eq!(map.is_empty(), map == RegionMap::of(40 * FAR));
        }
    }

    #[test]
    fn finding_a_bit_costs_the_same_in_a_large_map() {
        for count in [1u64 << 12, 1 << 18, 1 << 26] {
            let mut map = RegionMap::of(count);
            map.insert(0);
            map.insert(count - 1);
            let before = words_looked_at();
            assert_eq!(map.next_from(1), Some(count - 1));
            let looked = words_looked_at() - before;
            assert!(looked <= 10, "{looked} words of {count} bits");
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
            let mut twice = RegionMap::of(count);
            twice.insert_map(&map);
            assert_eq!(twice, map);
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
