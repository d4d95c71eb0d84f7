//! The memory of operations in flight, by the place that the core gave each.
//!
//! A client's operation brings its buffer; one of the core's own (repair, copy) gets one from a pool of its own, so
//! that neither can starve the other. The checksum of a buffer is computed once for all replicas it is sent to.

use crate::core::engine::OpId;
use crate::io::{Buf, Error, PART_BYTES_MAX, Pool, PoolConfig};
use crate::units::to_usize;

/// The core holds at most 16 buffers of its own at a time. As many again may be waiting in a send queue of a connection
/// that has just been given up; a region at the end of a volume may be of any size.
const OWN_POOL: PoolConfig = PoolConfig { small: 4, medium: 4, large: 32 };

/// Who waits for an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum User {
    /// Nobody: the place is free.
    None,
    /// The core.
    Own,
    /// A part of a client's request.
    Client(Part),
}

/// A part of a client's request on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// The client's place in the table of clients.
    pub(super) client: usize,
    /// Its name of the part.
    pub(super) part: u32,
    pub(super) answer: Answer,
}

/// What a client gets when its part is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    /// The content of the buffer.
    Data,
    /// A flush is to follow first.
    Flush,
    /// Runs, of which the first so many bytes lie before the request.
    Extents {
        skip: u64,
    },
}

#[derive(Debug)]
struct Place {
    serial: u32,
    user: User,
    len: usize,
    buf: Option<Buf>,
    crc: Option<u32>,
}

const FREE: Place = Place { serial: 0, user: User::None, len: 0, buf: None, crc: None };

/// The table.
#[derive(Debug)]
pub(super) struct Buffers {
    places: Vec<Place>,
    pool: Pool,
    own_pool: Pool,
    clients: usize,
}

fn index(op: OpId) -> usize {
    usize::try_from(op.slot).unwrap_or(usize::MAX)
}

impl Buffers {
    /// A table; clients' buffers come from `pool`.
    pub(super) fn new(pool: Pool) -> Result<Self, Error> {
        let mut places = Vec::with_capacity(1024);
        places.resize_with(1024, || FREE);
        Ok(Self { places, pool, own_pool: Pool::new(OWN_POOL)?, clients: 0 })
    }

    /// How many operations of clients are in flight.
    pub(super) fn clients(&self) -> usize {
        self.clients
    }

    fn find(&mut self, op: OpId) -> Option<&mut Place> {
        self.places.get_mut(index(op)).filter(|p| p.serial == op.serial && p.user != User::None)
    }

    fn put(&mut self, op: OpId, place: Place) {
        let index = index(op);
        if index >= self.places.len() {
            self.places.resize_with(index + 1, || FREE);
        }
        debug_assert!(self.places[index].user == User::None, "a place is given up before it is given again");
        self.places[index] = place;
    }

    /// A client's operation has begun.
    pub(super) fn begin(&mut self, op: OpId, part: Part, buf: Option<Buf>) {
        self.clients += 1;
        let len = buf.as_ref().map_or(0, Buf::len);
        self.put(op, Place { serial: op.serial, user: User::Client(part), len, buf, crc: None });
    }

    /// The core's own operation has begun. Its memory is taken when there is something to put into it.
    pub(super) fn reserve(&mut self, op: OpId, len: u64) {
        self.put(op, Place { serial: op.serial, user: User::Own, len: to_usize(len), buf: None, crc: None });
    }

    /// An operation has ended: who waited for it, and its buffer.
    pub(super) fn end(&mut self, op: OpId) -> (User, Option<Buf>) {
        let Some(place) = self.find(op) else { return (User::None, None) };
        let place = std::mem::replace(place, FREE);
        if let User::Client(_) = place.user {
            self.clients -= 1;
        }
        (place.user, place.buf)
    }

    /// The buffer and its checksum, to send `len` bytes of it from `from` on.
    pub(super) fn sending(&mut self, op: OpId, from: usize, len: usize) -> Option<(&Buf, u32)> {
        let place = self.find(op)?;
        let buf = place.buf.as_ref()?;
        let range = buf.as_slice().get(from..from.checked_add(len)?)?;
        let whole = from == 0 && len == buf.len();
        let crc = match place.crc {
            Some(crc) if whole => crc,
            Some(_) | None => crc32fast::hash(range),
        };
        if whole {
            place.crc = Some(crc);
        }
        Some((buf, crc))
    }

    /// Takes the operation's buffer to be filled anew, or a fresh one where it is still being sent (or received into) for
    /// an attempt that was given up. `None`: no such operation, or no memory.
    pub(super) fn take_to_fill(&mut self, op: OpId, len: usize) -> Option<Buf> {
        let place = self.find(op)?;
        place.crc = None;
        if len > place.len.max(1) || len > PART_BYTES_MAX {
            return None;
        }
        match place.buf.take() {
            Some(buf) if buf.is_unique() && buf.len() == len => return Some(buf),
            Some(_) | None => {}
        }
        let own = place.user == User::Own;
        let (first, second) = if own { (&self.own_pool, &self.pool) } else { (&self.pool, &self.own_pool) };
        first.alloc(len).or_else(|| second.alloc(len))
    }

    /// Gives an operation its (filled, or merely returned) buffer.
    pub(super) fn fill(&mut self, op: OpId, buf: Buf) {
        if let Some(place) = self.find(op) {
            place.buf = Some(buf);
            place.crc = None;
        }
    }

    /// Puts a block at `at..` of the operation's buffer, but for the bytes that fall into `keep_from..keep_to` of it.
    /// False: there is no such place.
    pub(super) fn merge(
        &mut self,
        op: OpId,
        at: usize,
        keep_from: usize,
        keep_to: usize,
        block: &[u8],
    ) -> bool {
        let Self { places, pool, .. } = self;
        let Some(place) = places.get_mut(index(op)).filter(|p| p.serial == op.serial) else { return false };
        let Some(buf) = &mut place.buf else { return false };
        place.crc = None;
        if !buf.is_unique() {
            let Some(mut copy) = pool.alloc(buf.len()) else { return false };
            let Some(bytes) = copy.get_mut() else { return false };
            bytes.copy_from_slice(buf.as_slice());
            *buf = copy;
        }
        let Some(bytes) = buf.get_mut() else { return false };
        let Some(target) = at.checked_add(block.len()).and_then(|end| bytes.get_mut(at..end)) else {
            return false;
        };
        let before = keep_from.saturating_sub(at).min(block.len());
        let after = keep_to.saturating_sub(at).min(block.len()).max(before);
        target[..before].copy_from_slice(&block[..before]);
        target[after..].copy_from_slice(&block[after..]);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers() -> Buffers {
        Buffers::new(Pool::new(PoolConfig { small: 8, medium: 0, large: 2 }).unwrap()).unwrap()
    }
    fn op(slot: u32, serial: u32) -> OpId {
        OpId { slot, serial }
    }
    fn part() -> Part {
        Part { client: 0, part: 7, answer: Answer::Data }
    }
    fn filled(buffers: &Buffers, byte: u8) -> Buf {
        let mut buf = buffers.pool.alloc(4096).unwrap();
        buf.get_mut().unwrap().fill(byte);
        buf
    }

    #[test]
    fn a_successor_in_the_same_place_is_not_mistaken() {
        let mut buffers = buffers();
        let buf = filled(&buffers, 1);
        buffers.begin(op(3, 1), part(), Some(buf));
        assert_eq!(buffers.end(op(3, 2)).0, User::None);
        assert_eq!(buffers.end(op(3, 1)).0, User::Client(part()));
        assert_eq!(buffers.end(op(3, 1)).0, User::None);
        assert_eq!(buffers.clients(), 0);
    }

    #[test]
    fn the_checksum_follows_the_content() {
        let mut buffers = buffers();
        let buf = filled(&buffers, 1);
        buffers.begin(op(0, 1), part(), Some(buf));
        let first = buffers.sending(op(0, 1), 0, 4096).unwrap().1;
        assert_eq!(first, crc32fast::hash(&[1; 4096]));
        assert!(buffers.merge(op(0, 1), 0, 10, 20, &[2; 4096]));
        let mut expected = [2; 4096];
        expected[10..20].fill(1);
        assert_eq!(buffers.sending(op(0, 1), 0, 4096).unwrap().1, crc32fast::hash(&expected));
        let buf = filled(&buffers, 3);
        buffers.fill(op(0, 1), buf);
        assert_eq!(buffers.sending(op(0, 1), 0, 4096).unwrap().1, crc32fast::hash(&[3; 4096]));
        assert!(buffers.sending(op(0, 1), 4096, 1).is_none());
    }

    #[test]
    fn a_shared_buffer_is_replaced_before_it_is_filled_again() {
        let mut buffers = buffers();
        let buf = filled(&buffers, 1);
        let in_a_send_queue = buf.clone();
        buffers.begin(op(0, 1), part(), Some(buf));
        let mut fresh = buffers.take_to_fill(op(0, 1), 4096).unwrap();
        fresh.get_mut().unwrap().fill(2);
        assert_eq!(in_a_send_queue.as_slice(), [1; 4096]);
        buffers.fill(op(0, 1), fresh);
        let again = buffers.take_to_fill(op(0, 1), 4096).unwrap();
        assert_eq!(again.as_slice(), [2; 4096]);
    }

    #[test]
    fn a_merge_spares_what_is_still_being_sent_and_what_is_out_of_range() {
        let mut buffers = buffers();
        let buf = filled(&buffers, 1);
        let in_a_send_queue = buf.clone();
        buffers.begin(op(0, 1), part(), Some(buf));
        assert!(!buffers.merge(op(0, 1), 4096, 0, 0, &[2; 4096]));
        assert!(buffers.merge(op(0, 1), 0, 0, 4095, &[2; 4096]));
        assert_eq!(in_a_send_queue.as_slice(), [1; 4096]);
        let (_, buf) = buffers.end(op(0, 1));
        assert_eq!(buf.unwrap().as_slice()[4094..], [1, 2]);
    }

    #[test]
    fn the_cores_own_operations_have_memory_when_clients_took_all() {
        let mut buffers = buffers();
        let taken: Vec<_> = std::iter::from_fn(|| buffers.pool.alloc(PART_BYTES_MAX)).collect();
        assert_eq!(taken.len(), 2);
        buffers.reserve(op(0, 1), 256 * 1024);
        assert!(buffers.take_to_fill(op(0, 1), PART_BYTES_MAX).is_some());
        assert!(buffers.take_to_fill(op(0, 1), PART_BYTES_MAX + 1).is_none());
        assert_eq!(buffers.end(op(0, 1)).0, User::Own);
    }
}
