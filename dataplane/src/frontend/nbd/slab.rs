//! A table of slots that are used again: no allocation once it has grown to what a client has in flight.

/// Values under small numbers.
#[derive(Debug)]
pub(super) struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        if let Some(key) = self.free.pop() {
            self.slots[index(key)] = Some(value);
            return key;
        }
        let key = u32::try_from(self.slots.len()).expect("a client's requests are bounded");
        self.slots.push(Some(value));
        // Room for every key at once, so that `remove` never allocates.
        self.free.reserve(self.slots.capacity());
        key
    }

    /// Panics when nothing is there: keys come from us and, through the engine, back to us.
    pub(super) fn get(&mut self, key: u32) -> &mut T {
        let slot = self.slots.get_mut(index(key)).and_then(Option::as_mut);
        slot.unwrap_or_else(|| panic!("no request or part {key} is in flight"))
    }

    /// Panics like [`Slab::get`].
    pub(super) fn remove(&mut self, key: u32) -> T {
        let slot = self.slots.get_mut(index(key)).and_then(Option::take);
        let value = slot.unwrap_or_else(|| panic!("no request or part {key} is in flight"));
        self.free.push(key);
        value
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.slots.capacity() + self.free.capacity()
    }
}

fn index(key: u32) -> usize {
    usize::try_from(key).expect("usize has at least 32 bits")
}
