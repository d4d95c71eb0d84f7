//! What becomes of a node whose name, address, directories or files change under it, with clients connected.
#![forbid(unsafe_code)]

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use holdfast_tests::cluster::{HEALTHY_WITHIN, SOON};
use holdfast_tests::process::{self, Process, Signal, kill};
use holdfast_tests::wait::check;
use holdfast_tests::{AgentOptions, BLOCK, Cluster, Fleet, MIB, SECOND, cli, eventually, skip_aloud};
use nix::sys::stat::Mode;
use nix::unistd::{Uid, chown, geteuid, mkfifo};

/// A user that owns nothing here.
const STRANGER: Uid = Uid::from_raw(65534);

/// Number and start of every instance's process, which a restart would change.
fn running(cluster: &Cluster) -> Vec<(i32, u64)> {
    let mut found: Vec<_> = cluster.instance_processes().iter().map(|p| (p.pid, p.start_ticks)).collect();
    found.sort_unstable();
    found
}

/// `holdfast node rename` for this cluster's directory.
fn rename(cluster: &Cluster, from: &str, to: &str, extra: &[&str]) -> holdfast_tests::CliOutput {
    let data = cluster.data_dir();
    let args = [&["node", "rename", from, to, "--data-dir", data.to_str().unwrap()], extra].concat();
    cli::run(&args)
}

#[test]
fn renamed_host_is_refused_and_clients_go_on() {
    let mut cluster = Cluster::with_volume("32MiB", 2);
    let before = running(&cluster);
    let mut client = cluster.connect("demo");
    client.write_fua(0, &[1; 4096]).unwrap();
    cluster.kill_agent();
    cluster.use_node("node-b");
    cluster.spawn();
    let said = cluster.ready_or_ended().unwrap_err();
    assert!(said.contains("belongs to node node-a"), "{said}");
    assert!(said.contains("holdfast node rename node-a node-b --data-dir"), "{said}");
    client.write_fua(BLOCK, &[2; 4096]).unwrap();
    assert_eq!(running(&cluster), before, "what runs is left running");

    // The way that it names; twice, as after an interruption.
    for changed in [true, false] {
        let done = rename(&cluster, "node-a", "node-b", &["-o", "json"]).expect_code(0).json();
        assert_eq!(done["changed"], changed, "{done}");
    }
    client.write_fua(2 * BLOCK, &[3; 4096]).unwrap();
    cluster.start();
    let volume = cluster.wait_healthy("demo");
    assert_eq!(running(&cluster), before, "adopted, not restarted");
    assert!(volume.replicas().iter().all(|replica| replica.0["node"] == "node-b"), "{}", volume.0);
    let directories = cluster.json(&["replica", "ls"]);
    assert!(!directories.to_string().contains("its label names"), "{directories}");
    assert_eq!(client.read(0, 3 * 4096).unwrap(), [[1; 4096], [2; 4096], [3; 4096]].concat());
    drop(client);
    cluster.detach("demo");
    cluster.ok(&["volume", "attach", "demo"]);
    cluster.wait_healthy("demo");
    // Not while the agent runs, and not of a node that this is not.
    let said = rename(&cluster, "node-b", "node-c", &[]).expect_code(4).said();
    assert!(said.contains("stop that agent"), "{said}");
    cluster.kill_agent();
    let said = rename(&cluster, "node-x", "node-c", &[]).expect_code(7).said();
    assert!(said.contains("belongs to node node-b"), "{said}");
}

#[test]
fn rename_in_a_shared_registry_is_seen_by_all() {
    let mut fleet = Fleet::start(2, &[]);
    let _ = fleet.attached("32MiB", "node-a,node-b", "2");
    let mut client = fleet.nodes[0].connect("demo");
    client.write_fua(0, &[1; 4096]).unwrap();
    let (url, mut node) = (fleet.etcd.url("/test"), fleet.nodes.pop().unwrap());
    let before = running(&node);
    node.kill_agent();
    let registry = ["--registry", url.as_str()];
    let said = rename(&node, "node-b", "node-a", &registry).expect_code(7).said();
    assert!(said.contains("node-a"), "{said}");
    // The lease of the agent that was killed is waited for.
    rename(&node, "node-b", "node-c", &registry).expect_code(0);
    client.write_fua(BLOCK, &[2; 4096]).unwrap();
    node.use_node("node-c");
    node.start();
    assert_eq!(running(&node), before, "adopted, not restarted");
    let volume = fleet.nodes[0].wait_healthy("demo");
    assert_eq!(volume.replica("r2").0["node"], "node-c", "{}", volume.0);
    client.write_fua(2 * BLOCK, &[3; 4096]).unwrap();
    assert_eq!(client.read(BLOCK, 4096).unwrap(), [2; 4096]);
    eventually(SOON, "the new name is known", || {
        let nodes = fleet.nodes[0].json(&["node", "ls"]);
        let all = nodes["nodes"].as_array().ok_or("no list")?;
        let lives = all.iter().any(|node| node["name"] == "node-c" && node["live"] == true);
        check(lives, || nodes.to_string())
    });
    drop(node);
}

#[test]
fn removed_runtime_directory_is_made_again() {
    let mut cluster = Cluster::with_volume("32MiB", 2);
    let before = running(&cluster);
    let mut client = cluster.connect("demo");
    client.write_fua(0, &[1; 4096]).unwrap();
    // Under a running agent, with its own socket.
    fs::remove_dir_all(cluster.runtime_dir()).unwrap();
    fs::remove_file(cluster.socket()).unwrap();
    can_be_reached(&cluster);
    // While none runs: the next one finds nothing but processes and their records.
    cluster.kill_agent();
    fs::remove_dir_all(cluster.runtime_dir()).unwrap();
    cluster.start();
    can_be_reached(&cluster);
    client.write_fua(BLOCK, &[2; 4096]).unwrap();
    assert_eq!(client.read(0, 4096).unwrap(), [1; 4096]);
    assert_eq!(running(&cluster), before, "adopted, not restarted");
    drop(client);
    cluster.detach("demo");
    cluster.wait_no_instances();
}

/// The agent answers, and new clients reach the volume.
fn can_be_reached(cluster: &Cluster) {
    eventually(HEALTHY_WITHIN, "agent and volume can be reached", || {
        let said = cluster.cli(&["volume", "show", "demo", "-o", "json"]);
        check(said.0.code == Some(0), || said.said())?;
        let volume = said.json();
        check(volume["state"] == "healthy", || volume.to_string())?;
        let uri = volume["endpoint"].as_str().ok_or("no endpoint")?;
        let connected = holdfast_tests::BlockClient::connect(uri).and_then(|mut client| client.read(0, 4096));
        connected.map(drop).map_err(|error| format!("{uri}: {error}"))
    });
}

#[test]
fn instance_without_a_socket_can_be_ended() {
    let mut cluster = Cluster::with_volume("32MiB", 1);
    let engine = Process::find(cluster.volume("demo").engine_pid().unwrap()).unwrap();
    cluster.kill_agent();
    fs::remove_dir_all(cluster.runtime_dir()).unwrap();
    // It takes no signal that it could act on, as one of an earlier version: only the last one ends it.
    process::signal(engine.pid, Signal::SIGSTOP);
    cluster.start();
    let detached = cluster.cli(&["volume", "detach", "demo", "--force"]);
    detached.expect_code(0);
    cluster.wait_state("demo", "detached");
    assert!(!engine.is_alive());
    cluster.wait_no_instances();
}

#[test]
fn changed_address_reaches_running_replicas() {
    let mut fleet = Fleet::start(2, &[]);
    let volume = fleet.attached("32MiB", "node-a,node-b", "2");
    let first = volume.replica("r2").address().unwrap();
    assert!(first.starts_with("127.0.0.2:"), "{first}");
    let mut client = fleet.nodes[0].connect("demo");
    client.write_fua(0, &[1; 4096]).unwrap();
    let before = running(&fleet.nodes[1]);
    fleet.nodes[1].kill_agent();
    fleet.nodes[1].change_argument("--bind", "127.0.0.77");
    fleet.nodes[1].start();
    let volume = fleet.nodes[0].wait_volume("demo", "the new address is known", |volume| {
        let address = volume.replica("r2").address();
        check(address.is_some_and(|address| address.starts_with("127.0.0.77:")), || "not yet".to_owned())
    });
    let second = volume.replica("r2").address().unwrap();
    TcpStream::connect(&second).unwrap();
    assert!(TcpStream::connect(&first).is_err(), "{first} is given up");
    assert_eq!(running(&fleet.nodes[1]), before, "the replica was not restarted");
    client.write_fua(BLOCK, &[2; 4096]).unwrap();
    // An engine that knows only the new address.
    let before = fleet.nodes[0].volume("demo");
    kill(before.engine_pid().unwrap());
    fleet.nodes[0].wait_new_engine("demo", &before);
    let mut client = fleet.nodes[0].connect("demo");
    assert_eq!(client.read(0, 2 * 4096).unwrap(), [[1; 4096], [2; 4096]].concat());
}

#[test]
fn foreign_files_in_replicas_hold_up_no_start() {
    let mut cluster = Cluster::agent(AgentOptions::default());
    for volume in ["fifo", "large", "link"] {
        cluster.ok(&["volume", "create", volume, "--size", "4MiB", "--replicas", "1"]);
    }
    cluster.kill_agent();
    let replica = |volume: &str| {
        let all =
            fs::read_dir(cluster.data_dir().join("replicas")).unwrap().map(|entry| entry.unwrap().path());
        let mut own = all.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(volume));
        own.next().unwrap()
    };
    let (fifo, large, link) = (replica("fifo"), replica("large"), replica("link"));
    fs::remove_file(fifo.join("meta")).unwrap();
    mkfifo(&fifo.join("meta"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    fs::File::options().write(true).open(large.join("meta")).unwrap().set_len(3 << 30).unwrap();
    fs::rename(link.join("head.img"), cluster.root().join("away")).unwrap();
    symlink(cluster.root().join("away"), link.join("head.img")).unwrap();
    cluster.start();
    for (volume, why) in [("fifo", "found a FIFO"), ("large", "at most"), ("link", "found a symbolic link")] {
        // Which waits for its only replica, in vain.
        let _ = cluster.cli(&["volume", "attach", volume]);
        cluster.wait_volume(volume, "the reason is shown", |shown| {
            let replica = shown.replica("r1");
            check(replica.reason().contains(why), || "another reason".to_owned())
        });
    }
    assert_eq!(fs::metadata(cluster.root().join("away")).unwrap().len(), 4 * MIB, "left as it was");
}

#[test]
fn directories_of_others_are_refused() {
    let name = "directories_of_others_are_refused";
    if !geteuid().is_root() {
        return skip_aloud(name, "root, to give a directory to another user");
    }
    let dir = tempfile::Builder::new().prefix("hf").tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let start = |args: &[&str]| {
        let mut command = cli::command(&process::holdfast());
        command.args(args).current_dir(dir.path());
        process::run(command, 30 * SECOND)
    };
    for made in ["stranger", "data", "open", "run"] {
        fs::create_dir(path(made)).unwrap();
    }
    // As planted before the first start: another user's, open to all.
    chown(path("stranger").as_str(), Some(STRANGER), None).unwrap();
    fs::set_permissions(path("stranger"), fs::Permissions::from_mode(0o777)).unwrap();
    fs::create_dir(dir.path().join("stranger/run")).unwrap();
    let said = start(&["quickstart", "--data-dir", &path("d"), "--runtime-dir", &path("stranger/run")]);
    assert_eq!(said.code, Some(1), "{said}");
    assert!(said.stderr.contains("owner 65534") && said.stderr.contains("--runtime-dir"), "{said}");
    let socket = format!("unix:{}", path("stranger/a.sock"));
    let said =
        start(&["agent", "--data-dir", &path("d"), "--runtime-dir", &path("run"), "--listen", &socket]);
    assert_eq!(said.code, Some(1), "{said}");
    assert!(said.stderr.contains("owner 65534") && said.stderr.contains("--listen"), "{said}");

    let socket = format!("unix:{}", path("a.sock"));
    let agent = |data: &str, config: &[&str]| {
        let args = ["agent", "--data-dir", data, "--runtime-dir", &path("run"), "--listen", &socket];
        start(&[&args, config].concat())
    };
    chown(path("data").as_str(), Some(STRANGER), None).unwrap();
    let said = agent(&path("data"), &[]);
    assert!(said.code == Some(1) && said.stderr.contains("user 65534"), "{said}");
    fs::set_permissions(path("open"), fs::Permissions::from_mode(0o777)).unwrap();
    let said = agent(&path("open"), &[]);
    assert!(said.code == Some(1) && said.stderr.contains("chmod go-w"), "{said}");
    // A configuration that another user wrote, and one that never ends.
    fs::write(path("agent.toml"), "node = \"a\"\n").unwrap();
    chown(path("agent.toml").as_str(), Some(STRANGER), None).unwrap();
    let said = agent(&path("d"), &["--config", &path("agent.toml")]);
    assert!(said.code == Some(2) && said.stderr.contains("user 65534"), "{said}");
    mkfifo(path("fifo").as_str(), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let said = agent(&path("d"), &["--config", &path("fifo")]);
    assert!(said.code == Some(2) && said.stderr.contains("FIFO"), "{said}");
}

#[test]
fn rename_by_root_leaves_files_to_their_owner() {
    let name = "rename_by_root_leaves_files_to_their_owner";
    if !geteuid().is_root() {
        return skip_aloud(name, "root, to give a directory to another user");
    }
    let mut cluster = Cluster::agent(AgentOptions::default());
    cluster.ok(&["volume", "create", "demo", "--size", "4MiB", "--replicas", "1"]);
    cluster.kill_agent();
    let mut all = vec![cluster.data_dir()];
    let mut given = 0;
    while let Some(path) = all.pop() {
        chown(path.as_path(), Some(STRANGER), None).unwrap();
        given += 1;
        if path.is_dir() {
            all.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    // Its way there, which is the test's own.
    fs::set_permissions(cluster.root(), fs::Permissions::from_mode(0o755)).unwrap();
    rename(&cluster, "node-a", "node-b", &[]).expect_code(0);
    let mut all = vec![cluster.data_dir()];
    while let Some(path) = all.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        assert_eq!(found.uid(), STRANGER.as_raw(), "{} of {given}", path.display());
        if found.is_dir() {
            all.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
}

#[test]
fn files_of_an_agent_are_closed_to_others() {
    let cluster = Cluster::with_volume("4MiB", 1);
    let mut left = vec![cluster.data_dir(), cluster.root().join("agent.sock.lock")];
    while let Some(path) = left.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let mode = found.permissions().mode() & 0o7777;
        // A copy of the binary may be read and executed, by those who get there.
        let allowed = if path.parent().unwrap().ends_with("bin") { 0o755 } else { 0o700 };
        assert_eq!(mode & !allowed, 0, "{} has mode {mode:o}", path.display());
        if found.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    // An agent that is named by nothing is the one that is there.
    let mut command = cli::command(&process::holdfast());
    command.args(["version"]).env("HOLDFAST_AGENT", "").current_dir(cluster.root());
    let said = process::run(command, 30 * SECOND);
    assert_eq!(said.code, Some(0), "{said}");
}
