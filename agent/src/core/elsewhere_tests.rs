use super::*;
use crate::core::testing::{attached, elsewhere};

#[test]
fn an_address_is_that_of_the_creation_that_the_record_means_while_it_runs() {
    let mut record = attached("demo", "node-a", 2);
    record.spec.replicas[1].node = "node-b".parse().unwrap();
    let spec = record.spec.replicas[1].clone();
    let uuid = record.status.instance_uuids["demo.r2"];
    let told = |change: fn(&mut ipb::Instance)| {
        let mut instance = ipb::Instance {
            name: "demo.r2".into(),
            uuid: uuid.0.as_bytes().to_vec(),
            volume_id: record.id.0.as_bytes().to_vec(),
            state: ipb::State::Running.into(),
            address: "10.0.0.2:20000".into(),
            ..Default::default()
        };
        change(&mut instance);
        let known = elsewhere("node-b", true, vec![instance], &[]);
        known.address_of(&record, &spec).map(str::to_owned)
    };
    assert_eq!(told(|_| {}).as_deref(), Some("10.0.0.2:20000"));
    assert_eq!(told(|i| i.uuid = vec![7; 16]), None, "another creation");
    assert_eq!(told(|i| i.volume_id = vec![7; 16]), None, "another volume of that name");
    assert_eq!(told(|i| i.state = ipb::State::Stopped.into()), None);
    assert_eq!(told(|i| i.address.clear()), None);
    assert_eq!(Elsewhere::default().address_of(&record, &spec), None, "nothing is known");
}

#[test]
fn clients_are_known_only_where_the_node_lives_and_its_engine_answers() {
    let record = attached("demo", "node-b", 1);
    let node: NodeName = "node-b".parse().unwrap();
    let unknown = |live, state: ipb::State| {
        let engine = ipb::Instance {
            name: "demo.engine".into(),
            uuid: vec![1; 16],
            volume_id: record.id.0.as_bytes().to_vec(),
            state: state.into(),
            ..Default::default()
        };
        elsewhere("node-b", live, vec![engine], &[]).clients_unknown(&record, &node)
    };
    assert_eq!(unknown(true, ipb::State::Running), None);
    assert_eq!(unknown(true, ipb::State::Stopped), None);
    assert!(unknown(true, ipb::State::Error).unwrap().contains("engine"));
    assert!(unknown(false, ipb::State::Running).unwrap().contains("node"));
}
