//! A bitmap over the regions of a volume, with a count and a cursor.

use crate::units::{REGION_BYTES, to_u64, to_usize};

/// Which regions of a volume something is still to be done for.
#[derive(Debug, Clone, Default)]
#[cfg_attr(test, derive(Hash))]
pub struct RegionMap {
    words: Vec<u64>,
    regions: u64,
    set: u64,
}

impl RegionMap {
    /// None set. Takes no memory until the first is.
    #[must_use]
    pub fn empty(size_bytes: u64) -> Self {
        Self { words: Vec::new(), regions: size_bytes.div_ceil(REGION_BYTES), set: 0 }
    }
    /// All set.
    #[must_use]
    pub fn full(size_bytes: u64) -> Self {
        let mut map = Self::empty(size_bytes);
        map.insert_bytes(0, size_bytes);
        map
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
        if self.words.is_empty() {
            self.words.resize(to_usize(self.regions.div_ceil(64)), 0);
        }
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
        if self.set == 0 {
            self.words = Vec::new();
        }
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

    #[test]
    fn the_last_region_may_be_short() {
        let size = 2 * REGION_BYTES + 8192;
        assert_eq!(RegionMap::full(size).count(), 3);
        assert_eq!(region_bytes(2, size), (2 * REGION_BYTES, 8192));
        assert!(RegionMap::full(size).touches(2 * REGION_BYTES + 4096, 4096));
    }
}
