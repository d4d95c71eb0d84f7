//! Never more than allowed, never none, and in an order that leaves nobody waiting for ever.

use proptest::prelude::*;

use super::*;

const fn secs(s: u64) -> Moment {
    Duration::from_secs(s)
}

fn full(healthy: usize) -> Want {
    Want { full: true, healthy }
}
fn part(healthy: usize) -> Want {
    Want { full: false, healthy }
}

#[derive(Default)]
struct Node {
    turns: Turns,
    wants: BTreeMap<VolumeId, Want>,
    now: Moment,
}

impl Node {
    /// Who fills, and the bytes per second of each.
    fn decide(&mut self, concurrency: usize, bytes_per_second: u64) -> Vec<(VolumeId, u64)> {
        let node: NodeName = "node-a".parse().unwrap();
        let limits = Limits { concurrency, bytes_per_second };
        let told = self.turns.decide(&self.wants, limits, &node, self.now);
        assert!(told.keys().eq(self.wants.keys()), "whoever wants is told, and nobody else");
        told.iter().filter(|(_, p)| p.wait_ms == 0).map(|(v, p)| (*v, p.bytes_per_second)).collect()
    }
    fn filling(&mut self, concurrency: usize) -> Vec<VolumeId> {
        self.decide(concurrency, 0).into_iter().map(|(volume, _)| volume).collect()
    }
    /// A volume that begins to want this a second after the one before.
    fn wants(&mut self, want: Want) -> VolumeId {
        let volume = VolumeId::random();
        self.now += secs(1);
        self.wants.insert(volume, want);
        self.filling(1);
        volume
    }
}

#[test]
fn who_fills_goes_on_and_then_the_one_that_waited_longest() {
    let mut node = Node::default();
    let (a, b, c) = (node.wants(full(2)), node.wants(full(2)), node.wants(full(2)));
    for next in [a, b, c] {
        assert_eq!(node.filling(1), [next]);
        node.wants.remove(&next);
    }
    assert!(node.filling(1).is_empty());
}

#[test]
fn short_ones_and_those_in_more_danger_go_before_who_fills() {
    let mut node = Node::default();
    let long = node.wants(full(2));
    let alone = node.wants(full(1));
    assert_eq!(node.filling(1), [alone], "fewer healthy copies");
    let short = node.wants(part(2));
    assert_eq!(node.filling(1), [short], "a catch-up is over soon");
    for (gone, next) in [(short, alone), (alone, long)] {
        node.wants.remove(&gone);
        assert_eq!(node.filling(1), [next]);
    }
}

#[test]
fn those_that_fill_share_the_nodes_bandwidth() {
    let mut node = Node::default();
    for _ in 0..3 {
        node.wants(full(2));
    }
    let bytes: Vec<_> = node.decide(2, 100).into_iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(bytes, [50, 50]);
    let bytes: Vec<_> = node.decide(4, 100).into_iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(bytes, [33, 33, 33]);
}

#[test]
fn a_wait_says_why_ends_by_itself_and_is_renewed_before() {
    let mut node = Node::default();
    let (_, waits) = (node.wants(full(2)), node.wants(full(2)));
    let told = node.turns.of(waits).cloned().unwrap();
    assert!(told.reason.contains("node-a fills") && told.reason.contains("at most 1 volumes"), "{told:?}");
    assert!(told.wait_ms > 0);
    node.filling(1);
    assert_eq!(node.turns.of(waits), Some(&told), "said once");
    node.now += RENEWED_EVERY;
    node.filling(1);
    assert_ne!(node.turns.of(waits), Some(&told), "and again, so that it does not run out");
    assert!(RENEWED_EVERY * 3 < WAIT_AT_MOST);
    assert_eq!(node.turns.of(VolumeId::random()), None);
}

#[test]
fn a_volume_wants_what_its_engine_says() {
    let status = |modes: &[&str]| pb::EngineStatus {
        replicas: (modes.iter())
            .map(|mode| pb::ReplicaState { mode: (*mode).to_owned(), ..Default::default() })
            .collect(),
        ..Default::default()
    };
    assert_eq!(Want::of(&status(&["member", "member", "absent"])), None);
    assert_eq!(Want::of(&status(&["member", "rebuilding"])), Some(full(1)));
    assert_eq!(Want::of(&status(&["member", "rebuilding", "catching_up"])), Some(part(1)));
}

proptest! {
    #[test]
    fn as_many_as_may_fill_and_the_bandwidth_is_never_exceeded(
        wants in prop::collection::vec((any::<bool>(), 1_usize..4), 0..20),
        concurrency in 1_usize..6,
        bytes in 1_000_000_u64..u64::MAX,
    ) {
        let mut node = Node::default();
        for (full, healthy) in wants {
            node.wants(Want { full, healthy });
        }
        let filling = node.decide(concurrency, bytes);
        prop_assert_eq!(filling.len(), concurrency.min(node.wants.len()));
        prop_assert!(filling.iter().map(|(_, bytes)| u128::from(*bytes)).sum::<u128>() <= u128::from(bytes));
        prop_assert!(filling.iter().all(|(_, bytes)| *bytes > 0));
        let again = node.decide(concurrency, bytes);
        prop_assert_eq!(again, filling, "the same again changes nothing");
    }
}
