//! What goes wrong, and when it stops.

use holdfast_dataplane::core::start::majority;

use super::engine::{id_of, now_of};
use super::plan::Fault;
use super::queue::{MS, SEC};
use super::world::{Event, Mending, Snapshot, World};

impl World {
    pub(super) fn fault_due(&mut self) {
        if !self.faults {
            return;
        }
        let total: u64 = self.plan.faults.iter().map(|(_, weight)| weight).sum();
        let mut pick = self.random.below(total);
        let chosen = self.plan.faults.iter().find(|(_, weight)| {
            let mine = pick < *weight;
            pick = pick.saturating_sub(*weight);
            mine
        });
        if let Some((fault, _)) = chosen {
            self.fault(*fault);
        }
        let next = self.random.below(2 * self.plan.fault_every);
        self.queue.after(next, Event::Fault);
    }

    fn fault(&mut self, fault: Fault) {
        trace!(self, "FAULT {fault:?}");
        let replica = self.random.index(self.replicas.len());
        let node = self.random.index(self.nodes.len());
        // Usually short, now and then longer than any timeout.
        let longest = if self.random.one_in(3) { 15 * SEC } else { 2 * SEC };
        let lasts = self.random.between(50 * MS, longest);
        match fault {
            Fault::Reset => {
                let open: Vec<_> = (0..self.conns.len()).filter(|c| self.conns[*c].engine_open).collect();
                if !open.is_empty() {
                    let conn = open[self.random.index(open.len())];
                    self.reset(conn);
                }
            }
            Fault::KillReplica => {
                self.end_replica(replica, false);
                self.start_later(replica, lasts);
            }
            Fault::KillEngine => {
                if let Some(engine) = self.wanted.engine.filter(|e| self.engines[*e].alive) {
                    self.end_engine(engine, false);
                    self.engine_lost();
                }
            }
            Fault::Drain if self.plan.has_agents() => {
                let after = self.random.between(100 * MS, 6 * SEC);
                self.attach_anew(after);
            }
            Fault::Drain => {
                if let Some(engine) = self.wanted.engine.filter(|e| self.engines[*e].alive) {
                    self.engines[engine].draining = true;
                    let now = now_of(self.queue.now());
                    self.engines[engine].core.drain(now);
                    self.act_engine(engine);
                }
            }
            Fault::Move => self.move_engine(lasts),
            Fault::CutOneWay => {
                let to = self.random.index(self.nodes.len());
                self.cut(node, to, lasts);
            }
            Fault::Isolate => {
                for other in 0..self.nodes.len() {
                    self.cut(node, other, lasts);
                    self.cut(other, node, lasts);
                }
                if self.random.coin() {
                    self.nodes[node].registry_cut = true;
                    self.queue.after(lasts, Event::Mends(Mending::RegistryFor { node }));
                }
            }
            Fault::RegistryDown => {
                self.registry.up = false;
                self.queue.after(lasts, Event::Mends(Mending::Registry));
            }
            Fault::Backup => {
                let registry = &mut self.registry;
                let copy = (registry.version, registry.status.clone(), registry.spec.clone());
                registry.backup = Some(copy);
            }
            Fault::Restore => self.restore_registry(),
            Fault::AgentDown if self.plan.has_agents() => {
                if self.agents[node].live.is_some() {
                    self.agent_ends(node, Some(lasts));
                }
            }
            Fault::AgentCrash => {
                let steps = self.chance.below(8);
                self.agents[node].dies_in.get_or_insert(steps);
            }
            Fault::RecordDamaged => {
                self.registry.damaged = true;
                self.queue.after(lasts, Event::Mends(Mending::Record));
            }
            Fault::RecordGone => {
                self.registry.gone = true;
                self.was_gone = true;
                self.queue.after(lasts, Event::Mends(Mending::Record));
            }
            Fault::AgentDown => {
                self.nodes[node].agent_up = false;
                self.queue.after(lasts, Event::Mends(Mending::Agent { node }));
            }
            Fault::Reboot => self.reboot(node, lasts),
            Fault::PowerLoss => {
                for node in 0..self.nodes.len() {
                    self.reboot(node, lasts);
                }
            }
            Fault::BadDisk => {
                self.replicas[replica].bad_one_in = self.random.between(2, 60);
                self.queue.after(lasts, Event::Mends(Mending::Disk { replica }));
            }
            Fault::DiskStalls => {
                self.replicas[replica].stalled_until = self.queue.now() + lasts;
            }
            Fault::Snapshot => self.snapshot(node),
            Fault::RollBack => self.roll_back(lasts),
            Fault::FlipMeta => {
                self.end_replica(replica, false);
                let (spare, bit) = (self.random.one_in(3), self.random.index(4096 * 8));
                self.replicas[replica].meta.flip(spare, bit);
                self.start_later(replica, lasts / 2);
                self.queue.after(lasts, Event::Mends(Mending::Meta { replica }));
            }
        }
    }

    /// Where no agent does it.
    fn start_later(&mut self, replica: usize, after: u64) {
        if !self.plan.has_agents() {
            self.queue.after(after, Event::StartReplica { replica });
        }
    }

    fn cut(&mut self, from: usize, to: usize, lasts: u64) {
        if from != to {
            self.block(from, to, true);
            self.queue.after(lasts, Event::Mends(Mending::Way { from, to }));
        }
    }

    /// The volume is wanted elsewhere: the old engine is killed, drained, or left to find out by itself.
    fn move_engine(&mut self, lasts: u64) {
        if self.plan.has_agents() {
            let old = self.wanted.node;
            match self.random.below(3) {
                0 => self.fault(Fault::KillEngine),
                // Its agent does not hear of it.
                1 => {
                    self.nodes[old].registry_cut = true;
                    self.queue.after(lasts + 10 * SEC, Event::Mends(Mending::RegistryFor { node: old }));
                }
                _ => {}
            }
            let after = self.random.below(2 * SEC);
            return self.attach_anew(after);
        }
        let old = self.wanted.engine.filter(|engine| self.engines[*engine].alive);
        match (old, self.random.below(3)) {
            (Some(old), 0) => self.kill_engine(old, false),
            (Some(old), 1) => {
                self.engines[old].draining = true;
                let now = now_of(self.queue.now());
                self.engines[old].core.drain(now);
                self.act_engine(old);
                // Whether it has drained by then or not.
                self.queue.after(lasts, Event::KillEngine { engine: old });
            }
            (Some(old), _) => self.queue.after(lasts + 20 * SEC, Event::KillEngine { engine: old }),
            (None, _) => {}
        }
        let after = self.random.below(2 * SEC);
        self.attach_anew(after);
    }

    fn reboot(&mut self, node: usize, lasts: u64) {
        if !self.nodes[node].up {
            return;
        }
        if self.plan.has_agents() {
            self.agent_ends(node, None);
            let names: Vec<_> = self.agents[node].processes.keys().cloned().collect();
            for name in names {
                self.process_ends(node, &name, "the node restarts", true);
            }
        }
        for engine in 0..self.engines.len() {
            if self.engines[engine].node == node && self.engines[engine].alive {
                self.kill_engine(engine, true);
                if self.wanted.engine == Some(engine) {
                    self.engine_lost();
                }
            }
        }
        for slot in 0..self.replicas.len() {
            if self.replicas[slot].node != node {
                continue;
            }
            self.kill_replica(slot, true);
            let host = &mut self.replicas[slot];
            host.meta.restarted(&mut self.random);
            let marked = host.meta.load().map_or(true, |meta| meta.unflushed || meta.cache_lost);
            let gone = host.image.restarted(&mut self.random);
            host.lost |= marked;
            if gone && !marked {
                self.fail(format!(
                    "r{}: something is gone, and its meta says that all was flushed",
                    slot + 1
                ));
            }
            trace!(self, "r{} lost {}", slot + 1, self.replicas[slot].lost);
            let after = lasts + self.random.below(SEC);
            self.start_later(slot, after);
        }
        self.nodes[node].up = false;
        self.nodes[node].boot += 1;
        self.queue.after(lasts, Event::NodeUp { node });
    }

    fn on_node(&self, node: usize) -> Vec<usize> {
        (0..self.replicas.len()).filter(|slot| self.replicas[*slot].node == node).collect()
    }

    fn snapshot(&mut self, node: usize) {
        let disks = self.on_node(node).into_iter().map(|slot| {
            let host = &self.replicas[slot];
            (slot, host.image.snapshot(), host.meta.snapshot(), host.map_files.clone())
        });
        self.copy = Some(Snapshot { node, disks: disks.collect() });
    }

    /// A node goes back to its copy, if the newest data is on another node for sure: the record has the newest view, an
    /// engine serves by it, and one of its members is elsewhere and has kept its disk. (Where two faults of this kind
    /// meet, or the record is old as well, nothing could tell the older copy from the newest.)
    fn roll_back(&mut self, lasts: u64) {
        let Some(copy) = &self.copy else { return };
        let node = copy.node;
        let Some(engine) = self.wanted.engine.filter(|engine| self.engines[*engine].serving) else { return };
        let members = self.members_of(engine);
        let report = self.engines[engine].core.report(now_of(self.queue.now()));
        let (record, order) = (self.registry.status.view.order(), (report.generation, report.epoch));
        let elsewhere = members.iter().any(|slot| {
            let host = &self.replicas[*slot];
            host.node != node && !host.older && !host.lost && host.running
        });
        // A start needs so many replicas that remember; where it cannot have them a person decides.
        let configured = self.registry.status.configured;
        let here = self.on_node(node).into_iter().filter(|slot| configured.contains(id_of(*slot))).count();
        let remembered = here < majority(configured.len());
        let older = self.replicas.iter().any(|host| host.older);
        if record != order || !elsewhere || !remembered || older || !self.nodes[node].up {
            return;
        }
        let Some(copy) = self.copy.take() else { return };
        self.reboot(node, lasts);
        for (slot, image, meta, maps) in copy.disks {
            let host = &mut self.replicas[slot];
            if host.node != node {
                continue;
            }
            (host.image, host.meta, host.map_files) = (image, meta, maps);
            host.older = true;
            trace!(self, "r{} goes back", slot + 1);
        }
    }

    pub(super) fn node_up(&mut self, node: usize) {
        self.nodes[node].up = true;
        if self.plan.has_agents() && self.agents[node].live.is_none() {
            let after = self.chance.below(SEC);
            self.queue.after(after, Event::AgentBegins { node });
        }
    }

    pub(super) fn mends(&mut self, mending: Mending) {
        match mending {
            Mending::Way { from, to } => self.block(from, to, false),
            Mending::Registry => {
                self.registry.up = true;
                self.record_changed();
            }
            Mending::RegistryFor { node } => {
                self.nodes[node].registry_cut = false;
                self.record_changed();
            }
            Mending::Record => {
                (self.registry.damaged, self.registry.gone) = (false, false);
                self.record_changed();
            }
            Mending::Agent { node } if self.plan.has_agents() => self.agents[node].dies_in = None,
            Mending::Agent { node } => self.nodes[node].agent_up = true,
            Mending::Disk { replica } => self.replicas[replica].bad_one_in = 0,
            Mending::Meta { replica } => self.replicas[replica].meta.mend(),
        }
    }

    /// From here on nothing goes wrong any more.
    pub(super) fn faults_stop(&mut self) {
        trace!(self, "FAULTS STOP");
        self.faults = false;
        self.net.damage_one_in = 0;
        self.net.slow_one_in = 0;
        self.registry.lose_one_in = 0;
        self.open_all_ways();
        self.mends(Mending::Registry);
        self.mends(Mending::Record);
        for node in 0..self.nodes.len() {
            self.node_up(node);
            self.mends(Mending::Agent { node });
            self.mends(Mending::RegistryFor { node });
        }
        for replica in 0..self.replicas.len() {
            self.mends(Mending::Disk { replica });
            self.mends(Mending::Meta { replica });
            self.replicas[replica].stalled_until = 0;
            if !self.plan.has_agents() {
                self.queue.after(100 * MS, Event::StartReplica { replica });
            }
        }
        if self.plan.has_agents() {
            return self.people_look_after();
        }
        // Engines that nobody wants any more are ended by their agents.
        for engine in 0..self.engines.len() {
            if self.wanted.engine != Some(engine) {
                self.queue.after(SEC, Event::KillEngine { engine });
            }
        }
        if self.wanted.engine.is_none_or(|engine| !self.engines[engine].alive) {
            self.want_engine(SEC);
        }
    }
}
