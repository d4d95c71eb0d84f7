//! A reader's inventory is the node's at that revision, or unknown: by cases, and under any loss, repeat and delay.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::core::publish::{Op, Publisher};
use crate::core::testing::{published_instance as instance, published_node as node};

fn named() -> NodeName {
    "node-a".parse().unwrap()
}

fn key(name: &str) -> Key {
    Key { kind: Kind::Instance, name: name.to_owned() }
}

/// A node and its registry, without failures.
struct Site {
    publisher: Publisher,
    stored: BTreeMap<String, Vec<u8>>,
    now: Duration,
}

impl Site {
    fn new(instances: usize) -> Self {
        let all = (0..instances).map(|n| instance(&format!("v{n}.r1"), 1)).chain([node("node-a")]);
        let publisher = Publisher::new(&named(), &[], 1, all.collect(), Duration::ZERO);
        Self { publisher, stored: BTreeMap::new(), now: Duration::ZERO }
    }
    /// Everything that is due within half a minute is written; full lists of a minute's age are not.
    fn write(&mut self) -> Vec<Op> {
        self.now += Duration::from_secs(30);
        self.write_now()
    }
    fn write_now(&mut self) -> Vec<Op> {
        let mut all = Vec::new();
        while let Some(ops) = self.publisher.poll_write(self.now) {
            self.publisher.written(self.now);
            for op in &ops {
                store(&mut self.stored, op);
            }
            all.extend(ops);
        }
        all
    }
    fn set(&mut self, name: &str, generation: u64) {
        self.publisher.set(instance(name, generation), self.now);
    }
    fn list(&self) -> Vec<(String, Vec<u8>)> {
        self.stored.clone().into_iter().collect()
    }
    fn follower(&self) -> Follower {
        let mut follower = Follower::new(named());
        follower.list(&self.list());
        follower
    }
}

fn store(stored: &mut BTreeMap<String, Vec<u8>>, op: &Op) {
    match op {
        Op::Put { key, bytes } => drop(stored.insert(key.clone(), bytes.clone())),
        Op::Delete { key } => drop(stored.remove(key)),
    }
}

fn tell(follower: &mut Follower, ops: &[Op]) {
    for op in ops {
        match op {
            Op::Put { key, bytes } => follower.put(key, bytes),
            Op::Delete { key } => follower.delete(key),
        }
    }
}

#[track_caller]
fn assert_known(follower: &Follower, site: &Site) {
    match follower.inventory() {
        Knowledge::Known(inventory) => {
            assert_eq!(inventory.revision, site.publisher.revision());
            assert_eq!(&inventory.entries, site.publisher.entries());
        }
        unknown => panic!("{unknown:?}"),
    }
}

#[track_caller]
fn assert_unknown(follower: &Follower, part_of_reason: &str) {
    match follower.inventory() {
        Knowledge::Unknown { reason, .. } => assert!(reason.contains(part_of_reason), "{reason}"),
        known => panic!("{known:?}"),
    }
}

#[test]
fn a_full_list_and_what_follows_it_is_what_the_node_has() {
    let mut site = Site::new(5);
    site.write();
    let mut follower = site.follower();
    assert_known(&follower, &site);
    site.set("v1.r1", 2);
    site.publisher.remove(&key("v2.r1"), site.now);
    tell(&mut follower, &site.write());
    assert_known(&follower, &site);
    // Who comes later finds the same.
    assert_known(&site.follower(), &site);
    assert!(!follower.wants_list());
}

#[test]
fn a_lost_delta_is_noticed_with_the_next_one_and_a_listing_heals_it() {
    let mut site = Site::new(5);
    site.write();
    let mut follower = site.follower();
    site.set("v1.r1", 2);
    site.write();
    site.set("v2.r1", 2);
    tell(&mut follower, &site.write_now());
    site.now += Duration::from_secs(1);
    tell(&mut follower, &site.write_now());
    assert_unknown(&follower, "missing");
    assert!(follower.wants_list());
    follower.list(&site.list());
    assert_known(&follower, &site);
}

#[test]
fn a_delta_that_comes_late_fills_the_gap_and_a_repeat_changes_nothing() {
    let mut site = Site::new(5);
    site.write();
    let mut follower = site.follower();
    site.set("v1.r1", 2);
    let first = site.write();
    site.set("v1.r1", 3);
    site.now += Duration::from_secs(1);
    let second = site.write_now();
    tell(&mut follower, &second);
    assert_unknown(&follower, "missing");
    tell(&mut follower, &first);
    assert_known(&follower, &site);
    tell(&mut follower, &first);
    tell(&mut follower, &second);
    assert_known(&follower, &site);
}

#[test]
fn a_partial_list_is_unknown_and_nothing_in_it_is_gone() {
    let mut site = Site::new(8000);
    site.write();
    let list = site.list();
    assert_eq!(list.len(), 3, "it has three parts");
    for missing in 0..list.len() {
        let mut follower = site.follower();
        let mut partial = list.clone();
        partial.remove(missing);
        follower.list(&partial);
        match follower.inventory() {
            Knowledge::Unknown { last: Some(last), .. } => {
                assert_eq!(&last.entries, site.publisher.entries())
            }
            other => panic!("{other:?}"),
        }
        assert!(!follower.wants_list(), "it was just listed");
        // The part that was missing comes.
        follower.put(&list[missing].0, &list[missing].1);
        assert_known(&follower, &site);
    }
    let mut follower = site.follower();
    follower.list(&[]);
    assert_unknown(&follower, "nothing is published");
    follower = site.follower();
    follower.delete("full/1");
    assert_unknown(&follower, "part 1");
    assert!(follower.wants_list());
}

#[test]
fn what_cannot_be_read_is_unknown_until_a_full_list_comes_after_it() {
    let mut site = Site::new(5);
    site.write();
    let mut follower = site.follower();
    follower.put("delta/0000000000000001", &[0xff; 7]);
    assert_unknown(&follower, "cannot be read");
    let mut list = site.list();
    list.push(("delta/0000000000000001".to_owned(), vec![0xff; 7]));
    follower.list(&list);
    assert_unknown(&follower, "cannot be read");
    assert!(!follower.wants_list(), "a listing does not help");
    site.set("v1.r1", 2);
    site.write();
    site.now += Duration::from_secs(60);
    tell(&mut follower, &site.write_now());
    assert_known(&follower, &site);
}

#[test]
fn a_list_of_another_node_is_not_this_nodes() {
    let mut site = Site::new(5);
    site.write();
    let mut follower = Follower::new("node-b".parse().unwrap());
    follower.list(&site.list());
    assert_unknown(&follower, "node node-b");
}

#[test]
fn a_new_session_counts_from_its_full_list_on_and_the_old_one_never_comes_back() {
    let mut site = Site::new(5);
    let old = site.write();
    let mut follower = site.follower();
    let entries = vec![node("node-a"), instance("w.r1", 1)];
    site.publisher = Publisher::new(&named(), &site.list(), 1, entries, site.now);
    let new = site.write();
    tell(&mut follower, &new);
    assert_known(&follower, &site);
    tell(&mut follower, &old);
    assert_known(&follower, &site);
}

#[test]
fn a_registry_that_was_restored_is_believed() {
    let mut site = Site::new(5);
    site.write();
    let backup = site.list();
    let then = site.publisher.entries().clone();
    site.set("v1.r1", 2);
    site.write();
    let mut follower = site.follower();
    follower.lost("the registry has another incarnation");
    assert_unknown(&follower, "incarnation");
    assert!(follower.wants_list());
    follower.list(&backup);
    let Knowledge::Known(inventory) = follower.inventory() else { panic!("{follower:?}") };
    assert_eq!(inventory.entries, then);
}

/// A request that was given up is done by then or never: its deadline is shorter.
const LATE_MAX: Duration = Duration::from_secs(30);

/// What happens in one step of the chaos below.
#[derive(Debug, Clone)]
enum Step {
    Set(u8, u64),
    Remove(u8),
    /// Time passes; what is due is written. The outcome, by its number: done; done and not heard of; not done; done
    /// only in part; done after everything else.
    Write(u64, u8),
    /// A new run of the agent.
    Restart,
    /// Events are told: how many, from which, whether each is told twice, whether the rest is lost.
    Tell {
        skip: u8,
        count: u8,
        twice: bool,
        lose: bool,
    },
    List,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..6_u8, 1..9_u64).prop_map(|(n, generation)| Step::Set(n, generation)),
        1 => (0..6_u8).prop_map(Step::Remove),
        5 => (0..90_000_u64, 0..8_u8).prop_map(|(ms, outcome)| Step::Write(ms, outcome)),
        1 => Just(Step::Restart),
        5 => (0..4_u8, 1..6_u8, any::<bool>(), any::<bool>())
            .prop_map(|(skip, count, twice, lose)| Step::Tell { skip, count, twice, lose }),
        1 => Just(Step::List),
    ];
    proptest::collection::vec(step, 1..80)
}

/// A registry whose writes may fail in every way, and a reader to whom anything may happen.
struct Chaos {
    site: Site,
    follower: Follower,
    /// Events not told yet.
    events: Vec<Op>,
    /// Not done yet, though the writer has given up: when they are done at the latest.
    late: Vec<(Duration, Op)>,
    history: BTreeMap<At, BTreeMap<Key, pb::Entry>>,
}

impl Chaos {
    fn new() -> Self {
        let follower = Follower::new(named());
        let mut chaos =
            Self { site: Site::new(3), follower, events: vec![], late: vec![], history: BTreeMap::new() };
        chaos.remember();
        chaos
    }
    fn remember(&mut self) {
        let publisher = &self.site.publisher;
        self.history.insert((publisher.session(), publisher.revision()), publisher.entries().clone());
    }
    fn store(&mut self, ops: &[Op]) {
        for op in ops {
            store(&mut self.site.stored, op);
        }
        self.events.extend(ops.iter().cloned());
    }
    fn step(&mut self, step: Step) {
        let now = self.site.now;
        match step {
            Step::Set(n, generation) => self.site.set(&format!("v{n}.r1"), generation),
            Step::Remove(n) => self.site.publisher.remove(&key(&format!("v{n}.r1")), now),
            Step::Write(ms, outcome) => self.write(Duration::from_millis(ms), outcome),
            Step::Restart => {
                let entries = self.site.publisher.entries().values().cloned().collect();
                let found = self.site.list();
                self.site.publisher = Publisher::new(&named(), &found, 1, entries, now);
                // A request of a process that has ended does not come any later than its end.
                self.late.clear();
            }
            Step::Tell { skip, count, twice, lose } => {
                let from = usize::from(skip).min(self.events.len());
                let to = (from + usize::from(count)).min(self.events.len());
                let told: Vec<Op> = self.events.drain(from..to).collect();
                tell(&mut self.follower, &told);
                if twice {
                    tell(&mut self.follower, &told);
                }
                if lose {
                    self.events.clear();
                }
            }
            Step::List => self.follower.list(&self.site.list()),
        }
        self.remember();
    }
    fn write(&mut self, pass: Duration, outcome: u8) {
        self.site.now += pass;
        let now = self.site.now;
        let due: Vec<Op> = self.late.extract_if(.., |(at, _)| *at <= now).map(|(_, op)| op).collect();
        self.store(&due);
        let Some(ops) = self.site.publisher.poll_write(self.site.now) else { return };
        match outcome {
            0 => self.store(&ops),
            1 => {}
            2 => self.store(&ops[..ops.len() / 2]),
            3 => self.late.extend(ops.into_iter().map(|op| (now + LATE_MAX, op))),
            _ => {
                self.store(&ops);
                self.site.publisher.written(self.site.now);
                return;
            }
        }
        self.site.publisher.failed(self.site.now);
    }
    fn check(&self) {
        if let Knowledge::Known(inventory) = self.follower.inventory() {
            assert_eq!(Some(&inventory.entries), self.history.get(&inventory.at()), "{:?}", inventory.at());
        }
    }
    /// The faults stop. Nothing need change, and the reader need not ask: the next full list shows it what it missed.
    fn converge(&mut self) {
        let late: Vec<Op> = std::mem::take(&mut self.late).into_iter().map(|(_, op)| op).collect();
        self.store(&late);
        for _ in 0..4 {
            self.site.now += Duration::from_secs(61);
            let ops = self.site.write_now();
            self.events.extend(ops);
        }
        let events = std::mem::take(&mut self.events);
        tell(&mut self.follower, &events);
        assert_known(&self.follower, &self.site);
        assert_known(&self.site.follower(), &self.site);
    }
}

proptest! {
    #[test]
    fn whatever_is_lost_repeated_or_late_what_is_known_is_what_the_node_had(steps in steps()) {
        let mut chaos = Chaos::new();
        for step in steps {
            chaos.step(step);
            chaos.check();
        }
        chaos.converge();
    }
}
