//! The nodes as the registry tells of them, and which of them looks after all.

use holdfast_proto::ids::{NodeName, ReplicaId, VolumeId};
use holdfast_proto::pb::inventory as ipb;
use holdfast_proto::record::{NodeRecord, ReplicaSet};
use ipb::entry::Entry as Of;
use uuid::Uuid;

use super::{DiskReserve, Fleet, Sight, Standing};
use crate::core::Moment;
use crate::core::elsewhere::Place;
use crate::core::instance::{InstanceName, Kind};
use crate::core::nodes::{Known, Nodes};

/// All nodes that the registry tells of, and `here`, which is there whether or not it does.
#[must_use]
pub fn fleet(nodes: &Nodes, here: &NodeName, now: Moment) -> Fleet {
    let known = nodes.iter().map(|(node, known)| (node.clone(), sight(known, nodes.wish(node), now)));
    let mut fleet: Fleet = known.collect();
    for node in nodes.forgotten() {
        fleet.entry(node.clone()).or_insert_with(|| Sight::of(Standing::Forgotten));
    }
    let draining = nodes.wish(here).is_some_and(|wish| wish.draining);
    fleet.entry(here.clone()).or_insert_with(|| Sight { draining, ..Sight::of(Standing::Live) });
    fleet
}

/// The node whose agent carries the moves out: the first by name of those that hold their leases, rather one that is not
/// itself being drained. Agents that see the fleet differently for a moment may both think it is theirs, and do no harm:
/// each wish is a compare-and-swap of a record that still says what the wish is about.
#[must_use]
pub fn on_duty(fleet: &Fleet) -> Option<&NodeName> {
    let live = || fleet.iter().filter(|(_, sight)| sight.standing == Standing::Live);
    let first = live().find(|(_, sight)| !sight.draining).or_else(|| live().next());
    first.map(|(node, _)| node)
}

impl Sight {
    /// Of a node that publishes nothing.
    pub(super) fn of(standing: Standing) -> Self {
        Self {
            standing,
            draining: false,
            room_bytes: 0,
            directories: Default::default(),
            engines: Default::default(),
        }
    }
}

fn sight(known: &Known, wish: Option<&NodeRecord>, now: Moment) -> Sight {
    let forgotten = wish.is_some_and(|wish| wish.forgotten);
    let standing = match known.silent_since {
        // One that was forgotten and lives has come back.
        None => Standing::Live,
        Some(_) if forgotten => Standing::Forgotten,
        Some(since) => Standing::Gone(now.saturating_sub(since)),
    };
    let mut sight = Sight { draining: wish.is_some_and(|wish| wish.draining), ..Sight::of(standing) };
    // What it said before, and may have changed since, vouches for nothing.
    let said = known.published().filter(|_| known.doubt().is_none());
    // The directory of replicas; others are of replicas below it that a person has moved.
    let mut root: Option<&ipb::Disk> = None;
    for entry in said.into_iter().flat_map(|inventory| inventory.entries.values()) {
        match &entry.entry {
            Some(Of::Disk(disk)) if root.is_none_or(|root| disk.path.len() < root.path.len()) => {
                root = Some(disk);
            }
            Some(Of::ReplicaDir(dir)) => {
                if let Ok(volume) = Uuid::from_slice(&dir.volume_id) {
                    sight.directories.insert((VolumeId(volume), ReplicaId(dir.replica)), dir.healthy);
                }
            }
            Some(Of::Instance(instance)) => {
                let name = instance.name.parse::<InstanceName>();
                let engine = Place::of(instance);
                if name.is_ok_and(|name| name.kind() == Kind::Engine) && engine.serves() {
                    let members = ReplicaSet::checked(engine.members.iter().copied());
                    sight.engines.extend(members.map(|members| (engine.volume_id, members)));
                }
            }
            Some(Of::Node(_) | Of::Disk(_)) | None => {}
        }
    }
    if let Some(disk) = root {
        // Older agents do not say what they keep.
        let reserved = disk.reserved_bytes.unwrap_or_else(|| DiskReserve::default().of(disk.capacity_bytes));
        sight.room_bytes = disk.available_bytes.saturating_sub(reserved);
    }
    sight
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use holdfast_proto::inventory::{FORMAT, encode};
    use ipb::document::Body;

    use super::*;
    use crate::core::nodes::Heard;
    use crate::core::testing::{presence, published_node};

    const fn secs(s: u64) -> Moment {
        Duration::from_secs(s)
    }

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    /// Half of it is free.
    fn disk(path: &str, capacity_bytes: u64, reserved_bytes: Option<u64>) -> ipb::Disk {
        let available_bytes = capacity_bytes / 2;
        ipb::Disk { path: path.into(), capacity_bytes, available_bytes, reserved_bytes, ..Default::default() }
    }

    /// b and c publish, and b lives.
    fn heard() -> Nodes {
        heard_with_root(disk("/d/replicas", 1000, None))
    }

    fn heard_with_root(root: ipb::Disk) -> Nodes {
        let volume = VolumeId(Uuid::from_u128(7));
        let engine = ipb::Instance {
            name: "demo.engine".into(),
            uuid: vec![1; 16],
            volume_id: volume.0.as_bytes().to_vec(),
            state: ipb::State::Running.into(),
            volume_state: "degraded".into(),
            members: vec![1, 3],
            ..Default::default()
        };
        let dir = ipb::ReplicaDir {
            dir: "demo.r3.7".into(),
            volume_id: volume.0.as_bytes().to_vec(),
            replica: 3,
            healthy: true,
            ..Default::default()
        };
        let below = disk("/d/replicas/demo.r3.7", 9000, None);
        let said = [Of::Disk(root), Of::Disk(below), Of::Instance(engine)];
        let said = said.into_iter().chain([Of::ReplicaDir(dir)]).map(|of| ipb::Entry { entry: Some(of) });
        let said: Vec<_> = said.collect();
        let documents = |name: &str| {
            let entries = [vec![published_node(name)], said.clone()].concat();
            let body = Some(Body::Full(ipb::Full { part: 0, parts: 1, entries }));
            let document = ipb::Document { format: FORMAT, session: 1, revision: 1, body };
            (node(name), vec![("full/0".to_owned(), encode(&document))])
        };
        let mut nodes = Nodes::default();
        let listed = Heard::Listed {
            published: ["b", "c"].map(documents).into(),
            live: BTreeMap::from([(node("b"), presence())]),
            wishes: BTreeMap::new(),
        };
        nodes.handle(listed, secs(10));
        nodes
    }

    #[test]
    fn a_node_says_itself_what_stays_free_there() {
        for (reserved, room) in [(0, 500), (100, 400), (501, 0)] {
            let nodes = heard_with_root(disk("/d/replicas", 1000, Some(reserved)));
            assert_eq!(fleet(&nodes, &node("a"), secs(70))[&node("b")].room_bytes, room);
        }
    }

    fn wished(nodes: &mut Nodes, name: &str, version: u64, change: impl FnOnce(&mut NodeRecord)) {
        let mut wish = NodeRecord { version, ..NodeRecord::new(node(name)) };
        change(&mut wish);
        nodes.handle(Heard::Wished(node(name), Some(wish)), secs(20));
    }

    #[test]
    fn a_node_is_seen_as_it_published_itself_and_as_a_person_marked_it() {
        let mut nodes = heard();
        let here = node("a");
        let seen = fleet(&nodes, &here, secs(70));
        assert_eq!(seen.keys().collect::<Vec<_>>(), [&here, &node("b"), &node("c")]);
        let b = &seen[&node("b")];
        assert_eq!((b.standing, b.draining), (Standing::Live, false));
        assert_eq!(b.room_bytes, 400, "of the directory of replicas, of which a tenth stays free");
        let volume = VolumeId(Uuid::from_u128(7));
        assert_eq!(b.directories, BTreeMap::from([((volume, ReplicaId(3)), true)]));
        let members = [1, 3].map(ReplicaId).into_iter().collect();
        assert_eq!(b.engines, BTreeMap::from([(volume, members)]));
        assert_eq!(seen[&node("c")].standing, Standing::Gone(secs(60)), "since the first listing");
        wished(&mut nodes, "b", 1, |wish| (wish.draining, wish.forgotten) = (true, true));
        wished(&mut nodes, "c", 1, |wish| wish.forgotten = true);
        wished(&mut nodes, "z", 1, |wish| wish.forgotten = true);
        let seen = fleet(&nodes, &here, secs(70));
        let standing = |name: &str| seen[&node(name)].standing;
        assert_eq!(standing("b"), Standing::Live, "it has come back");
        assert!(seen[&node("b")].draining);
        assert_eq!((standing("c"), standing("z")), (Standing::Forgotten, Standing::Forgotten));
        // What it said may not be what is so.
        nodes.handle(Heard::Lost("the watch broke".into()), secs(80));
        assert!(fleet(&nodes, &here, secs(90))[&node("b")].directories.is_empty());
    }

    #[test]
    fn the_first_node_that_lives_and_is_not_drained_is_on_duty() {
        let mut nodes = heard();
        nodes.handle(Heard::Lives(node("a"), presence()), secs(11));
        let duty = |nodes: &Nodes| on_duty(&fleet(nodes, &node("a"), secs(12))).cloned();
        assert_eq!(duty(&nodes), Some(node("a")));
        wished(&mut nodes, "a", 1, |wish| wish.draining = true);
        assert_eq!(duty(&nodes), Some(node("b")), "c is gone");
        wished(&mut nodes, "b", 1, |wish| wish.draining = true);
        assert_eq!(
            duty(&nodes),
            Some(node("a")),
            "all are drained: somebody has to say that nothing can move"
        );
        nodes.handle(Heard::Silent(node("a")), secs(13));
        assert_eq!(duty(&nodes), Some(node("b")));
    }
}
