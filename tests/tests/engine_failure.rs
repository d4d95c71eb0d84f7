//! The engine dies, or is replaced by a newer one: what was acknowledged and flushed is there, and members end equal.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use holdfast_tests::block::Command;
use holdfast_tests::fill::Ledger;
use holdfast_tests::process::{Process, kill};
use holdfast_tests::wait::check;
use holdfast_tests::wire::{Answer, Claim};
use holdfast_tests::{BlockClient, Cluster, QuickstartOptions, Rng, SECOND, eventually, image, records};

const BLOCKS: usize = 2048;

#[test]
fn every_flushed_write_survives_a_killed_engine() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let mut rng = Rng::announced("every_flushed_write_survives_a_killed_engine");
    let mut ledger = Ledger::new(BLOCKS);
    for _ in 0..4 {
        let before = cluster.volume("demo");
        let engine = before.engine_pid().expect("an attached volume has an engine");
        // The killer waits for an event, a number of flushes, and then strikes in the middle of whatever is next.
        let (flushes, done) = (AtomicU64::new(0), AtomicBool::new(false));
        let strike_after = 2 + rng.below(20);
        let mut client = cluster.connect("demo");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                eventually(60 * SECOND, "flushes before the kill", || {
                    let now = flushes.load(Ordering::SeqCst);
                    check(now >= strike_after || done.load(Ordering::SeqCst), || format!("{now} flushes"))
                });
                kill(engine);
            });
            let failed = loop {
                match ledger.round(&mut client, &mut rng, 24) {
                    Ok(()) => flushes.fetch_add(1, Ordering::SeqCst),
                    Err(error) => break error,
                };
            };
            done.store(true, Ordering::SeqCst);
            println!("the client met: {failed}");
        });
        cluster.wait_new_engine("demo", &before);
        // Read at once, while the members are still being made equal: a read never waits for that to end.
        ledger.verify(&mut cluster.connect("demo"));
        cluster.wait_images_equal("demo");
    }
    cluster.assert_no_second_copy();
}

#[test]
fn members_are_made_equal_after_a_crash_with_many_writes_in_flight() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let mut rng = Rng::announced("members_are_made_equal_after_a_crash_with_many_writes_in_flight");
    for _ in 0..3 {
        let before = cluster.volume("demo");
        let mut client = cluster.connect("demo");
        let mut completed = 0;
        for n in 0..4000 {
            let (offset, len) = (rng.below((64 << 20) / 512 - 128) * 512, 512 << rng.index(8));
            let command = Command::Write { offset, data: rng.bytes(len), fua: false };
            if client.submit(&command).is_err() {
                break;
            }
            if n == 1500 {
                kill(before.engine_pid().unwrap());
            }
            if client.in_flight() >= 64 {
                match client.complete() {
                    Ok(_) => completed += 1,
                    Err(_) => break,
                }
            }
        }
        assert!(completed > 1000, "{completed} writes were answered before the kill");
        cluster.wait_new_engine("demo", &before);
        // What is read now is read again later, whichever member answers.
        let mut reader = cluster.connect("demo");
        let sample: Vec<(u64, Vec<u8>)> = (0..64)
            .map(|_| {
                let offset = rng.below((64 << 20) / 4096) * 4096;
                (offset, reader.read(offset, 4096).unwrap())
            })
            .collect();
        cluster.wait_images_equal("demo");
        for (offset, content) in sample {
            assert!(reader.read(offset, 4096).unwrap() == content, "a read at {offset} went back");
        }
    }
}

#[test]
fn an_engine_and_a_replica_killed_together_lose_nothing_flushed() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let mut rng = Rng::announced("an_engine_and_a_replica_killed_together_lose_nothing_flushed");
    let mut ledger = Ledger::new(BLOCKS);
    for id in ["r1", "r2", "r3"] {
        let before = cluster.volume("demo");
        let mut client = cluster.connect("demo");
        for _ in 0..6 {
            ledger.round(&mut client, &mut rng, 32).unwrap();
        }
        kill(before.replica(id).pid().unwrap());
        kill(before.engine_pid().unwrap());
        cluster.wait_new_engine("demo", &before);
        cluster.wait_healthy("demo");
        ledger.verify(&mut cluster.connect("demo"));
        cluster.wait_images_equal("demo");
    }
}

#[test]
fn everything_killed_at_once_comes_back_with_what_was_flushed() {
    let mut cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let mut rng = Rng::announced("everything_killed_at_once_comes_back_with_what_was_flushed");
    let mut ledger = Ledger::new(BLOCKS);
    for _ in 0..2 {
        let before = cluster.volume("demo");
        let mut client = cluster.connect("demo");
        for _ in 0..6 {
            ledger.round(&mut client, &mut rng, 32).unwrap();
        }
        cluster.kill_agent();
        for process in cluster.instance_processes() {
            kill(process.pid);
        }
        cluster.wait_no_instances();
        cluster.start();
        cluster.wait_new_engine("demo", &before);
        ledger.verify(&mut cluster.connect("demo"));
        cluster.wait_images_equal("demo");
    }
}

/// Keeps 32 writes in flight on ten blocks, of one to three blocks each, not all aligned, until the deadline.
fn overlap(mut client: BlockClient, mut rng: Rng, end: Instant) -> u64 {
    const DEPTH: usize = 32;
    const SPAN: u64 = 10 * 4096;
    let mut answered = 0;
    loop {
        while client.in_flight() < DEPTH && Instant::now() < end {
            let len = if rng.one_in(4) { 1 + rng.below(9000) } else { 4096 * (1 + rng.below(3)) };
            let room = SPAN - len;
            let offset = if rng.one_in(4) { rng.below(room + 1) } else { rng.below(room / 4096 + 1) * 4096 };
            let len = usize::try_from(len).unwrap();
            let command = match rng.below(20) {
                0 => Command::WriteZeroes { offset, len, no_hole: rng.one_in(2) },
                1 => Command::Trim { offset, len },
                _ => Command::Write {
                    offset,
                    data: vec![rng.word().to_le_bytes()[0]; len],
                    fua: rng.one_in(50),
                },
            };
            client.submit(&command).unwrap();
        }
        if client.in_flight() == 0 {
            client.flush().unwrap();
            return answered;
        }
        client.complete().unwrap().result.unwrap();
        answered += 1;
    }
}

#[test]
fn overlapping_writes_leave_all_replicas_equal() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let mut rng = Rng::announced("overlapping_writes_leave_all_replicas_equal");
    let end = Instant::now() + 5 * SECOND;
    // Two connections, because order within one is the easy half.
    let clients = [(cluster.connect("demo"), rng.word()), (cluster.connect("demo"), rng.word())];
    let threads =
        clients.map(|(client, seed)| std::thread::spawn(move || overlap(client, Rng::seeded(seed), end)));
    let answered: u64 = threads.map(|t| t.join().unwrap()).iter().sum();
    assert!(answered > 500, "only {answered} writes in five seconds");
    image::equal(&cluster.volume("demo").images()).unwrap();
    cluster.assert_images_equal("demo");
}

#[test]
fn overlapping_writes_stay_equal_through_a_killed_replica() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let mut rng = Rng::announced("overlapping_writes_stay_equal_through_a_killed_replica");
    let end = Instant::now() + 6 * SECOND;
    let (client, seed) = (cluster.connect("demo"), Rng::seeded(rng.word()));
    let load = std::thread::spawn(move || overlap(client, seed, end));
    let pid = cluster.volume("demo").replica("r2").pid().unwrap();
    kill(pid);
    cluster.wait_volume("demo", "r2 is a member again", |v| {
        check(
            v.replica("r2").mode() == "member" && v.replica("r2").pid().is_some_and(|now| now != pid),
            || v.replica("r2").mode(),
        )
    });
    load.join().unwrap();
    cluster.assert_images_equal("demo");
}

#[test]
fn an_engine_that_a_replica_refuses_stops_for_good() {
    let mut cluster = Cluster::with_volume("64MiB", 3);
    // A volume that two engines want is something that a human should look at.
    cluster.allow_errors("has taken the volume over; this one serves nothing any more");
    let before = cluster.volume("demo");
    let old = Process::find(before.engine_pid().unwrap()).unwrap();
    let mut client = cluster.connect("demo");
    let mut ledger = Ledger::new(256);
    let mut rng = Rng::announced("an_engine_that_a_replica_refuses_stops_for_good");
    ledger.round(&mut client, &mut rng, 64).unwrap();

    // Another engine attached somewhere: it fences one replica, as a network that splits would let it.
    let newer = Claim::of_current_engine(&cluster, "demo", 1).later(5);
    let address = before.replica("r1").address().unwrap();
    let Answer::Welcome(state, connection) = newer.say(&address).unwrap() else {
        panic!("a newer engine is taken")
    };
    assert_eq!(state.size_bytes, 64 << 20);
    assert_eq!(state.view.members.len(), 3);

    // From here on the old one gets nothing acknowledged: not with two of three members, not with one left out.
    let refused = ledger.round(&mut client, &mut rng, 1);
    assert!(refused.is_err(), "the old engine acknowledged a write after a replica promised to a newer one");
    drop(connection);

    // It is not started again by itself, which would take the volume from whoever has it: a person decides.
    cluster.wait_state("demo", "faulted");
    assert!(old.is_alive(), "it stays to say why");
    cluster.ok(&["volume", "detach", "demo"]);
    cluster.ok(&["volume", "attach", "demo"]);
    let after = cluster.wait_new_engine("demo", &before);
    assert!(after.generation() > before.generation() + 5, "generation {}", after.generation());
    cluster.wait_healthy("demo");
    // The refused write may or may not be there; everything before it must be.
    ledger.verify(&mut cluster.connect("demo"));
    cluster.wait_images_equal("demo");
}

#[test]
fn a_replica_refuses_older_and_foreign_engines_and_names_both() {
    let cluster = Cluster::with_volume("64MiB", 2);
    let volume = cluster.volume("demo");
    let address = volume.replica("r1").address().unwrap();
    let current = Claim::of_current_engine(&cluster, "demo", 1);
    let generation = volume.generation();
    let refused = |claim: &Claim, what: &str| match claim.say(&address).unwrap() {
        Answer::Refused(refused) => refused,
        other => panic!("{what}: {other:?}"),
    };
    use holdfast_dataplane::wire::handshake::RefusalKind;

    let mut equal = current.clone().later(0);
    let said = refused(&equal, "equal generation, another engine");
    assert_eq!(said.kind, RefusalKind::Fenced);
    assert_eq!(said.generation.0, generation);
    assert_eq!(said.engine, current.hello.engine, "the refusal names who was promised to");
    equal.hello.generation.0 = 0;
    assert_eq!(refused(&equal, "older generation").kind, RefusalKind::Fenced);

    let mut other = current.clone();
    other.hello.volume = "00000000-0000-4000-8000-000000000001".parse().unwrap();
    assert_eq!(refused(&other, "another volume").kind, RefusalKind::Identity);
    let mut other = current.clone();
    other.hello.replica.0 = 2;
    assert_eq!(refused(&other, "another replica").kind, RefusalKind::Identity);
    let mut other = current.clone();
    (other.hello.version_min, other.hello.version_max) = (7, 9);
    let said = refused(&other, "a version of the future");
    assert_eq!(said.kind, RefusalKind::Version);
    assert!(!said.reason.is_empty());

    // Without the key nothing of the replica's state is told.
    let mut thief = current.clone().later(9);
    thief.key[0] ^= 1;
    match thief.say(&address).unwrap() {
        Answer::Dropped => {}
        Answer::Refused(refused) => assert_eq!(refused.kind, RefusalKind::Identity, "{refused:?}"),
        Answer::Welcome(..) => panic!("a peer without the volume's key was taken"),
    }
    // None of them cost the volume anything.
    let after = cluster.wait_healthy("demo");
    assert_eq!(after.pids(), volume.pids());
    assert_eq!((after.generation(), after.epoch()), (generation, volume.epoch()));
}

#[test]
fn a_clean_detach_is_marked_and_an_unclean_end_is_not() {
    let cluster = Cluster::with_volume("64MiB", 2);
    let clean = || records::record(&cluster.data_dir(), "demo")["status"]["clean"].as_bool();
    assert_eq!(clean(), Some(false), "while an engine serves, the end is not clean");
    let mut client = cluster.connect("demo");
    client.write(0, &[1; 65_536]).unwrap();
    drop(client);
    cluster.detach("demo");
    assert_eq!(clean(), Some(true));
    image::equal(&cluster.volume("demo").images()).unwrap();
    cluster.ok(&["volume", "attach", "demo"]);
    let before = cluster.wait_healthy("demo");
    kill(before.engine_pid().unwrap());
    cluster.wait_new_engine("demo", &before);
    assert_eq!(clean(), Some(false));
}
