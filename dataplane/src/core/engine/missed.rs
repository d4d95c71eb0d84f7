//! What was written without a member that left, as far as this engine knows: that is copied to it when it returns. What
//! else the members' maps name is from before it left, most of it in its page cache still, and is compared first.
//!
//! A hint: whatever it says, a region that the maps name ends as the members have it. So nothing of it is on any disk,
//! and an engine that was not there when the replica left copies everything.
//!
//! Comparing trusts the page cache, and so not where that may hold what the disk refused: the kernel tells a failed
//! flush once, and calls those pages written from then on. A replica that heard of it says so in its handshake, but for
//! one whose process ended before it had written that down: so one that left with a flush unanswered is copied all that
//! the maps name, and so is one whose filling was broken off.

use super::{Engine, Mask, bit, slots};
use crate::core::region_map::RegionMap;
use crate::wire::header::{FLAG_FUA, Header, Kind};

/// What an engine knows of a replica's flushes, and what it wrote without it.
#[derive(Debug, Clone, Default)]
#[cfg_attr(test, derive(Hash))]
pub(super) struct Missed {
    /// Sent to it over this connection, and not answered with success.
    flushes: u32,
    /// A connection ended with one of them unanswered.
    doubtful: bool,
    /// Written since it left; none: it has not left, or nothing is known of what it had.
    written: Option<RegionMap>,
}

impl Missed {
    pub(super) fn sent(&mut self, header: &Header) {
        self.flushes += u32::from(header.kind == Kind::Flush || header.flags & FLAG_FUA != 0);
    }
    /// Whether an answer may be one to a flush.
    pub(super) fn owes_flush(&self) -> bool {
        self.flushes > 0
    }
    pub(super) fn flushed(&mut self) {
        self.flushes = self.flushes.saturating_sub(1);
    }
    pub(super) fn disconnected(&mut self) {
        self.doubtful |= std::mem::take(&mut self.flushes) > 0;
    }
    /// It has what the members have, on stable storage.
    pub(super) fn filled(&mut self) {
        (self.doubtful, self.written) = (false, None);
    }
    /// Its filling was broken off: what it has now is not what it left with.
    pub(super) fn forget(&mut self) {
        self.written = None;
    }
}

impl Engine {
    /// A view without these counts, and they were members up to it.
    pub(super) fn left(&mut self, gone: Mask) {
        let none = RegionMap::empty(self.config.volume_bytes);
        for slot in slots(gone) {
            let missed = &mut self.peers[slot].missed;
            missed.written = (!missed.doubtful).then(|| none.clone());
        }
    }

    /// This is being written by those in `by`.
    pub(super) fn written_by(&mut self, by: Mask, offset: u64, len: u64) {
        for (slot, peer) in self.peers.iter_mut().enumerate() {
            if let Some(written) = peer.missed.written.as_mut().filter(|_| by & bit(slot) == 0) {
                written.insert_bytes(offset, len);
            }
        }
    }

    /// What has to be copied to a replica without a look at what it has; none: all that it may lack.
    pub(super) fn missed_by(&self, slot: usize) -> Option<&RegionMap> {
        let peer = &self.peers[slot];
        let sound = peer.welcome.as_ref().is_some_and(|welcome| welcome.failed.is_empty());
        peer.missed.written.as_ref().filter(|_| sound)
    }
}
