//! What the agent counts as it goes, since it started.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::core::inventory::Change;
use crate::core::moves::Step;
use crate::core::orphan::{Class, Notice, TRANSITIONS};

/// Upper bounds in seconds: a registry of files answers within the first, an etcd that fails within the last.
const BOUNDS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// How often something took how long.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Histogram {
    /// One for each bound, and one for what took longer.
    buckets: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

impl Histogram {
    fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.buckets[BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len())] += 1;
        self.sum = self.sum.saturating_add(took);
    }

    /// All of them together, in seconds.
    #[must_use]
    pub fn sum_seconds(&self) -> f64 {
        self.sum.as_secs_f64()
    }

    /// Each bound in seconds, and how many took more than the one before and at most this.
    #[must_use]
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        BOUNDS.into_iter().chain([f64::INFINITY]).zip(self.buckets).collect()
    }
}

/// See the module. Where few labels are possible all are there from the start: a rate needs a first value.
#[derive(Debug, Clone, PartialEq)]
pub struct Counts {
    /// Comparisons of records with observations.
    pub reconciles: Histogram,
    /// Those for which the records could not be read.
    pub reconcile_failures: u64,
    /// Calls of the registry, by operation and outcome.
    pub registry: BTreeMap<(&'static str, &'static str), Histogram>,
    /// What became of the steps planned for a volume.
    pub steps: BTreeMap<&'static str, u64>,
    /// Instances that came into a state, by kind and state.
    pub instance_transitions: BTreeMap<(&'static str, &'static str), u64>,
    /// Things that became an orphan of some state or ceased to be one, by class and state.
    pub orphan_transitions: BTreeMap<(&'static str, &'static str), u64>,
    /// What persons asked for about orphans, and got.
    pub orphan_requests: BTreeMap<&'static str, u64>,
    /// Volumes that came to this node from another, by what became of it.
    pub volume_moves: BTreeMap<&'static str, u64>,
    /// Replicas of the fleet for which this agent wished another place, by whether it could.
    pub replica_moves: BTreeMap<&'static str, u64>,
    /// Events of the inventory.
    pub changes: BTreeMap<&'static str, u64>,
}

impl Default for Counts {
    fn default() -> Self {
        let zeros = |words: &[&'static str]| words.iter().map(|word| (*word, 0)).collect();
        let turns = Class::ALL.iter().flat_map(|class| TRANSITIONS.map(|to| ((class.as_str(), to), 0)));
        Self {
            reconciles: Histogram::default(),
            reconcile_failures: 0,
            registry: BTreeMap::new(),
            steps: zeros(&["done", "failed", "held_back"]),
            instance_transitions: BTreeMap::new(),
            orphan_transitions: turns.collect(),
            orphan_requests: zeros(&["hold", "release", "delete"]),
            volume_moves: zeros(&Step::ALL.map(Step::as_str)),
            replica_moves: zeros(&["begun", "failed"]),
            changes: zeros(&["instance_changed", "instance_removed", "volume_changed", "volume_removed"]),
        }
    }
}

impl Counts {
    /// Records and observations were compared; `known`: the records could be read.
    pub fn reconciled(&mut self, took: Duration, known: bool) {
        self.reconciles.observe(took);
        self.reconcile_failures += u64::from(!known);
    }

    /// The registry was asked.
    pub fn asked_registry(&mut self, operation: &'static str, outcome: &'static str, took: Duration) {
        self.registry.entry((operation, outcome)).or_default().observe(took);
    }

    /// An instance came into a state.
    pub fn instance_is(&mut self, kind: &'static str, to: &'static str) {
        *self.instance_transitions.entry((kind, to)).or_default() += 1;
    }

    /// The steps of a volume were done, failed, or were held back.
    pub fn stepped(&mut self, outcome: &'static str) {
        *self.steps.entry(outcome).or_default() += 1;
    }

    /// A line about an orphan was written.
    pub fn orphan_is(&mut self, notice: &Notice) {
        *self.orphan_transitions.entry((notice.subject.class.as_str(), notice.to)).or_default() += 1;
    }

    /// A person asked for something about an orphan, and got it.
    pub fn orphan_request(&mut self, what: &'static str) {
        *self.orphan_requests.entry(what).or_default() += 1;
    }

    /// A volume moves to this node, or has, or does not any more.
    pub fn volume_moves(&mut self, step: Step) {
        *self.volume_moves.entry(step.as_str()).or_default() += 1;
    }

    /// A replica was given another place, or could not be.
    pub fn replica_moves(&mut self, outcome: &'static str) {
        *self.replica_moves.entry(outcome).or_default() += 1;
    }

    /// The inventory changed.
    pub fn changed(&mut self, change: &Change) {
        let what = match change {
            Change::InstanceChanged(_) => "instance_changed",
            Change::InstanceRemoved(_) => "instance_removed",
            Change::VolumeChanged(_) => "volume_changed",
            Change::VolumeRemoved(_) => "volume_removed",
        };
        *self.changes.entry(what).or_default() += 1;
    }
}
