//! What the node runs and knows, as others see it: one revision, and each change exactly once.

use std::collections::BTreeMap;

use holdfast_proto::pb::agent as pb;

/// One change of the inventory.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// An instance is new or different.
    InstanceChanged(pb::InstanceInfo),
    /// The instance of this name is gone.
    InstanceRemoved(String),
    /// A volume is new or different.
    VolumeChanged(pb::VolumeInfo),
    /// The volume of this name is gone.
    VolumeRemoved(String),
}

/// Everything the node knows, at one revision.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// Grows by one with each [`Change`].
    pub revision: u64,
    /// By name.
    pub instances: Vec<pb::InstanceInfo>,
    /// By name.
    pub volumes: Vec<pb::VolumeInfo>,
}

/// The inventory. [`Inventory::update`] is the one way to change it.
#[derive(Debug, Default)]
pub struct Inventory {
    revision: u64,
    instances: BTreeMap<String, pb::InstanceInfo>,
    volumes: BTreeMap<String, pb::VolumeInfo>,
}

impl Inventory {
    /// Makes it equal to these lists. Returns what changed, in order, each with its revision.
    pub fn update(
        &mut self,
        instances: Vec<pb::InstanceInfo>,
        volumes: Vec<pb::VolumeInfo>,
    ) -> Vec<(u64, Change)> {
        let instances = instances.into_iter().map(|i| (i.name.clone(), i)).collect();
        let volumes = volumes.into_iter().map(|v| (v.name.clone(), v)).collect();
        let mut changes = Vec::new();
        diff(
            &self.instances,
            &instances,
            &mut changes,
            alike,
            Change::InstanceChanged,
            Change::InstanceRemoved,
        );
        diff(
            &self.volumes,
            &volumes,
            &mut changes,
            PartialEq::eq,
            Change::VolumeChanged,
            Change::VolumeRemoved,
        );
        self.instances = instances;
        self.volumes = volumes;
        changes
            .into_iter()
            .map(|change| {
                self.revision += 1;
                (self.revision, change)
            })
            .collect()
    }

    /// All of it.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            revision: self.revision,
            instances: self.instances.values().cloned().collect(),
            volumes: self.volumes.values().cloned().collect(),
        }
    }
    /// One volume.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<&pb::VolumeInfo> {
        self.volumes.get(name)
    }
    /// One instance.
    #[must_use]
    pub fn instance(&self, name: &str) -> Option<&pb::InstanceInfo> {
        self.instances.get(name)
    }
}

/// Whether two accounts of an instance differ in nothing but the time that passes.
fn alike(old: &pb::InstanceInfo, new: &pb::InstanceInfo) -> bool {
    // The common case, which needs no copy.
    if old == new {
        return true;
    }
    let mut old = old.clone();
    if let (Some(old), Some(new)) = (&mut old.orphan, &new.orphan) {
        old.remaining_s = new.remaining_s;
    }
    old == *new
}

fn diff<T: Clone>(
    old: &BTreeMap<String, T>,
    new: &BTreeMap<String, T>,
    changes: &mut Vec<Change>,
    same: fn(&T, &T) -> bool,
    changed: fn(T) -> Change,
    removed: fn(String) -> Change,
) {
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    changes.extend(gone.cloned().map(removed));
    let different = new.iter().filter(|(name, value)| !old.get(*name).is_some_and(|old| same(old, value)));
    changes.extend(different.map(|(_, value)| changed(value.clone())));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(name: &str, state: &str) -> pb::InstanceInfo {
        pb::InstanceInfo { name: name.into(), state: state.into(), ..Default::default() }
    }
    fn volume(name: &str) -> pb::VolumeInfo {
        pb::VolumeInfo { name: name.into(), ..Default::default() }
    }

    #[test]
    fn each_change_is_told_once_with_its_own_revision() {
        let mut inventory = Inventory::default();
        let first = inventory.update(vec![instance("b", "running"), instance("a", "running")], vec![]);
        assert_eq!(
            first,
            [
                (1, Change::InstanceChanged(instance("a", "running"))),
                (2, Change::InstanceChanged(instance("b", "running"))),
            ]
        );
        assert_eq!(inventory.update(vec![instance("a", "running"), instance("b", "running")], vec![]), []);
        let next = inventory.update(vec![instance("b", "error")], vec![volume("v")]);
        assert_eq!(
            next,
            [
                (3, Change::InstanceRemoved("a".into())),
                (4, Change::InstanceChanged(instance("b", "error"))),
                (5, Change::VolumeChanged(volume("v"))),
            ]
        );
        assert_eq!(inventory.snapshot().revision, 5);
        assert_eq!(inventory.update(vec![], vec![]).len(), 2);
        assert_eq!(inventory.snapshot(), Snapshot { revision: 7, ..Snapshot::default() });
    }

    #[test]
    fn the_time_that_an_orphan_has_left_is_shown_and_is_no_change() {
        let orphan = |remaining_s| {
            let orphan = Some(pb::OrphanInfo { state: "orphaned".into(), remaining_s });
            pb::InstanceInfo { orphan, ..instance("a", "running") }
        };
        let mut inventory = Inventory::default();
        assert_eq!(inventory.update(vec![orphan(300)], vec![]).len(), 1);
        assert_eq!(inventory.update(vec![orphan(295)], vec![]), []);
        assert_eq!(inventory.instance("a"), Some(&orphan(295)));
        assert_eq!(inventory.update(vec![instance("a", "running")], vec![]).len(), 1);
    }

    #[test]
    fn a_snapshot_and_the_changes_after_it_make_the_next_snapshot() {
        let mut inventory = Inventory::default();
        inventory.update(vec![instance("a", "running")], vec![volume("v"), volume("w")]);
        let before = inventory.snapshot();
        let changes = inventory.update(vec![instance("c", "pending")], vec![volume("v")]);
        assert_eq!(changes.first().map(|c| c.0), Some(before.revision + 1));
        let mut replayed = Inventory::default();
        let (mut instances, mut volumes) = (before.instances, before.volumes);
        for (_, change) in changes {
            match change {
                Change::InstanceChanged(i) => {
                    instances.retain(|old| old.name != i.name);
                    instances.push(i);
                }
                Change::InstanceRemoved(name) => instances.retain(|old| old.name != name),
                Change::VolumeChanged(v) => {
                    volumes.retain(|old| old.name != v.name);
                    volumes.push(v);
                }
                Change::VolumeRemoved(name) => volumes.retain(|old| old.name != name),
            }
        }
        replayed.update(instances, volumes);
        let (a, b) = (replayed.snapshot(), inventory.snapshot());
        assert_eq!((a.instances, a.volumes), (b.instances, b.volumes));
    }
}
