//! What consumers asked for, and how long it took: plain numbers, written without a clock, a lock or an allocation.
//!
//! A latency runs from the turn of the loop that brought the request's header to the turn that brought what its answer
//! waited for; both are the turns' own times, so it is known to within the length of a turn, and zero where one turn
//! brought both. What a request waited for in the socket before its header was read is not in it.

use std::time::Duration;

/// The kinds of requests that are counted, in the order of [`IoCounters::kinds`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoKind {
    /// Of data.
    Read,
    /// Of data.
    Write,
    /// Of everything that was written before.
    Flush,
    /// Of a range.
    Trim,
    /// Of a range.
    WriteZeroes,
}

impl IoKind {
    const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Flush, Self::Trim, Self::WriteZeroes];

    /// As reports say it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::WriteZeroes => "write_zeroes",
        }
    }
}

/// The first bucket ends at 2^5 = 32 microseconds (about a round trip over loopback), each next one at twice that.
const FIRST_BUCKET_BITS: u32 = 5;
/// Twenty end at 32 microseconds to 16.8 seconds; the last holds what took longer.
pub const LATENCY_BUCKETS: usize = 21;

/// The requests of one kind that were carried out or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KindCounters {
    /// All of them.
    pub requests: u64,
    /// Those that failed.
    pub errors: u64,
    /// Of the others, the bytes that they covered.
    pub bytes: u64,
    /// How long all of them took together, in nanoseconds.
    pub latency_sum_ns: u64,
    /// How many took how long: the bucket `i` holds those that took more than `2^(4+i)` microseconds (none for the first)
    /// and at most `2^(5+i)` (no bound for the last). Together they are `requests`.
    pub latency_buckets: [u64; LATENCY_BUCKETS],
}

impl KindCounters {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.bytes += other.bytes;
        self.latency_sum_ns = self.latency_sum_ns.saturating_add(other.latency_sum_ns);
        for (bucket, more) in self.latency_buckets.iter_mut().zip(other.latency_buckets) {
            *bucket += more;
        }
    }
}

/// The requests of all kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IoCounters([KindCounters; IoKind::ALL.len()]);

impl IoCounters {
    /// A request was answered after so long. `bytes`: what it covered.
    pub(crate) fn answered(&mut self, kind: IoKind, bytes: u64, failed: bool, took: Duration) {
        let counters = &mut self.0[kind as usize];
        counters.requests += 1;
        if failed {
            counters.errors += 1;
        } else {
            counters.bytes += bytes;
        }
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        counters.latency_sum_ns = counters.latency_sum_ns.saturating_add(ns);
        counters.latency_buckets[bucket(ns)] += 1;
    }

    /// Adds what another has counted.
    pub(crate) fn add(&mut self, other: &Self) {
        for (kind, more) in self.0.iter_mut().zip(&other.0) {
            kind.add(more);
        }
    }

    /// Each kind with its numbers.
    pub fn kinds(&self) -> impl Iterator<Item = (IoKind, &KindCounters)> {
        IoKind::ALL.into_iter().zip(&self.0)
    }
}

/// The bucket of a latency.
fn bucket(ns: u64) -> usize {
    // The power of two of microseconds that is not below it.
    let bits = u64::BITS - ns.div_ceil(1000).saturating_sub(1).leading_zeros();
    let at = usize::try_from(bits.saturating_sub(FIRST_BUCKET_BITS)).unwrap_or(LATENCY_BUCKETS);
    at.min(LATENCY_BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_took_at_most_its_bound() {
        for (us, expected) in [(0, 0), (1, 0), (32, 0), (33, 1), (64, 1), (65, 2), (16_777_216, 19)] {
            assert_eq!(bucket(us * 1000), expected, "{us} us");
        }
        assert_eq!(bucket(32_001), 1, "a nanosecond more is more");
        assert_eq!(bucket(16_777_216_001), 20);
        assert_eq!(bucket(u64::MAX), 20);
    }

    #[test]
    fn what_clients_counted_adds_up() {
        let (mut one, mut other) = (IoCounters::default(), IoCounters::default());
        one.answered(IoKind::Write, 4096, false, Duration::from_micros(100));
        other.answered(IoKind::Write, 512, true, Duration::from_secs(60));
        other.answered(IoKind::Flush, 0, false, Duration::ZERO);
        one.add(&other);
        let writes = one.kinds().find(|(kind, _)| *kind == IoKind::Write).unwrap().1;
        assert_eq!((writes.requests, writes.errors, writes.bytes), (2, 1, 4096), "an error moved nothing");
        assert_eq!(writes.latency_sum_ns, 60_000_100_000);
        assert_eq!((writes.latency_buckets[2], writes.latency_buckets[20]), (1, 1));
        for (kind, counters) in one.kinds() {
            assert_eq!(counters.latency_buckets.iter().sum::<u64>(), counters.requests, "{kind:?}");
        }
    }
}
