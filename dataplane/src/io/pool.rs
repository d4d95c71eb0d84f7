//! The buffers that payloads live in, from the socket to the file and to every replica's socket.
//!
//! All buffers of a process come out of one arena that is mapped once. Taking, cloning and dropping one allocates
//! nothing: a reference count per buffer and a free list per size class are set up at the start. Free lists are
//! last-in first-out and the arena is touched lazily, so the resident size follows what is really in flight, and
//! [`Pool::trim`] gives back what a burst has left behind.
//!
//! Invariant: a buffer is writable only by the holder of its only handle. An operation in the ring holds a handle of
//! its own until its completion, so while the kernel reads a buffer nobody can write it, and while the kernel writes
//! one nobody else has it at all.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use super::memory::Mapping;
use super::{Error, ErrorKind};
use crate::core::shares::Stock;

/// The unit of alignment for files, and the smallest buffer.
pub const BLOCK: usize = 4096;
/// The largest buffer, the largest payload of one wire message, and the largest part of a client's request.
pub const PART_BYTES_MAX: usize = 256 * 1024;

/// Sizes of the three classes: one block, a typical file system write-back, the largest part.
const CLASS_BYTES: [usize; 3] = [BLOCK, 32 * 1024, PART_BYTES_MAX];

/// Owners that a pool tells apart: more than an engine has clients.
pub const OWNERS_MAX: usize = 256;

/// For whom a buffer is taken: the pool counts what each owner holds, and decides nothing by it. Below [`OWNERS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner(u8);

impl Owner {
    /// The owner of this number. None: there are no more.
    #[must_use]
    pub fn new(number: usize) -> Option<Self> {
        u8::try_from(number).ok().map(Self)
    }
}

/// Numbers of buffers, by class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Need([usize; CLASS_BYTES.len()]);

impl Need {
    /// One more buffer of `len` bytes.
    pub fn add(&mut self, len: usize) {
        if let Some(class) = class_for(len) {
            self.0[class] += 1;
        }
    }
}

/// How many buffers of each class a pool has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// Buffers of 4 KiB.
    pub small: usize,
    /// Buffers of 32 KiB.
    pub medium: usize,
    /// Buffers of 256 KiB.
    pub large: usize,
}

/// A set of preallocated buffers; a cheap handle, tied to its thread.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<Inner>,
}

struct Inner {
    arena: Mapping,
    classes: [Class; 3],
    slots: Box<[Slot]>,
}

struct Class {
    slot_first: usize,
    slots: usize,
    /// Buffers that each owner holds, and how many of them hold any.
    held: [Cell<usize>; OWNERS_MAX],
    holders: Cell<usize>,
    /// Where the class begins in the arena.
    offset: usize,
    free: RefCell<Vec<usize>>,
}

#[derive(Default)]
struct Slot {
    handles: Cell<usize>,
    owner: Cell<Option<Owner>>,
    /// Whether its memory was ever handed out since it was last given back to the kernel.
    touched: Cell<bool>,
}

fn class_for(len: usize) -> Option<usize> {
    CLASS_BYTES.iter().position(|&bytes| len <= bytes)
}

impl Pool {
    /// Maps the arena and sets up the tables.
    ///
    /// # Errors
    /// Not enough address space, or too many mappings.
    pub fn new(cfg: PoolConfig) -> Result<Self, Error> {
        let counts = [cfg.small, cfg.medium, cfg.large];
        let mut slot_first = 0;
        let mut offset = 0;
        let classes = std::array::from_fn(|class| {
            let slots = slot_first..slot_first + counts[class];
            let result = Class {
                slot_first,
                slots: counts[class],
                held: std::array::from_fn(|_| Cell::new(0)),
                holders: Cell::new(0),
                offset,
                // Reversed, so that the first buffer taken is the first in the arena.
                free: RefCell::new(slots.clone().rev().collect()),
            };
            slot_first = slots.end;
            offset += counts[class] * CLASS_BYTES[class];
            result
        });
        let arena = Mapping::new(offset)
            .map_err(|errno| Error::new(ErrorKind::NoMemory, "map the buffer pool", errno))?;
        let slots = (0..slot_first).map(|_| Slot::default()).collect();
        Ok(Self { inner: Rc::new(Inner { arena, classes, slots }) })
    }

    /// Takes a buffer of `len` bytes, whose content is unspecified. `None` when its class is exhausted (a larger class
    /// does not help out, so that small requests cannot starve large ones) or when `len` exceeds [`PART_BYTES_MAX`].
    #[must_use]
    pub fn alloc(&self, len: usize) -> Option<Buf> {
        self.take(class_for(len)?, len, None)
    }

    /// As [`Pool::alloc`], counted for `owner` until the last handle has gone.
    #[must_use]
    pub fn alloc_for(&self, owner: Owner, len: usize) -> Option<Buf> {
        self.take(class_for(len)?, len, Some(owner))
    }

    /// As [`Pool::alloc_for`], if the share of `owner` allows one more ([`Stock`]).
    #[must_use]
    pub fn alloc_share(&self, owner: Owner, len: usize) -> Option<Buf> {
        let class = class_for(len)?;
        let slot = {
            let class = &self.inner.classes[class];
            let mut free = class.free.borrow_mut();
            if !class.stock(free.len()).allows(class.held(owner).get(), 1) {
                return None;
            }
            free.pop()?
        };
        Some(self.taken(class, slot, len, Some(owner)))
    }

    /// Whether the share of `owner` allows so many more buffers, all at once.
    #[must_use]
    pub fn share_allows(&self, owner: Owner, need: &Need) -> bool {
        let mut classes = self.inner.classes.iter().zip(need.0);
        classes.all(|(class, wanted)| wanted == 0 || class.allows(owner, wanted))
    }

    /// Whether `owner` holds a buffer.
    #[must_use]
    pub fn is_holder(&self, owner: Owner) -> bool {
        self.inner.classes.iter().any(|class| class.held(owner).get() > 0)
    }

    fn take(&self, class: usize, len: usize, owner: Option<Owner>) -> Option<Buf> {
        let slot = self.inner.classes[class].free.borrow_mut().pop()?;
        Some(self.taken(class, slot, len, owner))
    }

    /// Makes the first handle on a slot that has just left its free list.
    fn taken(&self, class: usize, slot: usize, len: usize, owner: Option<Owner>) -> Buf {
        if let Some(owner) = owner {
            self.inner.classes[class].count(owner);
        }
        let entry = &self.inner.slots[slot];
        entry.owner.set(owner);
        entry.handles.set(1);
        entry.touched.set(true);
        Buf { inner: Rc::clone(&self.inner), slot, class, len }
    }

    /// How many buffers of `len` bytes can be taken now; 0 for lengths beyond [`PART_BYTES_MAX`].
    #[must_use]
    pub fn available(&self, len: usize) -> usize {
        class_for(len).map_or(0, |class| self.inner.classes[class].free.borrow().len())
    }

    /// Gives the memory of free buffers that have been used back to the kernel. For the moment an instance falls
    /// idle: it costs one system call per such buffer.
    pub fn trim(&self) {
        for (class, entry) in self.inner.classes.iter().enumerate() {
            for &slot in entry.free.borrow().iter() {
                if self.inner.slots[slot].touched.replace(false) {
                    // SAFETY: a slot in the free list has no handle, hence no slice and no operation in the ring.
                    unsafe { self.inner.arena.discard(self.inner.offset(class, slot), CLASS_BYTES[class]) };
                }
            }
        }
    }
}

impl Class {
    fn held(&self, owner: Owner) -> &Cell<usize> {
        &self.held[usize::from(owner.0)]
    }

    fn stock(&self, free: usize) -> Stock {
        Stock { total: self.slots, free, holders: self.holders.get() }
    }

    fn allows(&self, owner: Owner, wanted: usize) -> bool {
        self.stock(self.free.borrow().len()).allows(self.held(owner).get(), wanted)
    }

    fn count(&self, owner: Owner) {
        let held = self.held(owner);
        if held.replace(held.get() + 1) == 0 {
            self.holders.set(self.holders.get() + 1);
        }
    }

    fn uncount(&self, owner: Owner) {
        let held = self.held(owner);
        if held.replace(held.get() - 1) == 1 {
            self.holders.set(self.holders.get() - 1);
        }
    }
}

impl Inner {
    fn offset(&self, class: usize, slot: usize) -> usize {
        self.classes[class].offset + (slot - self.classes[class].slot_first) * CLASS_BYTES[class]
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let free = CLASS_BYTES.map(|bytes| self.available(bytes));
        f.debug_struct("Pool").field("free", &free).finish_non_exhaustive()
    }
}

/// A handle on one buffer, aligned to 4096 bytes. The last handle to go returns the buffer to its pool.
pub struct Buf {
    inner: Rc<Inner>,
    slot: usize,
    class: usize,
    len: usize,
}

impl Buf {
    /// The length asked for.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a buffer of no bytes has no use that would ask")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes from here belong to this slot, are initialised (mapped zeroed), and live as long as
        // `inner`. Nobody writes them meanwhile: `get_mut` and the ring write only through the only handle, which
        // would then be this one, borrowed here or moved into the ring.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.len) }
    }

    /// The bytes for writing; `None` while another handle exists, here or in the ring.
    pub fn get_mut(&mut self) -> Option<&mut [u8]> {
        if !self.is_unique() {
            return None;
        }
        // SAFETY: as for `as_slice`; in addition this is the only handle, borrowed mutably for the slice's lifetime.
        Some(unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.len) })
    }

    /// Whether this is the only handle.
    #[must_use]
    pub fn is_unique(&self) -> bool {
        self.inner.slots[self.slot].handles.get() == 1
    }

    /// Where the buffer starts, for the ring. Valid while any handle on the buffer lives.
    pub(super) fn pointer(&self) -> *mut u8 {
        self.inner.arena.at(self.inner.offset(self.class, self.slot))
    }
}

impl Clone for Buf {
    fn clone(&self) -> Self {
        let handles = &self.inner.slots[self.slot].handles;
        handles.set(handles.get() + 1);
        Self { inner: Rc::clone(&self.inner), slot: self.slot, class: self.class, len: self.len }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let Slot { handles, owner, .. } = &self.inner.slots[self.slot];
        handles.set(handles.get() - 1);
        if handles.get() == 0 {
            let class = &self.inner.classes[self.class];
            if let Some(owner) = owner.get() {
                class.uncount(owner);
            }
            // The list was built with room for every slot of its class, so this never allocates.
            class.free.borrow_mut().push(self.slot);
        }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buf").field("slot", &self.slot).field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool::new(PoolConfig { small: 4, medium: 2, large: 1 }).unwrap()
    }

    #[test]
    fn lengths_map_to_classes() {
        let pool = pool();
        for (len, free) in
            [(0, 4), (1, 4), (4096, 4), (4097, 2), (32768, 2), (32769, 1), (262_144, 1), (262_145, 0)]
        {
            assert_eq!(pool.available(len), free, "length {len}");
            assert_eq!(pool.alloc(len).is_some(), free > 0, "length {len}");
        }
    }

    #[test]
    fn buffers_are_aligned_and_do_not_overlap() {
        let pool = pool();
        let mut all: Vec<Buf> = [4096, 4096, 4096, 4096, 32768, 32768, 262_144]
            .iter()
            .map(|&len| pool.alloc(len).unwrap())
            .collect();
        for (fill, buf) in (1u8..).zip(&mut all) {
            assert_eq!(buf.as_slice().as_ptr().addr() % BLOCK, 0);
            buf.get_mut().unwrap().fill(fill);
        }
        for (fill, buf) in (1u8..).zip(&all) {
            assert!(buf.as_slice().iter().all(|&byte| byte == fill));
        }
    }

    #[test]
    fn the_last_handle_returns_the_buffer() {
        let pool = pool();
        let mut buf = pool.alloc(100_000).unwrap();
        assert!(pool.alloc(100_000).is_none());
        let other = buf.clone();
        assert!(buf.get_mut().is_none(), "a shared buffer is not writable");
        drop(other);
        assert_eq!(buf.get_mut().unwrap().len(), 100_000);
        assert_eq!(pool.available(100_000), 0);
        drop(buf);
        assert_eq!(pool.available(100_000), 1);
    }

    #[test]
    fn the_buffer_last_returned_is_taken_first() {
        let pool = pool();
        let (first, second) = (pool.alloc(1).unwrap(), pool.alloc(1).unwrap());
        let address = second.as_slice().as_ptr().addr();
        drop(first);
        drop(second);
        assert_eq!(pool.alloc(1).unwrap().as_slice().as_ptr().addr(), address);
    }

    #[test]
    fn a_buffer_outlives_its_pool() {
        let mut buf = pool().alloc(4096).unwrap();
        buf.get_mut().unwrap().fill(3);
        assert_eq!(buf.as_slice()[4095], 3);
    }

    #[test]
    fn a_buffer_counts_for_its_owner_until_its_last_handle_goes() {
        let pool = Pool::new(PoolConfig { small: 16, medium: 0, large: 0 }).unwrap();
        let [one, other] = [0, OWNERS_MAX - 1].map(|number| Owner::new(number).unwrap());
        let mut held: Vec<Buf> = std::iter::from_fn(|| pool.alloc_share(one, 4096)).collect();
        assert_eq!(held.len(), 14, "all but the reserve");
        let first = pool.alloc_share(other, 1).unwrap();
        assert!(pool.alloc_share(other, 1).is_none(), "the reserve is for those that hold nothing");
        assert!(pool.alloc(1).is_some(), "who has no share takes what there is");
        let also_first = first.clone();
        drop(first);
        assert!(pool.is_holder(other));
        drop(also_first);
        assert!(!pool.is_holder(other));
        held.truncate(6);
        let _first = pool.alloc_share(other, 1).unwrap();
        let mut need = Need::default();
        (0..6).for_each(|_| need.add(4096));
        assert!(pool.share_allows(other, &need), "seven are its half");
        need.add(4096);
        assert!(!pool.share_allows(other, &need));
        assert!(pool.alloc_for(other, 4096).is_some(), "which is not asked");
    }

    #[test]
    fn trim_spares_buffers_in_use() {
        let pool = pool();
        let mut kept = pool.alloc(4096).unwrap();
        let mut freed = pool.alloc(4096).unwrap();
        kept.get_mut().unwrap().fill(1);
        freed.get_mut().unwrap().fill(2);
        drop(freed);
        pool.trim();
        assert!(kept.as_slice().iter().all(|&byte| byte == 1));
        assert!(pool.alloc(4096).unwrap().as_slice().iter().all(|&byte| byte == 0));
    }
}
