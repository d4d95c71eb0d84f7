//! All nodes that the registry tells of: what each publishes, and whether its agent lives.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::ids::NodeName;

use super::Moment;
use super::elsewhere::{Elsewhere, OtherNode};
use super::follow::{Follower, Inventory, Knowledge};
use super::presence::Presence;

/// Keys below a node's prefix, with their values.
pub type Documents = Vec<(String, Vec<u8>)>;

/// What the registry tells of nodes, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Everything, at one moment.
    Listed {
        /// What each node publishes.
        published: BTreeMap<NodeName, Documents>,
        /// The nodes whose agents live.
        live: BTreeMap<NodeName, Presence>,
    },
    /// A key below a node's prefix has this value now.
    Put {
        /// Whose.
        node: NodeName,
        /// Relative to the node's prefix.
        key: String,
        /// A document.
        bytes: Vec<u8>,
    },
    /// A key below a node's prefix is gone.
    Deleted {
        /// Whose.
        node: NodeName,
        /// Relative to the node's prefix.
        key: String,
    },
    /// The node's agent lives.
    Lives(NodeName, Presence),
    /// The node's agent was silent for too long, or has ended.
    Silent(NodeName),
    /// Changes may be missed until everything is listed again; why.
    Lost(String),
}

/// One node, as far as it is known.
#[derive(Debug)]
pub struct Known {
    follower: Follower,
    /// None: it is silent.
    pub presence: Option<Presence>,
    /// Since when this agent knows that it is silent; none: it lives, or it was silent before.
    pub silent_since: Option<Moment>,
}

impl Known {
    fn new(node: &NodeName) -> Self {
        Self { follower: Follower::new(node.clone()), presence: None, silent_since: None }
    }

    /// What it published last, however complete.
    #[must_use]
    pub fn published(&self) -> Option<&Inventory> {
        match self.follower.inventory() {
            Knowledge::Known(inventory) => Some(inventory),
            Knowledge::Unknown { last, .. } => last,
        }
    }

    /// Why that is not the whole truth; none: it is.
    #[must_use]
    pub fn doubt(&self) -> Option<&str> {
        match self.follower.inventory() {
            Knowledge::Known(_) => None,
            Knowledge::Unknown { reason, .. } => Some(reason),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Nodes {
    known: BTreeMap<NodeName, Known>,
}

impl Nodes {
    /// Takes in what was heard.
    pub fn handle(&mut self, heard: Heard, now: Moment) {
        match heard {
            Heard::Listed { published, mut live } => {
                self.known.retain(|node, _| published.contains_key(node) || live.contains_key(node));
                for (node, documents) in &published {
                    self.entry(node).follower.list(documents);
                }
                for node in live.keys().filter(|node| !published.contains_key(*node)) {
                    self.entry(node).follower.list(&[]);
                }
                for (node, known) in &mut self.known {
                    known.tell(live.remove(node), now);
                }
            }
            Heard::Put { node, key, bytes } => self.entry(&node).follower.put(&key, &bytes),
            Heard::Deleted { node, key } => self.entry(&node).follower.delete(&key),
            Heard::Lives(node, presence) => self.entry(&node).tell(Some(presence), now),
            Heard::Silent(node) => self.entry(&node).tell(None, now),
            Heard::Lost(reason) => {
                for known in self.known.values_mut() {
                    known.follower.lost(&reason);
                }
            }
        }
    }

    fn entry(&mut self, node: &NodeName) -> &mut Known {
        self.known.entry(node.clone()).or_insert_with(|| Known::new(node))
    }

    /// Whether a listing would help.
    #[must_use]
    pub fn wants_list(&self) -> bool {
        self.known.values().any(|known| known.follower.wants_list())
    }

    /// By name.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeName, &Known)> {
        self.known.iter()
    }

    /// All but `here`, as plans and answers need them.
    #[must_use]
    pub fn elsewhere(&self, here: &NodeName) -> Elsewhere {
        let others = self.known.iter().filter(|(node, _)| *node != here);
        let others = others.map(|(node, known)| {
            let entries = known.published().into_iter().flat_map(|inventory| inventory.entries.values());
            (node.clone(), OtherNode::of(entries, known.presence.is_some(), known.doubt().is_none()))
        });
        Elsewhere::new(others.collect(), BTreeSet::new())
    }
}

impl Known {
    fn tell(&mut self, presence: Option<Presence>, now: Moment) {
        if presence.is_some() {
            self.silent_since = None;
        } else if self.presence.is_some() {
            self.silent_since = Some(now);
        }
        self.presence = presence;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_proto::inventory::{FORMAT, encode};
    use holdfast_proto::pb::inventory as pb;
    use uuid::Uuid;

    use super::*;
    use crate::core::presence::PRESENCE_SCHEMA;
    use crate::core::testing::{published_instance, published_node};

    const fn secs(s: u64) -> Moment {
        Duration::from_secs(s)
    }

    fn presence() -> Presence {
        Presence {
            schema: PRESENCE_SCHEMA,
            home: Uuid::nil(),
            run: Uuid::nil(),
            address: "10.0.0.2".to_owned(),
        }
    }

    fn full(node: &str) -> Documents {
        let entries = vec![published_node(node), published_instance("demo.r1", 1)];
        let body = Some(pb::document::Body::Full(pb::Full { part: 0, parts: 1, entries }));
        let document = pb::Document { format: FORMAT, session: 1, revision: 1, body };
        vec![("full/0".to_owned(), encode(&document))]
    }

    #[test]
    fn a_node_is_known_by_what_it_published_and_lives_while_its_agent_speaks() {
        let (a, b): (NodeName, NodeName) = ("node-a".parse().unwrap(), "node-b".parse().unwrap());
        let mut nodes = Nodes::default();
        let published = BTreeMap::from([(b.clone(), full("node-b"))]);
        let live = BTreeMap::from([(a.clone(), presence()), (b.clone(), presence())]);
        nodes.handle(Heard::Listed { published: published.clone(), live }, secs(1));
        let elsewhere = nodes.elsewhere(&a);
        assert_eq!(elsewhere.names().collect::<Vec<_>>(), [&b], "not this one");
        assert_eq!(elsewhere.is_live(&b), Some(true));
        nodes.handle(Heard::Silent(b.clone()), secs(20));
        assert_eq!(nodes.elsewhere(&a).is_live(&b), Some(false));
        let known = nodes.iter().find(|(node, _)| **node == b).unwrap().1;
        assert_eq!((known.silent_since, known.doubt()), (Some(secs(20)), None));
        assert!(known.published().is_some(), "what it said last is kept");
        nodes.handle(Heard::Lost("the watch broke".to_owned()), secs(30));
        assert!(nodes.wants_list());
        nodes.handle(Heard::Lives(b.clone(), presence()), secs(31));
        assert_eq!(nodes.elsewhere(&a).is_live(&b), Some(true));
        nodes.handle(Heard::Listed { published, live: BTreeMap::new() }, secs(40));
        assert!(!nodes.wants_list());
        assert_eq!(nodes.elsewhere(&a).is_live(&b), Some(false));
        nodes.handle(Heard::Listed { published: BTreeMap::new(), live: BTreeMap::new() }, secs(41));
        assert_eq!(nodes.elsewhere(&a).is_live(&b), None, "its data was removed");
    }
}
