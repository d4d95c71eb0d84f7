//! The receiving half of a connection: one large buffer, or straight into a caller's.
//!
//! Bytes `[start, end)` of the buffer are received and not consumed. While a receive into it is in flight the kernel
//! owns `[end, len)`, so `end` moves only on completion and the bytes are moved to the front only between receives.

use std::ops::Range;

use io_uring::{opcode, squeue, types};

use super::Errno;
use super::memory::Mapping;
use super::pool::{Buf, PART_BYTES_MAX};

/// The size of a connection's receive buffer; 16 KiB was measured to be half as fast.
pub(super) const RECEIVE_BUFFER_BYTES: usize = PART_BYTES_MAX;
/// Below this much free space at the end, received bytes are moved to the front when that is cheap.
const COMPACT_BELOW_BYTES: usize = RECEIVE_BUFFER_BYTES / 4;

/// Where the receive in flight writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Own,
    Direct,
}

/// A caller's buffer that the next bytes of the stream go into.
#[derive(Debug)]
struct Direct {
    buf: Buf,
    filled: usize,
}

/// What a step has brought about; each part becomes one completion.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The caller's buffer, filled.
    pub(super) filled: Option<Buf>,
    /// There are bytes to look at.
    pub(super) received: bool,
}

#[derive(Debug)]
pub(super) struct Rx {
    region: Mapping,
    start: usize,
    end: usize,
    in_flight: Option<Target>,
    direct: Option<Direct>,
    paused: bool,
}

impl Rx {
    pub(super) fn new() -> Result<Self, Errno> {
        let region = Mapping::new(RECEIVE_BUFFER_BYTES)?;
        Ok(Self { region, start: 0, end: 0, in_flight: None, direct: None, paused: false })
    }

    pub(super) fn received(&self) -> &[u8] {
        self.slice(self.start..self.end)
    }

    fn slice(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.end, "only received bytes are readable");
        // SAFETY: the range lies below `end` (assertion), hence in the mapping; the kernel writes only from `end` on,
        // we write only through `&mut self` (`compact`), and the mapping lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.region.at(range.start), range.len()) }
    }

    pub(super) fn consume(&mut self, n: usize) {
        assert!(n <= self.end - self.start, "consumed {n} of {} received bytes", self.end - self.start);
        self.start += n;
    }

    pub(super) fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Sends the next bytes of the stream into `buf`, from byte `filled` of it on.
    pub(super) fn receive_into(&mut self, buf: Buf, filled: usize) -> Progress {
        assert!(self.direct.is_none(), "one receive_into at a time");
        assert!(filled <= buf.len() && buf.is_unique(), "a buffer to fill is unshared and has room");
        self.direct = Some(Direct { buf, filled });
        self.absorb()
    }

    /// Moves received bytes into the caller's buffer as far as they go.
    fn absorb(&mut self) -> Progress {
        let Some(mut direct) = self.direct.take() else {
            return Progress { filled: None, received: self.start < self.end };
        };
        let n = (self.end - self.start).min(direct.buf.len() - direct.filled);
        let target =
            direct.buf.get_mut().expect("checked when it was handed over, and we hold the only handle");
        target[direct.filled..direct.filled + n].copy_from_slice(self.slice(self.start..self.start + n));
        self.start += n;
        direct.filled += n;
        if direct.filled == direct.buf.len() {
            return Progress { filled: Some(direct.buf), received: self.start < self.end };
        }
        self.direct = Some(direct);
        Progress::default()
    }

    /// The receive to submit now, if any. It is in flight from here on: `self` must outlive its completion.
    pub(super) fn next(&mut self, fd: types::Fd) -> Option<squeue::Entry> {
        if self.paused || self.in_flight.is_some() {
            return None;
        }
        let (address, len, flags) = if let Some(direct) = &self.direct {
            self.in_flight = Some(Target::Direct);
            // SAFETY: `filled` is below the buffer's length, so the address lies within it.
            let address = unsafe { direct.buf.pointer().add(direct.filled) };
            // All of it at once: half a payload is of no use to anyone, so it shall wake nobody.
            (address, direct.buf.len() - direct.filled, libc::MSG_WAITALL)
        } else {
            self.compact();
            if self.end == self.region.len() {
                return None;
            }
            self.in_flight = Some(Target::Own);
            (self.region.at(self.end), self.region.len() - self.end, 0)
        };
        let len = u32::try_from(len).expect("bounded by the size of a buffer");
        Some(opcode::Recv::new(fd, address, len).flags(flags).build())
    }

    /// Makes room at the end where that costs little: nothing to move, less to move than is gained, or no room at all.
    fn compact(&mut self) {
        let (held, room) = (self.end - self.start, self.region.len() - self.end);
        let worth_it = room < COMPACT_BELOW_BYTES && self.start >= held;
        if held == 0 || room == 0 || worth_it {
            // SAFETY: both ranges lie in the mapping and may overlap (`copy`, not `copy_nonoverlapping`). No receive is
            // in flight (the only caller checks) and `&mut self` excludes slices, so nobody else uses the memory.
            unsafe { std::ptr::copy(self.region.at(self.start), self.region.at(0), held) };
            self.start = 0;
            self.end = held;
        }
    }

    /// The receive in flight has ended with `n` bytes (0: it failed).
    pub(super) fn ended(&mut self, n: usize) -> Progress {
        let target = self.in_flight.take().expect("a receive ended that nobody submitted");
        match target {
            Target::Own => {
                self.end += n;
                assert!(self.end <= self.region.len(), "the kernel wrote beyond the buffer");
            }
            Target::Direct => {
                let direct = self.direct.as_mut().expect("kept while the kernel writes into it");
                direct.filled += n;
                assert!(direct.filled <= direct.buf.len(), "the kernel wrote beyond the buffer");
            }
        }
        if n == 0 { Progress::default() } else { self.absorb() }
    }

    /// Forgets what was received, and lets the caller's buffer go as `release` does.
    pub(super) fn abandon(&mut self) {
        self.start = self.end;
        self.release();
    }

    /// Lets the caller's buffer go, unless the kernel still writes into it.
    pub(super) fn release(&mut self) {
        if self.in_flight != Some(Target::Direct) {
            self.direct = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::{Pool, PoolConfig};
    use super::*;

    const FD: types::Fd = types::Fd(-1);

    /// Plays the kernel: writes `bytes` where the receive in flight would and ends it.
    fn deliver(rx: &mut Rx, bytes: &[u8]) -> Progress {
        let at = match rx.in_flight.unwrap() {
            Target::Own => rx.region.at(rx.end),
            // SAFETY: within the buffer, as `next` computes it.
            Target::Direct => unsafe {
                let direct = rx.direct.as_ref().unwrap();
                direct.buf.pointer().add(direct.filled)
            },
        };
        // SAFETY: the tests deliver no more than was asked for.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
        rx.ended(bytes.len())
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0u8..251).cycle().take(len).collect()
    }

    #[test]
    fn a_full_buffer_waits_and_loses_nothing() {
        let mut rx = Rx::new().unwrap();
        let bytes = pattern(RECEIVE_BUFFER_BYTES);
        rx.next(FD).unwrap();
        assert!(deliver(&mut rx, &bytes).received);
        assert!(rx.next(FD).is_none(), "no room");
        rx.consume(1);
        rx.next(FD).unwrap();
        assert!(deliver(&mut rx, b"x").received);
        let mut expected = bytes[1..].to_vec();
        expected.push(b'x');
        assert!(rx.received() == expected);
    }

    #[test]
    fn an_empty_buffer_starts_at_the_front_again() {
        let mut rx = Rx::new().unwrap();
        for _ in 0..3 {
            rx.next(FD).unwrap();
            deliver(&mut rx, &pattern(200_000));
            rx.consume(200_000);
        }
        assert!(rx.end <= 200_000);
    }

    #[test]
    fn bytes_already_here_go_into_the_buffer_first() {
        let pool = Pool::new(PoolConfig { small: 1, medium: 0, large: 0 }).unwrap();
        let mut rx = Rx::new().unwrap();
        rx.next(FD).unwrap();
        deliver(&mut rx, b"abcdef");
        let progress = rx.receive_into(pool.alloc(4).unwrap(), 0);
        assert_eq!(progress.filled.unwrap().as_slice(), b"abcd");
        assert!(progress.received, "there is more to look at");
        assert_eq!(rx.received(), b"ef");
        let mut half = pool.alloc(6).unwrap();
        half.get_mut().unwrap()[..2].copy_from_slice(b"..");
        let progress = rx.receive_into(half, 2);
        assert!(progress.filled.is_none() && !progress.received);
        rx.next(FD).unwrap();
        assert_eq!(rx.in_flight, Some(Target::Direct));
        assert!(deliver(&mut rx, b"g").filled.is_none());
        rx.next(FD).unwrap();
        assert_eq!(deliver(&mut rx, b"h").filled.unwrap().as_slice(), b"..efgh");
    }

    #[test]
    fn a_receive_already_in_flight_serves_the_buffer_too() {
        let pool = Pool::new(PoolConfig { small: 1, medium: 0, large: 0 }).unwrap();
        let mut rx = Rx::new().unwrap();
        rx.next(FD).unwrap();
        assert!(rx.receive_into(pool.alloc(3).unwrap(), 0).filled.is_none());
        let progress = deliver(&mut rx, b"abcde");
        assert_eq!(progress.filled.unwrap().as_slice(), b"abc");
        assert!(progress.received);
        assert_eq!(rx.received(), b"de");
    }

    #[test]
    fn abandoning_keeps_a_buffer_the_kernel_writes_into() {
        let pool = Pool::new(PoolConfig { small: 1, medium: 0, large: 0 }).unwrap();
        let mut rx = Rx::new().unwrap();
        rx.receive_into(pool.alloc(100).unwrap(), 0);
        rx.next(FD).unwrap();
        rx.abandon();
        assert_eq!(pool.available(100), 0, "still the kernel's");
        rx.ended(0);
        rx.abandon();
        assert_eq!(pool.available(100), 1);
    }

    #[test]
    fn paused_means_no_further_receive() {
        let mut rx = Rx::new().unwrap();
        rx.set_paused(true);
        assert!(rx.next(FD).is_none());
        rx.set_paused(false);
        assert!(rx.next(FD).is_some());
        assert!(rx.next(FD).is_none(), "one at a time");
    }
}
