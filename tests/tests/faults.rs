//! Every fault that concerns the data path, by name, under clients whose history must be one that a device could give;
//! and many of them at random, by a seed.
//!
//! `HOLDFAST_TEST_SEED` replays a schedule; `HOLDFAST_FAULT_MINUTES` makes the random part as long (`tests/run
//! --faults MINUTES [--seed N]`).
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use holdfast_tests::faults::{Fault, Planned, schedule};
use holdfast_tests::trial::{Stage, Trial, disks_possible};
use holdfast_tests::{Rng, skip_aloud};

#[test]
fn f_random_faults() {
    let mut rng = Rng::announced("f_random_faults");
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
        let seed = rng.word();
        burst(seed, disks);
    }
}

fn burst(seed: u64, disks: bool) {
    let mut rng = Rng::seeded(seed);
    let stage = Stage { replicas: if rng.one_in(5) { 2 } else { 3 }, disks };
    let plan = schedule(&mut rng, stage.replicas, disks, 12);
    println!("f_random_faults: a burst of {} with {stage:?}", plan.len());
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
    for text in ["does not claim a flush again until it has been filled anew", "No space left"] {
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
