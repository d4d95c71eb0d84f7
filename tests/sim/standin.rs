//! A stand-in for agents and the people who attach volumes, in worlds of an earlier era: a small program that starts what
//! has died.

use holdfast_dataplane::core::engine::Ending;
use holdfast_proto::ids::InstanceUuid;
use uuid::Uuid;

use super::engine::Start;
use super::queue::{MS, SEC, Time};
use super::world::{Event, World};

impl World {
    pub(super) fn replica_due(&mut self, slot: usize) {
        if self.replicas[slot].running || self.was_removed(slot) {
            return;
        }
        if self.agent_is_up(self.replicas[slot].node) {
            self.start_replica(slot);
        } else {
            self.queue.after(500 * MS, Event::StartReplica { replica: slot });
        }
    }

    /// The engine that is wanted is started after a while; a start that was planned before is not.
    pub(super) fn want_engine(&mut self, after: Time) {
        self.wanted.wish += 1;
        self.queue.after(after, Event::EngineDue { wish: self.wanted.wish });
    }

    /// An operator attaches the volume: another creation of its engine, perhaps elsewhere.
    pub(super) fn attach_anew(&mut self, after: Time) {
        if self.plan.has_agents() {
            return self.people_attach_anew(after);
        }
        self.wanted.uuid += 1;
        self.wanted.node = self.random.index(self.nodes.len());
        self.wanted.engine = None;
        self.wanted.restarts = 0;
        if self.registry.up {
            // The wish is in the record.
            self.registry.version += 1;
        }
        self.want_engine(after);
    }

    pub(super) fn engine_due(&mut self, wish: u64) {
        if wish != self.wanted.wish || self.wanted.engine.is_some_and(|e| self.engines[e].alive) {
            return;
        }
        let node = self.wanted.node;
        if !self.agent_is_up(node) {
            return self.want_engine(500 * MS);
        }
        if self.registry_answers(node) {
            let registry = &self.registry;
            self.nodes[node].known = (registry.version, registry.for_engine(), registry.wanted.clone());
        }
        let known = self.nodes[node].known.clone();
        let uuid = InstanceUuid(Uuid::from_u128(self.wanted.uuid));
        let engine = self.engines.len();
        self.wanted.engine = Some(engine);
        let (version, status, wanted) = known;
        let (instance, predecessor_gone) = (uuid, false);
        let start = Start { node, instance, version, status, wanted, predecessor_gone, endpoints: None };
        self.start_engine(start);
        if self.plan.change_every > 0 {
            // Its agent looks at the record again, as every few seconds.
            self.queue.after(5 * SEC, Event::Want { engine });
        }
    }

    /// The current engine's process is gone: its agent starts it again.
    pub(super) fn engine_lost(&mut self) {
        if self.plan.has_agents() {
            return;
        }
        self.wanted.restarts += 1;
        let backoff = SEC << self.wanted.restarts.min(3);
        let after = backoff / 2 + self.random.below(backoff);
        self.want_engine(after);
    }

    pub(super) fn engine_ended(&mut self, engine: usize) {
        let Some(ending) = self.engines[engine].ended.clone() else { return };
        if !self.engines[engine].alive {
            return;
        }
        let current = self.wanted.engine == Some(engine);
        let meant = self.engines[engine].instance.0.as_u128() == self.wanted.uuid;
        if ending == Ending::RecordMissing && meant && !self.was_gone {
            self.fail(format!("e{engine}: the record is missing"));
        }
        if ending == Ending::CacheLost && !self.plan.reboots {
            let lost = self.members_of(engine).iter().all(|slot| self.replicas[*slot].lost);
            self.fail(format!("e{engine}: caches lost without a restart of a node ({lost})"));
        }
        if self.plan.has_agents() {
            return self.engine_of_agent_ended(engine, &ending);
        }
        match ending {
            Ending::RecordMissing => {}
            Ending::CacheLost => {
                self.kill_engine(engine, false);
                if current {
                    self.engine_lost();
                }
            }
            Ending::Fenced { .. } | Ending::Clean | Ending::Unclean(_) => {
                self.kill_engine(engine, false);
                if current {
                    let after = self.random.between(100 * MS, 3 * SEC);
                    self.attach_anew(after);
                }
            }
        }
    }
}
