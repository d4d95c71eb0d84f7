//! What the clients know, and so what the data may be.

use std::hash::{Hash, Hasher};

use holdfast_proto::ids::Generation;

use super::world::Names;

/// The values of the volume's blocks, as a replica has them. 0: nothing was written.
pub(super) const BLOCKS: usize = 2;
pub(super) type Data = [u8; BLOCKS];
/// A set of values.
pub(super) type Values = u16;

pub(super) fn one(value: u8) -> Values {
    1 << value
}

/// One block as its clients know it. A write is numbered by its value; so is its order among those submitted.
#[derive(Debug, Clone, Default, Hash)]
struct Block {
    /// What was last acknowledged or read.
    current: u8,
    /// What it may be instead: written and not answered, and not superseded by anything that was.
    pending: Values,
    /// What it was once seen not to be: it must not come back, nor be acknowledged.
    refused: Values,
    /// What it may be if every cache is lost.
    durable: Values,
}

/// The client side of all engines.
#[derive(Debug, Clone, Default)]
pub(super) struct Truth {
    blocks: [Block; BLOCKS],
    /// The generation that each write was submitted under, by value.
    generations: Vec<Generation>,
    /// The newest that ever served.
    pub(super) serving: Generation,
}

impl Truth {
    pub(super) fn new() -> Self {
        let mut truth = Self { generations: vec![Generation(0)], ..Self::default() };
        truth.blocks.iter_mut().for_each(|b| b.durable = one(0));
        truth
    }

    /// What nobody asks any more is left out. `caches`: whether any may be lost, or was; else nobody asks what was made
    /// durable. Under which generation a value was written is asked only while a block may be, or become, it.
    pub(super) fn fingerprint(&self, caches: bool, h: &mut impl Hasher) {
        for b in &self.blocks {
            (b.current, b.pending, b.refused, if caches { b.durable } else { 0 }).hash(h);
        }
        let asked = self.asked(caches);
        for (value, generation) in self.generations.iter().enumerate() {
            if asked >> value & 1 == 1 { *generation } else { Generation(0) }.hash(h);
        }
        self.serving.hash(h);
    }

    /// The values whose generation may be asked for.
    fn asked(&self, caches: bool) -> Values {
        let durable = |b: &Block| if caches { b.durable } else { 0 };
        self.blocks.iter().fold(0, |set, b| set | b.pending | b.refused | durable(b))
    }

    /// See [`World::rename`](super::world::World).
    pub(super) fn rename(&mut self, caches: bool, names: &mut impl Names) {
        let asked = self.asked(caches);
        for (value, generation) in self.generations.iter_mut().enumerate().skip(1) {
            if asked >> value & 1 == 1 {
                names.generation(generation);
            }
        }
        names.generation(&mut self.serving);
    }

    /// How many writes were submitted.
    pub(super) fn writes(&self) -> usize {
        self.generations.len() - 1
    }

    /// A client submits a write to this block; its value.
    pub(super) fn submitted(&mut self, block: usize, generation: Generation) -> u8 {
        let value = u8::try_from(self.generations.len()).expect("few writes");
        self.generations.push(generation);
        self.blocks[block].pending |= one(value);
        self.blocks[block].durable |= one(value);
        value
    }

    /// Those of `values` that may still take effect after something of this generation did, submitted when `after`
    /// writes had been: those of newer engines, and those that came later.
    fn later(&self, values: Values, generation: Generation, after: usize) -> Values {
        (0..self.generations.len())
            .filter(|v| {
                let of = self.generations[*v];
                of > generation || (of == generation && *v > after)
            })
            .fold(0, |set, v| set | (values & 1 << v))
    }

    pub(super) fn acknowledged(
        &mut self,
        block: usize,
        value: u8,
        generation: Generation,
    ) -> Result<(), String> {
        let keep = |truth: &Self, set| truth.later(set, generation, usize::from(value));
        let b = &self.blocks[block];
        if b.refused & one(value) != 0 {
            return Err(format!("write {value} is acknowledged after a read that should have seen it"));
        }
        if b.pending & one(value) != 0 {
            let (pending, refused) = (keep(self, b.pending), keep(self, b.refused));
            let b = &mut self.blocks[block];
            (b.current, b.pending, b.refused) = (value, pending, refused);
        }
        // Else it was superseded: an answer that came late to a write that was overwritten long ago.
        Ok(())
    }

    /// A read was answered. What an engine answers that a newer one has replaced is not looked at: nothing but the
    /// lease could forbid it, and time is not in the model.
    pub(super) fn read(
        &mut self,
        block: usize,
        value: u8,
        generation: Generation,
        writes_before: usize,
    ) -> Result<(), String> {
        if generation < self.serving {
            return Ok(());
        }
        if self.may_be(block, false) & one(value) == 0 {
            return Err(format!("block {block} reads as {value}; {}", self.expected(block)));
        }
        let kept = self.later(self.blocks[block].pending, generation, writes_before);
        let b = &mut self.blocks[block];
        b.refused |= b.pending & !kept & !one(value);
        (b.current, b.pending) = (value, kept);
        Ok(())
    }

    /// What a flush that is submitted now makes durable.
    pub(super) fn flush_begins(&self) -> [Values; BLOCKS] {
        std::array::from_fn(|block| self.may_be(block, false))
    }
    pub(super) fn flushed(&mut self, durable: [Values; BLOCKS], generation: Generation) {
        if generation >= self.serving {
            for (block, values) in self.blocks.iter_mut().zip(durable) {
                block.durable = values;
            }
        }
    }

    /// An engine begins to serve. `lost`: every member of its view lost its cache.
    pub(super) fn serves(&mut self, generation: Generation, lost: bool) {
        self.serving = self.serving.max(generation);
        if lost {
            for block in &mut self.blocks {
                block.pending |= block.durable & !one(block.current);
                block.refused &= !block.durable;
            }
        }
    }

    /// What a member may have in a block.
    pub(super) fn may_be(&self, block: usize, lost: bool) -> Values {
        let b = &self.blocks[block];
        one(b.current) | b.pending | if lost { b.durable } else { 0 }
    }

    pub(super) fn expected(&self, block: usize) -> String {
        let b = &self.blocks[block];
        let list =
            |set: Values| (0..16).filter(|v| set >> v & 1 == 1).map(|v| v.to_string()).collect::<Vec<_>>();
        format!("acknowledged {}, perhaps {}", b.current, list(b.pending).join(" "))
    }
}
