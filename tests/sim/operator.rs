//! People: they attach the volume and detach it, here and there, and end what nobody claims and nothing ends.

use holdfast::core::instance::{Instance, InstanceName};
use holdfast_proto::ids::InstanceUuid;
use holdfast_proto::record::{AttachSpec, Intent, VolumeRecord};
use holdfast_proto::unknown::Unknown;
use uuid::Uuid;

use super::agent::node_name;
use super::process::Body;
use super::queue::{MS, SEC};
use super::world::{Event, World};

/// What they want next.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wish {
    /// And then, after a while, attached there.
    Detach {
        then: Option<(usize, u64)>,
    },
    Attach {
        node: usize,
    },
}

impl World {
    fn wish(&mut self, wish: Wish, after: u64) {
        let number = self.wanted.wish;
        self.queue.after(after, Event::Operator { number, wish });
    }

    /// The volume is detached and attached again, perhaps elsewhere. What was wished before is not done any more.
    pub(super) fn people_attach_anew(&mut self, after: u64) {
        self.wanted.wish += 1;
        self.wanted.settled = false;
        let node = self.chance.index(self.nodes.len());
        // Now and then somebody writes the new place over the old one.
        let attached = self.registry.spec.attach.as_ref();
        let elsewhere = attached.is_some_and(|attach| attach.node != node_name(node));
        if elsewhere && self.chance.one_in(4) {
            self.wish(Wish::Attach { node }, after);
        } else {
            let soon = self.chance.below(20 * MS);
            self.wish(Wish::Detach { then: Some((node, after)) }, soon);
        }
    }

    pub(super) fn people_detach(&mut self) {
        self.wanted.wish += 1;
        self.wish(Wish::Detach { then: None }, 0);
    }

    pub(super) fn people_do(&mut self, number: u64, wish: Wish) {
        if number != self.wanted.wish {
            return;
        }
        match wish {
            _ if !self.registry.up || self.registry.hides_the_record() => self.wish(wish, 500 * MS),
            Wish::Detach { then } => {
                trace!(self, "DETACH");
                self.edit_record(VolumeRecord::detach);
                if let Some((node, after)) = then {
                    self.wish(Wish::Attach { node }, after);
                }
            }
            Wish::Attach { node } if !self.may_attach(node) => {
                let attached = self.registry.spec.attach.is_some();
                let wish = if attached { Wish::Detach { then: Some((node, SEC)) } } else { wish };
                self.wish(wish, 500 * MS);
            }
            Wish::Attach { node } => {
                self.minted += 1;
                let uuid = self.minted;
                trace!(self, "ATTACH n{node} {uuid}");
                self.wanted.node = node;
                self.wanted.uuid = uuid;
                self.wanted.engine = None;
                self.wanted.settled = true;
                self.edit_record(|record| {
                    record.spec.attach = Some(AttachSpec {
                        node: node_name(node),
                        nbd_tcp: None,
                        force_from: None,
                        unknown: Unknown::default(),
                    });
                    record.spec.detaching = None;
                    let engine = InstanceName::engine(&record.name).to_string();
                    record.status.instance_uuids.insert(engine, InstanceUuid(Uuid::from_u128(uuid)));
                });
            }
        }
    }

    /// The agent there takes it: it runs, reaches the registry, and does not see the volume's engine run still, here or,
    /// unless that is silent, on the node that it is being detached from.
    fn may_attach(&self, node: usize) -> bool {
        let Some(live) = self.agents[node].live.as_ref().filter(|_| self.registry_answers(node)) else {
            return false;
        };
        let spec = &self.registry.spec;
        let ends_on =
            spec.detaching.as_ref().filter(|_| spec.attach.is_none() && !self.registry.status.clean);
        if ends_on.is_some_and(|ends_on| live.sees_alive(ends_on)) {
            return false;
        }
        let engine = live.instances.iter().find(|(name, _)| InstanceName::engine(name.volume()) == **name);
        engine.is_none_or(|(_, engine): (_, &Instance)| engine.is_down())
    }

    /// Changes the record; its watchers hear of it.
    pub(super) fn edit_record(&mut self, change: impl FnOnce(&mut VolumeRecord)) {
        self.registry.edit(change);
        self.record_changed();
    }

    pub(super) fn record_changed(&mut self) {
        for node in 0..self.agents.len() {
            if self.registry_answers(node) {
                self.wake_agent(node);
            }
        }
    }

    /// The record went back to what it was: so did who is meant.
    pub(super) fn record_went_back(&mut self) {
        let record = self.registry.record();
        let engine = InstanceName::engine(&record.name).to_string();
        let uuid = record.status.instance_uuids.get(&engine).copied().unwrap_or(InstanceUuid::nil());
        self.wanted.uuid = uuid.0.as_u128();
        let newest = (0..self.engines.len()).rev().find(|e| self.engines[*e].instance == uuid);
        self.wanted.engine = newest.filter(|engine| self.engines[*engine].alive);
        let place = record
            .spec
            .attach
            .and_then(|attach| (0..self.nodes.len()).find(|node| node_name(*node) == attach.node));
        match place {
            Some(node) => {
                self.wanted.node = node;
                self.wanted.wish += 1;
                self.wanted.settled = true;
            }
            None => {
                let after = self.chance.between(SEC, 5 * SEC);
                self.people_attach_anew(after);
            }
        }
        self.record_changed();
    }

    /// Only people take a volume back from a newer engine.
    pub(super) fn people_see_it_fenced(&mut self, engine: InstanceUuid) {
        if self.registry.spec.attach.is_some() && engine.0.as_u128() == self.wanted.uuid {
            let after = self.chance.between(100 * MS, 3 * SEC);
            self.attach_anew(after);
        }
    }

    /// People look now and then, and once nothing goes wrong any more they look often.
    pub(super) fn people_look(&mut self) {
        let quiet = !self.faults;
        // Where agents end what nobody claims, it is left to them for a while.
        let patient = self.plan.grace.is_some() && self.queue.now() < self.wanted.patience;
        if !patient && (quiet || self.chance.one_in(4)) {
            for node in 0..self.agents.len() {
                if self.registry_answers(node) {
                    self.stop_unclaimed(node);
                }
            }
        }
        self.queue.after(if quiet { 3 * SEC } else { 7 * SEC }, Event::PeopleLook);
    }

    /// Nothing goes wrong any more: the volume is to be attached somewhere.
    pub(super) fn people_look_after(&mut self) {
        let attached = self.registry.spec.attach.is_some();
        let fenced = self.wanted.engine.is_some_and(|e| {
            matches!(self.engines[e].ended, Some(holdfast_dataplane::core::engine::Ending::Fenced { .. }))
        });
        if self.wanted.settled && (!attached || fenced) {
            self.people_attach_anew(SEC);
        }
    }

    pub(super) fn engine_processes(&self) -> usize {
        let processes = self.agents.iter().flat_map(|agent| agent.processes.values());
        processes.filter(|process| matches!(process.body, Body::Engine(_))).count()
    }

    /// Whether somebody is connected to an engine. Those of one that was replaced go away, in half of the worlds only
    /// once nothing goes wrong any more.
    pub(super) fn has_clients(&self, engine: usize) -> bool {
        let stay = self.faults && self.plan.seed.is_multiple_of(2);
        let host = &self.engines[engine];
        host.serving && (stay || host.instance.0.as_u128() == self.wanted.uuid)
    }

    /// The volume is deleted, its data too.
    pub(super) fn people_purge(&mut self) {
        self.edit_record(|record| {
            record.spec.intent = Intent::Purge(holdfast::core::reconcile::purge_intent(record));
        });
    }
}
