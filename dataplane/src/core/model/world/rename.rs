//! Where no engine is left, what the former ones left is named anew. So a volume on which an engine came and went is the
//! same as one on which it never was, if nothing else came of it; and how many views there were before is forgotten.
//!
//! It loses nothing: all that the core does with these names is in the way in which they are given anew.
//! - *Generations* are compared. A new one is one above the record's, or above one that somebody refused with because it
//!   was above that; so those below the record's keep only their order, and the others their distances.
//! - *Views*, and the views that maps go back to, are compared by generation and then by epoch. A new view has a new
//!   generation, under which the epoch that it begins with says nothing; so of epochs only the order within a generation
//!   is kept.
//! - *Versions* of the record are taken for equal or not, and go up by one: they keep their distances. What a replica
//!   heard of them is asked only where it is above what the record has.
//! - *UUIDs* of engines are taken for equal or not. A new one is above all others.
//! - *Boot ids* are taken for equal or not, on one node.
//!
//! The engines that knew other names are gone, and so are their connections.

use std::collections::BTreeSet;

use holdfast_proto::ids::{Epoch, Generation, InstanceUuid};
use holdfast_proto::record::{View, VolumeStatus};

use super::{NEW_ENGINE, Rc, World};
use crate::core::rules::{Rule, kept};

/// What is done with each name.
pub(in crate::core::model) trait Names {
    fn generation(&mut self, generation: &mut Generation);
    /// Of a view.
    fn order(&mut self, generation: &mut Generation, epoch: &mut Epoch);
    /// Of the record, now or once.
    fn version(&mut self, version: &mut u64);
    /// The highest version that a replica heard of.
    fn heard(&mut self, version: &mut u64);
    fn engine(&mut self, uuid: &mut InstanceUuid);

    fn view(&mut self, view: &mut View) {
        self.order(&mut view.generation, &mut view.epoch);
    }
    fn status(&mut self, status: &mut VolumeStatus) {
        self.generation(&mut status.generation);
        self.view(&mut status.view);
        self.engine(&mut status.engine_uuid);
        self.engine(&mut status.engine_instance);
    }
}

/// Collects the names that are in use.
struct Used {
    generations: BTreeSet<Generation>,
    orders: BTreeSet<(Generation, Epoch)>,
    engines: BTreeSet<InstanceUuid>,
    /// The least that an engine may read in the record.
    floor: Generation,
    version: u64,
}

impl Names for Used {
    fn generation(&mut self, generation: &mut Generation) {
        self.generations.insert(*generation);
    }
    fn order(&mut self, generation: &mut Generation, epoch: &mut Epoch) {
        self.generations.insert(*generation);
        self.orders.insert((*generation, *epoch));
    }
    fn version(&mut self, version: &mut u64) {
        self.version = self.version.min(*version);
    }
    fn heard(&mut self, _: &mut u64) {}
    fn engine(&mut self, uuid: &mut InstanceUuid) {
        self.engines.insert(*uuid);
    }
}

fn below<T: Ord>(set: &BTreeSet<T>, least: &T, name: &T) -> u64 {
    set.range(least..name).count() as u64
}

/// Gives the new ones.
struct Anew(Used);

impl Names for Anew {
    fn generation(&mut self, generation: &mut Generation) {
        let floor = self.0.floor.min(*generation);
        let lower = below(&self.0.generations, &Generation(0), &floor);
        *generation = Generation(1 + lower + (generation.0 - floor.0));
    }
    fn order(&mut self, generation: &mut Generation, epoch: &mut Epoch) {
        let lower = below(&self.0.orders, &(*generation, Epoch(0)), &(*generation, *epoch));
        *epoch = Epoch(1 + lower);
        self.generation(generation);
    }
    fn version(&mut self, version: &mut u64) {
        *version = 1 + *version - self.0.version;
    }
    fn heard(&mut self, version: &mut u64) {
        *version = if *version > self.0.version { 1 + *version - self.0.version } else { 0 };
    }
    fn engine(&mut self, uuid: &mut InstanceUuid) {
        if *uuid == InstanceUuid::nil() {
            return;
        }
        let lowest = InstanceUuid(uuid::Uuid::from_u128(1));
        let number = 1 + u128::from(below(&self.0.engines, &lowest, uuid));
        assert!(number < NEW_ENGINE, "a new engine's is above all others");
        *uuid = InstanceUuid(uuid::Uuid::from_u128(number));
    }
}

impl World {
    pub(super) fn rename(&mut self) {
        // Without these, epochs are compared for themselves.
        if !kept(Rule::GenerationOrders) || !kept(Rule::CasWhole) {
            return;
        }
        self.engines = Vec::new();
        let records = || self.history.iter().chain([&self.record]);
        let mut used = Used {
            generations: BTreeSet::new(),
            orders: BTreeSet::new(),
            engines: BTreeSet::new(),
            floor: records().map(|(_, status)| status.generation).min().expect("there is a record"),
            version: self.record.0,
        };
        self.rename_all(&mut used);
        self.rename_all(&mut Anew(used));
    }

    fn rename_all(&mut self, names: &mut impl Names) {
        let caches = self.caches();
        for node in self.nodes.iter_mut().chain(self.copy.as_mut().map(|(_, node)| node)) {
            Rc::make_mut(node).rename(names);
        }
        for (version, status) in self.late.iter_mut().chain(&mut self.history).chain([&mut self.record]) {
            names.version(version);
            names.status(status);
        }
        names.status(&mut self.first);
        self.truth.rename(caches, names);
    }
}
