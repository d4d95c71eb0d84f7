//! `holdfast uninstall`: confirmed first, at once, once, to its end, and nothing that is not ours.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use holdfast_tests::cluster::{AgentOptions, SOON};
use holdfast_tests::process::{Running, Signal, processes_of};
use holdfast_tests::wait::check;
use holdfast_tests::{Cluster, MIB, cli, eventually, image};
use serde_json::Value;

/// The command for this cluster's agent.
fn arguments(cluster: &Cluster, more: &[&str]) -> Vec<String> {
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let mut args = vec!["uninstall".to_owned(), "-o".into(), "json".into(), "--node".into(), "node-a".into()];
    args.extend([
        "--data-dir".into(),
        text(cluster.data_dir()),
        "--runtime-dir".into(),
        text(cluster.runtime_dir()),
    ]);
    args.extend(["--listen".into(), cluster.address()]);
    args.extend(more.iter().map(|a| (*a).to_owned()));
    args
}

fn start(cluster: &Cluster, more: &[&str]) -> Running {
    let args = arguments(cluster, more);
    cli::start(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

fn uninstall(cluster: &Cluster, more: &[&str]) -> cli::CliOutput {
    cli::CliOutput(start(cluster, more).finish(cli::DEADLINE))
}

/// An agent with a detached volume that holds something.
fn with_data() -> Cluster {
    let cluster = Cluster::with_volume("64MiB", 2);
    cluster.connect("demo").write_fua(MIB, &[0x5A; 4096]).unwrap();
    cluster.cli(&["volume", "detach", "demo"]).expect_code(0);
    cluster
}

/// The agent again, on what was kept.
fn nothing_was_lost(cluster: &mut Cluster) {
    cluster.start();
    cluster.cli(&["volume", "attach", "demo"]).expect_code(0);
    let volume = cluster.wait_healthy("demo");
    assert_eq!(cluster.connect("demo").read(MIB, 4096).unwrap(), [0x5A; 4096]);
    cluster.cli(&["volume", "detach", "demo"]).expect_code(0);
    image::equal(&volume.images()).unwrap();
}

fn nothing_is_left(cluster: &Cluster) {
    let left = processes_of(cluster.root());
    assert!(left.is_empty(), "{left:?}");
    let data = cluster.data_dir();
    for name in ["instances", "bin", "agent.lock", "uninstall.lock"] {
        assert!(!data.join(name).exists(), "{name} is left");
    }
    let ends_in_sock = |path: PathBuf| path.to_string_lossy().contains(".sock");
    for dir in [cluster.root().to_owned(), cluster.runtime_dir()] {
        let Ok(entries) = std::fs::read_dir(dir) else { continue };
        let left: Vec<_> = entries.map(|e| e.unwrap().path()).filter(|p| ends_in_sock(p.clone())).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn u1_a_confirmation_counts_from_the_moment_it_is_given() {
    let mut cluster = with_data();
    assert_eq!(uninstall(&cluster, &["--allow"]).json()["result"], "allowed");
    let done = uninstall(&cluster, &[]).json();
    assert_eq!(done["result"], "uninstalled", "{done}");
    assert!(cluster.wait_agent_end().success());
    nothing_is_left(&cluster);
    assert_eq!(uninstall(&cluster, &[]).json()["result"], "nothing_here");
    nothing_was_lost(&mut cluster);
    // What is installed anew is confirmed anew.
    uninstall(&cluster, &[]).expect_code(8);
}

#[test]
fn u2_without_a_confirmation_nothing_changes_and_a_late_one_is_found() {
    let mut cluster = Cluster::with_volume("64MiB", 2);
    let before = cluster.instance_processes();
    let refused = uninstall(&cluster, &[]).expect_code(8).said();
    assert!(refused.contains("--allow") && refused.trim().lines().count() == 1, "{refused}");
    assert_eq!(cluster.instance_processes(), before);
    assert_eq!(uninstall(&cluster, &["--allow"]).json()["result"], "allowed");
    assert_eq!(uninstall(&cluster, &["--revoke"]).json()["result"], "revoked");
    let waits = start(&cluster, &["--force"]);
    let lock = cluster.data_dir().join("uninstall.lock");
    eventually(SOON, "it looks for the confirmation", || check(lock.exists(), || "no lock yet".to_owned()));
    uninstall(&cluster, &["--allow"]).expect_code(0);
    let done = cli::CliOutput(waits.finish(cli::DEADLINE)).json();
    assert_eq!(done["result"], "uninstalled", "{done}");
    assert!(cluster.wait_agent_end().success());
    nothing_is_left(&cluster);
}

#[test]
fn u3_of_two_at_once_one_does_it() {
    let mut cluster = with_data();
    uninstall(&cluster, &["--allow"]).expect_code(0);
    let both = [start(&cluster, &[]), start(&cluster, &[])];
    let results = both.map(|one| cli::CliOutput(one.finish(cli::DEADLINE)).json()["result"].clone());
    let did = results.iter().filter(|result| **result == "uninstalled").count();
    let others: [Value; 2] = ["in_progress".into(), "nothing_here".into()];
    assert_eq!(did, 1, "{results:?}");
    assert!(results.iter().any(|result| others.contains(result)), "{results:?}");
    assert!(cluster.wait_agent_end().success());
    nothing_is_left(&cluster);
    nothing_was_lost(&mut cluster);
}

#[test]
fn u4_interrupted_anywhere_and_repeated_it_completes() {
    let mut cluster = with_data();
    cluster.cli(&["volume", "attach", "demo"]).expect_code(0);
    uninstall(&cluster, &["--allow"]).expect_code(0);
    for after_ms in [5, 20, 60, 120, 200, 300, 450, 700] {
        start(&cluster, &["--force"]).kill_after(Duration::from_millis(after_ms));
    }
    let done = uninstall(&cluster, &["--force"]).json();
    assert!(["uninstalled", "nothing_here"].contains(&done["result"].as_str().unwrap()), "{done}");
    assert!(cluster.wait_agent_end().success());
    nothing_is_left(&cluster);
    nothing_was_lost(&mut cluster);
}

#[test]
fn u5_attached_volumes_are_named_and_taken_away_only_by_force() {
    let mut cluster = Cluster::with_volume("64MiB", 2);
    cluster.connect("demo").write_fua(MIB, &[0x5A; 4096]).unwrap();
    uninstall(&cluster, &["--allow"]).expect_code(0);
    let client = cluster.connect("demo");
    let refused = uninstall(&cluster, &[]).expect_code(7).said();
    assert!(refused.contains("demo") && refused.contains("--force"), "{refused}");
    assert_eq!(cluster.volume("demo").state(), "healthy");
    let done = uninstall(&cluster, &["--force"]).json();
    drop(client);
    assert_eq!(done["detached"], serde_json::json!(["demo"]), "{done}");
    let kept = done["kept"].as_array().unwrap();
    for stays in ["replicas", "registry"] {
        let path = cluster.data_dir().join(stays);
        assert!(kept.contains(&path.to_string_lossy().into()), "{stays}: {done}");
    }
    assert!(cluster.wait_agent_end().success());
    nothing_is_left(&cluster);
    nothing_was_lost(&mut cluster);
}

#[test]
fn u6_what_is_not_ours_stays_and_data_goes_only_when_it_was_asked_for() {
    let mut cluster = with_data();
    let theirs = [cluster.data_dir().join("notes.txt"), cluster.runtime_dir().join("other.pid")];
    for path in &theirs {
        std::fs::write(path, "theirs").unwrap();
    }
    // Also where no agent runs any more.
    uninstall(&cluster, &["--allow"]).expect_code(0);
    assert!(cluster.end_agent(Signal::SIGTERM).success());
    let ports = cluster.ports().data_port_range();
    let done = uninstall(&cluster, &["--purge-data", "--yes"]).json();
    assert_eq!(done["deleted"], serde_json::json!(["demo"]), "{done}");
    nothing_is_left(&cluster);
    for port in ports {
        // The kernel lets go of what a ring held a moment after its process.
        eventually(SOON, &format!("port {port} is free"), || {
            std::net::TcpListener::bind(("127.0.0.1", port)).map_err(|e| e.to_string())
        });
    }
    let left: Vec<_> = std::fs::read_dir(cluster.data_dir()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left, theirs[..1]);
    assert!(theirs[1].exists());
}

#[test]
fn a_directory_that_is_not_ours_is_left_alone() {
    let cluster = Cluster::agent_not_started(AgentOptions::default());
    std::fs::create_dir(cluster.data_dir()).unwrap();
    assert_eq!(uninstall(&cluster, &[]).json()["result"], "nothing_here");
    assert!(cluster.data_dir().is_dir());
    std::fs::remove_dir(cluster.data_dir()).unwrap();
    assert_eq!(uninstall(&cluster, &[]).json()["result"], "nothing_here");
    let missing = uninstall(&cluster, &["--allow"]).expect_code(3).said();
    assert!(missing.contains("--data-dir"), "with the remedy: {missing}");
    assert!(!cluster.data_dir().exists());
}
