//! Operators that change which replicas the volume is to have, and what agents do about it: tell the engine, end what was
//! removed. What `agent::node::replicas` allows is allowed here.

use std::collections::BTreeSet;

use holdfast::core::placement::{forget_left, unwant, want};
use holdfast_dataplane::core::engine::Wanted;
use holdfast_dataplane::layout::Meta;
use holdfast_proto::ids::ReplicaId;
use holdfast_proto::record::{REPLICAS_MAX, ReplicaSet};

use super::agent::node_name;
use super::engine::{id_of, now_of, slot_of};
use super::queue::{MS, SEC};
use super::registry::Registry;
use super::replica::Host;
use super::world::{Event, World, first_meta, replica_instance};

/// Replicas that are made in one world, beside its first ones.
const MADE_MAX: usize = 5;

impl Registry {
    /// The replicas wanted.
    fn wanted_set(&self) -> ReplicaSet {
        self.wanted.iter().map(|wanted| wanted.replica).collect()
    }

    /// Those that belong to the volume: wanted, or configured still. More than a set holds where an engine that was told
    /// late adds one that is not wanted any more.
    fn placed(&self) -> BTreeSet<ReplicaId> {
        self.wanted_set().iter().chain(self.status.configured.iter()).collect()
    }

    /// Whether the configured set is as wanted.
    pub(super) fn is_as_wanted(&self) -> bool {
        self.wanted.is_empty() || self.wanted_set() == self.status.configured
    }
}

impl World {
    /// Whether the record says that this replica was taken out of the volume.
    pub(super) fn was_removed(&self, slot: usize) -> bool {
        !self.registry.wanted.is_empty() && !self.registry.placed().contains(&id_of(slot))
    }

    /// Somebody changes which replicas are wanted.
    pub(super) fn change_due(&mut self) {
        if !self.faults {
            return;
        }
        let next = self.random.below(2 * self.plan.change_every);
        self.queue.after(next, Event::Change);
        if !self.registry.up || self.registry.hides_the_record() {
            return;
        }
        let wanted = &self.registry.wanted;
        let (count, placed) = (wanted.len(), self.registry.placed().len());
        let old = wanted[self.random.index(count)];
        let room = placed < ReplicaSet::CAPACITY && self.replicas.len() < self.plan.replicas + MADE_MAX;
        let members = self.known_members();
        match self.random.below(3) {
            0 if room && count < REPLICAS_MAX => {
                let node = if self.plan.one_node { 0 } else { self.random.index(self.nodes.len()) };
                let new = self.make_replica(node);
                if self.plan.has_agents() {
                    return self.want_one_more(new, None);
                }
                self.registry.wanted.push(Wanted { replica: id_of(new), replaces: ReplicaSet::new() });
            }
            1 if room && !members.is_empty() => {
                let new = self.make_replica(self.replicas[slot_of(old.replica)].node);
                if self.plan.has_agents() {
                    return self.want_one_more(new, Some(old.replica));
                }
                let configured = self.registry.status.configured;
                let all = old.replaces.without(old.replica).with(old.replica);
                let wanted = &mut self.registry.wanted;
                wanted.retain(|w| w.replica != old.replica);
                wanted.push(Wanted { replica: id_of(new), replaces: all.intersection(&configured) });
            }
            2 => {
                // Another one is known to hold the data.
                let healthy = |w: &Wanted| w.replica != old.replica && members.contains(w.replica);
                if !self.registry.wanted.iter().any(healthy) {
                    return;
                }
                if self.plan.has_agents() {
                    return self.edit_record(|record| {
                        forget_left(record);
                        unwant(record, old.replica);
                    });
                }
                self.registry.wanted.retain(|w| w.replica != old.replica);
            }
            _ => return,
        }
        self.registry.version += 1;
        trace!(self, "WANTED {:?}", self.registry.wanted);
        for engine in 0..self.engines.len() {
            let delay = self.random.between(MS, 500 * MS);
            self.queue.after(delay, Event::Want { engine });
        }
    }

    /// A replica is wanted whose directory is there, perhaps in the place of another.
    fn want_one_more(&mut self, slot: usize, replaces: Option<ReplicaId>) {
        let (id, node) = (id_of(slot), node_name(self.replicas[slot].node));
        self.edit_record(|record| {
            forget_left(record);
            want(record, id, replica_instance(id), &node, replaces);
        });
        trace!(self, "WANTED {:?}", self.registry.wanted);
    }

    /// The replicas that hold the data, as far as an agent knows.
    fn known_members(&self) -> ReplicaSet {
        match self.wanted.engine.filter(|engine| self.engines[*engine].alive) {
            Some(engine) => self.members_of(engine).into_iter().map(id_of).collect(),
            None => self.registry.status.view.members,
        }
    }

    /// The directory of a replica that joins: it holds nothing.
    fn make_replica(&mut self, node: usize) -> usize {
        let slot = self.replicas.len();
        let status = self.registry.for_engine();
        let meta = Meta {
            incarnation: status.incarnation,
            revision: self.registry.version,
            syncing: true,
            basis: None,
            ..first_meta(id_of(slot), self.size, status.view, status.configured)
        };
        let direct = self.random.one_in(3);
        self.replicas.push(Host::new(node, self.blocks(), &meta, direct));
        for host in &mut self.engines {
            host.has_one_more_replica();
        }
        if !self.plan.has_agents() {
            let after = self.random.below(SEC);
            self.queue.after(after, Event::StartReplica { replica: slot });
        }
        slot
    }

    /// An engine's agent tells it what is wanted, once it knows.
    pub(super) fn tell_wanted(&mut self, engine: usize) {
        let host = &self.engines[engine];
        if !host.alive {
            return;
        }
        if !self.registry_answers(host.node) {
            return self.queue.after(500 * MS, Event::Want { engine });
        }
        let wanted = self.registry.wanted.clone();
        self.engines[engine].core.want(wanted, now_of(self.queue.now()));
        self.act_engine(engine);
    }

    /// Agents end the processes of replicas that were removed. Their data stays.
    pub(super) fn end_removed(&mut self) {
        for slot in 0..self.replicas.len() {
            if self.was_removed(slot) && self.registry_answers(self.replicas[slot].node) {
                self.kill_replica(slot, false);
            }
        }
        self.queue.after(2 * SEC, Event::EndRemoved);
    }
}
