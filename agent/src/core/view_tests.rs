use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::core::elsewhere::Elsewhere;
use crate::core::foreign::Foreign;
use crate::core::instance::Event;
use crate::core::records::{RecordState, Records};
use crate::core::testing::{attached, record};
use holdfast_proto::ids::{Incarnation, InstanceUuid, VolumeId};

const NOW: Duration = Duration::from_secs(10);

struct Scene {
    node: NodeName,
    records: Records,
    foreign: Foreign,
    instances: BTreeMap<InstanceName, Instance>,
    absent: BTreeMap<InstanceName, String>,
    missing: BTreeSet<InstanceName>,
    incarnation: Incarnation,
    elsewhere: Elsewhere,
}

impl Scene {
    fn new(record: &VolumeRecord) -> Self {
        let state = RecordState::Readable(Box::new(record.clone()));
        Self {
            node: "node-a".parse().unwrap(),
            records: Records::Known(BTreeMap::from([(record.name.to_string(), state)])),
            foreign: Foreign::none(),
            instances: BTreeMap::new(),
            absent: BTreeMap::new(),
            missing: BTreeSet::new(),
            incarnation: Incarnation::random(),
            elsewhere: Elsewhere::default(),
        }
    }
    fn world(&self) -> World<'_> {
        World {
            node: &self.node,
            now: NOW,
            records: &self.records,
            foreign: &self.foreign,
            instances: &self.instances,
            absent: &self.absent,
            missing: &self.missing,
            incarnation: self.incarnation,
            elsewhere: &self.elsewhere,
        }
    }
    fn show(&self) -> pb::VolumeInfo {
        let plan = reconcile::plan(self.world());
        let viewer = Viewer { world: self.world(), plan: &plan };
        viewer.volumes(|_, id| format!("/data/{id}")).remove(0)
    }
    fn run(&mut self, record: &VolumeRecord, name: &str, status: ipb::InstanceStatus) {
        let name: InstanceName = name.parse().unwrap();
        let uuid = record.status.instance_uuids[&name.to_string()];
        let mut instance = Instance::new(uuid, record.id, 0, State::Pending, NOW);
        instance.handle(Event::Process(42), NOW);
        instance.handle(Event::Status(Box::new(status)), NOW);
        self.instances.insert(name, instance);
    }
}

fn engine(state: &str, modes: &[&str]) -> ipb::InstanceStatus {
    let replicas = modes.iter().zip(1..).map(|(mode, id)| ipb::ReplicaState {
        id,
        mode: (*mode).to_owned(),
        ..Default::default()
    });
    ipb::InstanceStatus {
        phase: "running".into(),
        engine: Some(ipb::EngineStatus {
            state: state.into(),
            generation: 3,
            epoch: 5,
            nbd_socket: "/run/hold fast/demo.sock".into(),
            replicas: replicas.collect(),
            clients: 1,
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn a_new_volume_is_detached_with_its_members() {
    let record = record("demo", "node-a", 2);
    let shown = Scene::new(&record).show();
    assert_eq!((shown.state.as_str(), shown.endpoint, shown.engine), ("detached", None, None));
    assert!(shown.replicas.iter().all(|r| r.mode == "member" && r.pid.is_none()));
    assert_eq!(shown.replicas[1].data_dir, "/data/r2");
}

#[test]
fn the_engine_says_what_its_volume_is() {
    let record = attached("demo", "node-a", 3);
    let mut scene = Scene::new(&record);
    assert_eq!(scene.show().state, "attaching");
    assert!(scene.show().replicas.iter().all(|r| r.mode == "suspect"), "nobody knows yet");
    for state in ["healthy", "degraded", "suspended", "faulted", "attaching", "detaching"] {
        scene.run(&record, "demo.engine", engine(state, &["member", "catching_up", "rebuilding"]));
        let shown = scene.show();
        assert_eq!(shown.state, state);
        assert_eq!((shown.generation, shown.epoch), (3, 5));
        assert_eq!(shown.engine.unwrap().pid, Some(42));
        assert_eq!(shown.endpoint.unwrap(), "nbd+unix:///demo?socket=/run/hold%20fast/demo.sock");
        let modes: Vec<_> = shown.replicas.iter().map(|r| r.mode.as_str()).collect();
        assert_eq!(modes, ["member", "catching_up", "rebuilding"]);
    }
    scene.run(&record, "demo.engine", engine("a state of a later version", &[]));
    assert_eq!(scene.show().state, "attaching");
}

#[test]
fn an_engine_that_ended_is_attaching_again() {
    let record = attached("demo", "node-a", 1);
    let mut scene = Scene::new(&record);
    scene.run(&record, "demo.engine", engine("healthy", &["member"]));
    let name = InstanceName::engine(&record.name);
    scene.instances.get_mut(&name).unwrap().handle(Event::Ended("killed by signal 9".into()), NOW);
    let shown = scene.show();
    assert_eq!(shown.state, "attaching");
    assert!(shown.reason.unwrap().contains("signal 9"));
    assert_eq!((shown.engine, shown.endpoint), (None, None));
    assert_eq!(shown.replicas[0].mode, "suspect");
}

#[test]
fn a_missing_directory_is_absent_and_all_missing_is_faulted() {
    let record = attached("demo", "node-a", 2);
    let mut scene = Scene::new(&record);
    scene.run(&record, "demo.engine", engine("degraded", &["member", "absent"]));
    scene.absent.insert("demo.r2".parse().unwrap(), "is the disk mounted?".into());
    let shown = scene.show();
    assert_eq!((shown.state.as_str(), shown.replicas[1].mode.as_str()), ("degraded", "absent"));
    assert!(shown.replicas[1].reason.as_ref().unwrap().contains("mounted"));
    scene.absent.insert("demo.r1".parse().unwrap(), "is the disk mounted?".into());
    assert_eq!(scene.show().state, "faulted");
}

#[test]
fn a_volume_is_detached_only_when_everything_has_ended() {
    let mut record = attached("demo", "node-a", 1);
    let mut scene = Scene::new(&record);
    scene.run(&record, "demo.engine", engine("healthy", &["member"]));
    record.spec.attach = None;
    scene.records = Scene::new(&record).records;
    assert_eq!(scene.show().state, "detaching");
    let name = InstanceName::engine(&record.name);
    scene.instances.get_mut(&name).unwrap().handle(Event::Lost("silent".into()), NOW);
    assert_eq!(scene.show().state, "detaching", "nobody knows whether it has ended");
    scene.instances.get_mut(&name).unwrap().handle(Event::Ended("exit code 0".into()), NOW);
    assert_eq!(scene.show().state, "detached");
}

#[test]
fn at_rest_a_replica_is_what_it_will_be_and_nothing_of_it_runs() {
    let mut record = attached("demo", "node-a", 4);
    let mut scene = Scene::new(&record);
    for name in ["demo.r1", "demo.r2", "demo.r3"] {
        scene.run(&record, name, ipb::InstanceStatus::default());
        let instance = scene.instances.get_mut(&name.parse::<InstanceName>().unwrap()).unwrap();
        instance.handle(Event::Ended("killed by signal 9".into()), NOW);
    }
    assert_eq!(
        scene.show().replicas[0].instance.as_deref(),
        Some("demo.r1"),
        "it is to run: its log says why"
    );
    record.spec.attach = None;
    record.status.view.members = [1, 3].into_iter().map(ReplicaId).collect();
    scene.records = Scene::new(&record).records;
    scene.absent.insert("demo.r3".parse().unwrap(), "is the disk mounted?".into());
    let shown = scene.show();
    let modes: Vec<_> = shown.replicas.iter().map(|r| r.mode.as_str()).collect();
    assert_eq!(modes, ["member", "catching_up", "absent", "catching_up"]);
    let runs = |r: &pb::VolumeReplicaInfo| r.instance.is_some() || r.pid.is_some() || r.address.is_some();
    assert!(!shown.replicas.iter().any(runs), "{shown:?}");
}

#[test]
fn a_volume_whose_record_is_damaged_is_still_listed() {
    let mut scene = Scene::new(&record("demo", "node-a", 1));
    let damaged = RecordState::Unreadable("line 3".into());
    scene.records = Records::Known(BTreeMap::from([("demo".into(), damaged)]));
    let shown = scene.show();
    assert_eq!((shown.name.as_str(), shown.state.as_str()), ("demo", "faulted"));
    assert!(shown.reason.unwrap().contains("line 3"));
}

#[test]
fn a_volume_that_is_not_understood_shows_why_and_runs() {
    let record = attached("demo", "node-a", 1);
    let mut scene = Scene::new(&record);
    scene.run(&record, "demo.engine", engine("healthy", &["member"]));
    let needs = serde_json::json!({"requires": ["tomorrow"]});
    let newer = RecordState::Unreadable(crate::core::features::check(&needs).unwrap_err());
    scene.records = Records::Known(BTreeMap::from([("demo".into(), newer)]));
    let shown = scene.show();
    assert_eq!(shown.state, "healthy");
    let reason = shown.reason.unwrap();
    assert!(reason.contains("\"tomorrow\"") && reason.contains("upgrade this node's agent"), "{reason}");
}

#[test]
fn an_instance_says_its_state_claim_and_reason() {
    let record = attached("demo", "node-a", 1);
    let mut scene = Scene::new(&record);
    scene.run(&record, "demo.engine", engine("healthy", &["member"]));
    let stranger: InstanceName = "ghost.r1".parse().unwrap();
    let lost = State::Unknown("silent".into());
    let ghost = Instance::new(InstanceUuid::random(), VolumeId::random(), 4, lost, NOW);
    scene.instances.insert(stranger.clone(), ghost);
    let plan = Plan::default();
    let viewer = Viewer { world: scene.world(), plan: &plan };
    let info = |name: &InstanceName| viewer.instance_info(name, &scene.instances[name]);
    let engine = info(&InstanceName::engine(&record.name));
    assert_eq!((engine.kind.as_str(), engine.state.as_str()), ("engine", "running"));
    assert_eq!((engine.claim.as_str(), engine.pid), ("claimed", Some(42)));
    let ghost = info(&stranger);
    assert_eq!((ghost.claim.as_str(), ghost.state.as_str()), ("unclaimed", "error"));
    assert_eq!((ghost.reason.as_deref(), ghost.restarts), (Some("silent"), 4));
}

#[test]
fn a_volume_is_not_healthy_while_its_replicas_are_not_those_that_are_wanted() {
    let mut record = attached("demo", "node-a", 2);
    let mut scene = Scene::new(&record);
    scene.run(&record, "demo.engine", engine("healthy", &["member", "member"]));
    assert_eq!(scene.show().state, "healthy");
    let spec = record.spec.replicas.remove(1);
    let new = holdfast_proto::record::ReplicaSpec { id: ReplicaId(3), ..spec.clone() };
    record.spec.replicas.push(new);
    record.spec.leaving.push(spec);
    record.spec.next_replica_id = 4;
    scene.records = Scene::new(&record).records;
    let shown = scene.show();
    assert_eq!(shown.state, "degraded", "whatever the engine has heard of it");
    assert!(shown.reason.unwrap().contains("being changed"));
    let found: Vec<_> = shown.replicas.iter().map(|r| (r.id.as_str(), r.mode.as_str())).collect();
    assert_eq!(found, [("r1", "member"), ("r3", "rebuilding"), ("r2", "member")]);
    assert_eq!(shown.replicas[2].reason.as_deref(), Some("it is being removed"));
}

#[test]
fn a_volume_on_another_node_is_as_its_engine_says_there_and_never_well_while_that_node_is_silent() {
    let mut record = attached("demo", "node-b", 2);
    record.spec.replicas[1].node = "node-b".parse().unwrap();
    let mut scene = Scene::new(&record);
    let shown = scene.show();
    assert_eq!(shown.state, "attaching");
    assert!(shown.reason.unwrap().contains("node-b, which does not answer"));
    let engine = holdfast_proto::pb::inventory::Instance {
        name: "demo.engine".into(),
        uuid: record.status.instance_uuids["demo.engine"].0.as_bytes().to_vec(),
        volume_id: record.id.0.as_bytes().to_vec(),
        state: holdfast_proto::pb::inventory::State::Running.into(),
        volume_state: "healthy".into(),
        clients: 3,
        members: vec![1],
        ..Default::default()
    };
    for (live, state) in [(true, "healthy"), (false, "degraded")] {
        scene.elsewhere = crate::core::testing::elsewhere("node-b", live, vec![engine.clone()], &[]);
        let shown = scene.show();
        assert_eq!((shown.state.as_str(), shown.clients), (state, 3));
        assert_eq!(shown.engine.unwrap().node, "node-b");
        let modes: Vec<_> = shown.replicas.iter().map(|replica| replica.mode.as_str()).collect();
        assert_eq!(modes, ["member", "catching_up"], "as the engine says");
    }
    let mut starting = engine;
    starting.volume_state = "attaching".into();
    scene.elsewhere = crate::core::testing::elsewhere("node-b", true, vec![starting], &[]);
    assert_eq!(scene.show().state, "attaching");
}

#[test]
fn a_volume_that_is_being_deleted_says_for_which_nodes_it_waits() {
    let mut record = record("demo", "node-b", 1);
    record.spec.intent = Intent::Delete;
    let reason = |scene: &Scene| scene.show().reason.unwrap();
    let mut scene = Scene::new(&record);
    assert!(reason(&scene).contains("given up on node-b (which does not answer)"), "{}", reason(&scene));
    scene.elsewhere = crate::core::testing::elsewhere("node-b", true, Vec::new(), &[]);
    assert!(reason(&scene).ends_with("given up on node-b"), "{}", reason(&scene));
}

#[test]
fn view_that_is_old_is_not_healthy_and_says_so() {
    let seen = |state: &str, reason: Option<&str>| {
        let mut volume =
            pb::VolumeInfo { state: state.into(), reason: reason.map(str::to_owned), ..Default::default() };
        age(&mut volume, Duration::from_millis(41_900));
        (volume.state, volume.reason.unwrap())
    };
    let (state, reason) = seen("healthy", None);
    assert_eq!(state, "degraded");
    assert!(reason.starts_with("as it was 41 s ago"), "{reason}");
    let (state, reason) = seen("faulted", Some("no copy"));
    assert_eq!(state, "faulted");
    assert!(reason.contains("41 s ago") && reason.ends_with("; no copy"), "{reason}");
}
