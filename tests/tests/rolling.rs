//! Nodes that come and go while clients go on.
#![forbid(unsafe_code)]

use holdfast_tests::cluster::{AgentOptions, HEALTHY_WITHIN};
use holdfast_tests::fleet::lose_power;
use holdfast_tests::tools::FioLoop;
use holdfast_tests::wait::check;
use holdfast_tests::{Cluster, Etcd, Fleet, MIB, eventually};

/// Each node in turn loses its agent and all processes while fio writes and verifies through an engine on another node;
/// the engine's own node has its agent replaced.
#[test]
fn r3_every_node_goes_down_and_comes_back_under_fio_without_an_error() {
    let mut fleet = Fleet::start(4, &[]);
    let _ = fleet.attached("64MiB", "node-b,node-c,node-d", "3");
    let mut fio = FioLoop::start(&fleet.nodes[0].uri("demo"), "16m");
    fio.wait_passes(1);
    for node in [1, 2, 3] {
        lose_power(&mut fleet.nodes[node]);
        fio.wait_passes(1);
        fleet.nodes[node].start();
        fleet.nodes[0].wait_healthy("demo");
        fio.wait_passes(1);
    }
    fleet.nodes[0].kill_agent();
    fio.wait_passes(1);
    fleet.nodes[0].start();
    fio.wait_passes(1);
    fio.finish();
    fleet.nodes[0].wait_healthy("demo");
    fleet.nodes[0].detach("demo");
}

#[test]
fn r1_a_detached_volume_with_a_copy_and_its_node_gone_attaches_with_what_is_there() {
    let mut fleet = Fleet::start(3, &[]);
    let _ = fleet.attached("64MiB", "node-a,node-b,node-c", "3");
    let mut client = fleet.nodes[0].connect("demo");
    client.write_fua(MIB, &[1; 4096]).unwrap();
    drop(client);
    fleet.nodes[0].detach("demo");
    lose_power(&mut fleet.nodes[2]);
    std::fs::remove_dir_all(fleet.nodes[2].data_dir()).unwrap();
    fleet.nodes[0].ok(&["volume", "attach", "demo"]);
    let volume =
        fleet.nodes[0].wait_volume("demo", "it serves", |v| check(v.endpoint().is_some(), || v.state()));
    assert_eq!(volume.state(), "degraded");
    let mut client = fleet.nodes[0].connect("demo");
    assert_eq!(client.read(MIB, 4096).unwrap(), [1; 4096]);
    client.write_fua(MIB, &[2; 4096]).unwrap();
}

#[test]
fn r7_what_is_to_run_starts_by_itself_once_a_registry_that_was_down_at_the_start_is_back() {
    let mut etcd = Etcd::start(1);
    let mut cluster = Cluster::agent(AgentOptions::with(&["--registry", &etcd.url("/test")]));
    cluster.allow_errors("the registry cannot be read; nothing is started or stopped");
    cluster.create_attached("demo", "64MiB", 2);
    lose_power(&mut cluster);
    etcd.with_all_down(|_| {
        cluster.start();
        let said = cluster.cli(&["node", "show"]).said();
        assert!(said.contains("registry"), "{said}");
        assert!(cluster.instance_processes().is_empty(), "nothing is known to be wanted");
    });
    eventually(HEALTHY_WITHIN, "it runs again", || {
        let volume = cluster.cli(&["volume", "show", "demo"]).said();
        check(volume.contains("healthy"), || volume.clone())
    });
}
