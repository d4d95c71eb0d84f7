//! `holdfast quickstart`: one command, without root, and its data again next time.
#![forbid(unsafe_code)]

use holdfast_tests::process::{Signal, kill, signal};
use holdfast_tests::tools::qemu_io;
use holdfast_tests::wait::check;
use holdfast_tests::{BlockClient, Cluster, MIB, QuickstartOptions, SECOND, cli, eventually, image, records};

#[test]
fn the_ready_file_says_where_everything_is() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let ready = cluster.ready();
    let names: Vec<&str> = ready.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["agent", "nbd_uri", "pid", "volume"], "{ready}");
    assert_eq!(ready["volume"], "demo");
    assert_eq!(ready["pid"].as_i64(), Some(i64::from(cluster.agent_pid())));
    let uri = ready["nbd_uri"].as_str().unwrap();
    let socket = uri.strip_prefix("nbd+unix:///demo?socket=").unwrap_or_else(|| panic!("{uri}"));
    assert!(socket.starts_with('/'), "{uri}");
    assert_eq!(cluster.uri("demo"), uri);
    // Ready means ready: the first client's first I/O works.
    BlockClient::connect(uri).unwrap().write_fua(0, &[1; 512]).unwrap();
    let agent = ready["agent"].as_str().unwrap();
    assert!(agent.starts_with("unix:/"), "{agent}");
    cli::run(&["--agent", agent, "volume", "show", "demo"]).expect_code(0);
    let said = cluster.agent_said();
    assert!(said.contains(uri), "the URI is printed: {said}");
    assert!(said.contains(agent.strip_prefix("unix:").unwrap()), "the agent's socket is printed: {said}");
}

#[test]
fn sigterm_and_ctrl_c_end_cleanly_and_the_data_is_there_next_time() {
    let mut cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let id = cluster.volume("demo").id();
    for (round, how) in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGTERM].into_iter().enumerate() {
        let before = cluster.volume("demo");
        let pattern = format!("write -P {} {}M 1M", 0x40 + round, round * 4);
        // Not flushed by the client: a clean end flushes.
        let mut client = cluster.connect("demo");
        client.write(u64::try_from(round).unwrap() * 4096 + 40 * MIB, &[9; 4096]).unwrap();
        drop(client);
        qemu_io(&before.endpoint().unwrap(), &[&pattern]);
        let status = cluster.end_agent(how);
        assert_eq!(status.code(), Some(0), "{how}: {status}");
        assert!(cluster.instance_processes().is_empty(), "{how}: instances run after the end");
        assert_eq!(records::record(&cluster.data_dir(), "demo")["status"]["clean"].as_bool(), Some(true));
        image::equal(&before.images()).unwrap();
        cluster.start();
        let after = cluster.wait_healthy("demo");
        assert_eq!(after.id(), id, "the same volume");
        let read = format!("read -P {} {}M 1M", 0x40 + round, round * 4);
        qemu_io(&after.endpoint().unwrap(), &[&read]);
    }
}

#[test]
fn a_second_ctrl_c_skips_no_flush() {
    let mut cluster = Cluster::quickstart(QuickstartOptions::sized("128MiB"));
    let before = cluster.volume("demo");
    let mut client = cluster.connect("demo");
    for i in 0..96 {
        client.write(i * MIB, &vec![7; 1 << 20]).unwrap();
    }
    signal(cluster.agent_pid(), Signal::SIGINT);
    signal(cluster.agent_pid(), Signal::SIGINT);
    let status = cluster.wait_agent_end();
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(cluster.instance_processes().is_empty());
    assert_eq!(records::record(&cluster.data_dir(), "demo")["status"]["clean"].as_bool(), Some(true));
    image::equal(&before.images()).unwrap();
    cluster.start();
    assert!(cluster.connect("demo").read(50 * MIB, 1 << 20).unwrap() == vec![7; 1 << 20]);
}

#[test]
fn a_clean_end_answers_clients_that_are_in_the_middle() {
    let mut cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let mut client = cluster.connect("demo");
    let load = std::thread::spawn(move || {
        let mut acknowledged = 0u64;
        while client.write(acknowledged % 8192 * 4096, &[8; 4096]).is_ok() {
            acknowledged += 1;
        }
        acknowledged
    });
    cluster.ok(&["volume", "show", "demo"]);
    let status = cluster.end_agent(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{status}");
    let acknowledged = load.join().unwrap().min(8192);
    cluster.start();
    let mut client = cluster.connect("demo");
    for block in 0..acknowledged {
        assert_eq!(client.read(block * 4096, 4096).unwrap(), [8; 4096], "block {block} was acknowledged");
    }
}

#[test]
fn after_kill_nine_of_everything_quickstart_finds_what_was_flushed() {
    let mut cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    qemu_io(&cluster.uri("demo"), &["write -P 0x6a 0 16M", "flush"]);
    let before = cluster.volume("demo");
    cluster.kill_agent();
    for process in cluster.instance_processes() {
        kill(process.pid);
    }
    cluster.wait_no_instances();
    cluster.start();
    let after = cluster.wait_healthy("demo");
    assert!(after.generation() > before.generation());
    qemu_io(&cluster.uri("demo"), &["read -P 0x6a 0 16M", "read -P 0 16M 16M"]);
    cluster.wait_images_equal("demo");
    cluster.assert_no_second_copy();
}

#[test]
fn after_kill_nine_of_quickstart_alone_the_next_one_takes_its_volume_over() {
    let mut cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let before = cluster.volume("demo");
    let mut client = cluster.connect("demo");
    cluster.kill_agent();
    client.write_fua(0, &[6; 4096]).unwrap();
    cluster.start();
    let after = cluster.wait_healthy("demo");
    assert_eq!(after.pids(), before.pids(), "adopted, not started again");
    assert_eq!(client.read(0, 4096).unwrap(), [6; 4096]);
    cluster.assert_no_second_copy();
}

#[test]
fn a_second_quickstart_in_the_same_directory_names_the_first() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let said = holdfast_tests::process::run(cluster.command(), 60 * SECOND);
    assert_ne!(said.code, Some(0), "{said}");
    let text = format!("{}{}", said.stdout, said.stderr);
    assert!(text.contains(&cluster.agent_pid().to_string()), "the holder is named: {text}");
    cluster.wait_healthy("demo");
}

#[test]
fn replicas_and_io_mode_pass_through() {
    let options = QuickstartOptions {
        replicas: 2,
        size: "64MiB".to_owned(),
        extra: vec!["--io-mode".into(), "direct".into()],
    };
    let cluster = Cluster::quickstart(options);
    assert_eq!(cluster.volume("demo").replicas().len(), 2);
    assert_eq!(cluster.volume("demo").size_bytes(), 64 * MIB);
    assert_eq!(records::record(&cluster.data_dir(), "demo")["spec"]["io_mode"], "direct");
    qemu_io(&cluster.uri("demo"), &["write -P 0x6a 1234 9M", "flush", "read -P 0x6a 1234 9M"]);
    cluster.assert_images_equal("demo");
}

#[test]
fn a_client_may_connect_the_moment_the_ready_file_appears() {
    let mut cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    for _ in 0..3 {
        assert_eq!(cluster.end_agent(Signal::SIGTERM).code(), Some(0));
        cluster.spawn();
        let ready = cluster.ready_file();
        // Read at once when it is there: it is written whole, or not at all.
        let told =
            eventually(60 * SECOND, "the ready file", || std::fs::read(&ready).map_err(|e| e.to_string()));
        let told: serde_json::Value = serde_json::from_slice(&told).expect("a whole file");
        let mut client = BlockClient::connect(told["nbd_uri"].as_str().unwrap()).expect("I/O can start");
        client.write_fua(0, &[2; 4096]).unwrap();
        check(told["pid"].as_i64() == Some(i64::from(cluster.agent_pid())), || told.to_string()).unwrap();
    }
}
