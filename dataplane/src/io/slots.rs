//! A table whose entries are named by slot and generation, so that a name that outlived its entry is harmless.

/// The name of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) slot: u32,
    generation: u32,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

/// The table. It allocates only when it holds more entries than ever before.
#[derive(Debug)]
pub(super) struct Slots<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { entries: Vec::with_capacity(capacity), free: Vec::with_capacity(capacity) }
    }

    pub(super) fn insert(&mut self, value: T) -> Key {
        if let Some(slot) = self.free.pop() {
            let entry = &mut self.entries[index(slot)];
            entry.value = Some(value);
            return Key { slot, generation: entry.generation };
        }
        let slot = u32::try_from(self.entries.len()).expect("fewer than 2^32 entries");
        self.entries.push(Entry { generation: 0, value: Some(value) });
        // Room for every slot in the free list, so that removing never allocates.
        self.free.reserve(self.entries.len());
        Key { slot, generation: 0 }
    }

    pub(super) fn get(&self, key: Key) -> Option<&T> {
        self.entries.get(index(key.slot)).filter(|e| e.generation == key.generation)?.value.as_ref()
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.entries.get_mut(index(key.slot)).filter(|e| e.generation == key.generation)?.value.as_mut()
    }

    /// The entry in `slot`, whatever its generation: for completions, whose operation keeps the slot from reuse.
    pub(super) fn at(&mut self, slot: u32) -> Option<(Key, &mut T)> {
        let entry = self.entries.get_mut(index(slot))?;
        let key = Key { slot, generation: entry.generation };
        entry.value.as_mut().map(|value| (key, value))
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let entry = self.entries.get_mut(index(key.slot)).filter(|e| e.generation == key.generation)?;
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(key.slot);
        Some(value)
    }

    /// The keys of all entries; for the end of the table's life, not for the hot path.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> {
        (0u32..)
            .zip(&self.entries)
            .filter(|(_, entry)| entry.value.is_some())
            .map(|(slot, entry)| Key { slot, generation: entry.generation })
    }
}

fn index(slot: u32) -> usize {
    usize::try_from(slot).expect("32-bit slots fit a usize")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_slot_has_a_new_name() {
        let mut slots = Slots::with_capacity(1);
        let first = slots.insert("a");
        assert_eq!(slots.remove(first), Some("a"));
        assert_eq!(slots.remove(first), None);
        let second = slots.insert("b");
        assert_eq!(second.slot, first.slot);
        assert_ne!(second, first);
        assert_eq!((slots.get(first), slots.get(second)), (None, Some(&"b")));
        assert_eq!(slots.get_mut(first), None);
        assert_eq!(slots.at(first.slot), Some((second, &mut "b")));
        assert_eq!(slots.keys().collect::<Vec<_>>(), [second]);
    }
}
