//! Logs: a line that cannot be written costs nothing, what fails for long is said twice a minute, and what the agent says
//! of an instance rests on an answer.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use holdfast_tests::cluster::{AgentOptions, SOON};
use holdfast_tests::etcd::Etcd;
use holdfast_tests::fleet::{directories, lose_power};
use holdfast_tests::mounts::{self, SmallDisk};
use holdfast_tests::process::{Signal, kill, signal};
use holdfast_tests::wait::check;
use holdfast_tests::{Cluster, Fleet, MIB, SECOND, block, eventually, logs, skip_aloud};

/// Two lines of a failure are written at once, the next after a minute.
const THIRD_LINE: std::time::Duration = std::time::Duration::from_secs(110);

/// Waits until lines with `text` are written that say how many were not; then so many such lines are there in all.
fn lines_once_some_were_left_out(dir: &Path, text: &str) -> usize {
    eventually(THIRD_LINE, "a line that says how many were left out", || {
        let lines = logs::lines(dir, text);
        let told = lines.iter().any(|line| line.contains("left_out="));
        check(told, || lines.join("\n")).map(|()| lines.len())
    })
}

#[test]
fn log_on_a_full_disk_costs_no_instance() {
    if !mounts::possible() {
        return skip_aloud("log_on_a_full_disk_costs_no_instance", "root, for a disk that can be filled");
    }
    let mut cluster = Cluster::agent_not_started(AgentOptions::default());
    let instances = cluster.data_dir().join("instances");
    std::fs::create_dir_all(&instances).unwrap();
    cluster.keep_disk(SmallDisk::empty(&instances, MIB, false));
    cluster.start();
    cluster.create_attached("demo", "64MiB", 2);
    let before = cluster.volume("demo");
    let hog = instances.join("hog");
    fill(&hog);
    // What is left of the last page of each log.
    for name in ["demo.engine", "demo.r1", "demo.r2"] {
        fill(&instances.join(name).join("log"));
    }
    // A replica dies, clients come and go, and one sends nonsense: lines that find no room.
    kill(before.replica("r2").pid().unwrap());
    for round in 0..30 {
        let mut client = cluster.connect("demo");
        client.write_fua(round * 4096, &[7; 4096]).unwrap();
        assert_eq!(client.read(round * 4096, 4096).unwrap(), [7; 4096]);
    }
    let (mut stranger, _) = block::dial(&before.endpoint().unwrap()).unwrap();
    stranger.write_all(&[0xAA; 64]).unwrap();
    drop(stranger);
    std::fs::remove_file(&hog).unwrap();
    cluster.wait_healthy("demo");
    let engine = cluster.instance("demo.engine");
    assert_eq!((engine.pid(), engine.restarts()), (before.engine_pid(), 0));
    eventually(SOON, "the log goes on, and says how much is missing", || {
        let lines = logs::lines(&instances.join("demo.engine"), "lines of the log were lost");
        check(!lines.is_empty() && lines[0].contains("No space left on device"), || lines.join("\n"))
    });
}

/// Writes to the end of a file until nothing more fits.
fn fill(path: &Path) {
    let mut file = File::options().append(true).create(true).open(path).unwrap();
    for chunk in [4096, 1] {
        while file.write_all(&vec![b'\n'; chunk]).is_ok() {}
    }
}

#[test]
fn hung_instance_is_not_shown_as_healthy() {
    let fleet = Fleet::start(2, &[]);
    let volume = fleet.attached("32MiB", "node-a,node-b", "2");
    let [a, b] = &fleet.nodes[..] else { unreachable!() };
    eventually(SOON, "both nodes have said that all is well", || {
        let said = a.cli(&["node", "safe-to-reboot", "node-b"]);
        check(said.0.code == Some(0), || said.said())
    });
    for (hung, name) in
        [(volume.engine_pid().unwrap(), "demo.engine"), (volume.replica("r1").pid().unwrap(), "demo.r1")]
    {
        signal(hung, Signal::SIGSTOP);
        // It is asked, whatever is known of it.
        let said = a.cli(&["node", "safe-to-reboot", "node-b"]).expect_code(7).said();
        assert!(said.contains(name) || said.contains("is not healthy"), "{said}");
        // Without a question it is noticed as well, and the other node hears of it.
        eventually(SOON, "the agent says that it does not answer", || {
            let instance = a.instance(name);
            let said = (instance.state(), instance.reason());
            check(said.0 == "error" && said.1.contains("does not answer"), || format!("{said:?}"))
        });
        for node in [a, b] {
            eventually(SOON, "the volume is not healthy", || {
                let volume = node.volume("demo");
                let healthy = volume.state() == "healthy" && volume.members() == 2;
                check(!healthy, || volume.state())
            });
        }
        eventually(SOON, "the other node says so, too", || {
            let said = b.cli(&["node", "safe-to-reboot", "node-b"]);
            check(said.0.code == Some(7), || said.said())
        });
        signal(hung, Signal::SIGCONT);
        a.wait_healthy("demo");
        eventually(SOON, "the other node hears of it", || {
            let state = b.volume("demo").state();
            check(state == "healthy", || state.clone())
        });
        eventually(SOON, "the node may be restarted again", || {
            let said = a.cli(&["node", "safe-to-reboot", "node-b"]);
            check(said.0.code == Some(0), || said.said())
        });
    }
}

#[test]
fn port_that_is_not_free_is_said_twice_and_shown() {
    let cluster = Cluster::agent_not_started(AgentOptions::default());
    let first = *cluster.ports().data_port_range().start();
    let ports = format!("{first}-{}", first + 1);
    let mut cluster = Cluster::agent(AgentOptions { data_ports: Some(ports), ..AgentOptions::default() });
    cluster.allow_errors("listen for engines");
    cluster.ok(&["volume", "create", "demo", "--size", "16MiB", "--replicas", "3"]);
    let _ = cluster.cli(&["volume", "attach", "demo"]);
    assert_eq!(lines_once_some_were_left_out(cluster.root(), "no port of"), 3);
    let without = cluster.volume("demo").replicas().into_iter().find(|r| r.mode() != "member").unwrap();
    assert!(without.reason().contains("widen the range of data ports"), "{}", without.reason());
}

#[test]
fn clients_that_send_nonsense_are_said_twice() {
    let cluster = Cluster::with_volume("16MiB", 1);
    let uri = cluster.uri("demo");
    for _ in 0..300 {
        let (mut stranger, _) = block::dial(&uri).unwrap();
        // It may be sent away before it has said all.
        drop(stranger.write_all(&[0xAA; 64]));
    }
    let engine = cluster.data_dir().join("instances/demo.engine");
    let mut client = cluster.connect("demo");
    client.write_fua(0, &[1; 4096]).unwrap();
    drop(client);
    eventually(THIRD_LINE, "what was left out is said", || {
        check(!logs::lines(&engine, "left_out=").is_empty(), || "nothing".to_owned())
    });
    let told = [logs::lines(&engine, "client is dropped"), logs::lines(&engine, "a client has")].concat();
    assert!(told.len() <= 3, "{told:?}");
}

#[test]
fn purge_that_waits_says_once_what_it_moved() {
    let mut fleet = Fleet::start(2, &[]);
    let a = &fleet.nodes[0];
    // An orphan: plans are made every few seconds.
    a.ok(&["volume", "create", "old", "--size", "8MiB", "--on", "node-a"]);
    a.ok(&["volume", "delete", "old"]);
    a.ok(&["volume", "create", "demo", "--size", "8MiB", "--on", "node-a,node-b"]);
    lose_power(&mut fleet.nodes[1]);
    let a = &fleet.nodes[0];
    eventually(SOON, "the other node does not answer", || {
        let nodes = a.json(&["node", "ls"]);
        check(nodes["nodes"][1]["live"] == false, || nodes.to_string())
    });
    let _ = a.cli(&["volume", "delete", "demo", "--purge-data"]);
    eventually(SOON, "it is in the trash", || {
        let there = directories(a);
        check(!there.iter().any(|name| name.starts_with("demo")), || format!("{there:?}"))
    });
    // Each makes a plan, in which the purge is still to be done.
    for _ in 0..10 {
        let _ = a.cli(&["node", "safe-to-reboot"]);
    }
    let moved = logs::lines(a.root(), "to the trash");
    assert_eq!(moved.len(), 1, "{moved:?}");
}

#[test]
fn registry_that_is_down_is_said_twice_for_a_volume() {
    let mut etcd = Etcd::start(3);
    let mut cluster = Cluster::agent(AgentOptions::with(&["--registry", &etcd.url("/test")]));
    cluster.allow_errors("the registry cannot be read");
    cluster.allow_errors("the engine's status");
    cluster.create_attached("demo", "16MiB", 3);
    cluster.create_attached("other", "16MiB", 2);
    let replicas = ["demo", "other"].map(|name| cluster.volume(name).replica("r1").pid().unwrap());
    // Three servers, of which each fails with a text of its own.
    (0..3).for_each(|index| etcd.kill(index));
    replicas.into_iter().for_each(kill);
    // One line for each volume, once more, and once more after a minute with how many were left out.
    let lines = lines_once_some_were_left_out(cluster.root(), "the registry does not answer its ask");
    assert!(lines <= 6, "{lines}");
    for instance in ["demo.engine", "other.engine"] {
        let said = logs::lines(&cluster.data_dir().join("instances").join(instance), "cannot be reached");
        assert!(said.len() <= 3, "{said:?}");
    }
    let all = logs::lines(&cluster.root().join("agent-1.log"), " WARN ");
    let of_registry = all.iter().filter(|line| line.contains("lives") || line.contains("published"));
    assert!(of_registry.count() <= 12, "{all:?}");
    (0..3).for_each(|index| etcd.run(index));
    etcd.wait_healthy();
    cluster.wait_healthy("demo");
    cluster.wait_healthy("other");
}

#[test]
fn fifo_as_configuration_stops_no_agent() {
    let mut cluster = Cluster::agent_not_started(AgentOptions::default());
    let path = cluster.root().join("agent.toml");
    std::fs::write(&path, "log_level = \"info\"\n").unwrap();
    cluster.add_arguments(&["--config", path.to_str().unwrap()]);
    cluster.start();
    std::fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    signal(cluster.agent_pid(), Signal::SIGHUP);
    eventually(SOON, "it says that this is no file", || {
        let lines = logs::lines(cluster.root(), "the old one stays");
        check(lines.iter().any(|line| line.contains("regular file")), || lines.join("\n"))
    });
    std::fs::remove_file(&path).unwrap();
    symlink("/dev/zero", &path).unwrap();
    signal(cluster.agent_pid(), Signal::SIGHUP);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "log_level = \"debug\"\n").unwrap();
    signal(cluster.agent_pid(), Signal::SIGHUP);
    eventually(60 * SECOND, "it reads a file again", || {
        let lines = logs::lines(cluster.root(), "reloaded");
        check(lines.iter().any(|line| line.contains("log_level")), || lines.join("\n"))
    });
    assert!(cluster.end_agent(Signal::SIGTERM).success());
}
