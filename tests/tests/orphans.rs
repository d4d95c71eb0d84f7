//! What no record claims: reported, held, cleaned only where that is switched on, and never on a doubt.
#![forbid(unsafe_code)]

use holdfast_tests::cluster::{AgentOptions, SOON};
use holdfast_tests::orphans::{confirmed_s, orphan, orphans, remove_record, restore_record, wait_orphan};
use holdfast_tests::process::{Process, Signal, signal};
use holdfast_tests::records;
use holdfast_tests::wait::{check, eventually};
use holdfast_tests::{Cluster, Volume};

/// An engine counts as in use for half a minute after its last client, and after it the replicas after their engine.
const CLEANED_WITHIN: std::time::Duration = std::time::Duration::from_secs(240);

fn images(volume: &Volume) -> Vec<Vec<u8>> {
    volume.images().iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn directory_name(volume: &Volume, replica: &str) -> String {
    volume.replica(replica).data_dir().file_name().unwrap().to_str().unwrap().to_owned()
}

fn wait_cleaned(cluster: &Cluster) {
    eventually(CLEANED_WITHIN, "every process without an owner ends", || {
        let left = cluster.instances();
        check(left.is_empty(), || format!("{:?}", orphans(cluster)))
    });
    cluster.wait_no_instances();
}

#[test]
fn o1_o10_o14_processes_are_ended_after_their_grace_once_nobody_uses_them_and_their_data_stays() {
    let mut cluster = Cluster::agent_not_started(AgentOptions::default());
    let config = cluster.root().join("agent.toml");
    std::fs::write(&config, "").unwrap();
    cluster.add_arguments(&["--config", config.to_str().unwrap()]);
    cluster.allow_errors("demo");
    cluster.start();
    let demo = cluster.create_attached("demo", "64MiB", 2);
    let mut client = cluster.connect("demo");
    client.write_fua(0, &[7; 1 << 20]).unwrap();
    remove_record(&cluster, "demo");
    // Switched on while it runs.
    std::fs::write(&config, "orphan_auto_cleanup = [\"instance\"]\norphan_grace_period = \"2s\"\n").unwrap();
    signal(cluster.agent_pid(), Signal::SIGHUP);
    let busy = wait_orphan(&cluster, "demo.engine", "it is in use, and its grace is over", |orphan| {
        orphan["state"] == "orphaned-busy" && orphan["remaining_s"] == 0 && confirmed_s(orphan) > 10
    });
    assert_eq!((&busy["class"], &busy["auto_cleanup"]), (&"instance".into(), &true.into()), "{busy}");
    assert_eq!(cluster.instance("demo.engine").pid(), demo.engine_pid());
    client.write_fua(0, &[8; 1 << 20]).unwrap();
    drop(client);
    let before = images(&demo);
    wait_cleaned(&cluster);
    assert_eq!(images(&demo), before, "ending a process changes no byte of data");
    let left = orphans(&cluster);
    assert_eq!(left.len(), 2, "{left:?}");
    for data in left {
        assert_eq!(
            (&data["class"], &data["auto_cleanup"]),
            (&"replica-data".into(), &false.into()),
            "{data}"
        );
    }
}

#[test]
fn o2_o5_progress_survives_a_killed_agent_and_a_claim_that_returns_ends_it() {
    let options = ["--orphan-auto-cleanup", "instance", "--orphan-grace-period", "1h"];
    let mut cluster = Cluster::agent(AgentOptions::with(&options));
    cluster.allow_errors("demo");
    cluster.create_attached("demo", "64MiB", 1);
    let processes = cluster.instance_processes();
    let aside = remove_record(&cluster, "demo");
    let before = wait_orphan(&cluster, "demo.r1", "confirmed for a while", |found| confirmed_s(found) >= 15);
    cluster.kill_agent();
    cluster.start();
    let after = wait_orphan(&cluster, "demo.r1", "confirmed again", |o| !o["last_confirmed_s"].is_null());
    assert_eq!(after["uuid"], before["uuid"]);
    // What was confirmed since it was written last is lost, and nothing is added.
    assert!((5..=confirmed_s(&before) + 10).contains(&confirmed_s(&after)), "{before} {after}");
    restore_record(&cluster, "demo", &aside);
    eventually(SOON, "claimed", || {
        let found = orphans(&cluster);
        check(found.is_empty(), || format!("{found:?}"))
    });
    assert_eq!(cluster.instance("demo.r1").claim(), "claimed");
    remove_record(&cluster, "demo");
    let anew = wait_orphan(&cluster, "demo.r1", "an orphan again", |_| true);
    assert!(confirmed_s(&anew) < confirmed_s(&before), "{anew}");
    assert_eq!(cluster.instance_processes().len(), processes.len());
    assert!(processes.iter().all(Process::is_alive));
}

#[test]
fn o3_o9_nothing_is_cleaned_by_default_and_a_person_may_hold_or_delete_what_is_not_claimed() {
    let mut cluster = Cluster::agent(AgentOptions::with(&["--orphan-grace-period", "1s"]));
    cluster.allow_errors("demo");
    let demo = cluster.create_attached("demo", "64MiB", 2);
    for name in ["demo.engine", "demo.r1", &directory_name(&demo, "r2")] {
        cluster.cli(&["orphan", "delete", name]).expect_code(7);
        cluster.cli(&["orphan", "hold", name]).expect_code(7);
        cluster.cli(&["orphan", "show", name]).expect_code(3);
    }
    cluster.cli(&["orphan", "delete", "nothing"]).expect_code(3);
    let aside = remove_record(&cluster, "demo");
    let found = wait_orphan(&cluster, "demo.r1", "ten times its grace", |found| confirmed_s(found) > 10);
    assert_eq!((&found["remaining_s"], &found["auto_cleanup"]), (&0.into(), &false.into()), "{found}");
    assert!(found["reason"].as_str().unwrap().contains("demo"), "{found}");
    assert_eq!(cluster.json(&["orphan", "hold", "demo.r1"])["held"], true);
    cluster.kill_agent();
    cluster.start();
    wait_orphan(&cluster, "demo.r1", "still held", |found| found["state"] == "orphaned-held");
    assert_eq!(cluster.json(&["orphan", "release", "demo.r1"])["held"], false);
    // A record that cannot be read is no answer.
    std::fs::write(records::record_path(&cluster.data_dir(), "demo"), b"{").unwrap();
    let said = cluster.cli(&["orphan", "delete", "demo.engine"]).expect_code(7).said();
    assert!(said.contains("cannot be known"), "{said}");
    restore_record(&cluster, "demo", &aside);
    cluster.cli(&["orphan", "delete", "demo.engine"]).expect_code(7);
    remove_record(&cluster, "demo");
    let foreign = "00000000-0000-4000-8000-000000000001";
    cluster.cli(&["orphan", "delete", "demo.engine", "--uuid", foreign]).expect_code(4);
    let uuid = cluster.instance("demo.engine").uuid();
    cluster.ok(&["orphan", "delete", "demo.engine", "--uuid", &uuid]);
    for name in ["demo.r1", "demo.r2"] {
        cluster.ok(&["orphan", "delete", name]);
    }
    cluster.wait_no_instances();
    assert!(demo.images().iter().all(|image| image.exists()), "stopping a process deletes no data");
}

#[test]
fn o4_o6_what_cannot_be_known_is_no_orphan_however_short_the_grace() {
    let options = ["--orphan-auto-cleanup", "instance,replica-data", "--orphan-grace-period", "0s"];
    let mut cluster = Cluster::agent(AgentOptions::with(&options));
    cluster.allow_errors("volume");
    cluster.create_attached("unknown", "64MiB", 1);
    cluster.create_attached("gone", "64MiB", 1);
    // It shows that time passes: it is in use, and therefore stays.
    let client = cluster.connect("gone");
    let processes = cluster.instance_processes();
    std::fs::write(records::record_path(&cluster.data_dir(), "unknown"), b"{").unwrap();
    remove_record(&cluster, "gone");
    wait_orphan(&cluster, "gone.engine", "read many times", |found| confirmed_s(found) >= 15);
    let names: Vec<_> = orphans(&cluster).iter().map(|found| found["name"].to_string()).collect();
    assert!(names.iter().all(|name| !name.contains("unknown")), "{names:?}");
    assert!(processes.iter().all(Process::is_alive));
    drop(client);
}

#[test]
fn o8_what_was_created_again_under_the_same_name_is_untouched() {
    let options = ["--orphan-auto-cleanup", "instance", "--orphan-grace-period", "1s"];
    let mut cluster = Cluster::agent(AgentOptions::with(&options));
    cluster.allow_errors("the volume has no record any more");
    let old = cluster.create_attached("demo", "64MiB", 1);
    let old_uuid = cluster.instance("demo.r1").uuid();
    remove_record(&cluster, "demo");
    cluster.ok(&["volume", "create", "demo", "--size", "64MiB", "--replicas", "1"]);
    cluster.ok(&["volume", "attach", "demo"]);
    // The old ones have the names until they are cleaned.
    let new = eventually(CLEANED_WITHIN, "the new volume has its names", || {
        let new = cluster.volume("demo");
        check(new.id() != old.id() && new.state() == "healthy", || format!("{:?}", orphans(&cluster)))?;
        Ok(new)
    });
    assert_ne!(cluster.instance("demo.r1").uuid(), old_uuid);
    let old_data =
        wait_orphan(&cluster, &directory_name(&old, "r1"), "listed", |found| confirmed_s(found) > 5);
    assert_eq!(old_data["uuid"].as_str(), Some(old.id().as_str()));
    assert_eq!(cluster.volume("demo").pids(), new.pids(), "nothing of the new one was touched");
}

#[test]
fn d7_data_of_a_removed_replica_goes_to_the_trash_and_what_may_be_a_last_copy_stays() {
    let options = ["--orphan-auto-cleanup", "replica-data", "--orphan-grace-period", "1s"];
    let cluster = Cluster::agent(AgentOptions::with(&options));
    let demo = cluster.create_attached("demo", "64MiB", 3);
    cluster.connect("demo").write_fua(0, &[9; 1 << 20]).unwrap();
    let (removed, name) = (demo.replica("r3").data_dir(), directory_name(&demo, "r3"));
    cluster.ok(&["replica", "remove", "demo", "r3"]);
    eventually(3 * SOON, "the removed one's data is in the trash", || {
        check(!removed.exists(), || format!("{:?}", orphans(&cluster)))
    });
    let listed = cluster.json(&["trash", "ls"]);
    let items = listed["items"].as_array().unwrap();
    assert_eq!((items.len(), items[0]["from"].as_str()), (1, removed.to_str()), "{listed}");
    cluster.ok(&["trash", "restore", items[0]["name"].as_str().unwrap()]);
    cluster.ok(&["orphan", "hold", &name]);
    assert_eq!(std::fs::read(removed.join("head.img")).unwrap()[..1 << 20], [9; 1 << 20]);
    // Without a record nobody can say whether another copy exists.
    cluster.detach("demo");
    cluster.ok(&["volume", "delete", "demo"]);
    for replica in ["r1", "r2"] {
        let kept = wait_orphan(&cluster, &directory_name(&demo, replica), "its grace is over", |found| {
            found["remaining_s"] == 0 && confirmed_s(found) > 5
        });
        assert_eq!(kept["state"], "orphaned-kept", "{kept}");
    }
    assert_eq!(orphan(&cluster, &name).unwrap()["state"], "orphaned-held");
    assert!(demo.images().iter().all(|image| image.exists()));
    // A person's word is another thing.
    cluster.ok(&["orphan", "delete", &directory_name(&demo, "r1")]);
    assert!(!demo.replica("r1").data_dir().exists());
    assert_eq!(cluster.json(&["trash", "empty", "--yes"])["items"].as_array().unwrap().len(), 1);
    assert_eq!(cluster.json(&["trash", "ls"])["items"].as_array().unwrap().len(), 0);
    assert!(demo.replica("r2").data_dir().exists() && removed.exists());
}

#[test]
fn d2_an_intent_of_another_generation_deletes_nothing_and_says_so() {
    let cluster = Cluster::with_volume("64MiB", 2);
    let demo = cluster.volume("demo");
    cluster.detach("demo");
    let path = records::record_path(&cluster.data_dir(), "demo");
    let mut record = records::record(&cluster.data_dir(), "demo");
    record["spec"]["intent"] = serde_json::json!({"purge": format!("{}@99", demo.id())});
    std::fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
    cluster.wait_volume("demo", "the intent is ignored aloud", |volume| {
        let reason = volume.0["reason"].to_string();
        check(reason.contains("intent-ignored"), || reason.clone())
    });
    assert!(demo.images().iter().all(|image| image.exists()));
}

#[test]
fn d3_a_mark_in_a_directory_beats_a_purge() {
    let cluster = Cluster::with_volume("64MiB", 2);
    let demo = cluster.volume("demo");
    cluster.detach("demo");
    std::fs::write(demo.replica("r1").data_dir().join("keep"), b"").unwrap();
    cluster.ok(&["volume", "delete", "demo", "--purge-data"]);
    assert!(demo.replica("r1").data_dir().join("head.img").exists());
    assert!(!demo.replica("r2").data_dir().exists());
    cluster.cli(&["orphan", "delete", &directory_name(&demo, "r1")]).expect_code(7);
    let listed = cluster.json(&["trash", "ls"]);
    cluster.ok(&["trash", "restore", listed["items"][0]["name"].as_str().unwrap()]);
    assert!(demo.replica("r2").data_dir().join("head.img").exists());
    cluster.cli(&["trash", "restore", "nothing"]).expect_code(3);
}
