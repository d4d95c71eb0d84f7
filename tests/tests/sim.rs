//! The simulation: the seeds that once found something, and the first 2,000 of all.
#![forbid(unsafe_code)]

use holdfast_tests::sim::{self, plan::Plan};

fn runs(plans: impl IntoIterator<Item = Plan>) -> u64 {
    let mut answered = 0;
    for plan in plans {
        let report = sim::run_plan(plan.clone(), false);
        if let Some(why) = report.failure {
            panic!("seed {}: {why}\nreplay: {}", plan.seed, sim::replay(&plan));
        }
        answered += report.answered;
    }
    answered
}

#[test]
fn seeds_that_found_something() {
    runs(sim::regressions());
}

#[test]
fn the_first_seeds() {
    assert!(runs((0..1000).map(Plan::of)) > 50_000, "the seeds have done next to nothing");
}

#[test]
fn the_next_seeds() {
    assert!(runs((1000..2000).map(Plan::of)) > 50_000, "the seeds have done next to nothing");
}

#[test]
fn the_same_seed_is_the_same_world() {
    for seed in [3, 4, 5] {
        let (first, second) = (sim::run(seed, false), sim::run(seed, false));
        assert_eq!((first.events, first.answered), (second.events, second.answered), "seed {seed}");
    }
}
