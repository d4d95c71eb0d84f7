use std::time::Duration;

use holdfast_proto::ids::{BootId, NodeName};
use holdfast_proto::inventory::{FORMAT, encode};
use holdfast_proto::pb::inventory::{Document, Full, document};
use holdfast_proto::status::ErrorKind;
use holdfast_tests::etcd::Etcd;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::config::EtcdPlace;
use crate::core::nodes::{Heard, Nodes};
use crate::core::presence::{Lodging, Standing};
use crate::core::publish::Op;
use crate::core::testing::{published_node, record};
use crate::registry::{Announcement, Read, Registry as _, Swap, conformance};

const SOON: Duration = Duration::from_secs(30);

fn home(etcd: &Etcd, prefix: &str) -> EtcdHome {
    let endpoints = (0..etcd.members()).map(|index| etcd.endpoint(index)).collect();
    EtcdHome {
        place: EtcdPlace { endpoints, prefix: prefix.to_owned() },
        ca: None,
        certificate: None,
        user: None,
    }
}

/// What one node knows and sees of the registry below `prefix`.
async fn open(etcd: &Etcd, prefix: &str) -> (TempDir, EtcdRegistry) {
    let tmp = tempfile::tempdir().unwrap();
    let registry = EtcdRegistry::open(home(etcd, prefix), tmp.path()).await.unwrap();
    (tmp, registry)
}

/// Repeats a question until it is answered.
async fn answered<T, F: Future<Output = Result<T, Error>>>(ask: impl Fn() -> F) -> T {
    tokio::time::timeout(SOON, async {
        loop {
            if let Ok(answer) = ask().await {
                return answer;
            }
        }
    })
    .await
    .expect("an answer in time")
}

#[tokio::test]
async fn etcd_is_a_home_like_any_other() {
    let etcd = Etcd::start(1);
    let (_tmp, registry) = open(&etcd, "/conformance").await;
    conformance::all(Arc::new(registry)).await;
}

#[tokio::test]
async fn two_nodes_see_one_registry_and_another_prefix_is_another() {
    let etcd = Etcd::start(1);
    let ((_a, a), (_b, b)) = (open(&etcd, "/one").await, open(&etcd, "/one").await);
    let (_c, c) = open(&etcd, "/other").await;
    assert_eq!(a.incarnation(), b.incarnation());
    assert_ne!(a.incarnation(), c.incarnation());
    let mut changes = b.changes();
    let made = a.create(record("demo", "node-a", 1)).await.unwrap();
    assert_eq!(
        b.get(&made.name).await.unwrap(),
        Read::Found(made.clone()),
        "read at once, wherever it was written"
    );
    assert_eq!(c.list().await.unwrap(), []);
    tokio::time::timeout(SOON, changes.wait_for(|ticks| *ticks >= 2)).await.unwrap().unwrap();
}

#[tokio::test]
async fn one_of_three_members_may_be_killed_or_silent_and_two_may_not() {
    let mut etcd = Etcd::start(3);
    let (_tmp, registry) = open(&etcd, "/hf").await;
    let mut record = registry.create(record("demo", "node-a", 1)).await.unwrap();
    let leader = etcd.leader();
    etcd.kill(leader);
    assert_eq!(answered(|| registry.list()).await.len(), 1);
    etcd.run(leader);
    etcd.wait_healthy();
    let leader = etcd.leader();
    etcd.freeze(leader);
    record = loop {
        // A change whose answer was lost is decided by what stands there.
        match registry.compare_and_swap(record.version, record.clone()).await {
            Ok(Swap::Stored(stored) | Swap::Conflict(stored)) => break *stored,
            Ok(Swap::Missing) => panic!("it is there"),
            Err(_) => {}
        }
    };
    assert_eq!(record.version, 2);
    etcd.kill((leader + 1) % 3);
    let said = registry.list().await.unwrap_err().to_string();
    assert!(said.contains("127.0.0.1"), "an error names the servers, it is no empty list: {said}");
    etcd.thaw(leader);
    assert_eq!(answered(|| registry.list()).await.len(), 1);
}

#[tokio::test]
async fn a_watch_goes_on_after_a_compaction() {
    let etcd = Etcd::start(1);
    let (_tmp, registry) = open(&etcd, "/hf").await;
    let (_other, other) = open(&etcd, "/hf").await;
    let mut changes = registry.changes();
    etcd.freeze(0);
    etcd.thaw(0);
    for n in 0..5 {
        other.create(record(&format!("v{n}"), "node-b", 1)).await.unwrap();
    }
    etcd.compact();
    other.create(record("after", "node-b", 1)).await.unwrap();
    tokio::time::timeout(SOON, changes.changed()).await.unwrap().unwrap();
    assert_eq!(registry.list().await.unwrap().len(), 6);
}

#[tokio::test]
async fn o4_an_etcd_that_was_emptied_is_an_error_and_never_an_empty_list() {
    let mut etcd = Etcd::start(1);
    let (_tmp, registry) = open(&etcd, "/hf").await;
    let made = registry.create(record("demo", "node-a", 1)).await.unwrap();
    etcd.with_all_down(|etcd| std::fs::remove_dir_all(etcd.data_dir(0)).unwrap());
    for _ in 0..5 {
        assert!(registry.list().await.is_err());
        assert!(registry.get(&made.name).await.is_err());
        assert!(registry.compare_and_swap(1, made.clone()).await.is_err());
        assert!(registry.node(&"node-a".parse().unwrap()).await.is_err());
    }
    let said = registry.list().await.unwrap_err().to_string();
    assert!(
        said.contains("incarnation") || said.contains("cluster") || said.contains("back in time"),
        "{said}"
    );
    let mut fresh = record("demo", "node-a", 1);
    fresh.id = made.id;
    assert!(registry.create(fresh).await.is_err(), "nothing is written into it either");
}

/// Copies the data of the only member, while it is down.
fn copy_member(etcd: &mut Etcd, to: &Path) {
    etcd.with_all_down(|etcd| copy(&etcd.data_dir(0), to));
}

/// Puts back what was copied.
fn restore_member(etcd: &mut Etcd, from: &Path) {
    etcd.with_all_down(|etcd| {
        std::fs::remove_dir_all(etcd.data_dir(0)).unwrap();
        copy(from, &etcd.data_dir(0));
    });
}

fn copy(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

/// Repeats a question until the answer is that etcd went back in time.
async fn refused<T: std::fmt::Debug, F: Future<Output = Result<T, Error>>>(ask: impl Fn() -> F) -> String {
    tokio::time::timeout(SOON, async {
        loop {
            let said = ask().await.expect_err("nothing of it is believed").to_string();
            if said.contains("back in time") {
                return said;
            }
        }
    })
    .await
    .expect("it is noticed")
}

fn put_inventory() -> Vec<Op> {
    vec![Op::Put { key: "full/0".to_owned(), bytes: b"a".to_vec() }]
}

#[tokio::test]
async fn an_older_etcd_takes_no_write_that_comes_before_a_read() {
    let mut etcd = Etcd::start(1);
    let (_a, a) = open(&etcd, "/hf").await;
    let (_b, b) = open(&etcd, "/hf").await;
    let node: NodeName = "node-b".parse().unwrap();
    let home = b.inventory(&node).unwrap();
    let backup = tempfile::tempdir().unwrap();
    copy_member(&mut etcd, &backup.path().join("m0"));
    answered(|| a.create(record("late", "node-a", 1))).await;
    // It has seen the change of another node, and made none since.
    assert_eq!(answered(|| b.list()).await.len(), 1);
    restore_member(&mut etcd, &backup.path().join("m0"));
    refused(|| home.write(put_inventory())).await;
    let (_c, c) = open(&etcd, "/hf").await;
    assert_eq!(answered(|| c.list()).await, [], "an agent that knows nothing of what was lost believes it");
    assert_eq!(c.inventory(&node).unwrap().found().await.unwrap(), [], "the write did not land");
}

#[tokio::test]
async fn an_etcd_that_went_back_is_refused_until_it_is_accepted() {
    let mut etcd = Etcd::start(1);
    let (tmp, a) = open(&etcd, "/hf").await;
    let (_b, b) = open(&etcd, "/hf").await;
    let node: NodeName = "node-a".parse().unwrap();
    a.create(record("early", "node-a", 1)).await.unwrap();
    let backup = tempfile::tempdir().unwrap();
    copy_member(&mut etcd, &backup.path().join("m0"));
    answered(|| a.create(record("late", "node-a", 1))).await;
    answered(|| b.create(record("later", "node-b", 1))).await;
    restore_member(&mut etcd, &backup.path().join("m0"));
    // One that knows nothing of it writes far more than was lost before the others ask anything.
    let (_c, c) = open(&etcd, "/hf").await;
    for n in 0..30 {
        answered(|| c.create(record(&format!("v{n}"), "node-c", 1))).await;
    }
    refused(|| a.list()).await;
    refused(|| b.list()).await;
    drop(a);
    // The next agent of this node remembers it too.
    let a = EtcdRegistry::open(home(&etcd, "/hf"), tmp.path()).await.unwrap();
    let said = refused(|| a.list()).await;
    assert!(said.contains("holdfast registry accept"), "{said}");
    refused(|| a.create(record("other", "node-a", 1))).await;
    assert_eq!(c.list().await.unwrap().len(), 31, "nothing was written");

    let review = a.review().await.unwrap().expect("etcd can go back");
    assert!(review.doubt.is_some() && review.records.len() == 31, "{review:?}");
    let other = Some(Incarnation::random());
    assert_eq!(a.accept(&node, other).await.unwrap_err().kind(), ErrorKind::Conflict);
    let before = a.incarnation();
    let new = a.accept(&node, review.found).await.unwrap();
    assert_ne!(new, before);
    assert_eq!(a.list().await.unwrap().len(), 31);
    assert_eq!(a.review().await.unwrap().unwrap().doubt, None);
    a.create(record("after", "node-a", 1)).await.unwrap();
    for other in [&b, &c] {
        assert_eq!(answered(|| other.list()).await.len(), 32, "it takes the new incarnation up");
        assert_eq!(other.incarnation(), new);
    }
    drop(a);
    let a = EtcdRegistry::open(home(&etcd, "/hf"), tmp.path()).await.unwrap();
    assert_eq!((a.list().await.unwrap().len(), a.incarnation()), (32, new));
}

#[tokio::test]
async fn an_emptied_etcd_that_began_anew_is_not_taken_up() {
    let mut etcd = Etcd::start(1);
    let (_a, a) = open(&etcd, "/hf").await;
    let node: NodeName = "node-a".parse().unwrap();
    a.create(record("demo", "node-a", 1)).await.unwrap();
    etcd.with_all_down(|etcd| std::fs::remove_dir_all(etcd.data_dir(0)).unwrap());
    let (_c, c) = open(&etcd, "/hf").await;
    answered(|| c.list()).await;
    for _ in 0..3 {
        assert!(a.list().await.is_err());
    }
    assert_ne!(a.incarnation(), c.incarnation());
    let review = answered(|| a.review()).await.expect("etcd can be another");
    assert_eq!((review.found, review.records.len()), (Some(c.incarnation()), 0));
    let new = a.accept(&node, review.found).await.unwrap();
    assert_eq!(answered(|| c.list()).await, []);
    assert_eq!((c.incarnation(), a.list().await.unwrap()), (new, Vec::new()));
}

#[tokio::test]
async fn an_etcd_that_went_back_in_time_is_not_believed() {
    let mut etcd = Etcd::start(1);
    let (tmp, registry) = open(&etcd, "/hf").await;
    let backup = tempfile::tempdir().unwrap();
    let early = backup.path().join("m0");
    copy_member(&mut etcd, &early);
    let made = answered(|| registry.create(record("demo", "node-a", 1))).await;
    restore_member(&mut etcd, &early);
    for _ in 0..3 {
        assert!(registry.get(&made.name).await.is_err(), "the record that was acknowledged is not there");
    }
    drop(registry);
    // The next agent of this node remembers it too.
    let again = EtcdRegistry::open(home(&etcd, "/hf"), tmp.path()).await.unwrap();
    let said = again.list().await.unwrap_err().to_string();
    assert!(said.contains("back in time") && said.contains("holdfast registry accept"), "{said}");
}

/// What an agent says that holds this lock.
fn announcement(node: &str, lock_inode: u64) -> Announcement {
    let lodging = Lodging {
        host: "h1".to_owned(),
        pid: 42,
        data_dir: "/data".to_owned(),
        boot: BootId(uuid::Uuid::from_u128(7)),
        lock_device: 1,
        lock_inode,
    };
    let address = "127.0.0.1".parse().unwrap();
    Announcement { node: node.parse().unwrap(), address, lodging: Some(lodging) }
}

async fn sure(standing: &mut watch::Receiver<Standing>) {
    let is_sure = standing.wait_for(|standing| *standing == Standing::Sure);
    tokio::time::timeout(SOON, is_sure)
        .await
        .expect("in time")
        .expect("it is said for as long as it is open");
}

#[tokio::test]
async fn one_agent_has_a_name_and_a_restart_of_it_takes_over() {
    let etcd = Etcd::start(1);
    let (tmp, first) = open(&etcd, "/hf").await;
    let (_other, second) = open(&etcd, "/hf").await;
    let standing = first.announce(announcement("node-a", 1)).await.unwrap();
    assert_eq!(*standing.borrow(), Standing::Sure);
    let refused = second.announce(announcement("node-a", 2)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    let said = refused.to_string();
    for part in ["node-a", "host h1", "127.0.0.1", "--node"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    second.announce(announcement("node-b", 2)).await.unwrap();
    // A copy of the first one's disk, beside it.
    let copied = tempfile::tempdir().unwrap();
    std::fs::copy(tmp.path().join("etcd.json"), copied.path().join("etcd.json")).unwrap();
    let copied = EtcdRegistry::open(home(&etcd, "/hf"), copied.path()).await.unwrap();
    let said = copied.announce(announcement("node-a", 3)).await.unwrap_err().to_string();
    assert!(said.contains("copy") && said.contains("/data"), "{said}");
    // Killed, and started again at once: its lease still stands, and it holds the same lock.
    drop(first);
    let again = EtcdRegistry::open(home(&etcd, "/hf"), tmp.path()).await.unwrap();
    let standing = again.announce(announcement("node-a", 1)).await.unwrap();
    assert_eq!(*standing.borrow(), Standing::Sure);
    drop(again);
    // It answers no more; the name is the copy's once its lease has run out, and not before.
    let mut standing = copied.announce(announcement("node-a", 3)).await.unwrap();
    assert!(matches!(*standing.borrow(), Standing::Unsure(_)));
    sure(&mut standing).await;
}

#[tokio::test]
async fn a_lost_presence_is_written_again_and_no_other_runs() {
    let etcd = Etcd::start(1);
    let ((_a, a), (_b, b)) = (open(&etcd, "/hf").await, open(&etcd, "/hf").await);
    let node: NodeName = "node-a".parse().unwrap();
    let (mut feed, mut nodes) = (b.follow_nodes().unwrap(), Nodes::default());
    let live = |nodes: &Nodes| nodes.iter().any(|(name, known)| *name == node && known.presence.is_some());
    let mut standing = a.announce(announcement("node-a", 1)).await.unwrap();
    hear(&mut feed, &mut nodes, live).await;
    let key = a.inner.key("live", &node);
    let lost: [Vec<pb::RequestOp>; 2] = [vec![delete(&key)], vec![put(&key, b"nonsense".to_vec(), 0)]];
    for change in lost {
        b.inner.tell("lose it", Vec::new(), change).await.unwrap();
        hear(&mut feed, &mut nodes, |nodes| !live(nodes)).await;
        hear(&mut feed, &mut nodes, live).await;
    }
    // Another run's, which may live: it is asked, not overwritten.
    let mut theirs = found(&a.inner.read("look", vec![range(&key)]).await.unwrap(), 0)[0].value.clone();
    let mut other: serde_json::Value = serde_json::from_slice(&theirs).unwrap();
    (other["run"], other["lodging"]) = (uuid::Uuid::new_v4().to_string().into(), serde_json::Value::Null);
    theirs = serde_json::to_vec(&other).unwrap();
    let lease = b.inner.client.grant(15).await.unwrap();
    b.inner.tell("take it", Vec::new(), vec![put(&key, theirs, lease)]).await.unwrap();
    let unsure = standing.wait_for(|standing| matches!(standing, Standing::Unsure(_)));
    tokio::time::timeout(SOON, unsure).await.expect("noticed").unwrap();
    // It does not answer, and has expired.
    sure(&mut standing).await;
}

/// Takes in what is heard until the nodes are as `wanted` says.
async fn hear(feed: &mut mpsc::Receiver<Heard>, nodes: &mut Nodes, wanted: impl Fn(&Nodes) -> bool) {
    let heard = async {
        while !wanted(nodes) {
            nodes.handle(feed.recv().await.expect("the feed goes on"), Duration::ZERO);
        }
    };
    tokio::time::timeout(SOON, heard).await.expect("heard in time");
}

#[tokio::test]
async fn what_a_node_publishes_is_heard_by_another_also_after_a_break_and_so_is_its_silence() {
    let mut etcd = Etcd::start(1);
    let ((_a, a), (_b, b)) = (open(&etcd, "/hf").await, open(&etcd, "/hf").await);
    let node: NodeName = "node-b".parse().unwrap();
    let home = b.inventory(&node).unwrap();
    let full = |revision| {
        let entries = vec![published_node("node-b")];
        let body = Some(document::Body::Full(Full { part: 0, parts: 1, entries }));
        let bytes = encode(&Document { format: FORMAT, session: 1, revision, body });
        vec![Op::Put { key: "full/0".to_owned(), bytes }]
    };
    let (mut feed, mut nodes) = (a.follow_nodes().unwrap(), Nodes::default());
    let revision = |nodes: &Nodes| {
        let known = nodes.iter().find(|(name, _)| **name == node)?.1;
        known.published().filter(|_| known.doubt().is_none()).map(|inventory| inventory.revision)
    };
    let live = |nodes: &Nodes| nodes.iter().any(|(name, known)| *name == node && known.presence.is_some());
    home.write(full(1)).await.unwrap();
    hear(&mut feed, &mut nodes, |nodes| revision(nodes) == Some(1) && !live(nodes)).await;
    b.announce(announcement("node-b", 2)).await.unwrap();
    home.write(full(2)).await.unwrap();
    hear(&mut feed, &mut nodes, |nodes| revision(nodes) == Some(2) && live(nodes)).await;
    etcd.with_all_down(|_| {});
    answered(|| home.write(full(3))).await;
    hear(&mut feed, &mut nodes, |nodes| revision(nodes) == Some(3)).await;
    drop(b);
    hear(&mut feed, &mut nodes, |nodes| !live(nodes)).await;
    assert_eq!(revision(&nodes), Some(3), "what it published is kept");
}
