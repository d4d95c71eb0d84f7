//! A replica's disk under a page cache: the image by units, and the two files of its meta.
//!
//! The content of a unit is a stamp; 0 reads as zeros. What was written is in the cache until an fsync (or the kernel,
//! unasked) brings it to the disk; a restart of the node keeps, of the rest, each unit or not: two units make a block, so
//! that a block can be torn.

use std::collections::BTreeSet;

use holdfast_dataplane::layout::meta::META_BYTES;
use holdfast_dataplane::layout::{Meta, MetaError};

use super::random::Random;

/// Units per block of 4 KiB.
pub const PER_BLOCK: usize = 2;
/// Bytes per unit.
pub const UNIT_BYTES: u64 = 2048;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Block {
    units: [u64; PER_BLOCK],
    allocated: bool,
}

/// The image.
#[derive(Debug, Clone)]
pub struct Image {
    cached: Vec<Block>,
    stable: Vec<Block>,
    dirty: BTreeSet<usize>,
    /// What the fsync in flight covers, as it was when that began.
    syncing: Vec<(usize, Block)>,
    /// An fsync failed and nobody heard of it: the kernel tells the next who asks.
    error_unheard: bool,
}

impl Image {
    /// A hole of this many blocks.
    #[must_use]
    pub fn new(blocks: usize) -> Self {
        Self {
            cached: vec![Block::default(); blocks],
            stable: vec![Block::default(); blocks],
            dirty: BTreeSet::new(),
            syncing: Vec::new(),
            error_unheard: false,
        }
    }
    /// What a reader gets.
    pub fn read(&self, first: usize, blocks: usize) -> impl Iterator<Item = u64> + '_ {
        self.cached[first..first + blocks].iter().flat_map(|block| block.units)
    }
    /// Whether the block holds data.
    #[must_use]
    pub fn allocated(&self, block: usize) -> bool {
        self.cached[block].allocated
    }
    /// Replaces whole blocks.
    pub fn write(&mut self, first: usize, units: &[u64]) {
        for (at, pair) in (first..).zip(units.chunks_exact(PER_BLOCK)) {
            self.cached[at] = Block { units: [pair[0], pair[1]], allocated: true };
            self.dirty.insert(at);
        }
    }
    /// Makes blocks read as zeros; `punch`: by giving them back.
    pub fn zero(&mut self, first: usize, blocks: usize, punch: bool) {
        for at in first..first + blocks {
            self.cached[at] = Block { units: [0; PER_BLOCK], allocated: !punch };
            self.dirty.insert(at);
        }
    }
    /// An fsync begins: it covers what is dirty now.
    pub fn sync_begins(&mut self) {
        for at in std::mem::take(&mut self.dirty) {
            self.syncing.push((at, self.cached[at]));
        }
    }
    /// It has ended. Where it failed, each block is on the disk or not, and the kernel calls all of them clean.
    pub fn sync_ends(&mut self, ok: bool, random: &mut Random) {
        for (at, block) in self.syncing.drain(..) {
            if ok || random.coin() {
                self.stable[at] = block;
            }
        }
    }
    /// Its process ended before it did; the kernel finishes it all the same.
    pub fn sync_goes_on_unheard(&mut self, ok: bool, random: &mut Random) {
        self.error_unheard |= !ok && !self.syncing.is_empty();
        self.sync_ends(ok, random);
    }
    /// Whether the kernel has a failure to tell; it tells it once.
    pub fn take_error(&mut self) -> bool {
        std::mem::take(&mut self.error_unheard)
    }
    /// A failure that was told to a process that could not keep it.
    pub fn tell_error_again(&mut self) {
        self.error_unheard = true;
    }
    /// The kernel writes one block back, unasked.
    pub fn written_back(&mut self, at: usize) {
        if self.dirty.remove(&at) {
            self.stable[at] = self.cached[at];
            self.syncing.retain(|(other, _)| *other != at);
        }
    }
    /// After a failed fsync: what the kernel calls clean is read from the disk again.
    pub fn forget_clean(&mut self) {
        for (at, cached) in self.cached.iter_mut().enumerate().filter(|(at, _)| !self.dirty.contains(at)) {
            if !self.syncing.iter().any(|(other, _)| *other == at) {
                *cached = self.stable[at];
            }
        }
    }
    /// The node restarts. Returns whether anything is gone that was read before.
    pub fn restarted(&mut self, random: &mut Random) -> bool {
        for (at, block) in self.syncing.drain(..) {
            if random.coin() {
                self.stable[at] = block;
            }
        }
        let mut lost = false;
        let dirty = std::mem::take(&mut self.dirty);
        for (at, (stable, cached)) in self.stable.iter_mut().zip(&mut self.cached).enumerate() {
            if dirty.contains(&at) {
                match random.below(4) {
                    0 => {}
                    1 => *stable = *cached,
                    // Torn.
                    half => {
                        let at = if half == 2 { 0 } else { PER_BLOCK - 1 };
                        stable.units[at] = cached.units[at];
                        stable.allocated |= cached.allocated || stable.units.iter().any(|unit| *unit != 0);
                    }
                }
            }
            lost |= stable.units != cached.units;
            *cached = *stable;
        }
        lost
    }
}

impl Image {
    /// The disk as it is without the page cache.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        let stable = self.stable.clone();
        Self {
            cached: stable.clone(),
            stable,
            dirty: BTreeSet::new(),
            syncing: Vec::new(),
            error_unheard: false,
        }
    }
}

type Bytes = Box<[u8]>;

/// `meta` and `meta.spare`: two files, and which of them has the name.
#[derive(Debug, Clone)]
pub struct MetaFiles {
    cached: [Bytes; 2],
    stable: [Bytes; 2],
    current: usize,
    current_stable: usize,
    /// The bit that turned.
    damage: [Option<usize>; 2],
}

/// How far a replacement got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    /// Nothing was written.
    Nothing,
    /// The spare was written, and is not synced.
    Written,
    /// It is synced.
    Synced,
    /// The names are exchanged, and the directory is not synced.
    Exchanged,
    /// All.
    Done,
}

impl Reached {
    /// Any of them but the last.
    pub fn some(random: &mut Random) -> Self {
        match random.below(4) {
            0 => Self::Nothing,
            1 => Self::Written,
            2 => Self::Synced,
            _ => Self::Exchanged,
        }
    }
}

impl MetaFiles {
    /// As they are made.
    #[must_use]
    pub fn new(meta: &Meta) -> Self {
        let bytes: Bytes = meta.encode().into();
        Self {
            cached: [bytes.clone(), bytes.clone()],
            stable: [bytes.clone(), bytes],
            current: 0,
            current_stable: 0,
            damage: [None; 2],
        }
    }
    /// What opening the replica finds.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn load(&self) -> Result<Meta, MetaError> {
        Meta::decode(&self.cached[self.current])
    }
    /// The disk as it is without the page cache.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        let mut files = self.clone();
        files.cached = files.stable.clone();
        files.current = files.current_stable;
        files
    }
    /// The directory is synced, as everyone does who opens it.
    pub fn sync_directory(&mut self) {
        self.current_stable = self.current;
    }
    /// Replaces it, as far as that gets: the spare in place, synced; the names exchanged; the directory synced.
    pub fn replace(&mut self, meta: &Meta, reached: Reached) {
        let spare = 1 - self.current;
        if reached >= Reached::Written {
            self.cached[spare] = meta.encode().into();
            self.damage[spare] = None;
        }
        if reached >= Reached::Synced {
            self.stable[spare] = self.cached[spare].clone();
        }
        if reached >= Reached::Exchanged {
            self.current = spare;
        }
        if reached >= Reached::Done {
            self.current_stable = self.current;
        }
    }
    /// The node restarts: what was not synced is there, is not, or is torn at a sector.
    pub fn restarted(&mut self, random: &mut Random) {
        for (cached, stable) in self.cached.iter_mut().zip(&mut self.stable) {
            if cached != stable {
                for sector in 0..META_BYTES / 512 {
                    let range = sector * 512..(sector + 1) * 512;
                    if random.coin() {
                        stable[range.clone()].copy_from_slice(&cached[range]);
                    }
                }
                cached.clone_from(stable);
            }
        }
        if random.coin() {
            self.current_stable = self.current;
        }
        self.current = self.current_stable;
    }
    /// A bit that the format uses turns, in the file that is in use or in the spare.
    pub fn flip(&mut self, spare: bool, bit: usize) {
        let file = if spare { 1 - self.current } else { self.current };
        if self.damage[file].is_none() {
            let used =
                self.cached[file].get(12..16).map_or(0, |len| usize::from(len[0]) | usize::from(len[1]) << 8);
            let bit = bit % ((20 + used) * 8);
            self.turn(file, bit);
            self.damage[file] = Some(bit);
        }
    }
    /// What was damaged is as it was.
    pub fn mend(&mut self) {
        for file in 0..2 {
            if let Some(bit) = self.damage[file].take() {
                self.turn(file, bit);
            }
        }
    }
    /// Whether what would be opened is damaged.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.damage[self.current].is_some()
    }
    fn turn(&mut self, file: usize, bit: usize) {
        self.cached[file][bit / 8] ^= 1 << (bit % 8);
        self.stable[file][bit / 8] ^= 1 << (bit % 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_fsync_makes_writes_last() {
        let mut image = Image::new(2);
        image.write(0, &[5, 6]);
        image.sync_begins();
        image.write(1, &[7, 8]);
        let mut random = Random::new(1);
        image.sync_ends(true, &mut random);
        let mut lost = false;
        for stamp in 9..29 {
            image.write(1, &[7, stamp]);
            lost |= image.restarted(&mut random);
            assert_eq!(image.read(0, 1).collect::<Vec<_>>(), [5, 6]);
        }
        assert!(lost);
    }
}
