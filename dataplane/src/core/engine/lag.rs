//! Members that are slow: each is measured against the others, reported, and beyond a limit left behind.
//!
//! A measurement is taken per heartbeat and not per operation: what a replica owes at the heartbeat is remembered as a
//! sequence number and a count, and the time until the last of it is answered is its lag. That is the longest of the
//! answers in flight at that moment; one answer that never comes shows as a lag that grows, however quickly others pass
//! it by.
//!
//! Slow is only what is slower than others at the same time: a sole member never is, nor are members that are slow
//! together. One that leaves for it leaves a member behind that is quick, and only where the view without it is
//! certain to be taken: slow I/O is better than none. Trims and zeroing are no measure: a disk may take seconds for what
//! another does at once, and is as good for everything else. What is owed at a heartbeat together with one of them, or is
//! followed by one, is not judged. It is caught up again after a wait that doubles each time, so
//! that it does not come and go.

use std::time::Duration;

use super::{Engine, Mask, Now, bit, slots};
use crate::wire::header::{FLAG_FILL, Header, Kind};

/// Below this nobody is called slow: a disk with moving parts takes as long for a few requests in a row.
const SLOW_MIN: Duration = Duration::from_millis(50);
/// So many times slower than the quickest other member is slow.
const SLOW_TIMES: u32 = 4;
/// So many measurements in a row make a member slow, or leave it behind: one is any disk's hiccup.
const STRIKES: u32 = 3;
/// A slow member that has not been asked for anything since is no longer called slow.
const FORGET_AFTER: Duration = Duration::from_secs(10);
/// The first wait of one that was left behind, and the longest.
const WAIT_MIN: Duration = Duration::from_secs(60);
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// What was owed at a heartbeat.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Frames up to this one,
    sequence: u64,
    /// of which so many are not answered yet.
    left: u32,
    at: Now,
}

/// How slow a replica is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lag {
    sample: Option<Sample>,
    /// The measurement that ended since the last heartbeat.
    ended: Option<Duration>,
    /// The last frame sent before the last heartbeat.
    asked_to: u64,
    /// It has answered something since: one that answers nothing is silent, and not slow.
    heard: bool,
    /// A trim or zeroing was sent since the last heartbeat, and one was owed or sent before it.
    zeroing: bool,
    zeroed: bool,
    /// The last one that says something.
    last: Duration,
    last_at: Now,
    slow: u32,
    behind: u32,
    /// How often it was left behind, and until when it is not taken again.
    times_left: u32,
    not_before: Now,
    /// It has been a quick member since then.
    quick_since: Now,
}

impl Lag {
    /// A reply has come.
    pub(super) fn answered(&mut self, sequence: u64, now: Now) {
        self.heard = true;
        let Some(sample) = self.sample.as_mut().filter(|sample| sequence <= sample.sequence) else { return };
        sample.left = sample.left.saturating_sub(1);
        if sample.left == 0 {
            self.ended = Some(now.saturating_sub(sample.at));
            self.sample = None;
        }
    }
    /// A frame is sent.
    pub(super) fn sent(&mut self, header: &Header) {
        // Not where a replica is filled: what it is given is small, and clients wait for it.
        let zeroes = matches!(header.kind, Kind::Trim | Kind::WriteZeroes);
        self.zeroing |= zeroes && header.flags & FLAG_FILL == 0;
    }
    /// At a heartbeat: whether what is measured says nothing, since a trim or zeroing was among it.
    fn excused(&mut self, owes_zeroing: bool) -> bool {
        let now = std::mem::take(&mut self.zeroing) || owes_zeroing;
        let excused = now || self.zeroed;
        self.zeroed = now;
        if excused {
            (self.sample, self.ended) = (None, None);
        }
        excused
    }
    /// Its connection is gone, and with it what was asked on it.
    pub(super) fn dropped(&mut self) {
        self.sample = None;
        self.ended = None;
        self.asked_to = 0;
    }
    /// No connection is made before this.
    pub(super) fn not_before(&self) -> Now {
        self.not_before
    }
    /// What is known at a heartbeat: nothing, where it was not asked for anything (but whether it is there).
    fn measured(&self, sequence: u64, owes: u32, now: Now) -> Option<Duration> {
        let asked = sequence > self.asked_to + 1;
        let all_answered = (asked && owes == 0).then_some(Duration::ZERO);
        self.ended.or(self.sample.map(|sample| now.saturating_sub(sample.at))).or(all_answered)
    }
    /// The next measurement begins, unless one is going on.
    fn begin(&mut self, sequence: u64, owes: u32, now: Now) {
        self.ended = None;
        self.heard = false;
        self.asked_to = sequence;
        if self.sample.is_none() && owes > 0 {
            self.sample = Some(Sample { sequence, left: owes, at: now });
        }
    }
    fn judge(&mut self, measured: Duration, quickest: Option<Duration>, max: Duration, now: Now) {
        self.last = measured;
        self.last_at = now;
        let times = |n: u32| quickest.is_some_and(|other| other.saturating_mul(n) <= measured);
        self.slow = if measured >= SLOW_MIN && times(SLOW_TIMES) { self.slow.saturating_add(1) } else { 0 };
        self.behind = if measured > max && times(2) { self.behind.saturating_add(1) } else { 0 };
    }
    /// How long it waits once it is left behind.
    fn wait(&self) -> Duration {
        WAIT_MIN.saturating_mul(1 << self.times_left.min(6)).min(WAIT_MAX)
    }
}

impl Engine {
    /// At a heartbeat: takes the measurements, and decides about those that are too slow.
    pub(super) fn check_lag(&mut self, now: Now) {
        let concerned = self.live & (self.required() | self.targets);
        let owe = self.owes_zeroing(now);
        let excused = slots(self.live)
            .filter(|slot| self.peers[*slot].lag.excused(owe & bit(*slot) != 0))
            .fold(0, |mask, slot| mask | bit(slot));
        let measured: [Option<Duration>; 8] = std::array::from_fn(|slot| {
            let judged = concerned & !excused & bit(slot) != 0;
            let peer = self.peers.get(slot).filter(|peer| judged && peer.lag.heard)?;
            peer.lag.measured(peer.frames.last(), peer.owes, now)
        });
        for slot in slots(self.live) {
            let quickest = self.quickest_but(slot, &measured, now);
            let max = self.config.replica_lag_max;
            let peer = &mut self.peers[slot];
            match measured[slot] {
                Some(lag) => peer.lag.judge(lag, quickest, max, now),
                None if now.saturating_sub(peer.lag.last_at) > FORGET_AFTER => {
                    (peer.lag.slow, peer.lag.behind) = (0, 0);
                }
                None => {}
            }
            peer.lag.begin(peer.frames.last(), peer.owes, now);
        }
        self.forgive(now);
        // One at a time: the others are judged anew once it has gone.
        let behind = slots(concerned).filter(|slot| self.peers[*slot].lag.behind >= STRIKES);
        if let Some(slot) = behind.max_by_key(|slot| measured[*slot]) {
            self.leave_behind(slot, now);
        }
    }

    /// The quickest of the other members that were asked for anything in the time that is judged. One that has answered
    /// all of it counts also where nothing was asked since: the next write may be waiting for the slow one.
    fn quickest_but(&self, slot: usize, measured: &[Option<Duration>; 8], now: Now) -> Option<Duration> {
        let others = self.members & self.required() & self.live & !bit(slot);
        let window = measured[slot]? + self.config.heartbeat * 2;
        let before = |other: usize| {
            let peer = &self.peers[other];
            let counts = peer.owes == 0 && now.saturating_sub(peer.lag.last_at) <= window;
            counts.then_some(peer.lag.last)
        };
        slots(others).filter_map(|other| measured[other].or_else(|| before(other))).min()
    }

    /// A member that has been quick for as long as it had to wait the last time has begun anew.
    fn forgive(&mut self, now: Now) {
        let members = self.members & self.live;
        for (slot, peer) in self.peers.iter_mut().enumerate() {
            if members & bit(slot) == 0 || peer.lag.slow > 0 {
                peer.lag.quick_since = now;
            } else if peer.lag.times_left > 0 && now.saturating_sub(peer.lag.quick_since) >= peer.lag.wait() {
                peer.lag.times_left = 0;
            }
        }
    }

    /// Leaves a member (or one that is being filled) behind, if I/O is certain to go on without it.
    fn leave_behind(&mut self, slot: usize, now: Now) {
        let remain = self.required() & !bit(slot);
        let member = self.required() & bit(slot) != 0;
        if member && !self.can_do_with(remain, now) {
            return;
        }
        let lag = &mut self.peers[slot].lag;
        let wait = lag.wait();
        lag.not_before = now + wait;
        lag.times_left = lag.times_left.saturating_add(1);
        let reason = format!(
            "left behind: its answers took over {} while others were quick; it is caught up again in {} s",
            rounded(lag.last),
            wait.as_secs()
        );
        (lag.slow, lag.behind) = (0, 0);
        self.lost(slot, reason, now);
    }

    /// Whether a view of these members is certain to be committed at once.
    fn can_do_with(&mut self, remain: Mask, now: Now) -> bool {
        let count = usize::try_from(remain.count_ones()).unwrap_or(0);
        let calm = self.serves()
            && self.proposal.is_none()
            && !self.any_failed_member()
            && remain & !self.live == 0
            && now >= self.remove_not_before;
        if !calm || count < self.config.min_in_sync.max(1) {
            return false;
        }
        if !self.needs_registry(count, self.configured) {
            return true;
        }
        // It has answered since the last heartbeat, or it is asked now and counted on at the next.
        let heard = now.saturating_sub(self.registry.heard_at) <= self.config.heartbeat * 2;
        if !heard {
            self.probe_registry();
        }
        heard
    }

    /// What there is to say of a member that is slow.
    pub(super) fn slowness(&self, slot: usize) -> Option<String> {
        let lag = &self.peers[slot].lag;
        let slow = lag.slow >= STRIKES && self.live & self.members & bit(slot) != 0;
        slow.then(|| format!("slow: its answers take over {} while others are quick", rounded(lag.last)))
    }
}

/// For people, and coarse: 1, 2 or 5 times a power of ten, so that a report does not change with each measurement.
fn rounded(time: Duration) -> String {
    let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let power = 10u64.pow(ms.checked_ilog10().unwrap_or(0));
    let factor = match ms / power {
        5.. => 5,
        2..=4 => 2,
        0 | 1 => 1,
    };
    let ms = factor * power;
    if ms >= 1000 { format!("{} s", ms / 1000) } else { format!("{ms} ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_is_told_coarsely() {
        let told = |ms| rounded(Duration::from_millis(ms));
        assert_eq!(
            [told(0), told(7), told(99), told(103), told(499), told(2300), told(70_000)],
            ["1 ms", "5 ms", "50 ms", "100 ms", "200 ms", "2 s", "50 s"]
        );
    }

    #[test]
    fn a_lag_is_the_time_until_all_that_was_owed_is_answered() {
        let at = Duration::from_millis;
        let mut lag = Lag::default();
        lag.begin(10, 2, at(0));
        lag.answered(11, at(5));
        lag.answered(9, at(10));
        assert_eq!(lag.measured(12, 1, at(20)), Some(at(20)), "one is still owed");
        lag.answered(10, at(30));
        assert_eq!(lag.measured(20, 0, at(1000)), Some(at(30)));
        lag.begin(20, 0, at(1000));
        assert_eq!(lag.measured(21, 0, at(2000)), None, "nothing was asked but whether it is there");
        assert_eq!(lag.measured(23, 0, at(2000)), Some(at(0)), "all that was asked is answered");
    }
}
