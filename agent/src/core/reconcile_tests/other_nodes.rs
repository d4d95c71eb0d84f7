//! Volumes with parts on other nodes.

use super::*;

/// The same volume with its second and third replica on other nodes.
fn spread(mut record: VolumeRecord) -> VolumeRecord {
    for (spec, node) in record.spec.replicas.iter_mut().zip(["node-a", "node-b", "node-c"]) {
        spec.node = node.parse().unwrap();
    }
    record
}

fn there(record: &VolumeRecord, node: &str, name: &str, live: bool) -> Elsewhere {
    use holdfast_proto::pb::inventory as ipb;
    let uuid = record.status.instance_uuids.get(name).copied().unwrap_or_else(InstanceUuid::random);
    let instance = ipb::Instance {
        name: name.to_owned(),
        uuid: uuid.0.as_bytes().to_vec(),
        volume_id: record.id.0.as_bytes().to_vec(),
        state: ipb::State::Running.into(),
        address: "10.0.0.2:20000".to_owned(),
        ..Default::default()
    };
    crate::core::testing::elsewhere(node, live, vec![instance], &[])
}

#[test]
fn a_directory_is_made_only_where_the_record_proves_that_nothing_is_missed_by_it() {
    let mut record = record("demo", "node-a", 2);
    record.spec.replicas[1].to_make = true;
    let incarnation = record.status.incarnation;
    let may = |change: fn(&mut VolumeRecord)| {
        let mut record = record.clone();
        change(&mut record);
        may_make_directory(&record, ReplicaId(2), incarnation)
    };
    assert_eq!(may(|_| {}), Some(false), "nobody was ever handed the volume");
    assert_eq!(
        may(|r| r.spec.replicas[1].to_make = false),
        None,
        "it was made once, and is never made again"
    );
    assert_eq!(
        may(|r| r.status.generation = Generation(1)),
        None,
        "it may be served with it: one that is missing was lost"
    );
    let served_without = |r: &mut VolumeRecord| {
        r.status.generation = Generation(1);
        r.status.view.members = [1].into_iter().map(ReplicaId).collect();
    };
    assert_eq!(
        may(served_without),
        Some(true),
        "its node was away when the volume was made, and it is filled"
    );
    let served_in_another_life = |r: &mut VolumeRecord| {
        r.status.generation = Generation(1);
        r.status.view.members = [1].into_iter().map(ReplicaId).collect();
        r.status.incarnation = Incarnation::random();
    };
    assert_eq!(may(served_in_another_life), None, "the registry was restored since");
    assert_eq!(
        may(|r| r.status.incarnation = Incarnation::random()),
        None,
        "the registry was restored since"
    );
    assert_eq!(may(|r| r.status.view.members = [1].into_iter().map(ReplicaId).collect()), None);
    assert_eq!(may(|r| r.spec.intent = Intent::Delete), None);
    let joins = |r: &mut VolumeRecord| {
        r.status.generation = Generation(7);
        r.status.configured = [1].into_iter().map(ReplicaId).collect();
    };
    assert_eq!(may(joins), Some(true), "it joins, and is filled first");
    assert_eq!(may(|r| r.spec.replicas.truncate(1)), None, "it is not wanted");
}

#[test]
fn a_directory_that_is_there_is_noted_before_its_replica_runs() {
    // It was made, the registry went away, and the volume was attached elsewhere meanwhile.
    let mut record = spread(attached("demo", "node-b", 3));
    record.spec.replicas[0].to_make = true;
    record.status.generation = Generation(1);
    let mut node = Node::new(std::slice::from_ref(&record));
    node.incarnation = record.status.incarnation;
    assert_eq!(node.words(), ["make demo.r1"], "else one that is lost later would count as never made");
}

#[test]
fn a_node_makes_the_directories_of_its_own_replicas_before_anything_runs() {
    let mut record = spread(record("demo", "node-a", 3));
    for spec in &mut record.spec.replicas {
        spec.to_make = true;
    }
    let mut node = Node::new(std::slice::from_ref(&record));
    node.incarnation = record.status.incarnation;
    for name in ["demo.r1", "demo.r2"] {
        node.absent.insert(name.parse().unwrap(), "it is missing".into());
        node.missing.insert(name.parse().unwrap());
    }
    assert_eq!(node.words(), ["make demo.r1"], "r2 is another node's");
    node.absent.clear();
    node.missing.clear();
    assert_eq!(node.words(), ["make demo.r1"], "it is there: the record is to say so");
    node.absent.insert("demo.r1".parse().unwrap(), "its label is damaged".into());
    assert_eq!(node.words(), [""; 0], "something is there that cannot be used");
    node.missing.insert("demo.r1".parse().unwrap());
    record.status.generation = Generation(1);
    node.record_all(&[record]);
    assert!(!node.words().iter().any(|word| word.starts_with("make")), "{:?}", node.words());
}

#[test]
fn an_engine_is_told_where_replicas_are_on_other_nodes_once_that_is_known() {
    let record = spread(attached("demo", "node-a", 3));
    let mut node = Node::new(std::slice::from_ref(&record));
    node.run_all(&record);
    let addresses = |node: &Node| {
        let plan = node.plan();
        let Some((_, Action::ConfigureEngine { replicas, .. })) = plan.actions.last() else {
            panic!("{plan:?}")
        };
        replicas.iter().map(|r| (r.address.clone(), r.absent, r.local)).collect::<Vec<_>>()
    };
    assert_eq!(addresses(&node)[1], (String::new(), false, false), "unknown, and never absent");
    node.elsewhere = there(&record, "node-b", "demo.r2", true);
    assert_eq!(addresses(&node)[1], ("10.0.0.2:20000".to_owned(), false, false));
}

#[test]
fn replicas_run_on_until_the_engine_on_another_node_has_ended() {
    let mut record = spread(attached("demo", "node-b", 3));
    record.status.clean = false;
    let mut node = Node::new(std::slice::from_ref(&record));
    node.run_ready(&record, "demo.r1");
    record.detach();
    node.record_all(std::slice::from_ref(&record));
    for heard in [Elsewhere::unheard(), there(&record, "node-b", "demo.engine", true), Elsewhere::default()] {
        node.elsewhere = heard;
        assert_eq!(node.changes(), [""; 0], "it may be finishing, whatever is heard of it, or nothing");
    }
    let mut clean = record.clone();
    clean.status.clean = true;
    node.record_all(&[clean]);
    assert_eq!(node.changes(), ["stop demo.r1"], "it said itself that it has finished");
    node.record_all(std::slice::from_ref(&record));
    node.elsewhere = Elsewhere::new(BTreeMap::new(), ["node-b".parse().unwrap()].into());
    assert_eq!(node.changes(), ["stop demo.r1"], "its node is gone for good");
    node.elsewhere = Elsewhere::default();
    record.spec.detaching = None;
    node.record_all(&[record]);
    assert_eq!(node.changes(), ["stop demo.r1"], "its agent said that it has ended");
}

#[test]
fn the_agent_whose_engine_has_ended_says_so_for_the_others() {
    let mut record = attached("demo", "node-a", 2);
    for spec in &mut record.spec.replicas {
        spec.node = "node-b".parse().unwrap();
    }
    let mut node = Node::new(std::slice::from_ref(&record));
    node.run_ready(&record, "demo.engine");
    record.detach();
    node.record_all(std::slice::from_ref(&record));
    assert_eq!(node.words(), ["drain demo.engine"]);
    node.feed("demo.engine", Event::Ended("killed".into()));
    assert_eq!(node.words(), ["say demo is detached"], "clean or not");
    let (name, engine) = (&node.name, record.status.instance_uuids["demo.engine"]);
    assert!(says_detached(&record, name, Some(engine)));
    let mut again = record.clone();
    again.status.instance_uuids.insert("demo.engine".into(), InstanceUuid::random());
    assert!(!says_detached(&again, name, Some(engine)), "it was attached and detached again meanwhile");
    // Of one that only has replicas beside it nobody waits to hear.
    let mut alone = attached("demo", "node-a", 1);
    alone.detach();
    assert_eq!(alone.spec.detaching, None);
}

#[test]
fn an_engine_that_slept_through_being_moved_is_stopped_when_its_node_wakes() {
    let before = spread(attached("demo", "node-a", 3));
    let mut node = Node::new(std::slice::from_ref(&before));
    node.run_all(&before);
    let engine = before.status.instance_uuids["demo.engine"];
    let mut after = before.clone();
    after.spec.attach.as_mut().unwrap().node = "node-b".parse().unwrap();
    after.status.instance_uuids.insert("demo.engine".into(), InstanceUuid::random());
    let mut changes = |node: &mut Node, state: &str, told: u64, generation: u64, last: InstanceUuid| {
        let status = pb::EngineStatus { state: state.into(), generation: told, ..Default::default() };
        let status =
            pb::InstanceStatus { phase: "running".into(), engine: Some(status), ..Default::default() };
        node.feed("demo.engine", Event::Status(Box::new(status)));
        (after.status.generation, after.status.engine_instance) = (Generation(generation), last);
        node.record_all(std::slice::from_ref(&after));
        node.changes()
    };
    let other = InstanceUuid::random();
    for state in ["healthy", "attaching"] {
        // The new one has not taken it over yet. This one may have taken its generation and found no replica since.
        let says = changes(&mut node, state, 3, 3, engine);
        assert_eq!(says, ["drain demo.engine"], "{state}: the replica serves the new one");
        let restored = "the registry was restored from a backup: this engine is the newer one";
        assert_eq!(changes(&mut node, state, 3, 2, other), [""; 0], "{state}: {restored}");
        assert_eq!(changes(&mut node, state, 3, 3, other), [""; 0], "{state}: {restored}");
    }
    // Then it has.
    assert_eq!(changes(&mut node, "healthy", 3, 4, other), ["drain demo.engine"]);
    let since = "it may have taken the volume under a higher number since";
    assert_eq!(changes(&mut node, "attaching", 3, 4, other), [""; 0], "{since}");
}

#[test]
fn n1_each_node_gives_up_its_own_replicas_and_the_last_one_the_record() {
    let mut record = spread(record("demo", "node-a", 3));
    record.spec.intent = Intent::Delete;
    let mut node = Node::new(std::slice::from_ref(&record));
    assert_eq!(node.words(), ["release demo"]);
    record.spec.replicas.remove(0);
    node.record_all(std::slice::from_ref(&record));
    assert_eq!(node.words(), [""; 0], "it waits for node-b and node-c");
    let gone = ["node-b", "node-c"].map(|node| node.parse().unwrap());
    node.elsewhere = Elsewhere::new(BTreeMap::new(), gone.into());
    assert_eq!(node.words(), ["delete demo"], "nodes that are gone for good have released theirs");
    record.spec.replicas.truncate(1);
    record.spec.replicas[0].node = "node-a".parse().unwrap();
    node.elsewhere = Elsewhere::default();
    node.record_all(&[record]);
    assert_eq!(node.words(), ["delete demo"]);
}

#[test]
fn a_record_that_is_being_deleted_names_whoever_has_not_given_up_its_replicas() {
    let record = spread(record("demo", "node-a", 3));
    let node: NodeName = "node-a".parse().unwrap();
    let left = |record: &VolumeRecord| {
        let left = without_replicas_of(record, &node);
        (left.spec.replicas.iter().map(|spec| spec.id.0).collect::<Vec<_>>(), left.spec.leaving.len())
    };
    assert_eq!(left(&record), (vec![2, 3], 0));
    // All but those that were being removed are here.
    let mut half = record.clone();
    half.spec.leaving = half.spec.replicas.split_off(1);
    assert_eq!(left(&half), (vec![2, 3], 0), "a record without a replica would not be read");
}
