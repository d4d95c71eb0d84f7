//! Several nodes that share one registry in etcd.
#![forbid(unsafe_code)]

use holdfast_tests::cluster::{HEALTHY_WITHIN, SOON};
use holdfast_tests::fleet::directories;
use holdfast_tests::process::{Signal, signal};
use holdfast_tests::wait::check;
use holdfast_tests::{Cluster, Fleet, MIB, eventually};

/// Three nodes, and a volume with a replica on each.
fn with_volume() -> Fleet {
    let fleet = Fleet::start(3, &[]);
    fleet.nodes[0].ok(&["volume", "create", "demo", "--size", "64MiB", "--on", "node-a,node-b,node-c"]);
    fleet
}

/// Waits until a node knows of so many clients, wherever the engine is.
fn wait_clients(node: &Cluster, clients: u32) {
    eventually(SOON, "the clients are known", || {
        let said = node.ok(&["volume", "show", "demo"]).said();
        let line = said.lines().find(|line| line.starts_with("clients"));
        check(line.is_some_and(|line| line.ends_with(&format!(" {clients}"))), || said.clone())
    });
}

#[test]
fn a_volume_over_three_nodes_is_created_attached_moved_and_deleted_from_any_of_them() {
    let fleet = with_volume();
    for (node, replica) in fleet.nodes.iter().zip(["demo.r1.", "demo.r2.", "demo.r3."]) {
        let found = directories(node);
        assert!(found.len() == 1 && found[0].starts_with(replica), "{replica}: {found:?}");
    }
    // Attached on b, asked of c.
    let shown = fleet.nodes[2].json(&["volume", "attach", "demo", "--on", "node-b"]);
    assert_ne!(shown["state"], "attaching", "{shown}");
    assert_eq!(shown["engine"]["node"], "node-b", "{shown}");
    fleet.nodes[1].wait_healthy("demo");
    let mut client = fleet.nodes[1].connect("demo");
    client.write_fua(MIB, &[1; 4096]).unwrap();
    wait_clients(&fleet.nodes[0], 1);
    let said = fleet.nodes[0].cli(&["volume", "detach", "demo"]).expect_code(7).said();
    assert!(said.contains("connected"), "{said}");
    let said = fleet.nodes[0].cli(&["volume", "attach", "demo"]).expect_code(4).said();
    assert!(said.contains("node-b"), "{said}");
    drop(client);
    wait_clients(&fleet.nodes[0], 0);
    // Moved to c, asked of a.
    let shown = fleet.nodes[0].json(&["volume", "detach", "demo"]);
    assert_eq!(shown["state"], "detached", "{shown}");
    fleet.nodes[0].ok(&["volume", "attach", "demo", "--on", "node-c"]);
    fleet.nodes[2].wait_healthy("demo");
    let mut client = fleet.nodes[2].connect("demo");
    assert_eq!(client.read(MIB, 4096).unwrap(), [1; 4096]);
    client.write_fua(2 * MIB, &[2; 4096]).unwrap();
    drop(client);
    // And back to a, by a.
    eventually(SOON, "it is detached", || {
        let said = fleet.nodes[1].cli(&["volume", "detach", "demo"]);
        check(said.0.code == Some(0), || said.said())
    });
    fleet.nodes[0].ok(&["volume", "attach", "demo"]);
    fleet.nodes[0].wait_healthy("demo");
    let mut client = fleet.nodes[0].connect("demo");
    assert_eq!(client.read(2 * MIB, 4096).unwrap(), [2; 4096]);
    drop(client);
    fleet.nodes[0].detach("demo");

    fleet.nodes[1].cli(&["volume", "delete", "demo", "--purge-data"]).expect_code(0);
    for node in &fleet.nodes {
        eventually(SOON, "nothing is left of it", || {
            let listed = node.json(&["volume", "ls"]);
            check(listed["volumes"].as_array().unwrap().is_empty(), || listed.to_string())?;
            check(directories(node).is_empty(), || format!("{:?}", directories(node)))
        });
    }
}

#[test]
fn a_replica_is_added_on_another_node_and_replaced_by_one_on_a_third() {
    let fleet = Fleet::start(3, &[]);
    fleet.nodes[0].create_attached("demo", "64MiB", 1);
    let mut client = fleet.nodes[0].connect("demo");
    client.write_fua(MIB, &[1; 4096]).unwrap();
    fleet.nodes[2].ok(&["replica", "add", "demo", "--on", "node-b"]);
    fleet.nodes[0].wait_mode("demo", "r2", "member");
    client.write_fua(2 * MIB, &[2; 4096]).unwrap();
    fleet.nodes[1].ok(&["replica", "replace", "demo", "r1", "--on", "node-c"]);
    fleet.nodes[0].wait_volume("demo", "it has r2 and r3", |volume| {
        let ids: Vec<_> = volume.replicas().iter().map(holdfast_tests::Replica::id).collect();
        check(ids == ["r2", "r3"] && volume.state() == "healthy", || format!("{ids:?}, {}", volume.state()))
    });
    for at in [1, 2] {
        assert_eq!(client.read(at * MIB, 4096).unwrap(), [u8::try_from(at).unwrap(); 4096]);
    }
    let said = fleet.nodes[0].cli(&["replica", "add", "demo", "--on", "node-x"]).expect_code(2).said();
    assert!(said.contains("node-x") && said.contains("node ls"), "{said}");
    drop(client);
    fleet.nodes[0].detach("demo");
}

#[test]
fn a_volume_moves_away_from_a_node_that_does_not_answer_and_its_old_engine_is_fenced_when_it_wakes() {
    let mut fleet = with_volume();
    fleet.nodes[0].allow_errors("has taken the volume over; this one serves nothing any more");
    fleet.nodes[0].ok(&["volume", "attach", "demo"]);
    fleet.nodes[0].wait_healthy("demo");
    let mut old = fleet.nodes[0].connect("demo");
    old.write_fua(MIB, &[1; 4096]).unwrap();
    let mut asleep: Vec<i32> =
        fleet.nodes[0].instance_processes().iter().map(|process| process.pid).collect();
    asleep.push(fleet.nodes[0].agent_pid());
    let engine = fleet.nodes[0].volume("demo").engine_pid().unwrap();
    for pid in &asleep {
        signal(*pid, Signal::SIGSTOP);
    }
    eventually(SOON, "b sees that node-a does not answer", || {
        let nodes = fleet.nodes[1].json(&["node", "ls"]);
        check(nodes["nodes"][0]["live"] == false, || nodes.to_string())
    });
    let said = fleet.nodes[1].cli(&["volume", "detach", "demo"]).expect_code(7).said();
    assert!(said.contains("node-a") && said.contains("--force"), "{said}");
    fleet.nodes[1].ok(&["volume", "detach", "demo", "--force"]);
    fleet.nodes[2].ok(&["volume", "attach", "demo", "--on", "node-b"]);
    fleet.nodes[1]
        .wait_volume("demo", "it serves", |volume| check(volume.endpoint().is_some(), || volume.state()));
    let mut new = fleet.nodes[1].connect("demo");
    assert_eq!(new.read(MIB, 4096).unwrap(), [1; 4096]);
    new.write_fua(MIB, &[2; 4096]).unwrap();

    for pid in &asleep {
        signal(*pid, Signal::SIGCONT);
    }
    let read = old.read(MIB, 4096);
    assert!(
        read.as_ref().map_or(true, |bytes| *bytes != [1; 4096]),
        "what was overwritten is never read again"
    );
    assert!(old.write_fua(MIB, &[3; 4096]).is_err(), "and it acknowledges nothing");
    eventually(HEALTHY_WITHIN, "the old engine has ended", || {
        let left: Vec<_> = fleet.nodes[0].instance_processes().iter().map(|process| process.pid).collect();
        check(!left.contains(&engine), || format!("{left:?}"))
    });
    fleet.nodes[1].wait_healthy("demo");
    assert_eq!(new.read(MIB, 4096).unwrap(), [2; 4096]);
    drop(new);
    eventually(SOON, "it is detached", || {
        let said = fleet.nodes[2].cli(&["volume", "detach", "demo"]);
        check(said.0.code == Some(0), || said.said())
    });
    fleet.nodes[0].ok(&["volume", "attach", "demo"]);
    fleet.nodes[0].wait_healthy("demo");
    let mut client = fleet.nodes[0].connect("demo");
    assert_eq!(client.read(MIB, 4096).unwrap(), [2; 4096]);
}

#[test]
fn n1_a_delete_waits_for_a_node_that_is_away_and_says_for_which() {
    let mut fleet = with_volume();
    fleet.nodes[2].kill_agent();
    let said = fleet.nodes[0].cli_start(&["volume", "delete", "demo", "--purge-data"]);
    eventually(SOON, "it says for whom it waits", || {
        let shown = fleet.nodes[1].json(&["volume", "show", "demo"]);
        let reason = shown["reason"].as_str().unwrap_or_default();
        check(reason.contains("given up on node-c"), || shown.to_string())
    });
    fleet.nodes[2].start();
    let done = said.finish(HEALTHY_WITHIN);
    assert_eq!(done.code, Some(0), "{done}");
    for node in &fleet.nodes {
        eventually(SOON, "nothing is left of it", || {
            let listed = node.json(&["volume", "ls"]);
            check(listed["volumes"].as_array().unwrap().is_empty(), || listed.to_string())?;
            check(directories(node).is_empty(), || format!("{:?}", directories(node)))
        });
    }
}

#[test]
fn a_replica_of_a_node_that_has_just_died_is_made_later() {
    let mut fleet = Fleet::start(2, &[]);
    // Its presence stands for a while yet.
    fleet.nodes[1].kill_agent();
    let create = ["volume", "create", "demo", "--size", "64MiB", "--replicas", "2", "--on", "node-a,node-b"];
    fleet.nodes[0].cli(&create).expect_code(6);
    fleet.nodes[0].ok(&["volume", "attach", "demo"]);
    let mut client = fleet.nodes[0].connect("demo");
    client.write_fua(MIB, &[1; 4096]).unwrap();
    assert_eq!(directories(&fleet.nodes[1]).len(), 0, "it was never there");
    fleet.nodes[1].start();
    let volume = fleet.nodes[0].wait_healthy("demo");
    assert_eq!(volume.members(), 2);
    assert_eq!(directories(&fleet.nodes[1]).len(), 1);
    assert_eq!(client.read(MIB, 4096).unwrap(), [1; 4096]);
    client.write_fua(2 * MIB, &[2; 4096]).unwrap();
}
