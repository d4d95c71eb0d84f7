//! What happens to a world: connections, processes, nodes, and what an operator wants.

use std::collections::VecDeque;

use holdfast_proto::ids::ReplicaId;

use super::replica::Disk;
use super::*;

impl World {
    pub(super) fn fault(&mut self, slot: usize) {
        match self.random.below(40) {
            0..=3 => self.reset(slot),
            4..=5 => {
                self.disks[slot].up = false;
                self.reset(slot);
            }
            6..=12 => self.return_from_away(slot),
            21..=22 => self.go_away(slot),
            13 => self.restart_engine(),
            14 => self.registry_up = false,
            15..=18 => self.registry_up = true,
            19..=20 if self.reboots => self.reboot(slot),
            23..=24 if self.changes => self.change_wanted(),
            _ => {}
        }
        if let Some(ending) = &self.ended {
            let lost = matches!(ending, Ending::CacheLost) && !self.reboots;
            assert!(!lost && !matches!(ending, Ending::RecordMissing), "{ending:?}");
            self.restart_engine();
        }
    }

    /// The agent says that the replica is nowhere (its process is gone), or that its directory is missing; before or
    /// after its connection breaks.
    fn go_away(&mut self, slot: usize) {
        self.disks[slot].up = false;
        let first = self.random.one_in(2);
        if first {
            self.reset(slot);
        }
        let absent = self.random.one_in(2).then(|| "is the disk mounted?".to_owned());
        let known = absent.is_none() && self.random.one_in(2);
        let id = ReplicaId(u32::try_from(slot).unwrap() + 1);
        self.engine.locate(id, known, true, absent, self.now);
        self.actions();
        if !first {
            self.reset(slot);
        }
    }

    /// Whether the agent runs this replica: it is wanted, or still configured.
    pub(super) fn is_placed(&self, slot: usize) -> bool {
        let id = ReplicaId(u32::try_from(slot).unwrap() + 1);
        let wanted = self.wanted.is_empty() || self.wanted.iter().any(|w| w.replica == id);
        wanted || self.record.1.configured.contains(id)
    }

    /// An operator adds, removes or replaces a replica.
    fn change_wanted(&mut self) {
        if self.wanted.is_empty() {
            let all = self.record.1.configured.iter();
            self.wanted = all.map(|replica| Wanted { replica, replaces: ReplicaSet::new() }).collect();
        }
        let at = to_usize(self.random.below(u64::try_from(self.wanted.len()).unwrap()));
        let (add, remove) = (self.random.one_in(2), self.random.one_in(2));
        let placed = (0..self.disks.len()).filter(|slot| self.is_placed(*slot)).count();
        let room = self.disks.len() < 12 && placed < ReplicaSet::CAPACITY && self.wanted.len() < 5;
        let mut replaces = ReplicaSet::new();
        if remove && (self.wanted.len() > 1 || (add && room)) {
            let old = self.wanted.remove(at);
            let configured = self.record.1.configured;
            replaces =
                old.replaces.iter().chain([old.replica]).filter(|id| configured.contains(*id)).collect();
        }
        if add && room {
            let id = ReplicaId(u32::try_from(self.disks.len()).unwrap() + 1);
            self.wanted.push(Wanted { replica: id, replaces });
            let record = &self.record.1;
            self.disks.push(Disk::new(id, record.configured, record.view));
            self.to.push(VecDeque::new());
            self.from.push(VecDeque::new());
            self.engine.want(self.wanted.clone(), self.now);
            self.engine.locate(id, true, true, None, self.now);
        } else {
            self.engine.want(self.wanted.clone(), self.now);
        }
        self.actions();
    }

    pub(super) fn return_from_away(&mut self, slot: usize) {
        if !self.is_placed(slot) {
            return;
        }
        if !std::mem::replace(&mut self.disks[slot].up, true) {
            self.disks[slot].restart(&mut self.random);
        }
        let id = ReplicaId(u32::try_from(slot).unwrap() + 1);
        self.engine.locate(id, true, true, None, self.now);
        self.actions();
    }
}
