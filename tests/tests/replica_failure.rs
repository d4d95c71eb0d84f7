//! A replica fails: the client does not notice, and the replica becomes a member again by itself.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use holdfast_tests::mounts::{self, SmallDisk};
use holdfast_tests::process::{Process, Signal, kill, signal};
use holdfast_tests::tools::{FioLoop, qemu_io};
use holdfast_tests::wait::check;
use holdfast_tests::{AgentOptions, Cluster, MIB, QuickstartOptions, Rng, image, skip_aloud};

const ENOSPC: i32 = nix::libc::ENOSPC;

#[test]
fn each_replica_killed_in_turn_under_verified_io_becomes_a_member_again() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("128MiB"));
    let before = cluster.volume("demo");
    let mut load = FioLoop::start(&cluster.uri("demo"), "64m");
    load.wait_passes(1);
    for id in ["r1", "r2", "r3"] {
        let pid = cluster.volume("demo").replica(id).pid().expect("a member runs");
        kill(pid);
        let after = cluster.wait_volume("demo", &format!("{id} is a member again"), |v| {
            let replica = v.replica(id);
            check(replica.mode() == "member" && replica.pid().is_some_and(|now| now != pid), || {
                format!("{id} is {} in process {:?}", replica.mode(), replica.pid())
            })
        });
        assert_eq!(after.engine_pid(), before.engine_pid(), "the engine goes on");
        assert_eq!(after.generation(), before.generation(), "no engine took over");
        // One that is back before anything is missing on it stays a member; else the view changed twice.
        assert!(after.epoch() >= before.epoch());
    }
    cluster.wait_healthy("demo");
    load.wait_passes(1);
    load.finish();
    cluster.assert_images_equal("demo");
    cluster.assert_no_second_copy();
    let restarts: Vec<_> = cluster.instances().iter().map(|i| (i.name(), i.restarts())).collect();
    for (name, count) in restarts {
        assert_eq!(count, u64::from(name != "demo.engine"), "{name} was started again {count} times");
    }
}

#[test]
fn all_replicas_but_one_may_die_at_once() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("128MiB"));
    let mut load = FioLoop::start(&cluster.uri("demo"), "64m");
    load.wait_passes(1);
    let volume = cluster.volume("demo");
    for id in ["r1", "r3"] {
        kill(volume.replica(id).pid().unwrap());
    }
    cluster.wait_healthy("demo");
    load.wait_passes(1);
    load.finish();
    cluster.assert_images_equal("demo");
}

#[test]
fn with_every_replica_dead_io_waits_and_then_goes_on() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let mut client = cluster.connect("demo");
    client.write_fua(0, &[0x41; 4096]).unwrap();
    for replica in cluster.volume("demo").replicas() {
        kill(replica.pid().unwrap());
    }
    // Held until a replica is back; never an error, never a lost write.
    client.write(4096, &[0x42; 4096]).unwrap();
    client.flush().unwrap();
    assert_eq!(client.read(0, 8192).unwrap(), [[0x41; 4096], [0x42; 4096]].concat());
    cluster.wait_healthy("demo");
    cluster.wait_images_equal("demo");
}

#[test]
fn a_replica_that_stops_answering_is_left_out_and_returns_when_it_answers() {
    let cluster = Cluster::agent(AgentOptions::with(&["--replica-timeout", "2s"]));
    cluster.create_attached("demo", "64MiB", 3);
    let pid = cluster.volume("demo").replica("r2").pid().unwrap();
    let mut client = cluster.connect("demo");
    client.write_fua(0, &[1; 4096]).unwrap();
    signal(pid, Signal::SIGSTOP);
    // The answer comes once the silent replica has been left out: before that it would be a lie.
    client.write(0, &[2; 4096]).unwrap();
    // The agent hears of it a moment after the client.
    let degraded = cluster.wait_state("demo", "degraded");
    assert_ne!(degraded.replica("r2").mode(), "member", "an acknowledged write that a member lacks");
    signal(pid, Signal::SIGCONT);
    cluster.wait_healthy("demo");
    assert_eq!(client.read(0, 4096).unwrap(), [2; 4096]);
    drop(client);
    cluster.assert_images_equal("demo");
}

#[test]
fn what_was_trimmed_while_a_replica_was_away_reads_as_zeros_on_it() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let uri = cluster.uri("demo");
    qemu_io(&uri, &["write -P 0x5a 0 32M", "flush"]);
    let victim = cluster.volume("demo").replica("r3");
    // Stopped first, so that the agent cannot bring it back before the trim.
    signal(victim.pid().unwrap(), Signal::SIGSTOP);
    qemu_io(&uri, &["discard 8M 8M", "write -P 0xa5 20M 4M", "flush"]);
    kill(victim.pid().unwrap());
    cluster.wait_healthy("demo");
    qemu_io(&uri, &["read -P 0x5a 0 8M", "read -P 0 8M 8M", "read -P 0xa5 20M 4M", "read -P 0x5a 24M 8M"]);
    cluster.assert_images_equal("demo");
    let image = victim.data_dir().join("head.img");
    let allocated = image::allocated_bytes(&image);
    assert!(allocated < 28 * MIB, "{allocated} bytes: what the source does not hold is deallocated");
}

/// Writes a block in each region of a volume of 256 MiB, so far into the region.
fn write_thinly(cluster: &Cluster, into: u64) {
    let mut client = cluster.connect("demo");
    for region in 0..1024 {
        client.write(region * (256 << 10) + into, &[0x5a; 4096]).unwrap();
    }
    client.flush().unwrap();
}

/// No image takes more than a tenth more room than the first one.
fn assert_thin(cluster: &Cluster) {
    let taken =
        |replica: &holdfast_tests::Replica| image::allocated_bytes(&replica.data_dir().join("head.img"));
    let all: Vec<_> = cluster.volume("demo").replicas().iter().map(taken).collect();
    assert!(all.iter().all(|bytes| *bytes * 10 <= all[0] * 11), "{all:?}");
}

#[test]
fn thin_copies_take_the_room_of_their_source() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("256MiB"));
    write_thinly(&cluster, 0);
    // Filled from nothing.
    cluster.ok(&["replica", "replace", "demo", "r3"]);
    cluster.wait_volume("demo", "r4 is a member", |volume| {
        let ids: Vec<_> = volume.replicas().iter().map(holdfast_tests::Replica::id).collect();
        let replaced = ids == ["r1", "r2", "r4"] && volume.state() == "healthy";
        check(replaced, || format!("{ids:?}, {}", volume.state()))
    });
    assert_thin(&cluster);
    // Caught up.
    let victim = cluster.volume("demo").replica("r4").pid().unwrap();
    signal(victim, Signal::SIGSTOP);
    write_thinly(&cluster, 128 << 10);
    kill(victim);
    cluster.wait_healthy("demo");
    assert_thin(&cluster);
    cluster.assert_images_equal("demo");
}

#[test]
fn a_thin_replica_on_a_small_disk_comes_back() {
    if !mounts::possible() {
        return skip_aloud("a_thin_replica_on_a_small_disk_comes_back", "root, to mount a tmpfs");
    }
    let cluster = small_disks("256MiB", &[("r3", 32 * MIB)]);
    let victim = cluster.volume("demo").replica("r3").pid().unwrap();
    signal(victim, Signal::SIGSTOP);
    write_thinly(&cluster, 0);
    signal(victim, Signal::SIGCONT);
    cluster.wait_healthy("demo");
    cluster.assert_images_equal("demo");
}

#[test]
fn a_restarted_replica_keeps_its_identity_and_address() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let (before, instance) = (cluster.volume("demo"), cluster.instance("demo.r1"));
    kill(before.replica("r1").pid().unwrap());
    let after = cluster.wait_volume("demo", "r1 is a member in a new process", |v| {
        let now = v.replica("r1");
        let restarted = now.pid().is_some() && now.pid() != before.replica("r1").pid();
        check(now.mode() == "member" && restarted, || now.mode())
    });
    assert_eq!(cluster.instance("demo.r1").uuid(), instance.uuid(), "one UUID per creation");
    assert_eq!(after.replica("r1").data_dir(), before.replica("r1").data_dir());
    let ids: BTreeSet<_> = after.replicas().iter().map(holdfast_tests::Replica::id).collect();
    assert_eq!(ids.len(), 3);
}

/// An agent with a detached volume whose replica directories were mounted over with small disks.
fn small_disks(size: &str, disks: &[(&str, u64)]) -> Cluster {
    let mut cluster = Cluster::with_volume(size, 3);
    cluster.detach("demo");
    for (id, bytes) in disks {
        let dir = cluster.volume("demo").replica(id).data_dir();
        let aside = cluster.root().join(format!("aside-{id}"));
        cluster.keep_disk(SmallDisk::over(&dir, &aside, *bytes));
    }
    cluster.ok(&["volume", "attach", "demo"]);
    cluster.wait_healthy("demo");
    cluster
}

#[test]
fn a_full_disk_under_one_replica_leaves_it_out_until_there_is_room() {
    if !mounts::possible() {
        return skip_aloud(
            "a_full_disk_under_one_replica_leaves_it_out_until_there_is_room",
            "root, to mount a tmpfs",
        );
    }
    let cluster = small_disks("64MiB", &[("r2", 16 * MIB)]);
    let mut client = cluster.connect("demo");
    let mut rng = Rng::announced("a_full_disk_under_one_replica_leaves_it_out_until_there_is_room");
    let data = rng.bytes(48 << 20);
    for (i, chunk) in data.chunks(256 << 10).enumerate() {
        let offset = u64::try_from(i).unwrap() * (256 << 10);
        client.write(offset, chunk).unwrap_or_else(|e| panic!("the client met an error at {offset}: {e}"));
    }
    client.flush().unwrap();
    let degraded = cluster.volume("demo");
    assert_eq!(degraded.state(), "degraded", "{}", degraded.0);
    assert_ne!(degraded.replica("r2").mode(), "member");
    assert_eq!(
        (degraded.replica("r1").mode(), degraded.replica("r3").mode()),
        ("member".into(), "member".into())
    );
    assert!(client.read(0, 32 << 20).unwrap() == data[..32 << 20], "the others hold every byte");
    cluster.wait_volume("demo", "r2 says why it is left out", |volume| {
        let reason = volume.replica("r2").reason();
        check(reason.contains("no room on its disk"), || reason.clone())
    });
    cluster.disks()[0].resize(256 * MIB);
    cluster.wait_healthy("demo");
    drop(client);
    cluster.assert_images_equal("demo");
}

#[test]
fn full_disks_under_all_replicas_answer_an_error_and_remove_nobody() {
    if !mounts::possible() {
        return skip_aloud(
            "full_disks_under_all_replicas_answer_an_error_and_remove_nobody",
            "root, to mount a tmpfs",
        );
    }
    let sizes = [("r1", 16 * MIB), ("r2", 16 * MIB), ("r3", 16 * MIB)];
    let mut cluster = small_disks("64MiB", &sizes);
    // A full disk on every copy is something that a human should look at.
    cluster.allow_errors("No space left");
    cluster.allow_errors("no space");
    let before = cluster.volume("demo");
    let mut client = cluster.connect("demo");
    let chunk = vec![0x6b; 64 << 10];
    let mut written = 0;
    let error = loop {
        match client.write(written, &chunk) {
            Ok(()) => written += 64 << 10,
            Err(error) => break error,
        }
        assert!(written < 32 * MIB, "more than the disks hold was acknowledged");
    };
    assert_eq!(error.raw_os_error(), Some(ENOSPC), "{error}");
    assert!(written >= 8 * MIB, "only {written} bytes fit on disks of 16 MiB");
    let after = cluster.volume("demo");
    assert_eq!(after.members(), 3, "an error of all removes nobody: {}", after.0);
    assert_eq!(after.pids(), before.pids());
    // The connection is still of use, and what the failed write left behind is one thing, not three.
    let first = client.read(written, 64 << 10).unwrap();
    for _ in 0..6 {
        assert!(client.read(written, 64 << 10).unwrap() == first, "a read of the failed blocks changed");
    }
    assert!(client.read(0, 1 << 20).unwrap().iter().all(|b| *b == 0x6b));
    for disk in cluster.disks() {
        disk.resize(256 * MIB);
    }
    client.write(written, &chunk).unwrap();
    client.flush().unwrap();
    drop(client);
    cluster.wait_healthy("demo");
    cluster.wait_images_equal("demo");
}

#[test]
fn full_disks_and_a_lost_member_leave_reads_overwrites_and_trims() {
    if !mounts::possible() {
        return skip_aloud(
            "full_disks_and_a_lost_member_leave_reads_overwrites_and_trims",
            "root, to mount a tmpfs",
        );
    }
    let sizes = [("r1", 16 * MIB), ("r2", 16 * MIB), ("r3", 16 * MIB)];
    let mut cluster = small_disks("64MiB", &sizes);
    cluster.allow_errors("No space left");
    cluster.allow_errors("no space");
    let mut client = cluster.connect("demo");
    let chunk = vec![0x6b; 64 << 10];
    let mut written = 0;
    while client.write(written, &chunk).is_ok() {
        written += 64 << 10;
    }
    // To the last block.
    while client.write(written, &chunk[..4096]).is_ok() {
        written += 4096;
    }
    let r3 = cluster.volume("demo").replica("r3").pid().unwrap();
    signal(r3, Signal::SIGSTOP);
    client.write(0, &[0x41; 4096]).unwrap();
    assert_eq!(client.read(0, 8192).unwrap(), [[0x41; 4096], [0x6b; 4096]].concat());
    client.trim(MIB, 1 << 20).unwrap();
    client.write(4096, &[0x42; 4096]).unwrap();
    cluster.wait_state("demo", "degraded");
    kill(r3);
    for disk in cluster.disks() {
        disk.resize(256 * MIB);
    }
    client.flush().unwrap();
    drop(client);
    cluster.wait_healthy("demo");
    cluster.wait_images_equal("demo");
}

#[test]
fn a_missing_replica_directory_is_absent_and_gets_what_it_missed_when_it_is_back() {
    let cluster = Cluster::with_volume("64MiB", 3);
    qemu_io(&cluster.uri("demo"), &["write -P 0x31 0 16M", "flush"]);
    let dir = cluster.volume("demo").replica("r2").data_dir();
    let away = cluster.root().join("away");
    cluster.detach("demo");
    std::fs::rename(&dir, &away).unwrap();
    cluster.ok(&["volume", "attach", "demo"]);
    cluster.wait_mode("demo", "r2", "absent");
    let shown = cluster.ok(&["volume", "show", "demo"]).said();
    assert!(shown.contains("is the disk mounted?"), "{shown}");
    let degraded = cluster.wait_state("demo", "degraded");
    assert_eq!(degraded.replica("r2").pid(), None);
    assert!(!dir.exists(), "a missing directory is never made again");
    let uri = cluster.uri("demo");
    qemu_io(&uri, &["read -P 0x31 0 16M", "write -P 0x32 4M 4M", "flush"]);
    std::fs::rename(&away, &dir).unwrap();
    cluster.wait_healthy("demo");
    // The 4 MiB that it lacks, and not the 16 MiB that there are.
    cluster.wait_volume("demo", "what was copied is told", |volume| {
        let copied = volume.replica("r2").copied_bytes();
        check((4 * MIB..16 * MIB).contains(&copied), || format!("{copied} bytes were copied"))
    });
    qemu_io(&uri, &["read -P 0x31 0 4M", "read -P 0x32 4M 4M", "read -P 0x31 8M 8M"]);
    cluster.assert_images_equal("demo");
}

#[test]
fn with_every_replica_directory_missing_the_volume_is_faulted_never_zeros() {
    let cluster = Cluster::with_volume("64MiB", 3);
    qemu_io(&cluster.uri("demo"), &["write -P 0x31 0 16M", "flush"]);
    let dirs: Vec<_> =
        cluster.volume("demo").replicas().iter().map(holdfast_tests::Replica::data_dir).collect();
    cluster.detach("demo");
    let away = |i: usize| cluster.root().join(format!("away-{i}"));
    for (i, dir) in dirs.iter().enumerate() {
        std::fs::rename(dir, away(i)).unwrap();
    }
    // What the command says about a volume that cannot be served is the volume's matter; the state is the promise.
    let said = cluster.cli(&["volume", "attach", "demo"]);
    assert_ne!(said.0.code, Some(101), "{}", said.0);
    let faulted = cluster.wait_state("demo", "faulted");
    assert_eq!(faulted.endpoint(), None, "nothing may be read from a volume without a copy");
    for dir in &dirs {
        assert!(!dir.exists(), "{} was made again", dir.display());
    }
    for (i, dir) in dirs.iter().enumerate() {
        std::fs::rename(away(i), dir).unwrap();
    }
    cluster.wait_healthy("demo");
    qemu_io(&cluster.uri("demo"), &["read -P 0x31 0 16M", "read -P 0 16M 1M"]);
    cluster.assert_images_equal("demo");
}

#[test]
fn a_replica_directory_of_another_volume_is_not_served() {
    let cluster = Cluster::with_volume("64MiB", 2);
    cluster.create_attached("other", "64MiB", 2);
    qemu_io(&cluster.uri("demo"), &["write -P 0x31 0 4M", "flush"]);
    qemu_io(&cluster.uri("other"), &["write -P 0x99 0 4M", "flush"]);
    let (mine, foreign) =
        (cluster.volume("demo").replica("r2").data_dir(), cluster.volume("other").replica("r2").data_dir());
    cluster.detach("demo");
    cluster.detach("other");
    // Two disks were swapped.
    let third = cluster.root().join("third");
    std::fs::rename(&mine, &third).unwrap();
    std::fs::rename(&foreign, &mine).unwrap();
    std::fs::rename(&third, &foreign).unwrap();
    cluster.ok(&["volume", "attach", "demo"]);
    let degraded = cluster.wait_state("demo", "degraded");
    assert_ne!(degraded.replica("r2").mode(), "member", "{}", degraded.0);
    qemu_io(&cluster.uri("demo"), &["read -P 0x31 0 4M"]);
    let first = std::fs::read(mine.join("head.img")).unwrap();
    assert!(first[..1 << 20].iter().all(|b| *b == 0x99), "foreign data was changed");
    std::fs::rename(&mine, &third).unwrap();
    std::fs::rename(&foreign, &mine).unwrap();
    std::fs::rename(&third, &foreign).unwrap();
    cluster.wait_healthy("demo");
    cluster.assert_images_equal("demo");
}

#[test]
fn killed_instances_that_are_stopped_do_not_come_back_twice() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    for round in 0..3 {
        let processes: Vec<Process> = cluster.instance_processes();
        let victim = processes.iter().find(|p| p.has_argument("replica")).expect("replicas run").clone();
        kill(victim.pid);
        cluster.wait_volume("demo", "the killed replica was replaced", |v| {
            let replaced = v.pids().len() == 4 && !v.pids().contains(&victim.pid);
            check(replaced && v.members() == 3, || format!("round {round}"))
        });
        cluster.assert_no_second_copy();
    }
}
