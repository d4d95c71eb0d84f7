//! Several nodes that share one registry in etcd.
#![forbid(unsafe_code)]

use holdfast_tests::cluster::{AgentOptions, HEALTHY_WITHIN, SOON};
use holdfast_tests::etcd::Etcd;
use holdfast_tests::process::{Signal, signal};
use holdfast_tests::wait::check;
use holdfast_tests::{Cluster, MIB, eventually};

/// Agents on one machine, each with an address of its own.
struct Fleet {
    a: Cluster,
    b: Cluster,
    c: Cluster,
    _etcd: Etcd,
}

impl Fleet {
    fn start() -> Self {
        let etcd = Etcd::start(1);
        let agent = |node: &str, address: &str| {
            Cluster::agent(AgentOptions::of_node(
                node,
                &["--registry", &etcd.url("/test"), "--bind", address],
            ))
        };
        let (a, b, c) =
            (agent("node-a", "127.0.0.1"), agent("node-b", "127.0.0.2"), agent("node-c", "127.0.0.3"));
        let this = Self { a, b, c, _etcd: etcd };
        for node in this.all() {
            eventually(SOON, "all nodes know each other", || {
                let nodes = node.json(&["node", "ls"]);
                let live = nodes["nodes"].as_array().unwrap().iter().filter(|node| node["live"] == true);
                check(live.count() == 3, || nodes.to_string())
            });
        }
        this
    }
    fn all(&self) -> [&Cluster; 3] {
        [&self.a, &self.b, &self.c]
    }
    /// With a volume that has a replica on each node.
    fn with_volume() -> Self {
        let this = Self::start();
        this.a.ok(&["volume", "create", "demo", "--size", "64MiB", "--on", "node-a,node-b,node-c"]);
        this
    }
}

fn directories(node: &Cluster) -> Vec<String> {
    let listed = std::fs::read_dir(node.data_dir().join("replicas")).unwrap();
    let mut names: Vec<_> =
        listed.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
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
    let fleet = Fleet::with_volume();
    for (node, replica) in fleet.all().into_iter().zip(["demo.r1.", "demo.r2.", "demo.r3."]) {
        let found = directories(node);
        assert!(found.len() == 1 && found[0].starts_with(replica), "{replica}: {found:?}");
    }
    // Attached on b, asked of c.
    let shown = fleet.c.json(&["volume", "attach", "demo", "--on", "node-b"]);
    assert_ne!(shown["state"], "attaching", "{shown}");
    assert_eq!(shown["engine"]["node"], "node-b", "{shown}");
    fleet.b.wait_healthy("demo");
    let mut client = fleet.b.connect("demo");
    client.write_fua(MIB, &[1; 4096]).unwrap();
    wait_clients(&fleet.a, 1);
    let said = fleet.a.cli(&["volume", "detach", "demo"]).expect_code(7).said();
    assert!(said.contains("connected"), "{said}");
    let said = fleet.a.cli(&["volume", "attach", "demo"]).expect_code(4).said();
    assert!(said.contains("node-b"), "{said}");
    drop(client);
    wait_clients(&fleet.a, 0);
    // Moved to c, asked of a.
    let shown = fleet.a.json(&["volume", "detach", "demo"]);
    assert_eq!(shown["state"], "detached", "{shown}");
    fleet.a.ok(&["volume", "attach", "demo", "--on", "node-c"]);
    fleet.c.wait_healthy("demo");
    let mut client = fleet.c.connect("demo");
    assert_eq!(client.read(MIB, 4096).unwrap(), [1; 4096]);
    client.write_fua(2 * MIB, &[2; 4096]).unwrap();
    drop(client);
    // And back to a, by a.
    eventually(SOON, "it is detached", || {
        let said = fleet.b.cli(&["volume", "detach", "demo"]);
        check(said.0.code == Some(0), || said.said())
    });
    fleet.a.ok(&["volume", "attach", "demo"]);
    fleet.a.wait_healthy("demo");
    let mut client = fleet.a.connect("demo");
    assert_eq!(client.read(2 * MIB, 4096).unwrap(), [2; 4096]);
    drop(client);
    fleet.a.detach("demo");

    fleet.b.cli(&["volume", "delete", "demo", "--purge-data"]).expect_code(0);
    for node in fleet.all() {
        eventually(SOON, "nothing is left of it", || {
            let listed = node.json(&["volume", "ls"]);
            check(listed["volumes"].as_array().unwrap().is_empty(), || listed.to_string())?;
            check(directories(node).is_empty(), || format!("{:?}", directories(node)))
        });
    }
}

#[test]
fn a_replica_is_added_on_another_node_and_replaced_by_one_on_a_third() {
    let fleet = Fleet::start();
    fleet.a.create_attached("demo", "64MiB", 1);
    let mut client = fleet.a.connect("demo");
    client.write_fua(MIB, &[1; 4096]).unwrap();
    fleet.c.ok(&["replica", "add", "demo", "--on", "node-b"]);
    fleet.a.wait_mode("demo", "r2", "member");
    client.write_fua(2 * MIB, &[2; 4096]).unwrap();
    fleet.b.ok(&["replica", "replace", "demo", "r1", "--on", "node-c"]);
    fleet.a.wait_volume("demo", "it has r2 and r3", |volume| {
        let ids: Vec<_> = volume.replicas().iter().map(holdfast_tests::Replica::id).collect();
        check(ids == ["r2", "r3"] && volume.state() == "healthy", || format!("{ids:?}, {}", volume.state()))
    });
    for at in [1, 2] {
        assert_eq!(client.read(at * MIB, 4096).unwrap(), [u8::try_from(at).unwrap(); 4096]);
    }
    let said = fleet.a.cli(&["replica", "add", "demo", "--on", "node-x"]).expect_code(2).said();
    assert!(said.contains("node-x") && said.contains("node ls"), "{said}");
    drop(client);
    fleet.a.detach("demo");
}

#[test]
fn a_volume_moves_away_from_a_node_that_does_not_answer_and_its_old_engine_is_fenced_when_it_wakes() {
    let mut fleet = Fleet::with_volume();
    fleet.a.allow_errors("has taken the volume over; this one serves nothing any more");
    fleet.a.ok(&["volume", "attach", "demo"]);
    fleet.a.wait_healthy("demo");
    let mut old = fleet.a.connect("demo");
    old.write_fua(MIB, &[1; 4096]).unwrap();
    let mut asleep: Vec<i32> = fleet.a.instance_processes().iter().map(|process| process.pid).collect();
    asleep.push(fleet.a.agent_pid());
    let engine = fleet.a.volume("demo").engine_pid().unwrap();
    for pid in &asleep {
        signal(*pid, Signal::SIGSTOP);
    }
    eventually(SOON, "b sees that node-a does not answer", || {
        let nodes = fleet.b.json(&["node", "ls"]);
        check(nodes["nodes"][0]["live"] == false, || nodes.to_string())
    });
    let said = fleet.b.cli(&["volume", "detach", "demo"]).expect_code(7).said();
    assert!(said.contains("node-a") && said.contains("--force"), "{said}");
    fleet.b.ok(&["volume", "detach", "demo", "--force"]);
    fleet.c.ok(&["volume", "attach", "demo", "--on", "node-b"]);
    fleet.b.wait_volume("demo", "it serves", |volume| check(volume.endpoint().is_some(), || volume.state()));
    let mut new = fleet.b.connect("demo");
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
        let left: Vec<_> = fleet.a.instance_processes().iter().map(|process| process.pid).collect();
        check(!left.contains(&engine), || format!("{left:?}"))
    });
    fleet.b.wait_healthy("demo");
    assert_eq!(new.read(MIB, 4096).unwrap(), [2; 4096]);
    drop(new);
    eventually(SOON, "it is detached", || {
        let said = fleet.c.cli(&["volume", "detach", "demo"]);
        check(said.0.code == Some(0), || said.said())
    });
    fleet.a.ok(&["volume", "attach", "demo"]);
    fleet.a.wait_healthy("demo");
    let mut client = fleet.a.connect("demo");
    assert_eq!(client.read(MIB, 4096).unwrap(), [2; 4096]);
}

#[test]
fn n1_a_delete_waits_for_a_node_that_is_away_and_says_for_which() {
    let mut fleet = Fleet::with_volume();
    fleet.c.kill_agent();
    let said = fleet.a.cli_start(&["volume", "delete", "demo", "--purge-data"]);
    eventually(SOON, "it says for whom it waits", || {
        let shown = fleet.b.json(&["volume", "show", "demo"]);
        let reason = shown["reason"].as_str().unwrap_or_default();
        check(reason.contains("given up on node-c"), || shown.to_string())
    });
    fleet.c.start();
    let done = said.finish(HEALTHY_WITHIN);
    assert_eq!(done.code, Some(0), "{done}");
    for node in fleet.all() {
        eventually(SOON, "nothing is left of it", || {
            let listed = node.json(&["volume", "ls"]);
            check(listed["volumes"].as_array().unwrap().is_empty(), || listed.to_string())?;
            check(directories(node).is_empty(), || format!("{:?}", directories(node)))
        });
    }
}
