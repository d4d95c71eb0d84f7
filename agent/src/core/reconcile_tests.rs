use super::*;
use crate::core::instance::{Event, Kind};
use crate::core::records::RecordState;
use crate::core::testing::{attached, record};
use proptest::prelude::*;

#[path = "reconcile_tests/other_nodes.rs"]
mod other_nodes;
#[path = "reconcile_tests/other_owners.rs"]
mod other_owners;

const fn secs(s: u64) -> Moment {
    Duration::from_secs(s)
}

/// A node on which time passes and processes come and go.
struct Node {
    name: NodeName,
    now: Moment,
    records: Records,
    foreign: Foreign,
    instances: BTreeMap<InstanceName, Instance>,
    absent: BTreeMap<InstanceName, String>,
    missing: BTreeSet<InstanceName>,
    incarnation: Incarnation,
    elsewhere: Elsewhere,
}

impl Node {
    fn new(records: &[VolumeRecord]) -> Self {
        let mut node = Self {
            name: "node-a".parse().unwrap(),
            now: secs(100),
            records: Records::Known(BTreeMap::new()),
            foreign: Foreign::none(),
            instances: BTreeMap::new(),
            absent: BTreeMap::new(),
            missing: BTreeSet::new(),
            incarnation: Incarnation::random(),
            elsewhere: Elsewhere::default(),
        };
        node.record_all(records);
        node
    }
    fn record_all(&mut self, records: &[VolumeRecord]) {
        let state = |r: &VolumeRecord| (r.name.to_string(), RecordState::Readable(Box::new(r.clone())));
        self.records = Records::Known(records.iter().map(state).collect());
    }
    fn plan(&self) -> Plan {
        plan(World {
            node: &self.name,
            now: self.now,
            records: &self.records,
            foreign: &self.foreign,
            instances: &self.instances,
            absent: &self.absent,
            missing: &self.missing,
            incarnation: self.incarnation,
            elsewhere: &self.elsewhere,
        })
    }
    /// The plan in words: `spawn demo.r1`, `stop demo.engine`, ...
    fn words(&self) -> Vec<String> {
        self.plan().actions.iter().map(|(_, action)| word(action)).collect()
    }
    /// Everything but the configurations, which repeat.
    fn changes(&self) -> Vec<String> {
        self.words().into_iter().filter(|w| !w.starts_with("configure")).collect()
    }
    fn feed(&mut self, name: &str, event: Event) {
        self.instances.get_mut(&name.parse().unwrap()).unwrap().handle(event, self.now);
    }
    fn run(&mut self, record: &VolumeRecord, name: &str) {
        let name: InstanceName = name.parse().unwrap();
        let uuid = record.status.instance_uuids.get(&name.to_string()).copied();
        let uuid = uuid.unwrap_or_else(InstanceUuid::random);
        let down = State::Down { error: None, retry_at: secs(0) };
        let mut instance = Instance::new(uuid, record.id, 0, down, self.now);
        instance.handle(Event::Spawning, self.now);
        self.instances.insert(name, instance);
    }
    fn run_ready(&mut self, record: &VolumeRecord, name: &str) {
        self.run(record, name);
        let mut status = pb::InstanceStatus { phase: "running".into(), ..Default::default() };
        match name.parse::<InstanceName>().unwrap().kind() {
            Kind::Engine => status.engine = Some(pb::EngineStatus::default()),
            Kind::Replica(id) => {
                let address = format!("127.0.0.1:{}", 20000 + id.0);
                let open = pb::ReplicaStatus { address, mode: "open".into(), ..Default::default() };
                status.replica = Some(open);
            }
        }
        self.feed(name, Event::Status(Box::new(status)));
    }
    fn run_all(&mut self, record: &VolumeRecord) {
        for spec in &record.spec.replicas {
            self.run_ready(record, &format!("{}.{}", record.name, spec.id));
        }
        self.run_ready(record, &format!("{}.engine", record.name));
    }
}

fn word(action: &Action) -> String {
    match action {
        Action::Spawn { name, .. } => format!("spawn {name}"),
        Action::ConfigureEngine { name, .. } | Action::ConfigureReplica { name } => {
            format!("configure {name}")
        }
        Action::Stop { name, drain: true, .. } => format!("drain {name}"),
        Action::Stop { name, .. } => format!("stop {name}"),
        Action::Retire { name } => format!("retire {name}"),
        Action::Trash { .. } => "trash".into(),
        Action::MakeDirectory { name, .. } => format!("make {name}"),
        Action::SayDetached { name, .. } => format!("say {name} is detached"),
        Action::Release { name, .. } => format!("release {name}"),
        Action::DeleteRecord { name, .. } => format!("delete {name}"),
    }
}

#[test]
fn attach_starts_replicas_first_and_the_engine_once_they_have_addresses() {
    let record = attached("demo", "node-a", 3);
    let mut node = Node::new(std::slice::from_ref(&record));
    assert_eq!(node.words(), ["spawn demo.r1", "spawn demo.r2", "spawn demo.r3"]);
    node.run_ready(&record, "demo.r1");
    node.run_ready(&record, "demo.r2");
    node.run(&record, "demo.r3");
    assert_eq!(node.words(), ["configure demo.r1", "configure demo.r2", "configure demo.r3"]);
    node.run_ready(&record, "demo.r3");
    assert_eq!(node.words().last().unwrap(), "spawn demo.engine");
    node.run(&record, "demo.engine");
    let plan = node.plan();
    let Some((_, Action::ConfigureEngine { replicas, .. })) = plan.actions.last() else { panic!("{plan:?}") };
    let addresses: Vec<_> = replicas.iter().map(|r| r.address.as_str()).collect();
    assert_eq!(addresses, ["127.0.0.1:20001", "127.0.0.1:20002", "127.0.0.1:20003"]);
    assert!(replicas.iter().all(|r| r.local && !r.absent));
    assert_eq!(node.changes(), Vec::<String>::new(), "the same again changes nothing");
}

#[test]
fn the_creation_that_the_record_names_is_spawned() {
    let record = attached("demo", "node-a", 1);
    let node = Node::new(std::slice::from_ref(&record));
    let plan = node.plan();
    let Some((_, Action::Spawn { uuid, volume_id, .. })) = plan.actions.first() else { panic!("{plan:?}") };
    assert_eq!(*uuid, record.status.instance_uuids.get("demo.r1").copied());
    assert_eq!(*volume_id, record.id);
}

#[test]
fn r1_attach_starts_degraded_when_a_replica_is_absent_or_fails_or_hangs() {
    let record = attached("demo", "node-a", 3);
    let mut node = Node::new(std::slice::from_ref(&record));
    node.absent.insert("demo.r1".parse().unwrap(), "missing: is the disk mounted?".into());
    node.run(&record, "demo.r2");
    node.feed("demo.r2", Event::Ended("exit code 1".into()));
    assert!(node.changes().contains(&"spawn demo.r2".into()), "at once the first time");
    node.feed("demo.r2", Event::Spawning);
    node.feed("demo.r2", Event::Ended("exit code 1".into()));
    node.run(&record, "demo.r3");
    assert_eq!(node.changes(), Vec::<String>::new(), "r3 may still tell its address");
    assert_eq!(node.plan().next_at, Some(secs(101)), "r2 is started again first");
    node.now += ADDRESS_WAIT;
    let changes = node.changes();
    assert_eq!(changes, ["spawn demo.r2", "spawn demo.engine"], "within 5 s, and nobody creates r1 again");
    node.run(&record, "demo.engine");
    let plan = node.plan();
    let Some((_, Action::ConfigureEngine { replicas, .. })) = plan.actions.last() else { panic!("{plan:?}") };
    assert!(replicas[0].absent && replicas[0].reason.contains("mounted"));
    assert!(!replicas[1].absent && replicas[1].address.is_empty());
}

#[test]
fn with_every_replica_absent_the_engine_still_says_so() {
    let record = attached("demo", "node-a", 2);
    let mut node = Node::new(std::slice::from_ref(&record));
    for name in ["demo.r1", "demo.r2"] {
        node.absent.insert(name.parse().unwrap(), "missing".into());
    }
    assert_eq!(node.words(), ["spawn demo.engine"]);
}

#[test]
fn a_replica_without_usable_data_is_not_waited_for() {
    let record = attached("demo", "node-a", 1);
    let mut node = Node::new(std::slice::from_ref(&record));
    node.run(&record, "demo.r1");
    let replica = pb::ReplicaStatus { mode: "absent".into(), ..Default::default() };
    let status = pb::InstanceStatus {
        phase: "running".into(),
        reason: "meta is damaged".into(),
        replica: Some(replica),
        ..Default::default()
    };
    node.feed("demo.r1", Event::Status(Box::new(status)));
    assert_eq!(node.changes(), ["spawn demo.engine"]);
}

#[test]
fn a_replica_whose_flush_failed_is_still_named_to_the_engine_which_fills_it_anew() {
    let record = attached("demo", "node-a", 2);
    let mut node = Node::new(std::slice::from_ref(&record));
    node.run_all(&record);
    let address = "127.0.0.1:20002".to_owned();
    let replica =
        pb::ReplicaStatus { mode: "faulted".into(), address: address.clone(), ..Default::default() };
    let status = pb::InstanceStatus {
        phase: "running".into(),
        reason: "fdatasync: EIO".into(),
        replica: Some(replica),
        ..Default::default()
    };
    node.feed("demo.r2", Event::Status(Box::new(status)));
    let plan = node.plan();
    let Some((_, Action::ConfigureEngine { replicas, .. })) = plan.actions.last() else { panic!("{plan:?}") };
    assert!(!replicas[1].absent, "{:?}", replicas[1]);
    assert_eq!(replicas[1].address, address);
}

#[test]
fn r7_a_failing_instance_is_started_again_for_ever_with_back_off() {
    let record = attached("demo", "node-a", 1);
    let mut node = Node::new(std::slice::from_ref(&record));
    node.run(&record, "demo.r1");
    node.feed("demo.r1", Event::Ended("killed by signal 9".into()));
    assert!(node.words().contains(&"spawn demo.r1".into()), "at once the first time");
    node.feed("demo.r1", Event::Spawning);
    for _ in 0..50 {
        node.feed("demo.r1", Event::Ended("exit code 1".into()));
        assert!(!node.words().contains(&"spawn demo.r1".into()));
        let next = node.plan().next_at.unwrap();
        assert!(next > node.now && next <= node.now + secs(30));
        node.now = next;
        assert!(node.words().contains(&"spawn demo.r1".into()));
        node.feed("demo.r1", Event::Spawning);
    }
}

#[test]
fn detach_drains_the_engine_before_any_replica_ends() {
    let mut record = attached("demo", "node-a", 2);
    let mut node = Node::new(std::slice::from_ref(&record));
    node.run_all(&record);
    record.spec.attach = None;
    node.record_all(std::slice::from_ref(&record));
    assert_eq!(node.words(), ["drain demo.engine"]);
    node.feed("demo.engine", Event::StopAsked);
    assert_eq!(node.words(), Vec::<String>::new(), "it is draining");
    node.feed("demo.engine", Event::Ended("exit code 0".into()));
    assert_eq!(node.words(), ["stop demo.r1", "stop demo.r2"]);
    for name in ["demo.r1", "demo.r2"] {
        node.feed(name, Event::StopAsked);
        node.feed(name, Event::Ended("exit code 0".into()));
    }
    assert_eq!(node.plan(), Plan::default());
}

#[test]
fn an_engine_that_cannot_be_asked_keeps_its_replicas() {
    let mut record = attached("demo", "node-a", 2);
    let mut node = Node::new(std::slice::from_ref(&record));
    node.run_all(&record);
    record.spec.attach = None;
    node.record_all(std::slice::from_ref(&record));
    // It may serve for all that is known: it ends first, by a signal if nothing else reaches it.
    node.feed("demo.engine", Event::Lost("its control socket is silent".into()));
    assert!(node.plan().blocked["demo"].contains("silent"));
    assert_eq!(node.words(), ["drain demo.engine"]);
    node.feed("demo.engine", Event::StopAsked);
    node.feed("demo.engine", Event::Lost("its control socket is silent".into()));
    let plan = node.plan();
    assert_eq!(plan.actions, [], "it was asked once, and no replica ends before it");
    assert!(plan.blocked["demo"].contains("silent"));
}

#[test]
fn absence_stops_nothing() {
    let record = attached("demo", "node-a", 3);
    let mut node = Node::new(std::slice::from_ref(&record));
    node.run_all(&record);
    let damaged = RecordState::Unreadable("damaged".into());
    for records in [
        Records::Known(BTreeMap::new()),
        Records::Unavailable("the disk is gone".into()),
        Records::Known(BTreeMap::from([("demo".into(), damaged)])),
    ] {
        node.records = records;
        assert_eq!(node.plan(), Plan::default());
    }
}

#[test]
fn a_record_that_is_not_understood_leaves_all_as_it_is() {
    let record = attached("demo", "node-a", 3);
    let mut node = Node::new(std::slice::from_ref(&record));
    node.run_all(&record);
    let needs = serde_json::json!({"requires": ["tomorrow"]});
    let newer = RecordState::Unreadable(crate::core::features::check(&needs).unwrap_err());
    node.records = Records::Known(BTreeMap::from([("demo".into(), newer)]));
    assert_eq!(node.plan(), Plan::default());
    for name in ["demo.r2", "demo.engine"] {
        node.feed(name, Event::Ended("killed by signal 9".into()));
        assert_eq!(node.plan(), Plan::default(), "{name} is not started again");
    }
    node.record_all(std::slice::from_ref(&record));
    assert!(node.words().contains(&"spawn demo.r2".into()), "it is understood again");
}

#[test]
fn another_creation_under_the_name_is_left_alone_and_reported() {
    let record = attached("demo", "node-a", 1);
    let mut node = Node::new(std::slice::from_ref(&record));
    let mut stranger = record.clone();
    stranger.status.instance_uuids.clear();
    node.run_ready(&stranger, "demo.r1");
    let plan = node.plan();
    assert!(!plan.actions.iter().any(|(_, a)| word(a).ends_with("demo.r1")), "{plan:?}");
    let said = &plan.blocked["demo"];
    assert!(said.contains("taken") && said.contains("`holdfast instance stop demo.r1 --uuid "), "{said}");
    node.feed("demo.r1", Event::Ended("exit code 0".into()));
    assert!(node.words().contains(&"spawn demo.r1".into()), "nothing runs there any more");
}

#[test]
fn a_detached_volumes_stranger_is_not_stopped() {
    let record = record("demo", "node-a", 1);
    let mut node = Node::new(std::slice::from_ref(&record));
    let mut stranger = record.clone();
    stranger.status.instance_uuids.clear();
    node.run_ready(&stranger, "demo.r1");
    assert_eq!(node.plan().actions, []);
    let mut other = crate::core::testing::record("demo", "node-a", 1);
    other.status.instance_uuids.clone_from(&record.status.instance_uuids);
    node.run_ready(&other, "demo.r1");
    assert_eq!(node.plan().actions, [], "another volume's instance under the same name");
}

#[test]
fn a_fenced_engine_is_fenced_for_good_and_ends_with_the_detachment() {
    let mut record = attached("demo", "node-a", 1);
    let mut node = Node::new(std::slice::from_ref(&record));
    node.run_all(&record);
    let engine = pb::EngineStatus { fenced: true, ..Default::default() };
    let status = pb::InstanceStatus { phase: "running".into(), engine: Some(engine), ..Default::default() };
    node.feed("demo.engine", Event::Status(Box::new(status)));
    assert_eq!(node.changes(), Vec::<String>::new(), "two that took it from each other would never end");
    assert!(node.plan().blocked["demo"].contains("detach and attach"));
    record.spec.attach = None;
    node.record_all(std::slice::from_ref(&record));
    assert_eq!(node.changes(), ["drain demo.engine"]);
}

#[test]
fn delete_ends_everything_and_keeps_the_data() {
    let mut record = attached("demo", "node-a", 1);
    let mut node = Node::new(std::slice::from_ref(&record));
    node.run_all(&record);
    record.spec.attach = None;
    record.spec.intent = Intent::Delete;
    node.record_all(std::slice::from_ref(&record));
    assert_eq!(node.words(), ["drain demo.engine"]);
    node.feed("demo.engine", Event::StopAsked);
    node.feed("demo.engine", Event::Ended("exit code 0".into()));
    assert_eq!(node.words(), ["stop demo.r1"]);
    node.feed("demo.r1", Event::StopAsked);
    node.feed("demo.r1", Event::Ended("exit code 0".into()));
    assert_eq!(node.words(), ["retire demo.r1", "retire demo.engine", "delete demo"]);
}

#[test]
fn d1_purge_moves_exactly_its_own_data_before_the_record_goes() {
    let mut record = record("demo", "node-a", 2);
    record.status.generation = Generation(7);
    record.spec.intent = Intent::Purge(purge_intent(&record));
    let node = Node::new(std::slice::from_ref(&record));
    assert_eq!(node.words(), ["trash", "delete demo"]);
    let trash = Action::Trash { volume_id: record.id, generation: Generation(7) };
    assert_eq!(node.plan().actions[0].1, trash);
}

#[test]
fn d2_an_intent_for_another_id_or_generation_or_malformed_is_ignored_and_reported() {
    let mut record = record("demo", "node-a", 2);
    record.status.generation = Generation(7);
    let right = purge_intent(&record);
    let stranger = VolumeId::random();
    for wrong in [
        format!("{}@6", record.id),
        format!("{}@8", record.id),
        format!("{stranger}@7"),
        format!(" {right}"),
        record.id.to_string(),
        "*".into(),
        String::new(),
    ] {
        record.spec.intent = Intent::Purge(wrong);
        let plan = Node::new(std::slice::from_ref(&record)).plan();
        assert_eq!(plan.actions, []);
        assert!(plan.blocked["demo"].starts_with("intent-ignored"), "{plan:?}");
    }
}

#[test]
fn only_what_concerns_this_node_is_done() {
    let mut record = attached("demo", "node-b", 3);
    let mut node = Node::new(std::slice::from_ref(&record));
    assert_eq!(node.plan(), Plan::default());
    record.spec.replicas[1].node = node.name.clone();
    node.record_all(std::slice::from_ref(&record));
    assert_eq!(node.words(), ["spawn demo.r2"], "its replica, not the engine");

    let here = attached("demo", "node-a", 1);
    let mut node = Node::new(std::slice::from_ref(&here));
    node.run_all(&here);
    let mut moved = here.clone();
    moved.spec.attach.as_mut().unwrap().node = "node-b".parse().unwrap();
    node.record_all(&[moved]);
    assert_eq!(node.changes(), ["drain demo.engine"], "a positive statement: attached elsewhere");
}

#[test]
fn an_engine_that_an_earlier_agent_drained_is_told_to_end() {
    let mut record = attached("demo", "node-a", 1);
    let mut node = Node::new(std::slice::from_ref(&record));
    node.run_all(&record);
    record.spec.attach = None;
    node.record_all(std::slice::from_ref(&record));
    let drained = pb::InstanceStatus { phase: "stopping".into(), ..Default::default() };
    node.feed("demo.engine", Event::Status(Box::new(drained)));
    assert_eq!(node.changes(), ["drain demo.engine"]);
    node.feed("demo.engine", Event::StopAsked);
    assert_eq!(node.changes(), [""; 0], "once");
    // Also where the volume is wanted again, and it has the name of the next engine.
    let mut again = attached("demo", "node-a", 1);
    (again.id, again.status.instance_uuids) = (record.id, record.status.instance_uuids.clone());
    again.status.instance_uuids.insert("demo.engine".into(), InstanceUuid::random());
    let mut node = Node::new(std::slice::from_ref(&record));
    node.run_all(&record);
    node.feed(
        "demo.engine",
        Event::Status(Box::new(pb::InstanceStatus { phase: "stopping".into(), ..Default::default() })),
    );
    node.record_all(std::slice::from_ref(&again));
    assert_eq!(node.changes(), ["drain demo.engine"]);
}

#[test]
fn an_unknown_replica_is_neither_started_again_nor_waited_for() {
    let record = attached("demo", "node-a", 2);
    let mut node = Node::new(std::slice::from_ref(&record));
    node.run_ready(&record, "demo.r1");
    node.run(&record, "demo.r2");
    node.feed("demo.r2", Event::Lost("silent".into()));
    assert_eq!(node.changes(), ["spawn demo.engine"]);
    assert!(node.plan().blocked["demo"].contains("demo.r2"));
}

#[test]
fn what_a_record_removed_or_moved_away_is_told_to_end_once_though_it_cannot_be_asked() {
    let mut record = attached("demo", "node-a", 2);
    let mut node = Node::new(std::slice::from_ref(&record));
    node.run_all(&record);
    let gone = record.spec.replicas.remove(1);
    record.status.configured = record.status.configured.without(gone.id);
    record.spec.attach.as_mut().unwrap().node = "node-b".parse().unwrap();
    node.record_all(std::slice::from_ref(&record));
    for name in ["demo.r2", "demo.engine"] {
        node.feed(name, Event::Lost("silent".into()));
    }
    assert_eq!(node.changes(), ["stop demo.r2", "drain demo.engine"]);
    for name in ["demo.r2", "demo.engine"] {
        node.feed(name, Event::StopAsked);
        node.feed(name, Event::Lost("silent".into()));
    }
    assert_eq!(node.changes(), Vec::<String>::new());
}

proptest! {
    /// Whatever the observation: the same plan twice, never a second copy, never an end that no record asks for.
    #[test]
    fn plans_are_repeatable_and_never_end_what_is_wanted(
        states in proptest::collection::vec(0_u8..7, 4),
        missing in proptest::collection::vec(any::<bool>(), 3),
        now in 0_u64..100,
    ) {
        let record = attached("demo", "node-a", 3);
        let mut node = Node::new(std::slice::from_ref(&record));
        let names = ["demo.r1", "demo.r2", "demo.r3", "demo.engine"];
        for (name, state) in names.iter().zip(&states) {
            if *state == 6 { continue; }
            node.now = secs(50);
            node.run_ready(&record, name);
            match state {
                0 => node.feed(name, Event::Ended("exit code 1".into())),
                1 => node.feed(name, Event::Lost("silent".into())),
                2 => node.feed(name, Event::StopAsked),
                _ => {}
            }
        }
        for (name, missing) in names.iter().zip(missing) {
            if missing { node.absent.insert(name.parse().unwrap(), "missing".into()); }
        }
        node.now = secs(now);
        prop_assert_eq!(node.plan(), node.plan());
        for (_, action) in node.plan().actions {
            match action {
                Action::Spawn { name, .. } => {
                    prop_assert!(node.instances.get(&name).is_none_or(Instance::is_down), "{}", name);
                }
                Action::ConfigureEngine { .. } | Action::ConfigureReplica { .. } => {}
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}

#[test]
fn replica_ids_need_not_be_consecutive() {
    let mut record = attached("demo", "node-a", 2);
    record.spec.replicas[0].id = ReplicaId(9);
    assert_eq!(Node::new(&[record]).words(), ["spawn demo.r9", "spawn demo.r2"]);
}

/// The record after `rN` was replaced by the next id, as far as the wish goes.
fn replaced(record: &VolumeRecord, old: u32) -> VolumeRecord {
    let mut record = record.clone();
    let at = record.spec.replicas.iter().position(|spec| spec.id == ReplicaId(old)).unwrap();
    let spec = record.spec.replicas.remove(at);
    let id = record.fresh_replica_id();
    record.spec.replicas.push(holdfast_proto::record::ReplicaSpec { id, ..spec.clone() });
    record.spec.leaving.push(spec);
    record.spec.next_replica_id = id.0 + 1;
    record
}

#[test]
fn a_replica_that_is_not_wanted_runs_while_it_is_configured_and_is_then_ended_and_forgotten() {
    let before = attached("demo", "node-a", 3);
    let mut node = Node::new(std::slice::from_ref(&before));
    node.run_all(&before);
    let mut record = replaced(&before, 2);
    node.record_all(std::slice::from_ref(&record));
    assert_eq!(node.changes(), ["spawn demo.r4"], "r2 serves until the engine has let it go");
    node.run_ready(&record, "demo.r4");
    let plan = node.plan();
    let Some((_, Action::ConfigureEngine { replicas, .. })) = plan.actions.last() else { panic!("{plan:?}") };
    let mut told: Vec<_> = replicas.iter().map(|replica| replica.id).collect();
    told.sort_unstable();
    assert_eq!(told, [1, 2, 3, 4], "the engine finds both");
    record.status.configured = [1, 3, 4].into_iter().map(ReplicaId).collect();
    node.record_all(std::slice::from_ref(&record));
    assert_eq!(node.changes(), ["stop demo.r2"]);
    node.feed("demo.r2", Event::StopAsked);
    node.feed("demo.r2", Event::Ended("exit code 0".into()));
    assert_eq!(node.changes(), ["retire demo.r2"]);
}

#[test]
fn an_unwanted_replica_that_the_record_never_gave_keeps_running() {
    // The record was restored from before r4 was added.
    let before = attached("demo", "node-a", 3);
    let mut node = Node::new(std::slice::from_ref(&before));
    node.run_all(&before);
    node.run_ready(&before, "demo.r4");
    assert_eq!(node.changes(), Vec::<String>::new());
}
