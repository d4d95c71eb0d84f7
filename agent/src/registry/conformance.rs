//! What every home of the registry must do: one list of tests, run against each.

use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::ids::{InstanceUuid, NodeName, VolumeId, VolumeName};
use holdfast_proto::record::{AttachSpec, ClaimRecord, Desired, Intent, NodeRecord, VolumeRecord};
use holdfast_proto::status::ErrorKind;
use holdfast_proto::unknown::Unknown;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Entry, Read, Registry, Swap, VolumeKey};
use crate::core::foreign::Stored;
use crate::core::foreign::tests::claim;
use crate::core::instance::InstanceName;
use crate::core::publish::Op;
use crate::core::testing::record;

/// A tick that is due has come by then, however busy the machine.
const SOON: Duration = Duration::from_secs(20);
/// A home that has ticks to give gives the next one within this.
const QUIET: Duration = Duration::from_secs(1);

/// Runs all of it against a home that is empty.
pub(super) async fn all(home: Arc<dyn Registry>) {
    created_read_and_listed(&*home).await;
    a_write_compares_the_version_of_the_whole_record(&*home).await;
    a_record_of_another_volume_of_the_same_name_is_not_touched(&*home).await;
    of_many_at_once_one_is_first(&home).await;
    n3_status_writes_do_not_tick_and_spec_writes_do(&*home).await;
    keys_come_and_go(&*home).await;
    wishes_for_a_node_are_compared_too(&*home).await;
    what_is_kept_of_a_node_is_removed_whole(&*home).await;
    an_inventory_is_found_as_it_was_written(&*home).await;
    claims_are_of_a_node_and_compared_too(&*home).await;
    what_this_build_does_not_know_stays_in_a_record(&*home).await;
    what_needs_an_unknown_feature_is_left_alone(&*home).await;
}

fn name(name: &str) -> VolumeName {
    name.parse().unwrap()
}

async fn stored(home: &dyn Registry, name: &str) -> VolumeRecord {
    home.create(record(name, "node-a", 3)).await.unwrap()
}

fn attached(mut record: VolumeRecord) -> VolumeRecord {
    record.spec.attach = Some(AttachSpec {
        node: "node-a".parse().unwrap(),
        nbd_tcp: None,
        force_from: None,
        unknown: Unknown::default(),
    });
    record
}

async fn created_read_and_listed(home: &dyn Registry) {
    assert_eq!(home.list().await.unwrap(), [], "an empty home is empty and says so");
    assert_eq!(home.get(&name("b")).await.unwrap(), Read::Absent, "not there is an answer");
    let (b, a) = (stored(home, "b").await, stored(home, "a").await);
    assert_eq!((a.version, b.version), (1, 1));
    assert_eq!(home.get(&name("b")).await.unwrap(), Read::Found(b.clone()));
    let all = [a, b.clone()].map(|record| Entry::Readable(Box::new(record)));
    assert_eq!(home.list().await.unwrap(), all, "by name");
    let taken = home.create(record("b", "node-a", 1)).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Conflict, "{taken}");
    let mut nonsense = record("c", "node-a", 1);
    nonsense.spec.size_bytes = 5;
    assert_eq!(home.create(nonsense).await.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(home.get(&name("b")).await.unwrap(), Read::Found(b), "as it was");
}

async fn a_write_compares_the_version_of_the_whole_record(home: &dyn Registry) {
    let first = stored(home, "swap").await;
    let Swap::Stored(second) = home.compare_and_swap(1, attached(first.clone())).await.unwrap() else {
        panic!("nobody else writes");
    };
    assert_eq!((second.version, second.spec.attach.is_some()), (2, true));
    let late = home.compare_and_swap(1, first.clone()).await.unwrap();
    assert_eq!(late, Swap::Conflict(second.clone()), "with the record as it is");
    let early = home.compare_and_swap(9, first.clone()).await.unwrap();
    assert_eq!(early, Swap::Conflict(second.clone()));
    assert_eq!(home.delete(&first.name, first.id, 1).await.unwrap(), Swap::Conflict(second.clone()));
    assert_eq!(home.delete(&first.name, first.id, 2).await.unwrap(), Swap::Stored(second.clone()));
    assert_eq!(home.get(&first.name).await.unwrap(), Read::Absent);
    assert_eq!(home.compare_and_swap(2, first.clone()).await.unwrap(), Swap::Missing);
    assert_eq!(home.delete(&first.name, first.id, 2).await.unwrap(), Swap::Missing);
}

async fn a_record_of_another_volume_of_the_same_name_is_not_touched(home: &dyn Registry) {
    let old = stored(home, "again").await;
    home.delete(&old.name, old.id, 1).await.unwrap();
    let new = stored(home, "again").await;
    assert_eq!(home.compare_and_swap(1, old.clone()).await.unwrap(), Swap::Missing);
    assert_eq!(home.delete(&old.name, old.id, 1).await.unwrap(), Swap::Missing);
    assert_eq!(home.get(&old.name).await.unwrap(), Read::Found(new));
}

async fn of_many_at_once_one_is_first(home: &Arc<dyn Registry>) {
    let begun = stored(&**home, "race").await;
    let mut tasks = JoinSet::new();
    for _ in 0..16 {
        let (home, mut mine) = (Arc::clone(home), begun.clone());
        mine.status.engine_uuid = InstanceUuid::random();
        tasks.spawn(async move { (mine.status.engine_uuid, home.compare_and_swap(1, mine).await.unwrap()) });
    }
    let done = tasks.join_all().await;
    let won: Vec<_> = done.iter().filter(|(_, swap)| matches!(swap, Swap::Stored(_))).collect();
    assert_eq!(won.len(), 1, "{done:?}");
    let Read::Found(after) = home.get(&begun.name).await.unwrap() else { panic!("it is there") };
    assert_eq!((after.version, after.status.engine_uuid), (2, won[0].0));
}

async fn ticked(changes: &mut watch::Receiver<u64>) {
    tokio::time::timeout(SOON, changes.changed()).await.expect("a tick").expect("the home is open");
}

/// How often it has ticked once nothing more comes.
async fn quiet(changes: &mut watch::Receiver<u64>) -> u64 {
    while tokio::time::timeout(QUIET, changes.changed()).await.is_ok() {}
    *changes.borrow_and_update()
}

async fn n3_status_writes_do_not_tick_and_spec_writes_do(home: &dyn Registry) {
    let mut changes = home.changes();
    let mut record = stored(home, "ticks").await;
    ticked(&mut changes).await;
    let before = quiet(&mut changes).await;
    for _ in 0..3 {
        record.status.generation = record.status.generation.next().unwrap();
        record = match home.compare_and_swap(record.version, record).await.unwrap() {
            Swap::Stored(record) => *record,
            other => panic!("{other:?}"),
        };
    }
    assert_eq!(quiet(&mut changes).await, before, "an engine's own writes");
    record.spec.intent = Intent::Delete;
    home.compare_and_swap(record.version, record.clone()).await.unwrap();
    ticked(&mut changes).await;
    home.delete(&record.name, record.id, record.version + 1).await.unwrap();
    ticked(&mut changes).await;
}

async fn keys_come_and_go(home: &dyn Registry) {
    let id = VolumeId::random();
    assert_eq!(home.key(id).await.unwrap(), Read::Absent);
    for key_id in [1, 2] {
        let key = VolumeKey { key_id, key: [0x5A; 32] };
        home.put_key(id, key.clone()).await.unwrap();
        assert_eq!(home.key(id).await.unwrap(), Read::Found(key));
    }
    home.delete_key(id).await.unwrap();
    home.delete_key(id).await.unwrap();
    assert_eq!(home.key(id).await.unwrap(), Read::Absent);
}

async fn wishes_for_a_node_are_compared_too(home: &dyn Registry) {
    let node: NodeName = "node-x".parse().unwrap();
    assert_eq!(home.node(&node).await.unwrap(), Read::Absent);
    let first = NodeRecord::new(node.clone());
    assert!(home.put_node(first.clone()).await.unwrap());
    let wanted = NodeRecord { uninstall_allowed: true, version: 1, ..first.clone() };
    assert!(home.put_node(wanted.clone()).await.unwrap());
    assert!(!home.put_node(wanted.clone()).await.unwrap(), "the version was another one");
    assert!(!home.put_node(first).await.unwrap());
    assert_eq!(home.node(&node).await.unwrap(), Read::Found(NodeRecord { version: 2, ..wanted }));
}

async fn what_is_kept_of_a_node_is_removed_whole(home: &dyn Registry) {
    let (node, other): (NodeName, NodeName) = ("node-f".parse().unwrap(), "node-f.other".parse().unwrap());
    for node in [&node, &other] {
        assert!(home.put_node(NodeRecord::new(node.clone())).await.unwrap());
        let published = home.inventory(node).expect("a place for inventories");
        let key = "full/0".to_owned();
        published.write(vec![Op::Put { key, bytes: b"something".to_vec() }]).await.unwrap();
    }
    assert!(!home.forget_node(&node, 0).await.unwrap(), "its record has another version");
    assert!(home.forget_node(&node, 1).await.unwrap());
    assert_eq!(home.node(&node).await.unwrap(), Read::Absent);
    assert_eq!(home.inventory(&node).unwrap().found().await.unwrap(), []);
    assert!(home.forget_node(&node, 0).await.unwrap(), "there is nothing left to remove");
    assert!(matches!(home.node(&other).await.unwrap(), Read::Found(_)));
    assert_eq!(home.inventory(&other).unwrap().found().await.unwrap().len(), 1);
}

async fn an_inventory_is_found_as_it_was_written(home: &dyn Registry) {
    let inventory = |node: &str| home.inventory(&node.parse().unwrap()).expect("a place for inventories");
    let (mine, other) = (inventory("node-x"), inventory("node-x.other"));
    for node in [&mine, &other] {
        assert_eq!(node.found().await.unwrap(), [], "nothing was published");
    }
    let put = |key: String, bytes: &[u8]| Op::Put { key, bytes: bytes.to_vec() };
    // More than one transaction of etcd takes, in number and in bytes.
    let large = vec![7; 256 * 1024];
    let mut ops: Vec<_> = (0..8).map(|part| put(format!("full/{part}"), &large)).collect();
    ops.extend((0..200).map(|base| put(format!("delta/{base:016x}"), b"a")));
    mine.write(ops).await.unwrap();
    other.write(vec![put("full/0".to_owned(), b"theirs")]).await.unwrap();
    assert_eq!(mine.found().await.unwrap().len(), 208);
    let mut ops = vec![put("full/0".to_owned(), b"b")];
    ops.extend((1..8).map(|part| Op::Delete { key: format!("full/{part}") }));
    ops.extend((0..200).map(|base| Op::Delete { key: format!("delta/{base:016x}") }));
    mine.write(ops.clone()).await.unwrap();
    mine.write(ops).await.unwrap();
    assert_eq!(mine.found().await.unwrap(), [("full/0".to_owned(), b"b".to_vec())]);
    assert_eq!(other.found().await.unwrap(), [("full/0".to_owned(), b"theirs".to_vec())]);
}

async fn claims_are_of_a_node_and_compared_too(home: &dyn Registry) {
    let (a, b): (NodeName, NodeName) = ("node-a".parse().unwrap(), "node-b".parse().unwrap());
    assert_eq!(home.claims(&a).await.unwrap(), [].into(), "nothing is claimed, and that is an answer");
    let made = |name: &str| match claim(name, VolumeId::random(), Desired::Running) {
        (name, Stored::Readable(claim)) => (name, ClaimRecord { version: 0, ..*claim }),
        (_, Stored::Unreadable(why)) => panic!("{why}"),
    };
    let (name, first) = made("demo.r1");
    let (_, other) = made("demo.engine");
    let stored = |claim: &ClaimRecord, version| {
        let name: InstanceName = claim.instance.parse().unwrap();
        (name, Stored::Readable(Box::new(ClaimRecord { version, ..claim.clone() })))
    };
    assert!(home.put_claim(first.clone()).await.unwrap());
    assert!(home.put_claim(ClaimRecord { node: b.clone(), ..other.clone() }).await.unwrap());
    assert!(home.put_claim(other.clone()).await.unwrap());
    assert_eq!(home.claims(&a).await.unwrap(), [stored(&first, 1), stored(&other, 1)].into());
    assert!(!home.put_claim(first.clone()).await.unwrap(), "it was written meanwhile");
    assert!(home.put_claim(ClaimRecord { version: 1, ..first.clone() }).await.unwrap(), "renewed");
    assert!(!home.delete_claim(&a, &name, 1).await.unwrap(), "the version was another one");
    assert!(home.delete_claim(&a, &name, 2).await.unwrap());
    assert!(!home.delete_claim(&a, &name, 2).await.unwrap());
    assert_eq!(home.claims(&a).await.unwrap(), [stored(&other, 1)].into());
    assert_eq!(home.claims(&b).await.unwrap().len(), 1);
    let nonsense = ClaimRecord { instance: "nonsense".into(), ..first };
    assert_eq!(home.put_claim(nonsense).await.unwrap_err().kind(), ErrorKind::Invalid);
}

/// The record with one field more in each of these objects, given as paths.
fn grown<T: Serialize + DeserializeOwned>(record: &T, at: &[&str], field: &str, value: &Value) -> T {
    let mut json = serde_json::to_value(record).unwrap();
    for path in at {
        json.pointer_mut(path).unwrap()[field] = value.clone();
    }
    serde_json::from_value(json).unwrap()
}

/// How often the field is in the record, at whatever level.
fn count(record: &impl Serialize, field: &str) -> usize {
    serde_json::to_string(record).unwrap().matches(&format!("{field:?}:")).count()
}

async fn what_this_build_does_not_know_stays_in_a_record(home: &dyn Registry) {
    let later = json!({"a": [1, {"b": null}], "c": "d"});
    let levels = ["", "/spec", "/status", "/spec/replicas/0", "/spec/replicas/2", "/spec/attach"];
    let record = grown(&attached(record("grown", "node-a", 3)), &levels, "later", &later);
    let mut record = home.create(record).await.unwrap();
    for _ in 0..2 {
        record.status.generation = record.status.generation.next().unwrap();
        record.spec.intent = Intent::Keep;
        let Swap::Stored(stored) = home.compare_and_swap(record.version, record.clone()).await.unwrap()
        else {
            panic!("nobody else writes");
        };
        let Read::Found(read) = home.get(&record.name).await.unwrap() else { panic!("it is there") };
        assert_eq!((&*stored, count(&read, "later")), (&read, levels.len()));
        record = read;
    }
    home.delete(&record.name, record.id, record.version).await.unwrap();

    let node: NodeName = "node-grown".parse().unwrap();
    assert!(home.put_node(grown(&NodeRecord::new(node.clone()), &[""], "later", &later)).await.unwrap());
    let Read::Found(read) = home.node(&node).await.unwrap() else { panic!("it is there") };
    assert!(home.put_node(NodeRecord { draining: true, ..read }).await.unwrap());
    let Read::Found(read) = home.node(&node).await.unwrap() else { panic!("it is there") };
    assert_eq!((count(&read, "later"), read.draining), (1, true));

    let (name, Stored::Readable(claim)) = claim("grown.r1", VolumeId::random(), Desired::Keep) else {
        panic!("it can be read");
    };
    let claim = ClaimRecord { version: 0, node: node.clone(), ..*claim };
    assert!(home.put_claim(grown(&claim, &[""], "later", &later)).await.unwrap());
    let claims = home.claims(&node).await.unwrap();
    let Stored::Readable(read) = &claims[&name] else { panic!("{claims:?}") };
    assert_eq!(count(read, "later"), 1);
}

async fn what_needs_an_unknown_feature_is_left_alone(home: &dyn Registry) {
    let needs = json!(["stamps", "tomorrow"]);
    let told = |reason: &str| {
        assert!(reason.contains("\"tomorrow\"") && reason.contains("upgrade this node's agent"), "{reason}");
    };
    let (before, known) = (stored(home, "newer").await, stored(home, "known").await);
    let known = grown(&known, &[""], "requires", &json!(["stamps"]));
    let known = home.compare_and_swap(1, known).await.unwrap();
    assert!(matches!(&known, Swap::Stored(_)), "{known:?}");
    let newer = grown(&before, &[""], "requires", &needs);
    assert!(matches!(home.compare_and_swap(1, newer).await.unwrap(), Swap::Stored(_)));
    let Read::Unreadable(reason) = home.get(&before.name).await.unwrap() else {
        panic!("it is not understood")
    };
    told(&reason);
    let listed = home.list().await.unwrap();
    let entry = listed.iter().find(|entry| entry.name() == "newer");
    assert!(matches!(entry, Some(Entry::Unreadable { reason, .. }) if { told(reason); true }), "{entry:?}");
    assert!(listed.iter().any(|entry| entry.name() == "known" && matches!(entry, Entry::Readable(_))));
    for version in [1, 2] {
        let swap = home.compare_and_swap(version, before.clone()).await.unwrap_err();
        told(&swap.to_string());
        let deleted = home.delete(&before.name, before.id, version).await.unwrap_err();
        told(&deleted.to_string());
    }
    let taken = home.create(before).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Conflict, "{taken}");

    let node: NodeName = "node-newer".parse().unwrap();
    assert!(home.put_node(grown(&NodeRecord::new(node.clone()), &[""], "requires", &needs)).await.unwrap());
    let Read::Unreadable(reason) = home.node(&node).await.unwrap() else { panic!("it is not understood") };
    told(&reason);
    told(&home.put_node(NodeRecord { version: 1, ..NodeRecord::new(node) }).await.unwrap_err().to_string());
}
