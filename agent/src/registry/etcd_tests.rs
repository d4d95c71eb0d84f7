use std::time::Duration;

use holdfast_proto::ids::NodeName;
use holdfast_proto::inventory::{FORMAT, encode};
use holdfast_proto::pb::inventory::{Document, Full, document};
use holdfast_proto::status::ErrorKind;
use holdfast_tests::etcd::Etcd;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::*;
use crate::config::EtcdPlace;
use crate::core::nodes::{Heard, Nodes};
use crate::core::publish::Op;
use crate::core::testing::{published_node, record};
use crate::registry::{Read, Registry as _, Swap, conformance};

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

#[tokio::test]
async fn an_etcd_that_went_back_in_time_is_not_believed() {
    let mut etcd = Etcd::start(1);
    let (tmp, registry) = open(&etcd, "/hf").await;
    let backup = tempfile::tempdir().unwrap();
    let early = backup.path().join("m0");
    let copy = |from: &Path, to: &Path| {
        let done = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
        assert!(done.success());
    };
    etcd.with_all_down(|etcd| copy(&etcd.data_dir(0), &early));
    let made = answered(|| registry.create(record("demo", "node-a", 1))).await;
    etcd.with_all_down(|etcd| {
        std::fs::remove_dir_all(etcd.data_dir(0)).unwrap();
        copy(&early, &etcd.data_dir(0));
    });
    for _ in 0..3 {
        assert!(registry.get(&made.name).await.is_err(), "the record that was acknowledged is not there");
    }
    drop(registry);
    // The next agent of this node remembers it too.
    let again = EtcdRegistry::open(home(&etcd, "/hf"), tmp.path()).await.unwrap();
    let said = again.list().await.unwrap_err().to_string();
    assert!(said.contains("back in time") && said.contains("etcdctl del /hf/incarnation"), "{said}");
}

#[tokio::test]
async fn a_second_agent_of_a_name_is_refused_while_the_first_lives_and_a_new_run_of_the_first_is_not() {
    let etcd = Etcd::start(1);
    let (tmp, first) = open(&etcd, "/hf").await;
    let (_other, second) = open(&etcd, "/hf").await;
    let (node, address) = ("node-a".parse().unwrap(), "127.0.0.1".parse().unwrap());
    first.announce(&node, address).await.unwrap();
    let refused = second.announce(&node, address).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    let said = refused.to_string();
    assert!(said.contains("node-a") && said.contains("127.0.0.1") && said.contains("--node"), "{said}");
    second.announce(&"node-b".parse().unwrap(), address).await.unwrap();
    // Killed, and started again at once: its lease still stands.
    drop(first);
    let again = EtcdRegistry::open(home(&etcd, "/hf"), tmp.path()).await.unwrap();
    again.announce(&node, address).await.unwrap();
    // Silent for longer than its lease: the name is free.
    drop(again);
    answered(|| second.announce(&node, address)).await;
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
    b.announce(&node, "127.0.0.2".parse().unwrap()).await.unwrap();
    home.write(full(2)).await.unwrap();
    hear(&mut feed, &mut nodes, |nodes| revision(nodes) == Some(2) && live(nodes)).await;
    etcd.with_all_down(|_| {});
    answered(|| home.write(full(3))).await;
    hear(&mut feed, &mut nodes, |nodes| revision(nodes) == Some(3)).await;
    drop(b);
    hear(&mut feed, &mut nodes, |nodes| !live(nodes)).await;
    assert_eq!(revision(&nodes), Some(3), "what it published is kept");
}
