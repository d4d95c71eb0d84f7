//! Records of a newer build: what an agent does not know it keeps, and what it does not understand it leaves alone.
#![forbid(unsafe_code)]

use std::path::Path;

use holdfast_tests::process::kill;
use holdfast_tests::wait::check;
use holdfast_tests::{Cluster, SECOND, eventually, records};
use serde_json::Value;

const LEVELS: [&str; 5] = ["", "/spec", "/status", "/spec/replicas/0", "/spec/replicas/2"];

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut json);
    // As the agent does it: it never reads half of one.
    let aside = path.with_extension("edited");
    std::fs::write(&aside, serde_json::to_vec(&json).unwrap()).unwrap();
    std::fs::rename(&aside, path).unwrap();
}

fn count(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap().matches("\"later\":").count()
}

#[test]
fn fields_of_a_newer_build_outlive_all_changes_of_a_record() {
    let mut cluster = Cluster::with_volume("64MiB", 3);
    cluster.allow_errors("demo");
    cluster.detach("demo");
    cluster.kill_agent();
    let record = records::record_path(&cluster.data_dir(), "demo");
    edit(&record, |json| {
        for level in LEVELS {
            json.pointer_mut(level).unwrap()["later"] = serde_json::json!({"a": [1, null]});
        }
    });
    cluster.start();
    cluster.ok(&["volume", "attach", "demo"]);
    let volume = cluster.wait_healthy("demo");
    let spawned = cluster.data_dir().join("instances/demo.r2/record.json");
    let version = || records::record(&cluster.data_dir(), "demo")["version"].as_u64().unwrap();
    let before = version();
    // Each engine enters its generation.
    kill(volume.engine_pid().unwrap());
    cluster.wait_new_engine("demo", &volume);
    assert!(version() > before);
    assert_eq!(count(&record), LEVELS.len());

    // The record of an instance too, through an agent's start and a process's.
    cluster.kill_agent();
    edit(&spawned, |json| json["later"] = 1.into());
    cluster.start();
    let pid = cluster.wait_healthy("demo").replica("r2").pid().unwrap();
    kill(pid);
    eventually(60 * SECOND, "r2 is started again", || {
        let now = cluster.volume("demo").replica("r2").pid();
        check(now.is_some_and(|now| now != pid), || format!("{now:?}"))
    });
    assert_eq!(count(&spawned), 1);
    cluster.wait_healthy("demo");
    cluster.detach("demo");
    assert_eq!(count(&record), LEVELS.len());
}

#[test]
fn a_record_that_needs_an_unknown_feature_is_left_alone() {
    let mut cluster = Cluster::with_volume("64MiB", 3);
    cluster.allow_errors("demo");
    let (volume, before) = (cluster.volume("demo"), cluster.instance_processes());
    let mut client = cluster.connect("demo");
    client.write_fua(0, &[1; 4096]).unwrap();
    let path = records::record_path(&cluster.data_dir(), "demo");
    edit(&path, |json| json["requires"] = serde_json::json!(["stamps", "tomorrow"]));
    let newer = std::fs::read(&path).unwrap();
    let told = |said: &str| {
        assert!(said.contains("\"tomorrow\"") || said.contains("\\\"tomorrow\\\""), "{said}");
        assert!(said.contains("upgrade this node's agent"), "{said}");
    };
    for restart in [false, true] {
        if restart {
            cluster.kill_agent();
            cluster.start();
        }
        for name in ["demo.engine", "demo.r1", "demo.r2", "demo.r3"] {
            eventually(60 * SECOND, "it is known not to be understood", || {
                let now = cluster.instance(name);
                check(now.claim() == "unknown" && now.state() == "running", || now.0.to_string())
            });
        }
        assert_eq!(cluster.instance_processes(), before, "nothing was stopped or started");
        client.write_fua(4096, &[2; 4096]).unwrap();
        told(&cluster.ok(&["volume", "show", "demo"]).said());
        told(&cluster.ok(&["volume", "ls", "-o", "json"]).said());
        for refused in [
            &["volume", "detach", "demo"][..],
            &["volume", "attach", "demo"],
            &["volume", "delete", "demo", "--purge-data"],
        ] {
            told(&cluster.cli(refused).expect_code(1).said());
        }
        let taken = cluster.cli(&["volume", "create", "demo", "--size", "64MiB"]);
        assert_ne!(taken.0.code, Some(0), "{}", taken.said());
    }
    // A replica dies: the engine goes on as without a registry, and nothing is started.
    let pid = volume.replica("r3").pid().unwrap();
    kill(pid);
    client.write_fua(8192, &[3; 4096]).unwrap();
    eventually(60 * SECOND, "r3 is seen to be gone", || {
        let state = cluster.instance("demo.r3").state();
        check(state != "running", || state.to_string())
    });
    client.write_fua(12288, &[4; 4096]).unwrap();
    let left: Vec<_> = before.iter().filter(|process| process.pid != pid).cloned().collect();
    assert_eq!(cluster.instance_processes(), left, "r3 is not started again, and nothing else ends");
    assert_eq!(std::fs::read(&path).unwrap(), newer, "the record is as it was");

    edit(&path, |json| drop(json.as_object_mut().unwrap().remove("requires")));
    cluster.wait_healthy("demo");
    for (at, byte) in [(0, 1), (4096, 2), (8192, 3), (12288, 4)] {
        assert_eq!(client.read(at, 4096).unwrap(), [byte; 4096]);
    }
}
