//! The sending half of a connection: a batch that the kernel works on and one that is being gathered.
//!
//! All that was queued while the previous batch was being sent goes out in one `sendmsg`. A batch is frozen before it
//! is handed over and not touched until it is sent as a whole, so nothing that the kernel reads ever moves: heads lie
//! in the batch's own bytes, payloads in buffers that the batch holds a handle on.

use std::collections::VecDeque;
use std::ops::Range;
use std::ptr;

use io_uring::{opcode, squeue, types};

use super::pool::Buf;

/// The most segments one `sendmsg` takes (IOV_MAX of Linux).
const SEGMENTS_MAX: usize = 1024;
/// Room for this many segments and head bytes is made in advance: some hundred requests a batch. It grows when needed.
const SEGMENTS_EXPECTED: usize = 256;
const HEAD_BYTES_EXPECTED: usize = 16 * 1024;

#[derive(Debug)]
enum Segment {
    /// A range of the batch's heads.
    Head(Range<usize>),
    Payload(Buf, Range<usize>),
}

impl Segment {
    fn len(&self) -> usize {
        match self {
            Self::Head(range) | Self::Payload(_, range) => range.len(),
        }
    }
}

/// What is gathered until the kernel is ready for it.
#[derive(Debug)]
struct Batch {
    heads: Vec<u8>,
    segments: VecDeque<Segment>,
    bytes: usize,
}

impl Batch {
    fn new() -> Self {
        Self {
            heads: Vec::with_capacity(HEAD_BYTES_EXPECTED),
            segments: VecDeque::with_capacity(SEGMENTS_EXPECTED),
            bytes: 0,
        }
    }

    fn push(&mut self, head: &[u8], payload: Option<(&Buf, Range<usize>)>) {
        if !head.is_empty() {
            let start = self.heads.len();
            self.heads.extend_from_slice(head);
            // Heads that follow each other lie side by side and are one segment.
            match self.segments.back_mut() {
                Some(Segment::Head(range)) => range.end = self.heads.len(),
                _ => self.segments.push_back(Segment::Head(start..self.heads.len())),
            }
            self.bytes += head.len();
        }
        if let Some((buf, range)) = payload
            && !range.is_empty()
        {
            assert!(range.end <= buf.len(), "a payload within its buffer");
            self.bytes += range.len();
            self.segments.push_back(Segment::Payload(buf.clone(), range));
        }
    }

    fn clear(&mut self) {
        self.heads.clear();
        self.segments.clear();
        self.bytes = 0;
    }
}

#[derive(Debug)]
pub(super) struct Tx {
    gathering: Batch,
    /// Frozen while a send is in flight. Its first segment is sent up to `sent_of_first`.
    sending: Batch,
    sent_of_first: usize,
    /// What the kernel reads of `sending`; rebuilt for each send, never while one is in flight.
    vectors: Vec<libc::iovec>,
    /// Boxed so that its address outlives moves of `self`.
    message: Box<libc::msghdr>,
    in_flight: bool,
    sent_bytes: u64,
}

impl Tx {
    pub(super) fn new() -> Self {
        // SAFETY: a msghdr is plain data, of which all zeros is the empty message.
        let message = Box::new(unsafe { std::mem::zeroed::<libc::msghdr>() });
        Self {
            gathering: Batch::new(),
            sending: Batch::new(),
            sent_of_first: 0,
            vectors: Vec::with_capacity(SEGMENTS_EXPECTED),
            message,
            in_flight: false,
            sent_bytes: 0,
        }
    }

    pub(super) fn push(&mut self, head: &[u8], payload: Option<(&Buf, Range<usize>)>) {
        self.gathering.push(head, payload);
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.gathering.bytes + self.sending.bytes
    }

    /// What the kernel has taken in all.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight
    }

    /// The send to submit now, if any. It is in flight from here on: `self` must outlive its completion, and does not
    /// touch the sending batch, the vectors and the message until then.
    pub(super) fn next(&mut self, fd: types::Fd) -> Option<squeue::Entry> {
        if self.in_flight || self.queued_bytes() == 0 {
            return None;
        }
        if self.sending.bytes == 0 {
            self.sending.clear();
            std::mem::swap(&mut self.sending, &mut self.gathering);
            self.sent_of_first = 0;
        }
        self.fill_vectors();
        self.message.msg_iov = self.vectors.as_mut_ptr();
        self.message.msg_iovlen = self.vectors.len();
        self.in_flight = true;
        let flags = u32::try_from(libc::MSG_NOSIGNAL).expect("a positive constant");
        Some(opcode::SendMsg::new(fd, &raw const *self.message).flags(flags).build())
    }

    fn fill_vectors(&mut self) {
        self.vectors.clear();
        let mut skip = self.sent_of_first;
        for segment in self.sending.segments.iter().take(SEGMENTS_MAX) {
            let base = match segment {
                Segment::Head(range) => self.sending.heads[range.clone()].as_ptr().cast_mut(),
                Segment::Payload(buf, range) => buf.as_slice()[range.clone()].as_ptr().cast_mut(),
            };
            // The kernel only reads through it; iovec has no const variant.
            let base = base.wrapping_add(skip).cast();
            self.vectors.push(libc::iovec { iov_base: base, iov_len: segment.len() - skip });
            skip = 0;
        }
    }

    /// The send in flight has ended with `n` bytes (0: it failed). Returns whether the queue became empty by it.
    pub(super) fn ended(&mut self, n: usize) -> bool {
        assert!(self.in_flight, "a send ended that nobody submitted");
        self.in_flight = false;
        assert!(n <= self.sending.bytes, "the kernel sent more than it was given");
        self.sending.bytes -= n;
        self.sent_bytes += u64::try_from(n).expect("usize has at most 64 bits");
        let mut left = n + self.sent_of_first;
        while let Some(first) = self.sending.segments.front() {
            if left < first.len() {
                break;
            }
            left -= first.len();
            self.sending.segments.pop_front();
        }
        self.sent_of_first = left;
        n > 0 && self.queued_bytes() == 0
    }

    /// Drops what is not sent, except for what the kernel is reading right now.
    pub(super) fn abandon(&mut self) {
        self.gathering.clear();
        if !self.in_flight {
            self.sending.clear();
            self.sent_of_first = 0;
            self.message.msg_iov = ptr::null_mut();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::{Pool, PoolConfig};
    use super::*;

    const FD: types::Fd = types::Fd(-1);

    /// Plays the kernel: takes up to `n` bytes of the message in flight.
    fn take(tx: &Tx, n: usize) -> Vec<u8> {
        assert!(tx.in_flight);
        let mut out = Vec::new();
        for vector in &tx.vectors {
            // SAFETY: the vectors point into memory that `tx` holds.
            let bytes = unsafe { std::slice::from_raw_parts(vector.iov_base.cast::<u8>(), vector.iov_len) };
            out.extend_from_slice(&bytes[..bytes.len().min(n - out.len())]);
        }
        out
    }

    #[test]
    fn any_split_of_sends_yields_the_same_stream() {
        let pool = Pool::new(PoolConfig { small: 4, medium: 0, large: 0 }).unwrap();
        let mut payload = pool.alloc(10).unwrap();
        payload.get_mut().unwrap().copy_from_slice(b"0123456789");
        for step in 1..40 {
            let mut tx = Tx::new();
            tx.push(b"ab", None);
            tx.push(b"cd", Some((&payload, 2..7)));
            tx.push(b"", Some((&payload, 0..1)));
            tx.push(b"", Some((&payload, 3..3)));
            tx.push(b"e", None);
            let mut stream = Vec::new();
            let mut later = true;
            while tx.next(FD).is_some() {
                if std::mem::take(&mut later) {
                    tx.push(b"late", Some((&payload, 9..10)));
                }
                let bytes = take(&tx, step);
                stream.extend_from_slice(&bytes);
                assert_eq!(tx.ended(bytes.len()), stream.len() == 16, "step {step}");
            }
            assert_eq!(stream, b"abcd234560elate9", "step {step}");
        }
        assert!(payload.get_mut().is_some(), "all handles are back");
    }

    #[test]
    fn heads_side_by_side_are_one_segment_and_a_message_is_bounded() {
        let pool = Pool::new(PoolConfig { small: 1, medium: 0, large: 0 }).unwrap();
        let payload = pool.alloc(1).unwrap();
        let mut tx = Tx::new();
        for _ in 0..5000 {
            tx.push(b"x", None);
        }
        tx.next(FD).unwrap();
        assert_eq!(tx.vectors.len(), 1);
        assert!(tx.ended(5000));
        for _ in 0..2000 {
            tx.push(b"", Some((&payload, 0..1)));
        }
        tx.next(FD).unwrap();
        assert_eq!(tx.vectors.len(), SEGMENTS_MAX);
        assert!(!tx.ended(SEGMENTS_MAX));
        tx.next(FD).unwrap();
        assert_eq!(tx.vectors.len(), 2000 - SEGMENTS_MAX);
        assert!(tx.ended(2000 - SEGMENTS_MAX));
    }

    #[test]
    fn abandoning_keeps_what_the_kernel_reads() {
        let pool = Pool::new(PoolConfig { small: 2, medium: 0, large: 0 }).unwrap();
        let (first, second) = (pool.alloc(1).unwrap(), pool.alloc(1).unwrap());
        let mut tx = Tx::new();
        tx.push(b"", Some((&first, 0..1)));
        tx.next(FD).unwrap();
        tx.push(b"", Some((&second, 0..1)));
        drop((first, second));
        tx.abandon();
        assert_eq!(pool.available(1), 1, "the first is still the kernel's");
        tx.ended(0);
        tx.abandon();
        assert_eq!(pool.available(1), 2);
        assert_eq!(tx.queued_bytes(), 0);
    }
}
