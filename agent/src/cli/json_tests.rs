//! Golden: a change here breaks scripts.

use serde_json::{Value, json};

use super::*;

fn value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).unwrap()
}

fn volume() -> pb::VolumeInfo {
    pb::VolumeInfo {
        id: "7f0c".into(),
        name: "demo".into(),
        size_bytes: 1 << 30,
        state: "degraded".into(),
        generation: 3,
        epoch: 7,
        endpoint: Some("nbd+unix:///demo?socket=/run/x/demo.sock".into()),
        engine: Some(pb::EngineInfo {
            instance: "demo.engine".into(),
            uuid: "aa".into(),
            pid: Some(41),
            node: "n1".into(),
        }),
        replicas: vec![
            pb::VolumeReplicaInfo {
                id: "r1".into(),
                node: "n1".into(),
                mode: "rebuilding".into(),
                instance: Some("demo.r1".into()),
                pid: Some(42),
                address: Some("[::1]:20001".into()),
                data_dir: "/var/lib/holdfast/replicas/demo.r1".into(),
                progress: Some(pb::Progress {
                    done_bytes: 1,
                    total_bytes: 2,
                    bytes_per_second: 3,
                    remaining_s: Some(4),
                }),
                reason: Some("was away".into()),
                copied_bytes: 3,
                compared_bytes: 4,
            },
            pb::VolumeReplicaInfo {
                id: "r2".into(),
                node: "n1".into(),
                mode: "absent".into(),
                data_dir: "/d/r2".into(),
                ..Default::default()
            },
        ],
        unrepaired_bytes: 5,
        ..Default::default()
    }
}

fn instance() -> pb::InstanceInfo {
    pb::InstanceInfo {
        name: "demo.r1".into(),
        uuid: "bb".into(),
        kind: "replica".into(),
        volume: "demo".into(),
        state: "running".into(),
        pid: Some(42),
        restarts: 2,
        claim: "unclaimed".into(),
        orphan: Some(pb::OrphanInfo { state: "orphaned".into(), remaining_s: 299 }),
        ..Default::default()
    }
}

fn golden_instance() -> Value {
    json!({
        "name": "demo.r1", "uuid": "bb", "kind": "replica", "volume": "demo", "state": "running", "pid": 42,
        "restarts": 2, "claim": "unclaimed", "orphan": {"state": "orphaned", "remaining_s": 299}, "reason": null
    })
}

#[test]
fn volume_show() {
    let golden = json!({
        "id": "7f0c", "name": "demo", "size_bytes": 1073741824u64, "state": "degraded", "generation": 3, "epoch": 7,
        "endpoint": "nbd+unix:///demo?socket=/run/x/demo.sock",
        "engine": {"instance": "demo.engine", "uuid": "aa", "pid": 41, "node": "n1"},
        "replicas": [
            {"id": "r1", "node": "n1", "mode": "rebuilding", "instance": "demo.r1", "pid": 42,
             "address": "[::1]:20001", "data_dir": "/var/lib/holdfast/replicas/demo.r1",
             "progress": {"done_bytes": 1, "total_bytes": 2, "bytes_per_second": 3, "remaining_s": 4},
             "copied_bytes": 3, "compared_bytes": 4, "reason": "was away"},
            {"id": "r2", "node": "n1", "mode": "absent", "instance": null, "pid": null, "address": null,
             "data_dir": "/d/r2", "progress": null, "copied_bytes": 0, "compared_bytes": 0, "reason": null}
        ],
        "unrepaired_bytes": 5, "reason": null
    });
    assert_eq!(value(&Volume::from(&volume())), golden);
}

#[test]
fn a_detached_volume_has_nulls_and_every_name() {
    let detached = pb::VolumeInfo { state: "detached".into(), ..Default::default() };
    let got = value(&Volume::from(&detached));
    assert_eq!(got["engine"], Value::Null);
    assert_eq!(got["endpoint"], Value::Null);
    assert_eq!(got.as_object().unwrap().len(), 11);
}

#[test]
fn lists_carry_their_revision() {
    let volumes = pb::ListVolumesReply { revision: 5, volumes: vec![volume()] };
    let got = value(&Volumes::from(&volumes));
    assert_eq!(got["revision"], 5);
    assert_eq!(got["volumes"][0], value(&Volume::from(&volume())));
    let instances = pb::ListInstancesReply { revision: 6, instances: vec![instance()] };
    assert_eq!(value(&Instances::from(&instances)), json!({"revision": 6, "instances": [golden_instance()]}));
    let replicas = pb::ListReplicasReply {
        revision: 7,
        replicas: vec![pb::ReplicaDirInfo {
            data_dir: "/d".into(),
            claim: "unknown".into(),
            reason: Some("damaged".into()),
            ..Default::default()
        }],
    };
    assert_eq!(
        value(&ReplicaDirs::from(&replicas)),
        json!({"revision": 7, "replicas": [{
            "volume": null, "volume_id": null, "id": null, "node": null, "data_dir": "/d", "size_bytes": 0,
            "allocated_bytes": 0, "generation": 0, "epoch": 0, "claim": "unknown", "instance": null,
            "reason": "damaged"
        }]})
    );
}

#[test]
fn watch_events_are_tagged() {
    use pb::watch_event::{Event as Wire, Resync, Snapshot};
    let line = |revision, event| {
        let event = pb::WatchEvent { revision, event: Some(event) };
        value(&Event::of(&event).unwrap())
    };
    assert_eq!(
        line(4, Wire::Snapshot(Snapshot::default())),
        json!({"revision": 4, "event": "snapshot", "instances": [], "volumes": []})
    );
    assert_eq!(
        line(5, Wire::InstanceChanged(instance())),
        json!({"revision": 5, "event": "instance_changed", "instance": golden_instance()})
    );
    assert_eq!(
        line(6, Wire::VolumeRemoved("demo".into())),
        json!({"revision": 6, "event": "volume_removed", "name": "demo"})
    );
    assert_eq!(
        line(7, Wire::Resync(Resync { reason: "slow".into() })),
        json!({"revision": 7, "event": "resync", "reason": "slow"})
    );
    assert!(Event::of(&pb::WatchEvent { revision: 8, event: None }).is_none());
}

#[test]
fn errors_and_ready_files() {
    let complaint = Complaint::new(ErrorKind::Refused, "2 clients are connected").remedy("use --force");
    assert_eq!(
        value(&ErrorBody::from(&complaint)),
        json!({"error": {"kind": "refused", "exit_code": 7, "message": "2 clients are connected",
                         "remedy": "use --force"}})
    );
    let ready = Ready { agent: "unix:/a", volume: "demo", nbd_uri: "nbd+unix:///demo?socket=/b", pid: 9 };
    assert_eq!(
        value(&ready),
        json!({"agent": "unix:/a", "volume": "demo", "nbd_uri": "nbd+unix:///demo?socket=/b", "pid": 9})
    );
}

#[test]
fn claims() {
    let claim = pb::Claim {
        instance: "demo.r1".into(),
        volume_id: "v".into(),
        node: "n1".into(),
        owner: "backup".into(),
        desired: "running".into(),
        lease_s: 60,
        version: 2,
        remaining_s: Some(59),
        ..Default::default()
    };
    let line = json!({"instance": "demo.r1", "uuid": null, "volume_id": "v", "node": "n1", "owner": "backup",
        "desired": "running", "lease_s": 60, "remaining_s": 59, "version": 2, "problem": null});
    assert_eq!(value(&Claim::from(&claim)), line);
    let reply = pb::ListClaimsReply { claims: vec![claim] };
    assert_eq!(value(&Claims::from(&reply)), json!({"claims": [line]}));
}

#[test]
fn deleted_and_node() {
    let reply = pb::DeleteVolumeReply { kept_dirs: vec!["/a".into()], trashed_dirs: vec![] };
    assert_eq!(
        value(&Deleted::new("demo", &reply)),
        json!({"name": "demo", "kept_dirs": ["/a"], "trashed_dirs": []})
    );
    let node = value(&Node::from(&pb::NodeInfo { node: "n1".into(), agent_pid: 3, ..Default::default() }));
    assert_eq!(node["node"], "n1");
    assert_eq!(node["agent_pid"], 3);
    assert_eq!(node.as_object().unwrap().len(), 19);
}
