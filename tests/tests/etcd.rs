//! An agent whose records live in etcd.
#![forbid(unsafe_code)]

use std::path::Path;

use holdfast_tests::cluster::{AgentOptions, HEALTHY_WITHIN, SOON};
use holdfast_tests::etcd::Etcd;
use holdfast_tests::process::{kill, run};
use holdfast_tests::tools::tool;
use holdfast_tests::wait::check;
use holdfast_tests::{Cluster, MIB, eventually};

fn agent(etcd: &Etcd) -> Cluster {
    let mut cluster = Cluster::agent(AgentOptions::with(&["--registry", &etcd.url("/test")]));
    // Said while etcd is away, as it should be.
    cluster.allow_errors("the registry cannot be read; nothing is started or stopped");
    cluster
}

#[test]
fn a_volume_lives_through_the_loss_of_a_member_and_of_all_of_etcd() {
    let mut etcd = Etcd::start(3);
    let mut cluster = agent(&etcd);
    cluster.create_attached("demo", "64MiB", 3);
    let mut client = cluster.connect("demo");
    client.write_fua(MIB, &[1; 4096]).unwrap();

    // A replica dies while one member is lost: the view without it is committed all the same.
    etcd.kill(etcd.leader());
    kill(cluster.volume("demo").replica("r3").pid().unwrap());
    client.write_fua(2 * MIB, &[2; 4096]).unwrap();
    cluster.wait_healthy("demo");

    // Without any: I/O goes on, nothing is started or stopped, and a new agent finds what runs.
    let before = cluster.instance_processes();
    etcd.with_all_down(|_| {
        client.write_fua(3 * MIB, &[3; 4096]).unwrap();
        let warned = eventually(SOON, "it says so", || {
            let said = cluster.cli(&["node", "show"]).said();
            check(said.contains("the registry cannot be read"), || said.clone()).map(|()| said)
        });
        assert!(warned.contains("127.0.0.1"), "with the servers: {warned}");
        cluster.kill_agent();
        cluster.start();
        assert_eq!(cluster.instance_processes(), before, "nothing was stopped or started");
        client.write_fua(4 * MIB, &[4; 4096]).unwrap();
    });
    eventually(HEALTHY_WITHIN, "the volume is listed again", || {
        let said = cluster.cli(&["volume", "show", "demo"]);
        check(said.0.code == Some(0) && said.said().contains("healthy"), || said.said())
    });
    for (at, byte) in [(1, 1), (2, 2), (3, 3), (4, 4)] {
        assert_eq!(client.read(at * MIB, 4096).unwrap(), [byte; 4096]);
    }
    drop(client);
    cluster.cli(&["volume", "detach", "demo"]).expect_code(0);
    cluster.cli(&["volume", "delete", "demo", "--purge-data"]).expect_code(0);
}

#[test]
fn o4_an_emptied_etcd_is_no_reason_to_stop_or_delete_anything() {
    let mut etcd = Etcd::start(1);
    let cluster = agent(&etcd);
    cluster.create_attached("demo", "64MiB", 2);
    let before = cluster.instance_processes();
    let mut client = cluster.connect("demo");
    etcd.with_all_down(|etcd| std::fs::remove_dir_all(etcd.data_dir(0)).unwrap());
    eventually(SOON, "it is noticed", || {
        let said = cluster.cli(&["node", "show"]).said();
        check(said.contains("the registry cannot be read"), || said.clone())
    });
    cluster.cli(&["volume", "create", "other", "--size", "64MiB"]).expect_code(1);
    let said = cluster.cli(&["instance", "ls", "-o", "json"]).json();
    let claims: Vec<_> = said["instances"].as_array().unwrap().iter().map(|one| &one["claim"]).collect();
    assert_eq!(claims, ["unknown"; 3], "{said}");
    assert_eq!(cluster.instance_processes(), before);
    client.write_fua(MIB, &[5; 4096]).unwrap();
}

/// The data of the only member, copied while it is down.
fn copy(from: &Path, to: &Path) {
    let mut command = std::process::Command::new("cp");
    command.arg("-a").arg(from).arg(to);
    assert_eq!(run(command, SOON).code, Some(0), "{} to {}", from.display(), to.display());
}

/// Waits until the agent says that it does not believe its registry.
fn wait_refused(cluster: &Cluster) {
    eventually(SOON, "it is noticed", || {
        let said = cluster.cli(&["node", "show"]).said();
        check(said.contains("back in time"), || said.clone())
    });
}

#[test]
fn an_etcd_from_a_backup_is_refused_until_it_is_accepted() {
    let mut etcd = Etcd::start(1);
    let mut cluster = agent(&etcd);
    // Their engines attached in another life of the registry.
    cluster.allow_errors("old");
    cluster.allow_errors("new");
    cluster.allow_errors("has taken the volume over");
    cluster.create_attached("old", "64MiB", 2);
    let backup = etcd.root().join("backup");
    etcd.with_all_down(|etcd| copy(&etcd.data_dir(0), &backup));
    eventually(SOON, "the registry is read again", || {
        let said = cluster.cli(&["volume", "create", "new", "--size", "64MiB", "--replicas", "2"]);
        check(said.0.code == Some(0), || said.said())
    });
    cluster.ok(&["volume", "attach", "new"]);
    cluster.wait_healthy("new");
    let before = cluster.instance_processes();
    let mut client = cluster.connect("new");
    client.write_fua(MIB, &[1; 4096]).unwrap();
    etcd.with_all_down(|etcd| {
        std::fs::remove_dir_all(etcd.data_dir(0)).unwrap();
        copy(&backup, &etcd.data_dir(0));
    });
    wait_refused(&cluster);
    // Others write far more into it than was lost: `a`, outside of the prefix.
    for _ in 0..300 {
        etcd.post("/v3/kv/put", r#"{"key":"YQ==","value":"YQ=="}"#);
    }
    cluster.kill_agent();
    cluster.start();
    wait_refused(&cluster);
    cluster.cli(&["volume", "create", "other", "--size", "64MiB"]).expect_code(1);
    assert_eq!(cluster.instance_processes(), before, "nothing was started or stopped");
    client.write_fua(2 * MIB, &[2; 4096]).unwrap();

    let shown = cluster.json(&["registry", "show"]);
    assert_eq!((&shown["believed"], &shown["records"]), (&false.into(), &1.into()), "{shown}");
    let lost: Vec<_> = shown["losses"].as_array().unwrap().iter().map(|loss| &loss["volume"]).collect();
    assert!(lost.contains(&&"new".into()), "{shown}");
    let said = cluster.cli(&["registry", "accept"]).expect_code(8).said();
    assert!(said.contains("--yes"), "{said}");
    wait_refused(&cluster);
    let accepted = cluster.json(&["registry", "accept", "--yes"]);
    assert_eq!(accepted["believed"], true, "{accepted}");
    assert_ne!(accepted["incarnation"], shown["incarnation"]);
    let said = cluster.ok(&["registry", "accept"]).said();
    assert!(said.contains("nothing to accept"), "{said}");

    // What the registry has is served on, what it lost runs on and is nobody's.
    cluster.wait_healthy("old");
    cluster.cli(&["volume", "show", "new"]).expect_code(3);
    assert_eq!(cluster.instance("new.engine").claim(), "unclaimed");
    client.write_fua(3 * MIB, &[3; 4096]).unwrap();
    for (at, byte) in [(1, 1), (2, 2), (3, 3)] {
        assert_eq!(client.read(at * MIB, 4096).unwrap(), [byte; 4096]);
    }
    drop(client);
    cluster.detach("old");
    cluster.ok(&["volume", "attach", "old"]);
    cluster.wait_healthy("old");
}

#[test]
fn a_copy_of_a_nodes_disk_does_not_run_beside_it() {
    let etcd = Etcd::start(1);
    let mut first = agent(&etcd);
    first.create_attached("demo", "64MiB", 2);
    let before = first.instance_processes();
    let mut copied = Cluster::agent_not_started(AgentOptions::with(&["--registry", &etcd.url("/test")]));
    copied.allow_errors("the registry cannot be read; nothing is started or stopped");
    copied.allow_errors("another agent has this node's name");
    // Once the name is its own it serves what it has.
    copied.allow_errors("demo");
    copy(&first.data_dir(), &copied.data_dir());
    copied.spawn();
    let said = copied.ready_or_ended().expect_err("the first one lives");
    let pid = first.agent_pid().to_string();
    assert!(said.contains("copy") && said.contains(&pid), "it says who the first is: {said}");
    assert_eq!(first.instance_processes(), before);
    assert!(copied.instance_processes().is_empty());
    first.ok(&["volume", "show", "demo"]);

    // A new run of the first is as quick as ever: it holds the same lock.
    first.kill_agent();
    first.start();
    assert!(!first.agent_said().contains("may be another agent's"), "{}", first.agent_said());
    first.wait_healthy("demo");

    // The first answers no more: the copy waits for the end of its presence.
    first.kill_agent();
    copied.start();
    assert!(copied.agent_said().contains("has not answered yet"), "{}", copied.agent_said());
    eventually(SOON, "the name is free", || {
        let said = copied.cli(&["volume", "ls"]).said();
        check(said.contains("demo"), || said.clone())
    });
}

#[test]
fn a_deleted_presence_is_written_again() {
    let etcd = Etcd::start(1);
    let cluster = agent(&etcd);
    let live = |told: &str| {
        eventually(SOON, told, || {
            let nodes = cluster.json(&["node", "ls"]);
            check(nodes["nodes"][0]["live"] == true, || nodes.to_string())
        });
    };
    live("it is heard of");
    // `/test/live/node-a`
    let key = r#"{"key":"L3Rlc3QvbGl2ZS9ub2RlLWE="}"#;
    etcd.post("/v3/kv/deleterange", key);
    eventually(SOON, "it stands there again", || {
        let said = etcd.post("/v3/kv/range", key);
        check(said.contains("\"count\":\"1\""), || said)
    });
    live("it is heard of again");
}

#[test]
fn a_password_opens_etcd_and_is_never_an_argument() {
    let etcd = Etcd::start(1);
    for (path, body) in [
        ("/v3/auth/user/add", r#"{"name":"root","password":"r"}"#),
        ("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#),
        ("/v3/auth/user/add", r#"{"name":"holdfast","password":"pa55word"}"#),
        ("/v3/auth/role/add", r#"{"name":"holdfast"}"#),
        // Everything below /test/: the keys are base64.
        (
            "/v3/auth/role/grant",
            r#"{"name":"holdfast","perm":{"permType":"READWRITE","key":"L3Rlc3Qv","range_end":"L3Rlc3Qw"}}"#,
        ),
        ("/v3/auth/user/grant", r#"{"user":"holdfast","role":"holdfast"}"#),
        ("/v3/auth/enable", "{}"),
    ] {
        etcd.post(path, body);
    }
    let password = etcd.root().join("password");
    let options = |user: &str| {
        let file = password.to_string_lossy().into_owned();
        AgentOptions::with(&[
            "--registry",
            &etcd.url("/test"),
            "--registry-user",
            user,
            "--registry-password-file",
            &file,
        ])
    };
    std::fs::write(&password, "wrong\n").unwrap();
    let mut refused = Cluster::agent_not_started(options("holdfast"));
    refused.spawn();
    let said = refused.ready_or_ended().unwrap_err();
    assert!(said.contains("registry_user") || said.contains("password"), "with the remedy: {said}");
    assert!(!said.contains("wrong"), "{said}");

    std::fs::write(&password, "pa55word\n").unwrap();
    let cluster = Cluster::agent(options("holdfast"));
    cluster.create_attached("demo", "64MiB", 1);
    for process in holdfast_tests::process::processes_of(cluster.root()) {
        assert!(!process.has_argument("pa55word"), "{process:?}");
    }
}

/// A certificate and its key, signed by the one named `ca`, or by itself where that is its own name.
fn certificate(dir: &Path, name: &str, ca: &str) {
    let path = |name: &str, kind: &str| dir.join(format!("{name}.{kind}"));
    let mut command = tool("openssl");
    command.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]);
    command.args(["-subj", &format!("/CN={name}")]).arg("-keyout").arg(path(name, "key")).arg("-out");
    command.arg(path(name, "pem"));
    if name == ca {
        command.args(["-addext", "keyUsage=critical,keyCertSign"]);
    } else {
        command.arg("-CA").arg(path(ca, "pem")).arg("-CAkey").arg(path(ca, "key"));
        command.args([
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ]);
    }
    assert_eq!(run(command, SOON).code, Some(0), "{name}");
}

#[test]
fn with_tls_the_agent_shows_who_it_is_and_believes_nobody_else() {
    let etcd = Etcd::start_with(1, |dir| {
        for (name, ca) in [("ca", "ca"), ("server", "ca"), ("client", "ca"), ("other", "other")] {
            certificate(dir, name, ca);
        }
        let file = |flag: &str, name: &str| format!("{flag}={}", dir.join(name).display());
        let mut args = vec![file("--cert-file", "server.pem"), file("--key-file", "server.key")];
        args.extend([file("--trusted-ca-file", "ca.pem"), "--client-cert-auth".to_owned()]);
        args
    });
    let options = |ca: &str, client: bool| {
        let file = |name: &str| etcd.root().join(name).to_string_lossy().into_owned();
        let url = etcd.url("/test");
        let mut extra = vec!["--registry".to_owned(), url, "--registry-ca".to_owned(), file(ca)];
        if client {
            extra.extend(["--registry-cert".to_owned(), file("client.pem")]);
            extra.extend(["--registry-key".to_owned(), file("client.key")]);
        }
        AgentOptions { extra, ..AgentOptions::default() }
    };
    for (what, ca, client) in [("a stranger's server", "other.pem", true), ("nobody", "ca.pem", false)] {
        let mut refused = Cluster::agent_not_started(options(ca, client));
        refused.spawn();
        let said = refused.ready_or_ended().unwrap_err();
        assert!(said.contains(&etcd.endpoint(0)) && said.contains("certificate"), "{what}: {said}");
    }
    let cluster = Cluster::agent(options("ca.pem", true));
    cluster.create_attached("demo", "64MiB", 1);
}
