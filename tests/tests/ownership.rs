//! Orphans beside other owners: another agent of the node, another node, and many at once; and what is told of them.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Instant;

use holdfast_tests::Cluster;
use holdfast_tests::cluster::{AgentOptions, SOON};
use holdfast_tests::exposition::Page;
use holdfast_tests::orphans::{confirmed_s, orphan, orphans, remove_record, restore_record, wait_orphan};
use holdfast_tests::process::Process;
use holdfast_tests::records;
use holdfast_tests::wait::{SECOND, check, eventually};
use serde_json::{Value, json};

/// A replica counts as in use for half a minute after it began.
const IDLE_WITHIN: std::time::Duration = std::time::Duration::from_secs(150);
const CLEANS: [&str; 4] = ["--orphan-auto-cleanup", "instance", "--orphan-grace-period", "1s"];
/// A port of the cluster's own block that nothing else takes.
const METRICS: u16 = 3;

/// Has the one replica of a new, detached volume run because another controller claims it.
fn run_claimed(cluster: &Cluster, volume: &str) -> i32 {
    cluster.ok(&["volume", "create", volume, "--size", "4MiB", "--replicas", "1"]);
    let name = format!("{volume}.r1");
    cluster.ok(&["claim", "put", &name, "--owner", "backup", "--desired", "running"]);
    eventually(SOON, &format!("{name} runs"), || {
        let found = cluster.instances().into_iter().find(|instance| instance.name() == name);
        let running = found.filter(|instance| instance.state() == "running");
        running.and_then(|instance| instance.pid()).ok_or_else(|| format!("{:?}", cluster.instances()))
    })
}

/// Takes all that claims it away. The claim holds it until the record is gone: a record that wants nothing of it ends it.
fn disown(cluster: &Cluster, volume: &str) {
    remove_record(cluster, volume);
    cluster.ok(&["claim", "delete", &format!("{volume}.r1")]);
}

fn change_record(cluster: &Cluster, volume: &str, change: impl FnOnce(&mut Value)) {
    let mut record = records::record(&cluster.data_dir(), volume);
    change(&mut record);
    let bytes = serde_json::to_vec(&record).unwrap();
    std::fs::write(records::record_path(&cluster.data_dir(), volume), bytes).unwrap();
}

fn alive(pid: i32) -> bool {
    Process::find(pid).is_some_and(|process| process.is_alive())
}

/// The agent's lines about an orphan process, by the state that it came into.
fn told(cluster: &Cluster, name: &str) -> Vec<String> {
    let of = format!("orphan class=instance name=\"{name}\"");
    let said = cluster.agent_said();
    let lines = said.lines().filter(|line| line.contains(&of));
    let to = lines.filter_map(|line| line.split(" to=\"").nth(1)?.split('"').next().map(str::to_owned));
    to.collect()
}

/// Waits until two looks at everything have brought no plan.
fn wait_settled(metrics: u16) {
    let plans = || Page::scrape(metrics).value("holdfast_reconcile_duration_seconds_count", &[]);
    let mut last = (plans(), Instant::now());
    eventually(3 * SOON, "an idle agent plans no more", || {
        let now = plans();
        if now != last.0 {
            last = (now, Instant::now());
        }
        check(last.1.elapsed() > 11 * SECOND, || format!("{now:?} plans"))
    });
}

#[test]
fn an_idle_agent_plans_no_more_and_sees_what_is_changed_by_hand_within_seconds() {
    let mut cluster = Cluster::agent_not_started(AgentOptions::default());
    let port = cluster.ports().own(METRICS);
    cluster.add_arguments(&["--metrics", &port.to_string()]);
    cluster.start();
    for volume in ["live", "demo"] {
        cluster.ok(&["volume", "create", volume, "--size", "4MiB", "--replicas", "1"]);
    }
    cluster.ok(&["volume", "attach", "live"]);
    let found = cluster.json(&["volume", "show", "demo"]);
    let directory = PathBuf::from(found["replicas"][0]["data_dir"].as_str().unwrap());
    wait_settled(port);
    // Without a look it would be noticed with the plan of each minute: later than these deadlines.
    let aside = cluster.root().join("aside");
    std::fs::rename(&directory, &aside).unwrap();
    cluster.wait_mode("demo", "r1", "absent");
    std::fs::rename(&aside, &directory).unwrap();
    eventually(SOON, "it is there again", || {
        let found = cluster.json(&["volume", "show", "demo"]);
        check(found["replicas"][0]["mode"] != "absent", || found.to_string())
    });
    wait_settled(port);
    remove_record(&cluster, "demo");
    let name = directory.file_name().unwrap().to_str().unwrap();
    eventually(SOON, "its directory is nobody's", || {
        orphan(&cluster, name).ok_or_else(|| "claimed".to_owned())
    });
}

#[test]
fn o11_of_two_agents_on_a_node_the_one_that_hosts_it_ends_it_and_only_once() {
    let mut host = Cluster::agent(AgentOptions::with(&CLEANS));
    let ports = host.ports().data_ports();
    let options = AgentOptions { data_ports: Some(ports), ..AgentOptions::with(&CLEANS) };
    let neighbour = Cluster::agent(options);
    host.allow_errors("demo");
    let ours = run_claimed(&host, "demo");
    let theirs = run_claimed(&neighbour, "demo");
    disown(&host, "demo");
    eventually(IDLE_WITHIN, "it is ended, and nothing runs at its host", || {
        check(!alive(ours) && host.instances().is_empty(), || format!("{:?}", orphans(&host)))
    });
    // Its data is still there to be looked at, which shows that time passes.
    let data = orphans(&host).pop().expect("its directory is nobody's");
    let (name, before) = (data["name"].as_str().unwrap(), confirmed_s(&data));
    wait_orphan(&host, name, "looked at twice more", |found| confirmed_s(found) >= before + 10);
    assert!(host.instance_processes().is_empty(), "it is not made again");
    let cleaned = |agent: &Cluster| agent.agent_said().matches("cleaning class=instance").count();
    assert_eq!((cleaned(&host), cleaned(&neighbour)), (1, 0));
    assert!(alive(theirs));
    assert_eq!((told(&neighbour, "demo.r1").len(), orphans(&neighbour).len()), (0, 0));
}

#[test]
fn o12_what_a_stable_record_places_on_another_node_is_an_orphan_and_what_a_moving_one_says_is_not() {
    let mut cluster = Cluster::agent(AgentOptions::default());
    cluster.allow_errors("gone");
    let pids = ["demo", "gone"].map(|volume| run_claimed(&cluster, volume));
    change_record(&cluster, "demo", |record| {
        record["spec"]["replicas"][0]["node"] = json!("node-b");
        record["spec"]["intent"] = json!({"purge": "an intent that says something else soon"});
    });
    cluster.ok(&["claim", "delete", "demo.r1"]);
    disown(&cluster, "gone");
    wait_orphan(&cluster, "gone.r1", "looked at several times", |found| confirmed_s(found) >= 10);
    assert_eq!(cluster.instance("demo.r1").claim(), "unknown");
    assert_eq!(orphan(&cluster, "demo.r1"), None);
    change_record(&cluster, "demo", |record| record["spec"]["intent"] = json!("keep"));
    let found = wait_orphan(&cluster, "demo.r1", "the record is stable", |_| true);
    assert!(found["reason"].as_str().unwrap().contains("does not want it on this node"), "{found}");
    assert!(pids.into_iter().all(alive));
}

#[test]
fn o13_each_change_is_one_line_and_one_count_and_what_stays_as_it_is_says_nothing() {
    let mut cluster = Cluster::agent_not_started(AgentOptions::default());
    let port = cluster.ports().own(METRICS);
    cluster.add_arguments(&["--metrics", &port.to_string()]);
    cluster.allow_errors("demo");
    cluster.start();
    run_claimed(&cluster, "demo");
    // It has begun to run a moment ago, and is in use so long.
    let busy = [("class", "instance"), ("state", "orphaned-busy")];
    assert_eq!(Page::scrape(port).value("holdfast_orphans", &busy), None);
    let aside = cluster.root().join("demo.json");
    disown(&cluster, "demo");
    wait_orphan(&cluster, "demo.r1", "looked at twice", |found| confirmed_s(found) >= 5);
    assert_eq!(Page::scrape(port).value("holdfast_orphans", &busy), Some(1.0));
    wait_orphan(&cluster, "demo.r1", "looked at several times", |found| confirmed_s(found) >= 15);
    assert_eq!(told(&cluster, "demo.r1"), ["orphaned-busy"]);
    let (page, class) = (Page::scrape(port), [("class", "instance")]);
    assert!(page.value("holdfast_orphan_oldest_seconds", &class) >= Some(15.0));
    let came = [("class", "instance"), ("to", "orphaned-busy")];
    assert_eq!(page.value("holdfast_orphan_transitions_total", &came), Some(1.0));
    let volume: Value = serde_json::from_slice(&std::fs::read(&aside).unwrap()).unwrap();
    let id = volume["id"].as_str().unwrap();
    cluster.ok(&["claim", "put", "demo.r1", "--owner", "backup", "--volume-id", id]);
    // One line a minute of one thing: what it became between two of them is not told.
    eventually(IDLE_WITHIN, "it is claimed, and told once", || {
        let told = told(&cluster, "demo.r1");
        check(told.len() <= 3 && told.iter().filter(|to| *to == "claimed").count() == 1, || {
            format!("{told:?}")
        })
    });
    let page = Page::scrape(port);
    assert_eq!(page.value("holdfast_orphans_reclaimed_total", &class), Some(1.0));
    assert_eq!(page.value("holdfast_orphans_cleaned_total", &class), Some(0.0));
    assert_eq!(page.value("holdfast_orphan_oldest_seconds", &class), Some(0.0));
}

#[test]
fn o15_many_orphans_at_once_are_all_held_until_a_person_or_their_records_say_otherwise() {
    let mut cluster = Cluster::agent_not_started(AgentOptions::with(&CLEANS));
    let port = cluster.ports().own(METRICS);
    cluster.add_arguments(&["--metrics", &port.to_string()]);
    cluster.allow_errors("v");
    cluster.start();
    let volumes = ["v1", "v2", "v3", "v4", "v5"];
    let pids = volumes.map(|volume| run_claimed(&cluster, volume));
    let records = volumes.map(|volume| remove_record(&cluster, volume));
    // All claims in one step, as a registry that is restored loses them.
    let claims = cluster.data_dir().join("registry/claims/node-a");
    let aside = cluster.root().join("claims");
    std::fs::rename(&claims, &aside).unwrap();
    for volume in volumes {
        let name = format!("{volume}.r1");
        let found =
            wait_orphan(&cluster, &name, "its grace is over many times", |found| confirmed_s(found) > 6);
        assert_eq!((&found["state"], &found["remaining_s"]), (&"orphaned-held".into(), &0.into()), "{found}");
    }
    assert!(pids.into_iter().all(alive), "nothing was ended");
    let held = || Page::scrape(port).value("holdfast_orphans_held_by_breaker", &[("class", "instance")]);
    assert_eq!(held(), Some(5.0));
    cluster.ok(&["orphan", "release", "v1.r1"]);
    eventually(IDLE_WITHIN, "what a person released is ended", || {
        check(!alive(pids[0]), || format!("{:?}", orphans(&cluster)))
    });
    // A record that nobody claims beside would end what it does not want to run.
    std::fs::rename(&aside, &claims).unwrap();
    for (volume, record) in volumes.iter().zip(&records) {
        restore_record(&cluster, volume, record);
    }
    eventually(SOON, "what is claimed again is held no more", || {
        let left = orphans(&cluster);
        check(left.is_empty() && held() == Some(0.0), || format!("{left:?}"))
    });
    assert!(pids[1..].iter().all(|pid| alive(*pid)));
}
