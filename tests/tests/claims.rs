//! A controller that is not Holdfast claims instances: they run because it wants them to, and are nobody's orphans.
#![forbid(unsafe_code)]

use holdfast_tests::cluster::{AgentOptions, SOON};
use holdfast_tests::records;
use holdfast_tests::wait::{check, eventually};
use holdfast_tests::{Cluster, Instance};

fn pid(cluster: &Cluster, name: &str) -> Option<i32> {
    cluster.instances().into_iter().find(|instance| instance.name() == name)?.pid()
}

fn wait_runs(cluster: &Cluster, name: &str) -> i32 {
    eventually(SOON, &format!("{name} runs"), || {
        pid(cluster, name).ok_or_else(|| format!("{:?}", cluster.instances()))
    })
}

fn wait_ended(cluster: &Cluster, name: &str) {
    eventually(SOON, &format!("{name} ends"), || {
        check(pid(cluster, name).is_none(), || "it runs".to_owned())
    });
}

fn put(cluster: &Cluster, instance: &str, more: &[&str]) -> serde_json::Value {
    let mut args = vec!["claim", "put", instance, "--owner", "backup"];
    args.extend(more);
    cluster.json(&args)
}

#[test]
fn a_controller_has_a_replica_run_beside_a_detached_volume() {
    let mut cluster = Cluster::with_volume("64MiB", 2);
    cluster.detach("demo");
    wait_ended(&cluster, "demo.r2");
    let made = put(&cluster, "demo.r2", &["--desired", "running", "--lease", "1h"]);
    assert_eq!((made["owner"].as_str(), made["version"].as_u64()), (Some("backup"), Some(1)), "{made}");
    let first = wait_runs(&cluster, "demo.r2");
    assert_eq!(cluster.volume("demo").state(), "detached", "what another runs is its own");
    assert_eq!(pid(&cluster, "demo.r1"), None);
    // Another agent goes on with it; its volume is attached and detached over it.
    cluster.kill_agent();
    cluster.start();
    assert_eq!(wait_runs(&cluster, "demo.r2"), first);
    cluster.ok(&["volume", "attach", "demo"]);
    cluster.wait_healthy("demo");
    cluster.detach("demo");
    assert_eq!(wait_runs(&cluster, "demo.r2"), first, "one process all the time");
    // Nobody takes it from its owner.
    let taken = cluster.cli(&["claim", "put", "demo.r2", "--owner", "other"]).expect_code(4).said();
    assert!(taken.contains("backup has it"), "{taken}");
    let deleted = cluster.cli(&["volume", "delete", "demo"]).expect_code(7).said();
    assert!(deleted.contains("backup claims demo.r2"), "{deleted}");
    let wrong = cluster.cli(&["claim", "delete", "demo.r2", "--owner", "other"]).expect_code(4).said();
    assert!(wrong.contains("backup has it, not other"), "{wrong}");
    assert_eq!(put(&cluster, "demo.r2", &["--desired", "running", "--lease", "1h"])["version"], 2, "renewed");
    cluster.ok(&["claim", "delete", "demo.r2", "--owner", "backup"]);
    wait_ended(&cluster, "demo.r2");
    cluster.ok(&["volume", "delete", "demo"]);
}

#[test]
fn o2_what_another_claims_is_no_orphan_until_its_lease_is_over() {
    let options = AgentOptions::with(&["--orphan-auto-cleanup", "instance", "--orphan-grace-period", "0s"]);
    let cluster = Cluster::agent(options);
    cluster.create_attached("demo", "16MiB", 1);
    let volume = cluster.volume("demo").id();
    let claim = ["--volume-id", &volume, "--lease", "1h"];
    for instance in ["demo.engine", "demo.r1"] {
        put(&cluster, instance, &claim);
    }
    let before: Vec<_> = cluster.instances().iter().map(Instance::pid).collect();
    std::fs::rename(records::record_path(&cluster.data_dir(), "demo"), cluster.root().join("demo.json"))
        .unwrap();
    eventually(SOON, "its record is gone", || {
        let claim = cluster.cli(&["volume", "ls", "-o", "json"]).said();
        check(!claim.contains("demo"), || claim.clone())
    });
    assert_eq!(cluster.instance("demo.engine").claim(), "claimed");
    assert_eq!(cluster.json(&["orphan", "ls"])["orphans"], serde_json::json!([]));
    // Its owner wants one to end; the other one's lease runs out, and it is an orphan without grace.
    put(&cluster, "demo.engine", &["--volume-id", &volume, "--desired", "stopped"]);
    wait_ended(&cluster, "demo.engine");
    assert_eq!(pid(&cluster, "demo.r1"), before[1], "it is claimed");
    put(&cluster, "demo.r1", &["--volume-id", &volume, "--lease", "1s"]);
    eventually(12 * SOON, "what nobody claims any more is cleaned", || {
        check(pid(&cluster, "demo.r1").is_none(), || format!("{:?}", cluster.json(&["orphan", "ls"])))
    });
}

#[test]
fn a_claim_that_makes_no_sense_is_refused_and_says_why() {
    let cluster = Cluster::with_volume("16MiB", 1);
    let refused = |args: &[&str], code: i32, words: &str| {
        let said = cluster.cli(args).expect_code(code).said();
        assert!(said.contains(words), "{args:?}: {said}");
    };
    refused(&["claim", "put", "demo", "--owner", "x"], 2, "demo");
    refused(&["claim", "put", "demo.engine", "--owner", "x", "--desired", "running"], 2, "attach it instead");
    refused(&["claim", "put", "other.r1", "--owner", "x"], 3, "give the volume's id");
    refused(&["claim", "put", "demo.r1", "--owner", ""], 2, "owner");
    refused(&["claim", "put", "demo.r1", "--owner", "x", "--lease", "500ms"], 2, "whole seconds");
    refused(&["claim", "delete", "demo.r1"], 3, "nobody claims it");
    // One that cannot be read leaves what it is about to nobody's judgement.
    let dir = cluster
        .data_dir()
        .join("registry/claims")
        .join(cluster.json(&["node", "show"])["node"].as_str().unwrap());
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("demo.r1.json"), "{").unwrap();
    let listed = cluster.json(&["claim", "ls"]);
    assert!(listed["claims"][0]["problem"].as_str().unwrap().contains("demo.r1.json"), "{listed}");
    refused(&["claim", "put", "demo.r1", "--owner", "x"], 1, "demo.r1.json");
    refused(&["volume", "delete", "demo"], 7, "a claim of demo.r1 cannot be read");
    refused(&["claim", "delete", "demo.r1", "--owner", "x"], 1, "leave out the owner");
    cluster.ok(&["claim", "delete", "demo.r1"]);
    assert_eq!(cluster.json(&["claim", "ls"])["claims"], serde_json::json!([]));
}
