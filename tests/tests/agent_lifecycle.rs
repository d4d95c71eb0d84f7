//! Instances outlive their agent: killed, told to end, upgraded or confused, it never costs a client an I/O.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use holdfast_tests::control::{Control, instance_sockets, sockets};
use holdfast_tests::process::{self, Process, Signal, kill};
use holdfast_tests::tools::{FioLoop, qemu_io};
use holdfast_tests::wait::check;
use holdfast_tests::{
    AgentOptions, Cluster, QuickstartOptions, Rng, SECOND, cli, eventually, image, records,
};

/// An unconfirmed instance ends by itself after 30 s.
const UNCONFIRMED: Duration = Duration::from_secs(45);

fn same_processes(cluster: &Cluster, before: &[Process]) {
    for process in before {
        assert!(process.is_alive(), "process {} was ended: {:?}", process.pid, process.command);
    }
    assert_eq!(cluster.instance_processes().len(), before.len(), "another copy was started");
}

#[test]
fn a_killed_agent_is_not_noticed_by_clients_and_adopts_every_instance_again() {
    let mut cluster = Cluster::with_volume("128MiB", 3);
    let before = cluster.volume("demo");
    let (processes, instances) = (cluster.instance_processes(), cluster.instances());
    assert_eq!(processes.len(), 4);
    let mut load = FioLoop::start(&before.endpoint().unwrap(), "64m");
    load.wait_passes(1);
    for _ in 0..3 {
        cluster.kill_agent();
        // A whole verified pass with nobody in charge.
        load.wait_passes(1);
        same_processes(&cluster, &processes);
        cluster.start();
        let after = cluster.wait_healthy("demo");
        assert_eq!(after.pids(), before.pids());
        assert_eq!(after.generation(), before.generation());
        assert_eq!(after.epoch(), before.epoch(), "no member was lost");
    }
    load.wait_passes(1);
    load.finish();
    same_processes(&cluster, &processes);
    for instance in &instances {
        let now = cluster.instance(&instance.name());
        assert_eq!((now.pid(), now.uuid()), (instance.pid(), instance.uuid()));
        assert_eq!((now.state(), now.claim(), now.restarts()), ("running".into(), "claimed".into(), 0));
    }
    cluster.assert_no_second_copy();
    cluster.assert_images_equal("demo");
}

#[test]
fn a_replica_that_dies_while_no_agent_runs_is_brought_back_by_the_next_one() {
    let mut cluster = Cluster::with_volume("64MiB", 3);
    let before = cluster.volume("demo");
    let mut client = cluster.connect("demo");
    cluster.kill_agent();
    kill(before.replica("r2").pid().unwrap());
    // The remaining two are a majority: the engine goes on without asking anybody.
    client.write(0, &[7; 8192]).unwrap();
    client.flush().unwrap();
    cluster.start();
    let after = cluster.wait_healthy("demo");
    assert_eq!(after.engine_pid(), before.engine_pid());
    drop(client);
    cluster.assert_images_equal("demo");
    cluster.assert_no_second_copy();
}

#[test]
fn an_engine_that_dies_while_no_agent_runs_is_brought_back_by_the_next_one() {
    let mut cluster = Cluster::with_volume("64MiB", 3);
    let before = cluster.volume("demo");
    cluster.connect("demo").write_fua(0, &[9; 8192]).unwrap();
    cluster.kill_agent();
    kill(before.engine_pid().unwrap());
    cluster.start();
    let after = cluster.wait_volume("demo", "a newer engine serves", |v| {
        check(v.generation() > before.generation() && v.state() == "healthy", || v.state())
    });
    assert_ne!(after.engine_pid(), before.engine_pid());
    assert_eq!(cluster.connect("demo").read(0, 8192).unwrap(), [9; 8192]);
    cluster.wait_images_equal("demo");
    cluster.assert_no_second_copy();
}

#[test]
fn an_agent_killed_at_any_moment_of_an_attach_leaves_one_copy_of_everything() {
    let mut cluster = Cluster::agent(AgentOptions::default());
    let mut rng = Rng::announced("an_agent_killed_at_any_moment_of_an_attach_leaves_one_copy_of_everything");
    cluster.ok(&["volume", "create", "demo", "--size", "64MiB", "--replicas", "3"]);
    // The moment is an event: as many processes as that exist. Between the spawn of the last of them and whatever the
    // agent does next, it dies; the number of questions asked first moves the moment a little further.
    for seen in [0, 1, 2, 3, 4, 1, 3, 4] {
        let attach = cluster.cli_start(&["volume", "attach", "demo"]);
        eventually(60 * SECOND, "instances appear", || {
            let now = cluster.instance_processes().len();
            check(now >= seen, || format!("{now} of {seen}"))
        });
        for _ in 0..rng.below(8) {
            let _ = cluster.instance_processes();
        }
        cluster.kill_agent();
        // It lost its agent in the middle; how it says so is another test's matter.
        let _ = attach.finish(cli::DEADLINE);
        cluster.start();
        // The attach may have been cut before its record: then it is given again, and is idempotent.
        cluster.ok(&["volume", "attach", "demo"]);
        cluster.wait_healthy("demo");
        eventually(UNCONFIRMED, "what was never confirmed has ended by itself", || {
            let running = cluster.instance_processes().len();
            check(running == 4, || format!("{running} instances run"))
        });
        cluster.assert_no_second_copy();
        qemu_io(&cluster.uri("demo"), &["write -P 0x2a 0 1M", "flush", "read -P 0x2a 0 1M"]);
        cluster.detach("demo");
        cluster.wait_no_instances();
    }
}

#[test]
fn sigterm_of_the_agent_leaves_its_instances_running() {
    let mut cluster = Cluster::with_volume("64MiB", 3);
    let before = cluster.instance_processes();
    let mut client = cluster.connect("demo");
    let status = cluster.end_agent(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{status}");
    client.write_fua(0, &[3; 4096]).unwrap();
    same_processes(&cluster, &before);
    cluster.start();
    cluster.wait_healthy("demo");
    same_processes(&cluster, &before);
    assert_eq!(client.read(0, 4096).unwrap(), [3; 4096]);
}

#[test]
fn stop_instances_ends_them_cleanly_and_the_next_agent_starts_them_again() {
    let mut cluster = Cluster::agent(AgentOptions::with(&["--stop-instances"]));
    let before = cluster.create_attached("demo", "64MiB", 3);
    cluster.connect("demo").write(4096, &[5; 70_000]).unwrap();
    let status = cluster.end_agent(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(cluster.instance_processes().is_empty(), "instances run after the agent said it was done");
    assert_eq!(records::record(&cluster.data_dir(), "demo")["status"]["clean"].as_bool(), Some(true));
    image::equal(&before.images()).unwrap();
    cluster.start();
    let after = cluster.wait_healthy("demo");
    assert!(after.generation() > before.generation());
    assert_eq!(cluster.connect("demo").read(4096, 70_000).unwrap(), vec![5; 70_000]);
}

/// A second agent on the data directory of the first, with a socket of its own.
fn second_on_the_same(cluster: &Cluster, extra: &[&str]) -> std::process::Command {
    let mut second = cli::command(&process::holdfast());
    let (data, run) = (cluster.data_dir(), cluster.root().join("run2"));
    let listen = format!("unix:{}", cluster.root().join("second.sock").display());
    second.args(["agent", "--node", "node-a", "--listen", &listen, "--data-dir"]).arg(data);
    second.arg("--runtime-dir").arg(run).args(extra);
    second
}

#[test]
fn a_second_agent_that_must_not_wait_names_the_first() {
    let cluster = Cluster::agent(AgentOptions::default());
    let said = process::run(second_on_the_same(&cluster, &["--no-wait"]), 30 * SECOND);
    assert_eq!(said.code, Some(4), "{said}");
    let text = format!("{}{}", said.stdout, said.stderr);
    assert!(text.contains(&cluster.agent_pid().to_string()), "the holder's process is named: {text}");
    cluster.ok(&["node", "show"]);
}

#[test]
fn a_second_agent_waits_for_the_first_and_takes_over() {
    let mut cluster = Cluster::with_volume("64MiB", 2);
    let before = cluster.instance_processes();
    let (first, log) = (cluster.agent_pid(), cluster.root().join("second.log"));
    let mut second = second_on_the_same(&cluster, &[]);
    second.stdout(std::process::Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
    let mut second = second.spawn().unwrap();
    eventually(30 * SECOND, "it says whom it waits for", || {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        check(said.contains("waiting for its end") && said.contains(&first.to_string()), || said)
    });
    // Its signals are heard meanwhile.
    process::signal(i32::try_from(second.id()).unwrap(), process::Signal::SIGTERM);
    assert!(second.wait().unwrap().success());
    let mut second = second_on_the_same(&cluster, &[]);
    second.stdout(std::process::Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
    let mut second = second.spawn().unwrap();
    eventually(30 * SECOND, "it waits again", || {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        check(said.contains("waiting for its end"), || said)
    });
    cluster.kill_agent();
    eventually(30 * SECOND, "it has taken over", || {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        check(said.contains("the agent is ready"), || said)
    });
    assert_eq!(cluster.instance_processes(), before, "what ran is adopted");
    second.kill().unwrap();
    second.wait().unwrap();
    cluster.start();
    cluster.wait_healthy("demo");
}

#[test]
fn a_damaged_record_stops_nothing_and_its_instances_keep_running() {
    let mut cluster = Cluster::with_volume("64MiB", 3);
    cluster.create_attached("other", "64MiB", 2);
    cluster.allow_errors("demo");
    let (demo, before) = (cluster.volume("demo"), cluster.instance_processes());
    let mut client = cluster.connect("demo");
    client.write_fua(0, &[1; 4096]).unwrap();
    let path = records::record_path(&cluster.data_dir(), "demo");
    let good = std::fs::read(&path).unwrap();

    let mut foreign: serde_json::Value = serde_json::from_slice(&good).unwrap();
    foreign["schema"] = 999.into();
    let damages: [(&str, Vec<u8>); 4] = [
        ("garbage", b"\x00\xffnot a record".to_vec()),
        ("partial", good[..good.len() / 2].to_vec()),
        ("empty", Vec::new()),
        ("of a foreign version", serde_json::to_vec(&foreign).unwrap()),
    ];
    for (what, bytes) in damages {
        std::fs::write(&path, bytes).unwrap();
        // Found by the agent that runs, and by one that starts with it.
        for restart in [false, true] {
            if restart {
                cluster.kill_agent();
                cluster.start();
            }
            for name in ["demo.engine", "demo.r1", "demo.r2", "demo.r3"] {
                eventually(60 * SECOND, "the claim of an instance with an unreadable record", || {
                    let now = cluster.instance(name);
                    check(now.claim() == "unknown" && now.state() == "running", || {
                        format!("{what}: {}", now.0)
                    })
                });
            }
            same_processes(&cluster, &before);
            client.write_fua(4096, &[2; 4096]).unwrap();
            // The other volume's life goes on, with changes.
            cluster.wait_healthy("other");
            assert!(cluster.instances().iter().any(|i| i.name() == "other.engine" && i.claim() == "claimed"));
        }
        cluster.ok(&["volume", "create", "third", "--size", "64MiB", "--replicas", "1"]);
        cluster.ok(&["volume", "delete", "third", "--purge-data"]);
        std::fs::write(&path, &good).unwrap();
        eventually(60 * SECOND, "the claim returns with the record", || {
            let now = cluster.instance("demo.engine");
            check(now.claim() == "claimed", || now.claim())
        });
    }
    let after = cluster.wait_healthy("demo");
    assert_eq!(after.pids(), demo.pids());
    assert_eq!(client.read(4096, 4096).unwrap(), [2; 4096]);
}

#[test]
fn an_instance_whose_record_is_gone_is_unclaimed_and_keeps_running() {
    let mut cluster = Cluster::with_volume("64MiB", 2);
    cluster.allow_errors("demo");
    let before = cluster.instance_processes();
    let mut client = cluster.connect("demo");
    let path = records::record_path(&cluster.data_dir(), "demo");
    let aside = cluster.root().join("record.json");
    std::fs::rename(&path, &aside).unwrap();
    for restart in [false, true] {
        if restart {
            cluster.kill_agent();
            cluster.start();
        }
        for name in ["demo.engine", "demo.r1", "demo.r2"] {
            eventually(60 * SECOND, "the claim of an instance without a record", || {
                let now = cluster.instance(name);
                check(now.claim() == "unclaimed" && now.state() == "running", || now.0.to_string())
            });
        }
        same_processes(&cluster, &before);
        client.write_fua(0, &[4; 4096]).unwrap();
    }
    // Replica data without a record is listed, and stays.
    let dirs = cluster.json(&["replica", "ls"]);
    let listed = dirs["replicas"].as_array().unwrap();
    assert_eq!(listed.len(), 2, "{dirs}");
    assert!(listed.iter().all(|r| r["claim"] == "unclaimed"), "{dirs}");
    std::fs::rename(&aside, &path).unwrap();
    let after = cluster.wait_healthy("demo");
    assert_eq!(after.pids().len(), 3);
    same_processes(&cluster, &before);
}

#[test]
fn an_unclaimed_instance_is_stopped_on_an_order_and_a_claimed_one_is_not() {
    let mut cluster = Cluster::with_volume("64MiB", 2);
    cluster.allow_errors("demo");
    cluster.cli(&["instance", "stop", "demo.r1"]).expect_code(7);
    let path = records::record_path(&cluster.data_dir(), "demo");
    std::fs::remove_file(&path).unwrap();
    eventually(60 * SECOND, "unclaimed", || {
        let claim = cluster.instance("demo.engine").claim();
        check(claim == "unclaimed", || claim.clone())
    });
    for name in ["demo.engine", "demo.r1", "demo.r2"] {
        cluster.ok(&["instance", "stop", name]);
    }
    cluster.wait_no_instances();
    let dirs = cluster.json(&["replica", "ls"]);
    assert_eq!(dirs["replicas"].as_array().unwrap().len(), 2, "stopping a process deletes no data");
}

#[test]
fn a_newer_agent_binary_adopts_instances_of_the_older_one() {
    let mut cluster = Cluster::with_volume("64MiB", 2);
    let before = cluster.instance_processes();
    let copies = |cluster: &Cluster| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(cluster.data_dir().join("bin")).unwrap();
        entries.map(|e| e.unwrap().path()).filter(|p| p.is_file()).collect()
    };
    let old = copies(&cluster);
    assert_eq!(old.len(), 1, "{old:?}");
    // The same program under another digest: bytes behind the end of an ELF file are not part of it.
    let newer = cluster.root().join("holdfast-newer");
    let mut bytes = std::fs::read(process::holdfast()).unwrap();
    bytes.extend_from_slice(b"a later build");
    std::fs::write(&newer, bytes).unwrap();
    std::fs::set_permissions(&newer, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    cluster.kill_agent();
    cluster.use_binary(newer);
    cluster.start();
    let volume = cluster.wait_healthy("demo");
    same_processes(&cluster, &before);
    assert!(old[0].exists(), "the binary of running instances is kept");
    // One that has to be started again runs the new one, and serves with those that still run the old one.
    kill(volume.replica("r2").pid().unwrap());
    cluster.wait_volume("demo", "r2 runs again", |v| {
        let now = v.replica("r2").pid();
        check(v.members() == 2 && now.is_some() && now != volume.replica("r2").pid(), || v.state())
    });
    assert_eq!(copies(&cluster).len(), 2);
    cluster.assert_images_equal("demo");
    cluster.detach("demo");
    cluster.ok(&["volume", "attach", "demo"]);
    cluster.wait_healthy("demo");
    eventually(60 * SECOND, "the unused copy is removed", || {
        check(!old[0].exists(), || format!("{} is there", old[0].display()))
    });
}

#[test]
fn instances_answer_older_and_newer_agents_and_refuse_a_foreign_uuid() {
    let cluster = Cluster::with_volume("64MiB", 2);
    let found = instance_sockets(&cluster.runtime_dir());
    assert_eq!(found.len(), 3, "one control socket per instance: {found:?}");
    for (path, hello) in &found {
        let listed = cluster.instance(&hello.name);
        assert_eq!((listed.uuid(), listed.pid()), (hello.uuid.clone(), Some(hello.pid)));
        assert_eq!(Process::find(hello.pid).unwrap().start_ticks, hello.start_time_ticks);
        assert!(hello.confirmed && hello.configured, "{hello:?}");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        let control = Control::connect(path).unwrap();
        // An agent of the future that still speaks this version, and one that no longer does.
        assert_eq!(control.hello(1, 40).unwrap().protocol, 1);
        assert_eq!(control.hello(30, 40).unwrap().protocol, 0, "no common version is said, not guessed");
        assert!(control.confirm("00000000-0000-4000-8000-000000000001").is_err());
    }
    cluster.wait_healthy("demo");
}

#[test]
fn sockets_are_private_and_the_agents_too() {
    let cluster = Cluster::with_volume("64MiB", 1);
    let mut all = sockets(&cluster.runtime_dir());
    all.push(cluster.socket());
    assert!(all.len() >= 4, "control, NBD and agent sockets: {all:?}");
    for path in all {
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o007, 0, "{} is open to everybody: {mode:o}", path.display());
    }
    let key = records::key_path(&cluster.data_dir(), &cluster.volume("demo"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(key).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn nothing_secret_stands_in_command_lines_logs_or_inventory() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let (_, key) = records::key(&cluster.data_dir(), &cluster.volume("demo"));
    let hex: String = key.iter().map(|b| format!("{b:02x}")).collect();
    for process in process::processes_of(cluster.root()) {
        assert!(!process.command.join(" ").contains(&hex));
    }
    assert!(!holdfast_tests::logs::contain(cluster.root(), &hex), "a log holds the volume's key");
    for question in [["volume", "ls"], ["instance", "ls"], ["replica", "ls"], ["node", "show"]] {
        assert!(!cluster.json(&question).to_string().contains(&hex));
    }
}

#[test]
fn instances_have_a_session_of_their_own_and_no_inherited_descriptors() {
    let cluster = Cluster::with_volume("64MiB", 2);
    let agent = cluster.socket();
    for process in cluster.instance_processes() {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap();
        let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().to_owned();
        assert_eq!(session, process.pid.to_string(), "a session of its own");
        for entry in std::fs::read_dir(format!("/proc/{}/fd", process.pid)).unwrap().flatten() {
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            let text = target.to_string_lossy();
            assert!(!text.contains("agent.lock") && !text.contains("agent-"), "inherited: {text}");
        }
    }
    assert!(agent.exists());
}

#[test]
fn o16_an_instance_that_nobody_confirms_opens_no_data_and_ends_by_itself() {
    let root = tempfile::Builder::new().prefix("hf").tempdir().unwrap();
    let (dir, socket) = (root.path().join("demo.engine"), root.path().join("c.sock"));
    std::fs::create_dir(&dir).unwrap();
    let start = || {
        let mut command = cli::command(&process::holdfast());
        command.args(["engine", "--name", "demo.engine", "--uuid", "00000000-0000-4000-8000-00000000000a"]);
        command.arg("--instance-dir").arg(&dir).arg("--control").arg(&socket);
        process::Running::start(command)
    };
    let first = start();
    let hello = eventually(30 * SECOND, "its control socket answers", || {
        let control = Control::connect(&socket).map_err(|e| e.to_string())?;
        control.hello(1, 1).map_err(|e| e.to_string())
    });
    assert_eq!((hello.pid, hello.confirmed, hello.configured), (first.pid(), false, false));
    // The lock, not a pid, proves life: a second one in the same directory ends at once, and the first goes on.
    let second = start().finish(20 * SECOND);
    assert_ne!(second.code, Some(0), "{second}");
    assert!(
        Control::connect(&socket).unwrap().hello(1, 1).is_ok(),
        "the second one took the first one's socket"
    );
    let ended = first.finish(UNCONFIRMED);
    let left: Vec<_> = std::fs::read_dir(root.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.len() <= 2, "it made something: {left:?}; {ended}");
}
