//! The set of replicas changes: added, removed, replaced, and one chosen against the rules.
#![forbid(unsafe_code)]

use holdfast_tests::tools::{FioLoop, qemu_io};
use holdfast_tests::wait::{check, eventually};
use holdfast_tests::{AgentOptions, Cluster, QuickstartOptions, Volume};

fn ids(volume: &Volume) -> Vec<String> {
    volume.replicas().iter().map(holdfast_tests::Replica::id).collect()
}

/// The healthy volume with exactly these replicas, all of them members.
fn wait_ids(cluster: &Cluster, expected: &[&str]) -> Volume {
    cluster.wait_volume("demo", &format!("the replicas are {expected:?}"), |volume| {
        let found = ids(volume);
        check(found == expected && volume.state() == "healthy", || format!("{found:?}, {}", volume.state()))
    })
}

#[test]
fn a_member_is_replaced_under_verified_io_and_its_data_stays() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("128MiB"));
    let before = cluster.volume("demo");
    let old = before.replica("r2");
    let mut load = FioLoop::start(&cluster.uri("demo"), "64m");
    load.wait_passes(1);
    let shown = cluster.json(&["replica", "replace", "demo", "r2"]);
    assert_ne!(shown["state"], "healthy", "{shown}");
    let after = wait_ids(&cluster, &["r1", "r3", "r4"]);
    assert_eq!(after.engine_pid(), before.engine_pid(), "the engine goes on");
    assert_eq!(after.generation(), before.generation());
    load.wait_passes(1);
    load.finish();
    cluster.assert_images_equal("demo");
    // The process of the old one ends; its data stays, and is nobody's.
    eventually(holdfast_tests::cluster::SOON, "the old one's process ends", || {
        let names: Vec<_> = cluster.instances().iter().map(holdfast_tests::Instance::name).collect();
        check(!names.contains(&"demo.r2".to_owned()), || format!("{names:?}"))
    });
    assert!(old.data_dir().join("head.img").exists());
    let listed = cluster.json(&["replica", "ls"]);
    let listed = listed["replicas"].as_array().unwrap();
    let of_old = listed.iter().find(|dir| dir["id"] == "r2").expect("its directory is listed");
    assert_eq!(of_old["claim"], "unclaimed", "{of_old}");
    // Its id is not given again.
    cluster.ok(&["replica", "add", "demo"]);
    wait_ids(&cluster, &["r1", "r3", "r4", "r5"]);
    cluster.ok(&["replica", "remove", "demo", "r1"]);
    wait_ids(&cluster, &["r3", "r4", "r5"]);
    cluster.assert_images_equal("demo");
}

#[test]
fn removing_the_last_copy_is_refused_and_so_is_what_does_not_exist() {
    let cluster = Cluster::with_volume("64MiB", 2);
    let refused = |args: &[&str], code: i32, words: &str| {
        let said = cluster.cli(args).expect_code(code).said();
        assert!(said.contains(words), "{args:?}: {said}");
    };
    refused(&["replica", "remove", "demo", "r7"], 3, "only {r1,r2}");
    refused(&["replica", "remove", "demo", "two"], 2, "two");
    refused(&["replica", "remove", "nothing", "r1"], 3, "there is none; `holdfast volume ls` lists all");
    refused(&["replica", "add", "demo", "--node", "elsewhere"], 2, "elsewhere");
    // r2 is lost: r1 is the last healthy copy, and stays.
    let dir = cluster.volume("demo").replica("r2").data_dir();
    cluster.detach("demo");
    std::fs::rename(&dir, cluster.root().join("away")).unwrap();
    cluster.ok(&["volume", "attach", "demo"]);
    cluster.wait_state("demo", "degraded");
    refused(&["replica", "remove", "demo", "r1"], 7, "last healthy copy");
    cluster.ok(&["replica", "remove", "demo", "r2"]);
    wait_ids(&cluster, &["r1"]);
    refused(&["replica", "remove", "demo", "r1"], 7, "the only one");
    for _ in 0..4 {
        cluster.ok(&["replica", "add", "demo"]);
    }
    refused(&["replica", "add", "demo"], 7, "5 replicas");
    wait_ids(&cluster, &["r1", "r3", "r4", "r5", "r6"]);
    cluster.assert_images_equal("demo");
}

#[test]
fn a_replica_whose_directory_is_lost_is_replaced_also_when_asked_while_detached() {
    let cluster = Cluster::with_volume("64MiB", 3);
    qemu_io(&cluster.uri("demo"), &["write -P 0x31 0 16M", "flush"]);
    let lost = cluster.volume("demo").replica("r2").data_dir();
    cluster.detach("demo");
    std::fs::remove_dir_all(&lost).unwrap();
    cluster.ok(&["replica", "replace", "demo", "r2"]);
    cluster.ok(&["volume", "attach", "demo"]);
    let after = wait_ids(&cluster, &["r1", "r3", "r4"]);
    assert_eq!(after.members(), 3);
    qemu_io(&cluster.uri("demo"), &["read -P 0x31 0 16M"]);
    cluster.assert_images_equal("demo");
    assert!(!lost.exists(), "a lost directory is never made again");
}

#[test]
fn as_many_volumes_are_filled_at_a_time_as_the_node_allows_and_the_others_say_that_they_wait() {
    let cluster =
        Cluster::agent(AgentOptions::with(&["--rebuild-concurrency", "1", "--rebuild-bandwidth", "8MiB"]));
    let names = ["one", "two", "three"];
    for name in names {
        cluster.create_attached(name, "64MiB", 1);
        qemu_io(&cluster.uri(name), &["write -P 0x31 0 32M", "flush"]);
    }
    for name in names {
        cluster.ok(&["replica", "add", name]);
    }
    let reason = |name: &str| cluster.volume(name).replica("r2").reason();
    let waits = |name: &&&str| reason(name).contains("waits for its turn");
    eventually(holdfast_tests::cluster::SOON, "two of three wait", || {
        check(names.iter().filter(waits).count() == 2, || format!("{:?}", names.map(reason)))
    });
    let copied = |name: &str| cluster.volume(name).replica("r2").copied_bytes();
    assert!(names.iter().filter(waits).all(|name| copied(name) < 4 << 20), "{:?}", names.map(copied));
    for name in names {
        cluster.wait_healthy(name);
        qemu_io(&cluster.uri(name), &["read -P 0x31 0 32M"]);
        cluster.assert_images_equal(name);
    }
}

#[test]
fn with_two_of_three_directories_lost_a_person_may_start_from_the_third() {
    let mut cluster = Cluster::with_volume("64MiB", 3);
    cluster.allow_errors("by force from r1");
    qemu_io(&cluster.uri("demo"), &["write -P 0x31 0 16M", "flush"]);
    let dirs: Vec<_> = ["r2", "r3"].iter().map(|id| cluster.volume("demo").replica(id).data_dir()).collect();
    cluster.detach("demo");
    let away = |i: usize| cluster.root().join(format!("away-{i}"));
    for (i, dir) in dirs.iter().enumerate() {
        std::fs::rename(dir, away(i)).unwrap();
    }
    cluster.ok(&["volume", "attach", "demo"]);
    let waiting = cluster.wait_state("demo", "attaching");
    assert_eq!(waiting.endpoint(), None, "one of three is not enough");
    let said = cluster.cli(&["volume", "attach", "demo", "--force-from", "r1"]).expect_code(7).said();
    for words in ["newest view known", "--yes-lose-writes", "{r2,r3}"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let force = |id| ["volume", "attach", "demo", "--force-from", id, "--yes-lose-writes"];
    let said = cluster.cli(&force("r2")).expect_code(7).said();
    assert!(said.contains("cannot be used"), "{said}");
    cluster.ok(&force("r1"));
    let forced = cluster.wait_state("demo", "degraded");
    let shown = cluster.ok(&["volume", "show", "demo"]).said();
    assert!(shown.contains("by force from r1"), "{shown}");
    let uri = cluster.uri("demo");
    qemu_io(&uri, &["read -P 0x31 0 16M", "write -P 0x32 0 4M", "flush"]);
    let said = cluster.cli(&force("r1")).expect_code(7).said();
    assert!(said.contains("detach it first"), "{said}");
    // Those that come back are of the old history: neither members nor sources.
    for (i, dir) in dirs.iter().enumerate() {
        std::fs::rename(away(i), dir).unwrap();
    }
    cluster.wait_volume("demo", "r2 is refused", |volume| {
        let text = volume.0.to_string();
        check(text.contains("lineage"), || text)
    });
    assert_eq!(cluster.volume("demo").members(), 1);
    // A second start is an ordinary one, although the word is still in the record.
    cluster.detach("demo");
    cluster.ok(&["volume", "attach", "demo"]);
    let again = cluster.wait_state("demo", "degraded");
    assert!(again.generation() > forced.generation());
    for id in ["r2", "r3"] {
        cluster.ok(&["replica", "replace", "demo", id]);
    }
    wait_ids(&cluster, &["r1", "r4", "r5"]);
    qemu_io(&cluster.uri("demo"), &["read -P 0x32 0 4M", "read -P 0x31 4M 12M"]);
    cluster.assert_images_equal("demo");
    assert!(dirs.iter().all(|dir| dir.exists()), "what was left behind stays");
}
