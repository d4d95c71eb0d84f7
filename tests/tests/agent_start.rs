//! How an agent starts, or says why it does not: file, flags, directories, sockets, ports.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use holdfast_tests::mounts::{self, SmallDisk};
use holdfast_tests::ports::PortBlock;
use holdfast_tests::process::{self, Signal, signal};
use holdfast_tests::tools::qemu_io;
use holdfast_tests::wait::check;
use holdfast_tests::{AgentOptions, Cluster, MIB, SECOND, cli, eventually, skip_aloud};
use serde_json::Value;

/// `holdfast agent` with these arguments in a directory of its own: exit code and what it said.
fn agent_with(dir: &Path, args: &[&str]) -> process::Finished {
    let mut command = cli::command(&process::holdfast());
    command.arg("agent").args(args).current_dir(dir);
    process::run(command, 30 * SECOND)
}

#[test]
fn a_bad_configuration_is_refused_with_file_line_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("holdfast.toml");
    let cases = [
        ("node = \"a\"\ndata_dirr = \"/x\"\n", ":2", "data_dir"),
        ("\n\nnode = 7\n", ":3", "node"),
        ("data_ports = \"9-1\"\n", ":1", "data_ports"),
        ("log_format = \"xml\"\n", ":1", "json"),
        ("node = \"a\nb\"\n", ":1", "remedy"),
    ];
    for (text, line, remedy) in cases {
        std::fs::write(&file, text).unwrap();
        let said = agent_with(dir.path(), &["--config", file.to_str().unwrap()]);
        assert!(matches!(said.code, Some(1 | 2)), "{said}");
        let place = format!("{}{line}", file.display());
        assert!(said.stderr.contains(&place) && said.stderr.contains(remedy), "{text:?}: {said}");
    }
    let said = agent_with(dir.path(), &["--config", "/nonexistent/holdfast.toml"]);
    assert!(matches!(said.code, Some(1..=3)) && said.stderr.contains("/nonexistent/holdfast.toml"), "{said}");
}

#[test]
fn a_socket_path_that_is_too_long_is_refused_with_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("x".repeat(100)).join("agent.sock");
    let data = dir.path().join("data");
    let listen = format!("unix:{}", long.display());
    let said = agent_with(dir.path(), &["--data-dir", data.to_str().unwrap(), "--listen", &listen]);
    assert_ne!(said.code, Some(0), "{said}");
    assert!(said.stderr.contains("108") || said.stderr.contains("107"), "{said}");
}

#[test]
fn a_data_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a-file");
    std::fs::write(&file, "not a directory").unwrap();
    for data in [file.clone(), PathBuf::from("/proc/holdfast-data")] {
        let listen = format!("unix:{}", dir.path().join("a.sock").display());
        let run = dir.path().join("run");
        let args = [
            "--data-dir",
            data.to_str().unwrap(),
            "--listen",
            &listen,
            "--runtime-dir",
            run.to_str().unwrap(),
        ];
        let said = agent_with(dir.path(), &args);
        assert_eq!(said.code, Some(1), "{said}");
        assert!(said.stderr.contains(data.to_str().unwrap()), "{said}");
    }
}

#[test]
fn a_noexec_data_directory_is_an_error_that_names_bin_dir_and_bin_dir_helps() {
    let name = "a_noexec_data_directory_is_an_error_that_names_bin_dir_and_bin_dir_helps";
    if !mounts::possible() {
        return skip_aloud(name, "root, to mount a tmpfs");
    }
    let dir = tempfile::Builder::new().prefix("hf").tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let _disk = SmallDisk::empty(&data, 1024 * MIB, true);
    let (listen, run) = (format!("unix:{}", dir.path().join("a.sock").display()), dir.path().join("run"));
    let mut args = vec![
        "--data-dir",
        data.to_str().unwrap(),
        "--listen",
        &listen,
        "--runtime-dir",
        run.to_str().unwrap(),
    ];
    let said = agent_with(dir.path(), &args);
    assert_ne!(said.code, Some(0), "{said}");
    assert!(said.stderr.contains("noexec") && said.stderr.contains("--bin-dir"), "{said}");
    let bin = dir.path().join("bin");
    args.extend(["--bin-dir", bin.to_str().unwrap()]);
    let mut command = cli::command(&process::holdfast());
    command.arg("agent").args(&args);
    let agent = process::Running::start(command);
    eventually(30 * SECOND, "an agent with --bin-dir answers", || {
        let asked = cli::run(&["--agent", &listen, "node", "show"]);
        check(asked.0.code == Some(0), || asked.said())
    });
    signal(agent.pid(), Signal::SIGTERM);
    let _ = agent.finish(30 * SECOND).ok();
}

#[test]
fn sighup_reloads_what_can_be_reloaded_and_says_what_cannot() {
    let dir = tempfile::Builder::new().prefix("hf").tempdir().unwrap();
    let file = dir.path().join("holdfast.toml");
    let (listen, data, run) = (
        format!("unix:{}", dir.path().join("a.sock").display()),
        dir.path().join("data"),
        dir.path().join("run"),
    );
    let config = |level: &str, node: &str| {
        format!(
            "data_dir = \"{}\"\nlisten = \"{listen}\"\nruntime_dir = \"{}\"\nlog_level = \"{level}\"\nnode = \"{node}\"\n",
            data.display(),
            run.display()
        )
    };
    std::fs::write(&file, config("info", "one")).unwrap();
    let log = dir.path().join("agent.log");
    let mut command = cli::command(&process::holdfast());
    command.args(["agent", "--config", file.to_str().unwrap()]);
    command.stdin(std::process::Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
    let mut agent = command.spawn().unwrap();
    let pid = i32::try_from(agent.id()).unwrap();
    let asked = || cli::run(&["--agent", &listen, "node", "show", "-o", "json"]);
    eventually(30 * SECOND, "the agent answers", || check(asked().0.code == Some(0), || asked().said()));
    std::fs::write(&file, config("debug", "two")).unwrap();
    signal(pid, Signal::SIGHUP);
    let said = || std::fs::read_to_string(&log).unwrap();
    eventually(30 * SECOND, "what needs a restart is said", || {
        check(said().lines().any(|l| l.contains("node") && l.contains("restart")), said)
    });
    assert_eq!(asked().json()["node"], "one");
    // A file that became wrong changes nothing and ends nothing.
    std::fs::write(&file, "nonsense = [").unwrap();
    signal(pid, Signal::SIGHUP);
    eventually(30 * SECOND, "the wrong file is named", || {
        check(said().contains(&format!("{}:1", file.display())), said)
    });
    assert_eq!(asked().json()["node"], "one");
    signal(pid, Signal::SIGTERM);
    assert!(agent.wait().unwrap().success());
}

#[test]
fn json_logs_are_json_line_by_line() {
    let cluster = Cluster::agent(AgentOptions::with(&["--log-format", "json"]));
    cluster.create_attached("demo", "64MiB", 1);
    let said = cluster.agent_said();
    assert!(said.lines().count() > 0);
    for line in said.lines() {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(value["level"].is_string(), "{line}");
    }
}

#[test]
fn ipv6_addresses_are_bracketed() {
    if std::net::TcpListener::bind(("::1", 0)).is_err() {
        return skip_aloud("ipv6_addresses_are_bracketed", "an IPv6 loopback");
    }
    let cluster = Cluster::agent(AgentOptions::with(&["--bind", "::1"]));
    let volume = cluster.create_attached("demo", "64MiB", 2);
    for replica in volume.replicas() {
        let address = replica.address().unwrap();
        assert!(address.starts_with("[::1]:"), "{address}");
    }
    qemu_io(&cluster.uri("demo"), &["write -P 0x21 0 1M", "flush", "read -P 0x21 0 1M"]);
}

#[test]
fn without_a_free_data_port_the_reason_names_the_ports_and_a_free_one_is_enough() {
    let ports = PortBlock::take();
    let listen = |i| std::net::TcpListener::bind(("127.0.0.1", ports.own(i))).unwrap();
    let taken = [listen(0), listen(1)];
    let range = format!("{}-{}", ports.own(0), ports.own(1));
    let options = AgentOptions { data_ports: Some(range.clone()), ..AgentOptions::default() };
    let mut cluster = Cluster::agent_not_started(options);
    cluster.allow_errors("port");
    cluster.spawn();
    // Either the agent refuses to start, or the replicas say it: nobody may have to guess.
    match cluster.ready_or_ended() {
        Err(said) => {
            assert!(said.contains(&range), "{said}");
            drop(taken);
            cluster.start();
            cluster.create_attached("demo", "64MiB", 1);
        }
        Ok(()) => {
            cluster.ok(&["volume", "create", "demo", "--size", "64MiB", "--replicas", "1"]);
            // Whether an attach that has to wait succeeds is not what this is about.
            let _ = cluster.cli(&["volume", "attach", "demo"]);
            eventually(60 * SECOND, "the reason names the ports", || {
                let shown = cluster.cli(&["instance", "show", "demo.r1"]).said();
                check(shown.contains("port") && shown.contains(&ports.own(0).to_string()), || shown)
            });
            drop(taken);
            cluster.wait_healthy("demo");
        }
    }
}
