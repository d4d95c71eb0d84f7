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
fn n1_an_engine_of_a_silent_node_is_unknown_and_of_a_forgotten_one_counts_as_ended() {
    let record = attached("demo", "node-b", 1);
    let engine = |state: ipb::State| ipb::Instance {
        name: "demo.engine".into(),
        uuid: vec![1; 16],
        volume_id: record.id.0.as_bytes().to_vec(),
        state: state.into(),
        ..Default::default()
    };
    let node: NodeName = "node-b".parse().unwrap();
    let seen = |live, state| elsewhere("node-b", live, vec![engine(state)], &[]);
    assert!(matches!(seen(true, ipb::State::Running).engine_of(&record), Engine::On(on, _) if *on == node));
    assert!(matches!(seen(false, ipb::State::Running).engine_of(&record), Engine::Silent(on) if *on == node));
    assert!(matches!(seen(true, ipb::State::Error).engine_of(&record), Engine::On(..)), "it may run");
    for live in [true, false] {
        assert_eq!(seen(live, ipb::State::Stopped).engine_of(&record), Engine::None);
    }
    let unknown = |live, state| seen(live, state).clients_unknown(&record, &node);
    assert_eq!(unknown(true, ipb::State::Running), None);
    assert_eq!(unknown(true, ipb::State::Stopped), None);
    assert!(unknown(true, ipb::State::Error).unwrap().contains("engine"));
    assert!(unknown(false, ipb::State::Running).unwrap().contains("node"));
    let known = seen(false, ipb::State::Running);
    let forgotten = Elsewhere::new(known.nodes, BTreeSet::from([node]));
    assert_eq!(forgotten.engine_of(&record), Engine::None);
    assert_eq!(
        Elsewhere::unheard().engine_of(&record),
        Engine::Unheard,
        "that nothing was heard is no answer"
    );
}
