//! The command line: exit codes, idempotence, refusals, and the JSON that scripts rely on.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use holdfast_tests::process::{self, Signal, signal};
use holdfast_tests::tools::qemu_io;
use holdfast_tests::wait::check;
use holdfast_tests::{AgentOptions, Cluster, MIB, SECOND, Volume, cli, eventually, records};
use serde_json::Value;

const STATES: [&str; 7] =
    ["healthy", "degraded", "suspended", "faulted", "attaching", "detaching", "detached"];
const MODES: [&str; 6] = ["member", "suspect", "catching_up", "rebuilding", "faulted", "absent"];

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap_or_else(|| panic!("no object: {value}")).keys().map(String::as_str).collect()
}

/// Each of `wanted` is there; what else is there is an addition, which scripts do not see.
fn has_keys(value: &Value, wanted: &[&str]) {
    let found = keys(value);
    for key in wanted {
        assert!(found.contains(key), "no {key} in {value}");
    }
}

fn is_uuid(value: &Value) -> bool {
    value.as_str().is_some_and(|text| uuid::Uuid::parse_str(text).is_ok())
}

fn check_volume_shape(volume: &Value) {
    has_keys(
        volume,
        &["id", "name", "size_bytes", "state", "generation", "epoch", "endpoint", "engine", "replicas"],
    );
    assert!(volume["unrepaired_bytes"].is_u64());
    assert!(is_uuid(&volume["id"]) && volume["name"].is_string() && volume["size_bytes"].is_u64());
    assert!(volume["generation"].is_u64() && volume["epoch"].is_u64());
    assert!(STATES.iter().any(|s| volume["state"] == *s), "{volume}");
    for replica in volume["replicas"].as_array().unwrap() {
        has_keys(replica, &["id", "node", "mode", "instance", "pid", "address", "data_dir", "progress"]);
        assert!(replica["copied_bytes"].is_u64() && replica["compared_bytes"].is_u64());
        assert!(MODES.iter().any(|m| replica["mode"] == *m), "{replica}");
        assert!(Path::new(replica["data_dir"].as_str().unwrap()).is_absolute());
        if !replica["progress"].is_null() {
            has_keys(&replica["progress"], &["done_bytes", "total_bytes"]);
        }
    }
}

#[test]
fn volume_show_has_the_names_that_scripts_rely_on() {
    let cluster = Cluster::agent(AgentOptions::default());
    cluster.ok(&["volume", "create", "demo", "--size", "64MiB", "--replicas", "2"]);
    let detached = cluster.json(&["volume", "show", "demo"]);
    check_volume_shape(&detached);
    assert_eq!(detached["state"], "detached");
    assert_eq!(detached["size_bytes"].as_u64(), Some(64 * MIB));
    assert!(detached["endpoint"].is_null() && detached["engine"].is_null(), "null where nothing runs");
    for replica in detached["replicas"].as_array().unwrap() {
        assert!(replica["pid"].is_null() && replica["address"].is_null(), "{replica}");
        assert!(Path::new(replica["data_dir"].as_str().unwrap()).join("head.img").exists());
    }

    cluster.ok(&["volume", "attach", "demo"]);
    cluster.wait_healthy("demo");
    let attached = cluster.json(&["volume", "show", "demo"]);
    check_volume_shape(&attached);
    let endpoint = attached["endpoint"].as_str().unwrap();
    assert!(endpoint.starts_with("nbd+unix:///demo?socket=/"), "{endpoint}");
    has_keys(&attached["engine"], &["instance", "uuid", "pid", "node"]);
    assert!(is_uuid(&attached["engine"]["uuid"]) && attached["engine"]["pid"].is_i64());
    assert_eq!(attached["engine"]["node"], "node-a");
    for (replica, id) in attached["replicas"].as_array().unwrap().iter().zip(["r1", "r2"]) {
        assert_eq!((&replica["id"], &replica["node"]), (&Value::from(id), &Value::from("node-a")));
        assert!(replica["pid"].is_i64() && replica["instance"].is_string());
        let address = replica["address"].as_str().unwrap();
        assert!(address.starts_with("127.0.0.1:"), "{address}");
    }
}

#[test]
fn lists_have_a_revision_and_the_names_that_scripts_rely_on() {
    let cluster = Cluster::with_volume("64MiB", 2);
    let volumes = cluster.json(&["volume", "ls"]);
    has_keys(&volumes, &["revision", "volumes"]);
    assert!(volumes["revision"].is_u64());
    assert_eq!(volumes["volumes"].as_array().unwrap().len(), 1);
    check_volume_shape(&volumes["volumes"][0]);

    let instances = cluster.json(&["instance", "ls"]);
    has_keys(&instances, &["revision", "instances"]);
    let list = instances["instances"].as_array().unwrap();
    assert_eq!(list.len(), 3);
    for instance in list {
        let wanted =
            ["name", "uuid", "kind", "volume", "state", "pid", "restarts", "claim", "orphan", "reason"];
        has_keys(instance, &wanted);
        assert!(is_uuid(&instance["uuid"]) && instance["restarts"].is_u64() && instance["orphan"].is_null());
        assert!(["engine", "replica"].iter().any(|k| instance["kind"] == *k));
        assert_eq!(
            (&instance["volume"], &instance["state"]),
            (&Value::from("demo"), &Value::from("running"))
        );
        let shown = cluster.json(&["instance", "show", instance["name"].as_str().unwrap()]);
        assert_eq!(shown["uuid"], instance["uuid"]);
    }

    let replicas = cluster.json(&["replica", "ls"]);
    assert_eq!(replicas["replicas"].as_array().unwrap().len(), 2, "{replicas}");
    assert!(replicas["replicas"].as_array().unwrap().iter().all(|r| r["claim"] == "claimed"), "{replicas}");
    let node = cluster.json(&["node", "show"]);
    assert_eq!(node["node"], "node-a", "{node}");
    let before = volumes["revision"].as_u64().unwrap();
    cluster.detach("demo");
    let after = cluster.json(&["volume", "ls"])["revision"].as_u64().unwrap();
    assert!(after > before, "a change changes the revision: {before}, {after}");
}

#[test]
fn tables_and_help_are_for_people() {
    let cluster = Cluster::with_volume("64MiB", 2);
    for args in [["volume", "ls"], ["instance", "ls"], ["replica", "ls"], ["node", "show"]] {
        let said = cluster.ok(&args).0.stdout;
        assert!(said.contains("demo") || said.contains("node-a"), "{args:?}: {said}");
        assert!(serde_json::from_str::<Value>(&said).is_err(), "{args:?} prints JSON unasked");
    }
    let nouns: [&[&str]; 9] = [
        &[],
        &["agent"],
        &["quickstart"],
        &["volume"],
        &["volume", "create"],
        &["volume", "wait"],
        &["instance"],
        &["replica"],
        &["node"],
    ];
    for noun in nouns {
        let mut args = noun.to_vec();
        args.push("--help");
        let help = cli::run(&args).expect_code(0).0.stdout;
        assert!(help.contains("Example"), "`holdfast {}` has no examples: {help}", args.join(" "));
    }
}

#[test]
fn usage_errors_are_two_and_name_the_problem() {
    let cluster = Cluster::agent(AgentOptions::default());
    let wrong: [&[&str]; 11] = [
        &["volume"],
        &["volume", "create"],
        &["volume", "create", "demo"],
        &["volume", "create", "demo", "--size", "12parsecs"],
        &["volume", "create", "demo", "--size", "0"],
        &["volume", "create", "demo", "--size", "64MiB", "--replicas", "0"],
        &["volume", "create", "demo", "--size", "64MiB", "--replicas", "6"],
        &["volume", "create", "No Such Name!", "--size", "64MiB"],
        &["volume", "wait", "demo", "--for", "happiness"],
        &["volume", "frobnicate", "demo"],
        &["volume", "ls", "-o", "poetry"],
    ];
    for args in wrong {
        let said = cluster.cli(args).expect_code(2);
        assert!(!said.0.stderr.trim().is_empty(), "{args:?} says nothing");
    }
    assert!(cluster.json(&["volume", "ls"])["volumes"].as_array().unwrap().is_empty());
}

#[test]
fn what_does_not_exist_is_three() {
    let cluster = Cluster::agent(AgentOptions::default());
    let missing: [&[&str]; 8] = [
        &["volume", "show", "nope"],
        &["volume", "attach", "nope"],
        &["volume", "detach", "nope"],
        &["volume", "delete", "nope"],
        &["volume", "wait", "nope", "--for", "healthy", "--timeout", "1s"],
        &["instance", "show", "nope.r1"],
        &["instance", "logs", "nope.r1"],
        &["instance", "stop", "nope.r1"],
    ];
    for args in missing {
        let said = cluster.cli(args).expect_code(3);
        assert!(said.0.stderr.contains("nope"), "{args:?} does not name it: {}", said.0);
    }
}

#[test]
fn creating_an_existing_name_is_a_conflict() {
    let cluster = Cluster::agent(AgentOptions::default());
    cluster.ok(&["volume", "create", "demo", "--size", "64MiB", "--replicas", "1"]);
    let id = cluster.volume("demo").id();
    cluster.cli(&["volume", "create", "demo", "--size", "64MiB", "--replicas", "1"]).expect_code(4);
    cluster.cli(&["volume", "create", "demo", "--size", "128MiB", "--replicas", "2"]).expect_code(4);
    assert_eq!(cluster.volume("demo").id(), id);
    assert_eq!(cluster.volume("demo").size_bytes(), 64 * MIB);
}

#[test]
fn an_agent_that_does_not_answer_is_five() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = format!("unix:{}", dir.path().join("nobody.sock").display());
    for args in [["volume", "ls"], ["instance", "ls"], ["node", "show"], ["volume", "show"]] {
        let mut all = vec!["--agent", &nobody];
        all.extend(args);
        if args[1] == "show" && args[0] == "volume" {
            all.push("demo");
        }
        let said = cli::run(&all).expect_code(5);
        assert!(said.0.stderr.contains("nobody.sock"), "the socket is named: {}", said.0);
    }
}

#[test]
fn waiting_in_vain_is_six_and_waiting_well_is_zero() {
    let cluster = Cluster::agent(AgentOptions::default());
    cluster.ok(&["volume", "create", "demo", "--size", "64MiB", "--replicas", "2"]);
    cluster.ok(&["volume", "wait", "demo", "--for", "detached", "--timeout", "10s"]);
    cluster.cli(&["volume", "wait", "demo", "--for", "healthy", "--timeout", "1s"]).expect_code(6);
    let waiting = cluster.cli_start(&["volume", "wait", "demo", "--for", "healthy", "--timeout", "90s"]);
    cluster.ok(&["volume", "attach", "demo"]);
    let _ = waiting.finish(cli::DEADLINE).ok();
    cluster.cli(&["volume", "wait", "demo", "--for", "detached", "--timeout", "1s"]).expect_code(6);
}

#[test]
fn attach_and_detach_may_be_repeated() {
    let cluster = Cluster::with_volume("64MiB", 2);
    let before = cluster.volume("demo");
    cluster.ok(&["volume", "attach", "demo"]);
    let after = cluster.wait_healthy("demo");
    assert_eq!(after.pids(), before.pids(), "a repeat changes nothing");
    assert_eq!(after.generation(), before.generation());
    cluster.detach("demo");
    cluster.ok(&["volume", "detach", "demo"]);
    cluster.wait_no_instances();
    let again = cluster.volume("demo");
    assert_eq!((again.engine_pid(), again.endpoint()), (None, None));
    cluster.ok(&["volume", "attach", "demo"]);
    cluster.wait_healthy("demo");
}

#[test]
fn detach_with_a_client_is_refused_unless_forced() {
    let cluster = Cluster::with_volume("64MiB", 2);
    let mut client = cluster.connect("demo");
    client.write(0, &[1; 4096]).unwrap();
    let said = cluster.cli(&["volume", "detach", "demo"]).expect_code(7);
    assert!(said.0.stderr.contains("--force"), "the remedy is named: {}", said.0);
    client.write(4096, &[2; 4096]).unwrap();
    assert_eq!(cluster.volume("demo").state(), "healthy");
    cluster.ok(&["volume", "detach", "demo", "--force"]);
    cluster.wait_state("demo", "detached");
    assert!(client.write(0, &[3; 4096]).is_err(), "nobody is served after a forced detach");
    cluster.ok(&["volume", "attach", "demo"]);
    cluster.wait_healthy("demo");
    let kept = cluster.connect("demo").read(0, 8192).unwrap();
    assert_eq!(kept, [[1; 4096], [2; 4096]].concat(), "what was acknowledged was kept");
}

#[test]
fn detach_goes_through_once_the_client_has_left() {
    let cluster = Cluster::with_volume("64MiB", 1);
    let client = cluster.connect("demo");
    cluster.cli(&["volume", "detach", "demo"]).expect_code(7);
    drop(client);
    cluster.detach("demo");
}

#[test]
fn delete_of_an_attached_volume_is_refused() {
    let cluster = Cluster::with_volume("64MiB", 2);
    cluster.cli(&["volume", "delete", "demo"]).expect_code(7);
    cluster.cli(&["volume", "delete", "demo", "--purge-data"]).expect_code(7);
    cluster.wait_healthy("demo");
    cluster.connect("demo").write_fua(0, &[1; 4096]).unwrap();
}

fn dirs(volume: &Volume) -> Vec<PathBuf> {
    volume.replicas().iter().map(holdfast_tests::Replica::data_dir).collect()
}

#[test]
fn d1_delete_leaves_the_data_where_it_is_listed_as_unclaimed() {
    let cluster = Cluster::with_volume("64MiB", 2);
    qemu_io(&cluster.uri("demo"), &["write -P 0x3c 0 1M", "flush"]);
    let volume = cluster.volume("demo");
    cluster.detach("demo");
    cluster.ok(&["volume", "delete", "demo"]);
    cluster.cli(&["volume", "show", "demo"]).expect_code(3);
    for dir in dirs(&volume) {
        let image = std::fs::read(dir.join("head.img")).unwrap();
        assert!(image[..1 << 20].iter().all(|b| *b == 0x3c), "{} changed", dir.display());
    }
    let listed = cluster.json(&["replica", "ls"]);
    let replicas = listed["replicas"].as_array().unwrap();
    assert_eq!(replicas.len(), 2, "{listed}");
    for replica in replicas {
        assert_eq!((&replica["claim"], &replica["volume_id"]), (&"unclaimed".into(), &volume.id().into()));
    }
    // The name is free; the new volume is another one, and meets nothing of the old.
    let again = cluster.create_attached("demo", "64MiB", 2);
    assert_ne!(again.id(), volume.id());
    assert!(cluster.connect("demo").read(0, 1 << 20).unwrap().iter().all(|b| *b == 0));
    for dir in dirs(&volume) {
        assert!(dir.join("head.img").exists());
    }
}

fn holds_image(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| if e.file_name() == "head.img" { 1 } else { holds_image(&e.path()) }).sum()
}

#[test]
fn d1_purged_data_waits_in_the_trash() {
    let cluster = Cluster::with_volume("64MiB", 2);
    let volume = cluster.volume("demo");
    cluster.detach("demo");
    cluster.ok(&["volume", "delete", "demo", "--purge-data"]);
    cluster.cli(&["volume", "show", "demo"]).expect_code(3);
    for dir in dirs(&volume) {
        assert!(!dir.exists(), "{} is still in its place", dir.display());
    }
    assert_eq!(holds_image(&cluster.data_dir().join("trash")), 2, "both copies wait in the trash");
    assert!(cluster.json(&["replica", "ls"])["replicas"].as_array().unwrap().is_empty());
}

#[test]
fn d5_d6_trash_is_emptied_after_its_time_and_only_then() {
    let cluster = Cluster::agent(AgentOptions::with(&["--trash-ttl", "1s"]));
    cluster.ok(&["volume", "create", "gone", "--size", "64MiB", "--replicas", "2"]);
    cluster.ok(&["volume", "create", "kept", "--size", "64MiB", "--replicas", "2"]);
    cluster.ok(&["volume", "delete", "gone", "--purge-data"]);
    cluster.ok(&["volume", "delete", "kept"]);
    eventually(90 * SECOND, "the trash is empty", || {
        let left = holds_image(&cluster.data_dir().join("trash"));
        check(left == 0, || format!("{left} images"))
    });
    assert_eq!(
        cluster.json(&["replica", "ls"])["replicas"].as_array().unwrap().len(),
        2,
        "data without intent"
    );
}

#[test]
fn logs_are_shown_and_followed() {
    let cluster = Cluster::with_volume("64MiB", 2);
    let all = cluster.ok(&["instance", "logs", "demo.engine"]).0.stdout;
    assert!(!all.trim().is_empty(), "an engine says what it does");
    let follow = cluster.cli_start(&["instance", "logs", "-f", "demo.engine"]);
    let before = cluster.volume("demo");
    process::kill(before.replica("r2").pid().unwrap());
    cluster.wait_volume("demo", "r2 left and came back", |v| {
        check(v.epoch() > before.epoch() && v.members() == 2 && v.state() == "healthy", || v.state())
    });
    let grown = eventually(30 * SECOND, "the log grows", || {
        let now = cluster.ok(&["instance", "logs", "demo.engine"]).0.stdout;
        check(now.len() > all.len() && now.starts_with(&all), || now.clone()).map(|()| now)
    });
    // Ctrl-C ends a follower; by then it has printed what was there and what came.
    signal(follow.pid(), Signal::SIGINT);
    let followed = follow.finish(30 * SECOND);
    let shared = grown.lines().filter(|line| followed.stdout.contains(line)).count();
    assert!(shared >= all.lines().count(), "{followed}");
    cluster.wait_healthy("demo");
}

#[test]
fn watch_prints_what_is_and_then_each_change() {
    let cluster = Cluster::agent(AgentOptions::default());
    cluster.ok(&["volume", "create", "before", "--size", "64MiB", "--replicas", "1"]);
    let watch = cluster.cli_start(&["watch", "-o", "json"]);
    cluster.create_attached("after", "64MiB", 1);
    cluster.detach("after");
    cluster.ok(&["volume", "delete", "after"]);
    signal(watch.pid(), Signal::SIGINT);
    let said = watch.finish(30 * SECOND).stdout;
    let events: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("one JSON per line ({e}): {line}")))
        .collect();
    assert!(events.len() > 3, "{said}");
    assert!(events[0].to_string().contains("before"), "the snapshot comes first: {}", events[0]);
    assert!(said.contains("after"));
}

#[test]
fn the_record_says_what_was_asked_for_and_nothing_observed() {
    let cluster = Cluster::with_volume("64MiB", 2);
    let record = records::record(&cluster.data_dir(), "demo");
    let text = record.to_string();
    assert_eq!(record["spec"]["size_bytes"].as_u64(), Some(64 * MIB));
    assert_eq!(record["spec"]["attach"]["node"], "node-a");
    for replica in cluster.volume("demo").replicas() {
        assert!(!text.contains(&replica.address().unwrap()), "addresses belong to the inventory");
    }
    assert!(!text.contains("\"pid\""), "{text}");
}
