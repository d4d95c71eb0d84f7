//! Every fault that concerns the data path, by name, under clients whose history must be one that a device could give;
//! and many of them at random, by a seed.
//!
//! `HOLDFAST_TEST_SEED` replays a schedule; `HOLDFAST_FAULT_MINUTES` makes the random part as long (`tests/run
//! --faults MINUTES [--seed N]`).
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use holdfast_tests::faults::{Fault, Planned, schedule};
use holdfast_tests::process::{Process, kill};
use holdfast_tests::trial::{REPLICA_TIMEOUT, Stage, Trial, disks_possible};
use holdfast_tests::wait::check;
use holdfast_tests::{Rng, SECOND, eventually, skip_aloud};

#[test]
fn f_random_faults() {
    let mut seed = Rng::chosen_seed();
    let minutes: Option<u64> =
        std::env::var("HOLDFAST_FAULT_MINUTES").ok().map(|m| m.parse().expect("minutes"));
    let end = Instant::now() + Duration::from_secs(minutes.map_or(30, |m| m * 60));
    let disks = disks_possible();
    if !disks {
        skip_aloud(
            "f_random_faults (failing disks and power cuts only)",
            "root and /dev/fuse, to mount a disk",
        );
    }
    while Instant::now() < end {
        burst(seed, disks);
        // A seed that is asked for is the first burst's: each can be had again without the ones before it.
        seed = Rng::seeded(seed).word();
    }
}

fn burst(seed: u64, disks: bool) {
    let mut rng = Rng::seeded(seed);
    let stage = Stage { replicas: if rng.one_in(5) { 2 } else { 3 }, disks, ..Stage::default() };
    let plan = schedule(&mut rng, stage.replicas, disks, 12);
    println!(
        "f_random_faults: a burst of {} with {stage:?}; again: tests/run --faults 1 --seed {seed}",
        plan.len()
    );
    let mut trial = Trial::with_rng("f_random_faults", stage, rng);
    allow(&mut trial);
    for (i, planned) in plan.iter().enumerate() {
        trial.meet(planned);
        if i % 4 == 3 {
            trial.verdict_and_on();
        }
    }
    trial.verdict();
}

/// What a failing disk makes a human look at.
fn allow(trial: &mut Trial) {
    for text in
        ["does not claim a flush again until it has been filled anew", "No space left", "Input/output error"]
    {
        trial.cluster.allow_errors(text);
    }
}

#[test]
fn f_kill9_replica() {
    let mut trial = Trial::new("f_kill9_replica", Stage::default());
    for r in 1..=3 {
        trial.begin(Fault::KillReplica(r));
        trial.go_on();
        trial.healthy();
    }
    assert_eq!(trial.verdict().failed, 0);
}

#[test]
fn f_kill9_engine() {
    let mut trial = Trial::new("f_kill9_engine", Stage::default());
    for _ in 0..3 {
        trial.begin(Fault::KillEngine);
        trial.go_on();
    }
    assert!(trial.verdict().reconnects > 0, "nobody noticed that the engine died");
}

#[test]
fn f_kill9_engine_and_replica() {
    let mut trial = Trial::new("f_kill9_engine_and_replica", Stage::default());
    for r in [1, 3] {
        trial.begin(Fault::KillEngineAndReplica(r));
        trial.go_on();
    }
    trial.verdict();
}

#[test]
fn f_kill9_agent_and_replica() {
    let mut trial = Trial::new("f_kill9_agent_and_replica", Stage::default());
    trial.begin(Fault::KillAgentAndReplica(2));
    // Two of three go on without anybody to record it.
    trial.go_on();
    assert_eq!(trial.verdict().failed, 0);
}

#[test]
fn f_kill9_everything() {
    let mut trial = Trial::new("f_kill9_everything", Stage::default());
    trial.begin(Fault::KillEverything);
    trial.verdict_and_on();
    trial.begin(Fault::KillEverything);
    trial.verdict();
}

#[test]
fn f_two_of_three_killed_during_rebuild() {
    let mut trial = Trial::new("f_two_of_three_killed_during_rebuild", Stage::default());
    // One that is killed is back before it is left out.
    trial.begin(Fault::StopReplica(1));
    trial.left_out(1);
    trial.undo();
    // Whether it is still filled or a member again by now, the other two are what is left; then one of each.
    trial.begin(Fault::KillTwoReplicas(2, 3));
    trial.go_on();
    trial.begin(Fault::KillTwoReplicas(1, 2));
    trial.go_on();
    assert_eq!(trial.verdict().failed, 0);
}

#[test]
fn f_sigstop_replica() {
    let mut trial = Trial::new("f_sigstop_replica", Stage::default());
    let epoch = trial.volume().epoch();
    trial.begin(Fault::StopReplica(2));
    trial.left_out(2);
    trial.go_on();
    trial.undo();
    let healthy = trial.healthy();
    assert!(healthy.epoch() > epoch, "it was left out and is back");
    trial.begin(Fault::StopReplica(1));
    trial.go_on();
    assert_eq!(trial.verdict().failed, 0, "a stopped member delays I/O, it fails none");
}

#[test]
fn f_sigstop_engine() {
    let mut trial = Trial::new("f_sigstop_engine", Stage::default());
    let before = trial.volume();
    let stopped = Planned {
        fault: Fault::StopEngine,
        hold: REPLICA_TIMEOUT + Duration::from_millis(500),
        rest: Duration::ZERO,
        heal: true,
    };
    trial.meet(&stopped);
    trial.go_on();
    assert_eq!(trial.volume().engine_pid(), before.engine_pid(), "it was stopped, not dead");
    assert_eq!(trial.verdict().failed, 0);
}

#[test]
fn f_connection_reset() {
    let mut trial = Trial::new("f_connection_reset", Stage::default());
    for r in 1..=3 {
        trial.begin(Fault::Reset(r));
        trial.go_on();
        trial.begin(Fault::CutFrame(r));
        trial.go_on();
        trial.healthy();
    }
    assert_eq!(trial.verdict().failed, 0);
}

#[test]
fn f_delay_200ms() {
    let mut trial = Trial::new("f_delay_200ms", Stage::default());
    trial.begin(Fault::Delay(1, 200));
    trial.load().wait_done(60, 60 * SECOND);
    trial.undo();
    // Each link by other times: what one sends to two arrives in any order.
    trial.begin(Fault::DelayAll(30));
    trial.go_on();
    assert_eq!(trial.verdict().failed, 0);
}

#[test]
fn f_partition() {
    let mut trial = Trial::new("f_partition", Stage::default());
    trial.begin(Fault::Partition(3));
    trial.left_out(3);
    trial.go_on();
    trial.undo();
    trial.healthy();
    assert_eq!(trial.verdict().failed, 0);
}

#[test]
fn f_partition_oneway() {
    let mut trial = Trial::new("f_partition_oneway", Stage::default());
    for fault in [Fault::Deaf(1), Fault::Mute(2)] {
        trial.begin(fault);
        let (Fault::Deaf(r) | Fault::Mute(r)) = fault else { unreachable!("one of the two") };
        trial.left_out(r);
        trial.go_on();
        trial.undo();
        trial.healthy();
    }
    assert_eq!(trial.verdict().failed, 0);
}

#[test]
fn f_partition_of_all() {
    let mut trial = Trial::new("f_partition_of_all", Stage::default());
    let cut = Planned {
        fault: Fault::PartitionAll,
        hold: REPLICA_TIMEOUT + Duration::from_secs(1),
        rest: Duration::ZERO,
        heal: true,
    };
    trial.meet(&cut);
    trial.go_on();
    assert_eq!(trial.verdict().failed, 0, "I/O waits for a stall of all, it does not fail");
}

#[test]
fn f_registry_down() {
    let mut trial = Trial::new("f_registry_down", Stage::default());
    trial.cluster.allow_errors("the registry cannot be read; nothing is started or stopped");
    let dir = trial.cluster.data_dir().join("registry");
    let away = trial.cluster.root().join("registry-away");
    std::fs::rename(&dir, &away).unwrap();
    let before = trial.cluster.instance_processes();
    trial.go_on();
    std::fs::rename(&away, &dir).unwrap();
    assert_eq!(trial.cluster.instance_processes(), before, "nothing is stopped on absence");
    trial.begin(Fault::KillReplica(1));
    trial.go_on();
    trial.healthy();
    assert_eq!(trial.verdict().failed, 0);
}

#[test]
fn f_bitflip_meta() {
    let mut trial = Trial::new("f_bitflip_meta", Stage::default());
    let volume = trial.volume();
    let meta = volume.replica("r2").data_dir().join("meta");
    trial.begin(Fault::StopAgent);
    trial.cluster.kill_agent();
    kill(volume.replica("r2").pid().unwrap());
    eventually(20 * SECOND, "it is gone", || {
        check(Process::find(volume.replica("r2").pid().unwrap()).is_none(), String::new)
    });
    let whole = std::fs::read(&meta).unwrap();
    let mut flipped = whole.clone();
    flipped[100] ^= 4;
    std::fs::write(&meta, &flipped).unwrap();
    trial.cluster.start();
    trial.cluster.wait_mode("demo", "r2", "absent");
    trial.go_on();
    assert_eq!(std::fs::read(&meta).unwrap(), flipped, "what cannot be understood is left as it is");
    std::fs::write(&meta, &whole).unwrap();
    trial.healthy();
    assert_eq!(trial.verdict().failed, 0);
}

/// A trial on disks of our own, where that is possible.
fn on_disks(name: &str) -> Option<Trial> {
    if !disks_possible() {
        skip_aloud(name, "root and /dev/fuse, to mount a disk");
        return None;
    }
    let mut trial = Trial::new(name, Stage { disks: true, ..Stage::default() });
    allow(&mut trial);
    Some(trial)
}

/// One disk has this trouble: its replica leaves, nobody else notices, and it comes back.
fn one_disk(name: &str, fault: Fault, replica: u64) {
    let Some(mut trial) = on_disks(name) else { return };
    trial.begin(fault);
    trial.left_out(replica);
    trial.go_on();
    assert!(trial.disk(replica).failed() > 0, "the disk failed nothing");
    trial.undo();
    trial.healthy();
    assert_eq!(trial.verdict().failed, 0);
}

#[test]
fn f_enospc_one_replica() {
    one_disk("f_enospc_one_replica", Fault::FullDisk(1), 1);
}

#[test]
fn f_eio_write() {
    one_disk("f_eio_write", Fault::FailWrites(2), 2);
}

#[test]
fn f_eio_fsync() {
    one_disk("f_eio_fsync", Fault::FailSyncs(3), 3);
}

#[test]
fn f_eio_read() {
    // A read that one member cannot answer is answered by another.
    one_disk("f_eio_read", Fault::FailReads(1), 1);
}

#[test]
fn f_slow_disk() {
    let Some(mut trial) = on_disks("f_slow_disk") else { return };
    trial.begin(Fault::SlowDisk(2, 100));
    trial.load().wait_done(60, 60 * SECOND);
    assert_eq!(trial.verdict().failed, 0, "slow is not dead");
}

#[test]
fn f_torn_4k() {
    let Some(mut trial) = on_disks("f_torn_4k") else { return };
    for _ in 0..3 {
        trial.power_cut();
        trial.go_on();
        trial.healthy();
    }
    trial.verdict();
}
