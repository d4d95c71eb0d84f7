//! What is said to be gone is gone, what fails half-way is cleaned, and nothing new is made where replicas were not.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::path::{Path, PathBuf};

use holdfast_tests::cluster::{AgentOptions, SOON};
use holdfast_tests::mounts::{self, SmallDisk};
use holdfast_tests::process::Signal;
use holdfast_tests::wait::check;
use holdfast_tests::{Cluster, MIB, cli, eventually, skip_aloud};

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

fn replicas(cluster: &Cluster) -> PathBuf {
    cluster.data_dir().join("replicas")
}

fn waiting(cluster: &Cluster) -> Vec<String> {
    let listed = cluster.json(&["trash", "ls"]);
    let items = listed["items"].as_array().unwrap().iter();
    items.map(|item| item["name"].as_str().unwrap().to_owned()).collect()
}

/// An agent with the detached volume `demo` of two replicas, which holds something; and where its second one is.
fn detached() -> (Cluster, PathBuf) {
    let cluster = Cluster::with_volume("64MiB", 2);
    cluster.connect("demo").write_fua(0, &[5; 1 << 20]).unwrap();
    let second = cluster.volume("demo").replica("r2").data_dir();
    cluster.detach("demo");
    (cluster, second)
}

#[test]
fn create_that_fails_for_want_of_room_leaves_nothing() {
    if !mounts::possible() {
        return skip_aloud("create_that_fails_for_want_of_room_leaves_nothing", "root, to mount a tmpfs");
    }
    let mut cluster = Cluster::agent_not_started(AgentOptions::default());
    let (data, bin) = (cluster.data_dir(), cluster.root().join("bin"));
    std::fs::create_dir(&data).unwrap();
    cluster.keep_disk(SmallDisk::empty(&data, 256 * MIB, false));
    cluster.add_arguments(&["--bin-dir", bin.to_str().unwrap()]);
    cluster.start();
    cluster.ok(&["volume", "create", "first", "--size", "8MiB"]);
    let before = names(&replicas(&cluster));
    let mut hog = std::fs::File::create(data.join("hog")).unwrap();
    while hog.write_all(&[1; 65536]).is_ok() {}
    while hog.write_all(&[1; 512]).is_ok() {}
    for _ in 0..5 {
        let failed = cluster.cli(&["volume", "create", "more", "--size", "8MiB", "--replicas", "3"]);
        assert_ne!(failed.0.code, Some(0), "{}", failed.said());
    }
    assert_eq!(names(&replicas(&cluster)), before);
    drop(hog);
    std::fs::remove_file(data.join("hog")).unwrap();
    // An agent that is killed while it makes one.
    cluster.kill_agent();
    let half = replicas(&cluster).join("more.r1.0123abcd.making");
    std::fs::create_dir(&half).unwrap();
    std::fs::write(half.join("meta"), [0; 4096]).unwrap();
    cluster.start();
    eventually(SOON, "what was left of it is removed", || {
        check(!half.exists(), || format!("{:?}", names(&replicas(&cluster))))
    });
    cluster.ok(&["volume", "create", "more", "--size", "8MiB", "--replicas", "3"]);
    assert_eq!(names(&replicas(&cluster)).len(), before.len() + 3);
}

#[test]
fn purge_of_a_linked_replica_removes_its_data() {
    let (cluster, second) = detached();
    let disk = cluster.root().join("disk2");
    std::fs::create_dir(&disk).unwrap();
    let data = disk.join(second.file_name().unwrap());
    std::fs::rename(&second, &data).unwrap();
    std::os::unix::fs::symlink(&data, &second).unwrap();
    cluster.ok(&["volume", "attach", "demo"]);
    cluster.wait_healthy("demo");
    cluster.detach("demo");
    cluster.ok(&["volume", "delete", "demo", "--purge-data"]);
    assert!(names(&replicas(&cluster)).is_empty());
    assert_eq!(waiting(&cluster).len(), 2, "both wait");
    assert!(data.join("head.img").exists(), "it can be restored");
    cluster.ok(&["trash", "empty", "--yes"]);
    assert_eq!((names(&disk), names(&cluster.data_dir().join("trash"))), (vec![], vec![]));
}

#[test]
fn purge_of_a_mounted_replica_empties_the_mount() {
    if !mounts::possible() {
        return skip_aloud("purge_of_a_mounted_replica_empties_the_mount", "root, to mount a tmpfs");
    }
    let (mut cluster, second) = detached();
    cluster.keep_disk(SmallDisk::over(&second, &cluster.root().join("aside"), 128 * MIB));
    cluster.ok(&["volume", "attach", "demo"]);
    cluster.wait_healthy("demo");
    cluster.detach("demo");
    cluster.ok(&["volume", "delete", "demo", "--purge-data"]);
    cluster.cli(&["volume", "show", "demo"]).expect_code(3);
    assert_eq!(names(&second), Vec::<String>::new(), "only its waiting room is there");
    let name = second.file_name().unwrap().to_str().unwrap();
    let entry = waiting(&cluster).into_iter().find(|entry| entry.ends_with(name)).expect("it waits");
    cluster.ok(&["trash", "restore", &entry]);
    assert!(second.join("head.img").exists() && second.join("meta").exists());
    // The other way in.
    eventually(SOON, "it is nobody's", || {
        let said = cluster.cli(&["orphan", "delete", name]);
        check(said.0.code == Some(0), || said.said())
    });
    assert_eq!(waiting(&cluster).len(), 2);
    cluster.ok(&["trash", "empty", "--yes"]);
    assert_eq!(std::fs::read_dir(&second).unwrap().count(), 0, "nothing is left on its disk");
    assert!(names(&cluster.data_dir().join("trash")).is_empty());
}

#[test]
fn replicas_that_are_not_mounted_take_nothing_new() {
    let name = "replicas_that_are_not_mounted_take_nothing_new";
    if !mounts::possible() {
        return skip_aloud(name, "root, to mount a directory over another");
    }
    let mut cluster = Cluster::agent_not_started(AgentOptions::default());
    let (disk, place) = (cluster.root().join("disk"), replicas(&cluster));
    std::fs::create_dir(&disk).unwrap();
    std::fs::create_dir_all(&place).unwrap();
    let mounted = SmallDisk::bound(&disk, &place);
    cluster.start();
    cluster.create_attached("demo", "64MiB", 2);
    cluster.connect("demo").write_fua(0, &[7; 4096]).unwrap();
    cluster.detach("demo");
    assert!(cluster.end_agent(Signal::SIGTERM).success());
    drop(mounted);
    cluster.start();
    let said = cluster.cli(&["volume", "create", "new", "--size", "32MiB"]).expect_code(7).said();
    assert!(said.contains("is the disk mounted?"), "{said}");
    let warnings = cluster.json(&["node", "show"])["warnings"].to_string();
    assert!(warnings.contains("is the disk mounted?"), "{warnings}");
    // Nor is what is on the other disk said to be gone.
    let deleting = cluster.cli_start(&["volume", "delete", "demo", "--purge-data"]);
    cluster.wait_volume("demo", "the purge waits for the disk", |volume| {
        let reason = volume.0["reason"].to_string();
        check(reason.contains("is the disk mounted?"), || reason.clone())
    });
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0, "the mount point is empty");
    assert_eq!(names(&disk).len(), 2);
    cluster.keep_disk(SmallDisk::bound(&disk, &place));
    let done = deleting.finish(cli::DEADLINE);
    assert_eq!(done.code, Some(0), "{done}");
    assert_eq!(waiting(&cluster).len(), 2, "what was on it waits in the trash");
    assert!(names(&disk).is_empty());
    cluster.ok(&["volume", "create", "new", "--size", "32MiB"]);
    // All of `replicas/` is another file system, or might be: what it holds is really removed.
    cluster.ok(&["trash", "empty", "--yes"]);
    assert!(!disk.join(".trash").exists());
}

#[test]
fn what_cannot_be_brought_back_wants_yes_without_a_terminal() {
    let (cluster, _) = detached();
    // Its data waits in the trash.
    cluster.ok(&["volume", "delete", "demo", "--purge-data"]);
    let before = waiting(&cluster);
    for refused in [vec!["trash", "empty"], vec!["trash", "empty", before[0].as_str()]] {
        let said = cluster.cli(&refused).expect_code(8).said();
        assert!(said.contains("--yes"), "{said}");
    }
    assert_eq!(waiting(&cluster), before);
    let (data, run, address) = (cluster.data_dir(), cluster.runtime_dir(), cluster.address());
    let args = ["uninstall", "--purge-data", "--node", "node-a", "--listen", address.as_str()];
    let dirs = ["--data-dir", data.to_str().unwrap(), "--runtime-dir", run.to_str().unwrap()];
    let said = cli::run(&[&args[..], &dirs].concat()).expect_code(8).said();
    assert!(said.contains("--yes"), "{said}");
    assert_eq!(waiting(&cluster), before);
    cluster.ok(&["trash", "empty", &before[0], "--yes"]);
    assert_eq!(waiting(&cluster), before[1..]);
}

#[test]
fn undelete_makes_the_volume_of_what_is_still_there() {
    let (cluster, second) = detached();
    let id = cluster.volume("demo").id();
    cluster.cli(&["volume", "undelete", "demo"]).expect_code(4);
    let reads = |cluster: &Cluster| {
        cluster.ok(&["volume", "attach", "demo"]);
        cluster.wait_healthy("demo");
        assert_eq!(cluster.connect("demo").read(0, 1 << 20).unwrap(), [5; 1 << 20]);
        cluster.detach("demo");
    };
    cluster.ok(&["volume", "delete", "demo"]);
    cluster.ok(&["volume", "undelete", "demo"]);
    assert_eq!(cluster.volume("demo").id(), id);
    reads(&cluster);
    // Its key is gone with the purge, and its data waits.
    cluster.ok(&["volume", "delete", "demo", "--purge-data"]);
    let said = cluster.cli(&["volume", "undelete", "demo"]).expect_code(3).said();
    assert!(said.contains("--from-trash"), "{said}");
    // Where a copy is missing, newer data may be elsewhere.
    let aside = cluster.root().join("aside");
    let name = second.file_name().unwrap().to_str().unwrap();
    let entry = waiting(&cluster).into_iter().find(|entry| entry.ends_with(name)).expect("it waits");
    let entry = cluster.data_dir().join("trash").join(entry);
    std::fs::rename(&entry, &aside).unwrap();
    let said = cluster.cli(&["volume", "undelete", "demo", "--from-trash"]).expect_code(7).said();
    assert!(said.contains("newer data may be elsewhere"), "{said}");
    std::fs::rename(&aside, &entry).unwrap();
    // Another of its name is not touched.
    cluster.ok(&["volume", "create", "demo", "--size", "8MiB"]);
    cluster.cli(&["volume", "undelete", &id, "--from-trash"]).expect_code(4);
    cluster.ok(&["volume", "delete", "demo"]);
    cluster.cli(&["volume", "undelete", "demo", "--from-trash"]).expect_code(4);
    cluster.ok(&["volume", "undelete", &id, "--from-trash"]);
    assert_eq!(waiting(&cluster), Vec::<String>::new());
    reads(&cluster);
}
