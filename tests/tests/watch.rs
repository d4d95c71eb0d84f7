//! The agent's gRPC face: a snapshot with a revision, then each change, in order, once, and all of it again every minute.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use holdfast_proto::pb::agent::InstanceInfo;
use holdfast_proto::pb::agent::watch_event::Event;
use holdfast_tests::control::Control;
use holdfast_tests::process::kill;
use holdfast_tests::wait::check;
use holdfast_tests::{AgentOptions, Cluster};

#[test]
fn snapshot_and_changes_add_up_to_what_list_says() {
    let cluster = Cluster::with_volume("64MiB", 2);
    let control = Control::connect(&cluster.socket()).unwrap();
    let mut watch = control.watch().unwrap();
    let first = watch.next_event().expect("a watch begins with a snapshot");
    let mut revision = first.revision;
    let Some(Event::Snapshot(snapshot)) = first.event else { panic!("a snapshot first: {first:?}") };
    let mut seen: BTreeMap<String, InstanceInfo> =
        snapshot.instances.into_iter().map(|i| (i.name.clone(), i)).collect();
    assert_eq!(seen.len(), 3);
    assert_eq!(snapshot.volumes.len(), 1);

    let victim = cluster.volume("demo").replica("r1").pid().unwrap();
    kill(victim);
    cluster.wait_volume("demo", "r1 is a member again", |v| {
        let now = v.replica("r1").pid();
        check(v.members() == 2 && now.is_some_and(|now| now != victim), || v.state())
    });
    cluster.detach("demo");
    cluster.ok(&["volume", "delete", "demo"]);
    let until = control.instances().unwrap();
    let mut pids_of_r1 = Vec::new();
    while revision < until.revision {
        let event = watch.next_event().expect("a subscriber that keeps up is not dropped");
        if let Some(Event::Snapshot(again)) = &event.event {
            let told: BTreeMap<_, _> = again.instances.iter().map(|i| (i.name.clone(), i.clone())).collect();
            assert_eq!((event.revision, &told), (revision, &seen), "it repeats what the changes came to");
            continue;
        }
        assert_eq!(event.revision, revision + 1, "nothing lost, nothing repeated");
        revision = event.revision;
        match event.event.expect("an event says what happened") {
            Event::InstanceChanged(instance) => {
                if instance.name == "demo.r1" {
                    pids_of_r1.extend(instance.pid);
                }
                seen.insert(instance.name.clone(), instance);
            }
            Event::InstanceRemoved(name) => {
                assert!(seen.remove(&name).is_some(), "{name} was removed before it was there");
            }
            Event::VolumeChanged(_) | Event::VolumeRemoved(_) => {}
            Event::Snapshot(_) => unreachable!("taken in above"),
            Event::Resync(resync) => panic!("only when behind: {resync:?}"),
        }
    }
    let listed: BTreeMap<String, InstanceInfo> =
        until.instances.into_iter().map(|i| (i.name.clone(), i)).collect();
    assert_eq!(seen, listed);
    pids_of_r1.dedup();
    assert!(pids_of_r1.iter().any(|pid| *pid != victim), "the new process was shown: {pids_of_r1:?}");
}

#[test]
fn a_subscriber_that_falls_behind_is_told_to_begin_again() {
    let cluster = Cluster::agent(AgentOptions::default());
    let control = Control::connect(&cluster.socket()).unwrap();
    let mut watch = control.watch().unwrap();
    let first = watch.next_event().expect("a snapshot");
    let mut revision = first.revision;
    // More changes than any queue keeps, unread.
    for round in 0..40 {
        for n in 0..10 {
            let name = format!("v{round}-{n}");
            cluster.ok(&["volume", "create", &name, "--size", "4MiB", "--replicas", "1"]);
            cluster.ok(&["volume", "delete", &name, "--purge-data"]);
        }
        let now = control.instances().unwrap().revision;
        if now > first.revision + 3000 {
            break;
        }
    }
    let end = control.instances().unwrap().revision;
    loop {
        if revision >= end {
            // Everything was kept for it: that is allowed, and nothing was lost.
            return;
        }
        let Some(event) = watch.next_event() else { panic!("the stream ended without a resync") };
        if let Some(Event::Snapshot(_)) = event.event {
            assert_eq!(event.revision, revision, "a minute is over");
            continue;
        }
        if let Some(Event::Resync(resync)) = event.event {
            assert!(!resync.reason.is_empty());
            assert!(watch.next_event().is_none(), "a resync is the last event");
            return;
        }
        assert_eq!(event.revision, revision + 1, "a gap without a resync");
        revision = event.revision;
    }
}

#[test]
fn health_and_reflection_answer() {
    let cluster = Cluster::agent(AgentOptions::default());
    let control = Control::connect(&cluster.socket()).unwrap();
    assert!(control.serves("").unwrap(), "the agent as a whole");
    let services = control.reflected_services().unwrap();
    for wanted in ["holdfast.agent.v1.Instances", "holdfast.agent.v1.Volumes", "holdfast.agent.v1.Node"] {
        assert!(services.iter().any(|s| s == wanted), "{wanted} is not in {services:?}");
        assert!(control.serves(wanted).unwrap(), "{wanted} does not serve");
    }
}
