//! All nodes that the registry tells of: what each publishes, whether its agent lives, and what operators wish for it.

use std::collections::BTreeMap;

use holdfast_proto::ids::NodeName;
use holdfast_proto::record::NodeRecord;

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
        /// What operators wish; none: there is a record that cannot be read.
        wishes: BTreeMap<NodeName, Option<NodeRecord>>,
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
    /// What operators wish for a node is this now; none: nothing.
    Wished(NodeName, Option<NodeRecord>),
    /// Changes may be missed until everything is listed again; why.
    Lost(String),
}

/// One node, as far as it is known.
#[derive(Debug)]
pub struct Known {
    follower: Follower,
    /// None: it is silent.
    pub presence: Option<Presence>,
    /// None: it lives. Else since when this agent knows that it is silent; later by as long as nothing was heard of any
    /// node meanwhile.
    pub silent_since: Option<Moment>,
}

impl Known {
    fn new(node: &NodeName, now: Moment) -> Self {
        Self { follower: Follower::new(node.clone()), presence: None, silent_since: Some(now) }
    }

    fn tell(&mut self, presence: Option<Presence>, now: Moment) {
        match presence {
            Some(_) => self.silent_since = None,
            None => self.silent_since = self.silent_since.or(Some(now)),
        }
        self.presence = presence;
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
    wishes: BTreeMap<NodeName, NodeRecord>,
    heard: bool,
    /// Since when nothing is heard of any node.
    lost_at: Option<Moment>,
}

impl Nodes {
    /// Takes in what was heard.
    pub fn handle(&mut self, heard: Heard, now: Moment) {
        match heard {
            Heard::Listed { published, live, wishes } => self.list(&published, live, wishes, now),
            Heard::Put { node, key, bytes } => self.entry(&node, now).follower.put(&key, &bytes),
            Heard::Deleted { node, key } => {
                // A forgotten node is not entered again: the registry deletes its keys one by one.
                if let Some(known) = self.known.get_mut(&node) {
                    known.follower.delete(&key);
                }
            }
            Heard::Lives(node, presence) => self.entry(&node, now).tell(Some(presence), now),
            Heard::Silent(node) => self.entry(&node, now).tell(None, now),
            Heard::Wished(node, None) => {
                let forgotten = self.wishes.remove(&node).is_some_and(|wish| wish.forgotten);
                // With the mark of a node that does not come back goes all that the registry had of it.
                if forgotten && self.known.get(&node).is_some_and(|known| known.presence.is_none()) {
                    self.known.remove(&node);
                }
            }
            Heard::Wished(node, Some(wish)) => {
                // One that this agent has written itself is told of again, after what came before it.
                if self.wishes.get(&node).is_none_or(|known| known.version <= wish.version) {
                    self.wishes.insert(node, wish);
                }
            }
            Heard::Lost(reason) => {
                self.lost_at = self.lost_at.or(Some(now));
                for known in self.known.values_mut() {
                    known.follower.lost(&reason);
                }
            }
        }
    }

    fn list(
        &mut self,
        published: &BTreeMap<NodeName, Documents>,
        mut live: BTreeMap<NodeName, Presence>,
        wishes: BTreeMap<NodeName, Option<NodeRecord>>,
        now: Moment,
    ) {
        self.heard = true;
        let deaf_for = self.lost_at.take().map_or(Moment::ZERO, |at| now.saturating_sub(at));
        for since in self.known.values_mut().filter_map(|known| known.silent_since.as_mut()) {
            *since = (*since + deaf_for).min(now);
        }
        self.known.retain(|node, _| published.contains_key(node) || live.contains_key(node));
        for (node, documents) in published {
            self.entry(node, now).follower.list(documents);
        }
        for node in live.keys().filter(|node| !published.contains_key(*node)) {
            self.entry(node, now).follower.list(&[]);
        }
        for (node, known) in &mut self.known {
            known.tell(live.remove(node), now);
        }
        // Where a record cannot be read, what was known of it counts.
        let mut before = std::mem::take(&mut self.wishes);
        let known = wishes.into_iter().map(|(node, wish)| (wish.or_else(|| before.remove(&node)), node));
        self.wishes = known.filter_map(|(wish, node)| Some((node, wish?))).collect();
    }

    fn entry(&mut self, node: &NodeName, now: Moment) -> &mut Known {
        self.known.entry(node.clone()).or_insert_with(|| Known::new(node, now))
    }

    /// Whether what is known is complete: everything was listed, and each change since was heard.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.heard && self.lost_at.is_none()
    }

    /// What operators wish for a node.
    #[must_use]
    pub fn wish(&self, node: &NodeName) -> Option<&NodeRecord> {
        self.wishes.get(node)
    }

    /// The nodes that a person has declared gone for good, and whose agents have not come back.
    pub fn forgotten(&self) -> impl Iterator<Item = &NodeName> {
        let lives = |node| self.known.get(node).is_some_and(|known| known.presence.is_some());
        let marked = self.wishes.iter().filter(|(_, wish)| wish.forgotten).map(|(node, _)| node);
        marked.filter(move |node| !lives(*node))
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
        Elsewhere::new(others.collect(), self.forgotten().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_proto::inventory::{FORMAT, encode};
    use holdfast_proto::pb::inventory as pb;

    use super::*;
    use crate::core::testing::{presence, published_instance, published_node};

    const fn secs(s: u64) -> Moment {
        Duration::from_secs(s)
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
        let wishes = BTreeMap::new;
        nodes.handle(Heard::Listed { published: published.clone(), live, wishes: wishes() }, secs(1));
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
        nodes.handle(Heard::Listed { published, live: BTreeMap::new(), wishes: wishes() }, secs(40));
        assert!(!nodes.wants_list());
        assert_eq!(nodes.elsewhere(&a).is_live(&b), Some(false));
        nodes.handle(listed(BTreeMap::new()), secs(41));
        assert_eq!(nodes.elsewhere(&a).is_live(&b), None, "its data was removed");
    }

    fn listed(wishes: BTreeMap<NodeName, Option<NodeRecord>>) -> Heard {
        Heard::Listed { published: BTreeMap::new(), live: BTreeMap::new(), wishes }
    }

    #[test]
    fn silence_counts_only_while_the_registry_is_heard() {
        let b: NodeName = "node-b".parse().unwrap();
        let mut nodes = Nodes::default();
        let all = || Heard::Listed {
            published: BTreeMap::from([(b.clone(), full("node-b"))]),
            live: BTreeMap::new(),
            wishes: BTreeMap::new(),
        };
        let silent_since = |nodes: &Nodes| nodes.iter().next().unwrap().1.silent_since;
        assert!(!nodes.is_complete());
        nodes.handle(all(), secs(10));
        assert_eq!(
            (nodes.is_complete(), silent_since(&nodes)),
            (true, Some(secs(10))),
            "before is not known"
        );
        nodes.handle(Heard::Lost("the watch broke".to_owned()), secs(100));
        nodes.handle(Heard::Lost("no answer".to_owned()), secs(200));
        assert!(!nodes.is_complete());
        nodes.handle(all(), secs(400));
        assert_eq!((nodes.is_complete(), silent_since(&nodes)), (true, Some(secs(310))), "90 s of silence");
        nodes.handle(Heard::Lives(b.clone(), presence()), secs(500));
        nodes.handle(Heard::Silent(b.clone()), secs(510));
        assert_eq!(silent_since(&nodes), Some(secs(510)));
    }

    #[test]
    fn n1_a_forgotten_node_is_waited_for_again_once_its_agent_lives() {
        let (a, b): (NodeName, NodeName) = ("node-a".parse().unwrap(), "node-b".parse().unwrap());
        let mut nodes = Nodes::default();
        let wish = |version| NodeRecord { version, forgotten: true, ..NodeRecord::new(b.clone()) };
        nodes.handle(listed(BTreeMap::from([(b.clone(), Some(wish(3)))])), secs(1));
        assert!(nodes.elsewhere(&a).is_forgotten(&b));
        nodes.handle(Heard::Lives(b.clone(), presence()), secs(2));
        assert!(!nodes.elsewhere(&a).is_forgotten(&b), "it has come back, whatever the mark says");
        nodes.handle(Heard::Silent(b.clone()), secs(3));
        nodes.handle(Heard::Wished(b.clone(), Some(NodeRecord::new(b.clone()))), secs(4));
        assert!(nodes.elsewhere(&a).is_forgotten(&b), "that was before");
        nodes.handle(listed(BTreeMap::from([(b.clone(), None)])), secs(5));
        assert!(nodes.elsewhere(&a).is_forgotten(&b), "a record that cannot be read takes nothing back");
        nodes.handle(Heard::Wished(b.clone(), None), secs(6));
        assert!(!nodes.elsewhere(&a).is_forgotten(&b));
    }
}
