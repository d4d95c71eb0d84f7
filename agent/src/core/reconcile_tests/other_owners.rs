//! What others claim: it runs, ends and stays as they want, unless a record says otherwise.

use super::*;
use crate::core::foreign::tests as foreign_tests;

impl Node {
    fn claim(&mut self, name: &str, volume: VolumeId, desired: Desired) {
        let (name, stored) = foreign_tests::claim(name, volume, desired);
        let Foreign::Known(claims) = &mut self.foreign else { panic!("{:?}", self.foreign) };
        claims.insert(name, stored);
    }
}

#[test]
fn a_replica_that_another_wants_runs_without_its_volume_and_ends_when_it_is_let_go() {
    let record = record("demo", "node-a", 2);
    let mut node = Node::new(std::slice::from_ref(&record));
    assert_eq!(node.words(), Vec::<String>::new());
    node.claim("demo.r1", record.id, Desired::Running);
    assert_eq!(node.words(), ["spawn demo.r1"]);
    node.run_ready(&record, "demo.r1");
    assert_eq!(node.words(), ["configure demo.r1"]);
    node.foreign = Foreign::none();
    assert_eq!(node.changes(), ["stop demo.r1"]);
    // Of nothing that is placed here there is nothing to run.
    node.claim("demo.r7", record.id, Desired::Running);
    assert!(node.plan().blocked["demo"].contains("no such replica here"), "{:?}", node.plan().blocked);
}

#[test]
fn a_replica_that_was_removed_stays_while_another_claims_it_and_a_volume_is_not_deleted_under_it() {
    let mut record = attached("demo", "node-a", 2);
    let mut node = Node::new(std::slice::from_ref(&record));
    node.run_all(&record);
    let gone = record.spec.replicas.remove(1);
    record.status.configured = record.status.configured.without(gone.id);
    node.record_all(std::slice::from_ref(&record));
    assert_eq!(node.changes(), ["stop demo.r2"]);
    node.claim("demo.r2", record.id, Desired::Keep);
    assert_eq!(node.changes(), Vec::<String>::new());

    (record.spec.attach, record.spec.intent) = (None, Intent::Delete);
    node.record_all(std::slice::from_ref(&record));
    assert_eq!(node.changes(), Vec::<String>::new(), "whatever the claim is about");
    assert!(node.plan().blocked["demo"].contains("controller claims demo.r2"), "{:?}", node.plan().blocked);
}

#[test]
fn o4_nothing_that_another_may_claim_ends_or_is_deleted_while_claims_cannot_be_read() {
    let mut record = attached("demo", "node-a", 2);
    let mut node = Node::new(std::slice::from_ref(&record));
    node.run_all(&record);
    node.foreign = Foreign::Unavailable("no answer".into());
    let gone = record.spec.replicas.remove(1);
    record.status.configured = record.status.configured.without(gone.id);
    node.record_all(std::slice::from_ref(&record));
    assert_eq!(node.changes(), Vec::<String>::new(), "r2 may be another's");
    record.spec.attach = None;
    node.record_all(std::slice::from_ref(&record));
    assert_eq!(node.changes(), ["drain demo.engine"], "an engine is its volume's");
    node.instances.remove(&InstanceName::engine(&record.name));
    record.status.clean = true;
    node.record_all(std::slice::from_ref(&record));
    assert_eq!(node.changes(), Vec::<String>::new());
    assert!(node.plan().blocked["demo"].contains("cannot be known: no answer"), "{:?}", node.plan().blocked);
    record.spec.intent = Intent::Delete;
    node.record_all(std::slice::from_ref(&record));
    assert_eq!(node.changes(), Vec::<String>::new());
    node.foreign = Foreign::none();
    assert_eq!(node.changes(), ["stop demo.r2", "stop demo.r1"]);
}

#[test]
fn o4_one_that_cannot_be_asked_is_not_ended_either_while_claims_cannot_be_read() {
    let mut record = record("demo", "node-a", 1);
    let mut node = Node::new(std::slice::from_ref(&record));
    node.claim("demo.r1", record.id, Desired::Running);
    node.run_ready(&record, "demo.r1");
    node.feed("demo.r1", Event::Lost("silent".into()));
    node.foreign = Foreign::Unavailable("no answer".into());
    assert_eq!(node.changes(), Vec::<String>::new());
    assert!(node.plan().blocked["demo"].contains("cannot be known: no answer"), "{:?}", node.plan().blocked);
    record.spec.intent = Intent::Delete;
    node.record_all(std::slice::from_ref(&record));
    assert_eq!(node.changes(), Vec::<String>::new());
    node.foreign = Foreign::none();
    assert_eq!(node.changes(), ["stop demo.r1"]);
}

#[test]
fn what_its_owner_wants_to_end_is_ended_unless_a_record_wants_it_or_may() {
    let record = attached("demo", "node-a", 1);
    let mut node = Node::new(std::slice::from_ref(&record));
    node.run_all(&record);
    for name in ["demo.engine", "demo.r1"] {
        node.claim(name, record.id, Desired::Stopped);
    }
    assert_eq!(node.changes(), Vec::<String>::new(), "the record wants both");
    node.records = Records::Unavailable("no answer".into());
    assert_eq!(node.changes(), Vec::<String>::new(), "it may");
    node.record_all(&[]);
    assert_eq!(node.changes(), ["drain demo.engine"], "the engine first");
    let engine = InstanceName::engine(&record.name);
    let telling = node.instances.insert(engine.clone(), {
        let down = State::Down { error: None, retry_at: secs(0) };
        let mut adopted =
            Instance::new(record.status.instance_uuids["demo.engine"], record.id, 0, down, node.now);
        adopted.handle(Event::Spawning, node.now);
        adopted
    });
    assert_eq!(node.changes(), Vec::<String>::new(), "it has not said whether it has clients");
    node.instances.insert(engine, telling.unwrap());
    node.instances.remove(&InstanceName::engine(&record.name));
    assert_eq!(node.changes(), ["stop demo.r1"]);
    node.foreign = Foreign::none();
    node.claim("demo.r1", VolumeId::random(), Desired::Stopped);
    assert_eq!(node.changes(), Vec::<String>::new(), "another volume's");
}
