//! Schedules of faults: random, by a seed, and the same for the same seed.

use std::time::Duration;

use crate::rng::Rng;

/// One thing that goes wrong. Replicas are counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`.
    KillReplica(u64),
    /// Two at once.
    KillTwoReplicas(u64, u64),
    /// `kill -9`.
    KillEngine,
    /// Both at once.
    KillEngineAndReplica(u64),
    /// `kill -9`; started again at the end.
    KillAgent,
    /// The agent, and a replica that nobody restarts meanwhile.
    KillAgentAndReplica(u64),
    /// Agent, engine and replicas.
    KillEverything,
    /// SIGSTOP, SIGCONT at the end.
    StopReplica(u64),
    /// The same.
    StopEngine,
    /// The same.
    StopAgent,
    /// Its connections are reset.
    Reset(u64),
    /// Its connection ends in the middle of a frame.
    CutFrame(u64),
    /// Its link is late by up to this many milliseconds.
    Delay(u64, u64),
    /// Every link is late.
    DelayAll(u64),
    /// Nothing reaches it.
    Deaf(u64),
    /// Nothing comes from it.
    Mute(u64),
    /// Neither.
    Partition(u64),
    /// The engine reaches nobody.
    PartitionAll,
    /// Its disk takes this many milliseconds longer.
    SlowDisk(u64, u64),
    /// Its disk is full.
    FullDisk(u64),
    /// Its disk fails writes.
    FailWrites(u64),
    /// Its disk fails reads.
    FailReads(u64),
    /// Its disk fails to sync.
    FailSyncs(u64),
    /// The node loses its power: every process, and what no disk had synced.
    PowerCut,
    /// The node of this replica alone loses its power.
    Reboot(u64),
    /// That of one, and at once that of another.
    RebootTwo(u64, u64),
    /// An agent of another build takes over.
    Upgrade,
}

impl Fault {
    /// Whether the volume must be whole before the next fault: what a failing disk may have cost is a copy, and the
    /// last copy is not for taking.
    #[must_use]
    pub fn costs_a_copy(self) -> bool {
        match self {
            Self::FullDisk(_)
            | Self::FailWrites(_)
            | Self::FailReads(_)
            | Self::FailSyncs(_)
            | Self::PowerCut
            | Self::Reboot(_)
            | Self::RebootTwo(..) => true,
            Self::KillReplica(_)
            | Self::KillTwoReplicas(..)
            | Self::KillEngine
            | Self::KillEngineAndReplica(_)
            | Self::KillAgent
            | Self::KillAgentAndReplica(_)
            | Self::KillEverything
            | Self::StopReplica(_)
            | Self::StopEngine
            | Self::StopAgent
            | Self::Reset(_)
            | Self::CutFrame(_)
            | Self::Delay(..)
            | Self::DelayAll(_)
            | Self::Deaf(_)
            | Self::Mute(_)
            | Self::Partition(_)
            | Self::PartitionAll
            | Self::SlowDisk(..)
            | Self::Upgrade => false,
        }
    }

    /// Whether the volume must be whole before it: all caches but some are lost, and one that is left must be a member's.
    #[must_use]
    pub fn spares_one_cache(self) -> bool {
        matches!(self, Self::Reboot(_) | Self::RebootTwo(..))
    }

    fn random(rng: &mut Rng, replicas: u64, disks: bool) -> Self {
        let r = 1 + rng.below(replicas);
        let other = 1 + r % replicas;
        match rng.below(if disks { 36 } else { 25 }) {
            0..=2 => Self::KillReplica(r),
            3 => Self::KillTwoReplicas(r, other),
            4 | 5 => Self::KillEngine,
            6 => Self::KillEngineAndReplica(r),
            7 => Self::KillAgent,
            8 => Self::KillAgentAndReplica(r),
            9 => Self::KillEverything,
            10 | 11 => Self::StopReplica(r),
            12 => Self::StopEngine,
            13 => Self::StopAgent,
            14 | 15 => Self::Reset(r),
            16 | 17 => Self::CutFrame(r),
            18 => Self::Delay(r, 1 + rng.below(200)),
            19 => Self::DelayAll(1 + rng.below(30)),
            20 => Self::Deaf(r),
            21 => Self::Mute(r),
            22 => Self::Partition(r),
            23 => Self::PartitionAll,
            24 => Self::Upgrade,
            25 => Self::SlowDisk(r, 1 + rng.below(100)),
            26 => Self::FullDisk(r),
            27 => Self::FailWrites(r),
            28 => Self::FailReads(r),
            29 => Self::FailSyncs(r),
            30 | 31 => Self::Reboot(r),
            32 if replicas > 2 => Self::RebootTwo(r, other),
            _ => Self::PowerCut,
        }
    }
}

/// A fault, how long it lasts, and how long all is well after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// What.
    pub fault: Fault,
    /// Until it is undone.
    pub hold: Duration,
    /// Until the next one.
    pub rest: Duration,
    /// The next one waits until the volume is healthy.
    pub heal: bool,
}

impl std::fmt::Display for Planned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} for {:?}, then {:?}", self.fault, self.hold, self.rest)?;
        if self.heal { f.write_str(" and healthy") } else { Ok(()) }
    }
}

/// `count` faults. Equal seeds give equal schedules.
#[must_use]
pub fn schedule(rng: &mut Rng, replicas: u64, disks: bool, count: usize) -> Vec<Planned> {
    let mut random = || {
        let fault = Fault::random(rng, replicas, disks);
        let hold = match rng.below(4) {
            0 => rng.below(20),
            1 | 2 => 200 + rng.below(1300),
            // Beyond the replica timeout of these tests.
            _ => 2200 + rng.below(1500),
        };
        let rest = if rng.one_in(3) { 0 } else { rng.below(800) };
        let heal = fault.costs_a_copy() || rng.one_in(2);
        Planned { fault, hold: Duration::from_millis(hold), rest: Duration::from_millis(rest), heal }
    };
    (0..count).map(|_| random()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_schedule() {
        let of = |seed| schedule(&mut Rng::seeded(seed), 3, true, 50);
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
        let without_disks = schedule(&mut Rng::seeded(7), 3, false, 200);
        assert!(without_disks.iter().all(|p| !p.fault.costs_a_copy()));
    }
}
