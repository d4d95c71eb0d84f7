//! The simulation: the seeds that once found something, the first 2,000 of all, and agents with a rule left out.
#![forbid(unsafe_code)]

use holdfast_tests::sim;
use holdfast_tests::sim::plan::{Broken, Era, Plan};

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
fn the_first_seeds_without_agents() {
    assert!(runs((0..500).map(|seed| Plan::of_era(seed, Era::Second))) > 25_000);
}

/// Each rule left out in turn is found, by the seeds among the first that show it.
#[test]
fn agents_with_a_rule_left_out_are_found() {
    for (broken, found) in Broken::ALL {
        let finds = |seed| {
            let report = sim::run_plan(Plan { broken: Some(broken), ..Plan::of(seed) }, false);
            report.failure.is_some_and(|why| why.contains(found))
        };
        // What is cleaned at once harms nobody in most worlds: one in some thousands shows it.
        assert!((0..15_000).any(finds), "{broken:?}: nothing found");
    }
}

#[test]
fn the_same_seed_is_the_same_world() {
    for seed in [3, 4, 5] {
        let (first, second) = (sim::run(seed, false), sim::run(seed, false));
        assert_eq!((first.events, first.answered), (second.events, second.answered), "seed {seed}");
    }
}
