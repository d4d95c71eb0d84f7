//! The behaviours of orphans on simulated time; each test carries the number of its behaviour.

use super::*;
use crate::core::elsewhere::Elsewhere;
use crate::core::foreign::Foreign;
use crate::core::instance::{Event, Instance, InstanceName, State as Life};
use crate::core::reconcile::World;
use crate::core::records::{RecordState, Records};
use crate::core::testing::{attached, record};
use holdfast_proto::ids::{Incarnation, InstanceUuid, NodeName, ReplicaId, VolumeId};
use holdfast_proto::pb::instance as pb;
use holdfast_proto::record::VolumeRecord;

const fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn on() -> Settings {
    Settings { auto_cleanup: Class::ALL.into(), ..Settings::default() }
}

fn thing(name: &str) -> Sighting {
    let subject = Subject { class: Class::Instance, name: name.to_owned(), uuid: Uuid::from_u128(1) };
    Sighting { subject, claim: Claim::Unclaimed, reason: "no record".to_owned(), standing: Standing::Idle }
}

fn claimed(mut sighting: Sighting, claim: Claim) -> Sighting {
    sighting.claim = claim;
    sighting
}

/// A tracker and its clock. Readings come every five seconds, and once more at each moment that the tracker names.
struct Node {
    tracker: Tracker,
    settings: Settings,
    now: Moment,
    signalled: Vec<(Moment, Subject)>,
    notices: Vec<Notice>,
    saved: Option<Saved>,
}

impl Node {
    fn new(settings: Settings) -> Self {
        let tracker = Tracker::default();
        Self { tracker, settings, now: secs(1000), signalled: Vec::new(), notices: Vec::new(), saved: None }
    }

    fn read(&mut self, sightings: &[Sighting]) {
        let mut by_class: BTreeMap<Class, Vec<Sighting>> = Class::ALL.map(|class| (class, vec![])).into();
        for sighting in sightings {
            by_class.get_mut(&sighting.subject.class).unwrap().push(sighting.clone());
        }
        for (class, sightings) in by_class {
            let reading = Reading { class, asked_at: self.now, sightings };
            self.notices.extend(self.tracker.observe(&reading, &self.settings, self.now));
        }
        if let Some(saved) = self.tracker.save(self.now) {
            self.saved = Some(saved);
        }
        for subject in self.tracker.due(&self.settings, self.now) {
            self.now += Duration::from_millis(1);
            let again = sightings.iter().find(|sighting| sighting.subject == subject).unwrap();
            if self.tracker.confirm(again, self.now, &self.settings, self.now) {
                self.signalled.push((self.now, subject));
            }
        }
    }

    /// Lets time pass while the readings are these.
    fn run(&mut self, sightings: &[Sighting], time: Duration) {
        let until = self.now + time;
        while self.now < until {
            let tick = (self.now + secs(5)).min(until);
            self.now = self.tracker.next_at(&self.settings).map_or(tick, |at| at.min(tick)).max(self.now);
            self.read(sightings);
        }
    }

    fn orphan(&self, name: &str) -> Option<Orphan> {
        self.tracker.orphans(&self.settings, self.now).find(|orphan| orphan.subject.name == name)
    }

    fn restart(&mut self) {
        let text = serde_json::to_string(&self.saved.take()).unwrap();
        self.tracker = Tracker::restore(serde_json::from_str(&text).unwrap());
    }
}

#[test]
fn o1_an_orphan_is_cleaned_when_more_than_its_grace_is_confirmed() {
    let mut node = Node::new(on());
    let x = [thing("x")];
    node.read(&x);
    node.run(&x, secs(299));
    let orphan = node.orphan("x").unwrap();
    assert_eq!((orphan.state, orphan.remaining), ("orphaned", secs(1)));
    node.run(&x, secs(1));
    assert_eq!(node.orphan("x").unwrap().remaining, secs(0));
    assert_eq!(node.signalled, [], "at exactly its grace it is still held");
    node.run(&x, secs(5));
    assert_eq!(node.signalled.len(), 1);
    assert!(node.signalled[0].0 <= secs(1000 + 305), "{:?}", node.signalled);
    assert_eq!(node.orphan("x").unwrap().state, "cleaning");
    node.run(&x, secs(600));
    assert_eq!(node.signalled.len(), 1, "once");
    node.run(&[], secs(5));
    assert_eq!(node.orphan("x"), None);
    assert_eq!(node.tracker.stats().totals[&Class::Instance], Totals { cleaned: 1, cancelled: 0 });
}

#[test]
fn o2_claim_returns_clears_timer() {
    let mut node = Node::new(on());
    node.read(&[thing("x")]);
    node.run(&[thing("x")], secs(200));
    node.run(&[claimed(thing("x"), Claim::Claimed)], secs(5));
    assert_eq!(node.orphan("x"), None);
    assert_eq!(node.saved.as_ref().unwrap().orphans, [], "nor does a restart bring it back");
    node.now += secs(1);
    node.read(&[thing("x")]);
    assert_eq!(node.orphan("x").unwrap().remaining, secs(300));
    node.run(&[thing("x")], secs(300));
    assert_eq!(node.signalled, []);
    assert_eq!(node.tracker.stats().totals[&Class::Instance].cancelled, 1);
}

#[test]
fn o3_what_is_not_switched_on_is_reported_and_never_cleaned() {
    let mut node = Node::new(Settings::default());
    node.run(&[thing("x")], secs(3000));
    assert_eq!(node.signalled, []);
    let orphan = node.orphan("x").unwrap();
    assert_eq!((orphan.state, orphan.remaining, orphan.auto_cleanup), ("orphaned", secs(0), false));
    assert_eq!(node.tracker.next_at(&node.settings), None);
}

#[test]
fn o4_while_nobody_knows_no_timer_starts_and_running_ones_stand_still() {
    let mut node = Node::new(on());
    let unknown = [claimed(thing("x"), Claim::Unknown)];
    node.run(&unknown, secs(1000));
    assert_eq!(node.orphan("x"), None);
    node.read(&[thing("x")]);
    node.run(&[thing("x")], secs(100));
    let before = node.orphan("x").unwrap().remaining;
    node.run(&unknown, secs(1000));
    let orphan = node.orphan("x").unwrap();
    assert_eq!((orphan.state, orphan.remaining), ("orphaned-unknown", before));
    node.run(&[thing("x")], before - secs(1));
    assert_eq!(node.signalled, [], "the time in which nobody knew does not count");
    node.run(&[thing("x")], secs(10));
    assert_eq!(node.signalled.len(), 1);
}

#[test]
fn o4_an_answer_that_is_too_old_or_a_gap_between_two_confirms_nothing() {
    let mut node = Node::new(on());
    node.read(&[thing("x")]);
    let (asked_at, sightings) = (node.now, vec![thing("x")]);
    let old = Reading { class: Class::Instance, asked_at, sightings };
    for _ in 0..100 {
        node.now += secs(5);
        node.tracker.observe(&old, &node.settings, node.now);
    }
    let orphan = node.orphan("x").unwrap();
    assert_eq!((orphan.state, orphan.remaining), ("orphaned-unknown", secs(300)));
    for _ in 0..100 {
        node.now += secs(61);
        node.read(&[thing("x")]);
    }
    assert_eq!(node.orphan("x").unwrap().remaining, secs(300), "anything may have been between the two");
    node.now += secs(60);
    node.read(&[thing("x")]);
    assert_eq!(node.orphan("x").unwrap().remaining, secs(240));
}

#[test]
fn o5_what_was_confirmed_survives_the_agent_and_its_absence_confirms_nothing() {
    let mut node = Node::new(on());
    node.read(&[thing("x")]);
    node.run(&[thing("x")], secs(250));
    node.restart();
    node.now += secs(86_400);
    node.read(&[thing("x")]);
    let remaining = node.orphan("x").unwrap().remaining;
    assert!((secs(50)..=secs(55)).contains(&remaining), "{remaining:?}");
    node.run(&[thing("x")], remaining);
    assert_eq!(node.signalled, []);
    node.run(&[thing("x")], secs(5));
    assert_eq!(node.signalled.len(), 1);
}

#[test]
fn o5_a_new_agent_cleans_nothing_before_it_has_read_twice_and_looked_again() {
    let mut node = Node::new(on());
    node.run(&[thing("x")], secs(300));
    node.settings.grace = secs(100);
    node.restart();
    node.read(&[thing("x")]);
    assert_eq!(node.signalled, []);
    node.run(&[thing("x")], secs(5));
    assert_eq!(node.signalled.len(), 1);
}

#[test]
fn o5_progress_is_written_in_batches_and_changes_at_once() {
    let mut node = Node::new(on());
    let mut writes = 0;
    for second in 0..100 {
        node.now += secs(1);
        node.read(&[thing("x"), thing("y")]);
        writes += usize::from(node.saved.take().is_some());
        assert!(second > 0 || writes == 1, "a new orphan is written at once");
    }
    assert!(writes <= 21, "{writes}");
    node.tracker.not_saved();
    assert!(node.tracker.save(node.now).is_some(), "what was not written is written");
}

#[test]
fn o5_an_owner_that_the_last_look_finds_is_written_too() {
    let mut node = Node::new(on());
    node.settings.auto_cleanup.clear();
    node.run(&[thing("x")], secs(310));
    node.settings = on();
    node.now += secs(1);
    let last = claimed(thing("x"), Claim::Claimed);
    assert!(!node.tracker.confirm(&last, node.now, &node.settings, node.now));
    // An agent that begins here must not find the old time and count on.
    assert_eq!(node.tracker.save(node.now).unwrap().orphans, []);
}

#[test]
fn o5_where_the_history_is_lost_what_is_found_unclaimed_is_held() {
    let mut node = Node::new(Settings { grace: secs(0), ..on() });
    node.tracker = Tracker::with_lost_history();
    node.run(&[claimed(thing("x"), Claim::Unknown), thing("y")], secs(10));
    assert_eq!(node.saved, None, "it is not replaced before all is known");
    node.run(&[thing("x"), thing("y")], secs(600));
    assert_eq!(node.signalled, []);
    assert_eq!(node.orphan("x").unwrap().state, "orphaned-held");
    let x = thing("x").subject;
    assert!(node.tracker.release(&x));
    node.run(&[thing("x"), thing("y")], secs(10));
    assert_eq!(node.signalled.iter().map(|(_, subject)| subject).collect::<Vec<_>>(), [&x]);
}

#[test]
fn o6_without_grace_two_consecutive_answers_are_needed() {
    let mut node = Node::new(Settings { grace: secs(0), ..on() });
    for _ in 0..100 {
        node.now += secs(5);
        node.read(&[thing("x")]);
        node.now += secs(5);
        node.read(&[claimed(thing("x"), Claim::Unknown)]);
    }
    assert_eq!(node.signalled, [], "every second answer was partial");
    node.now += secs(5);
    node.read(&[thing("x")]);
    assert_eq!(node.signalled, []);
    node.read(&[thing("x")]);
    assert_eq!(node.signalled, [], "the same answer twice is one");
    node.now += secs(5);
    node.read(&[thing("x")]);
    assert_eq!(node.signalled.len(), 1);
}

#[test]
fn o7_what_is_on_its_way_or_has_no_identity_is_never_an_orphan() {
    let mut exempt = thing("x");
    exempt.standing = Standing::Exempt;
    let mut nobody = thing("y");
    nobody.subject.uuid = Uuid::nil();
    let mut node = Node::new(on());
    node.run(&[exempt.clone(), nobody], secs(3000));
    assert_eq!(node.tracker.orphans(&node.settings, node.now).count(), 0);
    node.read(&[thing("x")]);
    node.run(&[thing("x")], secs(299));
    node.run(&[exempt], secs(3000));
    assert_eq!(node.tracker.orphans(&node.settings, node.now).count(), 0);
    assert_eq!(node.signalled, []);
}

#[test]
fn o8_another_creation_of_the_same_name_is_another_thing() {
    let mut node = Node::new(on());
    node.read(&[thing("x")]);
    node.run(&[thing("x")], secs(299));
    let mut again = thing("x");
    again.subject.uuid = Uuid::from_u128(2);
    node.run(std::slice::from_ref(&again), secs(299));
    assert_eq!(node.signalled, []);
    // Between the mark and the last look, too.
    node.now += secs(5);
    let reading = Reading { class: Class::Instance, asked_at: node.now, sightings: vec![again.clone()] };
    node.tracker.observe(&reading, &node.settings, node.now);
    assert_eq!(node.tracker.due(&node.settings, node.now), [again.subject]);
    let mut newer = thing("x");
    newer.subject.uuid = Uuid::from_u128(3);
    assert!(!node.tracker.confirm(&newer, node.now + secs(1), &node.settings, node.now + secs(1)));
}

#[test]
fn the_last_look_decides() {
    for (claim, standing, cleaned) in [
        (Claim::Unclaimed, Standing::Idle, true),
        (Claim::Claimed, Standing::Idle, false),
        (Claim::Unknown, Standing::Idle, false),
        (Claim::Unclaimed, Standing::Exempt, false),
        (Claim::Unclaimed, Standing::Busy("a client".into()), false),
        (Claim::Unclaimed, Standing::Kept("it may be".into()), false),
    ] {
        let mut node = Node::new(on());
        node.settings.auto_cleanup.clear();
        node.run(&[thing("x")], secs(310));
        node.settings = on();
        let last = Sighting { claim, standing, ..thing("x") };
        assert_eq!(node.tracker.due(&node.settings, node.now), [thing("x").subject]);
        assert!(!node.tracker.confirm(&last, node.now, &node.settings, node.now), "not newer than the first");
        node.now += secs(1);
        assert_eq!(node.tracker.confirm(&last, node.now, &node.settings, node.now), cleaned, "{last:?}");
        assert_eq!(node.tracker.due(&node.settings, node.now), [], "{last:?}");
    }
}

#[test]
fn o9_a_person_need_not_wait_and_is_refused_what_is_claimed() {
    let mut node = Node::new(Settings::default());
    let x = thing("x");
    for claim in [Claim::Claimed, Claim::Unknown] {
        assert!(node.tracker.delete(&claimed(x.clone(), claim), node.now).is_err());
    }
    let busy = Sighting { standing: Standing::Exempt, ..x.clone() };
    assert!(node.tracker.delete(&busy, node.now).is_err());
    assert_eq!(node.tracker.delete(&x, node.now), Ok(()));
    assert_eq!(node.orphan("x").unwrap().state, "cleaning");
    node.now += secs(1);
    node.read(&[]);
    assert_eq!(node.tracker.stats().totals[&Class::Instance].cleaned, 1);
}

#[test]
fn o10_what_is_in_use_is_reported_as_busy_and_never_cleaned_by_itself() {
    let busy = Sighting { standing: Standing::Busy("1 client is connected".into()), ..thing("x") };
    let mut node = Node::new(on());
    node.run(std::slice::from_ref(&busy), secs(3000));
    let orphan = node.orphan("x").unwrap();
    assert_eq!(orphan.state, "orphaned-busy");
    assert_eq!(orphan.reason, "1 client is connected; no record");
    assert_eq!(node.signalled, []);
    node.run(&[thing("x")], secs(5));
    assert_eq!(node.signalled.len(), 1, "nobody uses it any more, and its time is over");
}

#[test]
fn o13_one_line_for_each_change_and_at_most_one_a_minute() {
    let mut node = Node::new(Settings { grace: secs(10_000), ..on() });
    for turn in 0..720 {
        node.now += secs(5);
        let claim = [Claim::Unclaimed, Claim::Claimed, Claim::Unknown][turn % 3];
        node.read(&[claimed(thing("x"), claim), thing("steady")]);
    }
    let lines = |name: &str| node.notices.iter().filter(|n| n.subject.name == name).count();
    assert_eq!(lines("steady"), 1);
    assert!((10..=61).contains(&lines("x")), "{}", lines("x"));
    assert!(node.notices.iter().all(|notice| notice.from != notice.to));
}

#[test]
fn o13_numbers_say_how_many_in_which_state_how_old_and_what_became_of_them() {
    let mut node = Node::new(on());
    let busy = Sighting { standing: Standing::Busy("in use".into()), ..thing("busy") };
    node.read(&[thing("x"), busy.clone()]);
    node.run(&[thing("x"), busy, claimed(thing("y"), Claim::Claimed)], secs(100));
    let stats = node.tracker.stats();
    assert_eq!(stats.count[&(Class::Instance, "orphaned")], 1);
    assert_eq!(stats.count[&(Class::Instance, "orphaned-busy")], 1);
    assert_eq!(stats.oldest[&Class::Instance], secs(100));
}

#[test]
fn o14_the_classes_have_switches_and_times_of_their_own_and_both_are_off() {
    assert_eq!(Settings::default().auto_cleanup, BTreeSet::new());
    let mut data = thing("d");
    data.subject.class = Class::ReplicaData;
    let both = [thing("x"), data.clone()];
    for class in Class::ALL {
        let mut node = Node::new(Settings { auto_cleanup: [class].into(), ..Settings::default() });
        node.run(&both, secs(3000));
        let classes: Vec<_> = node.signalled.iter().map(|(_, subject)| subject.class).collect();
        assert_eq!(classes, [class]);
    }
    let mut node = Node::new(on());
    node.run(&[thing("x")], secs(200));
    node.run(&both, secs(200));
    assert_eq!(node.signalled.len(), 1, "the process has no time to give to the data");
}

fn many(count: usize, orphans: usize) -> Vec<Sighting> {
    let claim = |index| if index < orphans { Claim::Unclaimed } else { Claim::Claimed };
    (0..count).map(|index| claimed(thing(&format!("i{index:03}")), claim(index))).collect()
}

#[test]
fn o15_many_orphans_within_one_grace_period_are_all_held() {
    for (count, orphans, held) in
        [(3, 3, false), (4, 4, true), (15, 4, true), (100, 20, false), (100, 21, true)]
    {
        let mut node = Node::new(on());
        node.read(&many(count, 0));
        // Not all at once: one after the other within the grace period.
        for turned in 1..=orphans {
            node.run(&many(count, turned), secs(1));
        }
        node.run(&many(count, orphans), secs(1000));
        let signalled = if held { 0 } else { orphans };
        assert_eq!(node.signalled.len(), signalled, "{orphans} of {count}");
        assert_eq!(node.orphan("i000").unwrap().state == "orphaned-held", held);
    }
}

#[test]
fn o15_what_is_held_stays_held_until_a_person_says_so_or_it_is_claimed_again() {
    let mut node = Node::new(on());
    node.run(&many(10, 5), secs(400));
    node.restart();
    node.run(&many(10, 5), secs(400));
    assert_eq!(node.signalled, [], "also over a restart");
    node.run(&many(10, 1), secs(400));
    assert_eq!(node.signalled, [], "one is left, and nobody has said anything");
    node.run(&many(10, 2), secs(400));
    assert_eq!(node.signalled, [], "one more while one is held is held, too");
    assert!(node.tracker.release(&many(1, 1)[0].subject));
    node.run(&many(10, 5), secs(400));
    let names: Vec<_> = node.signalled.iter().map(|(_, subject)| subject.name.as_str()).collect();
    assert_eq!(names, ["i000"], "the breaker does not take a person's word back");
    let mut node = Node::new(on());
    node.run(&many(10, 5), secs(100));
    node.run(&many(10, 0), secs(5));
    node.run(&many(10, 2), secs(310));
    assert_eq!(node.signalled.len(), 2, "all were claimed again: it is as it was before");
}

#[test]
fn a_person_may_hold_one_orphan_and_release_it() {
    let mut node = Node::new(on());
    node.read(&[thing("x")]);
    assert!(node.tracker.hold(&thing("x").subject));
    assert!(!node.tracker.hold(&thing("y").subject), "there is no such orphan");
    node.run(&[thing("x")], secs(1000));
    node.restart();
    node.run(&[thing("x")], secs(1000));
    assert_eq!(node.signalled, []);
    assert!(node.tracker.release(&thing("x").subject));
    node.run(&[thing("x")], secs(5));
    assert_eq!(node.signalled.len(), 1);
}

#[test]
fn settings_count_from_the_moment_they_are_given() {
    let mut node = Node::new(on());
    node.run(&[thing("x")], secs(250));
    node.settings.grace = secs(1000);
    node.run(&[thing("x")], secs(600));
    assert_eq!(node.signalled, []);
    node.settings.grace = secs(10);
    node.run(&[thing("x")], secs(5));
    assert_eq!(node.signalled.len(), 1);
}

#[test]
fn what_cannot_be_cleaned_is_tried_again_later() {
    let mut node = Node::new(on());
    node.run(&[thing("x")], secs(310));
    let x = thing("x").subject;
    node.tracker.failed(&x, "another file system", node.now);
    assert!(node.orphan("x").unwrap().reason.contains("another file system"));
    node.run(&[thing("x")], secs(55));
    assert_eq!(node.signalled.len(), 1);
    node.run(&[thing("x")], secs(10));
    assert_eq!(node.signalled.len(), 2);
}

/// A node with a volume whose third replica was removed, and its directories.
struct Home {
    record: VolumeRecord,
    instances: BTreeMap<InstanceName, Instance>,
    copies: Vec<Copy>,
}

impl Home {
    fn new() -> Self {
        let mut record = record("demo", "node-a", 3);
        record.spec.replicas.pop();
        record.status.configured = [1, 2].map(ReplicaId).into_iter().collect();
        record.status.view.members = record.status.configured;
        let copies = (1..=3).map(|id| Copy {
            directory: format!("demo.r{id}"),
            volume_name: record.name.clone(),
            volume: record.id,
            replica: ReplicaId(id),
            lineage: record.status.lineage,
            order: record.status.view.order(),
            whole: true,
            in_place: true,
            marked: false,
            changing: false,
        });
        Self { copies: copies.collect(), record, instances: BTreeMap::new() }
    }

    fn standing(&self) -> Standing {
        let state = RecordState::Readable(Box::new(self.record.clone()));
        self.third(&Records::Known([("demo".to_owned(), state)].into())).standing
    }

    fn third(&self, records: &Records) -> Sighting {
        self.third_in(records, self.record.status.incarnation)
    }

    fn third_in(&self, records: &Records, incarnation: Incarnation) -> Sighting {
        let (node, absent): (NodeName, _) = ("node-a".parse().unwrap(), BTreeMap::new());
        let (missing, elsewhere) = (BTreeSet::new(), Elsewhere::default());
        let foreign = Foreign::none();
        let world = World {
            node: &node,
            now: secs(0),
            records,
            foreign: &foreign,
            instances: &self.instances,
            absent: &absent,
            missing: &missing,
            incarnation,
            elsewhere: &elsewhere,
        };
        data(world, &self.copies).into_iter().find(|s| s.subject.name == "demo.r3").unwrap()
    }

    fn run(&mut self, name: &str, status: pb::InstanceStatus) {
        let mut instance = Instance::new(InstanceUuid::random(), self.record.id, 0, Life::Pending, secs(0));
        instance.handle(Event::Status(Box::new(status)), secs(0));
        self.instances.insert(name.parse().unwrap(), instance);
    }
}

#[test]
fn d7_data_that_may_be_a_last_copy_is_kept() {
    assert_eq!(Home::new().standing(), Standing::Idle, "r1 and r2 are whole");
    let spoil: [fn(&mut Home); 7] = [
        |h| h.copies.truncate(3),
        |h| h.copies[0].whole = false,
        |h| h.copies[0].lineage = holdfast_proto::ids::Lineage::random(),
        |h| h.copies[0].order.0 = holdfast_proto::ids::Generation(0),
        |h| h.copies[0].volume = VolumeId::random(),
        |h| h.record.status.view.members = [ReplicaId(2)].into_iter().collect(),
        |h| h.copies[2].order.0 = holdfast_proto::ids::Generation(9),
    ];
    for (case, spoil) in spoil.into_iter().enumerate() {
        let mut home = Home::new();
        for copy in &mut home.copies {
            copy.order.0 = holdfast_proto::ids::Generation(3);
        }
        home.record.status.view.generation = holdfast_proto::ids::Generation(3);
        home.copies[1].whole = false;
        spoil(&mut home);
        let kept = matches!(home.standing(), Standing::Kept(_));
        assert_eq!(kept, case > 0, "case {case}");
    }
    let mut marked = Home::new();
    marked.copies[2].marked = true;
    assert!(matches!(marked.standing(), Standing::Kept(_)), "a person wants it kept");
    let mut never = Home::new();
    never.record.spec.next_replica_id = 3;
    assert!(matches!(never.standing(), Standing::Kept(_)), "the record never had it");
}

#[test]
fn d7_copies_of_a_renamed_node_do_not_vouch_for_each_other() {
    let mut home = Home::new();
    let third = || Home::new().copies[2].replica;
    home.record.spec.replicas.iter_mut().for_each(|spec| spec.node = "before".parse().unwrap());
    assert!(matches!(home.standing(), Standing::Kept(_)), "r1 and r2 are claimed on a node of another name");
    // Nor does the one that the record has there.
    let mut all = Home::new();
    let mut spec = all.record.spec.replicas[0].clone();
    (spec.id, spec.node) = (third(), "before".parse().unwrap());
    all.record.spec.replicas.push(spec);
    let Standing::Kept(why) = all.standing() else { panic!("{:?}", all.standing()) };
    assert!(why.contains("renamed"), "{why}");
}

#[test]
fn d7_a_copy_that_is_in_doubt_itself_vouches_for_none() {
    let spoil: [fn(&mut Home); 8] = [
        |h| {
            let leaving = h.record.spec.replicas.remove(0);
            h.record.spec.leaving.push(leaving);
        },
        |h| h.copies[0].in_place = false,
        |h| h.copies[0].changing = true,
        |h| h.record.status.clean = false,
        |h| h.record.status.incarnation = Incarnation::random(),
        |h| h.copies[2].lineage = holdfast_proto::ids::Lineage::random(),
        |h| h.record.status.lineage = holdfast_proto::ids::Lineage::random(),
        |h| h.copies[0].volume_name = "other".parse().unwrap(),
    ];
    for (case, spoil) in spoil.into_iter().enumerate() {
        let mut home = Home::new();
        home.copies[1].whole = false;
        assert_eq!(home.standing(), Standing::Idle, "r1 is whole");
        let before = home.record.status.incarnation;
        spoil(&mut home);
        let state = RecordState::Readable(Box::new(home.record.clone()));
        let records = Records::Known([("demo".to_owned(), state)].into());
        let seen = home.third_in(&records, before).standing;
        assert!(matches!(seen, Standing::Kept(_)), "case {case}");
    }
}

#[test]
fn d7_copies_of_a_volume_go_one_at_a_time() {
    let copy = |name: &str| {
        let subject = Subject { class: Class::ReplicaData, name: name.to_owned(), uuid: Uuid::from_u128(1) };
        Sighting { subject, ..thing(name) }
    };
    let both = [copy("x"), copy("y")];
    let mut node = Node::new(on());
    node.settings.auto_cleanup.clear();
    node.run(&both, secs(310));
    node.settings = on();
    let due = node.tracker.due(&node.settings, node.now);
    assert_eq!(due, [both[0].subject.clone()], "one of them");
    node.now += secs(1);
    let asked_at = node.now;
    assert!(node.tracker.confirm(&both[0], asked_at, &node.settings, node.now));
    assert!(!node.tracker.confirm(&both[1], asked_at, &node.settings, node.now), "by the same answer");
    assert_eq!(node.tracker.due(&node.settings, node.now), [], "the first is on its way");
    node.tracker.cleaned(&both[0].subject);
    assert!(!node.tracker.confirm(&both[1], asked_at, &node.settings, node.now), "it was asked for before");
    node.now += secs(1);
    assert!(node.tracker.confirm(&both[1], node.now, &node.settings, node.now));
}

#[test]
fn a_directory_that_is_made_before_its_record_is_no_orphan() {
    let mut home = Home::new();
    let nothing = Records::Known(BTreeMap::new());
    assert_eq!(home.third(&nothing).claim, Claim::Unclaimed);
    home.copies[2].changing = true;
    assert_eq!(home.third(&nothing).claim, Claim::Unknown, "its volume is being created");
    home.record.spec.replicas.push(holdfast_proto::record::ReplicaSpec {
        id: ReplicaId(3),
        node: "node-a".parse().unwrap(),
        disk: None,
        to_make: false,
        replaces: Default::default(),
        unknown: Default::default(),
    });
    let state = RecordState::Readable(Box::new(home.record.clone()));
    assert_eq!(home.third(&Records::Known([("demo".to_owned(), state)].into())).claim, Claim::Claimed);
}

#[test]
fn d7_of_a_served_volume_the_engine_knows_which_copies_are_healthy() {
    let told = |mode: &str| pb::InstanceStatus {
        phase: "running".into(),
        engine: Some(pb::EngineStatus {
            replicas: vec![pb::ReplicaState { id: 1, mode: mode.into(), ..Default::default() }],
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut home = Home::new();
    home.record.spec.attach = attached("demo", "node-a", 1).spec.attach;
    assert!(matches!(home.standing(), Standing::Kept(_)), "it is served, and nobody here knows how well");
    home.run("demo.engine", told("suspect"));
    assert!(matches!(home.standing(), Standing::Kept(_)));
    home.run("demo.engine", told("member"));
    assert_eq!(home.standing(), Standing::Idle);
    home.run("demo.r3", pb::InstanceStatus::default());
    assert_eq!(home.standing(), Standing::Busy("demo.r3 uses it".into()));
}

#[test]
fn d7_data_without_a_readable_record_is_never_cleaned() {
    let home = Home::new();
    let gone = home.third(&Records::Known(BTreeMap::new()));
    assert_eq!(gone.claim, Claim::Unclaimed);
    assert!(matches!(gone.standing, Standing::Kept(_)), "nobody can say whether there is another copy");
    let damaged = RecordState::Unreadable("damaged".into());
    let damaged = home.third(&Records::Known([("demo".to_owned(), damaged)].into()));
    assert_eq!(damaged.claim, Claim::Unknown);
    assert!(damaged.reason.contains("damaged"), "{}", damaged.reason);
    assert_eq!(home.third(&Records::Unavailable("away".into())).claim, Claim::Unknown);
}

#[test]
fn o7_only_an_instance_that_runs_can_be_cleaned_and_one_that_cannot_be_asked_is_unknown() {
    let node: NodeName = "node-a".parse().unwrap();
    let (nobody, absent) = (Records::Known(BTreeMap::new()), BTreeMap::new());
    let down = Life::Down { error: None, retry_at: secs(0) };
    for (state, claim, exempt) in [
        (Life::Pending, Some(Claim::Unclaimed), true),
        (Life::Starting, Some(Claim::Unclaimed), true),
        (Life::Stopping, Some(Claim::Unclaimed), true),
        (Life::Running, Some(Claim::Unclaimed), false),
        (Life::Unknown("silent".into()), Some(Claim::Unknown), false),
        (down, None, false),
    ] {
        let instance = Instance::new(InstanceUuid::random(), VolumeId::random(), 0, state.clone(), secs(0));
        let map = BTreeMap::from([("demo.r1".parse().unwrap(), instance)]);
        let (missing, elsewhere) = (BTreeSet::new(), Elsewhere::default());
        let foreign = Foreign::none();
        let world = World {
            node: &node,
            now: secs(0),
            records: &nobody,
            foreign: &foreign,
            instances: &map,
            absent: &absent,
            missing: &missing,
            incarnation: Incarnation::random(),
            elsewhere: &elsewhere,
        };
        let seen = instances(world);
        assert_eq!(seen.first().map(|sighting| sighting.claim), claim, "{state:?}");
        assert_eq!(seen.iter().any(|sighting| sighting.standing == Standing::Exempt), exempt, "{state:?}");
    }
}
