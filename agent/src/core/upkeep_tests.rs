use super::*;
use crate::core::instance::InstanceName;
use crate::core::records::RecordState;
use crate::core::testing::{attached, record};
use holdfast_proto::pb::instance as pb;
use holdfast_proto::record::ReplicaSet;

const WAIT: Duration = Duration::from_secs(600);
const GB: u64 = 1 << 30;

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn sight() -> Sight {
    Sight { room_bytes: 50 * GB, ..Sight::of(Standing::Live) }
}

/// Three replicas on a, b and c, attached on d, all healthy; e is another node.
struct Case {
    record: VolumeRecord,
    fleet: Fleet,
}

impl Case {
    fn new() -> Self {
        let mut record = attached("demo", "d", 3);
        let mut fleet: Fleet = ["a", "b", "c", "d", "e"].map(|name| (node(name), sight())).into();
        for (spec, name) in record.spec.replicas.iter_mut().zip(["a", "b", "c"]) {
            spec.node = node(name);
            fleet.get_mut(&spec.node).unwrap().directories.insert((record.id, spec.id), true);
        }
        record.spec.size_bytes = GB;
        fleet.get_mut(&node("d")).unwrap().engines.insert(record.id, record.status.configured);
        Self { record, fleet }
    }
    fn at(&mut self, name: &str) -> &mut Sight {
        self.fleet.get_mut(&node(name)).unwrap()
    }
    fn records(&self) -> Records {
        let state = RecordState::Readable(Box::new(self.record.clone()));
        Records::Known(BTreeMap::from([(self.record.name.to_string(), state)]))
    }
    fn plan(&self) -> Upkeep {
        plan(&self.records(), &self.fleet, WAIT)
    }
    /// From where to where replicas go.
    fn moves(&self) -> Vec<(u32, String)> {
        self.plan().moves.into_iter().map(|m| (m.replica.0, m.to.to_string())).collect()
    }
    fn why_stuck(&self) -> String {
        let upkeep = self.plan();
        assert_eq!(upkeep.moves, []);
        upkeep.stuck.into_values().collect::<Vec<_>>().join("; ")
    }
    fn reboot(&self, name: &str) -> Vec<String> {
        self.reboot_after(name, "z", &mut |_| unreachable!("nothing runs where it is asked"))
    }
    /// The same, asked on `here`, where instances answer like this.
    fn reboot_after(
        &self,
        name: &str,
        here: &str,
        answer: &mut dyn FnMut(&InstanceName) -> Result<pb::InstanceStatus, String>,
    ) -> Vec<String> {
        let (here, records) = (node(here), self.records());
        let asked = instances_to_ask(&node(name), &here, &records);
        let by = asked.into_iter().map(|name| (name.clone(), answer(&name))).collect();
        let answers = Answers { here: &here, by };
        let against = unsafe_to_reboot(&node(name), &records, &self.fleet, &answers);
        against.into_iter().map(|left| left.reason).collect()
    }
}

#[test]
fn a_replica_is_placed_elsewhere_once_its_node_is_gone_for_long_enough_and_not_before() {
    let mut case = Case::new();
    assert_eq!(case.plan(), Upkeep::default());
    case.at("c").standing = Standing::Gone(WAIT.checked_sub(Duration::from_secs(1)).unwrap());
    assert_eq!(case.plan(), Upkeep::default());
    case.at("c").standing = Standing::Gone(WAIT);
    // d has the engine and no copy; e has neither, and as few replicas and as much room.
    assert_eq!(case.moves(), [(3, "d".into())]);
    // Also of a volume that is detached: it is filled when somebody attaches it.
    case.record.spec.attach = None;
    assert_eq!(case.moves(), [(3, "d".into())]);
}

#[test]
fn a_forgotten_nodes_replicas_are_placed_elsewhere_at_once_and_an_unheard_of_nodes_never() {
    let mut case = Case::new();
    case.at("c").standing = Standing::Forgotten;
    assert_eq!(case.moves().len(), 1);
    case.fleet.remove(&node("c"));
    assert_eq!(case.plan(), Upkeep::default());
}

#[test]
fn a_copy_never_comes_beside_another_nor_to_a_node_that_takes_none_or_has_no_room() {
    let mut case = Case::new();
    case.at("c").standing = Standing::Forgotten;
    case.at("d").draining = true;
    assert_eq!(case.moves(), [(3, "e".into())]);
    // The volume may come to take 1 GB.
    case.at("e").room_bytes = GB - 1;
    let why = case.why_stuck();
    assert!(why.contains("2 have a copy, 1 are draining, 1 have less than"), "{why}");
    case.at("e").room_bytes = GB;
    assert_eq!(case.moves(), [(3, "e".into())]);
    case.at("e").standing = Standing::Gone(Duration::ZERO);
    assert!(case.why_stuck().contains("of 3 that are live"));
}

#[test]
fn the_node_with_the_fewest_replicas_is_chosen_then_the_one_with_the_most_room() {
    let mut case = Case::new();
    case.at("e").room_bytes += GB;
    let load = BTreeMap::from([(node("d"), 3), (node("e"), 4)]);
    assert_eq!(choose(&case.record, &case.fleet, &load), Ok(node("d")));
    assert_eq!(choose(&case.record, &case.fleet, &BTreeMap::new()), Ok(node("e")));
}

#[test]
fn r6_the_last_whole_copy_is_waited_for_and_never_replaced() {
    let mut case = Case::new();
    let id = case.record.id;
    case.at("d").engines.insert(id, ReplicaSet::new().with(ReplicaId(3)));
    for standing in [Standing::Gone(WAIT), Standing::Forgotten] {
        case.at("c").standing = standing;
        assert!(case.why_stuck().contains("r3 is the last copy that is known to be whole"));
    }
    // Where its engine is not heard, the record says.
    case.at("d").engines.clear();
    assert_eq!(case.moves().len(), 1);
    case.record.status.view.members = ReplicaSet::new().with(ReplicaId(3));
    assert!(case.why_stuck().contains("r3 is the last copy"));
    // One that is no member holds nothing that is missed.
    case.at("c").standing = Standing::Live;
    case.at("a").standing = Standing::Forgotten;
    assert_eq!(case.moves().len(), 1);
}

#[test]
fn replicas_of_a_volume_move_one_after_the_other() {
    let mut case = Case::new();
    case.at("c").standing = Standing::Forgotten;
    case.at("b").standing = Standing::Forgotten;
    assert_eq!(case.moves().len(), 1);
    // r4 takes r3's place, and is not configured yet.
    let mut spec = case.record.spec.replicas.remove(2);
    case.record.spec.leaving.push(spec.clone());
    (spec.id, spec.node, spec.replaces) = (ReplicaId(4), node("e"), ReplicaSet::new().with(ReplicaId(3)));
    case.record.spec.replicas.push(spec);
    assert!(case.why_stuck().contains("another replica of the volume is being replaced"));
    // Its own node goes too: it is what is replaced.
    case.at("b").standing = Standing::Live;
    case.at("e").standing = Standing::Forgotten;
    assert_eq!(case.moves(), [(4, "d".into())]);
    // It is a member, and r3 has left.
    case.at("b").standing = Standing::Forgotten;
    case.at("e").standing = Standing::Live;
    let now: ReplicaSet = [1, 2, 4].map(ReplicaId).into_iter().collect();
    (case.record.status.configured, case.record.status.view.members) = (now, now);
    assert_eq!(case.moves(), [(2, "d".into())]);
}

#[test]
fn where_most_nodes_are_gone_nothing_is_placed_elsewhere_but_what_a_person_gave_up() {
    let mut case = Case::new();
    for name in ["a", "b", "c"] {
        case.at(name).standing = Standing::Gone(WAIT);
    }
    assert!(case.why_stuck().contains("3 of 5 nodes are gone, which looks like a network that is cut"));
    case.at("a").standing = Standing::Live;
    assert_eq!(case.moves().len(), 1);
    case.at("b").standing = Standing::Forgotten;
    assert_eq!(case.moves().len(), 1);
}

#[test]
fn not_everything_moves_at_once() {
    let mut case = Case::new();
    case.at("c").standing = Standing::Forgotten;
    let named = |n: usize| {
        let mut record = case.record.clone();
        record.name = format!("v{n}").parse().unwrap();
        (record.name.to_string(), RecordState::Readable(Box::new(record)))
    };
    let records = Records::Known((0..3 * MOVES_AT_ONCE).map(named).collect());
    let moves = plan(&records, &case.fleet, WAIT).moves;
    assert_eq!(moves.len(), MOVES_AT_ONCE);
    let to_d = moves.iter().filter(|m| m.to == node("d")).count();
    assert_eq!(to_d, MOVES_AT_ONCE / 2, "they are spread");
}

#[test]
fn a_node_that_is_drained_gives_its_replicas_away_where_an_engine_can_fill_them() {
    let mut case = Case::new();
    case.at("c").draining = true;
    assert_eq!(case.moves(), [(3, "d".into())]);
    case.record.spec.attach = None;
    assert!(case.why_stuck().contains("detached"));
    let mut case = Case::new();
    case.at("c").draining = true;
    case.at("d").standing = Standing::Gone(Duration::ZERO);
    assert!(case.why_stuck().contains("the engine's node d is not there"));
}

#[test]
fn r5_a_drain_names_the_volume_whose_last_healthy_copy_is_there() {
    let mut case = Case::new();
    case.record.spec.attach = None;
    case.record.status.view.members = ReplicaSet::new().with(ReplicaId(3));
    case.at("c").draining = true;
    let left = left_on(&node("c"), &case.records(), &case.fleet, &case.plan().stuck);
    let [Left { volume, replica: Some(ReplicaId(3)), reason }] = &left[..] else { panic!("{left:?}") };
    assert_eq!(volume, "demo");
    assert!(reason.starts_with("the last healthy copy of the volume: the volume is detached"), "{reason}");
    // The engine's node has nothing but the engine.
    let case = Case::new();
    let left = left_on(&node("d"), &case.records(), &case.fleet, &BTreeMap::new());
    assert!(matches!(&left[..], [Left { replica: None, .. }]), "{left:?}");
    assert_eq!(left_on(&node("e"), &case.records(), &case.fleet, &BTreeMap::new()), []);
}

#[test]
fn r5_a_node_may_be_restarted_only_while_every_volume_with_a_part_there_is_healthy_elsewhere() {
    let mut case = Case::new();
    assert_eq!(case.reboot("c"), [""; 0]);
    assert_eq!(case.reboot("e"), [""; 0]);
    assert_eq!(case.reboot("d"), ["it is attached here; detach it, or attach it elsewhere"]);
    let key = (case.record.id, ReplicaId(2));
    case.at("b").directories.insert(key, false);
    assert_eq!(case.reboot("c"), ["r2 on node b is not healthy"]);
    assert_eq!(case.reboot("b"), [""; 0], "a restart of the sick one takes nothing away");
    // While it is detached nothing runs: a member whose directory is there.
    case.record.spec.attach = None;
    assert_eq!(case.reboot("c"), [""; 0]);
    case.record.status.clean = false;
    assert!(case.reboot("c")[0].contains("did not end cleanly"));
    case.record.status.clean = true;
    case.at("b").directories.clear();
    assert_eq!(case.reboot("c"), ["r2 on node b is not healthy"]);
    let mut case = Case::new();
    case.at("b").standing = Standing::Gone(Duration::ZERO);
    assert_eq!(case.reboot("c"), ["r2 on node b is not healthy"]);
    // What its engine does not count as a member is none, whatever the replica thinks of itself.
    let mut case = Case::new();
    let id = case.record.id;
    case.at("d").engines.insert(id, [1, 3].map(ReplicaId).into_iter().collect());
    assert_eq!(case.reboot("c"), ["r2 on node b is not healthy"]);
    case.at("d").engines.clear();
    assert_eq!(case.reboot("c"), ["r1 on node a is not healthy"], "nobody vouches for any");
    let mut case = Case::new();
    case.record = record("solo", "c", 1);
    assert_eq!(case.reboot("c"), ["no other node has a copy"]);
}

#[test]
fn what_cannot_be_read_is_against_every_restart_and_every_drain() {
    let state = RecordState::Unreadable("schema 9".into());
    let odd = Records::Known(BTreeMap::from([("odd".to_owned(), state)]));
    let fleet = Case::new().fleet;
    for records in [odd, Records::Unavailable("no answer".into())] {
        assert_eq!(
            unsafe_to_reboot(
                &node("a"),
                &records,
                &fleet,
                &Answers { here: &node("a"), by: BTreeMap::new() }
            )
            .len(),
            1
        );
        assert_eq!(left_on(&node("a"), &records, &fleet, &BTreeMap::new()).len(), 1);
        assert_eq!(plan(&records, &fleet, WAIT), Upkeep::default());
    }
}

#[test]
fn n3_a_move_that_was_made_is_not_due_again_however_old_the_plan_is() {
    let mut case = Case::new();
    case.at("c").draining = true;
    let plan = case.plan();
    let [wanted] = &plan.moves[..] else { panic!("{plan:?}") };
    let due = |case: &Case| is_due(&case.record, &case.fleet, WAIT, wanted);
    assert!(due(&case));
    let before = case.record.clone();
    let uuid = holdfast_proto::ids::InstanceUuid::random();
    crate::core::placement::want(&mut case.record, ReplicaId(4), uuid, &wanted.to, Some(wanted.replica));
    assert!(!due(&case), "it was made");
    let changes: [fn(&mut Case); 5] = [
        |case| case.record.id = VolumeId::random(),
        |case| case.record.spec.intent = Intent::Delete,
        |case| case.record.spec.replicas[2].node = node("e"),
        |case| case.record.spec.replicas[1].node = node("d"),
        |case| case.at("c").draining = false,
    ];
    for change in changes {
        case.record = before.clone();
        case.at("c").draining = true;
        assert!(due(&case));
        change(&mut case);
        assert!(!due(&case), "{:?}", case.record);
    }
}

/// What an engine says whose members are these.
fn engine_says(members: &[u32]) -> pb::InstanceStatus {
    let state = |id| pb::ReplicaState {
        id,
        mode: if members.contains(&id) { "member" } else { "suspect" }.to_owned(),
        ..Default::default()
    };
    let engine = pb::EngineStatus { replicas: (1..=3).map(state).collect(), ..Default::default() };
    pb::InstanceStatus { phase: "running".to_owned(), engine: Some(engine), ..Default::default() }
}

fn replica_says(mode: &str) -> pb::InstanceStatus {
    let replica = pb::ReplicaStatus { mode: mode.to_owned(), ..Default::default() };
    pb::InstanceStatus { phase: "running".to_owned(), replica: Some(replica), ..Default::default() }
}

#[test]
fn restart_rests_on_what_the_engine_answers_now() {
    let case = Case::new();
    let reboot = |answer: Result<pb::InstanceStatus, String>| {
        case.reboot_after("a", "d", &mut |name| {
            assert_eq!(name.to_string(), "demo.engine");
            answer.clone()
        })
    };
    assert_eq!(reboot(Ok(engine_says(&[1, 2, 3]))), [] as [&str; 0]);
    assert_eq!(reboot(Ok(engine_says(&[2, 3]))), [] as [&str; 0], "the one that goes may be anything");
    let said = reboot(Ok(engine_says(&[1, 2])));
    assert_eq!(said, ["demo.engine says now that r3 on node c is no member"]);
    let said = reboot(Ok(pb::InstanceStatus::default()));
    assert_eq!(said.len(), 1, "an answer that says nothing: {said:?}");
    let said = reboot(Err("no answer within 5s".to_owned()));
    assert!(
        said[0].contains("demo.engine on node d does not answer now") && said[0].contains("5s"),
        "{said:?}"
    );
}

#[test]
fn restart_rests_on_what_other_replicas_answer_now() {
    let case = Case::new();
    let reboot = |answer: Result<pb::InstanceStatus, String>| {
        case.reboot_after("a", "b", &mut |name| {
            assert_eq!(name.to_string(), "demo.r2");
            answer.clone()
        })
    };
    assert_eq!(reboot(Ok(replica_says("open"))), [] as [&str; 0]);
    assert_eq!(reboot(Ok(replica_says("faulted"))), ["demo.r2 says now that its data is faulted"]);
    assert!(reboot(Err("gone".to_owned()))[0].contains("demo.r2 on node b does not answer now"));
    let mut asked = 0;
    let said = case.reboot_after("b", "b", &mut |_| {
        asked += 1;
        Err("never".to_owned())
    });
    assert_eq!((said, asked), (Vec::<String>::new(), 0), "what goes is not asked");
}
