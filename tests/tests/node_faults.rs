//! Faults of nodes and of what people do to them, under clients whose history must be one that a device could give:
//! the wall clock jumps, an agent is replaced or has a neighbour, the registry is gone or an older one, a port is taken,
//! a disk is slow for long, and single nodes restart.
#![forbid(unsafe_code)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use holdfast_tests::cluster::{AgentOptions, Cluster};
use holdfast_tests::faults::{Fault, FaultyDisk, Trouble, clock};
use holdfast_tests::process::{Process, kill, run};
use holdfast_tests::trial::{Stage, Trial, disks_possible, mounts_possible};
use holdfast_tests::wait::check;
use holdfast_tests::{SECOND, eventually, logs, skip_aloud};

#[test]
fn f_clock_jump() {
    if !mounts_possible() {
        return skip_aloud("f_clock_jump", "root and unshare, for a wall clock of our own");
    }
    let mut trial = Trial::new("f_clock_jump", Stage { clock: true, ..Stage::default() });
    let before = (trial.volume().epoch(), trial.cluster.instance_processes());
    for days in [1, -1, 1, 0] {
        trial.clock().set_days(days);
        trial.load().wait_done(1000, 60 * SECOND);
    }
    let after = (trial.volume().epoch(), trial.cluster.instance_processes());
    assert_eq!(after, before, "a jump alone leaves nobody out and ends nothing");
    for days in [1, -1] {
        trial.clock().set_days(days);
        trial.begin(Fault::StopReplica(2));
        trial.left_out(2);
        trial.go_on();
        trial.undo();
        trial.healthy();
        trial.begin(Fault::KillReplica(1));
        trial.go_on();
        trial.healthy();
        let data = trial.cluster.data_dir();
        for instance in ["demo.engine", "demo.r1"] {
            saw_date(&data.join("instances").join(instance), days);
        }
        saw_date(trial.cluster.root(), days);
    }
    trial.begin(Fault::KillEngine);
    trial.clock().set_days(1);
    trial.go_on();
    trial.begin(Fault::KillAgentAndReplica(3));
    trial.clock().set_days(0);
    trial.go_on();
    assert_eq!(trial.verdict().failed, 0);
}

/// A log in this directory has a line of so many days ahead: its process saw the jump.
fn saw_date(dir: &Path, days: i64) {
    let date = clock::date(days);
    eventually(20 * SECOND, "a line of the jumped clock", || {
        check(logs::contain(dir, &date), || format!("no log in {} has a line of {date}", dir.display()))
    });
}

#[test]
fn f_two_agents_on_a_node() {
    let mut trial = Trial::new("f_two_agents_on_a_node", Stage::default());
    let before = (trial.volume().epoch(), trial.cluster.instance_processes());
    // On the same directories: the first one is named, and keeps its socket.
    let mut second = trial.cluster.command();
    second.arg("--no-wait");
    let said = run(second, 30 * SECOND);
    assert_ne!(said.code, Some(0), "{said}");
    let holder = trial.cluster.agent_pid().to_string();
    assert!(said.stderr.contains(&holder), "the holder's process {holder} is named: {said}");
    trial.go_on();
    // On its own directories, but with the same node name and out of the same ports.
    let ports = trial.cluster.ports().data_ports();
    let neighbour = Cluster::agent(AgentOptions { data_ports: Some(ports), ..AgentOptions::default() });
    neighbour.create_attached("demo", "64MiB", 2);
    let mut client = neighbour.connect("demo");
    client.write_fua(0, &[7; 65536]).unwrap();
    trial.go_on();
    let after = (trial.volume().epoch(), trial.cluster.instance_processes());
    assert_eq!(after, before, "a neighbour is not noticed");
    // Each has replicas that look for a port at once.
    trial.begin(Fault::KillReplica(1));
    kill(neighbour.volume("demo").replica("r1").pid().unwrap());
    trial.go_on();
    trial.healthy();
    neighbour.wait_healthy("demo");
    assert_eq!(client.read(0, 65536).unwrap(), [7; 65536]);
    drop(client);
    neighbour.detach("demo");
    neighbour.ok(&["volume", "delete", "demo", "--purge-data"]);
    trial.go_on();
    assert_eq!(trial.verdict().failed, 0);
}

#[test]
fn f_upgrade_with_io_running() {
    let mut trial = Trial::new("f_upgrade_with_io_running", Stage::default());
    let before = trial.cluster.instance_processes();
    let old = programs(&before);
    assert_eq!(old.len(), 1, "{old:?}");
    trial.upgrade();
    trial.go_on();
    assert_eq!(trial.cluster.instance_processes(), before, "an upgrade touches no instance");
    // One by one, so that old and new serve together.
    for r in 1..=3 {
        trial.begin(Fault::KillReplica(r));
        trial.go_on();
        trial.healthy();
    }
    trial.begin(Fault::KillEngine);
    trial.go_on();
    trial.healthy();
    let new = programs(&trial.cluster.instance_processes());
    assert_eq!(new.len(), 1, "{new:?}");
    assert_ne!(new, old);
    assert_eq!(trial.verdict().failed, 0);
}

/// What these processes run.
fn programs(processes: &[Process]) -> Vec<PathBuf> {
    let program = |p: &Process| std::fs::read_link(format!("/proc/{}/exe", p.pid)).expect("it runs");
    let mut programs: Vec<PathBuf> = processes.iter().map(program).collect();
    programs.sort();
    programs.dedup();
    programs
}

#[test]
fn f_port_taken() {
    let mut trial = Trial::new("f_port_taken", Stage::default());
    let volume = trial.volume();
    let pid = volume.replica("r1").pid().unwrap();
    trial.begin(Fault::StopAgent);
    kill(pid);
    eventually(20 * SECOND, "it is gone", || check(Process::find(pid).is_none(), String::new));
    let port = Trial::port(&volume, 1).unwrap();
    // The kernel lets go of what a ring held a moment after its process.
    let taken = eventually(20 * SECOND, "its port can be taken", || {
        TcpListener::bind(("127.0.0.1", port)).map_err(|e| e.to_string())
    });
    trial.undo();
    trial.go_on();
    let after = trial.healthy();
    assert_ne!(Trial::port(&after, 1), Some(port), "it listens elsewhere");
    drop(taken);
    assert_eq!(trial.verdict().failed, 0);
}

#[test]
fn f_registry_down_while_a_replica_dies() {
    let mut trial = Trial::new("f_registry_down_while_a_replica_dies", Stage::default());
    trial.cluster.allow_errors("the registry cannot be read; nothing is started or stopped");
    let volume = trial.volume();
    let registry = Away::of(&trial, "registry");
    kill(volume.replica("r1").pid().unwrap());
    // Two of three need no record.
    trial.go_on();
    registry.back();
    let healthy = trial.healthy();
    assert_eq!(healthy.engine_pid(), volume.engine_pid());
    assert_eq!(trial.verdict().failed, 0);
}

#[test]
fn f_registry_slow() {
    if !disks_possible() {
        return skip_aloud("f_registry_slow", "root and /dev/fuse, to mount a disk");
    }
    let mut trial = Trial::new("f_registry_slow", Stage::default());
    let engine = trial.volume().engine_pid();
    trial.cluster.kill_agent();
    let records = trial.cluster.data_dir().join("registry/volumes");
    let disk = FaultyDisk::over(&records, &trial.cluster.root().join("records"));
    trial.cluster.keep_faulty_disk(disk);
    trial.cluster.start();
    // Every read and write of a record takes longer than a replica may be silent.
    trial.cluster.faulty_disks()[0].set(Trouble { slow: Duration::from_millis(2500), ..Trouble::default() });
    trial.begin(Fault::KillTwoReplicas(1, 2));
    trial.go_on();
    trial.healthy();
    assert_eq!(trial.volume().engine_pid(), engine);
    assert_eq!(trial.verdict().failed, 0);
}

#[test]
fn f_registry_lists_a_part() {
    let mut trial = Trial::new("f_registry_lists_a_part", Stage::default());
    trial.cluster.create_attached("other", "16M", 1);
    let before = trial.cluster.instance_processes();
    let record = Away::of(&trial, "registry/volumes/demo.json");
    eventually(60 * SECOND, "nobody claims it", || {
        let claim = trial.cluster.instance("demo.engine").claim();
        check(claim == "unclaimed", || claim.clone())
    });
    assert_eq!(trial.cluster.instance("other.engine").claim(), "claimed");
    trial.go_on();
    assert_eq!(trial.cluster.instance_processes(), before, "nothing is stopped on absence");
    record.back();
    trial.healthy();
    assert_eq!(trial.verdict().failed, 0);
}

#[test]
fn f_registry_lists_nothing() {
    let mut trial = Trial::new("f_registry_lists_nothing", Stage::default());
    let before = trial.cluster.instance_processes();
    let records = Away::of(&trial, "registry/volumes");
    std::fs::create_dir(&records.path).unwrap();
    for restarted in [false, true] {
        if restarted {
            trial.cluster.kill_agent();
            trial.cluster.start();
        }
        for name in ["demo.engine", "demo.r1", "demo.r2", "demo.r3"] {
            eventually(60 * SECOND, "nobody claims it", || {
                let claim = trial.cluster.instance(name).claim();
                check(claim == "unclaimed", || format!("{name} is {claim}"))
            });
        }
        trial.go_on();
        assert_eq!(trial.cluster.instance_processes(), before, "nothing is stopped on absence");
    }
    // The engine asks for a record that is not there, and goes on with two of three.
    kill(trial.cluster.instance("demo.r2").pid().unwrap());
    trial.go_on();
    let after = trial.cluster.instance_processes();
    assert!(before.iter().filter(|process| after.contains(process)).count() == 3, "{before:?} {after:?}");
    std::fs::remove_dir(&records.path).unwrap();
    records.back();
    trial.healthy();
    trial.begin(Fault::KillReplica(1));
    trial.go_on();
    assert_eq!(trial.verdict().failed, 0);
}

#[test]
fn f_registry_restored_from_an_older_copy() {
    let mut trial = Trial::new("f_registry_restored_from_an_older_copy", Stage::default());
    let registry = trial.cluster.data_dir().join("registry");
    let older = trial.cluster.root().join("registry-older");
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(&registry).arg(&older);
    let _ = run(copy, 30 * SECOND).ok();
    // The copy does not know of what is committed now.
    for r in [2, 3] {
        trial.begin(Fault::StopReplica(r));
        trial.left_out(r);
        trial.go_on();
        trial.undo();
        trial.healthy();
    }
    let before = trial.volume();
    let newer = Away::of(&trial, "registry");
    std::fs::rename(&older, &registry).unwrap();
    // One that is killed may be back before it is left out, and then nothing is asked of the registry.
    trial.begin(Fault::StopReplica(1));
    trial.left_out(1);
    trial.go_on();
    trial.undo();
    let after = trial.healthy();
    assert!((after.generation(), after.epoch()) > (before.generation(), before.epoch()));
    drop(newer);
    trial.verdict();
}

/// A part of the data directory that is somewhere else for a while.
struct Away {
    path: PathBuf,
    aside: PathBuf,
}

impl Away {
    fn of(trial: &Trial, part: &str) -> Self {
        let path = trial.cluster.data_dir().join(part);
        let aside = trial.cluster.root().join("away");
        std::fs::rename(&path, &aside).unwrap();
        Self { path, aside }
    }
    fn back(&self) {
        std::fs::rename(&self.aside, &self.path).unwrap();
    }
}

/// A trial on disks of our own, where that is possible.
fn on_disks(name: &str, settings: &'static [&'static str]) -> Option<Trial> {
    if !disks_possible() {
        skip_aloud(name, "root and /dev/fuse, to mount a disk");
        return None;
    }
    Some(Trial::new(name, Stage { disks: true, settings, ..Stage::default() }))
}

const SETTINGS: [&str; 2] = ["--replica-timeout", "2s"];

#[test]
fn f_node_reboots() {
    let Some(mut trial) = on_disks("f_node_reboots", &SETTINGS) else { return };
    let pid = trial.volume().engine_pid();
    for r in 1..=3 {
        trial.reboot(&[r]);
        trial.go_on();
        trial.healthy();
    }
    // One, and the next while the first is not back yet.
    trial.reboot(&[1]);
    trial.reboot(&[2]);
    trial.go_on();
    trial.healthy();
    trial.reboot(&[2, 3]);
    trial.go_on();
    assert_eq!(trial.volume().engine_pid(), pid, "the engine's node stayed up");
    assert_eq!(trial.verdict().failed, 0, "one copy was here at any time");
}

#[test]
fn f_node_reboots_during_rebuild() {
    let settings = &["--replica-timeout", "2s", "--rebuild-bandwidth", "8MiB"];
    let Some(mut trial) = on_disks("f_node_reboots_during_rebuild", settings) else { return };
    for victims in [[3, 1], [1, 2]] {
        trial.reboot(&victims[..1]);
        trial.cluster.wait_volume("demo", "it is being filled", |v| {
            let mode = v.replica(&format!("r{}", victims[0])).mode();
            check(mode == "catching_up" || mode == "rebuilding", || mode.clone())
        });
        trial.reboot(&victims[1..]);
        trial.go_on();
        trial.reboot(&victims[..1]);
        trial.go_on();
        trial.healthy();
    }
    assert_eq!(trial.verdict().failed, 0, "one copy was here at any time");
}

#[test]
fn f_slow_disk_is_left_behind() {
    let settings =
        &["--replica-timeout", "30s", "--replica-lag-max", "1500ms", "--rebuild-bandwidth", "4MiB"];
    let Some(mut trial) = on_disks("f_slow_disk_is_left_behind", settings) else { return };
    trial.begin(Fault::SlowDisk(2, 100));
    let suspect = trial.cluster.wait_mode("demo", "r2", "suspect");
    assert!(suspect.replica("r2").reason().contains("slow"), "{}", suspect.0);
    trial.begin(Fault::SlowDisk(2, 700));
    let left = trial.left_out(2);
    assert!(left.replica("r2").reason().contains("left behind"), "{}", left.0);
    trial.go_on();
    trial.undo();
    // It is connected again after a minute, and gets what it missed.
    trial.cluster.wait_mode("demo", "r2", "catching_up");
    trial.healthy();
    assert_eq!(trial.verdict().failed, 0, "slow is not dead");
}
