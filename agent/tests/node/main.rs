//! The supervisor with real processes: starting, adopting, ending, and what it leaves alone. The processes are copies
//! of this test that keep the control contract and serve nothing ([`fake`]).

mod fake;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use holdfast::core::follow::{Follower, Inventory, Knowledge};
use holdfast::node::{self, Change, NodeConfig, NodeHandle, ShutdownProgress, Snapshot};
use holdfast::registry::inventory::{InventoryFiles, InventoryHome as _};
use holdfast_proto::inventory::{Key, Kind};
use holdfast_proto::pb::agent as pb;
use holdfast_proto::pb::inventory as ipb;
use holdfast_proto::pb::inventory::entry::Entry as Of;
use holdfast_proto::status::ErrorKind;

const SOON: Duration = Duration::from_secs(30);

struct Site {
    tmp: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        Self { tmp: tempfile::Builder::new().prefix("hf").tempdir().unwrap() }
    }
    fn data(&self) -> PathBuf {
        self.tmp.path().join("data")
    }
    fn path(&self, path: &str) -> PathBuf {
        self.data().join(path)
    }
    fn config(&self) -> NodeConfig {
        let node = "node-a".parse().unwrap();
        let mut config = NodeConfig::new(node, self.data(), self.tmp.path().join("run"));
        config.binary = Some(std::env::current_exe().unwrap());
        config.listen_display = "unix:/run/test.sock".into();
        config
    }
    async fn start(&self) -> NodeHandle {
        node::start(self.config()).await.unwrap()
    }
    fn replica_dir(&self, id: &str) -> PathBuf {
        let dirs = std::fs::read_dir(self.path("replicas")).unwrap().map(|e| e.unwrap().path());
        dirs.into_iter().find(|dir| dir.to_string_lossy().contains(&format!(".{id}."))).unwrap()
    }
}

impl Drop for Site {
    /// Ends what a failed test left: exactly the processes that this site's records name.
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.path("instances")).into_iter().flatten().flatten() {
            let Ok(text) = std::fs::read_to_string(entry.path().join("record.json")) else { continue };
            let Ok(record) = serde_json::from_str::<serde_json::Value>(&text) else { continue };
            if let Some(pid) = record["process"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()) {
                kill(pid);
            }
        }
    }
}

fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie is dead; its parent just has not looked.
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// Waits on changes of the inventory until it is as `wanted` says.
async fn until(node: &NodeHandle, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Snapshot {
    let deadline = Instant::now() + SOON;
    let (mut snapshot, mut changes) = node.subscribe();
    while !wanted(&snapshot) {
        let left = deadline.saturating_duration_since(Instant::now());
        let changed = tokio::time::timeout(left, changes.recv()).await;
        assert!(matches!(changed, Ok(Ok(_))), "waited for {what}; the node is {:#?}", node.snapshot());
        snapshot = node.snapshot();
    }
    snapshot
}

fn instance<'a>(snapshot: &'a Snapshot, name: &str) -> &'a pb::InstanceInfo {
    snapshot.instances.iter().find(|i| i.name == name).unwrap_or_else(|| panic!("{name}: {snapshot:#?}"))
}
fn running(snapshot: &Snapshot, name: &str) -> bool {
    snapshot.instances.iter().any(|i| i.name == name && i.state == "running")
}
fn volume_is(state: &str) -> impl Fn(&Snapshot) -> bool {
    move |snapshot| snapshot.volumes.first().is_some_and(|v| v.state == state)
}
fn pids(snapshot: &Snapshot) -> Vec<(String, String, Option<i32>)> {
    snapshot.instances.iter().map(|i| (i.name.clone(), i.uuid.clone(), i.pid)).collect()
}

async fn create(node: &NodeHandle, name: &str, replicas: u32) -> pb::VolumeInfo {
    let request =
        pb::CreateVolumeRequest { name: name.into(), size_bytes: 1 << 20, replicas, ..Default::default() };
    node.create_volume(request).await.unwrap()
}
async fn attach(node: &NodeHandle, name: &str) -> pb::VolumeInfo {
    let request = pb::AttachVolumeRequest { name: name.into(), ..Default::default() };
    node.attach_volume(request).await.unwrap()
}
async fn healthy(node: &NodeHandle, name: &str, replicas: u32) -> Snapshot {
    create(node, name, replicas).await;
    attach(node, name).await;
    until(node, "a healthy volume", volume_is("healthy")).await
}
fn detach(name: &str, force: bool) -> pb::DetachVolumeRequest {
    pb::DetachVolumeRequest { name: name.into(), force }
}
fn delete(name: &str, purge_data: bool) -> pb::DeleteVolumeRequest {
    pb::DeleteVolumeRequest { name: name.into(), purge_data }
}

async fn a_volume_from_creation_to_deletion() {
    let site = Site::new();
    let node = site.start().await;
    let made = create(&node, "demo", 3).await;
    assert_eq!((made.state.as_str(), made.generation, made.replicas.len()), ("detached", 0, 3));
    let request = pb::CreateVolumeRequest {
        name: "demo".into(),
        size_bytes: 1 << 20,
        replicas: 1,
        ..Default::default()
    };
    let again = node.create_volume(request.clone()).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict);
    for (change, problem) in [
        (pb::CreateVolumeRequest { size_bytes: 5, ..request.clone() }, "multiple of 4096"),
        (pb::CreateVolumeRequest { replicas: 6, ..request.clone() }, "expected 1 to 5"),
        (pb::CreateVolumeRequest { replicas: 0, ..request.clone() }, "expected 1 to 5"),
        (pb::CreateVolumeRequest { name: "../x".into(), ..request.clone() }, "volume name"),
        (pb::CreateVolumeRequest { io_mode: "psychic".into(), ..request }, "buffered or direct"),
    ] {
        let error = node.create_volume(change).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(problem), "{error}");
    }
    let attached = attach(&node, "demo").await;
    assert!(attached.endpoint.as_ref().unwrap().starts_with("nbd+unix:///demo?socket=/"), "{attached:?}");
    assert_eq!(attached.generation, 1);
    assert!(attached.replicas.iter().all(|r| r.mode == "member" && r.pid.is_some()), "{attached:?}");
    let before = pids(&node.snapshot());
    assert_eq!(attach(&node, "demo").await.state, "healthy", "idempotent");
    assert_eq!(pids(&node.snapshot()), before);
    let refused = node.delete_volume(delete("demo", false)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);

    let detached = node.detach_volume(detach("demo", false)).await.unwrap();
    assert_eq!((detached.state.as_str(), detached.endpoint), ("detached", None));
    assert_eq!(node.detach_volume(detach("demo", false)).await.unwrap().state, "detached", "idempotent");
    assert!(before.iter().all(|(_, _, pid)| !alive(pid.unwrap())));
    assert_eq!(attach(&node, "demo").await.generation, 2);
    let engine =
        |s: &[(String, String, Option<i32>)]| s.iter().find(|i| i.0 == "demo.engine").unwrap().1.clone();
    assert_ne!(engine(&pids(&node.snapshot())), engine(&before), "each attachment is a creation");
    node.detach_volume(detach("demo", false)).await.unwrap();

    let reply = node.delete_volume(delete("demo", false)).await.unwrap();
    assert_eq!((reply.kept_dirs.len(), reply.trashed_dirs.len()), (3, 0));
    assert!(node.snapshot().volumes.is_empty() && node.snapshot().instances.is_empty());
    let dirs = node.replica_dirs().await;
    assert_eq!(dirs.len(), 3);
    assert!(dirs.iter().all(|dir| dir.claim == "unclaimed" && dir.volume_id == made.id), "{dirs:?}");
    assert_eq!(node.volume("demo").await.unwrap_err().kind(), ErrorKind::NotFound);

    create(&node, "demo", 2).await;
    assert_eq!(node.replica_dirs().await.len(), 5, "a name given again meets no old data");
    let reply = node.delete_volume(delete("demo", true)).await.unwrap();
    assert_eq!((reply.kept_dirs.len(), reply.trashed_dirs.len()), (0, 2));
    assert!(reply.trashed_dirs.iter().all(|dir| PathBuf::from(dir).join("head.img").exists()));
    assert_eq!(node.replica_dirs().await.len(), 3, "d1: only its own data");
    node.shutdown(true).await.unwrap();
}

async fn clients_hold_a_volume_unless_forced() {
    let site = Site::new();
    let node = site.start().await;
    healthy(&node, "busy", 1).await;
    let refused = node.detach_volume(detach("busy", false)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert!(refused.to_string().contains("1 client is connected"), "{refused}");
    assert_eq!(node.volume("busy").await.unwrap().state, "healthy");
    assert_eq!(node.detach_volume(detach("busy", true)).await.unwrap().state, "detached");
    node.shutdown(true).await.unwrap();
}

async fn a_restarted_agent_adopts_everything_as_it_is() {
    let site = Site::new();
    let node = site.start().await;
    let before = healthy(&node, "demo", 3).await;
    node.shutdown(false).await.unwrap();
    assert!(before.instances.iter().all(|i| alive(i.pid.unwrap())));
    // As if the agent had been killed between the spawn and the second write of the record.
    let path = site.path("instances/demo.r2/record.json");
    let mut record: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    record["process"] = serde_json::Value::Null;
    std::fs::write(&path, record.to_string()).unwrap();

    let node = site.start().await;
    // The engine says that the volume is healthy, whichever of the replicas the agent has found by then.
    let adopted = |s: &Snapshot| volume_is("healthy")(s) && s.instances.iter().all(|i| running(s, &i.name));
    let after = until(&node, "adoption", adopted).await;
    assert_eq!(pids(&after), pids(&before));
    assert!(after.instances.iter().all(|i| i.restarts == 0 && i.state == "running" && i.claim == "claimed"));
    assert_eq!(after.volumes[0].generation, 1, "the engine was not disturbed");
    let record: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let pid = before.instances.iter().find(|i| i.name == "demo.r2").unwrap().pid;
    assert_eq!(record["process"]["pid"].as_i64(), pid.map(i64::from));
    node.shutdown(true).await.unwrap();
}

async fn n6_of_operations_on_a_volume_an_equal_one_joins_and_a_different_one_is_told_to_come_back() {
    let site = Site::new();
    let node = site.start().await;
    healthy(&node, "demo", 2).await;
    healthy_beside(&node, "other").await;
    let again = pb::AttachVolumeRequest { name: "demo".into(), ..Default::default() };
    let beside = pb::AttachVolumeRequest { name: "other".into(), ..Default::default() };
    let (first, equal, different, elsewhere) = tokio::join!(
        node.detach_volume(detach("demo", false)),
        node.detach_volume(detach("demo", false)),
        node.attach_volume(again),
        node.attach_volume(beside),
    );
    assert_eq!((first.unwrap().state, equal.unwrap().state), ("detached".into(), "detached".into()));
    let different = different.unwrap_err();
    assert_eq!(different.kind(), ErrorKind::Conflict);
    assert!(different.to_string().contains("detach is under way"), "{different}");
    assert_eq!(elsewhere.unwrap().state, "healthy", "another volume's do not wait");
    node.shutdown(true).await.unwrap();
}

async fn healthy_beside(node: &NodeHandle, name: &str) {
    create(node, name, 1).await;
    attach(node, name).await;
    let is_healthy = |s: &Snapshot| s.volumes.iter().any(|v| v.name == name && v.state == "healthy");
    until(node, "a healthy volume beside it", is_healthy).await;
}

async fn n7_a_detach_needs_nothing_but_what_the_attach_left() {
    let site = Site::new();
    let node = site.start().await;
    let before = healthy(&node, "demo", 2).await;
    node.shutdown(false).await.unwrap();
    // Whatever a start would need is gone by now.
    std::fs::remove_dir_all(site.path("registry/keys")).unwrap();
    let node = site.start().await;
    let detached = node.detach_volume(detach("demo", true)).await.unwrap();
    assert_eq!(detached.state, "detached", "{detached:?}");
    assert!(before.instances.iter().all(|instance| !alive(instance.pid.unwrap())));
    node.shutdown(true).await.unwrap();
}

async fn a_killed_process_is_started_again_under_its_own_name() {
    let site = Site::new();
    let node = site.start().await;
    let before = healthy(&node, "demo", 2).await;
    let (old, address) =
        (instance(&before, "demo.r1").clone(), before.volumes[0].replicas[0].address.clone());
    kill(old.pid.unwrap());
    let again = |name: &'static str| {
        move |s: &Snapshot| running(s, name) && instance(s, name).restarts == 1 && volume_is("healthy")(s)
    };
    let after = until(&node, "the replica's return", again("demo.r1")).await;
    let new = instance(&after, "demo.r1");
    assert_eq!(new.uuid, old.uuid);
    assert_ne!(new.pid, old.pid);
    assert_eq!(after.volumes[0].replicas[0].address, address, "it keeps its port");
    assert_eq!(instance(&after, "demo.engine").pid, instance(&before, "demo.engine").pid);

    kill(instance(&after, "demo.engine").pid.unwrap());
    let after = until(&node, "the engine's return", again("demo.engine")).await;
    assert_eq!(after.volumes[0].generation, 2);
    node.shutdown(true).await.unwrap();
}

async fn a_missing_directory_is_absent_and_never_made_again() {
    let site = Site::new();
    let node = site.start().await;
    create(&node, "demo", 2).await;
    let (r1, r2) = (site.replica_dir("r1"), site.replica_dir("r2"));
    let away = site.path("away");
    std::fs::rename(&r1, &away).unwrap();
    attach(&node, "demo").await;
    let shown = until(&node, "a degraded volume", volume_is("degraded")).await;
    let replica = &shown.volumes[0].replicas[0];
    assert_eq!(replica.mode, "absent");
    assert!(replica.reason.as_ref().unwrap().contains("is the disk mounted?"), "{replica:?}");
    assert!(!r1.exists() && !shown.instances.iter().any(|i| i.name == "demo.r1"));
    std::fs::rename(&away, &r1).unwrap();
    until(&node, "the mounted disk", volume_is("healthy")).await;
    node.detach_volume(detach("demo", false)).await.unwrap();

    std::fs::remove_dir_all(&r1).unwrap();
    std::fs::remove_dir_all(&r2).unwrap();
    attach(&node, "demo").await;
    let shown = until(&node, "a faulted volume", volume_is("faulted")).await;
    assert!(shown.volumes[0].replicas.iter().all(|r| r.mode == "absent"));
    assert!(!r1.exists() && !r2.exists(), "a volume never comes back as zeros");
    node.shutdown(true).await.unwrap();
}

async fn a_damaged_record_stops_nothing() {
    let site = Site::new();
    let node = site.start().await;
    let before = healthy(&node, "demo", 2).await;
    let path = site.path("registry/volumes/demo.json");
    let good = std::fs::read(&path).unwrap();
    for bad in [&good[..good.len() / 2], b"{\"schema\": 99}"] {
        std::fs::write(&path, bad).unwrap();
        let all = |claim: &'static str| move |s: &Snapshot| s.instances.iter().all(|i| i.claim == claim);
        let shown = until(&node, "the damage to be seen", all("unknown")).await;
        assert_eq!(pids(&shown), pids(&before));
        assert!(shown.volumes[0].reason.as_ref().unwrap().contains("cannot be read"));
        let refused = node.stop_instance("demo.r1", "").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused);
        assert!(node.detach_volume(detach("demo", true)).await.is_err());
        let other = format!("other-{}", bad.len());
        create(&node, &other, 1).await;
        node.delete_volume(delete(&other, true)).await.unwrap();
        std::fs::write(&path, &good).unwrap();
        let shown = until(&node, "the repair to be seen", all("claimed")).await;
        assert_eq!(pids(&shown), pids(&before));
    }
    node.shutdown(true).await.unwrap();
}

async fn an_instance_without_a_record_runs_until_a_person_stops_it() {
    let site = Site::new();
    let node = site.start().await;
    let before = healthy(&node, "demo", 1).await;
    let refused = node.stop_instance("demo.r1", "").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused, "claimed");
    std::fs::remove_file(site.path("registry/volumes/demo.json")).unwrap();
    let unclaimed = |s: &Snapshot| s.instances.iter().all(|i| i.claim == "unclaimed");
    let shown = until(&node, "unclaimed instances", unclaimed).await;
    assert_eq!(pids(&shown), pids(&before), "they keep running");
    let stranger = node.stop_instance("demo.r1", &uuid::Uuid::new_v4().to_string()).await.unwrap_err();
    assert_eq!(stranger.kind(), ErrorKind::Conflict, "o8: another creation");
    assert_eq!(node.stop_instance("ghost.r1", "").await.unwrap_err().kind(), ErrorKind::NotFound);
    let r1 = instance(&before, "demo.r1").clone();
    node.stop_instance("demo.r1", &r1.uuid).await.unwrap();
    until(&node, "its end", |s| !s.instances.iter().any(|i| i.name == "demo.r1")).await;
    assert!(!alive(r1.pid.unwrap()));
    assert!(site.replica_dir("r1").join("head.img").exists(), "its data stays");
    node.shutdown(true).await.unwrap();
}

async fn what_cannot_be_asked_is_left_alone() {
    let site = Site::new();
    let node = site.start().await;
    let before = healthy(&node, "demo", 3).await;
    node.shutdown(false).await.unwrap();
    let r1 = site.path("instances/demo.r1/record.json");
    std::fs::write(&r1, "{").unwrap();
    let record = std::fs::read_to_string(site.path("instances/demo.r2/record.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    std::fs::remove_file(record["control_socket"].as_str().unwrap()).unwrap();

    let node = site.start().await;
    let unknown = |s: &Snapshot| {
        let reason = |name| instance(s, name).reason.clone().unwrap_or_default();
        reason("demo.r1").contains("cannot be read") && reason("demo.r2").contains("cannot be asked")
    };
    let shown = until(&node, "the unknown", |s| running(s, "demo.engine") && unknown(s)).await;
    assert_eq!(instance(&shown, "demo.r1").claim, "unknown");
    for name in ["demo.r1", "demo.r2", "demo.r3", "demo.engine"] {
        assert!(alive(instance(&before, name).pid.unwrap()), "{name}");
    }
    assert_eq!(std::fs::read_to_string(&r1).unwrap(), "{", "not touched");
    // Once they are proven dead, they come back.
    for name in ["demo.r1", "demo.r2"] {
        kill(instance(&before, name).pid.unwrap());
    }
    let back = until(&node, "their return", |s| running(s, "demo.r1") && running(s, "demo.r2")).await;
    assert_eq!(instance(&back, "demo.r1").uuid, instance(&before, "demo.r1").uuid, "the record's creation");
    node.shutdown(true).await.unwrap();
}

async fn a_silent_engine_is_not_detached_without_force() {
    let site = Site::new();
    let node = site.start().await;
    let before = healthy(&node, "demo", 1).await;
    node.shutdown(false).await.unwrap();
    let record = std::fs::read_to_string(site.path("instances/demo.engine/record.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    let (socket, away) = (PathBuf::from(record["control_socket"].as_str().unwrap()), site.path("away.sock"));
    std::fs::rename(&socket, &away).unwrap();
    let node = site.start().await;
    let silent = |s: &Snapshot| instance(s, "demo.engine").state == "error";
    until(&node, "a silent engine", silent).await;
    let refused = node.detach_volume(detach("demo", false)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert!(refused.to_string().contains("does not answer"), "{refused}");
    // It answers again, and nothing was lost.
    std::fs::rename(&away, &socket).unwrap();
    let after = until(&node, "the engine's answer", volume_is("healthy")).await;
    assert_eq!(pids(&after), pids(&before));
    assert_eq!(node.detach_volume(detach("demo", false)).await.unwrap().state, "detached");
    node.shutdown(true).await.unwrap();
}

async fn a_shutdown_ends_engines_before_replicas_and_is_found_again() {
    let site = Site::new();
    let node = site.start().await;
    let before = healthy(&node, "demo", 2).await;
    let mut progress = node.shutdown_progress();
    let watching = tokio::spawn(async move {
        let mut seen = Vec::new();
        loop {
            let now = progress.borrow_and_update().clone();
            let done = matches!(now, ShutdownProgress::Done(_));
            seen.push(now);
            if done || progress.changed().await.is_err() {
                return seen;
            }
        }
    });
    node.shutdown(true).await.unwrap();
    let seen = watching.await.unwrap();
    assert_eq!(seen.last(), Some(&ShutdownProgress::Done(vec![])));
    let replicas = seen.iter().position(|p| matches!(p, ShutdownProgress::Replicas(_))).unwrap();
    assert!(!seen[replicas..].iter().any(|p| matches!(p, ShutdownProgress::Engines(_))), "{seen:?}");
    assert!(before.instances.iter().all(|i| !alive(i.pid.unwrap())));
    let record = std::fs::read_to_string(site.path("registry/volumes/demo.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["status"]["clean"], true);
    assert!(node.create_volume(pb::CreateVolumeRequest::default()).await.is_err(), "it has ended");

    let node = site.start().await;
    let after = until(&node, "the volume again", volume_is("healthy")).await;
    assert_eq!(after.volumes[0].generation, 2);
    assert!(after.instances.iter().all(|i| i.restarts == 0), "{after:?}");
    node.shutdown(true).await.unwrap();
}

async fn a_second_agent_is_told_who_holds_the_directory() {
    let site = Site::new();
    let node = site.start().await;
    let error = node::start(site.config()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let said = error.to_string();
    assert!(said.contains(&std::process::id().to_string()) && said.contains("unix:/run/test.sock"), "{said}");
    node.shutdown(false).await.unwrap();
    site.start().await.shutdown(false).await.unwrap();
}

async fn a_subscriber_loses_and_repeats_nothing() {
    let site = Site::new();
    let node = site.start().await;
    let (mut state, mut changes) = node.subscribe();
    healthy(&node, "demo", 2).await;
    node.detach_volume(detach("demo", false)).await.unwrap();
    node.delete_volume(delete("demo", true)).await.unwrap();
    create(&node, "next", 1).await;
    let end = node.snapshot();
    while state.revision < end.revision {
        let (revision, change) = changes.try_recv().unwrap();
        assert_eq!(revision, state.revision + 1);
        state.revision = revision;
        match change {
            Change::InstanceChanged(i) => {
                state.instances.retain(|old| old.name != i.name);
                state.instances.push(i);
            }
            Change::InstanceRemoved(name) => state.instances.retain(|old| old.name != name),
            Change::VolumeChanged(v) => {
                state.volumes.retain(|old| old.name != v.name);
                state.volumes.push(v);
            }
            Change::VolumeRemoved(name) => state.volumes.retain(|old| old.name != name),
        }
    }
    assert_eq!(state, end);
    node.shutdown(true).await.unwrap();
}

async fn n3_a_quiet_node_stays_quiet() {
    let site = Site::new();
    let node = site.start().await;
    healthy(&node, "demo", 3).await;
    let path = site.path("registry/volumes/demo.json");
    let (before, record) = (node.snapshot().revision, std::fs::read(&path).unwrap());
    // Two full reconciles, by their timer.
    let (_, mut changes) = node.subscribe();
    let quiet = tokio::time::timeout(Duration::from_secs(11), changes.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    assert_eq!((node.snapshot().revision, std::fs::read(&path).unwrap()), (before, record));
    node.shutdown(true).await.unwrap();
}

macro_rules! tests {
    ($($name:ident),* $(,)?) => { [$((stringify!($name), || run($name()))),*] };
}

/// What a reader makes of the published inventory, once it is as `wanted` says.
async fn published(site: &Site, what: &str, wanted: impl Fn(&Inventory) -> bool) -> Inventory {
    let home = InventoryFiles::new(&site.path("registry"), &"node-a".parse().unwrap());
    let deadline = Instant::now() + SOON;
    loop {
        let mut follower = Follower::new("node-a".parse().unwrap());
        follower.list(&home.found().await.unwrap());
        let told = match follower.inventory() {
            Knowledge::Known(inventory) if wanted(inventory) => return inventory.clone(),
            told => format!("{told:#?}"),
        };
        assert!(Instant::now() < deadline, "waited for {what}; published is {told}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn what_the_node_has_is_published_and_each_change_follows() {
    let site = Site::new();
    let node = site.start().await;
    let names = |inventory: &Inventory, kind: Kind| -> Vec<String> {
        inventory.entries.keys().filter(|key| key.kind == kind).map(|key| key.name.clone()).collect()
    };
    let first = published(&site, "a first list", |_| true).await;
    assert_eq!((names(&first, Kind::Node).len(), names(&first, Kind::Disk).len()), (1, 1));
    assert_eq!(names(&first, Kind::Instance), [""; 0]);
    create(&node, "demo", 2).await;
    published(&site, "two directories", |i| names(i, Kind::ReplicaDir).len() == 2).await;
    attach(&node, "demo").await;
    let snapshot = until(&node, "a healthy volume", volume_is("healthy")).await;
    let running = published(&site, "three instances", |inventory| {
        let up = |of: &Of| matches!(of, Of::Instance(i) if i.state() == ipb::State::Running);
        inventory.entries.values().filter_map(|entry| entry.entry.as_ref()).filter(|of| up(of)).count() == 3
    })
    .await;
    let key = Key { kind: Kind::Instance, name: "demo.r1".to_owned() };
    let Some(Of::Instance(r1)) = running.entries[&key].entry.clone() else { panic!("{running:?}") };
    let told = instance(&snapshot, "demo.r1");
    assert_eq!(uuid::Uuid::from_slice(&r1.uuid).unwrap().to_string(), told.uuid);
    assert_eq!(Some(&r1.address), told.address.as_ref());
    node.detach_volume(detach("demo", true)).await.unwrap();
    node.delete_volume(delete("demo", true)).await.unwrap();
    published(&site, "nothing left", |i| {
        names(i, Kind::Instance).is_empty() && names(i, Kind::ReplicaDir).is_empty()
    })
    .await;
    node.shutdown(true).await.unwrap();
    drop(node);
    // Another run of the agent begins another session.
    let again = site.start().await;
    published(&site, "a later session", |inventory| inventory.session > first.session).await;
    let shown = again.node_info().await;
    assert_eq!(shown.disks.len(), 1, "{shown:?}");
    assert_eq!((shown.instance_protocol_min, shown.data_protocol_min > 0), (1, true));
    again.shutdown(true).await.unwrap();
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test);
}

fn main() {
    fake::run_if_asked();
    let tests: [(&str, fn()); 16] = tests![
        a_volume_from_creation_to_deletion,
        clients_hold_a_volume_unless_forced,
        a_restarted_agent_adopts_everything_as_it_is,
        n6_of_operations_on_a_volume_an_equal_one_joins_and_a_different_one_is_told_to_come_back,
        n7_a_detach_needs_nothing_but_what_the_attach_left,
        a_killed_process_is_started_again_under_its_own_name,
        a_missing_directory_is_absent_and_never_made_again,
        a_damaged_record_stops_nothing,
        an_instance_without_a_record_runs_until_a_person_stops_it,
        what_cannot_be_asked_is_left_alone,
        a_silent_engine_is_not_detached_without_force,
        a_shutdown_ends_engines_before_replicas_and_is_found_again,
        a_second_agent_is_told_who_holds_the_directory,
        a_subscriber_loses_and_repeats_nothing,
        n3_a_quiet_node_stays_quiet,
        what_the_node_has_is_published_and_each_change_follows,
    ];
    if let Ok(filter) = std::env::var("RUST_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    // The options of cargo's own harness are taken and mean nothing here; a bare word is a filter.
    let args: Vec<String> = std::env::args().skip(1).collect();
    let filter = args.iter().find(|arg| !arg.starts_with('-'));
    if args.iter().any(|arg| arg == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    let mut failed = 0;
    for (name, test) in tests.into_iter().filter(|(name, _)| filter.is_none_or(|f| name.contains(f.as_str())))
    {
        let ok = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        failed += i32::from(!ok);
    }
    if failed > 0 {
        println!("{failed} failed");
        std::process::exit(1);
    }
}
