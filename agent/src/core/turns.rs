//! Whose replicas are filled now, of the volumes whose engine is on this node, and how fast.
//!
//! A filling loads the disks and links of the whole node, so that many at once make each take longer, and every volume
//! lacks its copy for longer. Engines begin by themselves: nobody waits for an agent. They say what they do, and those
//! that are too many are told to wait for their turn. First come catch-ups, which are short; then volumes with fewer
//! healthy copies; then who is being filled already; then who has waited longest. A filling that is put off goes on from
//! where it was.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_proto::ids::{NodeName, VolumeId};
use holdfast_proto::pb::instance as pb;

use super::Moment;

/// A wait that nobody renews is over after this: an agent that is killed leaves nobody without a copy.
const WAIT_AT_MOST: Duration = Duration::from_secs(120);
/// Long before that it is said again.
const RENEWED_EVERY: Duration = Duration::from_secs(30);

/// What a volume wants that lacks copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Want {
    /// A replica gets everything, not only what it missed.
    pub full: bool,
    /// Copies that are in sync.
    pub healthy: usize,
}

impl Want {
    /// What an engine's status says; none: it fills nobody.
    #[must_use]
    pub fn of(status: &pb::EngineStatus) -> Option<Self> {
        let count = |mode: &str| status.replicas.iter().filter(|replica| replica.mode == mode).count();
        let (full, part) = (count("rebuilding"), count("catching_up"));
        // With both, the one that misses little is filled first or will be soon.
        (full + part > 0).then(|| Self { full: part == 0, healthy: count("member") })
    }
}

/// The limits of a node.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Volumes at a time.
    pub concurrency: usize,
    /// Bytes per second for all of them; 0: no limit.
    pub bytes_per_second: u64,
}

/// One volume that is or wants to be filled.
#[derive(Debug, Clone, Copy)]
struct Filling {
    since: Moment,
    fills: bool,
}

/// Who has waited how long. Forgotten with the agent: its successor begins a new order, and no filling begins anew.
#[derive(Debug, Clone, Default)]
pub struct Turns {
    known: BTreeMap<VolumeId, Filling>,
    told: BTreeMap<VolumeId, pb::FillPace>,
}

impl Turns {
    /// Decides anew. Volumes that want nothing are left out of `wants`.
    pub fn decide(
        &mut self,
        wants: &BTreeMap<VolumeId, Want>,
        limits: Limits,
        node: &NodeName,
        now: Moment,
    ) -> &BTreeMap<VolumeId, pb::FillPace> {
        self.known.retain(|volume, _| wants.contains_key(volume));
        for volume in wants.keys() {
            self.known.entry(*volume).or_insert(Filling { since: now, fills: false });
        }
        let mut order: Vec<_> = (self.known.iter())
            .filter_map(|(volume, filling)| {
                wants.get(volume).map(|want| ((*want, !filling.fills, filling.since), *volume))
            })
            .collect();
        order.sort_unstable();
        let first: BTreeSet<_> = order.iter().take(limits.concurrency).map(|(_, volume)| *volume).collect();
        for (volume, filling) in &mut self.known {
            filling.fills = first.contains(volume);
        }
        let sharing = u64::try_from(first.len()).unwrap_or(u64::MAX).max(1);
        let share = match limits.bytes_per_second {
            0 => 0,
            all => (all / sharing).max(1),
        };
        let pace = |volume: &VolumeId| match first.contains(volume) {
            true => pb::FillPace { bytes_per_second: share, ..pb::FillPace::default() },
            false => waits(share, limits, node, now),
        };
        self.told = self.known.keys().map(|volume| (*volume, pace(volume))).collect();
        &self.told
    }

    /// Whether nobody wants anything.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.known.is_empty()
    }

    /// What the engine of this volume is to be told; none: it wants nothing.
    #[must_use]
    pub fn of(&self, volume: VolumeId) -> Option<&pb::FillPace> {
        self.told.get(&volume)
    }
}

fn waits(share: u64, limits: Limits, node: &NodeName, now: Moment) -> pb::FillPace {
    pb::FillPace {
        // Should the wait end by itself.
        bytes_per_second: share,
        wait_ms: u32::try_from(WAIT_AT_MOST.as_millis()).unwrap_or(u32::MAX),
        reason: format!(
            "waits for its turn: node {node} fills the replicas of at most {} volumes at a time (rebuild_concurrency)",
            limits.concurrency
        ),
        renewal: u32::try_from(now.as_secs() / RENEWED_EVERY.as_secs()).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
#[path = "turns_tests.rs"]
mod tests;
