//! Nodes that are drained, restarted, lost and forgotten: their replicas move, and nobody waits for them for ever.
#![forbid(unsafe_code)]

use holdfast_tests::cluster::{AgentOptions, HEALTHY_WITHIN, SOON};
use holdfast_tests::fleet::{directories, lose_power};
use holdfast_tests::process::kill;
use holdfast_tests::tools::FioLoop;
use holdfast_tests::wait::check;
use holdfast_tests::{Cluster, Fleet, MIB, eventually};
use serde_json::Value;

fn listed(node: &Cluster) -> Vec<Value> {
    node.json(&["node", "ls"])["nodes"].as_array().unwrap().clone()
}

/// What `node ls` of one node says of another.
fn seen(by: &Cluster, name: &str) -> Value {
    listed(by).into_iter().find(|node| node["name"] == name).unwrap()
}

/// The nodes that a volume has its replicas on, once it is healthy without one on `left`.
fn wait_moved(by: &Cluster, volume: &str, left: &str) -> Vec<String> {
    eventually(HEALTHY_WITHIN, "the volume is healthy without that node", || {
        let shown = by.json(&["volume", "show", volume]);
        let replicas = shown["replicas"].as_array().unwrap();
        let on: Vec<_> = replicas.iter().map(|r| r["node"].as_str().unwrap().to_owned()).collect();
        let moved = shown["state"] == "healthy" && !on.iter().any(|node| node == left);
        check(moved, || shown.to_string()).map(|()| on)
    })
}

#[test]
fn r5_a_drained_node_gives_its_replica_away_under_io_and_may_be_restarted_only_then() {
    let fleet = Fleet::start(3, &[]);
    let [a, b, _c] = &fleet.nodes[..] else { unreachable!() };
    a.ok(&["volume", "create", "demo", "--size", "128MiB", "--replicas", "1", "--on", "node-c"]);
    a.ok(&["volume", "attach", "demo"]);
    a.wait_healthy("demo");
    let said = b.cli(&["node", "safe-to-reboot", "node-c"]).expect_code(7).said();
    assert!(said.contains("demo") && said.contains("no other node has a copy"), "{said}");
    let said = b.cli(&["node", "safe-to-reboot", "node-a"]).expect_code(7).said();
    assert!(said.contains("attached here"), "{said}");
    let mut load = FioLoop::start(&a.uri("demo"), "64m");
    load.wait_passes(1);
    b.ok(&["node", "drain", "node-c", "--timeout", "90s"]);
    let on = wait_moved(a, "demo", "node-c");
    assert_eq!(on.len(), 1, "{on:?}");
    load.wait_passes(1);
    load.finish();
    b.ok(&["node", "safe-to-reboot", "node-c"]);
    // Until that is taken back nothing is placed there.
    for command in [
        &["replica", "add", "demo", "--on", "node-c"][..],
        &["volume", "create", "new", "--size", "1MiB", "--on", "node-c"],
    ] {
        let said = a.cli(command).expect_code(7).said();
        assert!(said.contains("holdfast node undrain node-c"), "{said}");
    }
    assert_eq!(seen(b, "node-c")["draining"], true);
    a.ok(&["node", "undrain", "node-c"]);
    assert_eq!(seen(a, "node-c")["draining"], false);
    a.ok(&["replica", "add", "demo", "--on", "node-c"]);
    a.wait_healthy("demo");
    let said = b.cli(&["node", "drain", "node-x"]).expect_code(2).said();
    assert!(said.contains("node-x") && said.contains("node ls"), "{said}");
}

#[test]
fn r3_nodes_are_replaced_one_after_the_other_under_verified_io() {
    let mut fleet = Fleet::start(4, &[]);
    let [a, others @ ..] = &mut fleet.nodes[..] else { unreachable!() };
    a.ok(&["volume", "create", "demo", "--size", "128MiB", "--replicas", "2", "--on", "node-b,node-c"]);
    a.ok(&["volume", "attach", "demo"]);
    a.wait_healthy("demo");
    let mut load = FioLoop::start(&a.uri("demo"), "64m");
    load.wait_passes(1);
    for (node, name) in others.iter_mut().zip(["node-b", "node-c", "node-d"]) {
        a.ok(&["node", "drain", name, "--timeout", "90s"]);
        a.ok(&["node", "safe-to-reboot", name]);
        lose_power(node);
        load.wait_passes(1);
        node.start();
        node.ok(&["node", "undrain", name]);
        wait_moved(a, "demo", name);
    }
    load.wait_passes(1);
    load.finish();
    assert_eq!(wait_moved(a, "demo", "node-d").len(), 2);
}

#[test]
fn r2_r5_a_drain_blocks_on_the_last_copy_names_it_and_what_is_there_still_restarts() {
    // The third node keeps its whole disk for what is there.
    let fleet = Fleet::start(3, &["--disk-reserve", "100%"]);
    let [a, b, _c] = &fleet.nodes[..] else { unreachable!() };
    a.ok(&["volume", "create", "solo", "--size", "16MiB", "--replicas", "1", "--on", "node-b"]);
    a.ok(&["volume", "create", "demo", "--size", "16MiB", "--replicas", "2", "--on", "node-a,node-b"]);
    a.ok(&["volume", "attach", "demo"]);
    a.wait_healthy("demo");
    let before = directories(b);
    let said = a.cli(&["node", "drain", "node-b", "--timeout", "6s"]).expect_code(6).said();
    for part in [
        "volume solo, r1: the last healthy copy of the volume: the volume is detached",
        "volume demo, r2: no node can take another replica: of 3 that are live, 1 have a copy, 1 are draining, 1 have \
         less than 16777216 bytes to spare beside their disk_reserve",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    for process in b.instance_processes() {
        kill(process.pid);
    }
    a.wait_volume("demo", "its replica on the draining node was started again", |volume| {
        let (restarts, state) = (b.instance("demo.r2").restarts(), volume.state());
        check(restarts > 0 && state == "healthy", || format!("{restarts}, {state}"))
    });
    assert_eq!(directories(b), before, "nothing has moved");
    assert_eq!(directories(a).len(), 1);
    let parts = a.json(&["node", "drain", "node-b", "--no-wait"]);
    assert_eq!(parts["left"].as_array().unwrap().len(), 2, "{parts}");
}

#[test]
fn n1_replicas_of_a_node_that_is_gone_are_replaced_and_once_it_is_forgotten_nobody_waits_for_it() {
    let mut fleet = Fleet::start(4, &["--replenish-after", "2s"]);
    let [a, b, c, d] = &mut fleet.nodes[..] else { unreachable!() };
    a.ok(&["volume", "create", "old", "--size", "16MiB", "--on", "node-b,node-c", "--replicas", "2"]);
    a.ok(&["volume", "create", "demo", "--size", "64MiB", "--on", "node-a,node-b,node-c"]);
    a.ok(&["volume", "attach", "demo"]);
    a.wait_healthy("demo");
    let mut client = a.connect("demo");
    client.write_fua(MIB, &[1; 4096]).unwrap();
    let said = a.cli(&["node", "forget", "node-c", "--yes"]).expect_code(7).said();
    assert!(said.contains("its agent lives"), "{said}");
    lose_power(c);
    client.write_fua(2 * MIB, &[2; 4096]).unwrap();
    let on = wait_moved(a, "demo", "node-c");
    assert_eq!(on, ["node-a", "node-b", "node-d"]);
    for at in [1, 2] {
        assert_eq!(client.read(at * MIB, 4096).unwrap(), [u8::try_from(at).unwrap(); 4096]);
    }
    // A deletion waits for it until it is forgotten.
    let deleting = b.cli_start(&["volume", "delete", "old", "--purge-data"]);
    eventually(SOON, "it says for whom it waits", || {
        let shown = d.json(&["volume", "show", "old"]);
        let reason = shown["reason"].as_str().unwrap_or_default();
        check(reason.contains("given up on node-c"), || shown.to_string())
    });
    let said = b.cli(&["node", "forget", "node-c"]).expect_code(8).said();
    assert!(said.contains("--yes"), "{said}");
    b.ok(&["node", "forget", "node-c", "--yes"]);
    let done = deleting.finish(HEALTHY_WITHIN);
    assert_eq!(done.code, Some(0), "{done}");
    // Its keys stay while a record mentions the replica that was replaced.
    assert_eq!(seen(b, "node-c")["forgotten"], true);
    // It comes back after all: nothing of its data was deleted.
    let kept = directories(c);
    assert_eq!(kept.len(), 2, "{kept:?}");
    c.start();
    eventually(SOON, "the mark is taken away", || {
        let node = seen(d, "node-c");
        check(node["live"] == true && node["forgotten"] == false, || node.to_string())
    });
    eventually(SOON, "what it has is nobody's", || {
        let found = c.json(&["replica", "ls"]);
        let mut claims = found["replicas"].as_array().unwrap().iter().map(|dir| &dir["claim"]);
        check(claims.all(|claim| claim == "unclaimed"), || found.to_string())
    });
    assert_eq!(directories(c), kept);
    assert_eq!(client.read(MIB, 4096).unwrap(), [1; 4096]);
}

#[test]
fn a_node_without_others_says_what_is_left_there_and_that_it_is_not_safe_to_restart() {
    let mut cluster = Cluster::agent(AgentOptions::default());
    cluster.ok(&["node", "safe-to-reboot"]);
    cluster.ok(&["node", "drain", "node-a"]);
    let said = cluster.cli(&["volume", "create", "demo", "--size", "1MiB"]).expect_code(7).said();
    assert!(said.contains("holdfast node undrain node-a"), "{said}");
    cluster.kill_agent();
    cluster.start();
    assert_eq!(seen(&cluster, "node-a")["draining"], true, "it is kept");
    cluster.ok(&["node", "undrain", "node-a"]);
    cluster.ok(&["volume", "create", "demo", "--size", "1MiB", "--replicas", "1"]);
    let said = cluster.cli(&["node", "safe-to-reboot"]).expect_code(7).said();
    assert!(said.contains("demo") && said.contains("no other node has a copy"), "{said}");
    let said = cluster.cli(&["node", "drain", "node-a", "--timeout", "1s"]).expect_code(6).said();
    assert!(said.contains("volume demo, r1: the last healthy copy"), "{said}");
    let said = cluster.cli(&["node", "safe-to-reboot", "node-b"]).expect_code(2).said();
    assert!(said.contains("knows no node node-b, only node-a"), "{said}");
    let said = cluster.cli(&["node", "forget", "node-a", "--yes"]).expect_code(7).said();
    assert!(said.contains("its agent lives"), "{said}");
}
